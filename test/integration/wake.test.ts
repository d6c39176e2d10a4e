/** Wake-ups across instances: two hubs on one database. */
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { createWake, type WakeOptions } from '../../src/log/wake.js'
import { silent, testDatabase } from '../support/database.js'
import { append, insertRun, readingApp } from '../support/log-fixture.js'
import { openStream } from '../support/sse-client.js'

const NEVER_MS = 600_000

t.test('wake-ups', async (t) => {
  const database = await testDatabase(t)
  const run = await insertRun(database, 'woken')

  async function instance(instanceId: string, options: Partial<WakeOptions> = {}) {
    const woken: string[] = []
    const heads = new Map<string, number>()
    const wake = createWake({ database, instanceId, logger: silent, pollMs: NEVER_MS, ...options })
    await wake.start({ watched: () => heads, wake: (runKey) => woken.push(runKey) })
    t.teardown(() => wake.close())
    return { wake, woken, heads }
  }
  /** Looks more often than the fastest poll here. */
  const until = async (fits: () => boolean) => {
    const deadline = Date.now() + 20_000
    while (!fits()) {
      if (Date.now() > deadline) throw new Error(`not within 20 s: ${fits}`)
      await delay(5)
    }
  }

  await t.test('reach the other instances and not the own one', async (t) => {
    const [one, other] = [await instance('one'), await instance('other')]
    t.ok(one.wake.healthy())
    one.wake.publish(run.key)
    await until(() => other.woken.length > 0)
    t.same(other.woken, [run.key])
    t.same(one.woken, [])
  })

  await t.test('of one commit, and those that gather meanwhile, go together', async (t) => {
    const [one, other] = [await instance('many'), await instance('receiver')]
    const keys = Array.from({ length: 450 }, (_, index) => `00000000-0000-7000-8000-${String(index).padStart(12, '0')}`)
    let statements = 0
    const client = database.connect({
      max: 1,
      debug: (_, query) => {
        if (query.includes('pg_notify')) statements++
      },
    })
    t.teardown(() => client.end())
    const counting = createWake({ database: { connect: database.connect, sql: client }, instanceId: 'counting', logger: silent, pollMs: NEVER_MS })
    for (const key of [...keys, ...keys]) counting.publish(key)
    await until(() => other.woken.length >= 450 && one.woken.length >= 450)
    await counting.close()
    t.same(other.woken, keys)
    t.equal(statements, 3)
  })

  await t.test('that are lost are made up for by the poll, and only for runs that have grown or are gone', async (t) => {
    const { woken, heads } = await instance('polling', { pollMs: 20 })
    const quiet = await insertRun(database, 'quiet')
    await append(database, quiet, [{}])
    heads.set(quiet.key, 1)
    heads.set(run.key, 0)
    await append(database, run, [{}])
    await until(() => woken.includes(run.key))
    heads.set(run.key, 1)
    t.notOk(woken.includes(quiet.key))
    await database.sql`delete from runs where key = ${quiet.key}`
    await until(() => woken.includes(quiet.key))
  })

  await t.test('that are lost where a run has failed without an event are made up for by the poll, once', async (t) => {
    const { woken, heads } = await instance('failing', { pollMs: 20 })
    const corrupt = await insertRun(database, 'corrupt')
    const grows = await insertRun(database, 'grows')
    heads.set(corrupt.key, 0)
    await database.sql`update runs set status = 'failed' where key = ${corrupt.key}`
    await until(() => woken.includes(corrupt.key))
    // Later polls find the other run each time.
    heads.set(grows.key, -1)
    await until(() => woken.filter((key) => key === grows.key).length === 3)
    t.equal(woken.filter((key) => key === corrupt.key).length, 1)
    await database.sql`update runs set status = 'running' where key = ${corrupt.key}`
    const polls = woken.length
    await until(() => woken.length === polls + 2)
    await database.sql`update runs set status = 'failed' where key = ${corrupt.key}`
    await until(() => woken.filter((key) => key === corrupt.key).length === 2)
  })

  await t.test('arrive again after the connection broke, and what was missed is looked for', async (t) => {
    const [one, other] = [await instance('sender'), await instance('broken')]
    other.heads.set(run.key, 0)
    for (let round = 0; round < 3; round++) {
      other.woken.length = 0
      await database.sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query ilike 'listen%'`
      await until(() => other.woken.length > 0)
      t.pass('it has looked')
    }
    other.heads.set(run.key, 1)
    other.woken.length = 0
    one.wake.publish(run.key)
    await until(() => other.woken.length > 0)
    t.same(other.woken, [run.key])
  })

  await t.test('that never arrive make the channel unhealthy, until they do', async (t) => {
    // As through a transaction pooler, LISTEN succeeds, and nothing is ever heard: it listens in another database.
    const elsewhere = await testDatabase(t)
    let deaf = true
    const connect: typeof database.connect = (options) => (deaf ? elsewhere : database).connect(options)
    const pollMs = 20
    const { wake } = await instance('deaf', { database: { sql: database.sql, connect }, pollMs })
    await until(() => !wake.healthy())
    deaf = false
    // For long: where nothing is heard, each new connection is healthy for two polls. A busy machine may miss echoes, but not for ever.
    let healthySince = performance.now()
    await until(() => {
      if (!wake.healthy()) healthySince = performance.now()
      return performance.now() - healthySince > 10 * pollMs
    })
    t.ok(wake.healthy())
  })
})

t.test('readers on two instances get what either writes, with wake-ups and with all of them lost', async (t) => {
  const database = await testDatabase(t)
  for (const isLost of [() => false, () => true]) {
    const instances = await Promise.all(
      ['a', 'b'].map(async (instanceId) => {
        const app = await readingApp(t, database)
        const wake = createWake({ database, instanceId, logger: silent, pollMs: isLost() ? 50 : NEVER_MS, isLost })
        await wake.start(app.hub)
        t.teardown(() => wake.close())
        return { ...app, wake }
      }),
    )
    const run = await insertRun(database, `shared-${isLost()}`)
    await append(database, run, [{}])
    const streams = await Promise.all([...instances, ...instances].map(({ url }) => openStream(`${url}/runs/${run.id}/stream`)))
    await Promise.all(streams.map((stream) => stream.until((frame) => frame.event === 'caught_up')))
    const write = async ({ hub, wake }: (typeof instances)[number], count: number) => {
      for (let index = 0; index < count; index++) {
        const isLast = count === 1
        hub.committed(await append(database, run, [{}, {}, {}], isLast ? 'completed' : 'running'))
        wake.publish(run.key)
      }
    }
    await Promise.all(instances.map((instance) => write(instance, 50)))
    const [first] = instances
    if (first) await write(first, 1)
    for (const stream of streams) {
      await stream.until((frame) => frame.event === 'end')
      const seqs = stream.frames.filter((frame) => frame.event === 'canonical_event').map((frame) => Number(frame.id))
      t.same(
        seqs,
        Array.from({ length: 304 }, (_, index) => index + 1),
      )
    }
  }
})
