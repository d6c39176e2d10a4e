/** The run itself: status, times, result, and what of the log could not be read. The status moves by `nextStatus` alone. */
import { type CanonicalEvent, isEventType } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { isTerminal, nextAttempt, nextStatus, type RunStatus } from '../../domain/run.js'
import { type Attempt, attemptsView, claimAttempt, moveAttempts, startAttempt } from '../attempts.js'
import { clip, clipped, field, idOf, keep, MAX_LABEL_BYTES, MAX_LINE_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES, payload, textOf } from '../bounds.js'
import { type ProgressFacts, runProgress } from '../derive.js'
import { type FailureText, failureOf } from '../failure.js'
import { defineSection } from '../section.js'

const MAX_TAGS = 50
const MAX_LINKS = 50
const MAX_CUSTOM = 20
const MAX_PAYLOAD_BYTES = 4_000
const MAX_VALUE_BYTES = 500

export interface RunFold {
  runId: string
  status: RunStatus
  name: string | null
  kind: string | null
  tags: string[]
  parentRunId: string | null
  agent: { name: string | null; version: string | null } | null
  input: unknown
  queue: string | null
  priority: number | null
  availableAt: string | null
  workerId: string | null
  leaseExpiresAt: string | null
  model: string | null
  attempt: number
  attempts: Attempt[]
  createdAt: string | null
  startedAt: string | null
  endedAt: string | null
  endedSeq: number | null
  updatedAt: string | null
  output: unknown
  usage: unknown
  costUsd: number | null
  error: FailureText | null
  retryable: boolean | null
  /** Why the run was last suspended or cancelled, and by whom. */
  reason: string | null
  by: string | null
  cancelRequestedAt: string | null
  retryDelayMs: number | null
  recoveries: number
  sessionId: string | null
  sessionState: string | null
  contextId: string | null
  modeName: string | null
  modeVersion: string | null
  configurationVersion: string | null
  policyVersion: string | null
  traceId: string | null
  links: Map<string, { runId: string; relation: string | null; ts: string }>
  custom: Map<string, { name: string; value: unknown; ts: string; count: number }>
  checkpoint: { checkpointId: string; step: unknown; seq: number; ts: string } | null
  checkpoints: number
  stateSnapshots: number
  statePatches: number
  stateSeq: number | null
  unmapped: number
  unknownTypes: number
  late: number
  dropped: number
  truncated: number
}

/** Fields that a fact of the session tells; what it does not tell stays. */
function bind(
  state: RunFold,
  data: { sessionId?: string; state?: string; modeName?: string; modeVersion?: string; configurationVersion?: string; policyVersion?: string },
): void {
  state.sessionId = data.sessionId === undefined ? state.sessionId : idOf(data.sessionId)
  state.sessionState = clipped(state, data.state, MAX_LABEL_BYTES) ?? state.sessionState
  state.modeName = clipped(state, data.modeName, MAX_NAME_BYTES) ?? state.modeName
  state.modeVersion = clipped(state, data.modeVersion, MAX_LABEL_BYTES) ?? state.modeVersion
  state.configurationVersion = clipped(state, data.configurationVersion, MAX_NAME_BYTES) ?? state.configurationVersion
  state.policyVersion = clipped(state, data.policyVersion, MAX_NAME_BYTES) ?? state.policyVersion
  state.contextId = clipped(state, textOf(field(data, 'contextId')), MAX_NAME_BYTES) ?? state.contextId
}

/** What a run was created with of its session: by the control plane in `session`, by an agent beside it. */
function declare(state: RunFold, session: unknown): void {
  const told = (name: string, maxBytes: number) => clipped(state, textOf(field(session, name)), maxBytes)
  const sessionId = textOf(field(session, 'sessionId'))
  state.sessionId ??= sessionId === null ? null : idOf(sessionId)
  state.modeName ??= told('modeName', MAX_NAME_BYTES)
  state.modeVersion ??= told('modeVersion', MAX_LABEL_BYTES)
  state.configurationVersion ??= told('configurationVersion', MAX_NAME_BYTES)
  state.policyVersion ??= told('policyVersion', MAX_NAME_BYTES)
}

function move(state: RunFold, status: RunStatus, event: CanonicalEvent): void {
  const before = state.status
  state.status = status
  const ended = isTerminal(status)
  // What ends a run that never ran (cancelled in the queue, say) does not start it, unless an agent tells it.
  const worked = ended ? status === 'completed' || event.source.kind !== 'control-plane' : status === 'running' || status === 'suspended'
  if (worked) state.startedAt ??= event.ts
  if (ended) {
    state.endedAt = event.ts
    state.endedSeq = event.seq
  }
  moveAttempts(state, before, status, worked, event)
}

/**
 * A run that came back to its queue waits for its next claim. What its last worker still tells, which has lost it and does not say who it is,
 * is kept, but starts nothing: nobody would hold the run, and nobody could claim it.
 */
function isFromBefore(state: RunFold, event: CanonicalEvent): boolean {
  const cameBack = state.status === 'queued' && state.queue !== null && (state.attempt > 1 || state.startedAt !== null)
  return cameBack && event.source.kind !== 'control-plane' && event.type !== 'run.started'
}

function because(state: RunFold, data: { reason?: string; by?: string }): void {
  state.reason = clipped(state, data.reason, MAX_LINE_BYTES)
  state.by = clipped(state, data.by, MAX_NAME_BYTES)
}

export const run = defineSection({
  name: 'run',
  initial: (): RunFold => ({
    runId: '',
    status: 'queued',
    name: null,
    kind: null,
    tags: [],
    parentRunId: null,
    agent: null,
    input: null,
    queue: null,
    priority: null,
    availableAt: null,
    workerId: null,
    leaseExpiresAt: null,
    model: null,
    attempt: 1,
    attempts: [],
    createdAt: null,
    startedAt: null,
    endedAt: null,
    endedSeq: null,
    updatedAt: null,
    output: null,
    usage: null,
    costUsd: null,
    error: null,
    retryable: null,
    reason: null,
    by: null,
    cancelRequestedAt: null,
    retryDelayMs: null,
    recoveries: 0,
    sessionId: null,
    sessionState: null,
    contextId: null,
    modeName: null,
    modeVersion: null,
    configurationVersion: null,
    policyVersion: null,
    traceId: null,
    links: new Map(),
    custom: new Map(),
    checkpoint: null,
    checkpoints: 0,
    stateSnapshots: 0,
    statePatches: 0,
    stateSeq: null,
    unmapped: 0,
    unknownTypes: 0,
    late: 0,
    dropped: 0,
    truncated: 0,
  }),
  onEvery(state, event) {
    if (state.runId === '') state.runId = idOf(event.runId)
    state.updatedAt = event.ts
    if (event.late === true) state.late += 1
    if (event.trace !== undefined && state.traceId === null) state.traceId = idOf(event.trace.traceId)
    const status = nextStatus(state.status, event)
    if (status !== state.status && !(status === 'running' && isFromBefore(state, event))) move(state, status, event)
    if (!isEventType(event.type)) state.unknownTypes += 1
  },
  on: {
    'run.created'(state, { data, ts }) {
      state.createdAt ??= ts
      state.name ??= clipped(state, data.name, MAX_LINE_BYTES)
      state.kind ??= clipped(state, data.kind, MAX_NAME_BYTES)
      state.parentRunId ??= data.parentRunId === undefined ? null : idOf(data.parentRunId)
      state.input ??= payload(state, data.input, MAX_PAYLOAD_BYTES)
      if (data.agent) state.agent ??= { name: clipped(state, data.agent.name, MAX_NAME_BYTES), version: clipped(state, data.agent.version, MAX_LABEL_BYTES) }
      if (data.tags && state.tags.length === 0) {
        state.tags = data.tags.slice(0, MAX_TAGS).map((tag) => clip(state, tag, MAX_LABEL_BYTES))
        state.dropped += data.tags.length - state.tags.length
      }
      declare(state, field(data, 'session'))
      declare(state, data)
    },
    'run.queued'(state, { data }) {
      state.queue = clipped(state, data.queue, MAX_NAME_BYTES)
      state.priority = data.priority ?? null
      state.availableAt = clipped(state, data.availableAt, MAX_LABEL_BYTES)
    },
    'run.claimed'(state, { ts, data }) {
      state.workerId = clipped(state, data.workerId, MAX_NAME_BYTES)
      state.leaseExpiresAt = clipped(state, data.leaseExpiresAt, MAX_LABEL_BYTES)
      claimAttempt(state, ts)
    },
    'run.released'(state) {
      state.workerId = null
      state.leaseExpiresAt = null
    },
    'run.started'(state, event) {
      state.attempt = nextAttempt(state.attempt, event)
      state.workerId = clipped(state, event.data.workerId, MAX_NAME_BYTES) ?? state.workerId
      startAttempt(state, event.ts)
      state.model = clipped(state, event.data.model, MAX_NAME_BYTES) ?? state.model
    },
    'run.completed'(state, { seq, data }) {
      if (state.endedSeq !== seq) return
      state.output = payload(state, data.output, MAX_PAYLOAD_BYTES)
      state.usage = payload(state, data.usage, MAX_VALUE_BYTES)
      state.costUsd = data.costUsd ?? null
    },
    'run.failed'(state, { seq, data }) {
      if (state.endedSeq !== seq) return
      state.error = failureOf(state, data.error, MAX_TEXT_BYTES) ?? { code: null, message: 'The run failed.', stack: null }
      state.retryable = data.retryable ?? null
    },
    'run.cancel_requested'(state, { ts, data }) {
      state.cancelRequestedAt ??= ts
      because(state, data)
    },
    'run.cancelled'(state, { seq, data }) {
      if (state.endedSeq === seq && (data.reason !== undefined || data.by !== undefined)) because(state, data)
    },
    'run.suspended'(state, { data }) {
      if (state.status === 'suspended') because(state, data)
    },
    'run.resumed'(state, { data }) {
      if (state.status === 'running') because(state, data)
    },
    'run.retry_scheduled'(state, event) {
      if (event.source.kind !== 'control-plane') return
      state.attempt = nextAttempt(state.attempt, event)
      state.retryDelayMs = event.data.delayMs ?? null
      state.endedAt = null
      state.endedSeq = null
      state.output = null
      state.usage = null
      state.costUsd = null
      state.error = null
      state.retryable = null
      state.cancelRequestedAt = null
      state.workerId = null
      state.leaseExpiresAt = null
    },
    'run.recovered'(state) {
      state.recoveries += 1
    },
    'run.linked'(state, { ts, data }) {
      if (data.childRunId === undefined) return
      const runId = idOf(data.childRunId)
      if (keep(state.links, runId, { runId, relation: clipped(state, data.relation, MAX_LABEL_BYTES), ts }, MAX_LINKS)) state.dropped += 1
    },
    'session.bound'(state, { data }) {
      bind(state, data)
    },
    'session.stream.opened'(state, { data }) {
      bind(state, data)
    },
    'session.state.changed'(state, { data }) {
      bind(state, data)
    },
    'state.snapshot'(state, { seq }) {
      state.stateSnapshots += 1
      state.stateSeq = seq
    },
    'state.patched'(state, { seq }) {
      state.statePatches += 1
      state.stateSeq = seq
    },
    'checkpoint.created'(state, { seq, ts, subject, data }) {
      state.checkpoints += 1
      state.checkpoint = { checkpointId: idOf(data.checkpointId ?? subject.id), step: payload(state, data.step, MAX_VALUE_BYTES), seq, ts }
    },
    'custom.emitted'(state, { ts, data }) {
      const name = idOf(data.name)
      const count = (state.custom.get(name)?.count ?? 0) + 1
      if (keep(state.custom, name, { name, value: payload(state, data.value, MAX_VALUE_BYTES), ts, count }, MAX_CUSTOM)) state.dropped += 1
    },
    'raw.received'(state) {
      state.unmapped += 1
    },
  },
  view(state, folds: Readonly<ProgressFacts>) {
    const { endedSeq, attempts, agent, error, checkpoint, links, custom, ...known } = state
    return {
      ...withoutNull(known),
      progress: runProgress(folds),
      ...(agent && { agent: withoutNull(agent) }),
      ...(error && { error: withoutNull(error) }),
      ...(checkpoint && { checkpoint: withoutNull(checkpoint) }),
      // The name that macp dashboards read.
      ...(state.sessionId !== null && { runtimeSessionId: state.sessionId }),
      attempts: attemptsView(attempts),
      links: [...links.values()].map(withoutNull),
      custom: [...custom.values()].map(withoutNull),
    }
  },
})
