/**
 * Bad requests: each gets a 4xx with a code, or is stored as what it is where the contract says so, and leaves nothing half
 * stored. After each the head of the run, its status and the service are what they were.
 */
import { connect } from 'node:net'
import t from 'tap'
import { EVENT_TYPES } from '../../src/domain/canonical-event.js'
import { type CanonicalEvent, createClient, type Page, type Problem, type RunRecord, seqsUpTo } from '../support/http.js'
import { startService } from '../support/service.js'

const service = await startService(t, { database: 'embedded', env: { MAX_BODY_BYTES: '1048576', BODY_TIMEOUT_MS: '1000' } })
const client = createClient(service.url)
const run = await client.createRun({ id: 'victim' })
await client.append(run.runId, { type: 'step.started', subject: { kind: 'step', id: 'a' }, data: { name: 'a' } })
const before = (await client.get<RunRecord>('/runs/victim')).body
let untouched = JSON.stringify({ lastSeq: before.lastSeq, lastRawSeq: before.lastRawSeq, status: before.status })
const runsBefore = (await client.get<Page<RunRecord>>('/runs?count=true')).body.total

const event = (fields: Record<string, unknown> = {}) => ({ type: 'custom.emitted', data: { name: 'x' }, ...fields })
const bytes = (...parts: (string | number[])[]) => Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : Buffer.from(part))))
const deep = (levels: number, open: string, close: string) => open.repeat(levels) + close.repeat(levels)
const text = (length: number) => 'x'.repeat(length)

interface Bad {
  name: string
  method?: string
  path?: string
  body?: unknown
  contentType?: string
  headers?: Record<string, string>
  /** Statuses that are right; 400 if it is not said. */
  allowed?: number[]
}

const POST_EVENTS: Bad[] = [
  { name: 'no body', body: '' },
  { name: 'no content type and no body', body: undefined },
  { name: 'only blanks', body: ' \n\t ' },
  { name: 'an empty array', body: '[]' },
  { name: 'an empty list of events', body: '{"events":[]}' },
  { name: 'half an object', body: '{"type":"custom.emitted","data":{"name":"x"' },
  { name: 'a second value behind the first', body: `${JSON.stringify(event())}${JSON.stringify(event())}` },
  { name: 'a trailing comma', body: '[{"type":"custom.emitted","data":{"name":"x"}},]' },
  { name: 'single quotes', body: "{'type':'custom.emitted'}" },
  { name: 'a comment', body: '/* x */{"type":"custom.emitted","data":{"name":"x"}}' },
  { name: 'NaN', body: '{"type":"custom.emitted","data":{"name":"x","value":NaN}}' },
  { name: 'a raw control character in a string', body: '{"type":"custom.emitted","data":{"name":"a\u0001b"}}' },
  { name: 'a bare NUL', body: '\0' },
  { name: 'a NUL inside', body: '{"type":"custom.\0emitted","data":{"name":"x"}}' },
  { name: 'an invalid escape', body: '{"type":"custom.emitted","data":{"name":"\\x41"}}' },
  { name: 'broken UTF-8', body: bytes('{"type":"custom.emitted","data":{"name":"', [0xff, 0xfe, 0x80], '"}}') },
  { name: 'overlong UTF-8', body: bytes('{"type":"custom.emitted","data":{"name":"', [0xc0, 0xaf], '"}}') },
  { name: 'a surrogate in UTF-8', body: bytes('{"type":"custom.emitted","data":{"name":"', [0xed, 0xa0, 0x80], '"}}') },
  { name: 'UTF-8 that is cut off', body: bytes('{"type":"custom.emitted","data":{"name":"x"}}', [0xe2, 0x82]) },
  { name: 'UTF-16', body: Buffer.from(JSON.stringify(event()), 'utf16le') },
  { name: 'a string', body: '"custom.emitted"' },
  { name: 'a number', body: '1' },
  { name: 'null', body: 'null' },
  { name: 'true', body: 'true' },
  { name: 'an array of nulls', body: '[null,null]', allowed: [422] },
  { name: 'arrays in arrays', body: '[[[]]]', allowed: [422] },
  { name: 'events that is no list', body: '{"events":{"type":"run.completed"}}', allowed: [400, 422] },
  { name: 'events that is null', body: '{"events":null}', allowed: [400, 422] },
  { name: 'an object without a type', body: '{}', allowed: [422] },
  { name: 'a type that is a number', body: event({ type: 1 }), allowed: [422] },
  { name: 'a type without a dot', body: event({ type: 'completed' }), allowed: [422] },
  { name: 'an empty type', body: event({ type: '' }), allowed: [422] },
  { name: 'a type of a megabyte less one', body: event({ type: `a.${text(300_000)}` }), allowed: [413] },
  { name: 'a time that is none', body: event({ ts: 'yesterday' }), allowed: [422] },
  { name: 'the 30th of February', body: event({ ts: '2026-02-30T00:00:00Z' }), allowed: [422] },
  { name: 'a time that is a number', body: event({ ts: 1e300 }), allowed: [422] },
  { name: 'a subject that is a text', body: event({ subject: 'run/1' }), allowed: [422] },
  { name: 'a subject without an id', body: event({ subject: { kind: 'step' } }), allowed: [422] },
  { name: 'a subject with an empty id', body: event({ subject: { kind: 'step', id: '' } }), allowed: [422] },
  { name: 'a stepId that is an object', body: event({ stepId: {} }), allowed: [422] },
  { name: 'an id that is an object', body: event({ id: { a: 1 } }), allowed: [422] },
  { name: 'an id of 100 KB', body: event({ id: text(100_000) }), allowed: [422] },
  { name: 'a source of 100 KB', body: event({ id: 'a', source: text(100_000) }), allowed: [422] },
  { name: 'data that is an array', body: event({ data: [] }), allowed: [422] },
  { name: 'data that does not fit its type', body: { type: 'step.output', subject: { kind: 'step', id: 'a' }, data: { text: 7 } }, allowed: [422] },
  { name: 'a percentage of 101', body: { type: 'progress.reported', data: { percentage: 101 } }, allowed: [422] },
  { name: 'a percentage that is no number', body: '{"type":"progress.reported","data":{"percentage":1e999}}', allowed: [422] },
  { name: 'a negative count of tokens', body: { type: 'usage.reported', data: { inputTokens: -1 } }, allowed: [422] },
  { name: 'an event past its limit', body: event({ data: { name: 'x', value: text(300_000) } }), allowed: [413] },
  {
    name: 'a body past its limit',
    body: JSON.stringify(Array.from({ length: 12 }, () => event({ data: { name: 'x', value: text(100_000) } }))),
    allowed: [413],
  },
  { name: 'more events than a request may have', body: Array.from({ length: 1001 }, () => event()), allowed: [413] },
  { name: '10,000 levels of arrays that are not closed', body: '['.repeat(10_000) },
  { name: '10,000 levels of arrays', body: deep(10_000, '[', ']'), allowed: [400, 413, 422] },
  { name: '100,000 levels of objects', body: deep(100_000, '{"a":', '}').replace('{"a":}', '{"a":1}'), allowed: [400, 413, 422] },
  { name: 'text as text/plain', body: 'run.completed', contentType: 'text/plain', allowed: [415] },
  { name: 'JSON as a form', body: JSON.stringify(event()), contentType: 'application/x-www-form-urlencoded', allowed: [415] },
  { name: 'a multipart body', body: '--x\r\n\r\n--x--', contentType: 'multipart/form-data; boundary=x', allowed: [415] },
  { name: 'a content type that is none', body: JSON.stringify(event()), contentType: ';;;', allowed: [400, 415] },
  { name: 'a format that is not there', path: '/runs/victim/events?format=nonsense', body: event(), allowed: [415] },
  { name: 'a format named like a prototype', path: '/runs/victim/events?format=__proto__', body: event(), allowed: [415] },
  { name: 'a format named constructor', path: '/runs/victim/events?format=constructor', body: event(), allowed: [415] },
  { name: 'the format twice', path: '/runs/victim/events?format=jobs&format=macp', body: event(), allowed: [400, 415] },
  { name: 'gzip that is none', body: 'not gzip', headers: { 'content-encoding': 'gzip' }, allowed: [415] },
  { name: 'gzip where lines are wanted', body: 'not gzip', contentType: 'application/x-ndjson', headers: { 'content-encoding': 'gzip' }, allowed: [415] },
  { name: 'broken NDJSON only', body: '{"type":\n{"a\n', contentType: 'application/x-ndjson', allowed: [422] },
  {
    name: 'an NDJSON line past the limit of an event',
    body: `${JSON.stringify(event({ data: { name: 'x', value: text(300_000) } }))}\n`,
    contentType: 'application/x-ndjson',
    allowed: [422],
  },
  {
    name: 'NDJSON in broken UTF-8',
    body: bytes('{"type":"custom.emitted","data":{"name":"', [0xff], '"}}\n'),
    contentType: 'application/x-ndjson',
    allowed: [422],
  },
  { name: 'empty NDJSON', body: '\n\n\n', contentType: 'application/x-ndjson' },
  { name: 'a producer without its epoch', body: event(), headers: { 'producer-id': 'p', 'producer-seq': '0' } },
  { name: 'a producer seq that is no integer', body: event(), headers: { 'producer-id': 'p', 'producer-epoch': '0', 'producer-seq': '1.5' } },
  { name: 'a producer seq below zero', body: event(), headers: { 'producer-id': 'p', 'producer-epoch': '0', 'producer-seq': '-1' } },
  { name: 'a producer seq past 2^53-1', body: event(), headers: { 'producer-id': 'p', 'producer-epoch': '0', 'producer-seq': '9007199254740992' } },
  { name: 'a producer epoch of words', body: event(), headers: { 'producer-id': 'p', 'producer-epoch': 'one', 'producer-seq': '0' } },
  {
    name: 'a new producer that does not start at 0',
    body: event(),
    headers: { 'producer-id': 'q', 'producer-epoch': '0', 'producer-seq': '5' },
    allowed: [409],
  },
  { name: 'an If-Match that is no number', body: event(), headers: { 'if-match': '"abc"' }, allowed: [400, 412] },
  { name: 'an If-Match of another head', body: event(), headers: { 'if-match': '"999"' }, allowed: [412] },
  { name: 'an Idempotency-Key of 10 KB', body: event(), headers: { 'idempotency-key': text(10_000) } },
  { name: 'a header of 100 KB', body: event(), headers: { 'x-big': text(100_000) }, allowed: [431] },
  { name: 'a run that is not there', path: '/runs/nobody/events', body: event(), allowed: [404] },
  { name: 'a run id with %00', path: '/runs/vic%00tim/events', body: event(), allowed: [400, 404] },
  { name: 'a run id in broken percent-encoding', path: '/runs/%ff%zz/events', body: event(), allowed: [400, 404] },
  { name: 'a run id of 10 KB', path: `/runs/${text(10_000)}/events`, body: event(), allowed: [400, 404, 414] },
  { name: 'a path out of the tree', path: '/runs/..%2f..%2fetc%2fpasswd/events', body: event(), allowed: [400, 404] },
]

const POST_RUNS: Bad[] = (
  [
    ['an array', '[]'],
    ['null', 'null'],
    ['half a body', '{"name":'],
    ['a field that is not known', { nonsense: 1 }],
    ['a name that is an object', { name: {} }],
    ['an id with a slash', { id: 'a/b' }],
    ['an id with a line break', { id: 'a\nb' }],
    ['an empty id', { id: '' }],
    ['an id of 10 KB', { id: text(10_000) }],
    ['an id with a NUL', { id: 'a\0b' }],
    ['tags that are no list', { tags: 'a' }],
    ['tags that are objects', { tags: [{}] }],
    ['a priority of words', { priority: 'high' }],
    ['a priority past 32 bits', { priority: 1e12 }],
    ['a negative lease', { leaseMs: -1 }],
    ['no attempts', { maxAttempts: 0 }],
    ['a time that is none', { availableAt: 'soon' }],
    ['metadata that is a text', { metadata: 'x' }],
    ['a parent that is a list', { parentRunId: [] }],
    ['10,000 levels of input that are not closed', `{"input":${'['.repeat(10_000)}`],
  ] as const
).map(([name, body]) => ({ name: `a run with ${name}`, path: '/runs', body }))

const GETS: Bad[] = [
  '/runs/victim/events?afterSeq=-1',
  '/runs/victim/events?afterSeq=1.5',
  '/runs/victim/events?afterSeq=abc',
  '/runs/victim/events?afterSeq=99999999999999999999',
  '/runs/victim/events?limit=0',
  '/runs/victim/events?limit=-1',
  '/runs/victim/events?limit=1e9',
  '/runs/victim/events?limit=1e0',
  '/runs/victim/events?limit=0x2',
  '/runs/victim/events?limit=%202',
  '/runs/victim/events?limit=2.0',
  '/runs/victim/events?limit=',
  '/runs/victim/events?limit=1&limit=1e0',
  '/runs/victim/stream?heartbeatMs=1e4',
  '/runs/victim/replay/stream?speed=0x2',
  '/runs/victim/replay/stream?speed=1e1',
  '/runs/victim/events?limit=999999999',
  '/runs/victim/events?afterTs=never',
  '/runs/victim/raw?afterRawSeq=-1',
  '/runs/victim/raw?limit=x',
  '/runs/victim/state?seq=-1',
  '/runs/victim/state?seq=x',
  '/runs/victim/state?seq=1e3',
  '/runs/victim/stream?afterSeq=-1',
  '/runs/victim/stream?afterSeq=x',
  '/runs/victim/stream?afterSeq=1e1',
  '/runs/victim/stream?afterSeq=999999',
  '/runs/victim/stream?heartbeatMs=1',
  '/runs/victim/stream?heartbeatMs=x',
  '/runs/victim/stream?includeSnapshot=maybe',
  '/runs/victim/stream?subject=nokind',
  '/runs?limit=0',
  '/runs?limit=201',
  '/runs?limit=x',
  '/runs?limit=0b1',
  '/runs?cursor=nonsense',
  '/runs?cursor=AAAA',
  '/runs?cursor=%00',
  `/runs?cursor=${Buffer.from('{"a":{"b":[1]}}').toString('base64url')}`,
  '/runs?sort=password',
  '/runs?order=sideways',
  '/runs?status=sleeping',
  '/runs?createdAfter=x',
  '/runs?search=%00',
  '/runs?search=%ff',
  '/events?limit=x',
  '/events?cursor=nonsense',
].map((path) => ({ name: `GET ${path.slice(0, 80)}`, method: 'GET', path }))

const OTHERS: Bad[] = [
  { name: 'a cursor header that is no number', method: 'GET', path: '/runs/victim/stream', headers: { 'last-event-id': 'x' } },
  { name: 'a cursor header below zero', method: 'GET', path: '/runs/victim/stream', headers: { 'last-event-id': '-5' } },
  { name: 'a route that is not there', method: 'GET', path: '/nonsense', allowed: [404] },
  { name: 'a method that is not there', method: 'PUT', path: '/runs/victim', body: {}, allowed: [404, 405] },
  { name: 'explain of nothing', path: '/ingest/explain', body: '' },
  { name: 'explain of half a body', path: '/ingest/explain', body: '{"type":' },
  { name: 'explain in a format that is not there', path: '/ingest/explain?format=nonsense', body: event(), allowed: [415] },
  { name: 'a key with a role that is not there', path: '/keys', body: { name: 'x', role: 'god' } },
  { name: 'a key with a field that is not known', path: '/keys', body: { name: 'x', role: 'guest', nonsense: 1 } },
  { name: 'keys that are a list', path: '/keys', body: [] },
  { name: 'a rebuild of a run that is not there', path: '/runs/nobody/projection/rebuild', allowed: [404] },
]

/** What a failure has changed is not blamed on the requests after it. */
async function assertUntouched(t: Tap, name: string): Promise<void> {
  const { lastSeq, lastRawSeq, status } = (await client.get<RunRecord>('/runs/victim')).body
  const now = JSON.stringify({ lastSeq, lastRawSeq, status })
  if (now !== untouched) t.fail(`${name}: the run went from ${untouched} to ${now}`)
  untouched = now
}
type Tap = { fail(message: string): unknown }

t.test('a bad request gets a 4xx with a code, and leaves nothing behind', { timeout: 120_000 }, async (t) => {
  for (const bad of [...POST_EVENTS, ...POST_RUNS, ...GETS, ...OTHERS]) {
    const { name, method = 'POST', path = '/runs/victim/events', allowed = [400] } = bad
    const options = {
      body: bad.body,
      ...(bad.contentType ? { contentType: bad.contentType } : {}),
      ...(bad.headers ? { headers: bad.headers } : {}),
      timeoutMs: 10_000,
    }
    const answer = await client
      .send<Problem & { rejected?: number; accepted?: number; results?: { code?: string }[] }>(method, path, options)
      .catch((error: unknown) => String(error))
    if (typeof answer === 'string') {
      t.fail(`${name}: ${answer}`)
      continue
    }
    if (!allowed.includes(answer.status)) t.fail(`${name}: ${answer.status} instead of ${allowed}: ${answer.text.slice(0, 300)}`)
    else if (answer.status === 422 && answer.body.results)
      t.ok(answer.body.accepted === 0 && answer.body.results.every((result) => typeof result.code === 'string'), name)
    else if (!answer.headers.get('content-type')?.startsWith('application/problem+json'))
      t.fail(`${name}: ${answer.headers.get('content-type')} ${answer.text.slice(0, 200)}`)
    else
      t.ok(/^[A-Z_]+$/.test(answer.body.code) && answer.body.status === answer.status && typeof answer.body.requestId === 'string', name, {
        answer: answer.text,
      })
    await assertUntouched(t, name)
  }
  t.equal((await client.get('/healthz')).status, 200)
  t.equal((await client.get<Page<RunRecord>>('/runs?count=true')).body.total, runsBefore, 'no run came of it')
})

t.test('what is odd but legal is stored as it is', async (t) => {
  const { runId } = await client.createRun({ id: 'odd' })
  const odd = [
    '{"type":"custom.emitted","data":{"name":"n","value":12345678901234567890}}',
    '{"type":"custom.emitted","data":{"name":"n","value":[1.10,1e400,-0,1E+2]}}',
    '{"type":"custom.emitted","data":{"name":"n","value":"\\u0000 \\ud800 \\udc00 \\ud83d\\ude00"}}',
    '{"type":"custom.emitted","data":{"name":"n","value":1,"value":2}}',
    '{"type":"custom.emitted","data":{"name":"n","__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}}}}',
    '{"type":"custom.emitted","data":{"name":"__proto__","toString":1,"hasOwnProperty":2}}',
    '{"type":"step.started","subject":{"kind":"step","id":"__proto__"},"data":{"name":"constructor"}}',
    '{"type":"artifact.created","subject":{"kind":"artifact","id":"constructor"},"data":{"kind":"toString"}}',
    '{"type":"participant.seen","subject":{"kind":"participant","id":"__proto__"},"data":{"participantId":"__proto__"}}',
    '{"type":"tool.called","subject":{"kind":"tool","id":"hasOwnProperty"},"data":{"name":"__proto__"}}',
    '{"type":"signal.emitted","subject":{"kind":"signal","id":"valueOf"},"data":{"name":"__proto__"}}',
    '{"type":"never.heard.of","extra":{"kept":true},"data":{"x":1},"nonsense":[1,2]}',
    ' {\n "type" :\t"custom.emitted" , "data" : {"name":"\\u006e"} } ',
    `{"type":"custom.emitted","data":{"name":"deep","value":${deep(50, '[', ']')}}}`,
  ]
  for (const body of odd) {
    const answer = await client.append(runId, body)
    t.equal(answer.status, 200, body.slice(0, 100), { answer: answer.text })
  }
  const raw = (await client.get<Page<{ body: unknown }>>(`/runs/${runId}/raw?limit=100`)).text
  for (const exact of ['12345678901234567890', '1.10', '1e400']) t.match(raw, exact, `${exact} comes back as it was sent`)
  const events = await client.events(runId)
  t.equal(events.length, odd.length + 1 + (events[0]?.type === 'run.created' ? events.filter((one) => one.type === 'run.queued').length : 0))
  const surrogates = events.find((one) => JSON.stringify(one.data).includes('\ufffd'))
  t.equal(surrogates?.data.value, '\ufffd \ufffd \ufffd 😀')
  t.equal((await client.state(runId)).version, events.length)
  t.equal(Object.hasOwn(Object.prototype, 'polluted'), false)
  const page = await client.get<Page<CanonicalEvent>>(`/runs/${runId}/events`)
  t.notOk(page.text.includes('\0'))
})

/** Much more than an answer takes, on any machine. */
const WAIT_MS = 20_000

/**
 * Sends bytes as they are and resolves with what came back: a whole error, what there was when the server closed, or 'closed' if that was nothing.
 * @param leave does not wait for an answer
 */
function raw(payload: (string | Buffer)[], leave = false): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(service.port, '127.0.0.1')
    let answer = ''
    const done = () => {
      clearTimeout(timer)
      socket.destroy()
      resolve(answer)
    }
    const closed = () => {
      answer ||= 'closed'
      done()
    }
    const timer = setTimeout(done, WAIT_MS)
    socket.on('data', (chunk) => {
      answer += chunk.toString('latin1')
      const [head = '', body] = answer.split('\r\n\r\n', 2)
      if (/^HTTP\/1\.1 [45]/.test(head) && body !== undefined && body.length >= Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0)) setTimeout(done, 50)
    })
    socket.on('error', closed)
    socket.on('close', closed)
    socket.on('connect', () => {
      for (const part of payload) socket.write(part)
      if (leave) setTimeout(done, 100)
    })
  })
}

const head = (length: number | 'chunked', extra = '') =>
  `POST /runs/victim/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n${length === 'chunked' ? 'Transfer-Encoding: chunked' : `Content-Length: ${length}`}\r\n${extra}\r\n`

t.test('values that cannot become a number or a text are events like others, of every type and to all who watch the log', { timeout: 60_000 }, async (t) => {
  const { runId } = await client.createRun()
  const evil = { valueOf: 1, toString: 1, toJSON: 1, __proto__: null, constructor: { prototype: 1 }, length: -1 }
  const fields = [
    'delayMs',
    'availableAt',
    'queue',
    'priority',
    'workerId',
    'attempt',
    'reason',
    'by',
    'error',
    'usage',
    'name',
    'status',
    'percentage',
    'payload',
    'extra',
  ]
  for (const type of Object.keys(EVENT_TYPES)) {
    for (const only of [fields, ...fields.map((field) => [field])]) {
      const answer = await client.append(runId, { type, data: Object.fromEntries(only.map((field) => [field, evil])) })
      if (![200, 422].includes(answer.status)) t.fail(`${type} ${only}: ${answer.status} ${answer.text}`)
    }
  }
  t.same(
    (await client.events(runId)).map(({ seq }) => seq),
    seqsUpTo((await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq),
  )
})

t.test('bytes that are not HTTP, and bodies that never end, leave nothing behind', { timeout: 60_000 }, async (t) => {
  const body = JSON.stringify(event())
  const cases: [string, Promise<string>, RegExp][] = [
    ['not HTTP', raw(['\x16\x03\x01 nonsense\r\n\r\n']), /^HTTP\/1\.1 400/],
    ['a bad content length', raw([head(5).replace('5', 'x'), 'hello']), /^HTTP\/1\.1 400/],
    ['two content lengths', raw([head(5, 'Content-Length: 6\r\n'), 'hello!']), /^HTTP\/1\.1 400/],
    [
      'a length and chunks at once',
      raw([head('chunked', `Content-Length: ${body.length}\r\n`), `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`]),
      /^HTTP\/1\.1 400/,
    ],
    ['a chunk whose length is none', raw([head('chunked'), 'zz\r\nhello\r\n']), /^HTTP\/1\.1 400/],
    ['two Hosts', raw([`GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n`]), /^HTTP\/1\.1 400 .*VALIDATION_ERROR/s],
    ['a second Host that is no loopback', raw([`GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nhost: evil.example\r\n\r\n`]), /^HTTP\/1\.1 400/],
    ['CONNECT', raw([`CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n`]), /^HTTP\/1\.1 405 .*problem\+json.*METHOD_NOT_ALLOWED/s],
    ['no Host', raw([`GET /runs HTTP/1.1\r\n\r\n`]), /^HTTP\/1\.1 400/],
    ['a Host that is no loopback', raw([`GET /runs HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n`]), /^HTTP\/1\.1 403/],
    // The server closes with bytes unread, and its answer may be lost with them.
    [
      'headers past any limit',
      raw([`GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\n${Array.from({ length: 3000 }, (_, index) => `x-${index}: ${text(50)}\r\n`).join('')}\r\n`]),
      /^(HTTP\/1\.1 431|closed$)/,
    ],
    ['half a body and away', raw([head(body.length), body.slice(0, 20)], true), /^$/],
    ['half of a chunked body and away', raw([head('chunked'), `${body.length.toString(16)}\r\n${body.slice(0, 20)}`], true), /^$/],
    ['a body that stops without an end', raw([head(body.length), body.slice(0, 20)]), /^HTTP\/1\.1 408/],
  ]
  for (const [name, answer, expected] of cases) t.match(await answer, expected, name)
  await assertUntouched(t, 'raw bytes')
  t.equal((await client.get('/healthz')).status, 200)
})

t.test('half of an NDJSON body keeps whole lines or none, and never half of one', { timeout: 30_000 }, async (t) => {
  const { runId } = await client.createRun({ id: 'ndjson-half' })
  const line = (n: number) => `${JSON.stringify(event({ id: `n-${n}`, data: { name: `n-${n}` } }))}\n`
  const lines = Array.from({ length: 500 }, (_, n) => line(n)).join('')
  const headers = `POST /runs/${runId}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: ${lines.length + 1000}\r\n\r\n`
  await raw([headers, lines, line(500).slice(0, 30)], true)
  const answer = await client.append(
    runId,
    Array.from({ length: 501 }, (_, n) => event({ id: `n-${n}`, data: { name: `n-${n}` } })),
  )
  t.equal(answer.status, 200)
  t.equal(answer.body.rejected, 0)
  const names = (await client.events(runId, '&type=custom.emitted')).map((one) => one.data.name)
  t.equal(names.length, 501, 'the retry completes it')
  t.equal(new Set(names).size, 501, 'and doubles nothing')
})

t.test('a thousand bad requests at once leave the service in good health', { timeout: 60_000 }, async (t) => {
  await client.append('odd', event())
  const memory = service.residentBytes()
  for (let round = 0; round < 10; round++) {
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, index) =>
        client.send('POST', '/runs/victim/events', { body: index % 2 ? `{"a":${text(200_000)}` : deep(50_000, '[', ']') }),
      ),
    )
    for (const answer of answers) if (answer.status >= 500 || answer.status < 400) t.fail(`${answer.status} ${answer.text.slice(0, 200)}`)
  }
  await assertUntouched(t, 'a thousand')
  const grown = (service.residentBytes() - memory) / 1_048_576
  t.ok(grown < 250, `it has grown by ${grown.toFixed(0)} MiB`)
  t.equal((await client.get('/healthz')).status, 200)
  t.equal((await client.append('victim', event())).status, 200, 'and stores what is right')
})
