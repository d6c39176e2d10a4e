/**
 * Where a run stands for the control plane: its place in a queue, who holds it and until when, what is left of its time.
 *
 * Folded from the log as the status is, so that the log tells who held a run when; but a heartbeat, which is no event, moves
 * `leaseExpiresAt` on. Pure: times come from the events.
 */
import type { CanonicalEvent } from './canonical-event.js'
import { isTerminal, type RunStatus } from './run.js'

export interface Placement {
  queue: string | null
  priority: number
  /** RFC 3339, as all times here. A queued run is not handed out before; null: at once, or since its time has come. */
  availableAt: string | null
  workerId: string | null
  /** Null while nobody holds the run, and while it is suspended. */
  leaseExpiresAt: string | null
  /** Of a lease that stands still; 0 where it had run out before the run was suspended. */
  leaseRemainingMs: number | null
  /** How long a heartbeat makes the lease unless it says otherwise: what the claim asked for. */
  leaseLengthMs: number | null
  ttlExpiresAt: string | null
  ttlRemainingMs: number | null
  cancelRequestedAt: string | null
}

/** A lease runs. @param now RFC 3339 with milliseconds, as `leaseExpiresAt` is: such texts compare as the times do. */
export const isActive = (place: Pick<Placement, 'leaseExpiresAt'>, now: string): boolean => place.leaseExpiresAt !== null && place.leaseExpiresAt > now

/** There is a worker whom the run listens to: its lease runs, or stands still before its end. @param now as above */
export function isHeld(place: Pick<Placement, 'workerId' | 'leaseExpiresAt' | 'leaseRemainingMs'>, now: string): boolean {
  return place.workerId !== null && (place.leaseExpiresAt === null ? place.leaseRemainingMs !== 0 : isActive(place, now))
}

const FREE = { workerId: null, leaseExpiresAt: null, leaseRemainingMs: null, leaseLengthMs: null }
/** Of a run of which nothing has been told. */
export const UNPLACED: Placement = { ...FREE, queue: null, priority: 0, availableAt: null, ttlExpiresAt: null, ttlRemainingMs: null, cancelRequestedAt: null }
const text = (value: unknown): string | null => (typeof value === 'string' ? value : null)
const count = (value: unknown): number | null => (typeof value === 'number' ? value : null)
/** A time that lies ahead of the event; one that has passed is none. */
const later = (value: unknown, ts: string): string | null => (typeof value === 'string' && Date.parse(value) > Date.parse(ts) ? value : null)

/**
 * The placement after an event. Only the control plane's own events move a run, but its end, whoever tells it, frees it.
 * @param status the run's status after the event
 * @returns the same object where nothing changed
 */
export function placementAfter(placement: Partial<Placement>, event: CanonicalEvent, status: RunStatus): Partial<Placement> {
  if (isTerminal(status)) {
    if (event.late === true) return placement
    return { ...placement, ...FREE, ttlExpiresAt: null, ttlRemainingMs: null, cancelRequestedAt: null }
  }
  if (event.source.kind !== 'control-plane') return placement
  const data: Readonly<Record<string, unknown>> = event.data
  switch (event.type) {
    case 'run.queued':
      return { ...placement, queue: text(data.queue), priority: count(data.priority) ?? 0, availableAt: later(data.availableAt, event.ts) }
    case 'run.claimed':
      return {
        ...placement,
        workerId: text(data.workerId),
        leaseExpiresAt: text(data.leaseExpiresAt),
        leaseRemainingMs: null,
        leaseLengthMs: count(data.leaseMs),
        availableAt: null,
      }
    case 'run.released':
      return { ...placement, ...FREE, availableAt: later(data.availableAt, event.ts) }
    case 'run.retry_scheduled':
      return {
        ...placement,
        ...FREE,
        availableAt: later(data.availableAt ?? new Date(Date.parse(event.ts) + (count(data.delayMs) ?? 0)).toISOString(), event.ts),
        ttlExpiresAt: text(data.ttlExpiresAt),
        ttlRemainingMs: null,
        cancelRequestedAt: null,
      }
    case 'run.suspended':
      return {
        ...placement,
        leaseExpiresAt: null,
        leaseRemainingMs: count(data.leaseRemainingMs),
        ttlExpiresAt: null,
        ttlRemainingMs: count(data.ttlRemainingMs),
      }
    case 'run.resumed':
      return {
        ...placement,
        leaseExpiresAt: text(data.leaseExpiresAt),
        leaseRemainingMs: null,
        ttlExpiresAt: text(data.ttlExpiresAt),
        ttlRemainingMs: null,
      }
    case 'run.cancel_requested':
      return { ...placement, cancelRequestedAt: placement.cancelRequestedAt ?? event.ts }
    default:
      return placement
  }
}
