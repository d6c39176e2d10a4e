/** Connections to the database with TLS, and with none: when there is TLS, and who is trusted. What becomes of one that is lost: lost-transactions. */
import { type Test, test } from 'tap'
import { openDatabase } from '../../src/db/client.js'
import { silent, testDatabase } from '../support/database.js'
import { type DatabaseProxy, databaseProxy } from '../support/database-proxy.js'

async function through(t: Test, { url }: Pick<DatabaseProxy, 'url'>, sslmode: string) {
  const database = await openDatabase({ databaseUrl: `${url}?sslmode=${sslmode}`, dataDir: '', poolMax: 2, logger: silent })
  t.teardown(() => database.close())
  return database
}

test('sslmode says whether there is TLS, and whose certificate is taken', async (t) => {
  const direct = await testDatabase(t, { empty: true })
  const withTls = await databaseProxy(t, direct)
  const without = await databaseProxy(t, direct, 'N')
  const injected = await databaseProxy(t, direct, 'SR')

  await t.test('require and prefer take any', async (t) => {
    for (const [index, sslmode] of ['require', 'prefer'].entries()) {
      t.same(await (await through(t, withTls, sslmode)).sql`select 1 as one`, [{ one: 1 }])
      t.equal(withTls.secured, index + 1)
    }
  })
  await t.test('verify-ca and verify-full want one of a known authority', async (t) => {
    for (const sslmode of ['verify-ca', 'verify-full']) await t.rejects(through(t, withTls, sslmode), { message: /DEPTH_ZERO_SELF_SIGNED_CERT/ })
  })
  await t.test('of a server without TLS only prefer and disable make use', async (t) => {
    for (const sslmode of ['prefer', 'disable']) t.same(await (await through(t, without, sslmode)).sql`select 1 as one`, [{ one: 1 }])
    for (const sslmode of ['require', 'verify-full']) await t.rejects(through(t, without, sslmode), { message: /it does not take connections with TLS/ })
  })
  await t.test('what comes with the agreement, and so without TLS, is refused', async (t) => {
    for (const sslmode of ['require', 'prefer']) await t.rejects(through(t, injected, sslmode), { name: 'DatabaseUnavailableError' })
  })
  await t.test('rows of any size come whole', async (t) => {
    const { sql } = await through(t, withTls, 'require')
    const text = 'x'.repeat(3_000_000)
    const rows = await Promise.all(
      [1, 2, 3].map((n) => sql<[{ text: string; n: number }]>`select ${text}::text as text, ${n}::int as n from generate_series(1, 3)`),
    )
    t.same(
      rows.map((each) => each.map((row) => row.n)),
      [
        [1, 1, 1],
        [2, 2, 2],
        [3, 3, 3],
      ],
    )
    t.ok(rows.flat().every((row) => row.text === text))
  })
})
