/**
 * The attempts of a run: each stretch of work on it, from when it leaves its queue until it ends or comes back. A run that was released is claimed
 * again as the same attempt, so that there may be several of one number, one for each holder.
 */
import type { CanonicalEvent } from '../domain/canonical-event.js'
import { type WithoutNull, withoutNull } from '../domain/known.js'
import { isTerminal, nextAttempt, type RunStatus } from '../domain/run.js'
import { field, keepRecent } from './bounds.js'

const MAX_ATTEMPTS = 50

export interface Attempt {
  attempt: number
  workerId: string | null
  claimedAt: string | null
  startedAt: string | null
  endedAt: string | null
  /** How it ended. `retried`: the next one began before this one had told its end. */
  status: 'active' | 'completed' | 'failed' | 'cancelled' | 'lease_expired' | 'released' | 'retried'
}

/** What of the fold of the run is read and written here. */
interface AttemptsFold {
  readonly attempt: number
  readonly workerId: string | null
  attempts: Attempt[]
  dropped: number
}

function active({ attempts }: AttemptsFold): Attempt | undefined {
  const last = attempts.at(-1)
  return last?.status === 'active' ? last : undefined
}

function begin(state: AttemptsFold, known: Partial<Attempt> & Pick<Attempt, 'attempt'>): void {
  const fresh: Attempt = { workerId: null, claimedAt: null, startedAt: null, endedAt: null, status: 'active', ...known }
  state.dropped += keepRecent(state.attempts, fresh, MAX_ATTEMPTS)
}

function end(attempt: Attempt, ts: string, status: Attempt['status']): void {
  attempt.endedAt = ts
  attempt.status = status
}

/**
 * With each change of the run's status.
 * @param worked whether the run is or was at work in the new status
 */
export function moveAttempts(state: AttemptsFold, from: RunStatus, to: RunStatus, worked: boolean, event: CanonicalEvent): void {
  // Only a run that leaves its queue begins one: of a run whose first events are gone, what went on before is not known.
  if (from === 'queued' && (worked || !isTerminal(to))) begin(state, { attempt: state.attempt })
  const current = active(state)
  if (current === undefined) return
  if (worked && current.startedAt === null) {
    current.startedAt = event.ts
    current.attempt = nextAttempt(state.attempt, event)
  }
  if (to === 'queued' || isTerminal(to)) end(current, event.ts, outcome(to, event))
}

function outcome(to: RunStatus, { type, source, data }: CanonicalEvent): Attempt['status'] {
  const lost = source.kind === 'control-plane' && (field(data, 'reason') ?? field(field(data, 'error'), 'code')) === 'LEASE_EXPIRED'
  if (lost && (to === 'queued' || to === 'failed')) return 'lease_expired'
  if (to === 'completed' || to === 'failed' || to === 'cancelled') return to
  return type === 'run.released' ? 'released' : 'retried'
}

/** With a claim, when the state has its worker. */
export function claimAttempt(state: AttemptsFold, ts: string): void {
  const current = active(state)
  if (current === undefined) return
  current.claimedAt ??= ts
  current.workerId = state.workerId
}

/** With a start, when the state has its worker and its attempt: an agent that tries again by itself says so with a start. */
export function startAttempt(state: AttemptsFold, ts: string): void {
  const { attempt, workerId } = state
  const current = active(state)
  if (current === undefined) return
  if (attempt > current.attempt) {
    end(current, ts, 'retried')
    begin(state, { attempt, workerId, startedAt: ts })
  } else {
    current.workerId = workerId
  }
}

export function attemptsView(attempts: readonly Attempt[]): WithoutNull<Attempt>[] {
  return attempts.map((attempt) => withoutNull(attempt))
}
