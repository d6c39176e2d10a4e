/** What a comparison answers, as schemas: docs/COMPARE.md explains every field. `added` is what only the right run has; a delta is right minus left. */
import { type Static, Type } from '@sinclair/typebox'
import type { CanonicalEventSchema } from '../../domain/canonical-event.js'
import { RUN_STATUSES } from '../../domain/run.js'

const count = Type.Integer({ minimum: 0 })
const seq = Type.Integer({ minimum: 1 })
const names = Type.Array(Type.String())
const nullableNumber = Type.Union([Type.Number(), Type.Null()])
const anything = Type.Unknown()
const literals = <const T extends readonly string[]>(values: T) => Type.Union(values.map((value) => Type.Literal(value as T[number])))

export const SideAnswer = Type.Object({
  runId: Type.String(),
  kind: literals(['run', 'bundle']),
  firstSeq: Type.Integer({ minimum: 0 }),
  seq: Type.Integer({ minimum: 0, description: 'the last event that was compared' }),
  status: literals(RUN_STATUSES),
  name: Type.Optional(Type.String()),
  modeName: Type.Optional(Type.String()),
  durationMs: Type.Optional(Type.Number()),
})
export type SideAnswer = Static<typeof SideAnswer>

export const Delta = Type.Object({ left: nullableNumber, right: nullableNumber, delta: nullableNumber })
export type Delta = Static<typeof Delta>

export const FieldChange = Type.Object({
  path: Type.String({ description: 'a JSON Pointer' }),
  left: Type.Optional(Type.Unknown({ description: 'left out where it is not there' })),
  right: Type.Optional(anything),
  cut: Type.Optional(Type.Literal(true, { description: 'the values are shown in part' })),
})
export type FieldChange = Static<typeof FieldChange>

const fields = Type.Array(FieldChange)
const moreFields = Type.Integer({ minimum: 0, description: 'fields that differ and are not listed' })

const OPS = ['equal', 'changed', 'left_only', 'right_only', 'moved'] as const
export type Op = (typeof OPS)[number]

const counts = { equal: count, changed: count, leftOnly: count, rightOnly: count, moved: count }
export const Counts = Type.Object(counts)
export type Counts = Static<typeof Counts>

export const SeqRange = Type.Object({ fromSeq: seq, toSeq: seq })
export type SeqRange = Static<typeof SeqRange>

/** Events in a row of which the same is to be said. */
export const Hunk = Type.Object({
  op: literals(['changed', 'left_only', 'right_only', 'moved']),
  count: seq,
  left: Type.Optional(SeqRange),
  right: Type.Optional(SeqRange),
})
export type Hunk = Static<typeof Hunk>

export const EventsDiff = Type.Object({ ...counts, hunks: Type.Array(Hunk), moreHunks: Type.Integer({ minimum: 0, description: 'hunks beyond the limit' }) })
export type EventsDiff = Static<typeof EventsDiff>

// The event as the log has it: its own schema would leave out what an imported one has beside.
const event = Type.Unsafe<Static<typeof CanonicalEventSchema> | null>({
  description: 'a CanonicalEvent, or null',
  anyOf: [{ type: 'object', additionalProperties: true }, { type: 'null' }],
})
const divergence = {
  leftSeq: Type.Union([seq, Type.Null()]),
  rightSeq: Type.Union([seq, Type.Null()]),
  left: event,
  right: event,
  why: Type.String(),
}
export const Divergence = Type.Object(divergence)
export type Divergence = Static<typeof Divergence>
export const ContentDivergence = Type.Object({ ...divergence, fields, moreFields })
export type ContentDivergence = Static<typeof ContentDivergence>

export const FirstDivergence = Type.Object({
  shape: Type.Optional(Divergence),
  content: Type.Optional(ContentDivergence),
})
export type FirstDivergence = Static<typeof FirstDivergence>

export const UNIT_KINDS = ['step', 'tool', 'llm_call'] as const
export type UnitKind = (typeof UNIT_KINDS)[number]

export const UnitSide = Type.Object({
  id: Type.String(),
  fromSeq: seq,
  toSeq: seq,
  events: seq,
  status: literals(['running', 'completed', 'failed', 'skipped']),
  durationMs: nullableNumber,
  model: Type.Optional(Type.String()),
  totalTokens: Type.Optional(Type.Number()),
  costUsd: Type.Optional(Type.Number()),
})
export type UnitSide = Static<typeof UnitSide>

export const UnitDiff = Type.Object({
  op: literals(OPS),
  kind: literals(UNIT_KINDS),
  name: Type.String(),
  left: Type.Optional(UnitSide),
  right: Type.Optional(UnitSide),
  durationDeltaMs: Type.Optional(Type.Number()),
  tokensDelta: Type.Optional(Type.Number()),
  costDeltaUsd: Type.Optional(Type.Number()),
  fields: Type.Optional(fields),
  moreFields: Type.Optional(moreFields),
})
export type UnitDiff = Static<typeof UnitDiff>

export const StepsDiff = Type.Object({
  ...counts,
  byKind: Type.Object({ step: Counts, tool: Counts, llm_call: Counts }),
  items: Type.Array(UnitDiff),
  moreItems: Type.Integer({ minimum: 0, description: 'items beyond the limit; equal ones give way first' }),
})
export type StepsDiff = Static<typeof StepsDiff>

const vote = Type.Union([Type.String(), Type.Null()])
/** A part of the state: what each side has, and how it differs. */
const part = { same: Type.Boolean(), left: anything, right: anything, fields, moreFields }
export const PartDiff = Type.Object(part)
export type PartDiff = Static<typeof PartDiff>
export const DecisionDiff = Type.Object({ ...part, votes: Type.Array(Type.Object({ participantId: Type.String(), left: vote, right: vote })) })
export type DecisionDiff = Static<typeof DecisionDiff>

export const ArtifactSide = Type.Object({
  artifactId: Type.String(),
  seq,
  name: Type.Optional(Type.String()),
  kind: Type.Optional(Type.String()),
  label: Type.Optional(Type.String()),
  sha256: Type.Optional(Type.String()),
  bytes: Type.Optional(Type.Number()),
})
export type ArtifactSide = Static<typeof ArtifactSide>
export const ArtifactsDiff = Type.Object({
  common: count,
  added: Type.Array(ArtifactSide),
  removed: Type.Array(ArtifactSide),
  changed: Type.Array(Type.Object({ left: ArtifactSide, right: ArtifactSide })),
  more: Type.Integer({ minimum: 0, description: 'artifacts that differ and are not listed' }),
})
export type ArtifactsDiff = Static<typeof ArtifactsDiff>

export const TypeDelta = Type.Object({ type: Type.String(), left: count, right: count, delta: Type.Integer() })
export type TypeDelta = Static<typeof TypeDelta>

/** RFC 6902. */
const PatchOperation = Type.Object({ op: Type.String(), path: Type.String(), from: Type.Optional(Type.String()), value: Type.Optional(anything) })

export const Approximation = Type.Object({
  what: literals(['events', 'steps']),
  left: Type.Union([SeqRange, Type.Null()]),
  right: Type.Union([SeqRange, Type.Null()]),
})
export type Approximation = Static<typeof Approximation>

const summary = {
  statusMatch: Type.Boolean(),
  durationDeltaMs: Type.Optional(Type.Number({ description: 'left out where one of them has not started' })),
  confidenceDelta: Type.Optional(Type.Number({ description: 'left out where one of them has no decision with a confidence' })),
  participantsDiff: Type.Optional(Type.Object({ added: names, removed: names, common: names })),
  signalsDiff: Type.Optional(Type.Object({ added: names, removed: names })),
  metrics: Type.Optional(Type.Record(Type.String(), Delta)),
}

export const Comparison = Type.Object(
  {
    left: SideAnswer,
    right: SideAnswer,
    ...summary,
    eventTypes: Type.Optional(Type.Array(TypeDelta)),
    firstDivergence: Type.Optional(FirstDivergence),
    events: Type.Optional(EventsDiff),
    steps: Type.Optional(StepsDiff),
    decision: Type.Optional(DecisionDiff),
    policy: Type.Optional(PartDiff),
    artifacts: Type.Optional(ArtifactsDiff),
    configuration: Type.Optional(PartDiff),
    stateDiff: Type.Optional(Type.Array(PatchOperation)),
    approximate: Type.Union([Type.Literal(false), Type.Array(Approximation)]),
  },
  { $id: 'Comparison' },
)
export type Comparison = Static<typeof Comparison>

export const ComparisonMatrix = Type.Object(
  { baseline: SideAnswer, runs: Type.Array(Type.Object({ ...SideAnswer.properties, ...summary })) },
  { $id: 'ComparisonMatrix' },
)
export type ComparisonMatrix = Static<typeof ComparisonMatrix>

/** What may be asked for by `sections`; the sides, `statusMatch`, and the deltas of duration and confidence always come. */
export const COMPARE_SECTIONS = [
  'participantsDiff',
  'signalsDiff',
  'metrics',
  'eventTypes',
  'firstDivergence',
  'events',
  'steps',
  'decision',
  'policy',
  'artifacts',
  'configuration',
  'stateDiff',
] as const
export type CompareSection = (typeof COMPARE_SECTIONS)[number]
