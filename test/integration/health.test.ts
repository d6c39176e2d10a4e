/** Operation: health, metrics, the log, request ids, and errors of every kind in one form. */
import { once } from 'node:events'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { setTimeout as delay, setImmediate } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { RunplaneError } from '../../src/errors.js'
import { baseApp } from '../support/base-app.js'
import { testDatabase } from '../support/database.js'

const database = await testDatabase(t)
const json = { 'content-type': 'application/json' }

/** Sends the text over a bare connection, and returns all that comes back until the service closes it. */
async function raw(app: FastifyInstance, text: string): Promise<string> {
  const address = app.server.address()
  if (address === null || typeof address === 'string') throw new Error('the app does not listen')
  const socket = connect(address.port, '127.0.0.1')
  let answer = ''
  socket.on('data', (chunk) => {
    answer += chunk
  })
  socket.write(text)
  await once(socket, 'close')
  return answer
}

t.test('the process is alive, whatever the database does', async (t) => {
  const { app } = await baseApp(t, database, { checks: { database: () => Promise.reject(new Error('gone')) } })
  const answer = await app.inject('/healthz')
  t.equal(answer.statusCode, 200)
  t.match(answer.json(), { status: 'ok', version: /^\d+\.\d+\.\d+/ })
})

t.test('ready says what was asked; not ready says what is not, and the log says why', async (t) => {
  const { app } = await baseApp(t, database)
  t.match((await app.inject('/readyz')).json(), { status: 'ready', checks: [{ name: 'database', ms: Number }] })

  const { app: broken, log } = await baseApp(t, database, {
    checks: { database: async () => {}, wake: () => Promise.reject(new Error('LISTEN as bob failed')) },
  })
  const answer = await broken.inject('/readyz')
  t.match(answer, { statusCode: 503, headers: { 'content-type': /^application\/problem\+json/, 'retry-after': '1' } })
  t.match(answer.json(), { code: 'OVERLOADED', detail: /^Not ready: wake\./, errors: [{ path: 'wake' }] })
  t.notMatch(answer.body, /bob/)
  t.match(log, [{ msg: 'not ready: wake', err: { message: 'LISTEN as bob failed' } }])
})

t.test('a check that hangs does not hang readiness', async (t) => {
  const { app } = await baseApp(t, database, { checks: { wake: () => new Promise(() => {}) } })
  const answer = await app.inject('/readyz')
  t.match(answer.json(), { status: 503, errors: [{ path: 'wake' }] })
})

t.test('while the service stops it is not ready, finishes what it has begun, and sends others away', async (t) => {
  let finish = () => {}
  const began = new Promise<void>((resolve) => {
    finish = resolve
  })
  let entered = () => {}
  const inside = new Promise<void>((resolve) => {
    entered = resolve
  })
  const { app } = await baseApp(t, database, {
    routes: (app) => {
      app.get('/slow', { config: { role: 'guest' }, schema: { hide: true } }, async () => {
        entered()
        await began
        return { done: true }
      })
      app.addHook('preClose', async () => {
        const get = (path: string) => raw(app, `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`)
        t.match(await get('/readyz'), /^HTTP\/1\.1 503 .*The service is stopping\./s)
        t.match(await get('/guest'), /^HTTP\/1\.1 503 .*"code":"OVERLOADED"/s)
        t.match(await get('/healthz'), /^HTTP\/1\.1 200 /)
        finish()
      })
    },
  })
  await app.listen({ port: 0 })
  // A connection that would be kept alive: it closes with its answer, and does not keep the service waiting.
  const slow = raw(app, 'GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await inside
  await app.close()
  t.match(await slow, /^HTTP\/1\.1 200 .*connection: close.*\{"done":true\}$/s)
})

t.test('metrics tell the requests by route and status', async (t) => {
  const { app } = await baseApp(t, database)
  await app.inject('/healthz')
  await app.inject('/no/such/path')
  const answer = await app.inject('/metrics')
  t.match(answer.headers['content-type'], /^text\/plain; version=0\.0\.4/)
  t.match(answer.body, /runplane_http_request_duration_seconds_count\{method="GET",route="\/healthz",status="200"\} 1/)
  t.match(answer.body, /route="none",status="404"\} 1/, 'a path of the caller does not become a label')
  for (const name of [
    'runplane_events_appended_total',
    'runplane_append_group_events',
    'runplane_append_commit_duration_seconds',
    'runplane_append_queued_events',
    'runplane_streams_open',
    'process_resident_memory_bytes',
    'nodejs_eventloop_lag_p99_seconds',
  ])
    t.match(answer.body, name)
})

t.test('a request has an id: the caller’s if it is sane, else one of ours', async (t) => {
  const { app } = await baseApp(t, database)
  t.equal((await app.inject({ url: '/healthz', headers: { 'x-request-id': 'trace-1.a_B' } })).headers['x-request-id'], 'trace-1.a_B')
  for (const given of ['with space', 'a'.repeat(129), 'ü', '<script>']) {
    t.match((await app.inject({ url: '/nowhere', headers: { 'x-request-id': given } })).headers['x-request-id'], /^[0-9a-f]{8}-[0-9a-f]{4}-7/, given)
  }
  const problem = await app.inject('/nowhere')
  t.equal(problem.json().requestId, problem.headers['x-request-id'])
})

t.test('the log has one line a request, without payloads and secrets', async (t) => {
  const { app, keys, log } = await baseApp(t, database)
  t.teardown(() => database.sql`truncate api_keys`)
  const { key } = await keys.create({ name: 'ci', role: 'admin' })
  await app.inject({
    url: '/bodies?token=sekrit&a=1',
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, cookie: 'sekrit' },
    payload: { count: 424_242 },
  })
  await app.inject({ url: '/keys', method: 'POST', headers: { authorization: `Bearer ${key}` }, payload: { name: 'x', role: 'guest' } })
  await app.inject('/%zz?token=sekrit')
  t.equal(log.length, 3)
  t.match(log[0], {
    level: 'info',
    method: 'POST',
    url: '/bodies?token=***&a=1',
    route: '/bodies',
    status: 200,
    ms: Number,
    bytes: Number,
    requestId: String,
    keyName: 'ci',
    ip: '127.0.0.1',
  })
  t.notMatch(JSON.stringify(log), /sekrit|424242|rp_/)
})

t.test('a request whose client leaves has its line as well, and is no fault of the service', async (t) => {
  const { app, log } = await baseApp(t, database, {
    routes: (app) => {
      app.get('/endless', { config: { role: 'guest' }, schema: { hide: true } }, (_request, reply) => {
        reply.hijack()
        reply.raw.writeHead(200).write('first')
      })
      app.get('/waiting', { config: { role: 'guest' }, schema: { hide: true } }, (request) => once(request.raw.socket, 'close'))
    },
  })
  await app.listen({ port: 0 })
  const { port } = app.server.address() as AddressInfo
  const line = async (path: string) => {
    for (let turn = 0; turn < 10_000 && !log.some(({ route }) => route === path); turn++) await setImmediate()
    return log.find(({ route }) => route === path)
  }
  const leave = async (text: string, seen: (socket: Socket) => Promise<unknown>) => {
    const socket = connect(port, '127.0.0.1')
    socket.write(text)
    await seen(socket)
    socket.destroy()
  }
  await leave('GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n', (socket) => once(socket, 'data'))
  t.match(await line('/endless'), { level: 'info', status: 200 })
  await leave('GET /waiting HTTP/1.1\r\nHost: localhost\r\n\r\n', () => once(app.server, 'request'))
  t.match(await line('/waiting'), { level: 'info', status: 499 })
  await leave('POST /bodies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{', () => once(app.server, 'request'))
  t.match(await line('/bodies'), { level: 'info' })
  t.same(
    log.filter(({ route }) => route).map(({ route }) => route),
    ['/endless', '/waiting', '/bodies'],
  )
  t.notOk(log.some(({ level }) => level !== 'info'))
})

t.test('whatever is thrown leaves as problem details, and what we do not know leaves as nothing but that', async (t) => {
  const dropped = await testDatabase(t)
  const [{ name }] = await dropped.sql<[{ name: string }]>`select current_database() as name`
  await database.sql`drop database ${database.sql(name)} with (force)`
  const { app, log } = await baseApp(t, database, {
    routes: (app) => {
      const route = (url: string, fail: () => unknown) => app.get(url, { config: { role: 'guest' }, schema: { hide: true } }, async () => fail())
      route('/known', () => Promise.reject(new RunplaneError('OVERLOADED', 'The queue is full.', { headers: { 'retry-after': '2' } })))
      route('/dropped', () => dropped.connect({ max: 1 })`select 1`)
      route('/unknown', () => Promise.reject(new Error('secret cause')))
      route('/database', () => database.sql`select 'a secret value'::int`)
      route('/nothing', () => Promise.reject(undefined))
    },
  })
  t.match(await app.inject('/known'), { statusCode: 503, headers: { 'retry-after': '2' } })
  t.match(await app.inject('/dropped'), { statusCode: 503, headers: { 'retry-after': '1' }, body: /The database does not answer/ })
  for (const url of ['/unknown', '/database', '/nothing']) {
    const answer = await app.inject(url)
    t.match(answer.json(), { type: 'urn:runplane:problem:INTERNAL', status: 500, code: 'INTERNAL', detail: /requestId/, requestId: String }, url)
    t.notMatch(answer.body, /secret/)
  }
  t.match(
    log.find((line) => line.level === 'error'),
    { err: { message: 'secret cause' } },
  )
})

t.test('bad requests get a 4xx with a code', async (t) => {
  const { app } = await baseApp(t, database, { env: { MAX_BODY_BYTES: '2000' } })
  const post = (payload: string | Buffer, headers: Record<string, string> = json) => app.inject({ url: '/bodies', method: 'POST', payload, headers })
  t.match((await post('{"count":1}')).json(), { count: 1 })
  const cases: [string, Awaited<ReturnType<typeof post>>, number, string, RegExp][] = [
    ['broken JSON', await post('{"count":'), 400, 'VALIDATION_ERROR', /not valid JSON/],
    ['no JSON', await post(''), 400, 'VALIDATION_ERROR', /empty/],
    ['a prototype key', await post('{"__proto__":{"x":1}}'), 400, 'VALIDATION_ERROR', /__proto__/],
    ['a text where a number belongs', await post('{"count":"1"}'), 400, 'VALIDATION_ERROR', /body\/count must be integer/],
    ['an unknown field', await post('{"cuont":1}'), 400, 'VALIDATION_ERROR', /body\/cuont is not a known field/],
    ['a body over the limit', await post(`"${'x'.repeat(3000)}"`), 413, 'PAYLOAD_TOO_LARGE', /2000 bytes.*MAX_BODY_BYTES/],
    ['a type that nobody knows', await post('x', { 'content-type': 'application/x-nothing' }), 415, 'UNSUPPORTED_FORMAT', /application\/x-nothing/],
    ['text', await post('x', { 'content-type': 'text/plain' }), 415, 'UNSUPPORTED_FORMAT', /text\/plain/],
    ['a broken type', await post('x', { 'content-type': ';;;' }), 415, 'UNSUPPORTED_FORMAT', /./],
    ['a NUL in the path', await app.inject('/runs/a%00b'), 400, 'VALIDATION_ERROR', /%00/],
    ['a NUL in the query', await app.inject('/guest?a=%00'), 400, 'VALIDATION_ERROR', /%00/],
    ['a broken escape', await app.inject('/keys/%zz'), 400, 'VALIDATION_ERROR', /URL/],
    ['broken UTF-8', await app.inject({ url: '/keys/%ff', method: 'DELETE' }), 400, 'VALIDATION_ERROR', /URL/],
    ['a part of the path without end', await app.inject({ url: `/keys/${'x'.repeat(2000)}`, method: 'DELETE' }), 400, 'VALIDATION_ERROR', /too long/],
    ['an unknown path', await app.inject('/nowhere'), 404, 'NOT_FOUND', /GET \/nowhere/],
  ]
  for (const [name, answer, status, code, detail] of cases) {
    t.equal(answer.statusCode, status, name)
    t.match(answer.headers['content-type'], /^application\/problem\+json/, name)
    t.equal(answer.headers['x-request-id'], answer.json().requestId, name)
    t.match(answer.json(), { type: `urn:runplane:problem:${code}`, title: String, status, code, detail }, name)
  }
  t.match(await app.inject({ url: '/healthz', method: 'DELETE' }), { statusCode: 405, headers: { allow: 'GET, HEAD' } })
})

t.test('what is not HTTP gets problem details on the bare connection', async (t) => {
  const { app } = await baseApp(t, database)
  await app.listen({ port: 0 })
  t.match(await raw(app, 'nonsense\r\n\r\n'), /^HTTP\/1\.1 400 .*content-type: application\/problem\+json.*"code":"VALIDATION_ERROR"/s)
  t.match(await raw(app, `GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(40_000)}\r\n\r\n`), /^HTTP\/1\.1 431 .*"code":"HEADERS_TOO_LARGE"/s)
  t.match(await raw(app, 'POST /bodies HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n'), /^HTTP\/1\.1 400 /)
  t.match(await raw(app, 'GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n'), /^HTTP\/1\.1 400 .*"detail":"[^"]*Host/s)
  t.match(await raw(app, 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: more\r\nConnection: close\r\n\r\n'), /^HTTP\/1\.1 200 /)
  t.equal((await app.inject('/healthz')).statusCode, 200)
})

t.test('half a body is answered when its time is over, and a slow reader of an answer is not', async (t) => {
  const { app } = await baseApp(t, database, {
    env: { BODY_TIMEOUT_MS: '100' },
    routes: (app) => {
      app.post('/slow', { config: { role: 'guest' }, schema: { hide: true } }, async () => {
        await delay(250)
        return { done: true }
      })
      app.register(async (app) => {
        app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))
        app.post('/any', { config: { role: 'guest' }, schema: { hide: true } }, async () => ({}))
      })
    },
  })
  await app.listen({ port: 0 })
  const head = (path: string, bytes: number) =>
    `POST ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${bytes}\r\n\r\n`
  for (const sent of [head('/bodies', 100), head('/any', 100).replace('Content-Type', 'X-Type')])
    t.match(await raw(app, `${sent}{"count":`), /^HTTP\/1\.1 408 .*"code":"REQUEST_TIMEOUT"/s)
  t.match(await raw(app, `${head('/slow', 2)}{}`), /^HTTP\/1\.1 200 /)
})
