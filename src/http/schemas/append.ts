/** `POST /runs/:id/events`: what is asked and what is answered. */

import { type Static, Type } from '@sinclair/typebox'
import { pattern } from '../../domain/pattern.js'
import { ERROR_CATALOGUE, type ErrorCode } from '../../errors.js'
import { NativeEvent } from '../../ingest/formats/native.js'
import { NDJSON_TYPES } from '../../ingest/normalize.js'
import { WorkerHeader } from './worker.js'

export const AppendQuery = Type.Object({
  format: Type.Optional(Type.String({ description: 'the ingest format, where the content type does not tell: native, jobs, macp' })),
})

export const PostedEvent = { ...NativeEvent, $id: 'PostedEvent', description: 'an event in the native format; fields that are not named here are kept' }
const events = { type: 'array', minItems: 1, items: { $ref: 'PostedEvent#' } }
/** Cut and checked by ingest/, an item at a time. */
export const EventsBody = {
  'application/json': {
    schema: {
      anyOf: [
        { $ref: 'PostedEvent#' },
        events,
        { type: 'object', required: ['events'], additionalProperties: false, properties: { events } },
        { type: ['object', 'array'], description: 'with `format`: an item of that format, or an array of them' },
      ],
    },
  },
  ...Object.fromEntries(NDJSON_TYPES.map((type) => [type, { schema: { type: 'string', description: 'an event a line, without a limit of length' } }])),
}

const wholeNumber = Type.String({ pattern: pattern('^(0|[1-9][0-9]{0,15})$', 'a whole number from 0, without leading zeros') })

export const AppendHeaders = Type.Object({
  'idempotency-key': Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 255,
      description:
        'the same events again, each to the byte, are answered as the first time, and what was not stored then is; others are 409. Goes with the headers of a producer as well',
    }),
  ),
  'if-match': Type.Optional(
    Type.String({
      pattern: pattern('^"(0|[1-9][0-9]{0,15})"$', 'a seq in double quotes, such as "12"'),
      description: 'the head that the run must have, such as "12"; of NDJSON also that nobody else writes between its lines',
    }),
  ),
  'producer-id': Type.Optional(Type.String({ minLength: 1, maxLength: 255 })),
  'producer-epoch': Type.Optional(wholeNumber),
  'producer-seq': Type.Optional({
    ...wholeNumber,
    description: 'from 0 in each epoch. The same again is answered as the first, and not stored, whatever its body',
  }),
  prefer: Type.Optional(Type.String()),
  'x-worker-id': WorkerHeader,
})
export type AppendHeaders = Static<typeof AppendHeaders>

const ItemResult = Type.Object({
  index: Type.Integer({ minimum: 0 }),
  status: Type.Union([Type.Literal('stored'), Type.Literal('duplicate'), Type.Literal('rejected')]),
  seqs: Type.Array(Type.Integer({ minimum: 1 }), { description: 'the canonical events that came of it; of a duplicate the original ones' }),
  rawSeq: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()]),
  code: Type.Optional(Type.Unsafe<ErrorCode>({ type: 'string', enum: Object.keys(ERROR_CATALOGUE) })),
  detail: Type.Optional(Type.String()),
})

export const AppendAnswer = Type.Object(
  {
    runId: Type.String(),
    accepted: Type.Integer({ minimum: 0 }),
    duplicates: Type.Integer({ minimum: 0 }),
    rejected: Type.Integer({ minimum: 0 }),
    firstSeq: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()], { description: 'of the stored and the duplicate items; null where there are none' }),
    lastSeq: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()]),
    headSeq: Type.Integer({ minimum: 0 }),
    results: Type.Optional(Type.Array(ItemResult)),
    truncatedResults: Type.Optional(
      Type.Integer({ minimum: 1, description: 'NDJSON only: results past the first 10,000 that were not rejected are counted, not listed' }),
    ),
  },
  { $id: 'AppendAnswer' },
)
export type AppendAnswer = Static<typeof AppendAnswer>

export const ExplainAnswer = Type.Object(
  {
    format: Type.String(),
    version: Type.Integer({ description: 'of the format' }),
    wouldStore: Type.Integer({ minimum: 0 }),
    rejected: Type.Integer({ minimum: 0 }),
    duplicates: Type.Integer({ minimum: 0, description: 'what repeats another item of this payload; what is stored already is not looked at' }),
    unmapped: Type.Integer({ minimum: 0, description: 'what would become raw.received' }),
    results: Type.Array(
      Type.Object({
        index: Type.Integer({ minimum: 0 }),
        status: Type.Union([Type.Literal('would_store'), Type.Literal('duplicate'), Type.Literal('rejected')]),
        duplicateOf: Type.Optional(Type.Integer({ minimum: 0, description: 'the item of this payload that it repeats' })),
        rawType: Type.Optional(Type.String()),
        eventId: Type.Optional(Type.String()),
        source: Type.Optional(Type.Object({ kind: Type.String(), name: Type.String() })),
        events: Type.Optional(Type.Array(Type.Unknown(), { description: 'canonical events, as far as they are known before they are stored' })),
        code: Type.Optional(Type.Unsafe<ErrorCode>({ type: 'string', enum: Object.keys(ERROR_CATALOGUE) })),
        detail: Type.Optional(Type.String()),
      }),
    ),
  },
  { $id: 'ExplainAnswer' },
)
