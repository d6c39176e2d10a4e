/**
 * A run's status, folded from its events by one transition table.
 *
 *   queued -> starting -> binding_session -> running <-> suspended -> completed | failed | cancelled
 *
 * Any status that is not terminal may go to failed or cancelled; stages may be skipped forward.
 * A fact that cannot follow is kept in the log and leaves the status as it is.
 */

export const RUN_STATUSES = [
  'queued',
  'starting',
  'binding_session',
  'running',
  'suspended',
  'completed',
  'failed',
  'cancelled',
] as const
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
}

/** Types that tell where a run stands themselves, so that they do not imply a start by merely arriving. */
const SILENT = new Set(['run.created', 'run.queued', 'run.claimed', 'run.released', 'run.cancel_requested', 'run.retry_scheduled', 'run.linked', 'run.recovered'])

function target(fact: StatusFact): RunStatus | undefined {
  switch (fact.type) {
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
 * A retry and a release, which go back, count only when the control plane itself says so.
 */
export function nextStatus(status: RunStatus, fact: StatusFact): RunStatus {
  if (fact.source.kind === 'control-plane') {
    if (fact.type === 'run.retry_scheduled' && status !== 'queued') return 'queued'
    if (fact.type === 'run.released' && !isTerminal(status)) return 'queued'
  }
  if (isTerminal(status)) return status
  const to = target(fact)
  if (to === undefined || (to === 'binding_session' && fact.source.kind !== 'control-plane')) {
    const implied = fact.source.kind !== 'control-plane' && !SILENT.has(fact.type) && STAGE[status] < STAGE.running
    return implied ? 'running' : status
  }
  if (to === 'running' && status === 'suspended') return fact.type === 'session.stream.opened' ? status : 'running'
  if (STAGE[to] > STAGE[status]) return to
  if (to === 'suspended' && status === 'running') return to
  return status
}
