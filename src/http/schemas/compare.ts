/** Bodies and queries of comparisons; what they answer is in insight/compare/answer.ts. */
import { type Static, Type } from '@sinclair/typebox'
import { RUN_ID_PATTERN } from '../../domain/ids.js'
import { COMPARE_SECTIONS } from '../../insight/compare/answer.js'
import { DEFAULT_LIMIT, MAX_LIMIT } from '../../insight/compare/compare.js'

const closed = { additionalProperties: false } as const
const runId = Type.String({ pattern: RUN_ID_PATTERN })
const seq = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER, description: 'compare the run as it was at this event; none: as it is now' })

const SideBody = Type.Union(
  [
    runId,
    Type.Object({ runId, seq: Type.Optional(seq) }, closed),
    Type.Object(
      {
        bundle: Type.Union([Type.String(), Type.Object({}, { additionalProperties: true })], {
          description: 'a JSON bundle, or the text of a JSON or NDJSON bundle',
        }),
      },
      closed,
    ),
  ],
  { description: 'the id of a run, a run at a seq, or a bundle' },
)
export type SideBody = Static<typeof SideBody>

const path = Type.String({ minLength: 1, maxLength: 501 })
const ignore = Type.Array(path, {
  maxItems: 100,
  description:
    'members that are not compared: a name, or a JSON Pointer such as /data/arguments/seed (`*` any member, `**` any depth); `!` before it takes it off',
})
const limit = Type.Integer({ minimum: 1, maximum: MAX_LIMIT, description: `hunks and steps that are listed, of each; none: ${DEFAULT_LIMIT}` })

export const CompareBody = Type.Object(
  {
    left: Type.Optional(SideBody),
    right: Type.Optional(SideBody),
    leftRunId: Type.Optional(runId),
    rightRunId: Type.Optional(runId),
    runs: Type.Optional(Type.Array(SideBody, { minItems: 2, maxItems: 20, description: 'instead of left and right: each is compared with the first' })),
    ignore: Type.Optional(ignore),
    sections: Type.Optional(
      Type.Array(Type.Union(COMPARE_SECTIONS.map((name) => Type.Literal(name))), {
        maxItems: 20,
        description: 'only these are computed; none, or an empty list: all',
      }),
    ),
    limit: Type.Optional(limit),
    fields: Type.Optional(Type.Boolean({ description: 'list how the events of changed steps differ, field by field' })),
  },
  { ...closed, $id: 'CompareRequest' },
)
export type CompareBody = Static<typeof CompareBody>

const csv = (description: string) => Type.Optional(Type.String({ maxLength: 8192, description: `${description}, separated by commas` }))

export const CompareQuery = Type.Object({
  left: Type.Optional(runId),
  right: Type.Optional(runId),
  leftRunId: Type.Optional(runId),
  rightRunId: Type.Optional(runId),
  leftSeq: Type.Optional(seq),
  rightSeq: Type.Optional(seq),
  ignore: csv('paths'),
  sections: csv(`of ${COMPARE_SECTIONS.join(', ')}`),
  limit: Type.Optional(limit),
  fields: Type.Optional(Type.Boolean()),
})
