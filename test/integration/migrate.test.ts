/** Migrations, on the embedded database and, where TEST_DATABASE_URL is set, on a server. */
import { getTableName, is } from 'drizzle-orm'
import { PgTable } from 'drizzle-orm/pg-core'
import { test } from 'tap'
import type { Database } from '../../src/db/client.js'
import { DatabaseNewerError, migrate, migrationsCurrent } from '../../src/db/migrate.js'
import * as schema from '../../src/db/schema.js'
import { DEFAULT_WORKSPACE_ID } from '../../src/domain/ids.js'
import { serverUrl, testDatabase } from '../support/database.js'

const TABLES = Object.values(schema)
  .filter((table) => is(table, PgTable))
  .map(getTableName)
  .sort()

async function tables(database: Database): Promise<string[]> {
  const rows = await database.sql<{ name: string }[]>`select table_name as name from information_schema.tables where table_schema = 'public' order by 1`
  return rows.map((row) => row.name)
}

for (const server of serverUrl ? [false, true] : [false]) {
  test(server ? 'on a server' : 'on the embedded database', async (t) => {
    t.test('three at once bring a fresh database to the schema, once', async (t) => {
      const database = await testDatabase(t, { server, empty: true })
      t.equal(await migrationsCurrent(database.sql), false)
      await Promise.all([1, 2, 3].map(() => migrate(database)))
      t.equal(await migrationsCurrent(database.sql), true)
      t.same(await tables(database), TABLES)
      t.same(await database.sql`select id, name from workspaces`, [{ id: DEFAULT_WORKSPACE_ID, name: 'default' }])
      const [applied] = await database.sql`select count(*) as total, count(distinct hash) as different from drizzle.__drizzle_migrations`
      t.equal(applied?.total, applied?.different)
    })

    t.test('leaves a database alone that is up to date', async (t) => {
      const database = await testDatabase(t, { server })
      await database.sql`update workspaces set name = 'renamed'`
      await migrate(database)
      t.same(await database.sql`select name from workspaces`, [{ name: 'renamed' }])
    })

    t.test('refuses a database that a newer version has migrated, and says so', async (t) => {
      const database = await testDatabase(t, { server })
      await database.sql`insert into drizzle.__drizzle_migrations (hash, created_at) values ('later', ${Date.UTC(2099, 0, 2)})`
      await t.rejects(migrate(database), DatabaseNewerError)
      await t.rejects(migrate(database), { message: /has been migrated by a newer Runplane \(migration of 2099-01-02T00:00:00.000Z\)\. Run that version/ })
      t.equal(await migrationsCurrent(database.sql), false)
    })

    t.test('a migration that is cut off leaves nothing half done', async (t) => {
      const database = await testDatabase(t, { server, empty: true })
      // Stands in the way of the last table, so that all before it are rolled back.
      await database.sql`create table workspaces (obstacle int)`
      await t.rejects(migrate(database))
      t.same(await tables(database), ['workspaces'])
      await database.sql`drop table workspaces`
      await migrate(database)
      t.same(await tables(database), TABLES)
    })
  })
}
