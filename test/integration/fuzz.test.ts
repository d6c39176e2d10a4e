/**
 * Each route is fuzzed from its own schema: the OpenAPI document says what a request looks like. In a request all fits, or one thing does not: a parameter, a
 * header or the body. So what is hostile is not refused for something else, and the routes' own code is entered.
 * No answer is a 5xx (503 OVERLOADED excepted), each from 400 on is problem details with a code of the catalogue, and the document
 * describes each status, code and header. Each route does for some of its requests what it is there for.
 * The service has keys, and the fuzzed workspace is not the only one: the other is the same afterwards, to the byte.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import fc from 'fast-check'
import t from 'tap'
import { RUN_STATUSES } from '../../src/domain/run.js'
import { ERROR_CATALOGUE } from '../../src/errors.js'
import { FORMATS } from '../../src/ingest/normalize.js'
import { arbitraryEvents } from '../support/arbitrary-events.js'
import { type DescribedOperation, undescribed } from '../support/described.js'
import { createClient, eventually, type Problem, seqsUpTo } from '../support/http.js'
import { hostileText, type Known, type Schema, type SchemaValues, schemaValues, textOf } from '../support/schema-values.js'
import { startService } from '../support/service.js'

const RUNS_PER_ROUTE = Number(process.env.FUZZ_RUNS ?? 40)
/** The same in each run, so that the same code gets the same answer; FUZZ_RUNS and another FUZZ_SEED look further. */
const SEED = Number(process.env.FUZZ_SEED ?? 1)
const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const
const ADMIN_KEY = 'the-admin-key-of-the-fuzzed-service'

interface Operation extends DescribedOperation {
  parameters?: { name: string; in: string; required?: boolean; schema?: Schema }[]
  requestBody?: { content?: Record<string, { schema?: Schema }> }
}
interface Document {
  paths: Record<string, Record<string, Operation>>
  components?: { schemas?: Record<string, Schema> }
}
type Content = string | Uint8Array<ArrayBuffer>
interface Request {
  path: string
  headers: Record<string, string>
  body?: { contentType: string; content: Content } | undefined
}

/** Takes whatever webhooks, callbacks and sources send or ask for. */
const receiver = createServer((request, response) => {
  request.resume()
  response.writeHead(204).end()
}).listen(0, '127.0.0.1')
await once(receiver, 'listening')
t.teardown(() => {
  receiver.closeAllConnections()
  receiver.close()
})
const receiverUrl = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/`

const service = await startService(t, { database: 'embedded', env: { ADMIN_API_KEY: ADMIN_KEY, OUTBOUND_ALLOW_PRIVATE: 'true', WEBHOOK_POLL_MS: '100' } })
const authorization = `Bearer ${ADMIN_KEY}`
const client = createClient(service.url, { authorization })
const document = (await client.get<Document>('/openapi.json')).body
const other = createClient(service.url, {
  authorization: `Bearer ${(await client.post<{ key: string }>('/keys', { name: 'other', role: 'admin', workspace: 'untouched' })).body.key}`,
})

const EVENTS = [
  { type: 'step.started', subject: { kind: 'step', id: 'a' }, data: { name: 'a' } },
  { type: 'message.sent', subject: { kind: 'message', id: 'm' }, data: { from: 'a', to: ['b'], text: 'hello' } },
  { type: 'custom.emitted', data: { name: 'x', value: 1 } },
]
const WORKER = 'worker'
const CONTENT = 'the content of an artifact'
const sha256 = createHash('sha256').update(CONTENT).digest('hex')

await other.createRun({ id: 'victim', queue: 'q', tags: ['a'] })
await other.append('victim', EVENTS)
const whatOthersHave = async () => [
  (await other.get('/runs?count=true')).text,
  (await other.get('/runs/victim/raw')).text,
  JSON.stringify(await other.events('victim')),
  JSON.stringify(await other.state('victim')),
]
const before = await whatOthersHave()

async function must<Body = { id: string }>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Body> {
  const answer = await client.send<Body>(method, path, { body, headers })
  if (answer.status >= 300) throw new Error(`${method} ${path} answered ${answer.status}: ${answer.text}`)
  return answer.body
}

interface Job {
  exportId: string
  downloadUrl?: string
}
await client.createRun({ id: 'exported' })
await client.append('exported', EVENTS)
const job = await must<Job>('POST', '/exports', { runIds: ['exported'] })
const download = await eventually('the export is done', async () => (await must<Job>('GET', `/exports/${job.exportId}`)).downloadUrl)
const signed = new URL(download, service.url).searchParams
const bundles = new Map<string, Uint8Array<ArrayBuffer>>()
for (const [contentType, format] of Object.entries({ 'application/zip': 'zip', 'application/x-ndjson': 'ndjson', 'application/json': 'json' }))
  bundles.set(
    contentType,
    new Uint8Array(
      await (await fetch(`${service.url}/runs/exported/export?format=${format}&include=canonical,raw`, { headers: { authorization } })).arrayBuffer(),
    ),
  )

/** What a route finds: runs in each kind of state, and of what its path names, one of its own that it may change and delete. */
interface Seed {
  runIds: string[]
  inPath: Record<string, string[]>
  cursor: string | undefined
}
let seeds = 0
async function seedFor(path: string, method: string): Promise<Seed> {
  const suffix = ++seeds
  const [running, completed, failed] = [`running-${suffix}`, `completed-${suffix}`, `failed-${suffix}`]
  const [suspended, queued, held] = [`suspended-${suffix}`, `queued-${suffix}`, `held-${suffix}`]
  for (const id of [running, completed]) {
    await client.createRun({ id })
    await must('POST', `/runs/${id}/events`, EVENTS)
    await must('POST', `/runs/${id}/artifacts?mediaType=text/plain`, CONTENT, { 'content-type': 'text/plain' })
  }
  for (const id of [failed, suspended]) {
    await client.createRun({ id })
    await must('POST', `/runs/${id}/events`, EVENTS)
  }
  await must('POST', `/runs/${completed}/events`, { type: 'run.completed' })
  await must('POST', `/runs/${failed}/events`, { type: 'run.failed' })
  await must('POST', `/runs/${suspended}/suspend`)
  await client.createRun({ id: queued, queue: 'q', tags: ['a'] })
  await client.createRun({ id: held, queue: held })
  await must('POST', '/runs/claim', { queue: held, workerId: WORKER, leaseMs: 600_000 })
  // Most commands can be obeyed in one state only, and once: that run comes more often than the others.
  const subject = /heartbeat|release/.test(path)
    ? held
    : path.endsWith('/resume')
      ? suspended
      : path.endsWith('/retry')
        ? failed
        : method === 'delete'
          ? completed
          : running
  const runIds = [subject, subject, subject, running, completed, failed, suspended, queued, held]
  const inPath: Record<string, string[]> = { id: runIds, sha256: [sha256], name: ['q'] }
  if (path.startsWith('/exports')) inPath.id = [job.exportId]
  if (path.startsWith('/keys')) inPath.id = [(await must('POST', '/keys', { name: 'to be revoked', role: 'guest' })).id]
  if (path.startsWith('/webhooks')) {
    // A workspace has so many, and what was made for the routes before may be all of them.
    for (const webhook of (await must<{ data: { id: string }[] }>('GET', '/webhooks')).data) await client.send('DELETE', `/webhooks/${webhook.id}`)
    const { id } = await must('POST', '/webhooks', { url: receiverUrl })
    inPath.id = [id]
    if (path.includes('deliveries')) {
      await must('POST', `/runs/${running}/events`, EVENTS)
      const deliveries = await eventually('there are deliveries that have ended', async () => {
        const { data } = await must<{ data: { id: string }[] }>('GET', `/webhooks/${id}/deliveries?status=delivered`)
        return data.length >= EVENTS.length ? data : undefined
      })
      inPath.deliveryId = deliveries.map((delivery) => delivery.id)
    }
  }
  const hasCursor = method === 'get' && document.paths[path]?.get?.parameters?.some(({ name }) => name === 'cursor')
  const first = hasCursor && path !== '/stream' ? await client.get<{ nextCursor?: string }>(`${path.replace('{id}', inPath.id?.[0] ?? '')}?limit=1`) : undefined
  return { runIds, inPath, cursor: path === '/stream' ? `${running}:1` : first?.body.nextCursor }
}

const of = (...values: unknown[]) => fc.constantFrom(...values)
const listsOf = (values: readonly string[]) => fc.subarray([...values], { minLength: 1, maxLength: 3 }).map((some) => some.join())
const time = fc.date({ min: new Date('2020-01-01'), max: new Date('2030-01-01'), noInvalidDate: true }).map((date) => date.toISOString())
const headerText = fc.stringMatching(/^[!-~]{1,20}$/)
const worker = fc.oneof({ weight: 3, arbitrary: of(WORKER) }, { weight: 1, arbitrary: headerText })

/** What the schema leaves open, by the name of the parameter or member. */
function knownTo({ runIds, cursor }: Seed, path: string): Known {
  const runId = of(...runIds)
  const seq = of('0', '1', '2', '3')
  const runNames = ['runId', 'runIds', 'left', 'right', 'leftRunId', 'rightRunId', 'parentRunId', 'run']
  return {
    ...Object.fromEntries(runNames.map((name) => [name, runId])),
    runs: path === '/stream' ? listsOf([...new Set(runIds)]) : runId,
    afterSeq: seq,
    afterRawSeq: seq,
    'last-event-id': path === '/stream' ? of(...runIds.map((id) => `${id}:1`)) : seq,
    cursor: cursor === undefined ? undefined : of(cursor),
    ...(path.startsWith('/webhooks') ? {} : { status: path === '/runs' || path === '/runs.csv' ? listsOf(RUN_STATUSES) : of(...RUN_STATUSES) }),
    type: of('step.started', 'custom.emitted', 'run.created'),
    subject: of('step/a', 'run/x'),
    format: of(...FORMATS.map(({ name }) => name)),
    sections: listsOf(['metrics', 'steps', 'stateDiff', 'firstDivergence']),
    ts: time,
    from: time,
    to: time,
    afterTs: time,
    beforeTs: time,
    expires: of(signed.get('expires')),
    signature: of(signed.get('signature')),
    url: of(receiverUrl),
    secret: fc.uint8Array({ minLength: 24, maxLength: 64 }).map((bytes) => `whsec_${Buffer.from(bytes).toString('base64')}`),
    base64: fc.base64String({ maxLength: 40 }),
    // A claim may wait for a minute: then a route would take as long as that.
    waitMs: fc.integer({ min: 0, max: 200 }),
    sha256: of(sha256),
    'if-match': of('"4"', '"5"'),
    'if-none-match': of('"1"', '"5"', `"${sha256}"`, '*'),
    'accept-encoding': of('gzip', 'identity'),
    prefer: of('return=minimal'),
    'idempotency-key': headerText,
    'producer-id': headerText,
    'x-worker-id': worker,
    workerId: worker,
    queue: of('q', ...runIds.filter((id) => id.startsWith('held'))),
    uri: of('https://example.com/x'),
  }
}

const EITHER = [
  ['runIds', 'filter'],
  ['left', 'leftRunId'],
  ['queue', 'queues'],
  ['inline', 'text', 'base64', 'uri'],
]
const TOGETHER = [
  ['left', 'right'],
  ['leftRunId', 'rightRunId'],
  ['producer-id', 'producer-epoch', 'producer-seq'],
]

/** A bundle that was cut off, or has a byte that is another. */
const brokenBundle = (contentType: string) =>
  fc.tuple(fc.double({ min: 0, max: 0.999, noNaN: true }), fc.integer({ min: 0, max: 256 })).map(([place, byte]) => {
    const bundle = new Uint8Array(bundles.get(contentType) ?? [])
    const at = Math.floor(bundle.length * place)
    if (byte === 256) return bundle.slice(0, at)
    bundle[at] = byte
    return bundle
  })

/** Bodies whose schema does not say what is in them, or only what it may be at the most. */
function bodyOf(path: string, contentType: string, schema: Schema | undefined, values: SchemaValues): fc.Arbitrary<Content> {
  if (path === '/runs/import') return fc.constant(bundles.get(contentType) ?? '')
  if (contentType === '*/*') return fc.constantFrom(CONTENT, '', '\0')
  if (path !== '/runs/{id}/events' && path !== '/ingest/explain') return values.fitting(schema).map(textOf)
  const posted = arbitraryEvents({ minLength: 1, maxLength: 5 }).map((events) => events.map(({ type, subject, data }) => ({ type, subject, data })))
  if (contentType !== 'application/json') return posted.map((events) => events.map((event) => `${JSON.stringify(event)}\n`).join(''))
  return fc.oneof(posted.map(textOf), values.fitting(schema).map(textOf))
}

const isHeaderValue = (text: string) => /^[\t\x20-\x7e\x80-\xff]*$/.test(text)
/** Lone surrogates have no percent-encoding. */
const encode = (value: unknown) => encodeURIComponent(textOf(value).toWellFormed())

function requestOf(path: string, operation: Operation, seed: Seed): fc.Arbitrary<Request> {
  const values = schemaValues({ known: knownTo(seed, path), together: TOGETHER, either: EITHER, resolve: (name) => document.components?.schemas?.[name] })
  const parameters = operation.parameters ?? []
  const contents = Object.entries(operation.requestBody?.content ?? {})
  const optional = parameters.filter(({ required, in: where, name }) => !required && where !== 'path' && !(name === 'cursor' && !seed.cursor))
  // A name may be both in the path and the query.
  const keyOf = ({ name, in: where }: { name: string; in: string }) => `${where} ${name}`
  const keysInPath = Array.from(path.matchAll(/\{([^}]+)\}/g), ([, name]) => `path ${name}`)
  const all = new Map(parameters.map((parameter) => [keyOf(parameter), parameter]))
  const hostileOnes = [...new Set([...all.keys(), ...keysInPath]), ...(contents.length > 0 ? ['body', 'body', 'content type'] : [])]

  const contentOf = (hostile: string | undefined): fc.Arbitrary<Request['body']> => {
    if (contents.length === 0) return fc.constant(undefined)
    if (hostile === 'content type')
      return of('text/plain', 'application/x-ndjson', 'application/xml').map((contentType) => ({
        contentType: String(contentType),
        content: '{"type":"custom.emitted","data":{"name":"x"}}\n',
      }))
    return fc.constantFrom(...contents).chain(([described, { schema }]) => {
      const contentType = described === '*/*' ? 'text/x-fuzzed' : described
      const nearly: fc.Arbitrary<Content> = path === '/runs/import' ? brokenBundle(described) : values.nearlyFitting(schema).map(textOf)
      const content =
        hostile === 'body' ? fc.oneof({ weight: 8, arbitrary: nearly }, { weight: 1, arbitrary: hostileText }) : bodyOf(path, described, schema, values)
      return content.map((content) => ({ contentType, content }))
    })
  }

  const parameterOf = (key: string, hostile: string | undefined): fc.Arbitrary<unknown> => {
    const [where = '', name = ''] = key.split(' ')
    const schema = all.get(key)?.schema
    if (where === 'path') {
      if (key === hostile) return hostileText
      return fc.oneof({ weight: 9, arbitrary: of(...(seed.inPath[name] ?? ['?'])) }, { weight: 1, arbitrary: values.fitting(schema) })
    }
    if (where === 'header' && key === hostile) return values.hostile(schema, name).filter((value) => isHeaderValue(textOf(value)))
    return key === hostile ? values.hostile(schema, name) : values.fitting(schema, name)
  }

  return fc
    .tuple(
      fc.option(fc.constantFrom<string | undefined>(undefined, ...hostileOnes), { nil: undefined, freq: 3 }),
      values.someOf(optional.map(({ name }) => name)),
    )
    .chain(([hostile, some]) => {
      const sent = [...all.values()].filter(
        (parameter) => parameter.required || keyOf(parameter) === hostile || (parameter.in !== 'path' && some.includes(parameter.name)),
      )
      const keys = [...new Set([...sent.map(keyOf), ...keysInPath])]
      return fc.record({ given: fc.record(Object.fromEntries(keys.map((key) => [key, parameterOf(key, hostile)]))), body: contentOf(hostile) })
    })
    .map(({ given, body }) => {
      const at = (where: string) =>
        Object.entries(given).flatMap(([key, value]) => (key.startsWith(`${where} `) ? [[key.slice(where.length + 1), value] as const] : []))
      const inPath = Object.fromEntries(at('path'))
      const filled = path.replace(/\{([^}]+)\}/g, (_, name: string) => encode(inPath[name]) || '%20')
      const search = at('query').map(([name, value]) => `${encodeURIComponent(name)}=${encode(value)}`)
      return {
        path: search.length > 0 ? `${filled}?${search.join('&')}` : filled,
        headers: Object.fromEntries(at('header').map(([name, value]) => [name, textOf(value)])),
        body,
      }
    })
}

/** Where a stream has given what there was, it says one of these. */
const SETTLED = /^event: (caught_up|end|error)$/m

/** The status and, where it is an error, the problem. A stream is read until it has given what there is, and left. */
async function answerTo(method: string, { path, headers, body }: Request): Promise<{ status: number; type: string; text: string; headers: Headers }> {
  const leave = new AbortController()
  const answer = await fetch(service.url + path, {
    method: method.toUpperCase(),
    headers: { ...headers, authorization, ...(body ? { 'content-type': body.contentType } : {}) },
    redirect: 'manual',
    signal: AbortSignal.any([leave.signal, AbortSignal.timeout(10_000)]),
    ...(body ? { body: body.content } : {}),
  })
  const type = answer.headers.get('content-type') ?? ''
  if (!type.startsWith('text/event-stream')) return { status: answer.status, type, text: await answer.text(), headers: answer.headers }
  let text = ''
  // What is replayed at its own pace takes its time: it is left after the first piece.
  for await (const piece of answer.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    text += piece
    if (SETTLED.test(text) || path.includes('/replay/')) break
  }
  leave.abort()
  return { status: answer.status, type, text, headers: answer.headers }
}

const isCode = (code: unknown): boolean => typeof code === 'string' && Object.hasOwn(ERROR_CATALOGUE, code)

/** @throws for an answer that no request may get. */
function check(operation: Operation, answer: Awaited<ReturnType<typeof answerTo>>): void {
  const { status, type, text } = answer
  const problem: Partial<Problem> & { results?: unknown[] } = status < 400 || text === '' ? {} : JSON.parse(text)
  const missing = undescribed(operation, answer, problem.code)
  if (missing !== undefined) throw new Error(`the document does not describe ${missing}: ${text.slice(0, 500)}`)
  if (type.startsWith('text/event-stream') && text.includes('"INTERNAL"')) throw new Error(`a stream ends with ${text.slice(-500)}`)
  if (status < 400) return
  if (status === 503 && problem.code === 'OVERLOADED') return
  if (status >= 500) throw new Error(`${status} ${text}`)
  if (status === 422 && problem.results) return
  if (!type.startsWith('application/problem+json') || !isCode(problem.code)) throw new Error(`${status} ${type} ${text.slice(0, 500)}`)
}

let routes = 0
for (const [path, item] of Object.entries(document.paths)) {
  for (const method of METHODS) {
    const operation = item[method]
    if (!operation) continue
    routes++
    t.test(`${method.toUpperCase()} ${path} answers whatever is sent to it`, { timeout: 40_000 + 500 * RUNS_PER_ROUTE }, async (t) => {
      const seed = await seedFor(path, method)
      const statuses: Record<string, number> = {}
      await fc.assert(
        fc.asyncProperty(requestOf(path, operation, seed), async (request) => {
          const answer = await answerTo(method, request)
          statuses[answer.status] = (statuses[answer.status] ?? 0) + 1
          check(operation, answer)
        }),
        { numRuns: RUNS_PER_ROUTE, seed: SEED, endOnFailure: true },
      )
      t.ok(
        Object.keys(statuses).some((status) => Number(status) < 400),
        `some of the requests are granted: ${JSON.stringify(statuses)}`,
      )
      for (const runId of new Set(seed.runIds)) {
        if ((await client.get(`/runs/${runId}`)).status === 404) continue
        const seqs = (await client.events(runId)).map((event) => event.seq)
        t.same(seqs, seqsUpTo((await client.state(runId)).version), `the log of ${runId} has no holes`)
      }
      t.equal((await client.get('/healthz')).status, 200)
    })
  }
}

t.test('the document names routes to fuzz', async (t) => {
  t.ok(routes > 60, `${routes} of them`)
})

t.test('what another workspace has is as it was', async (t) => {
  t.same(await whatOthersHave(), before)
})

t.test('no stream is left open', async (t) => {
  await eventually('no stream is open', async () => /^runplane_streams_open 0$/m.test((await client.get('/metrics')).text) || undefined)
  t.equal((await client.get('/readyz')).status, 200)
})
