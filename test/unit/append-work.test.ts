/** Requests of one group are decided one on what the other has left, though none of it is in the database yet. */
import t from 'tap'
import { decideCancel } from '../../src/domain/command.js'
import { UNPLACED } from '../../src/domain/placement.js'
import { decideClaim, decideRelease } from '../../src/domain/queue.js'
import type { AppendRequest, PlacedRun } from '../../src/log/append-request.js'
import { beginWork, noRows, workOff } from '../../src/log/append-work.js'
import { createState } from '../../src/projections/fold.js'
import { commanded } from '../../src/runs/commands.js'

const KEY = '01890000-0000-7000-8000-000000000001'
const NOW = '2026-11-28T12:00:00.000Z'
const WAITING: PlacedRun = { ...UNPLACED, queue: 'q', reservedUntil: NOW, maxAttempts: null, leaseMs: null, now: NOW }

type Decide = NonNullable<AppendRequest['decide']>
const run = { runId: 'r', attempt: 1 }
const create: Decide = () => [{ type: 'run.created', data: {} }]
const claim: Decide = (state, place) =>
  decideClaim({ workerId: 'w', reservedUntil: NOW }, { ...run, status: state.folds.run.status }, place, place.now, { leaseMs: 5000 })
const release: Decide = (state, place) => decideRelease({ workerId: 'w' }, { ...run, status: state.folds.run.status }, place, place.now)
const cancel: Decide = (state, place) => decideCancel(commanded(state), place, {})

/** @returns the types of the events, or the refusal's code, of each request; and the run as it is then. */
function group(...decisions: Decide[]) {
  const work = beginWork({ key: KEY, id: 'r', workspace_id: KEY, last_seq: 0, last_raw_seq: 0, hooked: false, place: WAITING }, createState())
  const requests = [create, ...decisions].map((decide): AppendRequest => ({ runKey: KEY, receivedAt: NOW, items: [], decide }))
  const { outcomes } = workOff(requests, new Map([[KEY, work]]), { created: new Set(), known: new Map(), receipts: new Map(), owners: new Map() }, noRows())
  return {
    kinds: outcomes.slice(1).map((outcome) => (outcome.kind === 'refused' ? outcome.error.code : outcome.kind)),
    types: work.committed.slice(1).map((event) => event.type),
    status: work.status,
    placement: work.placement,
  }
}

t.test('a cancel right after the claim is requested of its holder, who has just got the run', async (t) => {
  const { types, status, placement } = group(claim, cancel)
  t.same(types, ['run.claimed', 'run.cancel_requested'])
  t.equal(status, 'starting')
  t.match(placement, { workerId: 'w', cancelRequestedAt: NOW })
})

t.test('a claim right after the cancel gets nothing', async (t) => {
  const { kinds, types, status } = group(cancel, claim)
  t.same(kinds, ['done', 'INVALID_STATE_TRANSITION'])
  t.same(types, ['run.cancelled'])
  t.equal(status, 'cancelled')
})

t.test('a cancel of what has just been claimed and released ends it at once', async (t) => {
  t.same(group(claim, release, cancel).types, ['run.claimed', 'run.released', 'run.cancelled'])
  t.same(group(claim, cancel, release).types, ['run.claimed', 'run.cancel_requested', 'run.released', 'run.cancelled'])
})
