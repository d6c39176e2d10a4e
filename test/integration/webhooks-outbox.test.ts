/**
 * The outbox by itself, with many who claim at once: one holder a run, the order of each run, and nothing that waits for a lock to run out.
 * Claims hold for an hour here, so that a delivery that is put off wrongly, by whichever interleaving, is never sent, and the test fails.
 */
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { Database } from '../../src/db/client.js'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../../src/domain/ids.js'
import { createDeliveries } from '../../src/webhooks/deliveries.js'
import { type Attempt, createOutbox } from '../../src/webhooks/outbox.js'
import { serverUrl, testDatabase } from '../support/database.js'
import { eventually, seqsUpTo } from '../support/http.js'
import { logInstance, output, request } from '../support/log.js'
import { seededRandom } from '../support/proxy.js'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const DONE: Attempt = { made: true, lastStatus: 200, lastError: null, lastAnswer: null }
const FAILED: Attempt = { made: true, lastStatus: 500, lastError: 'It answered 500.', lastAnswer: null }

async function insertEndpoint({ sql }: Database, types = '{*}', enabled = true): Promise<string> {
  const id = uuidv7()
  await sql`insert into webhook_endpoints (id, workspace_id, url, types, secrets, enabled)
    values (${id}, ${DEFAULT_WORKSPACE_ID}, 'https://example.com/', ${types}::text::text[], '[]', ${enabled})`
  return id
}

async function claimAll(t: Test, database: Database): Promise<void> {
  const seed = Number(process.env.OUTBOX_SEED ?? Date.now() % 100_000)
  t.comment(`OUTBOX_SEED=${seed}`)
  const random = seededRandom(seed)
  const { sql, connect } = database
  const instance = logInstance(database, { committers: 3 })
  t.teardown(() => instance.log.close())
  const client = connect({ max: 8 })
  t.teardown(() => client.end())
  const endpointId = await insertEndpoint(database)
  const outbox = createOutbox({ sql: client, lockMs: HOUR_MS, retryForMs: DAY_MS })
  const runs = await Promise.all(Array.from({ length: 8 }, () => instance.createRun()))
  const holders = new Set<string>()
  const ended = new Map(runs.map(({ key }) => [key, [] as number[]]))
  let overlaps = 0
  let isOver = false

  async function hold(first: Awaited<ReturnType<typeof outbox.claim>>['claimed'][number]): Promise<void> {
    let claimed: typeof first | undefined = first
    while (claimed) {
      const { runKey, seq }: typeof first = claimed
      if (holders.has(runKey)) overlaps++
      holders.add(runKey)
      await delay(random() * 3)
      const luck = random()
      if (luck < 0.2) {
        holders.delete(runKey)
        if (luck < 0.1) await outbox.putOff(claimed, FAILED, random() * 10)
        else await outbox.release(claimed)
        return
      }
      ended.get(runKey)?.push(seq)
      const goOn: boolean = random() < 0.7
      holders.delete(runKey)
      claimed = await outbox.end(claimed, luck < 0.3 ? 'dead' : 'delivered', DONE, goOn)
    }
  }

  async function work(): Promise<void> {
    while (!isOver) {
      const { claimed } = await outbox.claim(endpointId, 1 + Math.floor(random() * 4))
      await Promise.all(claimed.map(hold))
      await delay(random() * 2)
    }
  }
  const workers = Array.from({ length: 5 }, work)
  for (const worker of workers) worker.catch(() => {})
  await Promise.all(
    runs.map(async ({ key }) => {
      for (let n = 0; n < 60; n++) {
        await instance.log.append(request(key, [output(`${n}`)]))
        if (random() < 0.3) await delay(random() * 10)
      }
    }),
  )
  const expected = seqsUpTo(61)
  const all = () => [...ended.values()].every((seqs) => seqs.length >= expected.length)
  await Promise.race([
    eventually('all to be sent, although claims hold for an hour', () => (all() ? true : undefined), 60_000),
    ...workers.map((worker) => worker.then(() => undefined)),
  ])
  isOver = true
  await Promise.all(workers)
  for (const [key, seqs] of ended) t.same(seqs, expected, `run ${key} in order, each once`)
  t.equal(overlaps, 0, 'no two held a run at once')
  const [left] = await sql<{ count: number }[]>`select count(*) from webhook_deliveries where status = 'pending'`
  t.equal(left?.count, 0)
}

t.test('claims keep the order of each run and lose nobody, on the embedded database', { timeout: 120_000 }, async (t) => {
  await claimAll(t, await testDatabase(t))
})

t.test('claims keep the order of each run and lose nobody, on a server', { timeout: 120_000, skip: !serverUrl && 'needs TEST_DATABASE_URL' }, async (t) => {
  await claimAll(t, await testDatabase(t, { server: true }))
})

t.test('a claim that has run out goes to another, and its first holder changes nothing any more', async (t) => {
  const database = await testDatabase(t)
  const instance = logInstance(database)
  t.teardown(() => instance.log.close())
  const endpointId = await insertEndpoint(database)
  await instance.createRun()
  const short = createOutbox({ sql: database.sql, lockMs: 1, retryForMs: DAY_MS })
  const long = createOutbox({ sql: database.sql, lockMs: HOUR_MS, retryForMs: DAY_MS })
  const [lost] = (await short.claim(endpointId, 1)).claimed
  const second = await eventually('it to be free again', async () => (await long.claim(endpointId, 1)).claimed[0])
  t.equal(second.id, lost?.id)
  if (!lost) return
  t.equal(await short.end(lost, 'delivered', DONE, true), undefined)
  await short.putOff(lost, FAILED, 0)
  await short.release(lost)
  t.same((await long.claim(endpointId, 1)).claimed, [], 'the second holds it')
  await long.end(second, 'delivered', DONE, false)
  const [row] = await database.sql`select status, attempts from webhook_deliveries`
  t.match(row, { status: 'delivered', attempts: 1 })
})

t.test('a claim that comes while a head is being ended puts off nothing behind it', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const instance = logInstance(database)
  t.teardown(() => instance.log.close())
  const endpointId = await insertEndpoint(database)
  const outbox = createOutbox({ sql, lockMs: HOUR_MS, retryForMs: DAY_MS })
  const run = await instance.createRun()
  await outbox.claim(endpointId, 1)
  await sql.begin(async (ending) => {
    await ending`update webhook_deliveries set status = 'delivered' where seq = 1`
    // What the end does not see, for it came after it began.
    await instance.log.append(request(run.key, [output('next')]))
    t.same(await outbox.claim(endpointId, 1), { claimed: [], more: true }, 'it is to be looked at again')
  })
  t.equal((await outbox.claim(endpointId, 1)).claimed[0]?.seq, 2)
})

t.test('a long queue behind a head is looked at once, and does not hide other runs', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const instance = logInstance(database)
  t.teardown(() => instance.log.close())
  const endpointId = await insertEndpoint(database)
  const outbox = createOutbox({ sql, lockMs: HOUR_MS, retryForMs: DAY_MS })
  const long = await instance.createRun()
  for (let part = 0; part < 5; part++)
    await instance.log.append(
      request(
        long.key,
        Array.from({ length: 200 }, (_, n) => output(`${part}-${n}`)),
      ),
    )
  const [head] = (await outbox.claim(endpointId, 1)).claimed
  t.equal(head?.seq, 1)
  const other = await instance.createRun()
  let claims = 0
  const found = await eventually('the other run', async () => {
    claims++
    return (await outbox.claim(endpointId, 1)).claimed[0]
  })
  t.equal(found.runKey, other.key)
  t.ok(claims <= 7, `after ${claims} claims`)
  t.same(await outbox.claim(endpointId, 1), { claimed: [], more: false }, 'and then there is nothing to look at')
  const next = head && (await outbox.end(head, 'delivered', DONE, false))
  t.equal(next, undefined)
  t.equal((await outbox.claim(endpointId, 1)).claimed[0]?.seq, 2, 'the next one of the run is due at once')
})

t.test('old deliveries are removed, those of a deleted endpoint too, and what nobody will send is dead', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const kept = await insertEndpoint(database)
  const disabled = await insertEndpoint(database, '{*}', false)
  const deleted = uuidv7()
  const insert = async (endpointId: string, status: string, ageMs: number, attempts = 0) => {
    const at = new Date(Date.now() - ageMs).toISOString()
    const id = uuidv7(Date.now() - ageMs)
    await sql`insert into webhook_deliveries (id, endpoint_id, workspace_id, run_key, run_id, seq, type, status, attempts, next_at, created_at, ended_at)
      values (${id}, ${endpointId}, ${DEFAULT_WORKSPACE_ID}, ${uuidv7()}, 'r', 1, 'run.started', ${status}, ${attempts}, ${at}::text::timestamptz,
        ${at}::text::timestamptz, ${status === 'pending' ? null : at}::text::timestamptz)`
    return id
  }
  const stay = [
    await insert(kept, 'delivered', HOUR_MS),
    await insert(kept, 'dead', 5 * HOUR_MS),
    await insert(kept, 'pending', 23 * HOUR_MS, 3),
    await insert(kept, 'pending', 40 * HOUR_MS, 0),
  ]
  const die = [
    await insert(kept, 'pending', 25 * HOUR_MS, 3),
    await insert(kept, 'pending', 49 * HOUR_MS, 0),
    await insert(disabled, 'pending', 25 * HOUR_MS, 0),
  ]
  await insert(kept, 'delivered', 3 * HOUR_MS)
  await insert(kept, 'dead', 11 * HOUR_MS)
  for (const status of ['pending', 'delivered', 'dead']) await insert(deleted, status, 1000)
  const deliveries = createDeliveries({ sql, retryForMs: DAY_MS, onDue: () => {} })
  const keep = { keepDeliveredMs: 2 * HOUR_MS, keepDeadMs: 10 * HOUR_MS }
  t.same(await deliveries.sweep(keep), { removed: 5, expired: 3 })
  const rows = await sql<{ id: string; status: string; last_error: string | null }[]>`select id, status, last_error from webhook_deliveries`
  t.same(new Set(rows.map(({ id }) => id)), new Set([...stay, ...die]))
  for (const id of die)
    t.match(
      rows.find((row) => row.id === id),
      { status: 'dead', last_error: /./ },
    )
  t.same(await deliveries.sweep(keep), { removed: 0, expired: 0 })
})

t.test('an endpoint that is made while runs are written has the next event of each', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const instance = logInstance(database)
  t.teardown(() => instance.log.close())
  const [first, second] = [await instance.createRun(), await instance.createRun()]
  let written = 0
  const write = (...keys: string[]) => Promise.all(keys.map((key) => instance.log.append(request(key, [output(`${written++}`)]))))
  const outbox = async () =>
    (await sql<{ run_key: string; seq: number }[]>`select run_key, seq from webhook_deliveries order by seq, run_key`).map(({ run_key, seq }) => [run_key, seq])
  await write(first.key, second.key)
  // From here on what is known of the runs is in memory.
  await write(first.key, second.key)
  t.same(await outbox(), [])
  await insertEndpoint(database)
  await write(first.key)
  await write(first.key, second.key)
  const inOrder = [first.key, second.key].sort()
  t.same(
    await outbox(),
    [4, 5].flatMap((seq) => inOrder.flatMap((key) => (key === first.key || seq === 4 ? [[key, seq]] : []))),
  )
})
