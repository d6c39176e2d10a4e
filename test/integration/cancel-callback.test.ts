/** A worker that named a callback is told that its run is to be cancelled, at least once, whoever crashes. */
import { text } from 'node:stream/consumers'
import t from 'tap'
import { createOutbound } from '../../src/ops/outbound.js'
import { createCancelCallbacks } from '../../src/runs/cancel-callback.js'
import { testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
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
    const one = sender({ timeoutMs: 50 })
    for (const [id, { url }] of Object.entries({ gone, elsewhere, silent })) {
      await running(id, url)
      await requestCancel(id, 'x')
    }
    t.match(await isOver('gone'), { attempts: 1, error: /410/ })
    t.match(await isOver('elsewhere'), { attempts: 1, error: /307/ })
    t.equal(gone.requests.length, 1)
    t.match(await isOver('silent'), { attempts: 8, error: /Timeout|aborted/i })
    await one.close()
    const strict = sender({ allowPrivate: false })
    await running('private', gone.url)
    await requestCancel('private', 'x')
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
