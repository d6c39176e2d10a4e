/** `GET /runs/:id/export` and `POST /runs/import`: a run leaves as a bundle, and comes back from one. */
import { createGzip } from 'node:zlib'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import type { Exporter, ExportOptions } from '../../insight/export.js'
import { RunParams } from '../schemas/run.js'

export interface BundlesRoutesDeps {
  exporter: Exporter
}

const flag = (description: string) => Type.Optional(Type.Boolean({ description }))
const literals = <T extends string>(...values: T[]) => Type.Union(values.map((value) => Type.Literal(value)))

const ExportQuery = Type.Object({
  format: Type.Optional(literals('json', 'ndjson', 'jsonl', 'zip')),
  include: Type.Optional(
    Type.String({
      pattern: '^(canonical|raw|artifacts)?(,(canonical|raw|artifacts))*$',
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

const EXPORT_ANSWER = {
  description: 'The bundle. See docs/BUNDLES.md.',
  content: {
    'application/json': { schema: Type.Unknown() },
    'application/x-ndjson': { schema: Type.String() },
    'application/zip': { schema: Type.String({ format: 'binary' }) },
  },
}

export function bundlesRoutes({ exporter }: BundlesRoutesDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.get(
      '/runs/:id/export',
      {
        config: { role: 'guest' },
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
        const stream = bundle.stream()
        if (!gzip) return reply.send(stream)
        const packed = createGzip({ level: 3 })
        // Whichever ends first, by the end of the bundle or of its reader, ends the other.
        stream.on('error', (error) => packed.destroy(error))
        packed.on('close', () => stream.destroy())
        return reply.header('content-encoding', 'gzip').send(stream.pipe(packed))
      },
    )
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

function isKnown(header: string | undefined, etag: string): boolean {
  return header !== undefined && (header.trim() === '*' || header.split(',').some((tag) => tag.trim().replace(/^W\//, '') === etag))
}
