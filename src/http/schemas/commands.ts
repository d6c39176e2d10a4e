/** Commands on the wire. Unknown fields are refused. */

import { type Static, Type } from '@sinclair/typebox'
import { NEW_RUN_ID_PATTERN, RUN_ID_PATTERN } from '../../domain/ids.js'
import { CreateRun } from '../../domain/run-request.js'
import { ERROR_CATALOGUE, type ErrorCode } from '../../errors.js'
import { MAX_BATCH_RUNS } from '../../runs/batch.js'
import { filterFields } from './run.js'

const closed = { additionalProperties: false } as const
const because = {
  reason: Type.Optional(Type.String({ maxLength: 2000, description: 'kept in the log' })),
  by: Type.Optional(Type.String({ minLength: 1, maxLength: 256, description: 'who wants it; none: the name of the API key' })),
}
const runId = Type.String({ pattern: RUN_ID_PATTERN })

export const Because = Type.Object(because, { ...closed, $id: 'Because' })

export const Retry = Type.Object(
  {
    ...because,
    as: Type.Optional(
      Type.Union([Type.Literal('same'), Type.Literal('new')], { default: 'same', description: 'a new attempt of this run, or a new run that is linked to it' }),
    ),
    id: Type.Optional(Type.String({ pattern: NEW_RUN_ID_PATTERN, description: 'of the new run, with as: "new"' })),
    delayMs: Type.Optional(Type.Integer({ minimum: 0, maximum: 31_536_000_000, description: 'not handed out by its queue before' })),
  },
  { ...closed, $id: 'Retry' },
)

export const CloneRun = Type.Object({ ...CreateRun.properties }, { ...closed, $id: 'CloneRun', description: 'What of the clone is not the original’s' })

const filter = Type.Object(filterFields(1), {
  ...closed,
  minProperties: 1,
  description: 'as GET /runs filters, at least one beside includeArchived; without status those that the command works on',
})

const selection = {
  runIds: Type.Optional(Type.Array(runId, { minItems: 1, maxItems: MAX_BATCH_RUNS })),
  filter: Type.Optional(filter),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: MAX_BATCH_RUNS, description: 'runs of the filter that this request takes' })),
  cursor: Type.Optional(Type.String({ maxLength: 512, description: 'the `nextCursor` of the request before' })),
}

export const Batch = Type.Object(selection, { ...closed, $id: 'Batch', description: 'either `runIds` or a `filter`' })
export type Batch = Static<typeof Batch>
export const BatchBecause = Type.Object({ ...selection, ...because }, { ...closed, $id: 'BatchBecause', description: 'either `runIds` or a `filter`' })

const total = Type.Integer({ minimum: 0 })
export const BatchAnswer = Type.Object(
  {
    done: total,
    refused: total,
    failed: total,
    results: Type.Array(
      Type.Object({
        runId: Type.String(),
        outcome: Type.Union([Type.Literal('done'), Type.Literal('refused'), Type.Literal('failed')]),
        code: Type.Optional(Type.Unsafe<ErrorCode>({ type: 'string', enum: Object.keys(ERROR_CATALOGUE) })),
        detail: Type.Optional(Type.String()),
      }),
    ),
    nextCursor: Type.Optional(Type.String({ description: 'only if the filter may match more: send it again with this cursor' })),
  },
  { $id: 'BatchAnswer' },
)
