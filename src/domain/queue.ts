/**
 * A run's way through its queue, as decisions: each takes what the run is, under its lock, and the time, and tells the events to append,
 * or refuses. Pure, so that a simulation can try thousands of interleavings of them (test/unit/queue-simulation.test.ts).
 *
 *   waiting --claim--> held --release--> waiting, at once or later
 *                      held --expire---> waiting, after a backoff, as the next attempt; or failed, when that was the last one
 *                      held --heartbeat> held, for longer (no event: the row's lease moves)
 *
 * Invariant: a run has one holder at the most, and who lost its lease can do nothing to the run.
 */
import { RunplaneError } from '../errors.js'
import type { DraftEvent } from './canonical-event.js'
import { isActive, isHeld, type Placement } from './placement.js'
import { isTerminal, type RunStatus } from './run.js'

/** The run as its events tell it. */
export interface FoldedRun {
  runId: string
  status: RunStatus
  attempt: number
}

/** The run as its row has it. */
export interface QueuedPlace extends Placement {
  reservedUntil: string | null
  maxAttempts: number | null
  leaseMs: number | null
}

export interface LeaseDefaults {
  leaseMs: number
  maxAttempts: number
  /** The backoff after the first attempt; it doubles with each. */
  retryBaseMs: number
  retryMaxMs: number
}

const after = (now: string, ms: number): string => new Date(Date.parse(now) + ms).toISOString()

/**
 * What a worker has to be for the run to listen to it. A run that was suspended keeps its holder, whose lease stands still until it is resumed; a lease that had
 * run out by then is not given back.
 * @throws LEASE_LOST, so that a worker that was given up on stops.
 */
export function assertHolder(workerId: string, run: Pick<FoldedRun, 'runId' | 'status'>, place: Placement, now: string): void {
  if (place.workerId === workerId && isHeld(place, now)) return
  const holder = isTerminal(run.status)
    ? `The run is ${run.status}`
    : place.workerId === null
      ? 'Nobody holds it now'
      : place.workerId === workerId
        ? 'The lease has run out'
        : 'Another worker holds it now'
  throw new RunplaneError('LEASE_LOST', `Worker '${workerId}' does not hold run '${run.runId}'. ${holder}: stop working on it, and claim again.`)
}

/**
 * @param claim.reservedUntil the reservation that this claim comes from: one that ran out has been given to another.
 * @throws INVALID_STATE_TRANSITION where the run is not free any more: the claimer looks for another one.
 */
export function decideClaim(
  claim: { workerId: string; leaseMs?: number | undefined; reservedUntil: string },
  run: FoldedRun,
  place: QueuedPlace,
  now: string,
  defaults: Pick<LeaseDefaults, 'leaseMs'>,
): DraftEvent[] {
  const isFree =
    run.status === 'queued' &&
    place.queue !== null &&
    place.workerId === null &&
    place.cancelRequestedAt === null &&
    place.availableAt === null &&
    place.reservedUntil === claim.reservedUntil
  if (!isFree) throw new RunplaneError('INVALID_STATE_TRANSITION', `Run '${run.runId}' is ${run.status}, and not free to be claimed.`)
  const leaseMs = claim.leaseMs ?? place.leaseMs ?? defaults.leaseMs
  return [{ type: 'run.claimed', ts: now, data: { workerId: claim.workerId, leaseExpiresAt: after(now, leaseMs), leaseMs } }]
}

/** @returns when the lease ends now; null while it stands still. @throws LEASE_LOST */
export function decideHeartbeat(
  beat: { workerId: string; leaseMs?: number | undefined },
  run: FoldedRun,
  place: QueuedPlace,
  now: string,
  defaults: Pick<LeaseDefaults, 'leaseMs'>,
): string | null {
  assertHolder(beat.workerId, run, place, now)
  // An agent that tells of its own pause has a lease that runs on; one that resumed by itself has one again.
  if (place.leaseExpiresAt === null && run.status === 'suspended') return null
  return after(now, beat.leaseMs ?? place.leaseLengthMs ?? defaults.leaseMs)
}

/** Back into the queue, as the same attempt: the worker gives the run up, it did not fail. @throws LEASE_LOST, INVALID_STATE_TRANSITION */
export function decideRelease(release: { workerId: string; delayMs?: number | undefined }, run: FoldedRun, place: QueuedPlace, now: string): DraftEvent[] {
  assertHolder(release.workerId, run, place, now)
  if (run.status === 'suspended') {
    throw new RunplaneError('INVALID_STATE_TRANSITION', `Run '${run.runId}' is suspended, and is released only while it works. Resume it first, or cancel it.`)
  }
  const availableAt = release.delayMs ? after(now, release.delayMs) : undefined
  const released: DraftEvent = {
    type: 'run.released',
    ts: now,
    data: { workerId: release.workerId, queue: place.queue, ...(availableAt !== undefined && { availableAt }) },
  }
  return place.cancelRequestedAt === null ? [released] : [released, cancelled(now, 'The worker released the run after its cancel was requested.')]
}

/**
 * What becomes of a run whose lease may have run out: nothing where it has not.
 * @param expiry.jitter from 0 to 1, at random: runs that were lost together do not come back together.
 */
export function decideExpiry(expiry: { jitter: number }, run: FoldedRun, place: QueuedPlace, now: string, defaults: LeaseDefaults): DraftEvent[] {
  const { workerId, leaseExpiresAt } = place
  if (isTerminal(run.status) || workerId === null || leaseExpiresAt === null || isActive(place, now)) return []
  if (place.cancelRequestedAt !== null) return [cancelled(now, `The cancel was requested, and the lease of worker '${workerId}' ran out.`)]
  const maxAttempts = place.maxAttempts ?? defaults.maxAttempts
  if (run.attempt >= maxAttempts) {
    const message = `Worker '${workerId}' was not heard of until its lease ran out at ${leaseExpiresAt}, in attempt ${run.attempt} of ${maxAttempts}.`
    return [{ type: 'run.failed', ts: now, data: { error: { code: 'LEASE_EXPIRED', message }, retryable: true, workerId } }]
  }
  const delayMs = backoffMs(run.attempt, expiry.jitter, defaults)
  return [
    {
      type: 'run.retry_scheduled',
      ts: now,
      data: {
        delayMs,
        attempt: run.attempt + 1,
        availableAt: after(now, delayMs),
        reason: 'LEASE_EXPIRED',
        workerId,
        leaseExpiresAt,
        queue: place.queue,
      },
    },
  ]
}

/** After attempt n: from half of base * 2^(n-1) to all of it, up to the maximum. Whole milliseconds. */
export function backoffMs(attempt: number, jitter: number, { retryBaseMs, retryMaxMs }: Pick<LeaseDefaults, 'retryBaseMs' | 'retryMaxMs'>): number {
  return Math.round(Math.min(retryMaxMs, retryBaseMs * 2 ** Math.min(attempt - 1, 32)) * (0.5 + jitter / 2))
}

const cancelled = (now: string, reason: string): DraftEvent => ({ type: 'run.cancelled', ts: now, data: { reason } })
