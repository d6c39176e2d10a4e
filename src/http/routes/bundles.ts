/** `GET /runs/:id/export` and `POST /runs/import`: a run leaves as a bundle, and comes back from one. */

import { Readable } from 'node:stream'
import { createGzip } from 'node:zlib'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import { pattern } from '../../domain/pattern.js'
import { RunplaneError } from '../../errors.js'
import type { Mask } from '../../ingest/mask.js'
import { type Exporter, type ExportOptions, STALL_MS } from '../../insight/export.js'
import type { Importer } from '../../insight/import.js'
import { LINES_PIECE_BYTES } from '../../log/read.js'
import { createPiecePool } from '../../tail/pieces.js'
import { isKnown } from '../etag.js'
import { reference } from '../schemas/reference.js'
import { RunParams } from '../schemas/run.js'
import { sendPieces } from '../send-pieces.js'

export interface BundlesRoutesDeps {
  exporter: Exporter
  importer: Importer
  mask: Pick<Mask, 'text'>
}

const flag = (description: string) => Type.Optional(Type.Boolean({ description }))
const literals = <T extends string>(...values: T[]) => Type.Union(values.map((value) => Type.Literal(value)))

const ExportQuery = Type.Object({
  format: Type.Optional(literals('json', 'ndjson', 'jsonl', 'zip')),
  include: Type.Optional(
    Type.String({
      pattern: pattern('^(canonical|raw|artifacts)?(,(canonical|raw|artifacts))*$', 'of canonical, raw and artifacts, separated by commas'),
      description: 'what besides the record, the state and the metrics: `canonical`, `raw`, `artifacts`, separated by commas. None: canonical,artifacts',
    }),
  ),
  includeCanonical: flag('adds canonical events to what is included, or takes them out'),
  includeRaw: flag('adds raw events to what is included, or takes them out'),
  profile: Type.Optional(literals('full', 'no-content', 'hashed')),
  fromSeq: Type.Optional(Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER, description: 'goes on after a break: the first seq that is wanted' })),
  limit: Type.Optional(
    Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER, description: 'canonical events at most; the manifest then says `nextSeq`' }),
  ),
  eventLimit: Type.Optional(Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER, description: 'another name of `limit`' })),
})

const BundleBody = Object.fromEntries(
  ['application/zip', 'application/x-ndjson', 'application/json'].map((type) => [type, { schema: { description: 'a bundle, as it was exported' } }]),
)

const EXPORT_ANSWER = {
  description: 'The bundle. See docs/BUNDLES.md.',
  content: {
    'application/json': { schema: Type.Unknown() },
    'application/x-ndjson': { schema: Type.String() },
    'application/zip': { schema: Type.String({ format: 'binary' }) },
  },
}

const ImportQuery = Type.Object({
  as: Type.Optional(Type.String({ maxLength: 128, description: 'an id for the run other than its own' })),
})

const count = Type.Integer({ minimum: 0 })
const ImportAnswer = Type.Object(
  {
    runId: Type.String(),
    imported: Type.Boolean({ description: 'false: the run was there already, with all of the canonical events, and nothing was changed' }),
    lastSeq: count,
    lastRawSeq: count,
    events: Type.Object(
      { canonical: count, raw: count },
      { description: 'what of the bundle is in the run now; of one that was there it may be fewer raw events' },
    ),
    artifacts: count,
    chain: Type.String({ description: 'the last link of the chain over the canonical events as they are stored here' }),
  },
  { $id: 'ImportAnswer' },
)

export function bundlesRoutes({ exporter, importer, mask }: BundlesRoutesDeps): FastifyPluginAsyncTypebox {
  const pool = createPiecePool(LINES_PIECE_BYTES)
  return async (app) => {
    app.get(
      '/runs/:id/export',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID', 'NOT_FOUND'], headers: { 200: ['ETag', 'Content-Disposition'], 304: ['ETag'] } },
        // Whoever asks for the head only would wait until all of it has been read.
        exposeHeadRoute: false,
        schema: {
          operationId: 'exportRun',
          tags: ['insight'],
          summary: 'Take a run away as a bundle',
          description: 'All of the run as of its head now, streamed. A bundle without its manifest is not whole.',
          params: RunParams,
          querystring: ExportQuery,
          headers: Type.Object({ 'if-none-match': Type.Optional(Type.String()), 'accept-encoding': Type.Optional(Type.String()) }),
          response: { 200: EXPORT_ANSWER, 304: Type.Unsafe<undefined>({ type: 'null', description: 'as it was' }) },
        },
      },
      async (request, reply) => {
        const options = optionsOf(request.query)
        const bundle = await exporter.open(request.access.workspaceId, request.params.id, options)
        const gzip = options.format !== 'zip' && acceptsGzip(request.headers['accept-encoding'])
        const etag = gzip ? bundle.etag.replace(/"$/, '-gzip"') : bundle.etag
        reply.header('etag', etag).header('cache-control', 'no-cache').header('vary', 'accept-encoding')
        if (isKnown(request.headers['if-none-match'], etag)) return reply.code(304).send(undefined)
        reply.type(bundle.contentType).header('content-disposition', `attachment; filename="${bundle.fileName}"`)
        if (options.format !== 'zip' && !gzip) {
          await sendPieces(reply, bundle.pieces(pool.lend), { giveBack: pool.giveBack, stallMs: STALL_MS })
          return reply
        }
        const stream = bundle.stream()
        if (!gzip) return reply.send(stream)
        const packed = createGzip({ level: 3 })
        // Whichever ends first, by the end of the bundle or of its reader, ends the other.
        stream.on('error', (error) => packed.destroy(error))
        packed.on('close', () => stream.destroy())
        return reply.header('content-encoding', 'gzip').send(stream.pipe(packed))
      },
    )

    app.addSchema(ImportAnswer)
    const imports: FastifyPluginAsyncTypebox = async (app) => {
      app.removeAllContentTypeParsers()
      app.addContentTypeParser('*', (_request, payload, done) => done(null, payload))
      app.post(
        '/runs/import',
        {
          config: {
            role: 'member',
            streamed: true,
            gzip: true,
            body: BundleBody,
            errors: ['IDEMPOTENCY_CONFLICT'],
            headers: { 200: ['Location'], 201: ['Location'] },
          },
          schema: {
            operationId: 'importRun',
            tags: ['insight'],
            summary: 'Bring a run back from a bundle',
            description:
              'The body is a bundle, as `GET /runs/:id/export` answers it: zip, NDJSON or JSON, also gzipped. All of it is checked before any of it is seen.',
            querystring: ImportQuery,
            response: {
              200: reference(ImportAnswer, 'The run was there already, as it is in the bundle'),
              201: reference(ImportAnswer, 'The run has been brought back'),
            },
          },
        },
        async (request, reply) => {
          const { body } = request
          if (!(body instanceof Readable)) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send a bundle: what GET /runs/:id/export answered.')
          const { as } = request.query
          // An id with a secret in it is refused: masked, it is none.
          const answer = await importer.import(request.access.workspaceId, body, { as: as === undefined ? undefined : mask.text(as) })
          return reply
            .code(answer.imported ? 201 : 200)
            .header('location', `/runs/${encodeURIComponent(answer.runId)}`)
            .send(answer)
        },
      )
    }
    await app.register(imports)
  }
}

function optionsOf(query: Static<typeof ExportQuery>): ExportOptions {
  const { format = 'json', include = 'canonical,artifacts', profile = 'full', fromSeq, limit, eventLimit } = query
  const parts = include.split(',')
  return {
    format: format === 'jsonl' ? 'ndjson' : format,
    canonical: query.includeCanonical ?? parts.includes('canonical'),
    raw: query.includeRaw ?? parts.includes('raw'),
    artifacts: parts.includes('artifacts'),
    profile,
    fromSeq,
    limit: limit ?? eventLimit,
  }
}

/** RFC 9110, section 12.5.3, as far as it matters: named, or `*`, and not with a weight of 0. */
function acceptsGzip(header: string | undefined): boolean {
  return (header ?? '').split(',').some((part) => {
    const [coding = '', ...parameters] = part.split(';').map((text) => text.trim().toLowerCase())
    return (coding === 'gzip' || coding === 'x-gzip' || coding === '*') && !parameters.some((parameter) => /^q=0(\.0*)?$/.test(parameter))
  })
}
