/** What is left of a connection that is lost in a transaction. */
import { inspect } from 'node:util'
import { test } from 'tap'
import { openDatabase } from '../../src/db/client.js'
import { isConnectionError } from '../../src/db/retry.js'
import { silent, testDatabase } from '../support/database.js'
import { databaseProxy } from '../support/database-proxy.js'

for (const sslmode of ['disable', 'require']) {
  test(`a transaction whose connection is cut fails, and the pool goes on (sslmode=${sslmode})`, async (t) => {
    const direct = await testDatabase(t, { empty: true })
    const proxy = await databaseProxy(t, direct)
    const database = await openDatabase({ databaseUrl: `${proxy.url}?sslmode=${sslmode}`, dataDir: '', poolMax: 2, logger: silent })
    t.teardown(() => database.close())
    const { sql } = database
    for (let round = 0; round < 5; round++) {
      const going = [1, 2].map(() => sql.begin((tx) => tx`select pg_sleep(60)`))
      const ended = Promise.allSettled(going)
      for (let running = 0; running < 2; ) {
        const [row] = await direct.sql<[{ count: number }]>`
          select count(*) from pg_stat_activity where datname = current_database() and state = 'active' and query = 'select pg_sleep(60)'`
        running = row.count
      }
      proxy.cut()
      // By an orderly end or by a reset: what the network makes of it depends on what was still under way.
      for (const outcome of await ended) t.ok(outcome.status === 'rejected' && isConnectionError(outcome.reason), inspect(outcome))
      t.equal((await Promise.all([1, 2, 3, 4].map(() => sql`select 1`))).length, 4)
      await direct.sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(60)'`
    }
    t.equal(proxy.secured > 0, sslmode === 'require')
  })
}
