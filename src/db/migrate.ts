/**
 * Brings a database to this code's schema, forward only.
 *
 * Invariant: any number of services may start at once on one database; each migration runs once. An advisory lock on a client with one
 * connection sees to that: drizzle's migrator by itself fails when several run.
 */
import { fileURLToPath } from 'node:url'
import { readMigrationFiles } from 'drizzle-orm/migrator'
import { drizzle } from 'drizzle-orm/postgres-js'
import { migrate as applyMigrations } from 'drizzle-orm/postgres-js/migrator'
import type postgres from 'postgres'
import type { Database } from './client.js'

/** The same place seen from src/db and from dist/db. */
const migrationsFolder = fileURLToPath(new URL('../../drizzle', import.meta.url))
const MIGRATION_LOCK = 0x6d69_6772

/** The database knows a migration that this code does not. */
export class DatabaseNewerError extends Error {
  override readonly name = 'DatabaseNewerError'
}

/**
 * Returns when all migrations of this code are applied, by this process or by another.
 * @throws {DatabaseNewerError} before anything is changed, when a newer version has migrated the database.
 */
export async function migrate(database: Pick<Database, 'connect' | 'describe'>): Promise<void> {
  // Waiting for the lock, or for an index, may take long.
  const sql = database.connect({ max: 1, max_lifetime: null, connection: { application_name: 'runplane migrate', statement_timeout: 0 } })
  try {
    await sql`select pg_advisory_lock(${MIGRATION_LOCK})`
    const unknown = (await appliedMigrations(sql)).find((applied) => !knownMigrations().includes(applied))
    if (unknown !== undefined) {
      throw new DatabaseNewerError(
        `The ${database.describe} has been migrated by a newer Runplane (migration of ${new Date(unknown).toISOString()}). Run that version or a later one, or restore a backup of before.`,
      )
    }
    await applyMigrations(drizzle(sql), { migrationsFolder })
  } finally {
    // Ends the session, and the lock with it.
    await sql.end({ timeout: 5 })
  }
}

/** Whether the database has exactly this code's migrations. @throws when the database cannot be reached. */
export async function migrationsCurrent(sql: postgres.Sql): Promise<boolean> {
  const applied = await appliedMigrations(sql)
  const known = knownMigrations()
  return applied.length === known.length && known.every((migration) => applied.includes(migration))
}

/** Migrations are told apart by their time (milliseconds since the Unix epoch), which drizzle stores with each. */
function knownMigrations(): number[] {
  return readMigrationFiles({ migrationsFolder }).map((migration) => migration.folderMillis)
}

/** SHA-256 of each migration's text: names a template that is made of them. */
export function migrationHashes(): string[] {
  return readMigrationFiles({ migrationsFolder }).map((migration) => migration.hash)
}

async function appliedMigrations(sql: postgres.Sql): Promise<number[]> {
  const [table] = await sql`select to_regclass('drizzle.__drizzle_migrations') is not null as there`
  if (table?.there !== true) return []
  const rows = await sql<{ createdAt: number }[]>`select created_at as "createdAt" from drizzle.__drizzle_migrations`
  return rows.map((row) => Number(row.createdAt))
}
