/**
 * What commands do to a run: each is decided on what the run is, under its lock, and gives the events that are appended, or throws.
 *
 *   cancel    queued, or nobody is at work -> run.cancelled; else run.cancel_requested, and after a grace run.cancelled
 *   suspend   running -> run.suspended, what is left of the lease and of the session's time banked
 *   resume    suspended -> run.resumed, both running on from what was banked
 *   retry     failed, cancelled -> run.retry_scheduled, and run.queued where the run has a queue
 *
 * A command that has had its effect already gives no events: who sends it again because no answer came is answered as the first time.
 * Times are the database's, the one clock that all instances share.
 */
import { RunplaneError } from '../errors.js'
import type { DraftEvent } from './canonical-event.js'
import { withoutNull, withoutUndefined } from './known.js'
import { isHeld, type Placement } from './placement.js'
import { isTerminal, type RunStatus, TERMINAL_STATUSES } from './run.js'

/** What of a run's state a command is decided on. */
export interface CommandedRun {
  status: RunStatus
  attempt: number
  /** It was suspended at some time. */
  wasSuspended: boolean
  /** Why it is to be cancelled, and who said so. */
  reason: string | null
  by: string | null
}

/** Its placement, and the clock. */
export interface CommandedPlace extends Placement {
  /** RFC 3339 */
  now: string
}

export interface Because {
  reason?: string | undefined
  by?: string | undefined
}

/** From which statuses a command works. */
export const WORKS_FROM = {
  cancel: ['queued', 'starting', 'binding_session', 'running', 'suspended'],
  suspend: ['running'],
  resume: ['suspended'],
  retry: ['failed', 'cancelled'],
  'retry as new': TERMINAL_STATUSES,
  delete: TERMINAL_STATUSES,
} as const satisfies Record<string, readonly RunStatus[]>

export type CommandName = keyof typeof WORKS_FROM

export function refused(command: CommandName, status: RunStatus, hint = ''): RunplaneError {
  const from = WORKS_FROM[command]
  return new RunplaneError('INVALID_STATE_TRANSITION', `The run is ${status}; ${command} works from ${from.join(', ')}.${hint && ` ${hint}`}`)
}

export function assertWorks(command: CommandName, status: RunStatus, hint?: string): void {
  const from: readonly RunStatus[] = WORKS_FROM[command]
  if (!from.includes(status)) throw refused(command, status, hint)
}

function assertNotCancelling(command: 'suspend' | 'resume', { cancelRequestedAt }: CommandedPlace): void {
  if (cancelRequestedAt === null) return
  const from = WORKS_FROM[command].join(', ')
  throw new RunplaneError('INVALID_STATE_TRANSITION', `The run is being cancelled; ${command} works from ${from} as long as no cancellation is requested.`)
}

const msBetween = (from: string, to: string) => Math.max(0, Date.parse(to) - Date.parse(from))
const later = (now: string, ms: number) => new Date(Date.parse(now) + ms).toISOString()

function event(type: string, place: CommandedPlace, data: Record<string, unknown>): DraftEvent {
  return { type, ts: place.now, data: withoutNull(withoutUndefined(data)) }
}

/**
 * Somebody may be at work on the run, who should end it in an orderly way. Of a run without a lease that is not known: an agent may post to it without one.
 */
function mayBeAtWork(run: CommandedRun, place: CommandedPlace): boolean {
  if (run.status === 'queued') return false
  // A holder without a lease is one whose agent resumed the run itself; it is given one (runs/leases.ts).
  return isHeld(place, place.now) || (place.workerId === null && run.status !== 'suspended')
}

export function decideCancel(run: CommandedRun, place: CommandedPlace, { reason, by }: Because): DraftEvent[] {
  if (run.status === 'cancelled') return []
  assertWorks('cancel', run.status)
  if (!mayBeAtWork(run, place)) {
    // What was said at the request still holds where the second word says nothing.
    return [event('run.cancelled', place, { reason: reason ?? (place.cancelRequestedAt && run.reason), by: by ?? (place.cancelRequestedAt && run.by) })]
  }
  return place.cancelRequestedAt === null ? [event('run.cancel_requested', place, { reason, by })] : []
}

/** Ends a run whose cancellation was requested, when the grace is over or nobody is at work any more. */
export function decideForcedCancel(run: CommandedRun, place: CommandedPlace, graceMs: number): DraftEvent[] {
  if (isTerminal(run.status) || place.cancelRequestedAt === null) return []
  const isOver = msBetween(place.cancelRequestedAt, place.now) >= graceMs
  if (!isOver && mayBeAtWork(run, place)) return []
  return [event('run.cancelled', place, { reason: run.reason, by: run.by, forced: isOver || undefined })]
}

export function decideSuspend(run: CommandedRun, place: CommandedPlace, { reason, by }: Because): DraftEvent[] {
  // An agent that has suspended the run itself has its lease run on: that stops now.
  const isSuspended = run.status === 'suspended'
  if (isSuspended && place.leaseExpiresAt === null) return []
  if (!isSuspended) assertWorks('suspend', run.status, run.status === 'queued' ? 'A queue can be paused instead.' : undefined)
  assertNotCancelling('suspend', place)
  return [
    event('run.suspended', place, {
      reason,
      by,
      leaseRemainingMs: place.leaseExpiresAt === null ? undefined : msBetween(place.now, place.leaseExpiresAt),
      ttlRemainingMs: place.ttlExpiresAt === null ? undefined : msBetween(place.now, place.ttlExpiresAt),
    }),
  ]
}

export function decideResume(run: CommandedRun, place: CommandedPlace, { reason, by }: Because): DraftEvent[] {
  if (run.status === 'running' && run.wasSuspended) return []
  assertWorks('resume', run.status)
  assertNotCancelling('resume', place)
  return [
    event('run.resumed', place, {
      reason,
      by,
      // An agent that suspended the run itself has banked no lease: it runs on.
      leaseExpiresAt: place.leaseRemainingMs === null ? place.leaseExpiresAt : later(place.now, place.leaseRemainingMs),
      ttlExpiresAt: place.ttlRemainingMs === null ? place.ttlExpiresAt : later(place.now, place.ttlRemainingMs),
    }),
  ]
}

/** The next attempt under the same id. More than `maxAttempts`, too: that limits what the service does by itself. */
export function decideRetry(run: CommandedRun, place: CommandedPlace, { reason, by, delayMs = 0 }: Because & { delayMs?: number | undefined }): DraftEvent[] {
  assertWorks('retry', run.status, run.status === 'completed' ? 'Retry it as a new run ({"as":"new"}), or clone it.' : undefined)
  const events = [event('run.retry_scheduled', place, { delayMs, attempt: run.attempt + 1, reason, by })]
  if (place.queue !== null) {
    events.push(event('run.queued', place, { queue: place.queue, priority: place.priority, availableAt: delayMs > 0 ? later(place.now, delayMs) : undefined }))
  }
  return events
}

/** Ends a run whose session has had its time (`session.ttlMs`). While it is suspended the time stands still. */
export function decideExpiry(run: CommandedRun, place: CommandedPlace): DraftEvent[] {
  if (run.status !== 'running' || place.ttlExpiresAt === null || place.ttlExpiresAt > place.now) return []
  return [
    event('run.failed', place, {
      error: { code: 'SESSION_EXPIRED', message: `The session had its time, until ${place.ttlExpiresAt} (session.ttlMs).` },
      retryable: true,
    }),
  ]
}
