/** Parameters of the routes about what runs did, used and cost. */
import { Type } from '@sinclair/typebox'
import { WINDOW_NAMES } from '../../insight/overview.js'

const filters = {
  from: Type.Optional(Type.String({ description: 'RFC 3339; instead of the window', examples: ['2026-11-21T08:00:00Z'] })),
  to: Type.Optional(Type.String({ description: 'RFC 3339; none: now' })),
  scenarioRef: Type.Optional(
    Type.String({ minLength: 1, maxLength: 256, description: 'the scenario of a run (metadata.sourceRef or scenarioRef), or a part of it' }),
  ),
  environment: Type.Optional(Type.String({ minLength: 1, maxLength: 256, description: 'metadata.environment' })),
}
/** Without a default of the schema: that would hide whether `range` was meant. */
const window = (fallback: string) => Type.Optional(Type.Union(names, { description: `the time up to now; none: ${fallback}` }))
const names = WINDOW_NAMES.map((name) => Type.Literal(name))

export const OverviewQuery = Type.Object({
  window: window('24h'),
  range: Type.Optional(Type.Union(names, { deprecated: true, description: 'the same, as macp-control-plane named it once' })),
  ...filters,
})

export const AgentsQuery = Type.Object({
  window: window('30d'),
  ...filters,
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000, default: 200, description: 'participants, those with the most runs first' })),
})

export const MetricsQuery = Type.Object({
  seq: Type.Optional(Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, description: 'as they were after this event' })),
})

export const MessagesQuery = Type.Object({
  afterSeq: Type.Optional(Type.String({ description: 'the `nextAfterSeq` of the page before; none: from the start' })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 500, default: 100, description: 'messages of a page at most' })),
})

export const RunTrace = Type.Object(
  {
    runId: Type.String(),
    traceId: Type.Optional(Type.String()),
    spanCount: Type.Integer({ minimum: 0 }),
    lastSpanId: Type.Optional(Type.String()),
    linkedArtifacts: Type.Array(Type.String(), { description: 'ids of the artifacts that were made, the recent ones' }),
    linked: Type.Integer({ minimum: 0, description: 'how many there are' }),
    runStatus: Type.String(),
    scenarioRef: Type.Optional(Type.String()),
  },
  { $id: 'RunTrace' },
)
