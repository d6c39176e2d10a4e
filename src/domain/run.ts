/**
 * A run's status, folded from its events by one transition table.
 *
 *   queued -> starting -> binding_session -> running <-> suspended -> completed | failed | cancelled
 *
 * Any status that is not terminal may go to failed or cancelled; stages may be skipped forward, to completed too.
 * Back to queued it goes only by the control plane's own word: a retry (from the end too) or a release.
 * A fact that cannot follow is kept in the log and leaves the status as it is.
 */

export const RUN_STATUSES = ['queued', 'starting', 'binding_session', 'running', 'suspended', 'completed', 'failed', 'cancelled'] as const
export type RunStatus = (typeof RUN_STATUSES)[number]

export const TERMINAL_STATUSES = ['completed', 'failed', 'cancelled'] as const satisfies readonly RunStatus[]

export function isTerminal(status: RunStatus): boolean {
  return status === 'completed' || status === 'failed' || status === 'cancelled'
}

/** How far along the way to running a status is; a stage is only ever left forward. */
const STAGE: Record<RunStatus, number> = {
  queued: 0,
  starting: 1,
  binding_session: 2,
  running: 3,
  suspended: 3,
  completed: 4,
  failed: 4,
  cancelled: 4,
}

/** What the transition needs to know of an event. */
export interface StatusFact {
  type: string
  source: { kind: string }
  data?: Readonly<Record<string, unknown>>
  late?: boolean
}

/** Types about the run's place in a queue or among other runs: an agent that tells one has not thereby begun to work. */
const SILENT = new Set([
  'run.created',
  'run.queued',
  'run.claimed',
  'run.released',
  'run.cancel_requested',
  'run.retry_scheduled',
  'run.linked',
  'run.recovered',
])

function target(type: string): RunStatus | undefined {
  switch (type) {
    case 'run.claimed':
      return 'starting'
    case 'session.bound':
      return 'binding_session'
    case 'run.started':
    case 'run.resumed':
    case 'session.stream.opened':
      return 'running'
    case 'run.suspended':
      return 'suspended'
    case 'run.completed':
      return 'completed'
    case 'run.failed':
      return 'failed'
    case 'run.cancelled':
      return 'cancelled'
    default:
      return undefined
  }
}

/**
 * The status after a fact. Total: never throws, and returns the status as it is for a fact that cannot follow.
 * Anything that an agent (or a runtime, or an import) tells of its work implies that the run has started.
 */
export function nextStatus(status: RunStatus, fact: StatusFact): RunStatus {
  const fromControlPlane = fact.source.kind === 'control-plane'
  if (fromControlPlane) {
    if (fact.type === 'run.retry_scheduled') return 'queued'
    if (fact.type === 'run.released' && !isTerminal(status)) return 'queued'
  }
  if (isTerminal(status)) return status
  let to = target(fact.type)
  if (!fromControlPlane && (to === undefined || to === 'binding_session') && !SILENT.has(fact.type)) to = 'running'
  if (to === undefined) return status
  if (status === 'suspended' && to === 'running') return resumes(fact) ? 'running' : status
  if (status === 'running' && to === 'suspended') return to
  return STAGE[to] > STAGE[status] ? to : status
}

/** A suspended run goes on when it is told so; an agent that says something more does not resume it. */
function resumes(fact: StatusFact): boolean {
  if (fact.type === 'session.state.changed') return fact.data?.state === 'SESSION_STATE_OPEN'
  return fact.type === 'run.resumed' || fact.type === 'run.started'
}

/** Attempts are an int4 in the database. */
const MAX_ATTEMPT = 2_147_483_647

/**
 * The attempt after a fact: the control plane's retry begins the next one, and a start may tell a later one.
 * Every section that begins anew with an attempt asks this, so that all of them agree.
 */
export function nextAttempt(attempt: number, fact: StatusFact): number {
  const told = fact.data?.attempt
  const later = typeof told === 'number' && Number.isInteger(told) && told > attempt && told <= MAX_ATTEMPT ? told : undefined
  if (fact.type === 'run.retry_scheduled' && fact.source.kind === 'control-plane') return later ?? Math.min(attempt + 1, MAX_ATTEMPT)
  if (fact.type === 'run.started' && fact.late !== true) return later ?? attempt
  return attempt
}
