/** Parameters and answers of the routes that read and tail the log. */

import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { CanonicalEventSchema } from '../../domain/canonical-event.js'
import { RUN_ID_PATTERN } from '../../domain/ids.js'
import { pattern } from '../../domain/pattern.js'
import { reference } from './reference.js'

export const RunParams = Type.Object({ id: Type.String({ pattern: RUN_ID_PATTERN, description: 'the id of a run' }) })

export const DEFAULT_PAGE_LIMIT = 200
const limit = Type.Optional(Type.Integer({ minimum: 1, maximum: 1000, default: DEFAULT_PAGE_LIMIT, description: 'events of a page at most' }))

/** Cursors are texts here: what is wrong with one is CURSOR_INVALID, and says so. */
const seqDescription = 'the seq of the last event that you have; none: from the start'
const afterSeq = Type.Optional(Type.String({ description: `${seqDescription}. Beyond the head: 400, which says the head`, examples: ['0', '41'] }))
const afterSeqOfPage = Type.Optional(
  Type.String({ description: `${seqDescription}. Beyond the head: an empty page, whose \`headSeq\` says so`, examples: ['0', '41'] }),
)
const boolean = (description: string) =>
  Type.Optional(Type.Unsafe<'true' | 'false'>({ type: 'string', enum: ['true', 'false'], default: 'false', description }))
const types = (description: string) => Type.Optional(Type.String({ minLength: 1, maxLength: 4096, description, examples: ['step.started,step.completed'] }))
/** Pages call it `type`, streams `types`; each takes the other name as well. */
const typeNames = { type: types('event types, separated by commas; the others are left out'), types: types('the same as `type`') }
const subject = Type.Optional(
  Type.String({
    pattern: pattern('^[^/]+/.+$', 'kind/id, such as step/build'),
    maxLength: 1024,
    description: 'only events about this, as kind/id',
    examples: ['step/build'],
  }),
)
const time = (description: string) => Type.Optional(Type.String({ description, examples: ['2026-11-21T08:00:00Z'] }))

const filters = {
  ...typeNames,
  subject,
  afterTs: time('only events whose `ts` is later (RFC 3339)'),
  beforeTs: time('only events whose `ts` is earlier (RFC 3339)'),
}

const tailing = {
  ...typeNames,
  subject,
  follow: boolean('stay past the end of the run'),
  heartbeatMs: Type.Optional(Type.Integer({ minimum: 1000, maximum: 3_600_000, description: 'milliseconds between heartbeats; none: STREAM_HEARTBEAT_MS' })),
}

export const StreamQuery = Type.Object({ afterSeq, includeSnapshot: boolean('begin with a `snapshot` frame'), ...tailing })
export type StreamQuery = Static<typeof StreamQuery>

export const ManyStreamQuery = Type.Object({
  runs: Type.String({ minLength: 1, maxLength: 13_000, description: 'ids of runs, separated by commas, 100 at most' }),
  cursor: Type.Optional(Type.String({ maxLength: 20_000, description: 'the id of the last frame that you have, or a list `runId:seq,runId:seq`' })),
  ...tailing,
})
export type ManyStreamQuery = Static<typeof ManyStreamQuery>

export const StreamHeaders = Type.Object({
  'last-event-id': Type.Optional(
    Type.String({ description: 'the id of the last frame that you have; browsers send it when they reconnect. The greater of it and the query counts' }),
  ),
})

export const EventsQuery = Type.Object({ afterSeq: afterSeqOfPage, limit, ...filters })
export type EventsQuery = Static<typeof EventsQuery>

export const RawQuery = Type.Object({
  afterRawSeq: Type.Optional(Type.String({ description: 'the rawSeq of the last raw event that you have; none: from the start', examples: ['0'] })),
  afterSeq: Type.Optional(Type.String({ description: 'the same, under the name that pages of canonical events have for it', examples: ['0'] })),
  limit,
})
export type RawQuery = Static<typeof RawQuery>

export const WorkspaceEventsQuery = Type.Object({
  cursor: Type.Optional(Type.String({ maxLength: 256, description: 'the `nextCursor` of the page before' })),
  limit,
  runId: Type.Optional(Type.String({ pattern: RUN_ID_PATTERN })),
  afterSeq: Type.Optional(Type.String({ description: 'with runId: the seq of the last event that you have; a cursor is beyond it', examples: ['0', '41'] })),
  ...filters,
})
export type WorkspaceEventsQuery = Static<typeof WorkspaceEventsQuery>

const headSeq = Type.Integer({ description: 'the seq of the last event that there is' })
const nextAfterSeq = Type.Optional(
  Type.Integer({ description: 'only if there is more: where the next page starts. With a filter a page may be short, or empty, and still have it' }),
)

const firstSeq = Type.Optional(Type.Integer({ description: 'only if events after the cursor are not kept any more (retention): the first one that is' }))

export const EventsPage = Type.Object({ data: Type.Array(reference(CanonicalEventSchema)), nextAfterSeq, firstSeq, headSeq }, { $id: 'EventsPage' })

export const RawEvent = Type.Object(
  {
    rawSeq: Type.Integer({ minimum: 1 }),
    receivedAt: Type.String(),
    format: Type.String(),
    rawType: Type.String(),
    source: Type.String({ description: 'who sent it' }),
    eventId: Type.Optional(Type.String()),
    seqs: Type.Array(Type.Integer(), { description: 'the canonical events that came of it' }),
    body: Type.Unknown({ description: 'what was sent, to the byte: numbers of any length, duplicate keys and escapes are as they were' }),
  },
  { $id: 'RawEvent' },
)
export const RawPage = Type.Object(
  {
    data: Type.Array(reference(RawEvent)),
    nextAfterSeq: Type.Optional(Type.Integer({ description: 'only if there is more: the `afterRawSeq` of the next page' })),
    firstRawSeq: Type.Optional(Type.Integer({ description: 'only if raw events after the cursor are not kept any more (retention): the first one that is' })),
    headSeq: Type.Integer({ description: 'the rawSeq of the last raw event that there is' }),
  },
  { $id: 'RawPage' },
)
export const WorkspaceEventsPage = Type.Object(
  {
    data: Type.Array(reference(CanonicalEventSchema)),
    nextCursor: Type.Optional(Type.String({ description: 'only if there is more. With a filter a page may be short, or empty, and still have it' })),
    nextAfterSeq,
    firstSeq,
    headSeq: Type.Optional(Type.Integer({ description: 'with runId, as nextAfterSeq and firstSeq: as in the pages of that run' })),
  },
  { $id: 'WorkspaceEventsPage' },
)

/** The components that these schemas refer to, in the order in which they have to be added. */
export const READING_SCHEMAS: readonly TSchema[] = [CanonicalEventSchema, RawEvent, EventsPage, RawPage, WorkspaceEventsPage]

/** A stream as OpenAPI tells it. */
export const EventStreamAnswer = {
  description: 'Server-sent events: `retry`, then `snapshot`, `canonical_event`, `caught_up`, `heartbeat`, `cursor`, `gap`, `end`, `error`. See docs/TAIL.md.',
  content: { 'text/event-stream': { schema: Type.String() } },
}
