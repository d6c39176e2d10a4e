/** Exports of many runs: a job with progress, a zip of bundles, a signed URL; and the table of runs as CSV. */
import '../support/parquet-loader.js'
import { mkdtempSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { fromBuffer } from 'yauzl'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../../src/domain/ids.js'
import { createBlobs } from '../../src/insight/blobs.js'
import type { RunExport } from '../../src/insight/export.js'
import { createExportJobs, type ExportRequest } from '../../src/insight/export-jobs.js'
import { createPrices } from '../../src/insight/prices.js'
import { silent, type Teardown, testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'

interface Job {
  exportId: string
  status: string
  progress: number
  runsTotal: number
  runsDone: number
  bytes: number
  error: string | null
  downloadUrl?: string
}

async function service(t: Teardown, env: Record<string, string> = {}) {
  const database = await testDatabase(t)
  const dataDir = mkdtempSync(join(tmpdir(), 'exports-'))
  const config = loadConfig({ DATA_DIR: dataDir, ...env }, { envFile: '/nonexistent' })
  const app = await buildApp({ config, database, logger: silent })
  t.teardown(() => app.close())
  const post = async (url: string, body: object) => {
    const answer = await app.inject({ method: 'POST', url, payload: body })
    return { status: answer.statusCode, body: answer.json() }
  }
  const get = async (url: string) => {
    const answer = await app.inject({ method: 'GET', url })
    return { status: answer.statusCode, headers: answer.headers, bytes: answer.rawPayload, body: (): Job & Record<string, unknown> => answer.json() }
  }
  const ended = (id: string) =>
    eventually('the export has ended', async () => {
      const job = (await get(`/exports/${id}`)).body()
      return job.status === 'waiting' || job.status === 'running' ? undefined : job
    })
  return { app, database, config, dataDir, post, get, ended }
}

/** The files of a zip, as texts. */
function filesOf(bytes: Buffer): Promise<Map<string, string>> {
  return new Promise((resolve, reject) => {
    const files = new Map<string, string>()
    fromBuffer(bytes, { lazyEntries: true }, (error, zip) => {
      if (error) return reject(error)
      zip.on('entry', (entry) => {
        zip.openReadStream(entry, async (failed, stream) => {
          if (failed) return reject(failed)
          files.set(entry.fileName, Buffer.concat(await stream.toArray()).toString())
          zip.readEntry()
        })
      })
      zip.on('end', () => resolve(files))
      zip.on('error', reject)
      zip.readEntry()
    })
  })
}

t.test('exports', async (t) => {
  const { post, get, ended, database, dataDir } = await service(t)
  for (const id of ['a', 'b', 'c']) {
    await post('/runs', { id, kind: id === 'c' ? 'other' : 'demo', name: id === 'b' ? '=HYPERLINK("http://bad")' : `run ${id}`, tags: ['@x', 'y,z'] })
    await post(`/runs/${id}/events`, { type: 'step.completed', subject: { kind: 'step', id: 's' }, data: { name: 'build', output: `secret of ${id}` } })
  }

  await t.test('hold a bundle of each run that the filter matches, a table and an index', async (t) => {
    const made = await post('/exports', { filter: { kind: 'demo' } })
    t.match(made, { status: 202, body: { runsTotal: 2, error: null } })
    const job = await ended(made.body.exportId)
    t.match(job, { status: 'completed', progress: 100, runsDone: 2, downloadUrl: /^\/exports\// })
    const file = await get(String(job.downloadUrl))
    t.match(file, { status: 200, headers: { 'content-type': 'application/zip', 'content-length': String(job.bytes), 'content-disposition': /attachment/ } })
    const files = await filesOf(file.bytes)
    t.same([...files.keys()], ['summary.csv', 'runs/a.ndjson', 'runs/b.ndjson', 'index.json'])
    t.match(files.get('runs/a.ndjson'), /"kind":"manifest"/)
    t.match(files.get('runs/a.ndjson'), /secret of a/)
    t.match(JSON.parse(files.get('index.json') ?? ''), {
      profile: 'full',
      runs: [
        { runId: 'a', file: 'runs/a.ndjson' },
        { runId: 'b', file: 'runs/b.ndjson' },
      ],
    })
    const whole = (await get('/runs/a/export?format=ndjson')).bytes.toString()
    t.equal(files.get('runs/a.ndjson'), whole, 'the bundle is that of the run')
  })

  await t.test('of named runs say which are not there, and hold nothing that was said under another profile', async (t) => {
    await post('/runs/c/events', { type: 'run.failed', data: { error: { code: 'secret of c', message: 'secret of c' } } })
    const made = await post('/runs/batch/export', { runIds: ['c', 'nowhere', 'c'], profile: 'no-content', format: 'json' })
    const job = await ended(made.body.exportId)
    const files = await filesOf((await get(String(job.downloadUrl))).bytes)
    t.same([...files.keys()], ['summary.csv', 'runs/c.json', 'index.json'])
    t.match(JSON.parse(files.get('index.json') ?? '').runs, [
      { runId: 'c', file: 'runs/c.json' },
      { runId: 'nowhere', code: 'RUN_NOT_FOUND' },
    ])
    t.notMatch([...files.values()].join(), /secret of/)
    t.notMatch(files.get('summary.csv'), /y,z/)
  })

  await t.test('as zips hold zips', async (t) => {
    const job = await ended((await post('/exports', { runIds: ['a'], format: 'zip', includeRaw: true })).body.exportId)
    t.match(job, { status: 'completed' }, String(job.error))
    const files = await filesOf((await get(String(job.downloadUrl))).bytes)
    t.ok(files.has('runs/a.zip'))
  })

  await t.test('are listed, the latest first, page by page', async (t) => {
    const page = (await get('/exports?limit=2')).body() as unknown as { data: Job[]; nextCursor: string }
    t.equal(page.data.length, 2)
    t.ok((page.data[0]?.exportId ?? '') > (page.data[1]?.exportId ?? ''))
    const rest = (await get(`/exports?limit=2&cursor=${page.nextCursor}`)).body() as unknown as { data: Job[]; nextCursor?: string }
    t.equal(rest.data.length, 1)
    t.notOk(rest.nextCursor)
  })

  await t.test('are downloaded by nobody with a URL that is not right or has expired', async (t) => {
    const [job] = ((await get('/exports')).body() as unknown as { data: Job[] }).data
    const url = new URL(job?.downloadUrl ?? '', 'http://x')
    const ask = async (change: (parameters: URLSearchParams) => void) => {
      const changed = new URL(url)
      change(changed.searchParams)
      return get(`${changed.pathname}${changed.search}`)
    }
    t.equal((await ask(() => {})).status, 200)
    t.equal((await ask((parameters) => parameters.set('expires', String(Date.now() + 1e9)))).status, 403)
    t.equal((await ask((parameters) => parameters.set('signature', 'x'))).status, 403)
    t.equal((await ask((parameters) => parameters.delete('signature'))).status, 400)
    const other = ((await get('/exports')).body() as unknown as { data: Job[] }).data[1]
    t.equal((await get(`/exports/${other?.exportId}/download${url.search}`)).status, 403)
  })

  await t.test('expire, and their files go', async (t) => {
    await database.sql`update export_jobs set expires_at = now() - interval '1 s'`
    const jobs = createExportJobs({ sql: database.sql, ...unused(dataDir), lookMs: 20 })
    t.teardown(() => jobs.close())
    jobs.start()
    const [{ exportId = '' } = {}] = ((await get('/exports')).body() as unknown as { data: Job[] }).data
    await eventually('it has expired', async () => ((await get(`/exports/${exportId}`)).body().status === 'expired' ? true : undefined))
    await eventually('the files are gone', () =>
      readdirSync(join(dataDir, 'blobs'), { recursive: true, encoding: 'utf8' }).some((path) => path.endsWith('.zip')) ? undefined : true,
    )
    t.notOk((await get(`/exports/${exportId}`)).body().downloadUrl)
  })

  await t.test('of another workspace are not found, and what is wrong is refused', async (t) => {
    t.equal((await get(`/exports/${uuidv7()}`)).status, 404)
    t.equal((await get('/exports/x')).status, 400)
    for (const bad of [
      { runIds: ['a'], filter: {} },
      { runIds: [] },
      { format: 'csv' },
      { other: 1 },
      { filter: { other: 1 } },
      { filter: { createdAfter: 'x' } },
      { filter: { kind: 'a\0' } },
      { filter: { tags: ['\ud800'] } },
    ]) {
      t.match(await post('/exports', bad), { status: 400, body: { code: 'VALIDATION_ERROR' } }, JSON.stringify(bad))
    }
    t.match(await post('/runs/batch/export', {}), { status: 400 })
  })

  await t.test('the list as CSV has a row a run, and no formula', async (t) => {
    const answer = await get('/runs.csv?kind=demo')
    t.match(answer.headers, { 'content-type': /^text\/csv/ })
    const lines = answer.bytes.toString().split('\r\n')
    t.equal(lines.length, 4)
    t.match(lines[0], /^run_id,name,kind,status,/)
    t.match(lines[1], /^a,run a,demo,running,/)
    t.match(lines[2], /^b,"'=HYPERLINK\(""http:\/\/bad""\)",demo/)
    t.match(lines[1], /"'@x y,z"/)
    t.equal((await get('/runs.csv?status=nope')).status, 400)
    await post('/runs', { id: 'costs', kind: 'priced' })
    await post('/runs/costs/events', [
      { type: 'run.started', ts: '2026-01-01T00:00:10Z' },
      { type: 'llm.call.completed', subject: { kind: 'llm_call', id: '1' }, data: { model: 'gpt-4o', inputTokens: 1_000_000, outputTokens: 0 } },
      { type: 'run.completed', ts: '2026-01-01T00:00:05Z' },
    ])
    const [names, row] = (await get('/runs.csv?kind=priced')).bytes
      .toString()
      .split('\r\n', 2)
      .map((line) => line.split(','))
    const cell = (name: string) => row?.[names?.indexOf(name) ?? -1]
    t.equal(cell('cost_usd'), '2.5', 'by the prices, where the run told no cost, as in its metrics')
    t.equal(cell('duration_ms'), '0', 'not below zero, where clocks run backwards')
    await post('/runs', { id: 'lines', kind: 'lines', name: 'a\nb' })
    await post('/runs/lines/events', { type: 'run.failed', data: { error: { code: 'X', message: 'first\r=second' } } })
    const quoted = (await get('/runs.csv?kind=lines')).bytes.toString()
    t.match(quoted, /\r\nlines,"a\nb",.*,X,"first\r=second"/, 'a line break is within its cell')
    await post('/runs', { id: 'waits', kind: 'waiting' })
    const [, waiting] = (await get('/runs.csv?kind=waiting')).bytes.toString().split('\r\n', 2)
    t.equal(waiting?.split(',')[names?.indexOf('duration_ms') ?? -1], '', 'none, where the run has not ended')
    t.equal((await get('/runs.csv?kind=none')).bytes.toString().split('\r\n').length, 2, 'the names of the columns alone')
  })
})

/** What a test of the jobs alone does not look at. */
function unused(dataDir: string) {
  const config = loadConfig({ DATA_DIR: dataDir }, { envFile: '/nonexistent' })
  return { blobs: createBlobs(config), exporter: slowExporter(async () => {}), prices: createPrices(), secret: Buffer.alloc(32), config, log: silent }
}

/** Bundles that take as long as the test wants. */
function slowExporter(wait: (runId: string) => Promise<void>) {
  return {
    async open(_workspaceId: string, runId: string): Promise<RunExport> {
      const { Readable } = await import('node:stream')
      const bytes = async function* () {
        await wait(runId)
        yield Buffer.from(`{"kind":"header"}\n${runId === 'bad' ? '{"kind":"error","code":"INTERNAL"}\n' : '{"kind":"manifest"}\n'}`)
      }
      return { etag: '', fileName: `${runId}.ndjson`, contentType: '', stream: () => Readable.from(bytes(), { objectMode: false }), pieces: bytes }
    },
  }
}

t.test('a job', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const dataDir = mkdtempSync(join(tmpdir(), 'exports-'))
  for (const id of ['one', 'bad', 'two']) {
    await sql`insert into runs (key, workspace_id, id, status, created_at, updated_at) values (${uuidv7()}, ${DEFAULT_WORKSPACE_ID}, ${id}, 'running', now() - interval '1 minute', now())`
  }
  const request: ExportRequest = { options: { format: 'ndjson', canonical: true, raw: false, artifacts: false, profile: 'full' } }
  const jobsWith = (wait: (runId: string) => Promise<void>, leaseMs = 30_000) => {
    const jobs = createExportJobs({ sql, ...unused(dataDir), exporter: slowExporter(wait), lookMs: 20, leaseMs })
    t.teardown(() => jobs.close())
    return jobs
  }

  await t.test('whose instance stops is made by another, from the start', async (t) => {
    let reached: () => void = () => {}
    const stuck = new Promise<void>((resolve) => {
      reached = resolve
    })
    let release: () => void = () => {}
    const first = jobsWith((runId) => {
      if (runId !== 'two') return Promise.resolve()
      reached()
      return new Promise((resolve) => {
        release = resolve
      })
    })
    const { exportId } = await first.create(DEFAULT_WORKSPACE_ID, request)
    first.start()
    await stuck
    await eventually('progress is told', async () => ((await first.get(DEFAULT_WORKSPACE_ID, exportId))?.runsDone === 2 ? true : undefined))
    await first.close()
    t.equal((await first.get(DEFAULT_WORKSPACE_ID, exportId))?.status, 'waiting')
    release()
    t.same(
      readdirSync(join(dataDir, 'blobs'), { recursive: true, encoding: 'utf8' }).filter((path) => /\.(zip|draft)$/.test(path)),
      [],
    )
    const second = jobsWith(async () => {})
    second.start()
    const done = await eventually('it is made', async () => {
      const job = await second.get(DEFAULT_WORKSPACE_ID, exportId)
      return job?.status === 'completed' ? job : undefined
    })
    t.match(done, { runsDone: 3, runsTotal: 3 })
    const url = new URL(second.downloadPath(done).path, 'http://x')
    const file = await second.download(exportId, Number(url.searchParams.get('expires')), url.searchParams.get('signature') ?? '')
    const files = await filesOf(Buffer.concat(file ? await file.body.toArray() : []))
    t.match(JSON.parse(files.get('index.json') ?? '').runs, [{ runId: 'one' }, { runId: 'bad', code: 'INTERNAL' }, { runId: 'two' }])
    t.same(Object.keys(JSON.parse(files.get('index.json') ?? '').runs[0]), ['runId', 'file'], 'a bundle that broke off is told, and its neighbours are whole')
    await second.close()
  })

  await t.test('of an instance that was killed is taken when its lease has run out, and by one only', async (t) => {
    const id = uuidv7()
    await sql`
      insert into export_jobs (id, workspace_id, request, status, runs_total, owner_id, owner_expires_at)
      values (${id}, ${DEFAULT_WORKSPACE_ID}, ${JSON.stringify(request)}::text::json, 'running', 3, ${uuidv7()}, now() + interval '300 ms')`
    let made = 0
    const many = [1, 2, 3].map(() =>
      jobsWith(async (runId) => {
        if (runId === 'one') made++
      }),
    )
    for (const jobs of many) jobs.start()
    await eventually('it is made', async () => ((await many[0]?.get(DEFAULT_WORKSPACE_ID, id))?.status === 'completed' ? true : undefined))
    t.equal(made, 1)
    // Else they take the job of the next test.
    await Promise.all(many.map((jobs) => jobs.close()))
  })

  await t.test('that fails says so, and leaves no file', async (t) => {
    const jobs = createExportJobs({
      sql,
      ...unused(dataDir),
      exporter: {
        open: async () => {
          throw new Error('a fault of ours: password')
        },
      },
      lookMs: 20,
    })
    t.teardown(() => jobs.close())
    jobs.start()
    const { exportId } = await jobs.create(DEFAULT_WORKSPACE_ID, request)
    const failed = await eventually('it has failed', async () => {
      const job = await jobs.get(DEFAULT_WORKSPACE_ID, exportId)
      return job?.status === 'failed' ? job : undefined
    })
    t.match(failed.error, /the log has the cause/)
    t.notMatch(failed.error, /password/)
  })
})
