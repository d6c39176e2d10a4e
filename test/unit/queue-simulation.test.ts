/**
 * Leases under chance: thousands of interleavings of workers that die, stall, come back late and lie about their leases, of instances that
 * stop between a reservation and its claim, and of operators that suspend, resume and cancel. The decisions and the fold of the placement
 * are the real ones; the clock and the scheduler are a seed's.
 *
 * Checked at each step: nobody is given a run while a lease that was granted to another still lasts, and nothing is stored of a worker whose lease
 * is over. At the end, when all that is left works honestly: every run has ended, exactly once, and nothing waits.
 * A row is what the database holds; each action is one transaction under its lock.
 */
import t from 'tap'
import type { CanonicalEvent, DraftEvent } from '../../src/domain/canonical-event.js'
import { type CommandedPlace, type CommandedRun, decideCancel, decideForcedCancel, decideResume, decideSuspend } from '../../src/domain/command.js'
import { type Placement, placementAfter, UNPLACED } from '../../src/domain/placement.js'
import { assertHolder, backoffMs, decideClaim, decideExpiry, decideHeartbeat, decideRelease, type FoldedRun } from '../../src/domain/queue.js'
import { isTerminal, nextAttempt, nextStatus, type RunStatus } from '../../src/domain/run.js'
import { RunplaneError } from '../../src/errors.js'

const REAL = { assertHolder, decideClaim, decideExpiry, decideHeartbeat, decideRelease }
type Rules = typeof REAL

const DEFAULTS = { leaseMs: 1000, maxAttempts: 4, retryBaseMs: 100, retryMaxMs: 2000 }
const RESERVATION_MS = 500
const CANCEL_GRACE_MS = 3000
const RUNS = 6
const WORKERS = 4
const STEPS = 150
/** Each step of the honest end may take time, and a run needs a few of them: far more than that means that something waits for ever. */
const END_STEPS = 3000

/** mulberry32: a small generator whose numbers are the same everywhere. */
function chance(seed: number): () => number {
  let a = seed
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let x = Math.imul(a ^ (a >>> 15), 1 | a)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296
  }
}

interface Row {
  id: string
  status: RunStatus
  attempt: number
  place: Placement
  reservedUntil: string | null
  wasSuspended: boolean
  ends: number
  log: { type: string; attempt: number; workerId?: unknown }[]
}

/** What a worker was told, and believes until it is told otherwise. `until` null: it stands still. */
interface Grant {
  worker: number
  run: Row
  until: string | null
}

class Broken extends Error {}

class World {
  nowMs = Date.parse('2026-11-21T08:00:00.000Z')
  readonly rows: Row[] = []
  readonly grants = new Set<Grant>()
  /** Claims between their reservation and their append. */
  readonly claims: { worker: number; run: Row; token: string }[] = []

  constructor(
    readonly random: () => number,
    readonly rules: Rules,
  ) {}

  get now(): string {
    return new Date(this.nowMs).toISOString()
  }

  pick<T>(items: readonly T[]): T | undefined {
    return items[Math.floor(this.random() * items.length)]
  }

  folded = ({ id, status, attempt }: Row): FoldedRun => ({ runId: id, status, attempt })
  placed = (row: Row) => ({ ...row.place, reservedUntil: row.reservedUntil, maxAttempts: null, leaseMs: null })
  commanded = (row: Row): [CommandedRun, CommandedPlace] => [
    { status: row.status, attempt: row.attempt, wasSuspended: row.wasSuspended, reason: null, by: null },
    { ...row.place, now: this.now },
  ]

  /** As the append does: number, fold, place. */
  append(row: Row, drafts: readonly DraftEvent[], kind: 'control-plane' | 'agent' = 'control-plane'): void {
    for (const draft of drafts) {
      const late = isTerminal(row.status) && draft.type !== 'run.retry_scheduled'
      const event = { ts: this.now, source: { kind }, late: late || undefined, attempt: row.attempt, ...draft } as CanonicalEvent
      row.log.push({ type: draft.type, attempt: row.attempt, workerId: draft.data.workerId })
      const wasTerminal = isTerminal(row.status)
      row.attempt = nextAttempt(row.attempt, event)
      row.status = nextStatus(row.status, event)
      if (row.status === 'suspended') row.wasSuspended = true
      const place = placementAfter(row.place, event, row.status)
      if (place !== row.place) row.reservedUntil = null
      row.place = { ...row.place, ...place }
      if (!wasTerminal && isTerminal(row.status)) row.ends++
    }
  }

  create(): void {
    const row: Row = {
      id: `run-${this.rows.length}`,
      status: 'queued',
      attempt: 1,
      place: UNPLACED,
      reservedUntil: null,
      wasSuspended: false,
      ends: 0,
      log: [],
    }
    this.rows.push(row)
    const availableAt = this.random() < 0.2 ? new Date(this.nowMs + 700).toISOString() : undefined
    this.append(row, [
      { type: 'run.created', data: {} },
      { type: 'run.queued', data: { queue: 'q', priority: Math.floor(this.random() * 3), ...(availableAt !== undefined && { availableAt }) } },
    ])
  }

  reserve(worker: number): void {
    const free = this.rows.filter(
      ({ status, place, reservedUntil }) => status === 'queued' && place.availableAt === null && reservedUntil === null && place.cancelRequestedAt === null,
    )
    const [run] = free.sort((left, right) => right.place.priority - left.place.priority || (left.id < right.id ? -1 : 1))
    if (!run) return
    run.reservedUntil = new Date(this.nowMs + RESERVATION_MS).toISOString()
    this.claims.push({ worker, run, token: run.reservedUntil })
  }

  claim(claim: { worker: number; run: Row; token: string }): void {
    this.claims.splice(this.claims.indexOf(claim), 1)
    const { run, worker } = claim
    try {
      const workerId = `w${worker}`
      const leaseMs = this.random() < 0.3 ? 1500 : undefined
      const drafts = this.rules.decideClaim({ workerId, leaseMs, reservedUntil: claim.token }, this.folded(run), this.placed(run), this.now, DEFAULTS)
      for (const grant of this.grants) {
        if (grant.run === run && this.lasts(grant)) throw new Broken(`${run.id} is given to w${worker} while w${grant.worker} holds it until ${grant.until}`)
      }
      this.append(run, drafts)
      for (const grant of this.grants) if (grant.run === run && grant.worker === worker) this.grants.delete(grant)
      this.grants.add({ worker, run, until: run.place.leaseExpiresAt })
    } catch (error) {
      if (!(error instanceof RunplaneError)) throw error
    }
  }

  /** @param honest without one, the worker makes it up */
  heartbeat(worker: number, run: Row, grant?: Grant): void {
    this.speak(worker, run, grant, () => {
      const until = this.rules.decideHeartbeat({ workerId: `w${worker}` }, this.folded(run), this.placed(run), this.now, DEFAULTS)
      run.place = { ...run.place, leaseExpiresAt: until, ...(until !== null && { leaseRemainingMs: null }) }
      for (const one of this.grants) if (one.worker === worker && one.run === run) one.until = until
    })
  }

  tell(worker: number, run: Row, type: string, grant?: Grant): void {
    this.speak(worker, run, grant, () => {
      this.rules.assertHolder(`w${worker}`, run.status === 'queued' ? { runId: run.id, status: 'queued' } : this.folded(run), run.place, this.now)
      this.append(run, [{ type, data: { workerId: `w${worker}` } }], 'agent')
    })
  }

  release(worker: number, run: Row, grant?: Grant): void {
    this.speak(worker, run, grant, () => {
      const delayMs = this.random() < 0.5 ? 300 : undefined
      this.append(run, this.rules.decideRelease({ workerId: `w${worker}`, delayMs }, this.folded(run), this.placed(run), this.now))
    })
  }

  /** Whatever is accepted must come from one whose grant lasts, and a refusal ends the grant of the one who is refused. */
  private speak(worker: number, run: Row, grant: Grant | undefined, act: () => void): void {
    const real = [...this.grants].find((one) => one.worker === worker && one.run === run)
    const lasts = real !== undefined && this.lasts(real)
    try {
      act()
      if (!lasts) throw new Broken(`w${worker} was listened to about ${run.id}, which it does not hold`)
      // It has given the run up itself, or ended it.
      if (run.place.workerId === null) this.grants.delete(real)
    } catch (error) {
      if (!(error instanceof RunplaneError)) throw error
      if (error.code === 'LEASE_LOST' && grant) this.grants.delete(grant)
    }
  }

  /** The loop of one instance, or a part of it. */
  sweep(): void {
    for (const row of this.rows) {
      if (row.status === 'queued' && row.place.availableAt !== null && row.place.availableAt <= this.now) row.place = { ...row.place, availableAt: null }
      if (row.reservedUntil !== null && row.reservedUntil < this.now) row.reservedUntil = null
      const { leaseExpiresAt, leaseLengthMs, leaseRemainingMs } = row.place
      if (row.place.workerId !== null && leaseExpiresAt === null && ['starting', 'binding_session', 'running'].includes(row.status)) {
        const ms = leaseRemainingMs ?? leaseLengthMs ?? DEFAULTS.leaseMs
        row.place = { ...row.place, leaseExpiresAt: new Date(this.nowMs + ms).toISOString(), leaseRemainingMs: null }
        this.inform(row)
      }
      if (leaseExpiresAt !== null && leaseExpiresAt <= this.now) this.expire(row)
      const [run, place] = this.commanded(row)
      this.append(row, decideForcedCancel(run, place, CANCEL_GRACE_MS))
    }
  }

  expire(row: Row): void {
    this.append(row, this.rules.decideExpiry({ jitter: this.random() }, this.folded(row), this.placed(row), this.now, DEFAULTS))
  }

  operate(row: Row): void {
    const [run, place] = this.commanded(row)
    const decide = this.pick([decideSuspend, decideResume, decideResume, decideCancel])
    try {
      if (decide) this.append(row, decide(run, place, {}))
      this.inform(row)
    } catch (error) {
      if (!(error instanceof RunplaneError)) throw error
    }
  }

  /** A lease that stands still, or runs on, does so for its holder as well; one that has run out does not come back. */
  inform(row: Row): void {
    for (const grant of this.grants)
      if (grant.run === row && row.place.workerId === `w${grant.worker}` && this.lasts(grant)) grant.until = row.place.leaseExpiresAt
  }

  lasts({ until }: Grant): boolean {
    return until === null || until > this.now
  }

  step(): void {
    const worker = Math.floor(this.random() * WORKERS)
    const row = this.pick(this.rows)
    const grant = this.pick([...this.grants])
    const dice = this.random()
    if (dice < 0.08 && this.rows.length < RUNS) this.create()
    else if (dice < 0.28) this.reserve(worker)
    else if (dice < 0.44) {
      const claim = this.pick(this.claims)
      // One in ten dies with its instance; others come late, for time goes on between the steps.
      if (claim && this.random() < 0.1) this.claims.splice(this.claims.indexOf(claim), 1)
      else if (claim) this.claim(claim)
    } else if (dice < 0.54) {
      if (grant) this.heartbeat(grant.worker, grant.run, grant)
    } else if (dice < 0.6) {
      if (grant) this.tell(grant.worker, grant.run, this.pick(['run.started', 'step.started', 'run.suspended', 'run.resumed']) ?? '', grant)
    } else if (dice < 0.64) {
      if (grant) this.tell(grant.worker, grant.run, this.pick(['run.completed', 'run.failed']) ?? '', grant)
    } else if (dice < 0.67) {
      if (grant) this.release(grant.worker, grant.run, grant)
    } else if (dice < 0.7) {
      // A worker dies: what it holds is held until its leases run out, and only then forgotten.
      for (const one of this.grants) if (one.worker === worker && one.until !== null && one.until <= this.now) this.grants.delete(one)
    } else if (dice < 0.78 && row) {
      // A liar, or one that comes back after it was given up on.
      const lie = Math.floor(this.random() * 4)
      if (lie === 0) this.heartbeat(worker, row)
      else if (lie === 1) this.tell(worker, row, 'run.completed')
      else if (lie === 2) this.release(worker, row)
      else this.claims.push({ worker, run: row, token: row.reservedUntil ?? this.now })
    } else if (dice < 0.82 && row) this.operate(row)
    else if (dice < 0.9) this.sweep()
    else if (dice < 0.92 && row) this.expire(row)
    else this.nowMs += Math.floor(this.random() ** 3 * 2500)
  }

  /** From now on all work as they should, with the workers that are left. @returns the runs that did not end */
  end(): Row[] {
    const survivors = 1 + Math.floor(this.random() * WORKERS)
    for (let step = 0; step < END_STEPS && this.rows.some((row) => !isTerminal(row.status)); step++) {
      this.nowMs += 60
      this.sweep()
      for (const row of this.rows) {
        if (row.status !== 'suspended') continue
        const [run, place] = this.commanded(row)
        if (place.cancelRequestedAt === null) this.append(row, decideResume(run, place, {}))
        this.inform(row)
      }
      for (const claim of [...this.claims]) this.claim(claim)
      this.reserve(step % survivors)
      // The others are dead, and what they held comes back.
      for (const grant of [...this.grants]) if (grant.worker < survivors && this.random() < 0.3) this.tell(grant.worker, grant.run, 'run.completed', grant)
    }
    return this.rows.filter((row) => !isTerminal(row.status))
  }
}

/** @returns what is wrong; undefined where all is well */
function simulate(seed: number, rules: Rules): string | undefined {
  const world = new World(chance(seed), rules)
  world.create()
  try {
    for (let step = 0; step < STEPS; step++) world.step()
    const waiting = world.end()
    if (waiting.length > 0) return `${waiting.map((row) => `${row.id} is ${row.status}: ${row.log.map((entry) => entry.type).join(' ')}`)}`
  } catch (error) {
    if (error instanceof Broken) return error.message
    throw error
  }
  for (const row of world.rows) {
    if (row.ends !== 1) return `${row.id} ended ${row.ends} times`
    const retries = row.log.filter((entry) => entry.type === 'run.retry_scheduled')
    if (row.attempt !== retries.length + 1 || row.attempt > DEFAULTS.maxAttempts) return `${row.id} has attempt ${row.attempt} after ${retries.length} retries`
  }
  return undefined
}

const SEEDS = 4000

t.test(`${SEEDS} interleavings: no run is held twice, none is lost, none waits for ever`, async (t) => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const wrong = simulate(seed, REAL)
    if (wrong !== undefined) return t.fail(`seed ${seed}: ${wrong}`)
  }
  t.pass('none of them found anything wrong')
})

t.test('the simulation finds a rule that is broken', async (t) => {
  const broken: Record<string, Partial<Rules>> = {
    'a claim that does not look whether the run is free': {
      decideClaim: (claim, run, place, now, defaults) =>
        isTerminal(run.status)
          ? []
          : decideClaim(claim, { ...run, status: 'queued' }, { ...place, workerId: null, reservedUntil: claim.reservedUntil }, now, defaults),
    },
    'a lease that is taken away before its time': {
      decideExpiry: (expiry, run, place, now, defaults) =>
        decideExpiry(expiry, run, { ...place, leaseExpiresAt: place.leaseExpiresAt && '2000-01-01T00:00:00.000Z' }, now, defaults),
    },
    'a holder that is listened to after its lease': {
      assertHolder: (workerId, run, place) => assertHolder(workerId, run, { ...place, leaseExpiresAt: null }, ''),
    },
    'a lease that never runs out': { decideExpiry: () => [] },
    'a release that anybody may do': {
      decideRelease: (release, run, place, now) => decideRelease({ ...release, workerId: place.workerId ?? '' }, run, place, now),
    },
  }
  for (const [name, rules] of Object.entries(broken)) {
    let found: string | undefined
    for (let seed = 1; seed <= 300 && found === undefined; seed++) found = simulate(seed, { ...REAL, ...rules })
    t.ok(found, `${name}: ${found}`)
  }
})

t.test('the backoff doubles up to its maximum, and at least half of it is certain', async (t) => {
  const settings = { retryBaseMs: 100, retryMaxMs: 1000 }
  t.same(
    [1, 2, 3, 4, 5, 1000].map((attempt) => backoffMs(attempt, 1, settings)),
    [100, 200, 400, 800, 1000, 1000],
  )
  t.same(
    [1, 2, 5].map((attempt) => backoffMs(attempt, 0, settings)),
    [50, 100, 500],
  )
})
