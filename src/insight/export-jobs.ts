/**
 * Exports of many runs, made in the background: a zip in the store with a bundle of each run, a table of all of them, and an index that
 * says how each went. A row of `export_jobs` is the job, and a lease on it:
 *
 *   waiting -> running -> completed -> expired
 *                 |  \--> failed
 *                 \--> waiting (its instance stopped, or its lease ran out: made anew from the start)
 *
 * The file appears in the store when it is whole. Which runs are in it is settled by their age when the job was made; each is as of the moment when its turn comes.
 */

import { createHmac, timingSafeEqual } from 'node:crypto'
import { PassThrough, Readable } from 'node:stream'
import { ZipFile } from 'yazl'
import type { Config } from '../config.js'
import type { Sql } from '../db/client.js'
import { utcColumn } from '../db/utc.js'
import { uuidv7 } from '../domain/ids.js'
import { RunplaneError } from '../errors.js'
import type { RunFilter } from '../runs/list.js'
import type { Blobs } from './blobs.js'
import { countRuns, type RunSelection, selectRuns, summaryCsv } from './csv.js'
import type { Exporter, ExportOptions } from './export.js'
import type { PriceTable } from './prices.js'

/** What a job was asked for; a filter or ids. */
export interface ExportRequest {
  runIds?: readonly string[] | undefined
  filter?: Partial<RunFilter> | undefined
  options: Omit<ExportOptions, 'fromSeq' | 'limit'>
}

export interface ExportJob {
  exportId: string
  status: 'waiting' | 'running' | 'completed' | 'failed' | 'expired'
  request: unknown
  runsTotal: number
  runsDone: number
  /** Of the file, once it is there. */
  bytes: number | null
  error: string | null
  createdAt: string
  endedAt: string | null
  expiresAt: string | null
}

export interface ExportJobs {
  /** @throws PAYLOAD_TOO_LARGE past MAX_EXPORT_RUNS. */
  create(workspaceId: string, request: ExportRequest): Promise<ExportJob>
  list(workspaceId: string, page: { limit: number; before?: string | undefined }): Promise<ExportJob[]>
  get(workspaceId: string, id: string): Promise<ExportJob | undefined>
  /** Where the file of a completed job can be fetched without a key, for DOWNLOAD_MS. */
  downloadPath(job: Pick<ExportJob, 'exportId' | 'expiresAt'>): { path: string; expiresAt: string }
  /** @throws FORBIDDEN for a signature that is wrong or has expired. */
  download(id: string, expires: number, signature: string): Promise<{ bytes: number; body: Readable } | undefined>
  start(): void
  /** Gives up what it is making, for another instance to take. */
  close(): Promise<void>
}

export interface ExportJobsDeps {
  sql: Sql
  blobs: Blobs
  exporter: Exporter
  prices: PriceTable
  /** Of the signatures. */
  secret: Buffer
  config: Pick<Config, 'EXPORT_KEEP_MS'>
  log: { warn(details: object, message: string): void; error(details: object, message: string): void }
  /** Runs with each look at what has expired. */
  sweep?: (() => Promise<void>) | undefined
  /** For tests. */
  lookMs?: number
  leaseMs?: number
}

export const MAX_EXPORT_RUNS = 100_000
const DOWNLOAD_MS = 3_600_000
const LOOK_MS = 2000
const LEASE_MS = 30_000
const SWEEP_MS = 600_000
/** Between two notes of how far it has come. */
const PROGRESS_MS = 1000
/** An export that fails on its way ends in a record of the error, and no manifest. */
const FAILED = { ndjson: '\n{"kind":"error",', json: '\n"error":{', zip: 'error.json' } as const
const TAIL_BYTES = 16_384

interface JobRow {
  id: string
  workspace_id: string
  request: ExportRequest
  created_at: string
}

interface IndexEntry {
  runId: string
  file?: string
  code?: string
  detail?: string
}

/** Another instance has the job, or this one stops. */
class GivenUp extends Error {}

export function createExportJobs(deps: ExportJobsDeps): ExportJobs {
  const { sql, blobs, exporter, prices, secret, config, log, lookMs = LOOK_MS, leaseMs = LEASE_MS } = deps
  const ownerId = uuidv7()
  let working: Promise<void> | undefined
  let making: AbortController | undefined
  let closed = false
  let lastSweep = 0
  let timer: NodeJS.Timeout | undefined

  function look(): void {
    if (closed) return
    working ??= round()
      .catch((error: unknown) => log.warn({ err: error }, 'export jobs could not be looked for; the next look tries again'))
      .finally(() => {
        working = undefined
      })
  }

  async function round(): Promise<void> {
    while (!closed) {
      const job = await claim()
      if (!job) break
      await make(job)
    }
    if (closed || Date.now() - lastSweep < SWEEP_MS) return
    lastSweep = Date.now()
    await expire()
    await deps.sweep?.()
  }

  async function claim(): Promise<JobRow | undefined> {
    const [row] = await sql<JobRow[]>`
      update export_jobs set status = 'running', owner_id = ${ownerId}, owner_expires_at = clock_timestamp() + ${leaseMs}::int * interval '1 ms', runs_done = 0
      where id = (
        select id from export_jobs where status = 'waiting' or (status = 'running' and owner_expires_at < clock_timestamp())
        order by id limit 1 for update skip locked
      ) returning id, workspace_id, request, to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at`
    return row
  }

  async function make(job: JobRow): Promise<void> {
    const abort = new AbortController()
    making = abort
    if (closed) abort.abort(new GivenUp())
    let runsDone = 0
    const renew = async () => {
      const { count } = await sql`
        update export_jobs set runs_done = ${runsDone}, owner_expires_at = clock_timestamp() + ${leaseMs}::int * interval '1 ms'
        where id = ${job.id} and owner_id = ${ownerId} and status = 'running'`
      if (count === 0) abort.abort(new GivenUp())
    }
    const renewal = setInterval(
      () => {
        // A database that is away for longer than the lease gives the job to another all the same.
        renew().catch((error: unknown) => log.warn({ err: error, exportId: job.id }, 'the lease of an export could not be renewed'))
      },
      Math.min(PROGRESS_MS, leaseMs / 3),
    )
    try {
      let bytes = 0
      const counted = async function* (pieces: AsyncIterable<Buffer>) {
        for await (const piece of pieces) {
          abort.signal.throwIfAborted()
          bytes += piece.length
          yield piece
        }
      }
      await blobs.put(blobName(job), counted(archive(job, abort.signal, () => runsDone++)))
      abort.signal.throwIfAborted()
      await sql`
        update export_jobs set status = 'completed', runs_done = ${runsDone}, bytes = ${bytes}, owner_id = null, owner_expires_at = null, ended_at = clock_timestamp(),
          expires_at = clock_timestamp() + ${config.EXPORT_KEEP_MS}::bigint * interval '1 ms'
        where id = ${job.id} and owner_id = ${ownerId}`
    } catch (error) {
      if (abort.signal.aborted) {
        await sql`update export_jobs set status = 'waiting', owner_id = null, owner_expires_at = null where id = ${job.id} and owner_id = ${ownerId}`
        return
      }
      log.error({ err: error, exportId: job.id }, 'an export of many runs failed')
      const told = error instanceof RunplaneError ? error.message : 'Something went wrong here; the log has the cause. Make the export again.'
      await sql`
        update export_jobs set status = 'failed', error = ${told}, runs_done = ${runsDone}, owner_id = null, owner_expires_at = null, ended_at = clock_timestamp()
        where id = ${job.id} and owner_id = ${ownerId}`
    } finally {
      clearInterval(renewal)
      making = undefined
    }
  }

  /** The bytes of the zip, made while they are read. */
  function archive({ workspace_id: workspaceId, request, created_at: createdAt }: JobRow, signal: AbortSignal, onDone: () => void): AsyncIterable<Buffer> {
    const zip = new ZipFile()
    const out = zip.outputStream.pipe(new PassThrough())
    let current: Readable | undefined
    // An error that nobody listens for yet would end the process.
    out.on('error', () => {})
    // Nobody reads on: what is being written must not wait for ever.
    out.once('close', () => current?.destroy())
    signal.addEventListener('abort', () => out.destroy(signal.reason))
    const selection = selectionOf(request, createdAt)

    function add(path: string, content: AsyncIterable<Buffer | string>, compress: boolean): Promise<void> {
      return new Promise((resolve, reject) => {
        const stream = Readable.from(content, { objectMode: false })
        current = stream
        if (out.destroyed) stream.destroy()
        stream
          .once('end', resolve)
          .once('error', reject)
          .once('close', () => reject(new GivenUp()))
        zip.addReadStream(stream, path, { mtime: new Date(createdAt), compress })
      })
    }

    async function one(runId: string): Promise<IndexEntry> {
      try {
        const { format } = request.options
        const bundle = await exporter.open(workspaceId, runId, request.options)
        const file = `runs/${bundle.fileName}`
        const end: { failed: boolean } = { failed: false }
        await add(file, watched(bundle.stream(), FAILED[format], end, signal), format !== 'zip')
        return end.failed ? { runId, file, code: 'INTERNAL', detail: 'The bundle broke off and has no manifest. Export this run again.' } : { runId, file }
      } catch (error) {
        // A run that was deleted meanwhile.
        if (error instanceof RunplaneError && error.status < 500) return { runId, code: error.code, detail: error.message }
        throw error
      }
    }

    async function write(): Promise<void> {
      await add('summary.csv', summaryCsv({ sql, prices }, workspaceId, selection, { content: request.options.profile === 'full' }), true)
      const index: IndexEntry[] = []
      for await (const page of selectRuns(sql, workspaceId, selection)) {
        for (const { id } of page) {
          signal.throwIfAborted()
          index.push(await one(id))
          onDone()
        }
      }
      const found = new Set(index.map(({ runId }) => runId))
      for (const runId of new Set(request.runIds)) if (!found.has(runId)) index.push({ runId, code: 'RUN_NOT_FOUND', detail: 'There is no such run.' })
      await add('index.json', pieces(`${JSON.stringify({ exportedAt: createdAt, ...request.options, runs: index }, null, 1)}\n`), true)
      zip.end()
    }
    let failure: Error | undefined
    write().catch((error: Error) => {
      failure = error
      out.destroy(error)
    })
    return (async function* () {
      // A stream that has failed before it is read is not relied on to say so.
      if (failure) throw failure
      yield* out
    })()
  }

  async function expire(): Promise<void> {
    const rows = await sql<{ id: string; workspace_id: string }[]>`
      select id, workspace_id from export_jobs where status = 'completed' and expires_at < clock_timestamp() limit 100`
    for (const row of rows) {
      await blobs.remove(blobName(row))
      await sql`update export_jobs set status = 'expired' where id = ${row.id}`
    }
  }

  const signature = (id: string, expires: number) => createHmac('sha256', secret).update(`export ${id} ${expires}`).digest('base64url')

  return {
    async create(workspaceId, request) {
      const total = await countRuns(sql, workspaceId, selectionOf(request, new Date().toISOString()))
      if (total > MAX_EXPORT_RUNS) {
        throw new RunplaneError(
          'PAYLOAD_TOO_LARGE',
          `The filter matches ${total} runs, and one export may have ${MAX_EXPORT_RUNS}. Narrow it, as by createdAfter and createdBefore.`,
        )
      }
      const [row] = await sql<ExportJob[]>`
        insert into export_jobs (id, workspace_id, request, status, runs_total)
        values (${uuidv7()}, ${workspaceId}, ${JSON.stringify(request)}::text::json, 'waiting', ${total}) returning ${columns(sql)}`
      if (!row) throw new Error('nothing was inserted')
      // In a turn of its own: the caller is answered first.
      setImmediate(look)
      return row
    },
    async list(workspaceId, { limit, before }) {
      return sql<ExportJob[]>`
        select ${columns(sql)} from export_jobs where workspace_id = ${workspaceId} ${before === undefined ? sql`` : sql`and id < ${before}`}
        order by id desc limit ${limit}`
    },
    async get(workspaceId, id) {
      const [row] = await sql<ExportJob[]>`select ${columns(sql)} from export_jobs where workspace_id = ${workspaceId} and id = ${id}`
      return row
    },
    downloadPath({ exportId, expiresAt }) {
      const expires = Math.min(Date.now() + DOWNLOAD_MS, expiresAt === null ? Number.POSITIVE_INFINITY : Date.parse(expiresAt))
      const path = `/exports/${exportId}/download?expires=${expires}&signature=${signature(exportId, expires)}`
      return { path, expiresAt: new Date(expires).toISOString() }
    },
    async download(id, expires, given) {
      const [right, told] = [Buffer.from(signature(id, expires)), Buffer.from(given)]
      if (right.length !== told.length || !timingSafeEqual(right, told))
        throw new RunplaneError('FORBIDDEN', `The signature is not right. GET /exports/${id} gives the URL.`)
      if (expires < Date.now()) throw new RunplaneError('FORBIDDEN', `The URL has expired. GET /exports/${id} gives another.`)
      const [job] = await sql<{ id: string; workspace_id: string; bytes: number }[]>`
        select id, workspace_id, bytes from export_jobs where id = ${id} and status = 'completed'`
      const body = job && (await blobs.get(blobName(job)))
      return body && { bytes: job.bytes, body }
    },
    start() {
      timer = setInterval(look, lookMs)
      timer.unref()
      look()
    },
    async close() {
      closed = true
      clearInterval(timer)
      making?.abort(new GivenUp())
      await working
    },
  }
}

const blobName = (job: { id: string; workspace_id: string }) => `exports/${job.workspace_id}/${job.id}.zip`

/** Runs that come after the job are not in it, however long it takes. */
function selectionOf({ runIds, filter }: ExportRequest, createdAt: string): RunSelection {
  if (runIds) return { runIds }
  const before = filter?.createdBefore === undefined || filter.createdBefore > createdAt ? createdAt : filter.createdBefore
  return { filter: { includeArchived: false, ...filter, createdBefore: before } }
}

function columns(sql: Sql) {
  return sql`id as "exportId", status, request, coalesce(runs_total, 0) as "runsTotal", runs_done as "runsDone", bytes, error,
    ${utcColumn(sql, 'created_at', 'createdAt')}, ${utcColumn(sql, 'ended_at', 'endedAt')}, ${utcColumn(sql, 'expires_at', 'expiresAt')}`
}

async function* watched(bytes: AsyncIterable<Buffer>, mark: string, end: { failed: boolean }, signal: AbortSignal): AsyncGenerator<Buffer> {
  let tail = Buffer.alloc(0)
  for await (const piece of bytes) {
    signal.throwIfAborted()
    tail = piece.length >= TAIL_BYTES ? Buffer.from(piece.subarray(-TAIL_BYTES)) : Buffer.concat([tail, piece]).subarray(-TAIL_BYTES)
    yield piece
  }
  end.failed = tail.includes(mark)
}

async function* pieces(text: string): AsyncGenerator<string> {
  yield text
}
