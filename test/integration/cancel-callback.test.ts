/** A worker that named a callback is told that its run is to be cancelled, at least once, whoever crashes. */
import { text } from 'node:stream/consumers'
import t from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import { createOutbound } from '../../src/ops/outbound.js'
import { createCancelCallbacks } from '../../src/runs/cancel-callback.js'
import { dump, silent, testDatabase } from '../support/database.js'
import { createClient, eventually, type Problem, type RunRecord } from '../support/http.js'
import { attachedInstance, attachedRuns, sourceServer } from '../support/source-server.js'

t.test('cancel callbacks', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const runs = attachedRuns(database)
  const instance = attachedInstance(t, database)
  const warnings: object[] = []
  const outbound = createOutbound({ allowPrivate: true })
  t.teardown(() => outbound.close())
  const sender = (options: { allowPrivate?: boolean; timeoutMs?: number } = {}) => {
    const guarded = options.allowPrivate === false ? createOutbound({ allowPrivate: false }) : outbound
    const one = createCancelCallbacks({
      sql,
      outbound: guarded,
      logger: { warn: (details) => warnings.push(details) },
      pollMs: 50,
      retryMs: 10,
      timeoutMs: options.timeoutMs ?? 5000,
    })
    t.teardown(async () => {
      await one.close()
      if (guarded !== outbound) await guarded.close()
    })
    one.start()
    return one
  }
  const bodies: Record<string, unknown>[] = []
  const requestCancel = async (id: string, reason: string) =>
    instance.log.append({
      runKey: (await runs.run(id)).key,
      receivedAt: new Date().toISOString(),
      items: [],
      decide: () => [{ type: 'run.cancel_requested', data: { reason } }],
    })
  const row = async (id: string) => {
    const [found] = await sql`select c.* from cancel_callbacks c join runs r on r.key = c.run_key where r.id = ${id}`
    return found
  }
  const isOver = (id: string) => eventually(`the callback of ${id}`, async () => ((await row(id))?.ended_at ? row(id) : undefined))
  /** A run with a worker, whose cancellation waits for it. */
  const running = async (id: string, url: string, headers?: Record<string, string>) => {
    await instance.create({ id, queue: 'q', cancelCallback: { url, ...(headers && { headers }) } })
    await instance.log.append({
      runKey: (await runs.run(id)).key,
      receivedAt: new Date().toISOString(),
      items: [],
      decide: () => [{ type: 'run.claimed', data: { workerId: 'w', leaseExpiresAt: new Date(Date.now() + 600_000).toISOString() } }],
    })
  }

  await t.test('are sent the event, with the headers of the run', async (t) => {
    const worker = await sourceServer(t, async (request, response) => {
      bodies.push(JSON.parse(await text(request)))
      response.writeHead(200).end()
    })
    const one = sender()
    await running('told', worker.url, { Authorization: 'Bearer s3cret' })
    await instance.create({ id: 'without', queue: 'q' })
    await requestCancel('told', 'enough')
    await requestCancel('without', 'enough')
    t.match(await isOver('told'), { attempts: 1, error: null })
    t.match(bodies, [{ runId: 'told', type: 'run.cancel_requested', data: { reason: 'enough' } }])
    t.match(worker.requests[0], {
      method: 'POST',
      headers: { authorization: 'Bearer s3cret', 'content-type': 'application/json', 'idempotency-key': /^told:/ },
    })
    t.equal(await row('without'), undefined)

    // Another attempt of the same run may be cancelled as well.
    await instance.log.append({
      runKey: (await runs.run('told')).key,
      receivedAt: new Date().toISOString(),
      items: [],
      decide: () => [
        { type: 'run.cancelled', data: {} },
        { type: 'run.retry_scheduled', data: { delayMs: 0, attempt: 2 } },
      ],
    })
    await requestCancel('told', 'again')
    await eventually('the second', () => (bodies.length === 2 ? true : undefined))
    t.match(bodies[1], { data: { reason: 'again' } })
    await one.close()
  })

  await t.test('that fail are tried again, by whichever instance', async (t) => {
    const worker = await sourceServer(t, (request, response, count) => {
      request.resume()
      if (count === 0) request.socket.destroy()
      else response.writeHead(count < 4 ? 503 : 204).end()
    })
    const several = [sender(), sender(), sender()]
    await running('flaky', worker.url)
    await requestCancel('flaky', 'x')
    t.match(await isOver('flaky'), { attempts: 5, error: null })
    t.equal(worker.requests.length, 5)
    t.equal(new Set(worker.requests.map((request) => request.headers['idempotency-key'])).size, 1)
    for (const one of several) await one.close()
  })

  await t.test('that nobody was there to send are sent by the next', async (t) => {
    const worker = await sourceServer(t, (request, response) => {
      request.resume()
      response.end()
    })
    await running('late', worker.url)
    await requestCancel('late', 'x')
    t.equal(worker.requests.length, 0)
    const one = sender()
    t.match(await isOver('late'), { attempts: 1, error: null })
    t.equal(worker.requests.length, 1)
    await one.close()
  })

  await t.test('that are refused, answer with a redirect or never answer are given up', async (t) => {
    const gone = await sourceServer(t, (_request, response) => response.writeHead(410).end())
    const elsewhere = await sourceServer(t, (_request, response) => response.writeHead(307, { location: gone.url }).end())
    const silent = await sourceServer(t, () => {})
    const cancel = async (id: string, url: string) => {
      await running(id, url)
      await requestCancel(id, 'x')
    }
    const one = sender()
    await cancel('gone', gone.url)
    await cancel('elsewhere', elsewhere.url)
    t.match(await isOver('gone'), { attempts: 1, error: /410/ })
    t.match(await isOver('elsewhere'), { attempts: 1, error: /307/ })
    t.equal(gone.requests.length, 1)
    await one.close()
    const impatient = sender({ timeoutMs: 50 })
    await cancel('silent', silent.url)
    t.match(await isOver('silent'), { attempts: 8, error: /Timeout|aborted/i })
    await impatient.close()
    const strict = sender({ allowPrivate: false })
    await cancel('private', gone.url)
    t.match(await isOver('private'), { attempts: 1, error: /not a public address/ })
    t.equal(gone.requests.length, 1)
    await strict.close()
  })

  await t.test('of runs that are over leave nothing behind', async (t) => {
    const one = sender()
    for (const { id } of await sql<{ id: string }[]>`select r.id from cancel_callbacks c join runs r on r.key = c.run_key`) {
      await instance.log.append({
        runKey: (await runs.run(id)).key,
        receivedAt: new Date().toISOString(),
        items: [],
        decide: () => [{ type: 'run.cancelled', data: {} }],
      })
    }
    await eventually('no rows', async () => ((await sql`select from cancel_callbacks`).length === 0 ? true : undefined))
    await one.close()
    t.notMatch(JSON.stringify(warnings), /s3cret/)
  })
})

t.test('the callback of a macp session', async (t) => {
  const SECRET = 'opt-shared-secret'
  const database = await testDatabase(t)
  const config = loadConfig({ OUTBOUND_ALLOW_PRIVATE: 'true', SNAPSHOT_EVERY_EVENTS: '1' }, { envFile: '/nonexistent' })
  const app = await buildApp({ config, database, logger: silent })
  t.teardown(() => app.close())
  const client = createClient(await app.listen({ port: 0, host: '127.0.0.1' }))
  const initiator = await sourceServer(t, (request, response) => {
    request.resume()
    response.writeHead(204).end()
  })
  const session = (cancelCallback: unknown) => ({
    modeName: 'macp.mode.decision.v1',
    participants: [{ id: 'agent-1' }],
    metadata: { environment: 'test', cancelCallback },
  })
  const descriptor = (cancelCallback: unknown, idempotencyKey?: string) => ({
    mode: 'live',
    runtime: { kind: 'rust' },
    session: session(cancelCallback),
    execution: { ...(idempotencyKey && { idempotencyKey }) },
  })
  const called = { url: initiator.url, bearer: SECRET }

  await t.test('is called with its bearer', async (t) => {
    const { runId } = (await client.post<RunRecord>('/runs', descriptor(called))).body
    await client.append(runId, { type: 'run.started' })
    const copies = [
      (await client.post<RunRecord>(`/runs/${runId}/clone`, {})).body.runId,
      (await client.post<RunRecord>('/runs', { name: 'native', session: session(called) })).body.runId,
      (await client.post<RunRecord>(`/runs/${(await client.post<RunRecord>('/runs', {})).body.runId}/clone`, { session: session(called) })).body.runId,
    ]
    for (const id of copies) await client.append(id, { type: 'run.started' })
    for (const id of [runId, ...copies]) {
      t.equal((await client.post(`/runs/${id}/cancel`, { reason: 'enough' })).status, 200)
      const request = await eventually('the call', () => initiator.requests.find(({ headers }) => String(headers['idempotency-key']).startsWith(`${id}:`)))
      t.match(request, { method: 'POST', headers: { authorization: `Bearer ${SECRET}` } })
    }
    const { runId: bare } = (await client.post<RunRecord>('/runs', descriptor({ url: initiator.url }))).body
    await client.append(bare, { type: 'run.started' })
    await client.post(`/runs/${bare}/cancel`, {})
    const request = await eventually('the call', () => initiator.requests.find(({ headers }) => String(headers['idempotency-key']).startsWith(`${bare}:`)))
    t.equal(request.headers.authorization, undefined)
  })

  await t.test('is shown nowhere, and stored where it is called from only', async (t) => {
    const created = await client.post<RunRecord>('/runs', descriptor(called))
    t.equal(created.status, 201, created.text)
    t.match(created.body, { kind: 'macp', metadata: { environment: 'test', mode: 'live' }, session: { modeName: 'macp.mode.decision.v1' } })
    const { runId } = created.body
    await client.append(runId, { type: 'run.completed' })
    const answers = [created, await client.post('/runs', descriptor(called, 'shown'))]
    for (const path of ['', '/state', '/events', '/raw', '/stream', '/export?format=ndjson', '/export?format=json', '/metrics'])
      answers.push(await client.get(`/runs/${runId}${path}`))
    answers.push(await client.get('/runs'), await client.get('/events'), await client.get('/audit'), await client.post('/runs/validate', descriptor(called)))
    for (const { status, text } of answers) {
      t.ok(status === 200 || status === 201, text)
      t.notMatch(text, SECRET)
      t.notMatch(text, 'cancelCallback')
    }
    await eventually('the snapshot is written', async () => ((await database.sql`select from run_projections`).length > 0 ? true : undefined))
    const rows = (await dump(database)).replaceAll(JSON.stringify({ Authorization: `Bearer ${SECRET}` }), '').split('\n')
    t.same(
      rows.filter((row) => row.includes(SECRET)),
      [],
    )
  })

  await t.test('is part of what was asked for', async (t) => {
    const first = await client.post<RunRecord>('/runs', descriptor(called, 'k'))
    t.equal(first.status, 201, first.text)
    t.match(await client.post('/runs', descriptor(called, 'k')), { status: 200, body: { runId: first.body.runId } })
    for (const other of [{ ...called, bearer: 'another' }, { url: called.url }, undefined])
      t.match(await client.post('/runs', descriptor(other, 'k')), { status: 409, body: { code: 'IDEMPOTENCY_CONFLICT' } })
  })

  await t.test('is checked as that of a native command is, and nothing of it is repeated', async (t) => {
    const at = 'body/session/metadata/cancelCallback'
    for (const [callback, path] of [
      [null, at],
      [{ bearer: SECRET }, `${at}/url`],
      [{ ...called, url: 'ftp://example.com/' }, `${at}/url`],
      [{ ...called, bearer: `${SECRET}\n` }, `${at}/bearer`],
      [{ ...called, token: SECRET }, `${at}/token`],
    ] as const) {
      for (const body of [descriptor(callback), { session: session(callback) }]) {
        const refused = await client.post<Problem>('/runs', body)
        t.match(refused, { status: 400, body: { code: 'VALIDATION_ERROR', errors: [{ path }] } })
        t.notMatch(refused.text, SECRET)
        t.match((await client.post('/runs/validate', body)).body, { valid: false, errors: [{ path }] })
      }
    }
    const twice = await client.post<Problem>('/runs', { session: session(called), cancelCallback: { url: called.url } })
    t.match(twice, { status: 400, body: { code: 'VALIDATION_ERROR', detail: new RegExp(at) } })
  })
})
