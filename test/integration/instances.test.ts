/** Two services on one database: writers on both, readers on both, nothing lost or doubled, with wake-ups and without. */
import { setTimeout as delay } from 'node:timers/promises'
import postgres from 'postgres'
import t, { type Test } from 'tap'
import { type Client, createClient, seqsUpTo } from '../support/http.js'
import { NO_SERVER, type Service, startService, TEST_DATABASE_URL } from '../support/service.js'
import { openStream } from '../support/sse-client.js'

const WRITERS = 3
const BATCHES = 25
const BATCH = 8

/** Writers and readers of one run on each of two instances; the run is ended on the first. */
async function writeAndReadOnBoth(t: Test, instances: readonly Service[], runId: string): Promise<void> {
  const [first] = instances
  if (!first) throw new Error('no instance')
  const clients = instances.map((instance) => createClient(instance.url))
  await createClient(first.url).createRun({ id: runId })
  const readers = await Promise.all([...instances, ...instances].map((instance) => openStream(`${instance.url}/runs/${runId}/stream`)))
  const write = async (client: Client, writer: string) => {
    for (let batch = 0; batch < BATCHES; batch++) {
      const events = Array.from({ length: BATCH }, (_, index) => ({
        id: `${batch}-${index}`,
        source: writer,
        type: 'custom.emitted',
        data: { name: `${writer}-${batch}-${index}` },
      }))
      const answer = await client.append(runId, events)
      if (answer.status !== 200 || answer.body.accepted !== BATCH) throw new Error(`${writer}: ${answer.status} ${answer.text}`)
    }
  }
  await Promise.all(clients.flatMap((client, instance) => Array.from({ length: WRITERS }, (_, writer) => write(client, `writer-${instance}-${writer}`))))
  await createClient(first.url).append(runId, { type: 'run.completed' })
  const expected = 2 * WRITERS * BATCHES * BATCH
  for (const [index, client] of clients.entries()) {
    const events = await client.events(runId)
    t.same(
      events.map((event) => event.seq),
      seqsUpTo(events.length),
      `instance ${index} reads a log without holes`,
    )
    const names = events.filter((event) => event.type === 'custom.emitted').map((event) => event.data.name)
    t.equal(names.length, expected, `instance ${index} reads every event`)
    t.equal(new Set(names).size, expected, `instance ${index} reads none twice`)
    t.equal((await client.state(runId)).version, events.length, `instance ${index} has folded all of it`)
  }
  for (const [index, reader] of readers.entries()) {
    await reader.until((frame) => frame.event === 'end', 30_000)
    const seqs = reader.frames.filter((frame) => frame.event === 'canonical_event').map((frame) => Number(frame.id))
    t.same(seqs, seqsUpTo(seqs.length), `reader ${index} has the events in order, without a hole`)
    t.ok(seqs.length > expected, `reader ${index} has them all`)
  }
}

t.test('two instances on one Postgres', { skip: TEST_DATABASE_URL === undefined && NO_SERVER, timeout: 120_000 }, async (t) => {
  // A poll that is rarer than the test is long shows that the wake-ups work; the second part has them lost.
  const first = await startService(t, { database: 'postgres', env: { STREAM_POLL_MS: '60000' } })
  const second = await startService(t, { database: 'postgres', sharing: first, env: { STREAM_POLL_MS: '60000' } })
  const one = createClient(first.url)
  const other = createClient(second.url)

  await t.test('take writers and readers on both, and lose and double nothing', async (t) => {
    await writeAndReadOnBoth(t, [first, second], 'both')
  })

  await t.test('each see at once what the other has acknowledged', async (t) => {
    await one.createRun({ id: 'seen' })
    for (let round = 0; round < 10; round++) {
      const [writer, reader] = round % 2 === 0 ? [one, other] : [other, one]
      const receipt = (await writer.append('seen', { type: 'custom.emitted', data: { name: String(round) } })).body
      t.ok((await reader.state('seen')).version >= receipt.headSeq, `round ${round}`)
    }
  })

  await t.test('store an event once that is sent to both at the same time', async (t) => {
    await one.createRun({ id: 'once' })
    for (let round = 0; round < 10; round++) {
      const event = { id: `same-${round}`, source: 'agent', type: 'custom.emitted', data: { name: 'same' } }
      const answers = await Promise.all([one.append('once', event), other.append('once', event)])
      t.same(answers.map((answer) => answer.body.results?.[0]?.status).sort(), ['duplicate', 'stored'])
    }
    t.equal((await one.events('once', '&type=custom.emitted')).length, 10)
  })

  await t.test('create a run once that is asked of both at the same time', async (t) => {
    for (let round = 0; round < 5; round++) {
      const body = { id: `created-${round}`, name: 'twice' }
      const answers = await Promise.all([one.post('/runs', body), other.post('/runs', body)])
      t.same(answers.map((answer) => answer.status).sort(), [200, 201])
    }
  })

  await t.test('fence a producer on one that a newer epoch has replaced on the other', async (t) => {
    await one.createRun({ id: 'fenced' })
    const headers = (epoch: number, seq: number) => ({ 'producer-id': 'agent', 'producer-epoch': String(epoch), 'producer-seq': String(seq) })
    const event = { type: 'custom.emitted', data: { name: 'x' } }
    t.equal((await one.append('fenced', event, headers(1, 0))).status, 200)
    t.equal((await other.append('fenced', event, headers(2, 0))).status, 200)
    t.equal((await one.append('fenced', event, headers(1, 1))).status, 403)
  })
})

t.test(
  'readers get what the other instance wrote though its wake-ups are lost',
  { skip: TEST_DATABASE_URL === undefined && NO_SERVER, timeout: 60_000 },
  async (t) => {
    const first = await startService(t, { database: 'postgres', env: { STREAM_POLL_MS: '300' } })
    const second = await startService(t, { database: 'postgres', sharing: first, env: { STREAM_POLL_MS: '300' } })
    const admin = postgres(first.databaseUrl ?? '', { max: 1, onnotice: () => {} })
    let isOver = false
    let severed = 0
    const sever = (async () => {
      while (!isOver) {
        severed += (
          await admin`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and query ilike 'listen%'`
        ).length
        await delay(20)
      }
    })()
    // A failure is seen where it is awaited, below.
    sever.catch(() => {})
    try {
      await writeAndReadOnBoth(t, [first, second], 'severed')
    } finally {
      isOver = true
      await sever
      await admin.end()
    }
    t.ok(severed > 0, `${severed} listening connections were severed meanwhile`)
    for (const service of [first, second]) t.equal((await createClient(service.url).get('/healthz')).status, 200)
  },
)

t.test('a second service on the same embedded directory joins or refuses, and loses nothing', { timeout: 90_000 }, async (t) => {
  const first = await startService(t, { database: 'embedded' })
  const client = createClient(first.url)
  await client.createRun({ id: 'before' })
  await client.append('before', { type: 'custom.emitted', data: { name: 'kept' } })
  let refusal = ''
  const second = await startService(t, { database: 'embedded', sharing: first }).catch((error: unknown) => {
    refusal = String(error)
    return undefined
  })
  if (second) {
    t.pass('it joins')
    await writeAndReadOnBoth(t, [first, second], 'joined')
    await first.stop()
    t.equal(
      (await createClient(second.url).append('before', { type: 'custom.emitted', data: { name: 'after' } })).status,
      200,
      'and the database stays while one of them is connected',
    )
    await first.restart()
  } else t.match(refusal, /director|DATA_DIR/i, 'it refuses and says why')
  t.equal((await client.events('before', '&type=custom.emitted')).length, second ? 2 : 1)
})
