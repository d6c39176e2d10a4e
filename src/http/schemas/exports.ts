/** Exports of many runs on the wire. */
import { type Static, Type } from '@sinclair/typebox'
import { RUN_ID_PATTERN } from '../../domain/ids.js'
import { filterFields } from './run.js'

const closed = { additionalProperties: false } as const
const flag = (description: string) => Type.Optional(Type.Boolean({ description }))
const how = {
  format: Type.Optional(
    Type.Union([Type.Literal('ndjson'), Type.Literal('jsonl'), Type.Literal('json'), Type.Literal('zip')], {
      default: 'ndjson',
      description: 'of the bundle of each run, within the zip of all',
    }),
  ),
  profile: Type.Optional(Type.Union([Type.Literal('full'), Type.Literal('no-content'), Type.Literal('hashed')], { default: 'full' })),
  includeCanonical: flag('canonical events; true unless said otherwise'),
  includeRaw: flag('raw events; false unless said otherwise'),
  includeArtifacts: flag('contents of artifacts; true unless said otherwise'),
}
const filter = Type.Object(filterFields(0), { ...closed, description: 'as GET /runs filters' })
const runIds = Type.Optional(Type.Array(Type.String({ pattern: RUN_ID_PATTERN }), { minItems: 1, maxItems: 10_000 }))

export const ExportCommand = Type.Object(
  { runIds, filter: Type.Optional(filter), ...how },
  { ...closed, $id: 'ExportCommand', description: '`runIds`, or a `filter`; with neither, all runs that are not archived' },
)
export type ExportCommand = Static<typeof ExportCommand>

const nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) => Type.Union([schema, Type.Null()])
const time = Type.String({ format: 'date-time' })

export const ExportJob = Type.Object(
  {
    exportId: Type.String(),
    status: Type.Union(['waiting', 'running', 'completed', 'failed', 'expired'].map((status) => Type.Literal(status))),
    progress: Type.Integer({ minimum: 0, maximum: 100 }),
    runsTotal: Type.Integer(),
    runsDone: Type.Integer(),
    bytes: nullable(Type.Integer({ description: 'of the file, once it is there' })),
    error: nullable(Type.String()),
    request: Type.Unknown({ description: 'what was asked for' }),
    createdAt: time,
    endedAt: nullable(time),
    expiresAt: nullable({ ...time, description: 'when the file is removed' }),
    downloadUrl: Type.Optional(Type.String({ description: 'once it is completed: needs no key, and works until downloadExpiresAt' })),
    downloadExpiresAt: Type.Optional(time),
  },
  { $id: 'ExportJob' },
)

export const ExportPage = Type.Object(
  { data: Type.Array(Type.Unsafe<Static<typeof ExportJob>>({ $ref: 'ExportJob#' })), nextCursor: Type.Optional(Type.String()) },
  { $id: 'ExportPage' },
)

const id = Type.String({ format: 'uuid' })
export const ExportParams = Type.Object({ id })
export const ExportsQuery = Type.Object({ limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 200, default: 50 })), cursor: Type.Optional(id) })
export const DownloadQuery = Type.Object({
  expires: Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
  signature: Type.String({ minLength: 1, maxLength: 128 }),
})
