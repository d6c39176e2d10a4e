/** Requests share transactions, but not their troubles: what one run waits for, no other does. */
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import { test } from 'tap'
import { FORMATS, normalizeItem } from '../../src/ingest/normalize.js'
import { saveSnapshot } from '../../src/runs/snapshots.js'
import { testDatabase } from '../support/database.js'
import { logInstance, output, receiptOf, request, storedLog, upTo } from '../support/log.js'

test('group commit', { timeout: 60_000 }, async (t) => {
  const database = await testDatabase(t)
  const { sql } = database

  await t.test('a run whose state somebody else holds keeps no other waiting, and loses nothing', async (t) => {
    const { log, states, createRun } = logInstance(database, { committers: 1 })
    const [held, other] = [await createRun(), await createRun()]
    const pending: Promise<unknown>[] = []
    let isDone = false
    await states.hold(held.key, async () => {
      for (const n of upTo(3)) pending.push(log.append(request(held.key, [output(`${n}`)])).then(() => (isDone = true)))
      receiptOf(await log.append(request(other.key, [output('in the same turn')])))
      receiptOf(await log.append(request(other.key, [output('later')])))
      pending.push(log.append(request(held.key, [output('4')])))
      t.equal(isDone, false, 'nobody folds into a state that another has')
    })
    await Promise.all(pending)
    t.same((await storedLog(sql, held.key)).eventIds, ['1', '2', '3', '4'])
    t.same((await storedLog(sql, other.key)).eventIds, ['in the same turn', 'later'])
    await log.close()
  })

  await t.test('what waits for a held run is stored before the end', async (t) => {
    const { log, states, createRun } = logInstance(database)
    const run = await createRun()
    let closing: Promise<void> | undefined
    await states.hold(run.key, async () => {
      const appended = log.append(request(run.key, [output('last')]))
      await delay(10)
      closing = log.close()
      appended.then(receiptOf).catch(t.threw)
    })
    await closing
    t.same((await storedLog(sql, run.key)).eventIds, ['last'])
  })

  await t.test('a transaction that takes long keeps no other run waiting, whenever that comes', async (t) => {
    const { log, createRun } = logInstance(database, { committers: 2 })
    const [locked, other] = [await createRun(), await createRun()]
    let appended: Promise<unknown> | undefined
    await sql.begin(async (tx) => {
      await tx`select from runs where key = ${locked.key} for update`
      appended = log.append(request(locked.key, [output('1')])).then(receiptOf)
      appended.catch(t.threw)
      // Longer than the log is patient with the transaction; nothing waits at that moment.
      await delay(100)
      receiptOf(await log.append(request(other.key, [output('1')])))
    })
    await appended
    t.same((await storedLog(sql, locked.key)).eventIds, ['1'])
    await log.close()
  })

  await t.test('what was sent behind a group that waits for a lock is stored before that', async (t) => {
    const { log, createRun } = logInstance(database, { committers: 2 })
    const [locked, other] = [await createRun(), await createRun()]
    const answered: string[] = []
    let appended: Promise<unknown> | undefined
    await sql.begin(async (tx) => {
      await tx`select from runs where key = ${locked.key} for update`
      appended = log.append(request(locked.key, [output('1')])).then(receiptOf)
      appended.then(() => answered.push('locked')).catch(t.threw)
      await nextTurn()
      receiptOf(await log.append(request(other.key, [output('1')])))
      answered.push('other')
    })
    await appended
    t.same(answered, ['other', 'locked'])
    for (const { key } of [locked, other]) t.same((await storedLog(sql, key)).eventIds, ['1'])
    await log.close()
  })

  await t.test('groups that are lost together with their connection are stored once', async (t) => {
    for (const _ of upTo(5)) {
      const { log, createRun } = logInstance(database, { committers: 2 })
      const [locked, other] = [await createRun(), await createRun()]
      const appended: Promise<unknown>[] = []
      await sql.begin(async (tx) => {
        await tx`select from runs where key = ${locked.key} for update`
        appended.push(log.append(request(locked.key, [output('1')])).then(receiptOf))
        await nextTurn()
        appended.push(log.append(request(other.key, [output('1')])).then(receiptOf))
        let ended = 0
        while (ended === 0) {
          const { count } = await sql`select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and query like '%for update%'`
          ended = count
        }
      })
      await Promise.all(appended)
      for (const { key } of [locked, other]) {
        const { eventIds, seqs } = await storedLog(sql, key)
        t.same(eventIds, ['1'])
        t.same(seqs, [1, 2])
      }
      await log.close()
    }
  })

  await t.test('readers that have all connections of the pool keep no append waiting', async (t) => {
    const { log, states, createRun } = logInstance(database)
    const run = await createRun()
    states.forget(run.key)
    const gate = database.connect({ max: 1 })
    await gate`select pg_advisory_lock(1)`
    const readers = upTo(sql.options.max).map(() => sql`select pg_advisory_xact_lock_shared(1)`.execute())
    receiptOf(await log.append(request(run.key, [output('1')])))
    await gate.end()
    await Promise.all(readers)
    t.same((await storedLog(sql, run.key)).eventIds, ['1'])
    await log.close()
  })

  await t.test('what throws when it is told of a commit takes nothing back', async (t) => {
    const { log, createRun } = logInstance(database, {
      onCommitted() {
        throw new Error('a listener that is broken')
      },
    })
    const runs = await Promise.all(upTo(5).map(() => createRun()))
    const outcomes = await Promise.all(runs.map(({ key }) => log.append(request(key, [output('1')]))))
    t.same(
      outcomes.map((outcome) => receiptOf(outcome).results.map(({ status }) => status)),
      runs.map(() => ['stored']),
    )
    for (const { key } of runs) t.same((await storedLog(sql, key)).eventIds, ['1'])
    await log.close()
  })

  await t.test('repeats of a creation leave nothing in memory', async (t) => {
    const { log, states, createRun } = logInstance(database, { maxRuns: 3 })
    const { id, key } = await createRun()
    await log.append(request(key, [output('1')]))
    for (const _ of upTo(5)) await createRun(id)
    t.equal(states.size, 1)
    await states.hold(key, async (hot) => t.equal(hot.state?.version, 2))
    await log.close()
  })

  await t.test('a large state counts as several of those that are kept in memory', async (t) => {
    const { log, states, createRun } = logInstance(database, { maxRuns: 4 })
    const runs = [await createRun(), await createRun(), await createRun()]
    const [large] = runs
    if (!large) return
    await log.append(
      request(
        large.key,
        upTo(100).map((n) => output(`${n}`, 'x'.repeat(4000))),
      ),
    )
    for (const { key } of runs.slice(1)) await log.append(request(key, [output('1')]))
    t.equal(states.size, 3)
    await states.hold(large.key, async (hot) => {
      await saveSnapshot(sql, hot)
      // As large as states become.
      hot.bytes = 1_100_000
    })
    t.equal(states.size, 1, 'it leaves no room for the others')
    await log.append(request(large.key, [output('101')]))
    t.same((await storedLog(sql, large.key)).seqs, upTo(102))
    await log.close()
  })

  await t.test('a queue is full by the events that its items become', async (t) => {
    const { log, createRun } = logInstance(database, { committers: 1, maxQueuedEvents: 50 })
    const run = await createRun()
    const macp = FORMATS.find(({ name }) => name === 'macp')
    if (!macp) throw new Error('no macp format')
    const start = { messageType: 'SessionStart', payload: { participants: upTo(100).map((n) => `agent-${n}`) } }
    const text = JSON.stringify(start)
    const item = { text, format: 'macp', normalized: normalizeItem(macp, start, { defaultSource: 'tester' }) }
    const large = log.append(request(run.key, [item]))
    await t.rejects(log.append(request(run.key, [output('1')])), { code: 'OVERLOADED', message: /^1\d\d events wait/ })
    receiptOf(await large)
    await log.close()
  })
})
