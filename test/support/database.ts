/**
 * A fresh, migrated database for a test: cloned from a template on an embedded cluster that the test files share, or on the server at
 * TEST_DATABASE_URL. The cluster's folder stays in the temporary directory for later runs; the postmaster ends with the last file that uses it.
 */
import { createHash, randomBytes } from 'node:crypto'
import { lstatSync, mkdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import postgres from 'postgres'
import { type Database, onEmbedded, openDatabase } from '../../src/db/client.js'
import { startEmbedded } from '../../src/db/embedded.js'
import { isAlive } from '../../src/db/embedded-cluster.js'
import { migrate, migrationHashes } from '../../src/db/migrate.js'

/** What is used of tap's test object. */
export interface Teardown {
  teardown(handler: () => unknown): unknown
}

export const silent = pino({ level: 'silent' })
const POOL_MAX = 10
const TEMPLATE_LOCK = 0x7465_6d70

/** The server that the tests may use, where there is one: a superuser's URL. */
export const serverUrl = process.env.TEST_DATABASE_URL

interface TestDatabaseOptions {
  /** On the server at TEST_DATABASE_URL, which has to be there. */
  server?: boolean
  /** Without tables. */
  empty?: boolean
  poolMax?: number
}

/** A database of its own on the shared embedded cluster, or on the server; dropped when the test ends. */
export async function testDatabase(t: Teardown, options: TestDatabaseOptions = {}): Promise<Database> {
  const poolMax = options.poolMax ?? POOL_MAX
  if (options.server) {
    if (!serverUrl) throw new Error('TEST_DATABASE_URL is not set')
    const admin = postgres(serverUrl, { max: 1, onnotice: () => {} })
    const url = (name: string) => Object.assign(new URL(serverUrl ?? ''), { pathname: `/${name}` }).href
    return create(t, admin, options, (name) => openDatabase({ databaseUrl: url(name), dataDir: '', poolMax, logger: silent }))
  }
  const cluster = await startEmbedded({ dataDir: sharedFolder(), poolMax: 500, logger: silent })
  const admin = postgres({ path: cluster.socketPath, user: cluster.user, database: cluster.database, max: 1, onnotice: () => {} })
  t.teardown(() => cluster.close())
  return create(t, admin, options, async (name) =>
    onEmbedded(cluster.socketPath, cluster.user, name, `embedded test database ${name}`, poolMax, async () => {}),
  )
}

/** The same on the server at TEST_DATABASE_URL; undefined where there is none. */
export async function serverDatabase(t: Teardown, options: Omit<TestDatabaseOptions, 'server'> = {}): Promise<Database | undefined> {
  return serverUrl ? testDatabase(t, { ...options, server: true }) : undefined
}

/** One folder a user and schema of settings; nobody else's, for its content is trusted. */
function sharedFolder(): string {
  const folder = join(tmpdir(), `runplane-test-18-${process.getuid?.() ?? 0}`)
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  if (lstatSync(folder).uid !== process.getuid?.()) throw new Error(`${folder} is another user's`)
  return folder
}

async function create(t: Teardown, admin: postgres.Sql, { empty }: TestDatabaseOptions, open: (name: string) => Promise<Database>): Promise<Database> {
  const template = empty ? 'template0' : await migratedTemplate(admin, open)
  const name = `rp_test_${process.pid}_${randomBytes(4).toString('hex')}`
  await admin`create database ${admin(name)} template ${admin(template)}`
  const database = await open(name)
  // tap runs the handlers in reverse: this one before the cluster's close.
  t.teardown(async () => {
    await database.close()
    await admin`drop database if exists ${admin(name)} with (force)`
    await admin.end()
  })
  return database
}

/** Named after the migrations, made once by whoever is first, under a name of its own until it is whole. */
async function migratedTemplate(admin: postgres.Sql, open: (name: string) => Promise<Database>): Promise<string> {
  const name = `rp_template_${createHash('sha256').update(migrationHashes().join()).digest('hex').slice(0, 12)}`
  await admin`select pg_advisory_lock(${TEMPLATE_LOCK})`
  try {
    const [there] = await admin`select 1 from pg_database where datname = ${name}`
    await dropLeftovers(admin)
    if (there) return name
    const draft = `${name}_draft`
    await admin`drop database if exists ${admin(draft)} with (force)`
    await admin`create database ${admin(draft)}`
    const database = await open(draft)
    await migrate(database)
    await database.close()
    await admin`alter database ${admin(draft)} rename to ${admin(name)}`
    return name
  } finally {
    await admin`select pg_advisory_unlock(${TEMPLATE_LOCK})`
  }
}

/** Databases of test processes that were killed. */
async function dropLeftovers(admin: postgres.Sql): Promise<void> {
  for (const { datname } of await admin`select datname from pg_database where datname ~ '^rp_test_[0-9]+_'`) {
    const pid = Number(String(datname).split('_')[2])
    if (!isAlive(pid)) await admin`drop database if exists ${admin(String(datname))} with (force)`
  }
}

/** Every row of every table, as text. */
export async function dump({ sql }: Database): Promise<string> {
  const tables = await sql<
    { name: string }[]
  >`select table_schema || '.' || table_name as name from information_schema.tables where table_schema in ('public', 'drizzle') and table_type = 'BASE TABLE'`
  const texts: string[] = []
  for (const { name } of tables) {
    const [schema = '', table = ''] = name.split('.')
    // Bytes as they are: an artifact's content would be hidden in hex.
    const rows = await sql<{ row: string }[]>`select row_to_json(t)::text as row from ${sql(schema)}.${sql(table)} t`
    texts.push(...rows.map(({ row }) => `${name} ${row} ${row.replace(/\\\\x([0-9a-f]+)/g, (_, hex: string) => Buffer.from(hex, 'hex').toString('latin1'))}`))
  }
  if (tables.length <= 10) throw new Error(`there are ${tables.length} tables only`)
  return texts.join('\n')
}
