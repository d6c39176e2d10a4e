/** Webhooks against real receivers: good ones, and each way in which one can be bad. */
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { DEFAULT_WORKSPACE_ID } from '../../src/domain/ids.js'
import { createEndpoints } from '../../src/webhooks/endpoints.js'
import { silent, testDatabase } from '../support/database.js'
import { type Client, createClient, eventually, type Page, type Problem, seqsUpTo } from '../support/http.js'
import { OK, type Receiver, seqsByRun, startReceiver, verifies } from '../support/webhook-receiver.js'

interface Webhook {
  id: string
  url: string
  types: string[]
  enabled: boolean
  disabledReason: string | null
  oldSecretsExpireAt: string | null
  secret?: string
}
interface Delivery {
  id: string
  runId: string
  seq: number
  type: string
  status: string
  attempts: number
  lastStatus: number | null
  lastError: string | null
  lastAnswer: string | null
  nextAttemptAt: string | null
}

const FAST = { OUTBOUND_ALLOW_PRIVATE: 'true', WEBHOOK_POLL_MS: '100', WEBHOOK_TIMEOUT_MS: '1000' }

async function instance(t: Test, database: Database, env: Record<string, string> = {}): Promise<Client> {
  const app = await buildApp({ config: loadConfig({ ...FAST, ...env }, { envFile: '/nonexistent' }), database, logger: silent })
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => app.close())
  return createClient(`http://127.0.0.1:${(app.server.address() as AddressInfo).port}`)
}

async function setUp(t: Test, env: Record<string, string> = {}) {
  const database = await testDatabase(t)
  return { database, client: await instance(t, database, env) }
}

async function webhookFor(client: Client, receiver: Receiver, more: object = {}): Promise<Webhook & { secret: string }> {
  const answer = await client.post<Webhook & { secret: string }>('/webhooks', { url: receiver.url, ...more })
  if (answer.status !== 201) throw new Error(`POST /webhooks answered ${answer.status}: ${answer.text}`)
  receiver.secret = answer.body.secret
  return answer.body
}

const emit = (client: Client, runId: string, count = 1) =>
  client.append(
    runId,
    Array.from({ length: count }, (_, index) => ({ type: 'custom.emitted', data: { name: 'e', value: index } })),
  )

const deliveries = async (client: Client, webhook: { id: string }, query = '') =>
  (await client.get<Page<Delivery>>(`/webhooks/${webhook.id}/deliveries${query}`)).body

const firstDead = (client: Client, webhook: { id: string }) =>
  eventually('a dead delivery', async () => (await deliveries(client, webhook, '?status=dead')).data[0], 20_000)

t.test('events arrive as they are in the log, in order, signed for the public library', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t)
  const webhook = await webhookFor(client, receiver)
  t.match(webhook.secret, /^whsec_[A-Za-z0-9+/]{43}=$/)
  await client.createRun({ id: 'run-1' })
  await emit(client, 'run-1', 40)
  await client.append('run-1', { type: 'run.completed' })
  const log = await client.events('run-1')
  await receiver.until('all events', (received) => received.length >= log.length)
  t.same(
    receiver.received.map(({ data }) => data),
    log,
    'each is the canonical event, in order',
  )
  for (const received of receiver.received) {
    t.ok(received.verified, `seq ${received.data.seq} is verified`)
    t.equal(received.type, received.data.type)
    t.equal(received.timestamp, received.data.ts)
    t.match(received.headers, { 'content-type': 'application/json', 'user-agent': /^Runplane\// })
  }
  t.notOk(
    verifies(`whsec_${Buffer.alloc(32).toString('base64')}`, receiver.received[0]?.text ?? '', receiver.received[0]?.headers ?? {}),
    'not with another secret',
  )
  t.equal(new Set(receiver.received.map(({ id }) => id)).size, log.length, 'each has an id of its own')
  const page = await eventually('all to be delivered', async () => {
    const all = await deliveries(client, webhook, '?limit=200&status=delivered')
    return all.data.length === log.length ? all : undefined
  })
  t.same(
    page.data.map(({ seq }) => seq),
    seqsUpTo(log.length).reverse(),
    'listed newest first',
  )
  t.match(page.data[0], { runId: 'run-1', status: 'delivered', attempts: 1, lastStatus: 204, lastError: null, nextAttemptAt: null })
})

t.test('an endpoint gets the types that it wants, from its creation to its end', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t)
  await client.createRun({ id: 'run-1' })
  const webhook = await webhookFor(client, receiver, { types: ['run.*', 'step.output'] })
  await client.append('run-1', [
    { type: 'run.started' },
    { type: 'step.started', subject: { kind: 'step', id: 's' } },
    { type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: 'x' } },
    { type: 'runner.moved', data: {} },
    { type: 'run.completed' },
  ])
  await receiver.until('three events', (received) => received.length >= 3)
  t.same(
    receiver.received.map(({ type }) => type),
    ['run.started', 'step.output', 'run.completed'],
  )
  await client.send('PATCH', `/webhooks/${webhook.id}`, { body: { types: ['custom.emitted'] } })
  await client.append('run-1', [{ type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: 'x' } }])
  await emit(client, 'run-1')
  await receiver.until('a fourth', (received) => received.length >= 4)
  t.equal(receiver.received[3]?.type, 'custom.emitted')
  await client.send('PATCH', `/webhooks/${webhook.id}`, { body: { enabled: false } })
  await emit(client, 'run-1')
  await client.send('PATCH', `/webhooks/${webhook.id}`, { body: { enabled: true } })
  await client.append('run-1', [{ type: 'custom.emitted', data: { name: 'last' } }])
  await receiver.until('a fifth', (received) => received.length >= 5)
  t.equal(receiver.received[4]?.data.data.name, 'last', 'what came while it was disabled is not sent')
  t.equal((await client.send('DELETE', `/webhooks/${webhook.id}`)).status, 204)
  t.equal((await client.get(`/webhooks/${webhook.id}`)).status, 404)
  t.equal((await client.get(`/webhooks/${webhook.id}/deliveries`)).status, 404)
  t.same((await client.get<Page<Webhook>>('/webhooks')).body.data, [])
})

t.test('a secret that is rotated signs until it expires', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t)
  const own = `whsec_${Buffer.alloc(24, 7).toString('base64')}`
  const webhook = await webhookFor(client, receiver, { secret: own })
  t.equal(webhook.secret, own, 'a secret may be brought along')
  await client.createRun({ id: 'run-1' })
  await receiver.until('the first', (received) => received.length === 1)
  const rotated = await client.post<Webhook & { secret: string }>(`/webhooks/${webhook.id}/rotate`)
  t.equal(rotated.status, 200)
  t.not(rotated.body.secret, own)
  t.ok(Date.parse(rotated.body.oldSecretsExpireAt ?? '') > Date.now())
  await emit(client, 'run-1')
  await receiver.until('the second', (received) => received.length === 2)
  const second = receiver.received[1]
  t.equal(second?.signatures.length, 2)
  t.ok(second?.verified, 'who has the old secret can verify it')
  t.ok(verifies(rotated.body.secret, second?.text ?? '', second?.headers ?? {}), 'and who has the new one')
  t.equal((await client.post<Webhook>(`/webhooks/${webhook.id}/rotate`, { overlapMs: 0 })).body.oldSecretsExpireAt, null)
  await emit(client, 'run-1')
  await receiver.until('the third', (received) => received.length === 3)
  t.equal(receiver.received[2]?.signatures.length, 1)
  t.notOk(receiver.received[2]?.verified, 'without an overlap the old one is over at once')
  const shown = await client.get(`/webhooks/${webhook.id}`)
  t.notMatch(shown.text, /whsec_/, 'no secret is shown again')
})

t.test('a receiver that is down for a while gets everything in order, and other runs are not held up', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t, ({ data }) => (data.runId === 'stuck' && data.seq === 2 && stuck ? { status: 500, body: 'not now' } : OK))
  let stuck = true
  const webhook = await webhookFor(client, receiver)
  for (const id of ['stuck', 'free']) await client.createRun({ id })
  for (const id of ['stuck', 'free']) await emit(client, id, 5)
  await eventually('the free run to arrive', () => (seqsByRun(receiver.accepted).get('free')?.length === 6 ? true : undefined))
  await eventually('a failed attempt', async () => (await deliveries(client, webhook, '?status=pending')).data.find(({ attempts }) => attempts > 0))
  t.same(seqsByRun(receiver.accepted).get('stuck'), [1], 'later events of the run wait')
  const waiting = (await deliveries(client, webhook, '?status=pending')).data.find(({ seq }) => seq === 2)
  t.match(waiting, { lastStatus: 500, lastError: 'It answered 500.', lastAnswer: 'not now' })
  stuck = false
  await eventually('the stuck run to arrive', () => (seqsByRun(receiver.accepted).get('stuck')?.length === 6 ? true : undefined), 30_000)
  t.same(seqsByRun(receiver.accepted).get('stuck'), seqsUpTo(6))
  const [first, ...retries] = receiver.received.filter(({ data }) => data.runId === 'stuck' && data.seq === 2)
  t.ok(retries.length > 0)
  for (const retry of retries) t.equal(retry.id, first?.id, 'a retry has the id of the first attempt')
  await receiver.shut()
  await emit(client, 'free', 3)
  await eventually('a refused attempt', async () =>
    (await deliveries(client, webhook, '?status=pending')).data.find(({ lastError }) => /ECONNREFUSED/.test(lastError ?? '')),
  )
  await receiver.open()
  await eventually('what came meanwhile', () => (seqsByRun(receiver.accepted).get('free')?.length === 9 ? true : undefined), 30_000)
  t.same(seqsByRun(receiver.accepted).get('free'), seqsUpTo(9))
  t.ok(receiver.received.every(({ verified }) => verified))
})

t.test('each way to fail is a failure that says what it was, ends dead, and lets the next one go', async (t) => {
  const elsewhere = await startReceiver(t)
  const cases: Record<string, { receiver: Parameters<typeof startReceiver>[1]; expected: object }> = {
    'a 500': { receiver: () => ({ status: 500, body: 'x'.repeat(10_000) }), expected: { lastStatus: 500, lastAnswer: 'x'.repeat(2048) } },
    'a redirect': {
      receiver: () => ({ status: 301, headers: { location: elsewhere.url } }),
      expected: { lastStatus: 301, lastError: 'It answered 301, and redirects are not followed.' },
    },
    'an answer that never comes': { receiver: () => undefined, expected: { lastStatus: null, lastError: 'no answer within 1000 ms' } },
    'a connection that is cut': { receiver: (_, response) => void response.destroy(), expected: { lastStatus: null, lastError: /closed|ECONNRESET/ } },
    'headers that are cut': {
      receiver: (_, response) => void response.socket?.end('HTTP/1.1 200 OK\r\ncontent-le'),
      expected: { lastStatus: null },
    },
    garbage: { receiver: (_, response) => void response.socket?.end(Buffer.from([0, 1, 2, 255, 254, 13, 10, 13, 10])), expected: { lastStatus: null } },
    'headers without an end': {
      receiver: (_, response) => {
        response.socket?.write(`HTTP/1.1 200 OK\r\n${'x-filler: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n'.repeat(2000)}`)
        return undefined
      },
      expected: { lastStatus: null },
    },
  }
  const { client } = await setUp(t, { WEBHOOK_RETRY_MS: '1000' })
  await client.createRun({ id: 'run-1' })
  for (const [name, { receiver: behave, expected }] of Object.entries(cases)) {
    await t.test(name, async (t) => {
      const receiver = await startReceiver(t, behave)
      const webhook = await webhookFor(client, receiver, { types: ['custom.emitted'] })
      const { body } = await emit(client, 'run-1')
      const dead = await firstDead(client, webhook)
      t.match(dead, { seq: body.headSeq, ...expected })
      t.ok(dead.attempts >= 2, `after ${dead.attempts} attempts`)
      receiver.behave = () => OK
      const next = await emit(client, 'run-1')
      await eventually('the next one', () => receiver.accepted.find(({ data }) => data.seq === next.body.headSeq))
      t.equal((await client.post(`/webhooks/${webhook.id}/deliveries/${dead.id}/resend`)).status, 202)
      await eventually('the dead one, sent again by hand', () => receiver.accepted.find(({ id }) => id === dead.id))
      await eventually('it to be delivered', async () => (await deliveries(client, webhook, '?status=delivered')).data.find(({ id }) => id === dead.id))
      await client.send('DELETE', `/webhooks/${webhook.id}`)
    })
  }
  t.same(elsewhere.received, [], 'nothing was sent to where the redirect points')
})

t.test('of an answer the status decides, whatever its body does', async (t) => {
  const { client } = await setUp(t)
  let bytes = 0
  const bodies: Parameters<typeof startReceiver>[1][] = [
    (_, response) => {
      // Gigabytes, if nobody stops it.
      response.writeHead(200)
      const chunk = Buffer.alloc(65_536, 'z')
      const more = () => {
        do bytes += chunk.length
        while (!response.destroyed && bytes < 2 ** 30 && response.write(chunk))
      }
      response.on('drain', more)
      more()
      return undefined
    },
    (_, response) => {
      response.writeHead(200, { 'content-length': '1000' })
      response.write('half')
      setImmediate(() => response.destroy())
      return undefined
    },
    (_, response) => {
      response.writeHead(200)
      response.write('\0drip')
      return undefined
    },
    () => ({ status: 200, headers: { 'content-encoding': 'gzip' }, body: 'not gzip' }),
  ]
  const receiver = await startReceiver(
    t,
    (received, ...rest) => bodies[received.data.seq - 1]?.(received, ...rest) ?? (received.data.seq > bodies.length ? OK : undefined),
  )
  const webhook = await webhookFor(client, receiver)
  await client.createRun({ id: 'run-1' })
  await emit(client, 'run-1', bodies.length)
  const all = await eventually('all to be delivered', async () => {
    const { data } = await deliveries(client, webhook, '?status=delivered')
    return data.length === bodies.length + 1 ? data.reverse() : undefined
  })
  t.equal(receiver.received.length, bodies.length + 1, 'each was sent once')
  t.equal(all[0]?.lastAnswer, 'z'.repeat(2048))
  t.equal(all[1]?.lastAnswer, 'half')
  t.equal(all[2]?.lastAnswer, '\ufffddrip')
  t.ok(bytes < 64 * 2 ** 20, `and of the endless one ${bytes} bytes were taken`)
})

t.test('of an answer no secret is kept or shown, cut or whole', async (t) => {
  const { client, database } = await setUp(t, { MASK_PATTERNS: 'sk-[a-z0-9]{16}' })
  const secret = 'sk-planted012345678'
  const body = `bad key ${secret} ${'x'.repeat(2010)}${secret}`
  const receiver = await startReceiver(t, () => ({ status: 500, body }))
  const webhook = await webhookFor(client, receiver)
  await client.createRun({ id: 'run-1' })
  const failed = await eventually('an attempt', async () => (await deliveries(client, webhook)).data.find(({ attempts }) => attempts > 0))
  t.match(failed.lastAnswer, /^bad key \[masked:[a-p]{12}\] x+\[masked:$/)
  t.match((await client.post<{ answer: string }>(`/webhooks/${webhook.id}/test`)).body.answer, /^bad key \[masked:[a-p]{12}\] x+/)
  t.notMatch(JSON.stringify(await database.sql`select * from webhook_deliveries`), /sk-pl/)
})

t.test('an endpoint that answers 410 is disabled until an admin enables it', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t, () => ({ status: 410 }))
  const webhook = await webhookFor(client, receiver)
  await client.createRun({ id: 'run-1' })
  const disabled = await eventually('it to be disabled', async () => {
    const { body } = await client.get<Webhook>(`/webhooks/${webhook.id}`)
    return body.enabled ? undefined : body
  })
  t.match(disabled.disabledReason, /410/)
  t.match((await deliveries(client, webhook)).data, [{ seq: 1, status: 'pending', lastStatus: 410, attempts: 1 }])
  await emit(client, 'run-1')
  receiver.behave = () => OK
  const enabled = await client.send<Webhook>('PATCH', `/webhooks/${webhook.id}`, { body: { enabled: true } })
  t.match(enabled.body, { enabled: true, disabledReason: null })
  await emit(client, 'run-1')
  await eventually('what came after', () => receiver.accepted.find(({ data }) => data.seq === 3))
  t.same(
    receiver.accepted.map(({ data }) => data.seq),
    [1, 3],
  )
})

t.test('Retry-After is respected, for the whole endpoint', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t, () => (receiver.received.length === 1 ? { status: 429, headers: { 'retry-after': '3600' } } : OK))
  const webhook = await webhookFor(client, receiver)
  await client.createRun({ id: 'run-1' })
  const put = await eventually('the answer to be stored', async () => (await deliveries(client, webhook)).data.find(({ attempts }) => attempts === 1))
  t.match(put, { status: 'pending', lastStatus: 429 })
  const waitMs = Date.parse(put.nextAttemptAt ?? '') - Date.now()
  t.ok(waitMs > 3_500_000 && waitMs <= 3_600_000, `it waits ${waitMs} ms`)
  const other = await startReceiver(t)
  await webhookFor(client, other)
  await client.createRun({ id: 'run-2' })
  await other.until('the other endpoint to get it', (received) => received.length > 0)
  t.equal(receiver.received.length, 1, 'the first is left alone meanwhile')
})

t.test('a slow and a dead endpoint do not starve others, and no endpoint gets more than its share at once', async (t) => {
  const { client } = await setUp(t, { WEBHOOK_CONCURRENCY: '3', WEBHOOK_TIMEOUT_MS: '60000' })
  const held: (() => void)[] = []
  const slow = await startReceiver(t, () => new Promise((resolve) => held.push(() => resolve(OK))))
  const dead = await startReceiver(t)
  await dead.shut()
  const good = await startReceiver(t)
  for (const receiver of [slow, dead, good]) await webhookFor(client, receiver)
  const ids = Array.from({ length: 30 }, (_, index) => `run-${index}`)
  await Promise.all(ids.map((id) => client.createRun({ id })))
  await Promise.all(ids.map((id) => emit(client, id, 3)))
  await eventually('the good one to have all', () => (good.accepted.length === 120 ? true : undefined), 30_000)
  for (const id of ids) t.same(seqsByRun(good.accepted).get(id), seqsUpTo(4))
  t.equal(slow.received.length, 3, 'the slow one has three')
  slow.behave = () => OK
  for (const answer of held) answer()
  await eventually('the slow one to have all', () => (slow.accepted.length === 120 ? true : undefined), 30_000)
  for (const id of ids) t.same(seqsByRun(slow.accepted).get(id), seqsUpTo(4))
  t.ok(slow.mostAtOnce <= 3, `${slow.mostAtOnce} at once`)
})

t.test('events of a run that was deleted are not sent', async (t) => {
  const { client, database } = await setUp(t)
  const receiver = await startReceiver(t, () => ({ status: 500 }))
  const webhook = await webhookFor(client, receiver)
  await client.createRun({ id: 'gone' })
  await client.append('gone', { type: 'run.completed' })
  await eventually('an attempt', () => (receiver.received.length > 0 ? true : undefined))
  const deleted = await client.send('DELETE', '/runs/gone')
  if (deleted.status >= 300) await database.sql`delete from runs where id = 'gone'`
  receiver.behave = () => OK
  await eventually('nothing to be pending', async () => ((await deliveries(client, webhook, '?status=pending')).data.length === 0 ? true : undefined), 30_000)
  t.same(receiver.accepted, [])
})

t.test('a test message is sent at once, and its outcome answered', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t)
  const webhook = await webhookFor(client, receiver, { enabled: false })
  const test = () => client.post<object>(`/webhooks/${webhook.id}/test`)
  t.match((await test()).body, { delivered: true, status: 204, error: null })
  t.match(receiver.received, [{ type: 'webhook.test', verified: true, data: { webhookId: webhook.id } }])
  receiver.behave = () => ({ status: 404, body: 'nobody here' })
  t.match((await test()).body, { delivered: false, status: 404, answer: 'nobody here' })
  await receiver.shut()
  t.match((await test()).body, { delivered: false, status: null, error: /ECONNREFUSED/ })
})

t.test('deliveries are listed in pages, of one status or of all', async (t) => {
  const { client } = await setUp(t)
  const receiver = await startReceiver(t, ({ data }) => (data.runId === 'held' ? { status: 500 } : OK))
  const webhook = await webhookFor(client, receiver)
  for (const id of ['held', 'done']) await client.createRun({ id })
  for (const id of ['held', 'done']) await emit(client, id, 10)
  await eventually('the rest to be delivered', async () => ((await deliveries(client, webhook, '?status=delivered')).data.length === 11 ? true : undefined))
  for (const [query, count] of [
    ['', 22],
    ['&status=pending', 11],
    ['&status=delivered', 11],
    ['&status=dead', 0],
  ] as const) {
    const ids: string[] = []
    for (let cursor = ''; ; ) {
      const page = await deliveries(client, webhook, `?limit=5${query}${cursor}`)
      ids.push(...page.data.map(({ id }) => id))
      if (!page.nextCursor) break
      t.equal(page.data.length, 5)
      cursor = `&cursor=${page.nextCursor}`
    }
    t.equal(ids.length, count, query)
    t.same(ids, [...new Set(ids)].sort().reverse(), 'newest first, each once')
  }
  const first = (await deliveries(client, webhook, '?status=pending')).data[0]
  t.equal((await client.post<Problem>(`/webhooks/${webhook.id}/deliveries/${first?.id}/resend`)).body.code, 'INVALID_STATE_TRANSITION')
})

t.test('what cannot be is refused with what to do', async (t) => {
  const { client } = await setUp(t)
  const bad: [object, RegExp][] = [
    [{}, /url/],
    [{ url: 'ftp://example.com' }, /http/],
    [{ url: 'https://user:secret@example.com' }, /password/],
    [{ url: 'https://example.com', types: [] }, /types/],
    [{ url: 'https://example.com', types: ['run*'] }, /types/],
    [{ url: 'https://example.com', secret: 'whsec_dG9vIHNob3J0' }, /secret/],
    [{ url: 'https://example.com', secret: `whsec_${Buffer.alloc(65).toString('base64')}` }, /secret/],
    [{ url: 'https://example.com', colour: 'red' }, /colour/],
  ]
  for (const [body, message] of bad) {
    const answer = await client.post<Problem>('/webhooks', body)
    t.match(answer.body, { status: 400, code: 'VALIDATION_ERROR' }, JSON.stringify(body))
    t.match(answer.text, message)
  }
  const id = '01a1fe0f-c52e-7c9b-a458-1a01f6bb5dea'
  t.equal((await client.get<Problem>(`/webhooks/${id}`)).body.code, 'NOT_FOUND')
  t.equal((await client.send<Problem>('PATCH', `/webhooks/${id}`, { body: { enabled: true } })).body.code, 'NOT_FOUND')
  t.equal((await client.send<Problem>('PATCH', `/webhooks/${id}`, { body: {} })).status, 400)
  t.equal((await client.send<Problem>('DELETE', `/webhooks/${id}`)).body.code, 'NOT_FOUND')
  t.equal((await client.post<Problem>(`/webhooks/${id}/rotate`, {})).body.code, 'NOT_FOUND')
  t.equal((await client.post<Problem>(`/webhooks/${id}/test`)).body.code, 'NOT_FOUND')
  t.equal((await client.post<Problem>(`/webhooks/${id}/deliveries/resend`)).body.code, 'NOT_FOUND')
  const created = await client.post<Webhook>('/webhooks', { url: 'https://example.com/' })
  t.equal((await client.post<Problem>(`/webhooks/${created.body.id}/deliveries/${id}/resend`)).body.code, 'NOT_FOUND')
  t.equal((await client.get<Problem>(`/webhooks/${created.body.id}/deliveries?cursor=x`)).body.code, 'CURSOR_INVALID')
})

t.test('what waits goes to a new address, in order', async (t) => {
  const { client } = await setUp(t)
  const [wrong, right] = [await startReceiver(t, () => ({ status: 404 })), await startReceiver(t)]
  const webhook = await webhookFor(client, wrong)
  right.secret = webhook.secret
  await client.createRun({ id: 'run-1' })
  await emit(client, 'run-1', 3)
  await eventually('an attempt', async () => (await deliveries(client, webhook)).data.find(({ lastStatus }) => lastStatus === 404))
  t.match((await client.send('PATCH', `/webhooks/${webhook.id}`, { body: { url: right.url, description: 'moved' } })).body, {
    url: right.url,
    description: 'moved',
  })
  await eventually('all that waited', () => (right.accepted.length === 4 ? true : undefined), 30_000)
  t.same(seqsByRun(right.accepted).get('run-1'), seqsUpTo(4))
  t.ok(right.received.every(({ verified }) => verified))
  t.match((await client.send('PATCH', `/webhooks/${webhook.id}`, { body: { description: null } })).body, { description: null, url: right.url })
})

t.test('there are so many webhooks, and so many secrets at once', async (t) => {
  const { client, database } = await setUp(t)
  const wanted = { url: 'https://example.com/', enabled: false }
  const endpoints = createEndpoints({ sql: database.sql, outbound: { assertUrl: (url) => new URL(url) }, onChanged() {} })
  await Promise.allSettled(Array.from({ length: 120 }, () => endpoints.create(DEFAULT_WORKSPACE_ID, wanted)))
  const made = (await client.get<Page<Webhook>>('/webhooks')).body.data
  t.equal(made.length, 100, 'however many are made at once')
  const [first] = made
  t.match((await client.post<Problem>('/webhooks', wanted)).body, { status: 409, code: 'INVALID_STATE_TRANSITION', detail: /at most 100/ })
  const rotate = (body?: object) => client.post<Webhook & Problem>(`/webhooks/${first?.id}/rotate`, body)
  for (const body of [
    { overlapMs: -1 },
    { overlapMs: 604_800_001 },
    { overlapMs: '5' },
    { overlapMs: null },
    { secret: 'whsec_' },
    { secret: null },
    { types: ['*'] },
  ])
    t.match((await rotate(body)).body, { code: 'VALIDATION_ERROR' }, JSON.stringify(body))
  for (let n = 2; n <= 10; n++) t.equal((await rotate()).status, 200, `${n} secrets`)
  t.match((await rotate()).body, { code: 'INVALID_STATE_TRANSITION', detail: /overlapMs/ })
  t.match((await rotate({ overlapMs: 0 })).body, { oldSecretsExpireAt: null })
  t.equal((await rotate()).status, 200)
  t.equal(
    (await client.send<Problem>('PATCH', `/webhooks/${first?.id}`, { body: { secret: 'whsec_x' } })).body.code,
    'VALIDATION_ERROR',
    'it is rotated instead',
  )
})

t.test('addresses that are not public are refused, and webhooks are of one workspace and for admins', async (t) => {
  const { client } = await setUp(t, { OUTBOUND_ALLOW_PRIVATE: 'false' })
  for (const url of ['http://127.0.0.1:1/', 'http://[::1]/', 'http://169.254.169.254/latest', 'http://localhost/']) {
    t.match((await client.post('/webhooks', { url })).status, 400, url)
  }
  const created = await client.post<Webhook>('/webhooks', { url: 'https://example.com/' })
  t.equal((await client.send('PATCH', `/webhooks/${created.body.id}`, { body: { url: 'http://10.0.0.1/' } })).status, 400)
  const key = async (role: string, workspace?: string) =>
    (await client.post<{ key: string }>('/keys', { name: role, role, ...(workspace && { workspace }) }, admin)).body.key
  let admin: Record<string, string> = {}
  admin = { authorization: `Bearer ${await key('admin')}` }
  const other = { authorization: `Bearer ${await key('admin', 'other')}` }
  const member = { authorization: `Bearer ${await key('member')}` }
  t.equal((await client.get('/webhooks', member)).status, 403)
  t.equal((await client.get(`/webhooks/${created.body.id}`, admin)).status, 200)
  t.equal((await client.get(`/webhooks/${created.body.id}`, other)).status, 404)
  t.equal((await client.get(`/webhooks/${created.body.id}/deliveries`, other)).status, 404)
  t.equal((await client.send('DELETE', `/webhooks/${created.body.id}`, { headers: other })).status, 404)
  t.same((await client.get<Page<Webhook>>('/webhooks', other)).body.data, [])
})
