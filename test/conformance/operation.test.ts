/** Access and operation as the contract has them. Services that are given are not closed by a first key: what needs one is skipped there. */
import t, { type Test } from 'tap'
import { type Answer, createClient, type Page, type Problem, type RunRecord } from '../support/http.js'
import { openStream } from '../support/sse-client.js'
import { newId, target } from './target.js'

const { client, url, headers: access, service } = await target(t)

function isProblem(t: Test, answer: Answer<unknown>, status: number, code: string): void {
  t.equal(answer.status, status, answer.text.slice(0, 300))
  t.match(answer.headers.get('content-type'), /^application\/problem\+json/)
  t.match(JSON.parse(answer.text) as Problem, { type: String, title: String, status, code, detail: String, requestId: String })
}

t.test('health, readiness and metrics', async (t) => {
  t.equal((await client.get('/healthz')).status, 200)
  t.equal((await client.get('/readyz')).status, 200)
  const { runId } = await client.createRun()
  await client.append(runId, { type: 'custom.emitted', data: { name: 'x' } })
  const metrics = await client.get('/metrics')
  t.equal(metrics.status, 200)
  t.match(metrics.headers.get('content-type'), /^text\/plain|openmetrics/)
  t.match(metrics.text, /^# HELP /m)
  t.match(metrics.text, /^[a-z_]*events[a-z_]*(\{[^}]*\})? [1-9]/m, 'events are counted')
})

t.test('the OpenAPI document', async (t) => {
  interface Document {
    openapi: string
    paths: Record<string, Record<string, { responses?: Record<string, unknown>; operationId?: string }>>
  }
  const answer = await client.get<Document>('/openapi.json')
  t.equal(answer.status, 200)
  const document = answer.body
  t.match(document.openapi, /^3\.1\./)
  const expected = [
    ['post', '/runs'],
    ['get', '/runs'],
    ['post', '/runs/validate'],
    ['get', '/runs/{id}'],
    ['get', '/runs/{id}/state'],
    ['get', '/runs/{id}/events'],
    ['post', '/runs/{id}/events'],
    ['get', '/runs/{id}/raw'],
    ['get', '/runs/{id}/stream'],
    ['post', '/runs/{id}/projection/rebuild'],
    ['get', '/events'],
    ['post', '/ingest/explain'],
    ['get', '/keys'],
    ['post', '/keys'],
    ['get', '/healthz'],
    ['get', '/readyz'],
    ['get', '/metrics'],
  ]
  const has = new Set(
    Object.entries(document.paths).flatMap(([path, item]) => Object.keys(item).map((method) => `${method} ${path.replace(/\{[^}]+\}/g, '{id}')}`)),
  )
  t.same(
    expected.filter(([method, path]) => !has.has(`${method} ${path}`)),
    [],
    'names every route of the contract',
  )
  const references = [...answer.text.matchAll(/"\$ref":"#\/components\/schemas\/([^"]+)"/g)].map((match) => match[1] ?? '')
  t.same(
    references.filter((name) => !answer.text.includes(`"${name}":{`)),
    [],
    'has no reference into nothing',
  )
  const ids = Object.values(document.paths).flatMap((item) => Object.values(item).flatMap((operation) => operation.operationId ?? []))
  t.equal(new Set(ids).size, ids.length, 'operation ids are unique')
  t.match((await client.get('/docs')).status, 200)
})

t.test('every error is problem details with its code and the id of the request', async (t) => {
  isProblem(t, await client.get('/nowhere'), 404, 'NOT_FOUND')
  isProblem(t, await client.get(`/runs/${newId('nobody')}`), 404, 'RUN_NOT_FOUND')
  isProblem(t, await client.send('POST', '/runs', { body: '{' }), 400, 'VALIDATION_ERROR')
  const wrong = await client.post<Problem>('/runs', { name: 1, tags: 'x' })
  isProblem(t, wrong, 400, 'VALIDATION_ERROR')
  t.match(wrong.body.errors, [{ path: String, message: String }])
  const one = (await client.get<Problem>('/nowhere')).body.requestId
  t.not(one, (await client.get<Problem>('/nowhere')).body.requestId)
})

t.test('a page of another origin cannot reach an open service', { skip: !service && 'it may be closed' }, async (t) => {
  // fetch sets Host itself, so that a connection of one's own is needed.
  for (const [host, expected] of [
    ['evil.example', 403],
    ['127.0.0.1.evil.example', 403],
    ['localhost', 200],
    ['[::1]:3000', 200],
    ['127.0.0.1:1', 200],
  ] as const) {
    const answer = await openStream(`${url}/runs`, { headers: { host } })
    await answer.closed()
    t.equal(answer.status, expected, host)
  }
  const cors = await client.send('OPTIONS', '/runs', { headers: { origin: 'https://evil.example', 'access-control-request-method': 'POST' } })
  t.equal(cors.headers.get('access-control-allow-origin'), null, 'CORS is off')
})

t.test('keys', { skip: !service && 'the first key would close a service that is given' }, async (t) => {
  interface Key {
    id: string
    key?: string
    token?: string
    secret?: string
    name: string
    role: string
  }
  const secretOf = (key: Key) => key.key ?? key.token ?? key.secret ?? ''
  const { runId } = await client.createRun({ id: newId('guarded') })
  const made = await client.post<Key>('/keys', { name: 'root', role: 'admin' })
  t.equal(made.status, 201, made.text)
  t.ok(secretOf(made.body).length >= 40, 'a key is long')
  const as = (key: Key) => createClient(url, { ...access, authorization: `Bearer ${secretOf(key)}` })
  const admin = as(made.body)
  const member = as((await admin.post<Key>('/keys', { name: 'agent', role: 'member' })).body)
  const guestKey = (await admin.post<Key>('/keys', { name: 'viewer', role: 'guest' })).body
  const guest = as(guestKey)

  await t.test('close the service to those who have none', async (t) => {
    for (const path of ['/runs', `/runs/${runId}`, `/runs/${runId}/stream`, '/events', '/keys']) isProblem(t, await client.get(path), 401, 'UNAUTHENTICATED')
    isProblem(t, await createClient(url, { authorization: 'Bearer nonsense' }).get('/runs'), 401, 'UNAUTHENTICATED')
    isProblem(t, await createClient(url, { authorization: `Basic ${secretOf(made.body)}` }).get('/runs'), 401, 'UNAUTHENTICATED')
    t.equal((await client.get('/healthz')).status, 200)
    t.equal((await client.get('/readyz')).status, 200)
  })
  await t.test('of a guest read and do nothing else', async (t) => {
    t.equal((await guest.get(`/runs/${runId}`)).status, 200)
    t.equal((await guest.get(`/runs/${runId}/events`)).status, 200)
    isProblem(t, await guest.post('/runs', {}), 403, 'FORBIDDEN')
    isProblem(t, await guest.append(runId, { type: 'run.started' }), 403, 'FORBIDDEN')
    isProblem(t, await guest.get('/keys'), 403, 'FORBIDDEN')
  })
  await t.test('of a member post and do not manage', async (t) => {
    t.equal((await member.post('/runs', {})).status, 201)
    t.equal((await member.append(runId, { type: 'custom.emitted', data: { name: 'x' } })).status, 200)
    isProblem(t, await member.post('/keys', { name: 'x', role: 'admin' }), 403, 'FORBIDDEN')
    t.equal((await member.events(runId)).at(-1)?.source.name, 'agent', 'without a source an event is from the key')
  })
  await t.test('are shown once, and listed without their secret', async (t) => {
    const list = await admin.get<Page<Key>>('/keys')
    t.equal(list.status, 200)
    t.same(list.body.data.map((key) => [key.name, key.role]).sort(), [
      ['agent', 'member'],
      ['root', 'admin'],
      ['viewer', 'guest'],
    ])
    t.notOk(list.text.includes(secretOf(made.body)))
  })
  await t.test('end when they are deleted', async (t) => {
    const deleted = await admin.send('DELETE', `/keys/${guestKey.id}`)
    t.ok(deleted.status === 204 || deleted.status === 200, `${deleted.status}`)
    isProblem(t, await guest.get('/runs'), 401, 'UNAUTHENTICATED')
  })
  await t.test('do not get into the logs', async (t) => {
    t.notOk(service?.logs().includes(secretOf(made.body)))
  })
  await t.test('outlive a restart', async (t) => {
    await service?.kill('SIGKILL')
    await service?.restart()
    isProblem(t, await client.get('/runs'), 401, 'UNAUTHENTICATED')
    t.equal((await admin.get<RunRecord>(`/runs/${runId}`)).status, 200)
  })
  await t.test('of another workspace do not see that a run is there', async (t) => {
    const other = await admin.post<Key>('/keys', { name: 'stranger', role: 'admin', workspace: newId('elsewhere') })
    t.equal(other.status, 201, other.text)
    const stranger = as(other.body)
    for (const path of ['', '/state', '/events', '/raw', '/stream']) isProblem(t, await stranger.get(`/runs/${runId}${path}`), 404, 'RUN_NOT_FOUND')
    isProblem(t, await stranger.append(runId, { type: 'run.started' }), 404, 'RUN_NOT_FOUND')
    t.same((await stranger.get<Page<RunRecord>>('/runs')).body.data, [])
    t.equal((await stranger.post('/runs', { id: runId })).status, 201, 'the same id is free there')
  })
})

t.test('a stop ends streams so that clients reconnect, and loses nothing', { skip: !service && 'a service that is given is not stopped' }, async (t) => {
  if (!service) return
  const own = await target(t)
  const { runId } = await own.client.createRun()
  const stream = await openStream(`${own.url}/runs/${runId}/stream`)
  await stream.until((frame) => frame.event === 'caught_up')
  const writing = Promise.all(
    Array.from({ length: 50 }, (_, index) =>
      own.client.append(runId, { id: `${index}`, type: 'custom.emitted', data: { name: `${index}` } }).catch(() => undefined),
    ),
  )
  const code = await own.service?.stop()
  t.equal(code, 0, 'it ends by itself, with 0')
  await stream.closed(1000)
  t.equal(
    stream.frames.some((frame) => frame.event === 'end'),
    false,
    'the run has not ended',
  )
  const acknowledged = (await writing).filter((answer) => answer?.status === 200).length
  await own.service?.restart()
  const stored = (await own.client.events(runId, '&type=custom.emitted')).length
  t.ok(stored >= acknowledged, `${acknowledged} of 50 were acknowledged, ${stored} are there`)
})
