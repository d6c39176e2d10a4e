/** The OpenAPI document and the page that shows it. */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { STATUS_CODES } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import { silent, testDatabase } from '../support/database.js'

interface Operation {
  operationId?: string
  summary?: string
  tags?: string[]
  security?: unknown[]
  requestBody?: { content: Record<string, { schema: object }> }
  responses: Record<string, { description: string; headers?: Record<string, { description?: string; schema: object }>; content?: Record<string, unknown> }>
}
interface OpenApi {
  openapi: string
  tags: { name: string }[]
  paths: Record<string, Record<string, Operation>>
  components: { schemas: Record<string, unknown> }
}

/** What stands for an answer of which nobody has said what it is. */
const UNSAID = new RegExp(`^(Default Response|${Object.values(STATUS_CODES).join('|')})$`)

const app = await buildApp({ config: loadConfig({}, { envFile: '/nonexistent' }), database: await testDatabase(t), logger: silent })
t.teardown(() => app.close())
await app.ready()
const answer = await app.inject('/openapi.json')
const document = answer.json<OpenApi>()
const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ name: `${method.toUpperCase()} ${path}`, operation })),
)

t.test('the document is OpenAPI 3.1, and the linter finds nothing in it', async (t) => {
  t.equal(document.openapi, '3.1.0')
  const folder = await mkdtemp(join(tmpdir(), 'openapi-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const file = join(folder, 'openapi.json')
  await writeFile(file, answer.body)
  const linted = await promisify(execFile)('node_modules/.bin/redocly', ['lint', file, '--format', 'json'], {
    env: { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' },
    maxBuffer: 16 * 1024 * 1024,
  }).catch((error: { stdout: string }) => error)
  const { totals, problems } = JSON.parse(linted.stdout.slice(linted.stdout.indexOf('{')))
  t.match(totals, { errors: 0, warnings: 0 })
  t.same(
    problems.map((problem: { message: string; location: { pointer: string }[] }) => `${problem.location[0]?.pointer}: ${problem.message}`),
    [],
  )
})

t.test('the routes of the contract are in it', async (t) => {
  const names = operations.map(({ name }) => name)
  for (const name of [
    'POST /runs',
    'GET /runs',
    'GET /runs/{id}',
    'POST /runs/validate',
    'POST /runs/{id}/events',
    'GET /runs/{id}/events',
    'GET /runs/{id}/raw',
    'GET /runs/{id}/state',
    'GET /runs/{id}/stream',
    'GET /events',
    'POST /ingest/explain',
    'GET /keys',
    'POST /keys',
    'DELETE /keys/{id}',
    'GET /healthz',
    'GET /readyz',
    'GET /metrics',
    'GET /openapi.json',
  ]) {
    t.ok(names.includes(name), name)
  }
})

t.test('every operation has a name of its own, a summary, a declared tag, described answers and its problems', async (t) => {
  const tags = document.tags.map(({ name }) => name)
  for (const { name, operation } of operations) {
    t.ok(operation.operationId, `${name}: operationId`)
    t.ok(operation.summary, `${name}: summary`)
    t.ok(operation.tags?.length === 1 && operation.tags.every((tag) => tags.includes(tag)), `${name}: one of the tags ${tags}`)
    t.ok(
      Object.keys(operation.responses).some((status) => /^2/.test(status)),
      `${name}: what it answers`,
    )
    for (const [status, response] of Object.entries(operation.responses)) t.notMatch(response.description, UNSAID, `${name}: ${status} is described`)
    t.match(operation.responses['4XX'], { content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } } }, `${name}: problems`)
  }
  const ids = operations.map(({ operation }) => operation.operationId)
  t.equal(new Set(ids).size, ids.length)
})

t.test('an answer has its headers, and a refusal its codes', async (t) => {
  const responsesOf = (wanted: string) => operations.find(({ name }) => name === wanted)?.operation.responses ?? {}
  const headersOf = (name: string, status: number) => Object.keys(responsesOf(name)[status]?.headers ?? {})
  for (const [name, status, ...headers] of [
    ['POST /runs', 201, 'Location'],
    ['GET /runs/{id}/state', 200, 'ETag'],
    ['GET /runs/{id}/state', 304, 'ETag'],
    ['POST /runs/{id}/events', 207, 'Producer-Epoch', 'Producer-Seq'],
    ['POST /runs/{id}/events', 409, 'Producer-Expected-Seq', 'Producer-Received-Seq'],
    ['POST /runs/{id}/events', 403, 'Producer-Epoch'],
    ['GET /exports/{id}/download', 200, 'Content-Disposition'],
    ['GET /runs', 401, 'WWW-Authenticate'],
    ['POST /runs', 415, 'Accept-Encoding'],
    ['GET /runs', 503, 'Retry-After'],
  ] as const) {
    t.same(headersOf(name, status), [...headers, 'x-request-id'], `${name} ${status}`)
  }
  t.match(responsesOf('POST /runs')[201]?.headers?.Location, { description: String, schema: { type: 'string' } })
  t.same(Object.keys(responsesOf('POST /runs/{id}/events')).sort(), [
    '200',
    '207',
    '400',
    '401',
    '403',
    '404',
    '408',
    '409',
    '412',
    '413',
    '415',
    '422',
    '4XX',
    '500',
    '503',
  ])
  t.match(responsesOf('POST /runs/{id}/events')[409]?.description, /`PRODUCER_GAP`: .*`LEASE_LOST`: .*`IDEMPOTENCY_CONFLICT`: /)
  t.notOk(responsesOf('GET /healthz')[401], 'anyone may ask')
})

t.test('shared schemas are components under their own names', async (t) => {
  t.match(Object.keys(document.components.schemas), ['Problem'])
  t.same(
    Object.keys(document.components.schemas).filter((name) => !/^[A-Z][A-Za-z]+$/.test(name)),
    [],
  )
})

t.test('the page for people is served from here, and loads nothing from elsewhere', async (t) => {
  const page = await app.inject('/docs')
  t.match(page, { statusCode: 200, headers: { 'content-type': /^text\/html/, 'content-security-policy': /^default-src 'none'; script-src 'self';/ } })
  const sources = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1] ?? '')
  t.ok(sources.length > 4)
  for (const source of sources) t.equal((await app.inject(source)).statusCode, 200, source)
  const settings = await app.inject('/docs/static/swagger-initializer.js')
  t.match(settings.body, /"validatorUrl":null/)
})

t.test('what a route reads and checks itself is documented as well', async (t) => {
  const bodyOf = (wanted: string) => operations.find(({ name }) => name === wanted)?.operation.requestBody?.content ?? {}
  for (const name of ['POST /runs/{id}/events', 'POST /ingest/explain']) {
    t.same(Object.keys(bodyOf(name)), ['application/json', 'application/x-ndjson', 'application/ndjson', 'application/jsonl', 'application/x-jsonlines'], name)
    t.match(bodyOf(name)['application/json']?.schema, { anyOf: [{ $ref: '#/components/schemas/PostedEvent' }] }, name)
  }
  t.match(document.components.schemas.PostedEvent, { properties: { type: {}, data: {}, subject: {} } })
  t.same(Object.keys(bodyOf('POST /runs/import')), ['application/zip', 'application/x-ndjson', 'application/json'])
  t.same(Object.keys(bodyOf('POST /runs/{id}/artifacts')), ['application/json', '*/*'])
})
