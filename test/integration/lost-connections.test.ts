/** Connections that are cut under writers, again and again: every append is answered, once, and the process goes on. */
import { setTimeout as delay } from 'node:timers/promises'
import { test } from 'tap'
import { testDatabase } from '../support/database.js'
import { logInstance, output, receiptOf, request, storedLog, upTo } from '../support/log.js'

test('appends go on while all connections are cut again and again, and nothing is stored twice or lost', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const instance = logInstance(database)
  const runs = await Promise.all(upTo(6).map(() => instance.createRun()))
  const killer = database.connect({ max: 1, connection: { application_name: 'killer' } })
  let stopped = false

  const cut = async () => {
    while (!stopped) {
      await delay(20 + Math.random() * 60)
      await killer`select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`
    }
  }
  const write = async (key: string) => {
    const acknowledged: string[] = []
    for (let count = 0; !stopped; count++) {
      const id = `e${count}`
      for (;;) {
        try {
          receiptOf(await instance.log.append(request(key, [output(id)])))
          acknowledged.push(id)
          break
        } catch {
          // A client would send it again.
        }
      }
    }
    return acknowledged
  }
  const cutting = cut()
  const writing = Promise.all(runs.map(({ key }) => write(key)))
  await delay(4000)
  stopped = true
  await cutting
  const acknowledged = await writing
  await killer.end()

  for (const [index, { key }] of runs.entries()) {
    const stored = await storedLog(sql, key)
    t.ok(stored.eventIds.length > 5, 'it went on')
    t.same(stored.eventIds, acknowledged[index])
    t.same(stored.seqs, upTo(stored.head.last_seq))
  }
  await instance.log.close()
})
