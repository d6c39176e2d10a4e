/**
 * Each route is fuzzed from its own schema: the OpenAPI document says what a request looks like, and values that nearly fit
 * are sent. No answer is a 5xx (503 OVERLOADED excepted), each from 400 on is problem details with a code of the catalogue, and the document
 * describes each status, code and header.
 */
import fc from 'fast-check'
import t from 'tap'
import { ERROR_CATALOGUE } from '../../src/errors.js'
import { type DescribedOperation, undescribed } from '../support/described.js'
import { createClient, type Problem } from '../support/http.js'
import { startService } from '../support/service.js'

const RUNS_PER_ROUTE = Number(process.env.FUZZ_RUNS ?? 40)
const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const
const STRINGS = [
  '',
  ' ',
  '0',
  '-1',
  '1.5',
  '1e3',
  '99999999999999999999',
  'null',
  'true',
  '%00',
  '\0',
  '\ud800',
  '../..',
  '__proto__',
  'constructor',
  "' or 1=1 --",
  '\u202e',
  'é',
  '😀',
  'a'.repeat(3000),
  '2026-11-21T00:00:00Z',
  '[]',
  '{}',
  '{"a":1}',
]

interface Schema {
  $ref?: string
  type?: string | string[]
  enum?: unknown[]
  const?: unknown
  anyOf?: Schema[]
  oneOf?: Schema[]
  allOf?: Schema[]
  items?: Schema
  properties?: Record<string, Schema>
  required?: string[]
  additionalProperties?: boolean | Schema
  patternProperties?: Record<string, Schema>
  minimum?: number
  maximum?: number
}
interface Operation extends DescribedOperation {
  operationId?: string
  parameters?: { name: string; in: string; required?: boolean; schema?: Schema }[]
  requestBody?: { content?: Record<string, { schema?: Schema }> }
}
interface Document {
  paths: Record<string, Record<string, Operation>>
  components?: { schemas?: Record<string, Schema> }
}

const service = await startService(t, { database: 'embedded' })
const client = createClient(service.url)
const document = (await client.get<Document>('/openapi.json')).body
await client.createRun({ id: 'fuzzed' })
await client.append('fuzzed', { type: 'step.started', subject: { kind: 'step', id: 'a' }, data: { name: 'a' } })

const odd: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(...STRINGS, null, true, false, 0, -1, 1.5, 1e308, 2 ** 53, [], {}, [[]], [null], { a: { b: {} } }),
  fc.jsonValue({ maxDepth: 3 }),
)

/** A claim may wait for a minute: then the time of a route would be over with its first request, and nothing would have been tried. */
const SHORT_WAIT = fc.oneof({ weight: 9, arbitrary: fc.integer({ min: -1, max: 200 }) }, { weight: 1, arbitrary: odd })

function resolve(schema: Schema): Schema {
  const name = schema.$ref?.split('/').at(-1)
  return name === undefined ? schema : (document.components?.schemas?.[name] ?? {})
}

/** Values that fit a schema, mostly. */
function valueThatFits(given: Schema | undefined, depth = 0): fc.Arbitrary<unknown> {
  if (!given || depth > 5) return odd
  const schema = resolve(given)
  const fits = (): fc.Arbitrary<unknown> => {
    if (schema.const !== undefined) return fc.constant(schema.const)
    if (schema.enum) return fc.constantFrom(...schema.enum)
    const choices = schema.anyOf ?? schema.oneOf
    if (choices) return fc.oneof(...choices.map((choice) => valueThatFits(choice, depth + 1)))
    if (schema.allOf) return valueThatFits(schema.allOf[0], depth + 1)
    const type = Array.isArray(schema.type) ? schema.type[0] : schema.type
    switch (type) {
      case 'integer':
      case 'number':
        return fc.integer({ min: Math.ceil(Math.max(schema.minimum ?? -10, -(2 ** 31))), max: Math.floor(Math.min(schema.maximum ?? 1000, 2 ** 31)) })
      case 'boolean':
        return fc.boolean()
      case 'null':
        return fc.constant(null)
      case 'array':
        return fc.array(valueThatFits(schema.items, depth + 1), { maxLength: 4 })
      case 'string':
        return fc.oneof(
          fc.constantFrom(...STRINGS, 'fuzzed', 'custom.emitted', 'run.started', 'step.started'),
          fc.string({ maxLength: 20 }),
          fc.string({ unit: 'binary', maxLength: 20 }),
        )
      case 'object': {
        const properties = Object.entries(schema.properties ?? {})
        const fields = Object.fromEntries(properties.map(([name, property]) => [name, name === 'waitMs' ? SHORT_WAIT : valueThatFits(property, depth + 1)]))
        const required = (schema.required ?? []).filter((name) => name in fields)
        return fc.record(fields, { requiredKeys: required })
      }
      default:
        return odd
    }
  }
  return fc.oneof({ weight: 9, arbitrary: fits() }, { weight: 1, arbitrary: odd })
}

const isHeaderValue = (text: string) => /^[\t\x20-\x7e\x80-\xff]*$/.test(text)
const asText = (value: unknown) => (typeof value === 'string' ? value : JSON.stringify(value))
/** Lone surrogates have no percent-encoding. */
const encode = (value: unknown) => encodeURIComponent(asText(value).toWellFormed())

interface Request {
  path: string
  headers: Record<string, string>
  body?: { contentType: string; text: string }
}

function requestOf(path: string, operation: Operation): fc.Arbitrary<Request> {
  const parameters = operation.parameters ?? []
  const pathNames = [...path.matchAll(/\{([^}]+)\}/g)].map((match) => match[1] ?? '')
  const inPath = fc.record(
    Object.fromEntries(
      pathNames.map((name) => [
        name,
        fc.oneof({ weight: 4, arbitrary: fc.constant<unknown>('fuzzed') }, { weight: 1, arbitrary: fc.constantFrom<unknown>(...STRINGS) }),
      ]),
    ),
  )
  const named = (where: string) => parameters.filter((parameter) => parameter.in === where)
  const query = fc.record(Object.fromEntries(named('query').map(({ name, schema }) => [name, valueThatFits(schema)])), { requiredKeys: [] })
  const headers = fc.record(Object.fromEntries(named('header').map(({ name, schema }) => [name, valueThatFits(schema)])), { requiredKeys: [] })
  const contents = Object.entries(operation.requestBody?.content ?? {})
  const body =
    contents.length === 0
      ? fc.constant(undefined)
      : fc.constantFrom(...contents).chain(([contentType, { schema }]) =>
          fc.oneof(
            { weight: 8, arbitrary: valueThatFits(schema).map((value) => ({ contentType, text: JSON.stringify(value) ?? '' })) },
            { weight: 1, arbitrary: fc.constantFrom(...STRINGS).map((text) => ({ contentType, text })) },
            {
              weight: 1,
              arbitrary: fc
                .constantFrom('text/plain', 'application/x-ndjson', 'application/xml')
                .map((other) => ({ contentType: other, text: '{"type":"custom.emitted","data":{"name":"x"}}\n' })),
            },
          ),
        )
  return fc.record({ inPath, query, headers, body }).map((request) => {
    const search = Object.entries(request.query).map(([name, value]) => `${encodeURIComponent(name)}=${encode(value)}`)
    const filled = path.replace(/\{([^}]+)\}/g, (_, name: string) => encode(request.inPath[name] ?? 'fuzzed') || '%20')
    const kept = Object.entries(request.headers).map(([name, value]) => [name, asText(value)] as const)
    return {
      path: search.length > 0 ? `${filled}?${search.join('&')}` : filled,
      // Fetch refuses to send what is no header value; what the wire refuses is in hostile.test.ts.
      headers: Object.fromEntries(
        kept.filter(([name, value]) => isHeaderValue(value) && !['content-type', 'content-length', 'host'].includes(name.toLowerCase())),
      ),
      ...(request.body ? { body: request.body } : {}),
    }
  })
}

/** The status and, where it is an error, the problem. A stream is left as soon as its headers are there. */
async function answerTo(method: string, request: Request): Promise<{ status: number; type: string; text: string; headers: Headers }> {
  const leave = new AbortController()
  const answer = await fetch(service.url + request.path, {
    method: method.toUpperCase(),
    headers: { ...request.headers, ...(request.body ? { 'content-type': request.body.contentType } : {}) },
    redirect: 'manual',
    signal: AbortSignal.any([leave.signal, AbortSignal.timeout(10_000)]),
    ...(request.body && method !== 'get' ? { body: request.body.text } : {}),
  })
  const type = answer.headers.get('content-type') ?? ''
  if (type.startsWith('text/event-stream')) {
    leave.abort()
    return { status: answer.status, type, text: '', headers: answer.headers }
  }
  return { status: answer.status, type, text: await answer.text(), headers: answer.headers }
}

const isCode = (code: unknown): boolean => typeof code === 'string' && Object.hasOwn(ERROR_CATALOGUE, code)

let routes = 0
for (const [path, item] of Object.entries(document.paths)) {
  for (const method of METHODS) {
    const operation = item[method]
    // The first key closes a service that is open: what follows would only see 401.
    if (!operation || (path.startsWith('/keys') && method !== 'get')) continue
    routes++
    t.test(`${method.toUpperCase()} ${path} answers whatever is sent to it`, { timeout: 60_000 }, async (t) => {
      await fc.assert(
        fc.asyncProperty(requestOf(path, operation), async (request) => {
          const answer = await answerTo(method, request)
          const problem: Partial<Problem> & { results?: unknown[] } = answer.status < 400 || answer.text === '' ? {} : JSON.parse(answer.text)
          const missing = undescribed(operation, answer, problem.code)
          if (missing !== undefined) throw new Error(`the document does not describe ${missing}: ${answer.text.slice(0, 500)}`)
          if (answer.status < 400) return
          if (answer.status === 503 && problem.code === 'OVERLOADED') return
          if (answer.status >= 500) throw new Error(`${answer.status} ${answer.text}`)
          if (answer.status === 422 && problem.results) return
          if (!answer.type.startsWith('application/problem+json') || !isCode(problem.code))
            throw new Error(`${answer.status} ${answer.type} ${answer.text.slice(0, 500)}`)
        }),
        { numRuns: RUNS_PER_ROUTE, endOnFailure: true, interruptAfterTimeLimit: 8000 },
      )
      t.equal((await client.get('/healthz')).status, 200)
    })
  }
}

t.test('the document names routes to fuzz', async (t) => {
  t.ok(routes > 10, `${routes} of them`)
  t.same(
    (await client.events('fuzzed')).map((event) => event.seq),
    Array.from({ length: (await client.state('fuzzed')).version }, (_, index) => index + 1),
    'and the log of the run that was fuzzed has no holes',
  )
})
