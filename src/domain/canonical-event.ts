/**
 * The canonical vocabulary: each event type with the kind of its subject and the schema of its `data`.
 * A canonical event in the log always fits the schema of its type, so that a reducer may rely on it.
 * Data objects are open: fields that the vocabulary does not name are kept as they came.
 */
import { type Static, type TObject, type TProperties, type TSchema, Type } from '@sinclair/typebox'

/** Counts the schema of the envelope and of `data`; a reader that meets another one rebuilds. */
export const EVENT_SCHEMA_VERSION = 1

const open = <T extends TProperties>(properties: T): TObject<T> => Type.Object(properties, { additionalProperties: true })
const optional = <T extends TSchema>(schema: T) => Type.Optional(schema)
const text = optional(Type.String())
const count = optional(Type.Number({ minimum: 0 }))
const anything = optional(Type.Unknown())
const texts = optional(Type.Array(Type.String()))
const percentage = optional(Type.Number({ minimum: 0, maximum: 100 }))

const described = { description: 'a text, or an object with code (text or number), message and stack (texts)' }
/** An error as an agent tells it: a text, or an object with a message. */
const failure = optional(
  Type.Union([Type.String(), open({ code: optional(Type.Union([Type.String(), Type.Number()])), message: text, stack: text })], described),
)

const usage = {
  provider: text,
  model: text,
  inputTokens: count,
  outputTokens: count,
  cacheReadTokens: count,
  cacheWriteTokens: count,
  reasoningTokens: count,
  costUsd: count,
}
const llmCall = open({
  ...usage,
  latencyMs: count,
  ttftMs: count,
  finishReasons: texts,
  prompt: anything,
  response: anything,
  artifactId: text,
  error: failure,
  /** Who made the call, and the message that told of it (macp). */
  sender: text,
  messageId: text,
})
const step = { name: text, kind: text, phase: text, ordinal: optional(Type.Number()) }
const stepEnd = open({ ...step, output: anything, durationMs: count, usage: optional(open(usage)), error: failure, reason: text })
const session = open({
  sessionId: text,
  state: text,
  status: text,
  detail: text,
  modeName: text,
  modeVersion: text,
  configurationVersion: text,
  policyVersion: text,
  contextId: text,
  extensionKeys: texts,
  participants: texts,
  expectedCommitments: optional(Type.Array(Type.Unknown())),
})
const message = open({
  messageId: text,
  messageType: text,
  sender: text,
  recipients: texts,
  payload: anything,
  modeName: text,
  sessionId: text,
  errorCode: text,
  errorMessage: text,
})
const chatMessage = open({ role: text, name: text, channel: text, index: optional(Type.Number()), content: anything, finishReason: text })
const proposal = open({
  proposalId: text,
  messageType: text,
  action: text,
  confidence: optional(Type.Number()),
  vote: text,
  reasons: texts,
  sender: text,
  /** What was asked for, and how grave an objection is (macp). */
  prompt: text,
  severity: text,
  payload: anything,
})
const decision = open({
  proposalId: text,
  commitmentId: text,
  action: text,
  confidence: optional(Type.Number()),
  reasons: texts,
  outcomePositive: optional(Type.Union([Type.Boolean(), Type.Null()], { description: 'true, false or null' })),
  supersedes: anything,
  sender: text,
  payload: anything,
})
const reasonBy = open({ reason: text, by: text })
const lease = open({ workerId: text, leaseExpiresAt: text })

interface TypeDefinition {
  subject: string
  data: TObject
}
const define = <S extends string, T extends TObject>(subject: S, data: T) => ({ subject, data }) satisfies TypeDefinition

export const EVENT_TYPES = {
  'run.created': define(
    'run',
    open({ name: text, kind: text, input: anything, tags: texts, parentRunId: text, agent: optional(open({ name: text, version: text })) }),
  ),
  'run.queued': define('run', open({ queue: text, priority: optional(Type.Number()), availableAt: text })),
  'run.claimed': define('run', lease),
  'run.released': define('run', lease),
  'run.started': define('run', open({ attempt: count, workerId: text, model: text, tools: optional(Type.Array(Type.Unknown())) })),
  'run.completed': define('run', open({ output: anything, usage: optional(open(usage)), costUsd: count })),
  'run.failed': define('run', open({ error: failure, retryable: optional(Type.Boolean()) })),
  'run.cancel_requested': define('run', reasonBy),
  'run.cancelled': define('run', reasonBy),
  'run.suspended': define('run', reasonBy),
  'run.resumed': define('run', reasonBy),
  'run.retry_scheduled': define('run', open({ delayMs: count, attempt: count })),
  'run.recovered': define('run', open({ previousOwner: text, detail: text })),
  'run.linked': define('run', open({ childRunId: text, relation: text })),
  'session.bound': define('session', session),
  'session.stream.opened': define('session', session),
  'session.state.changed': define('session', session),
  'participant.seen': define('participant', open({ participantId: text, role: text })),
  'step.started': define('step', open({ ...step, input: anything })),
  'step.output': define('step', open({ stream: text, text: Type.String(), level: text })),
  'step.completed': define('step', stepEnd),
  'step.failed': define('step', stepEnd),
  'step.skipped': define('step', stepEnd),
  'progress.reported': define(
    'run',
    open({ percentage, current: optional(Type.Number()), total: optional(Type.Number()), unit: text, message: text, sender: text }),
  ),
  'message.sent': define('message', message),
  'message.received': define('message', message),
  'message.send_failed': define('message', message),
  'message.started': define('message', chatMessage),
  'message.delta': define('message', open({ text: Type.String(), channel: text, index: optional(Type.Number()) })),
  'message.completed': define('message', chatMessage),
  'llm.call.started': define('llm_call', llmCall),
  'llm.call.completed': define('llm_call', llmCall),
  'llm.call.failed': define('llm_call', llmCall),
  // Of a call or a step where it says so; else of the run.
  'usage.reported': define(
    'run',
    open({ ...usage, mode: optional(Type.Union([Type.Literal('delta'), Type.Literal('cumulative')], { description: '"delta" or "cumulative"' })) }),
  ),
  'tool.called': define('tool', open({ name: Type.String(), arguments: anything, server: text })),
  'tool.output': define('tool', open({ text })),
  'tool.completed': define('tool', open({ name: text, result: anything, durationMs: count })),
  'tool.failed': define('tool', open({ name: text, error: failure, durationMs: count })),
  'artifact.created': define('artifact', open({ kind: text, label: text, uri: text, inline: anything, sha256: text, bytes: count })),
  'state.snapshot': define('state', open({ state: Type.Unknown() })),
  'state.patched': define('state', open({ patch: Type.Array(open({ op: Type.String(), path: Type.String() })) })),
  'checkpoint.created': define('checkpoint', open({ checkpointId: text, step: anything })),
  'input.requested': define('input', open({ reason: text, schema: anything, toolCallId: text })),
  'input.resolved': define('input', open({ response: anything, by: text })),
  'gate.started': define('gate', open({ name: text, checks: anything, reason: text })),
  'gate.passed': define('gate', open({ name: text, checks: anything, reason: text })),
  'gate.failed': define('gate', open({ name: text, checks: anything, reason: text })),
  'signal.emitted': define('signal', open({ name: text, severity: text, confidence: optional(Type.Number()), payload: anything, sender: text })),
  'signal.acknowledged': define('signal', open({ name: text, by: text, signalId: text })),
  'proposal.created': define('proposal', proposal),
  'proposal.updated': define('proposal', proposal),
  'decision.proposed': define('decision', decision),
  'decision.finalized': define('decision', decision),
  'policy.resolved': define('policy', open({ policyVersion: text, description: text, expectedCommitments: optional(Type.Array(Type.Unknown())) })),
  'policy.commitment.evaluated': define(
    'policy',
    open({
      commitmentId: text,
      decision: optional(Type.Union([Type.Literal('allow'), Type.Literal('deny')], { description: '"allow" or "deny"' })),
      reasons: texts,
    }),
  ),
  'policy.denied': define('policy', open({ reasons: texts, errorCode: text, commitmentId: text })),
  'custom.emitted': define('run', open({ name: Type.String(), value: anything })),
  'raw.received': define('run', open({ reason: text })),
} as const satisfies Record<string, TypeDefinition>

export type EventType = keyof typeof EVENT_TYPES
export type DataOf<T extends EventType> = Static<(typeof EVENT_TYPES)[T]['data']>

export function isEventType(type: string): type is EventType {
  return Object.hasOwn(EVENT_TYPES, type)
}

export const Reference = Type.Object({ kind: Type.String({ minLength: 1 }), id: Type.String({ minLength: 1 }) })
export type Reference = Static<typeof Reference>

export const Trace = Type.Object({ traceId: Type.String(), spanId: Type.Optional(Type.String()), parentSpanId: Type.Optional(Type.String()) })
export type Trace = Static<typeof Trace>

export const SOURCE_KINDS = ['agent', 'runtime', 'control-plane', 'import', 'replay'] as const
export type SourceKind = (typeof SOURCE_KINDS)[number]

export const EventSource = Type.Object({
  kind: Type.Union(SOURCE_KINDS.map((kind) => Type.Literal(kind))),
  name: Type.String(),
  format: Type.String(),
  rawType: Type.String(),
  rawSeq: Type.Integer({ minimum: 0 }),
  eventId: Type.Optional(Type.String()),
})
export type EventSource = Static<typeof EventSource>

const envelope = {
  runId: Type.String(),
  seq: Type.Integer({ minimum: 1 }),
  ts: Type.String(),
  receivedAt: Type.String(),
  type: Type.String(),
  schemaVersion: Type.Integer(),
  attempt: Type.Integer({ minimum: 1 }),
  subject: Reference,
  parent: Type.Optional(Reference),
  stepId: Type.Optional(Type.String()),
  actor: Type.Optional(Reference),
  source: EventSource,
  trace: Type.Optional(Trace),
  late: Type.Optional(Type.Boolean({ description: 'The fact came after the end of the run and did not change its status.' })),
  data: Type.Record(Type.String(), Type.Unknown()),
}
/** The event as it stands on the wire (OpenAPI component `CanonicalEvent`). */
export const CanonicalEventSchema = Type.Object(envelope, { $id: 'CanonicalEvent' })

interface Envelope extends Omit<Static<typeof CanonicalEventSchema>, 'type' | 'data'> {}

/** A canonical event of one type of the vocabulary. */
export type EventOf<T extends EventType> = Envelope & { type: T; data: DataOf<T> }
export type KnownEvent = { [T in EventType]: EventOf<T> }[EventType]
/** An event of a type that the vocabulary does not have: kept and streamed, but read by no reducer. */
export type OtherEvent = Envelope & { type: `${string}.${string}`; data: Record<string, unknown> }
export type CanonicalEvent = KnownEvent | OtherEvent

/**
 * What a normaliser returns: an event before the log has numbered it.
 * Without a `ts` it happened when it was received; without a `subject` it is about the run, or, for another kind of
 * subject, about one of its own (`raw-<rawSeq>`).
 */
export interface DraftEvent {
  type: string
  ts?: string | undefined
  subject?: Reference | undefined
  parent?: Reference | undefined
  stepId?: string | undefined
  actor?: Reference | undefined
  trace?: Trace | undefined
  data: Record<string, unknown>
}
