/** Parameters and queries of the routes about runs. */
import { Type } from '@sinclair/typebox'
import { RUN_ID_PATTERN } from '../../domain/ids.js'
import { RUN_STATUSES } from '../../domain/run.js'
import { STORABLE_PATTERN } from '../../domain/storable.js'

export const IdempotencyKey = Type.Optional(Type.String({ minLength: 1, maxLength: 255 }))
export const KeyHeader = Type.Object({ 'idempotency-key': IdempotencyKey })

export const RunParams = Type.Object({ id: Type.String({ pattern: RUN_ID_PATTERN }) })

const csv = { description: 'separated by commas' }

export const ListRunsQuery = Type.Object({
  status: Type.Optional(Type.String(csv)),
  kind: Type.Optional(Type.String({ maxLength: 256 })),
  queue: Type.Optional(Type.String({ maxLength: 256 })),
  tags: Type.Optional(Type.String({ ...csv, description: 'separated by commas; a run has to have all of them' })),
  createdAfter: Type.Optional(Type.String({ format: 'date-time' })),
  createdBefore: Type.Optional(Type.String({ format: 'date-time' })),
  search: Type.Optional(Type.String({ maxLength: 256, description: 'part of the id, the name, the kind or a tag' })),
  parentRunId: Type.Optional(Type.String({ maxLength: 128 })),
  includeArchived: Type.Optional(Type.Boolean({ default: false })),
  sort: Type.Optional(Type.Union([Type.Literal('createdAt'), Type.Literal('updatedAt')], { default: 'createdAt' })),
  order: Type.Optional(Type.Union([Type.Literal('asc'), Type.Literal('desc')], { default: 'desc' })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 200, default: 50 })),
  cursor: Type.Optional(Type.String({ maxLength: 512 })),
  count: Type.Optional(Type.Boolean({ default: false })),
})

/** The members of a filter in a body. @param minLength of a text: 1 where an empty one, which each run has in it, would select too much */
export function filterFields(minLength: 0 | 1) {
  const text = (maxLength: number) => Type.String({ minLength, maxLength, pattern: STORABLE_PATTERN })
  return {
    status: Type.Optional(Type.Array(Type.Union(RUN_STATUSES.map((status) => Type.Literal(status))), { minItems: 1, maxItems: RUN_STATUSES.length })),
    kind: Type.Optional(text(256)),
    queue: Type.Optional(text(256)),
    tags: Type.Optional(Type.Array(Type.String({ minLength: 1, maxLength: 128, pattern: STORABLE_PATTERN }), { minItems: minLength, maxItems: 100 })),
    createdAfter: Type.Optional(Type.String({ format: 'date-time' })),
    createdBefore: Type.Optional(Type.String({ format: 'date-time' })),
    search: Type.Optional(text(256)),
    parentRunId: Type.Optional(text(128)),
    includeArchived: Type.Optional(Type.Boolean()),
  }
}

export const StateQuery = Type.Object({
  seq: Type.Optional(Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, description: 'the state as it was after this event' })),
})
