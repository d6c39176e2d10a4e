/** The queue over HTTP, on one instance and on two: who gets which run, when, and who may still speak for it. */
import { connect } from 'node:net'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { serverUrl, silent, testDatabase } from '../support/database.js'
import { type CanonicalEvent, createClient, eventually, type Problem } from '../support/http.js'

interface Run {
  runId: string
  status: string
  attempt: number
  lastSeq: number
  availableAt: string | null
  updatedAt: string
  error: { code?: string; message?: string } | null
  lease: { workerId: string; leaseExpiresAt: string | null; leaseMs: number } | null
}
interface Beat {
  leaseExpiresAt: string | null
  cancelRequested: boolean
  status: string
}
interface Queue {
  name: string
  depth: number
  delayed: number
  running: number
  oldest: string | null
  concurrency: number | null
  paused: boolean
}

const FAST = { LEASE_CHECK_MS: '30', RETRY_BASE_MS: '20', RETRY_MAX_MS: '100', STREAM_POLL_MS: '60000' }

async function instance(t: Test, database: Database, env: Record<string, string> = {}) {
  const app: FastifyInstance = await buildApp({ config: loadConfig({ ...FAST, ...env }, { envFile: '/nonexistent' }), database, logger: silent })
  t.teardown(() => app.close())
  await app.listen({ port: 0, host: '127.0.0.1' })
  const address = app.server.address()
  const port = typeof address === 'object' ? (address?.port ?? 0) : 0
  const client = createClient(`http://127.0.0.1:${port}`)
  return {
    app,
    port,
    client,
    create: async (body: object) => {
      const answer = await client.post<Run>('/runs', body)
      if (answer.status !== 201) throw new Error(`POST /runs: ${answer.status} ${answer.text}`)
      return answer.body
    },
    claim: async (queue: string | string[], workerId: string, more: object = {}): Promise<Run | undefined> => {
      const answer = await client.post<Run>('/runs/claim', { ...(typeof queue === 'string' ? { queue } : { queues: queue }), workerId, ...more })
      if (answer.status !== 200 && answer.status !== 204) throw new Error(`claim: ${answer.status} ${answer.text}`)
      return answer.status === 200 ? answer.body : undefined
    },
    beat: (runId: string, workerId: string, more: object = {}) => client.post<Beat & Problem>(`/runs/${runId}/heartbeat`, { workerId, ...more }),
    release: (runId: string, workerId: string, more: object = {}) => client.post<Run & Problem>(`/runs/${runId}/release`, { workerId, ...more }),
    complete: (runId: string, workerId: string) => client.append(runId, { type: 'run.completed' }, { 'x-worker-id': workerId }),
    queue: async (name: string) => (await client.get<Queue>(`/queues/${encodeURIComponent(name)}`)).body,
    limit: async (name: string, limits: object) => (await client.send<Queue>('PUT', `/queues/${encodeURIComponent(name)}`, { body: limits })).body,
    run: async (runId: string) => (await client.get<Run>(`/runs/${runId}`)).body,
    /** Claimers that wait, by what the service has not answered yet. */
    types: async (runId: string) => (await client.events(runId)).map((event) => event.type),
  }
}

/** Runs are made one after another, so that their ages differ. */
async function createAll(service: { create(body: object): Promise<Run> }, bodies: object[]): Promise<void> {
  for (const body of bodies) await service.create(body)
}

t.test('the queue', async (t) => {
  const service = await instance(t, await testDatabase(t))
  const { create, claim, beat, release, complete, queue, limit, run, client } = service

  await t.test('hands out the run of the highest priority, then the oldest, across queues', async (t) => {
    await createAll(service, [
      { id: 'low-a', queue: 'a', priority: -1 },
      { id: 'first-a', queue: 'a' },
      { id: 'first-b', queue: 'b' },
      { id: 'second-a', queue: 'a' },
      { id: 'urgent-b', queue: 'b', priority: 9 },
    ])
    const got: (string | undefined)[] = []
    for (let n = 0; n < 6; n++) got.push((await claim(['a', 'b'], 'w'))?.runId)
    t.same(got, ['urgent-b', 'first-a', 'first-b', 'second-a', 'low-a', undefined])
  })

  await t.test('answers the record with the lease, as GET answers it', async (t) => {
    await create({ id: 'record', queue: 'record', input: { task: 1 }, leaseMs: 7000 })
    const claimed = await claim('record', 'w1')
    t.match(claimed, { runId: 'record', status: 'starting', attempt: 1, lastSeq: 3, input: { task: 1 }, lease: { workerId: 'w1', leaseMs: 7000 } })
    const got = await run('record')
    t.same({ ...got, updatedAt: '' }, { ...claimed, updatedAt: '' })
    t.equal((await claim('record', 'w2', { leaseMs: 5000 }))?.runId, undefined)
  })

  await t.test('a claim that waits gets the run that arrives', async (t) => {
    const waiting = claim('arrival', 'w', { waitMs: 20_000 })
    await create({ id: 'arrival', queue: 'arrival' })
    t.equal((await waiting)?.runId, 'arrival')
  })

  await t.test('a claim that waits in vain is answered when its time is over', async (t) => {
    t.equal(await claim('nothing', 'w', { waitMs: 50 }), undefined)
  })

  await t.test('many claimers and many runs: each run goes to one of them', async (t) => {
    const claims = Array.from({ length: 60 }, (_, n) => claim('many', `w${n}`, { waitMs: 20_000 }))
    await Promise.all(Array.from({ length: 60 }, (_, n) => create({ id: `many-${n}`, queue: 'many' })))
    const got = (await Promise.all(claims)).map((one) => one?.runId)
    t.equal(new Set(got).size, 60)
    t.equal(await claim('many', 'w'), undefined)
  })

  await t.test('availableAt keeps a run back until then', async (t) => {
    // Far off, so that a machine that stalls does not reach it.
    await create({ id: 'tomorrow', queue: 'tomorrow', availableAt: new Date(Date.now() + 86_400_000).toISOString() })
    t.equal(await claim('tomorrow', 'w'), undefined)
    t.match(await queue('tomorrow'), { depth: 0, delayed: 1 })
    const availableAt = new Date(Date.now() + 400).toISOString()
    await create({ id: 'later', queue: 'later', availableAt })
    const got = await claim('later', 'w', { waitMs: 20_000 })
    t.equal(got?.runId, 'later')
    t.ok(Date.now() >= Date.parse(availableAt), 'not before its time')
    await create({ id: 'past', queue: 'later', availableAt: '2020-01-01T00:00:00Z' })
    t.equal((await claim('later', 'w'))?.runId, 'past', 'a time that has passed is no hindrance')
  })

  await t.test('a claimer that is gone gets no run', async (t) => {
    const before = await claim('gone', 'probe')
    t.equal(before, undefined)
    const sockets = Array.from({ length: 20 }, (_, n) => {
      const socket = connect({ port: service.port, host: '127.0.0.1' })
      const body = JSON.stringify({ queue: 'gone', workerId: `gone-${n}`, waitMs: 30_000 })
      socket.on('error', () => {})
      socket.write(
        `POST /runs/claim HTTP/1.1\r\nHost: 127.0.0.1:${service.port}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
      )
      return socket
    })
    // Some leave before the runs come, some at that moment.
    for (const socket of sockets.slice(0, 10)) socket.resetAndDestroy()
    const made = Promise.all(Array.from({ length: 10 }, (_, n) => create({ id: `gone-${n}`, queue: 'gone' })))
    for (const socket of sockets.slice(10)) socket.resetAndDestroy()
    await made
    const got = await Promise.all(Array.from({ length: 10 }, (_, n) => claim('gone', `there-${n}`, { waitMs: 20_000 })))
    t.equal(new Set(got.map((one) => one?.runId)).size, 10, 'all runs come to those who are there')
  })

  await t.test('a heartbeat moves the lease on, by what the claim asked for', async (t) => {
    await create({ id: 'beaten', queue: 'beaten' })
    const claimed = await claim('beaten', 'w', { leaseMs: 60_000 })
    const first = await beat('beaten', 'w')
    t.equal(first.status, 200)
    t.match(first.body, { cancelRequested: false, status: 'starting' })
    t.ok(String(first.body.leaseExpiresAt) > String(claimed?.lease?.leaseExpiresAt))
    const shorter = await beat('beaten', 'w', { leaseMs: 5000 })
    t.ok(String(shorter.body.leaseExpiresAt) < String(first.body.leaseExpiresAt))
    t.equal((await run('beaten')).lease?.leaseExpiresAt, shorter.body.leaseExpiresAt)
  })

  await t.test('who does not hold the run is refused, with its heartbeat, its release and its events', async (t) => {
    await create({ id: 'held', queue: 'held' })
    await claim('held', 'holder')
    for (const answer of [await beat('held', 'other'), await release('held', 'other')]) {
      t.equal(answer.status, 409)
      t.equal(answer.body.code, 'LEASE_LOST')
    }
    t.equal((await complete('held', 'other')).status, 409)
    t.equal((await run('held')).status, 'starting')
    t.equal((await beat('no-such-run', 'other')).status, 404)
    t.equal((await release('no-such-run', 'other')).status, 404)
    t.equal((await complete('held', 'holder')).status, 200)
    const after = await beat('held', 'holder')
    t.equal(after.status, 409, 'nobody holds a run that has ended')
    t.match(after.body.detail, /completed/)
    t.equal((await run('held')).lease, null)
  })

  await t.test('what a worker told before it lost its run is told again as a repeat, and nothing else', async (t) => {
    await create({ id: 'told', queue: 'told' })
    await claim('told', 'w1')
    const post = (workerId: string, ...events: object[]) => client.append('told', events, { 'x-worker-id': workerId })
    const started = { id: 'started', source: 'w1', type: 'run.started' }
    const end = { id: 'end', source: 'w2', type: 'run.completed', data: { output: 1 } }
    t.equal((await post('w1', started)).status, 200)
    await release('told', 'w1')
    await claim('told', 'w2')
    t.match(await post('w1', started), { status: 200, body: { accepted: 0, duplicates: 1, firstSeq: 4, lastSeq: 4 } })
    for (const events of [[started, end], [{ ...started, data: { model: 'm' } }], [{ ...started, id: 'again' }], [{ type: 'run.started' }]])
      t.match(await post('w1', ...events), { status: 409, body: { code: 'LEASE_LOST' } }, JSON.stringify(events))
    const last = await post('w2', end)
    t.equal(last.status, 200)
    // Its answer was lost: the run is over, and its lease with it.
    t.match(await post('w2', end), { status: 200, body: { duplicates: 1, headSeq: last.body.headSeq } })
    t.match(await post('w2', { ...end, data: { output: 2 } }), { status: 409, body: { code: 'LEASE_LOST' } })
    t.equal((await run('told')).lastSeq, last.body.headSeq)
  })

  await t.test('a released run is there for others, as the same attempt', async (t) => {
    await create({ id: 'released', queue: 'released' })
    await claim('released', 'w1')
    const released = await release('released', 'w1')
    t.match(released.body, { status: 'queued', attempt: 1, lease: null })
    t.equal((await complete('released', 'w1')).status, 409)
    t.equal((await claim('released', 'w2'))?.runId, 'released')
    await release('released', 'w2', { delayMs: 60_000 })
    t.equal(await claim('released', 'w3'), undefined)
    t.ok((await run('released')).availableAt)
  })

  await t.test('a lease that runs out: the run comes back as the next attempt, and its old holder is fenced', async (t) => {
    await create({ id: 'expired', queue: 'expired' })
    await claim('expired', 'dead', { leaseMs: 1000 })
    const again = await claim('expired', 'alive', { waitMs: 20_000 })
    t.match(again, { runId: 'expired', attempt: 2, lease: { workerId: 'alive' } })
    t.equal((await beat('expired', 'dead')).status, 409)
    t.equal((await complete('expired', 'dead')).status, 409)
    t.equal((await complete('expired', 'alive')).status, 200)
    const events = await client.events('expired')
    t.same(
      events.map((event) => [event.type, event.attempt]),
      [
        ['run.created', 1],
        ['run.queued', 1],
        ['run.claimed', 1],
        ['run.retry_scheduled', 1],
        ['run.claimed', 2],
        ['run.completed', 2],
      ],
    )
    t.match(events[3]?.data, { reason: 'LEASE_EXPIRED', attempt: 2, workerId: 'dead' })
  })

  await t.test('what a worker that has lost its run still tells does not take it out of the queue', async (t) => {
    await create({ id: 'straggler', queue: 'straggler' })
    await claim('straggler', 'w1')
    await client.append('straggler', { type: 'run.started' }, { 'x-worker-id': 'w1' })
    await release('straggler', 'w1')
    t.equal((await client.append('straggler', { type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: 'late' } })).status, 200, 'it is kept')
    t.equal((await run('straggler')).status, 'queued')
    t.equal((await claim('straggler', 'w2'))?.runId, 'straggler')
    await client.append('straggler', { type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: 'new' } })
    t.equal((await run('straggler')).status, 'running')
  })

  await t.test('the last attempt whose lease runs out fails the run', async (t) => {
    await create({ id: 'failed', queue: 'failed', maxAttempts: 1 })
    await claim('failed', 'dead', { leaseMs: 1000 })
    const failed = await eventually('the run has failed', async () => {
      const now = await run('failed')
      return now.status === 'failed' ? now : undefined
    })
    t.equal(failed.error?.code, 'LEASE_EXPIRED')
    t.match(failed.error?.message, /dead/)
  })

  await t.test('a cancel is told in the heartbeat; a holder that releases or dies then has it cancelled', async (t) => {
    await create({ id: 'cancelled', queue: 'cancel' })
    await claim('cancel', 'w')
    t.ok((await client.post('/runs/cancelled/cancel', {})).status < 300)
    t.match((await beat('cancelled', 'w')).body, { cancelRequested: true })
    t.match((await release('cancelled', 'w')).body, { status: 'cancelled' })
    t.equal(await claim('cancel', 'w'), undefined)
  })

  await t.test('a suspended run keeps its holder, whose lease stands still', async (t) => {
    await create({ id: 'suspended', queue: 'suspended' })
    await claim('suspended', 'w', { leaseMs: 60_000 })
    await client.append('suspended', { type: 'run.started' }, { 'x-worker-id': 'w' })
    t.equal((await client.post('/runs/suspended/suspend', {})).status, 200)
    t.match((await beat('suspended', 'w')).body, { leaseExpiresAt: null, status: 'suspended' })
    t.equal((await release('suspended', 'w')).status, 409)
    t.match(await run('suspended'), { lease: { workerId: 'w', leaseExpiresAt: null } })
    t.equal((await client.post('/runs/suspended/resume', {})).status, 200)
    t.equal((await beat('suspended', 'w', { leaseMs: 5000 })).status, 200)
  })

  await t.test('limits: of a queue, of a key in it, and a pause', async (t) => {
    await limit('limited', { concurrency: 3, keyConcurrency: 1 })
    await createAll(service, [
      { id: 'k1', queue: 'limited', concurrencyKey: 'k' },
      { id: 'k2', queue: 'limited', concurrencyKey: 'k' },
      { id: 'k3', queue: 'limited', concurrencyKey: 'k' },
      { id: 'l1', queue: 'limited', concurrencyKey: 'l' },
      { id: 'n1', queue: 'limited' },
      { id: 'n2', queue: 'limited' },
    ])
    const got: (string | undefined)[] = []
    for (let n = 0; n < 4; n++) got.push((await claim('limited', 'w'))?.runId)
    t.same(got, ['k1', 'l1', 'n1', undefined])
    t.match(await queue('limited'), { concurrency: 3, depth: 3, running: 3 })
    const next = claim('limited', 'w', { waitMs: 20_000 })
    await complete('n1', 'w')
    t.equal((await next)?.runId, 'n2', 'a run that ends makes room; one of a full key is passed over')
    const afterKey = claim('limited', 'w', { waitMs: 20_000 })
    await release('k1', 'w', { delayMs: 60_000 })
    t.equal((await afterKey)?.runId, 'k2')
    await limit('limited', { paused: true })
    t.equal(await claim('limited', 'w'), undefined)
    const unpaused = claim('limited', 'w', { waitMs: 20_000 })
    await limit('limited', { paused: false })
    t.equal((await unpaused)?.runId, 'k3', 'what is left out of the limits is no limit any more')
  })

  await t.test('a limit that is lowered takes nothing from who holds it, and a suspended run keeps its place', async (t) => {
    await limit('places', { concurrency: 2 })
    await createAll(
      service,
      Array.from({ length: 4 }, (_, n) => ({ id: `place-${n}`, queue: 'places' })),
    )
    t.same([(await claim('places', 'w'))?.runId, (await claim('places', 'w'))?.runId], ['place-0', 'place-1'])
    await limit('places', { concurrency: 1 })
    t.match(await queue('places'), { concurrency: 1, running: 2 })
    t.equal((await beat('place-1', 'w')).status, 200)
    await complete('place-0', 'w')
    t.equal(await claim('places', 'w'), undefined, 'the other one has the only place')
    await client.append('place-1', { type: 'run.started' }, { 'x-worker-id': 'w' })
    t.equal((await client.post('/runs/place-1/suspend', {})).status, 200)
    t.equal(await claim('places', 'w'), undefined, 'still')
    await limit('places', {})
    t.equal((await claim('places', 'w'))?.runId, 'place-2', 'what is left out is no limit')
    for (const body of [{ concurrency: 0 }, { concurrency: 1_000_001 }, { concurrency: '1' }, { keyConcurrency: -1 }, { paused: null }, { limit: 1 }, [], 'x'])
      t.equal((await client.send('PUT', '/queues/places', { body })).status, 400, JSON.stringify(body))
    t.match(await queue('places'), { concurrency: null })
  })

  await t.test('lists the queues with what waits and runs', async (t) => {
    await createAll(service, [
      { id: 'listed-1', queue: 'listed' },
      { id: 'listed-2', queue: 'listed' },
    ])
    await claim('listed', 'w')
    const { data } = (await client.get<{ data: Queue[] }>('/queues')).body
    const listed = data.find((one) => one.name === 'listed')
    t.match(listed, { depth: 1, delayed: 0, running: 1, concurrency: null, paused: false })
    t.equal(listed?.oldest, (await client.get<{ createdAt: string }>('/runs/listed-2')).body.createdAt)
    t.match(await queue('never used'), { name: 'never used', depth: 0, running: 0, oldest: null })
  })

  await t.test('a reservation that nobody turned into a claim is undone', async (t) => {
    const other = await testDatabase(t)
    const second = await instance(t, other)
    await second.create({ id: 'reserved', queue: 'reserved' })
    const reserveFor = (interval: string) => other.sql`update runs set reserved_until = clock_timestamp() + ${interval}::interval where id = 'reserved'`
    await reserveFor('1 hour')
    t.equal(await second.claim('reserved', 'w'), undefined, 'it is kept for the one who reserved it')
    await reserveFor('300 ms')
    t.equal((await second.claim('reserved', 'w', { waitMs: 20_000 }))?.runId, 'reserved')
  })

  await t.test('a claimer whose run is gone when its turn comes gets the next one', async (t) => {
    await createAll(service, [
      { id: 'taken-1', queue: 'taken' },
      { id: 'taken-2', queue: 'taken' },
    ])
    const [cancelled, claimed] = await Promise.all([client.post('/runs/taken-1/cancel', {}), claim('taken', 'w', { waitMs: 20_000 })])
    t.ok(cancelled.status < 300)
    // Whoever was first: the run is cancelled, or its holder is told.
    if (claimed?.runId === 'taken-1') t.match((await beat('taken-1', 'w')).body, { cancelRequested: true })
    else t.equal(claimed?.runId, 'taken-2')
  })

  await t.test('a claim that cannot be meant is refused, and the answer names the field', async (t) => {
    const bad: [object | null, RegExp][] = [
      [null, /body/],
      [{}, /workerId/],
      [{ queue: 'q' }, /workerId/],
      [{ workerId: 'w' }, /queue/],
      [{ queue: 'q', queues: ['q'], workerId: 'w' }, /one of the two/],
      [{ queues: [], workerId: 'w' }, /queues/],
      [{ queues: [''], workerId: 'w' }, /queues/],
      [{ queues: ['q', null], workerId: 'w' }, /queues/],
      [{ queues: 'q', workerId: 'w' }, /queues/],
      [{ queues: Array.from({ length: 101 }, (_, n) => `q${n}`), workerId: 'w' }, /queues/],
      [{ queue: null, workerId: 'w' }, /queue/],
      [{ queue: 'a\0b', workerId: 'w' }, /queue/],
      [{ queue: 'q'.repeat(257), workerId: 'w' }, /queue/],
      [{ queue: 'q', workerId: 7 }, /workerId/],
      ...[-1, 60_001, 1.5, '5', null].map((waitMs): [object, RegExp] => [{ queue: 'q', workerId: 'w', waitMs }, /waitMs/]),
      ...[0, 999, 86_400_001, 1000.5, '5000', null].map((leaseMs): [object, RegExp] => [{ queue: 'q', workerId: 'w', leaseMs }, /leaseMs/]),
      [{ queue: 'q', workerId: 'w', limit: 1 }, /limit/],
    ]
    for (const [body, named] of bad) {
      const answer = await client.post<Problem>('/runs/claim', body)
      t.match(answer.body, { status: 400, code: 'VALIDATION_ERROR' }, JSON.stringify(body))
      t.match(answer.text, named)
    }
    for (const [path, field] of [
      ['heartbeat', { leaseMs: 999 }],
      ['heartbeat', { leaseMs: 86_400_001 }],
      ['heartbeat', { delayMs: 1 }],
      ['release', { delayMs: -1 }],
      ['release', { delayMs: 86_400_001 }],
      ['release', { reason: 'x' }],
    ] as const) {
      t.match((await client.post<Problem>(`/runs/record/${path}`, { workerId: 'w1', ...field })).body, { code: 'VALIDATION_ERROR' }, JSON.stringify(field))
      t.match((await client.post<Problem>(`/runs/record/${path}`, field)).body, { code: 'VALIDATION_ERROR' }, 'without a worker')
    }
  })

  await t.test('a claim takes the bounds of what it may ask for, and a queue that is named twice once', async (t) => {
    await create({ id: 'bounds-1', queue: 'bounds' })
    await create({ id: 'bounds-2', queue: 'bounds' })
    t.equal((await claim(['bounds', 'bounds'], 'w', { leaseMs: 1000, waitMs: 60_000 }))?.runId, 'bounds-1')
    const many = Array.from({ length: 100 }, (_, n) => (n === 50 ? 'bounds' : `unknown-${n}`))
    t.match(await claim(many, 'w', { leaseMs: 86_400_000, waitMs: 0 }), { runId: 'bounds-2', lease: { leaseMs: 86_400_000 } })
    t.equal(await claim(many, 'w'), undefined)
  })

  await t.test('a worker is called what X-Worker-Id can say, and is told apart to the letter', async (t) => {
    await create({ id: 'named', queue: 'named' })
    // A header holds no other text as it is: a worker with such a name could claim, and would lose each of its events.
    for (const workerId of ['', 'wörker', '工', 'a\nb', 'a\tb', '\u007f', ' w', 'w ', 'a\0b', 'w'.repeat(257), null]) {
      for (const path of ['claim', 'named/heartbeat', 'named/release']) {
        const body = { workerId, ...(path === 'claim' && { queue: 'named' }) }
        t.match((await client.post<Problem>(`/runs/${path}`, body)).body, { code: 'VALIDATION_ERROR' }, `${path} ${JSON.stringify(workerId)}`)
      }
    }
    const longest = `${'~ !"#%/:\\'.repeat(40).slice(0, 255)}W`
    t.equal((await claim('named', longest))?.runId, 'named')
    const tell = (workerId: string) => client.append('named', { type: 'run.started' }, { 'x-worker-id': workerId })
    for (const workerId of [longest.toLowerCase(), 'W', longest.slice(0, -1), 'holder']) {
      t.match(await tell(workerId), { status: 409, body: { code: 'LEASE_LOST' } }, workerId)
    }
    for (const workerId of ['', ' ', 'w\u00f6rker', 'a\tb', `${longest}x`])
      t.match(await tell(workerId), { status: 400, body: { code: 'VALIDATION_ERROR' } }, workerId)
    t.equal((await run('named')).lastSeq, 3, 'nothing of it was stored')
    t.equal((await tell(longest)).status, 200)
    t.equal((await client.append('named', { type: 'custom.emitted', data: { name: 'other' } })).status, 200, 'who does not say who it is may tell of a run')
    t.equal((await complete('named', longest)).status, 200)
    t.equal((await tell(longest)).status, 409, 'a run that has ended is nobody’s')
  })
})

t.test('a lease that had run out when its run was suspended is not given back', async (t) => {
  const database = await testDatabase(t)
  const slow = await instance(t, database, { LEASE_CHECK_MS: '60000' })
  const { client, beat, release } = slow
  for (const id of ['resumed', 'cancelled']) {
    await slow.create({ id, queue: id })
    await slow.claim(id, 'w', { leaseMs: 60_000 })
    const tell = (type: string) => client.append(id, { type, data: {} }, { 'x-worker-id': 'w' })
    t.equal((await tell('run.started')).status, 200)
    await database.sql`update runs set lease_expires_at = date_trunc('milliseconds', clock_timestamp()) where id = ${id}`
    t.equal((await tell('custom.late')).status, 409)
    t.equal((await client.post(`/runs/${id}/suspend`, {})).status, 200)
    for (const refused of [await beat(id, 'w'), await release(id, 'w'), await tell('run.completed')])
      t.match(refused, { status: 409, body: { code: 'LEASE_LOST', detail: /./ } })
  }
  t.match((await client.post('/runs/cancelled/cancel', {})).body, { status: 'cancelled' }, 'nobody is at work on it')
  t.equal((await client.post('/runs/resumed/resume', {})).status, 200)
  t.equal((await beat('resumed', 'w')).status, 409)

  const quick = await instance(t, database)
  t.match(await quick.claim('resumed', 'x', { waitMs: 20_000 }), { runId: 'resumed', attempt: 2, lease: { workerId: 'x' } }, 'it is tried again')
})

t.test('a stop answers those who wait', async (t) => {
  const { app, claim } = await instance(t, await testDatabase(t))
  const waiting = claim('empty', 'w', { waitMs: 60_000 })
  // The claim has joined its line when a later one is through.
  await claim('empty', 'w')
  await app.close()
  t.equal(await waiting, undefined)
})

for (const name of ['embedded', 'a server']) {
  const server = name === 'a server'
  t.test(`two instances on ${name}`, { skip: server && !serverUrl && 'needs TEST_DATABASE_URL' }, async (t) => {
    const database = await testDatabase(t, { server })
    const one = await instance(t, database)
    const two = await instance(t, database)

    await t.test('a run that arrives at one wakes a claimer of the other', async (t) => {
      // The poll is rarer than the test is long: it is the wake-up that does it.
      const waiting = two.claim('across', 'w', { waitMs: 30_000 })
      await one.create({ id: 'across', queue: 'across' })
      t.equal((await waiting)?.runId, 'across')
    })

    await t.test('no run goes to two claimers, and all are handed out', async (t) => {
      await Promise.all(Array.from({ length: 120 }, (_, n) => one.create({ id: `both-${n}`, queue: n % 3 === 0 ? 'both-x' : 'both-y' })))
      const got: string[] = []
      const drain = async (service: typeof one, workerId: string) => {
        for (;;) {
          const run = await service.claim(['both-x', 'both-y'], workerId, { waitMs: 1500 })
          if (!run) return
          got.push(run.runId)
        }
      }
      await Promise.all(Array.from({ length: 16 }, (_, n) => drain(n % 2 === 0 ? one : two, `w${n}`)))
      t.equal(got.length, 120)
      t.equal(new Set(got).size, 120)
    })

    await t.test('limits hold across both, however many claim at once', async (t) => {
      await one.limit('narrow', { concurrency: 4, keyConcurrency: 2 })
      await Promise.all(Array.from({ length: 40 }, (_, n) => one.create({ id: `narrow-${n}`, queue: 'narrow', concurrencyKey: `key-${n % 5}` })))
      const held = new Map<string, number>()
      let most = 0
      let mostOfKey = 0
      let done = 0
      const work = async (service: typeof one, workerId: string) => {
        while (done < 40) {
          const run = await service.claim('narrow', workerId, { waitMs: 300 })
          if (!run) continue
          const key = `key-${Number(run.runId.split('-')[1]) % 5}`
          held.set(key, (held.get(key) ?? 0) + 1)
          most = Math.max(
            most,
            [...held.values()].reduce((sum, count) => sum + count, 0),
          )
          mostOfKey = Math.max(mostOfKey, held.get(key) ?? 0)
          // Counted out before it ends: what another gets from its end is not counted twice.
          held.set(key, (held.get(key) ?? 0) - 1)
          await service.complete(run.runId, workerId)
          done++
        }
      }
      await Promise.all(Array.from({ length: 12 }, (_, n) => work(n % 2 === 0 ? one : two, `w${n}`)))
      t.ok(most <= 4, `at most ${most} at once`)
      t.ok(mostOfKey <= 2, `at most ${mostOfKey} of one key`)
      const overlap = await mostHeldAtOnce(one.client, 40)
      t.ok(overlap <= 4, `by the log, at most ${overlap} were held at once`)
    })
  })
}

/** From the logs: every claim and every end, in the order of the database's clock. */
async function mostHeldAtOnce(client: ReturnType<typeof createClient>, count: number): Promise<number> {
  const moves: [string, number][] = []
  for (let n = 0; n < count; n++) {
    for (const event of (await client.events(`narrow-${n}`)) satisfies CanonicalEvent[]) {
      if (event.type === 'run.claimed') moves.push([event.ts, 1])
      if (event.type === 'run.completed') moves.push([event.ts, -1])
    }
  }
  moves.sort(([left, a], [right, b]) => (left === right ? a - b : left < right ? -1 : 1))
  let held = 0
  let most = 0
  for (const [, step] of moves) {
    held += step
    most = Math.max(most, held)
  }
  return most
}

t.test('the statement that reserves reads no more than it takes', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  await sql`
    insert into runs (key, workspace_id, id, queue, priority, status, available_at, created_at, updated_at)
    select gen_random_uuid(), '00000000-0000-7000-8000-000000000001', 'r' || n, 'q', n % 5, 'queued', case when n % 2 = 0 then now() + interval '1 hour' end, now(), now()
    from generate_series(1, 20000) n`
  await sql`analyze runs`
  const rows = await sql<Record<string, { Plan: object }[]>[]>`
    explain (analyze, format json) select key from runs where workspace_id = '00000000-0000-7000-8000-000000000001' and queue = 'q'
      and status = 'queued' and queue is not null and available_at is null and reserved_until is null and cancel_requested_at is null
    order by priority desc nulls last, key limit 10 for update skip locked`
  const plan = JSON.stringify(rows[0])
  t.match(plan, /runs_waiting/)
  t.notMatch(plan, /Seq Scan|Sort/)
  t.notMatch(plan, /Rows Removed by Filter":[1-9]/)
})
