/** Commands on any run, folded as the log folds them: a command is refused with the statuses that it works from, or does what it says; said twice it does it once. */
import fc from 'fast-check'
import t from 'tap'
import type { CanonicalEvent, DraftEvent } from '../../src/domain/canonical-event.js'
import {
  type CommandedPlace,
  type CommandedRun,
  decideCancel,
  decideExpiry,
  decideForcedCancel,
  decideResume,
  decideRetry,
  decideSuspend,
  WORKS_FROM,
} from '../../src/domain/command.js'
import { isActive, type Placement, placementAfter } from '../../src/domain/placement.js'
import { isTerminal, nextAttempt, nextStatus, RUN_STATUSES, type RunStatus } from '../../src/domain/run.js'
import { RunplaneError } from '../../src/errors.js'

const START = Date.parse('2026-11-21T08:00:00.000Z')
const GRACE_MS = 30_000
const iso = (ms: number) => new Date(START + ms).toISOString()

interface World {
  run: CommandedRun
  place: Placement
  nowMs: number
}

const placed = ({ place, nowMs }: World): CommandedPlace => ({ ...place, now: iso(nowMs) })

/** What the append does with events of the control plane, or of an agent, as far as commands see it. */
function apply(world: World, drafts: DraftEvent[], sourceKind: 'control-plane' | 'agent' = 'control-plane'): World {
  let { run, place } = world
  for (const draft of drafts) {
    const late = isTerminal(run.status) && !(sourceKind === 'control-plane' && draft.type === 'run.retry_scheduled')
    const event = { ...draft, ts: draft.ts ?? iso(world.nowMs), source: { kind: sourceKind }, ...(late && { late }) } as unknown as CanonicalEvent
    const status = nextStatus(run.status, event)
    const wasSuspended = run.wasSuspended || draft.type === 'run.suspended'
    run = { ...run, status, attempt: nextAttempt(run.attempt, event), wasSuspended }
    place = { ...place, ...placementAfter(place, event, status) }
  }
  return { ...world, run, place }
}

const ms = fc.integer({ min: 0, max: 100_000 })
const world: fc.Arbitrary<World> = fc
  .record({
    status: fc.constantFrom(...RUN_STATUSES),
    queue: fc.constantFrom(null, 'build'),
    worker: fc.option(ms, { nil: null }),
    ttl: fc.option(ms, { nil: null }),
    cancelling: fc.option(ms, { nil: null }),
    wasSuspended: fc.boolean(),
    nowMs: ms,
  })
  .map(({ status, queue, worker, ttl, cancelling, wasSuspended, nowMs }) => {
    const isHeld = worker !== null && !isTerminal(status) && status !== 'queued'
    const isRunning = status === 'running'
    return {
      nowMs,
      run: { status, attempt: 1, wasSuspended: wasSuspended || status === 'suspended', reason: null, by: null },
      place: {
        queue,
        priority: 0,
        availableAt: null,
        workerId: isHeld ? 'w' : null,
        leaseExpiresAt: isHeld && status !== 'suspended' ? iso(worker) : null,
        leaseRemainingMs: isHeld && status === 'suspended' ? worker : null,
        leaseLengthMs: isHeld ? 1000 : null,
        ttlExpiresAt: isRunning && ttl !== null ? iso(ttl) : null,
        ttlRemainingMs: status === 'suspended' ? ttl : null,
        cancelRequestedAt: cancelling !== null && cancelling <= nowMs && !isTerminal(status) ? iso(cancelling) : null,
      },
    }
  })

const COMMANDS = {
  cancel: (w: World) => decideCancel(w.run, placed(w), { reason: 'r' }),
  suspend: (w: World) => decideSuspend(w.run, placed(w), {}),
  resume: (w: World) => decideResume(w.run, placed(w), {}),
  retry: (w: World) => decideRetry(w.run, placed(w), {}),
}
type Name = keyof typeof COMMANDS
const name = fc.constantFrom<Name>('cancel', 'suspend', 'resume', 'retry')

/** The events, or the refusal. */
function attempt(command: Name, w: World): DraftEvent[] | RunplaneError {
  try {
    return COMMANDS[command](w)
  } catch (error) {
    if (error instanceof RunplaneError) return error
    throw error
  }
}

const isDone: Record<Name, (run: CommandedRun) => boolean> = {
  cancel: (run) => run.status === 'cancelled',
  suspend: (run) => run.status === 'suspended',
  resume: (run) => run.status === 'running' && run.wasSuspended,
  retry: () => false,
}

t.test('a command works from the statuses that it names, is answered again where it is done, and is else refused with those names', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(name, world, (command, w) => {
        const outcome = attempt(command, w)
        const from: readonly RunStatus[] = WORKS_FROM[command]
        if (isDone[command](w.run)) return Array.isArray(outcome) && outcome.length === 0
        if (!from.includes(w.run.status))
          return outcome instanceof RunplaneError && outcome.code === 'INVALID_STATE_TRANSITION' && outcome.message.includes(from.join(', '))
        if (w.place.cancelRequestedAt !== null && (command === 'suspend' || command === 'resume')) return outcome instanceof RunplaneError
        return Array.isArray(outcome)
      }),
      { numRuns: 2000 },
    ),
  )
})

t.test('a command that was obeyed and is said again adds no event', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(fc.constantFrom<Name>('cancel', 'suspend', 'resume'), world, (command, w) => {
        const first = attempt(command, w)
        if (!Array.isArray(first)) return true
        const second = attempt(command, apply(w, first))
        return Array.isArray(second) && second.length === 0
      }),
      { numRuns: 2000 },
    ),
  )
})

t.test('suspended and resumed, a run has the lease and the time that it had, however long it stood still', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(world, ms, (w, pauseMs) => {
        const suspended = attempt('suspend', w)
        if (!Array.isArray(suspended) || suspended.length === 0) return true
        const still = { ...apply(w, suspended), nowMs: w.nowMs + pauseMs }
        if (still.place.leaseExpiresAt !== null || still.place.ttlExpiresAt !== null) return false
        if (decideExpiry(still.run, placed(still)).length > 0) return false
        const after = apply(still, COMMANDS.resume(still))
        const moved = (before: string | null) => (before === null ? null : iso(Math.max(Date.parse(before) - START - w.nowMs, 0) + w.nowMs + pauseMs))
        return (
          after.run.status === 'running' &&
          after.place.leaseExpiresAt === moved(w.place.leaseExpiresAt) &&
          after.place.ttlExpiresAt === moved(w.place.ttlExpiresAt)
        )
      }),
      { numRuns: 2000 },
    ),
  )
})

t.test('a run that was told to cancel is cancelled when the grace is over, whatever was commanded meanwhile', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(world, fc.array(name, { maxLength: 5 }), (w, meanwhile) => {
        const told = attempt('cancel', w)
        if (!Array.isArray(told)) return true
        let now = apply(w, told)
        for (const command of meanwhile) {
          const outcome = attempt(command, now)
          // A retry of what is cancelled by then is another attempt.
          if (command !== 'retry' && Array.isArray(outcome)) now = apply(now, outcome)
        }
        now = { ...now, nowMs: now.nowMs + GRACE_MS }
        now = apply(now, decideForcedCancel(now.run, placed(now), GRACE_MS))
        return now.run.status === 'cancelled' && now.place.workerId === null && now.place.cancelRequestedAt === null
      }),
      { numRuns: 2000 },
    ),
  )
})

t.test('nobody is cut off before the grace is over while its lease lasts', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(world, (w) => {
        const isHeld = w.place.workerId !== null && isActive(w.place, placed(w).now)
        if (!isHeld || w.place.cancelRequestedAt === null || Date.parse(placed(w).now) - Date.parse(w.place.cancelRequestedAt) >= GRACE_MS) return true
        return decideForcedCancel(w.run, placed(w), GRACE_MS).length === 0
      }),
      { numRuns: 2000 },
    ),
  )
})

t.test('a retry is the next attempt, queued where the run has a queue, and free', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(world, (w) => {
        const outcome = attempt('retry', w)
        if (!Array.isArray(outcome)) return true
        const after = apply(w, outcome)
        return after.run.status === 'queued' && after.run.attempt === 2 && after.place.workerId === null && after.place.queue === w.place.queue
      }),
      { numRuns: 2000 },
    ),
  )
})

t.test('a run that has ended is left by every deadline', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(world, (w) => {
        if (!isTerminal(w.run.status)) return true
        return decideForcedCancel(w.run, placed(w), 0).length === 0 && decideExpiry(w.run, placed(w)).length === 0
      }),
    ),
  )
})
