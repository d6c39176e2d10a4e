/** Exports of many runs: jobs in the background, their downloads, and the table of runs as CSV. */
import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Sql } from '../../db/client.js'
import { RunplaneError } from '../../errors.js'
import { summaryCsv } from '../../insight/csv.js'
import type { ExportJobs, ExportJob as Job } from '../../insight/export-jobs.js'
import type { PriceTable } from '../../insight/prices.js'
import { DownloadQuery, ExportCommand, ExportJob, ExportPage, ExportParams, ExportsQuery } from '../schemas/exports.js'
import { reference } from '../schemas/reference.js'
import { ListRunsQuery } from '../schemas/run.js'
import { listOf, statuses } from './runs.js'

export interface ExportsRoutesDeps {
  sql: Sql
  prices: PriceTable
  jobs: ExportJobs
}

const ZIP = {
  description: 'A zip with a bundle of each run, summary.csv and index.json',
  content: { 'application/zip': { schema: Type.Unsafe<unknown>({ type: 'string', format: 'binary' }) } },
}
const CSV = { description: 'A row a run, oldest first', content: { 'text/csv': { schema: Type.Unsafe<unknown>({ type: 'string' }) } } }

export const exportsRoutes: FastifyPluginAsyncTypebox<ExportsRoutesDeps> = async (app, { sql, prices, jobs }) => {
  for (const schema of [ExportCommand, ExportJob, ExportPage]) app.addSchema(schema)

  const create = (operationId: string, summary: string) => ({
    config: { role: 'member' as const, headers: { 202: ['Location' as const] } },
    schema: {
      operationId,
      tags: ['insight'],
      summary,
      description: 'Made in the background: GET /exports/:id tells how far it is, and then where the file is.',
      body: reference(ExportCommand),
      response: { 202: reference(ExportJob, 'The export, which is being made') },
    },
  })

  async function begin(workspaceId: string, { runIds, filter, format = 'ndjson', profile = 'full', ...include }: ExportCommand) {
    if (runIds && filter) throw new RunplaneError('VALIDATION_ERROR', 'Send either runIds or a filter, and not both.')
    const options = {
      format: format === 'jsonl' ? ('ndjson' as const) : format,
      canonical: include.includeCanonical ?? true,
      raw: include.includeRaw ?? false,
      artifacts: include.includeArtifacts ?? true,
      profile,
    }
    return shown(await jobs.create(workspaceId, { runIds: runIds && [...new Set(runIds)], filter, options }))
  }

  function shown(job: Job) {
    const progress = job.status === 'completed' || job.status === 'expired' ? 100 : Math.floor((job.runsDone * 100) / Math.max(1, job.runsTotal))
    const link = job.status === 'completed' ? jobs.downloadPath(job) : undefined
    return { ...job, progress: Math.min(100, progress), ...(link && { downloadUrl: link.path, downloadExpiresAt: link.expiresAt }) }
  }

  app.post('/exports', create('createExport', 'Export many runs'), async (request, reply) => {
    const job = await begin(request.access.workspaceId, request.body)
    return reply.code(202).header('location', `/exports/${job.exportId}`).send(job)
  })
  app.post('/runs/batch/export', create('exportRuns', 'Export many runs, as POST /exports'), async (request, reply) => {
    if (!request.body.runIds && !request.body.filter) throw new RunplaneError('VALIDATION_ERROR', 'Send either runIds or a filter.')
    const job = await begin(request.access.workspaceId, request.body)
    return reply.code(202).header('location', `/exports/${job.exportId}`).send(job)
  })

  app.get(
    '/exports',
    {
      config: { role: 'guest' },
      schema: {
        operationId: 'listExports',
        tags: ['insight'],
        summary: 'List exports, the latest first',
        querystring: ExportsQuery,
        response: { 200: reference(ExportPage, 'A page of exports') },
      },
    },
    async (request) => {
      const { limit = 50, cursor } = request.query
      const found = await jobs.list(request.access.workspaceId, { limit: limit + 1, before: cursor })
      const data = found.slice(0, limit)
      const last = data.at(-1)
      return { data: data.map(shown), ...(found.length > limit && last && { nextCursor: last.exportId }) }
    },
  )

  app.get(
    '/exports/:id',
    {
      config: { role: 'guest', errors: ['NOT_FOUND'] },
      schema: {
        operationId: 'getExport',
        tags: ['insight'],
        summary: 'Get an export',
        params: ExportParams,
        response: { 200: reference(ExportJob, 'How far it is, and where its file is') },
      },
    },
    async (request) => {
      const job = await jobs.get(request.access.workspaceId, request.params.id)
      if (!job) throw new RunplaneError('NOT_FOUND', `There is no export '${request.params.id}' in this workspace. GET /exports lists those that there are.`)
      return shown(job)
    },
  )

  app.get(
    '/exports/:id/download',
    {
      // The signature says who may.
      config: { public: true, errors: ['NOT_FOUND'], headers: { 200: ['Content-Disposition'] } },
      exposeHeadRoute: false,
      schema: {
        operationId: 'downloadExport',
        tags: ['insight'],
        summary: 'Download the file of an export, by its signed URL',
        params: ExportParams,
        querystring: DownloadQuery,
        response: { 200: ZIP },
      },
    },
    async (request, reply) => {
      const { id } = request.params
      const file = await jobs.download(id, request.query.expires, request.query.signature)
      if (!file) throw new RunplaneError('NOT_FOUND', `The file of export '${id}' is not there any more. Make the export again.`)
      return reply
        .type('application/zip')
        .header('content-length', file.bytes)
        .header('cache-control', 'private, no-store')
        .header('content-disposition', `attachment; filename="runs-${id}.zip"`)
        .send(file.body)
    },
  )

  app.get(
    '/runs.csv',
    {
      config: { role: 'guest', headers: { 200: ['Content-Disposition'] } },
      exposeHeadRoute: false,
      schema: {
        operationId: 'listRunsAsCsv',
        tags: ['insight'],
        summary: 'All runs that the filters match, as a table for spreadsheets',
        querystring: Type.Omit(ListRunsQuery, ['sort', 'order', 'limit', 'cursor', 'count']),
        response: { 200: CSV },
      },
    },
    async (request, reply) => {
      const { query } = request
      const filter = { ...query, status: statuses(query.status), tags: listOf(query.tags), includeArchived: query.includeArchived ?? false }
      const rows = summaryCsv({ sql, prices }, request.access.workspaceId, { filter })
      // A filter that is not right is told before the answer begins.
      const first = await rows.next()
      const second = await rows.next()
      return reply
        .type('text/csv; charset=utf-8; header=present')
        .header('content-disposition', 'attachment; filename="runs.csv"')
        .send(Readable.from(joined([first, second], rows), { objectMode: false }))
    },
  )
}

async function* joined(begun: IteratorResult<string>[], rest: AsyncGenerator<string>): AsyncGenerator<string> {
  for (const piece of begun) if (!piece.done) yield piece.value
  yield* rest
}
