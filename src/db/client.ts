/**
 * Opens the database: the server at DATABASE_URL, or the embedded one. From here on there is no difference.
 *
 * The trap: `drizzle(client)` replaces that client's serializers. On `Database.sql`, the pool that drizzle shares,
 * - json, jsonb and times are passed as STRINGS (`${JSON.stringify(x)}::json`; `sql.json()` throws), and times come back as PostgreSQL's text;
 * - json columns still come back parsed: select `event::text` where the text is wanted.
 * Arrays are passed and come back as text on both: `array_to_json` where they are read.
 * A client of `connect()` has the driver's own serializers. On both, int8 (`count(*)`, seqs) is a number: ours stay far below 2^53.
 */
import { drizzle, type PostgresJsDatabase } from 'drizzle-orm/postgres-js'
import type { BaseLogger } from 'pino'
import postgres from 'postgres'
import { startEmbedded } from './embedded.js'
import * as schema from './schema.js'
import type { TlsMode } from './secured-socket.js'
import { steadySockets } from './steady-socket.js'

export type Sql = postgres.Sql<{ int8: number }>
/** What runs a query: the pool, or a transaction of it. */
export type Queries = postgres.ISql<{ int8: number }>
export type ConnectOptions = postgres.Options<Record<string, postgres.PostgresType>>

export interface Database {
  /** The pool, prepared statements. See the trap above. */
  sql: Sql
  db: PostgresJsDatabase<typeof schema>
  /** For psql; it may hold a password. */
  url: string
  kind: 'embedded' | 'server'
  /** For people: no password in it. */
  describe: string
  /** An extra client, such as one with max 1 for LISTEN. Its owner ends it, before `close()`. */
  connect(options?: ConnectOptions): Sql
  /** Waits for the queries that run (5 s at most), then ends the pool, and the embedded database if no other service uses it. */
  close(): Promise<void>
}

/** The database cannot be reached: one line, without the password. */
export class DatabaseUnavailableError extends Error {
  override readonly name = 'DatabaseUnavailableError'
}

const CONNECT_TIMEOUT_S = 10
const STATEMENT_TIMEOUT_MS = 60_000
const CLOSE_TIMEOUT_S = 5

/**
 * Opens and tries the connection; migrates nothing (migrate.ts).
 * @param options poolMax: connections of the pool at most.
 * @throws {DatabaseUnavailableError | EmbeddedDatabaseError} in one line that says what to do.
 */
export async function openDatabase(options: { databaseUrl?: string | undefined; dataDir: string; poolMax: number; logger: BaseLogger }): Promise<Database> {
  return options.databaseUrl ? openServer(options.databaseUrl, options.poolMax) : openEmbedded(options)
}

async function openServer(url: string, poolMax: number): Promise<Database> {
  const tls = readable(() => tlsOf(url))
  const connect = (options: ConnectOptions = {}) => postgres(url, clientOptions(options, tls))
  const describe = `PostgreSQL at ${withoutSecrets(url)}`
  const sql = connect({ max: poolMax })
  try {
    await sql`select 1`
  } catch (error) {
    await sql.end({ timeout: 0 })
    throw new DatabaseUnavailableError(`DATABASE_URL: ${describe} cannot be used: ${connectFault(error)}`, { cause: error })
  }
  return { sql, db: drizzle(sql, { schema }), url, kind: 'server', describe, connect, close: () => sql.end({ timeout: CLOSE_TIMEOUT_S }) }
}

async function openEmbedded(options: { dataDir: string; poolMax: number; logger: BaseLogger }): Promise<Database> {
  const embedded = await startEmbedded(options)
  return onEmbedded(embedded.socketPath, embedded.user, embedded.database, `embedded PostgreSQL in ${options.dataDir}`, options.poolMax, embedded.close)
}

/** A pool on one database of an embedded cluster that runs. `leave` is called when the pool has ended. */
export function onEmbedded(socketPath: string, user: string, database: string, describe: string, poolMax: number, leave: () => Promise<void>): Database {
  const connect = (extra: ConnectOptions = {}) => postgres(clientOptions({ ...extra, path: socketPath, user, database }))
  const sql = connect({ max: poolMax })
  const folder = socketPath.slice(0, socketPath.lastIndexOf('/'))
  return {
    sql,
    db: drizzle(sql, { schema }),
    url: `postgres://${user}@/${database}?host=${encodeURIComponent(folder)}`,
    kind: 'embedded',
    describe,
    connect,
    close: async () => {
      await sql.end({ timeout: CLOSE_TIMEOUT_S })
      await leave()
    },
  }
}

/** As the driver reads it from the URL and the environment; undefined: without TLS. */
function tlsOf(url: string): TlsMode | undefined {
  // Nothing connects before its first query.
  const { ssl: mode, sslnegotiation }: { ssl?: unknown; sslnegotiation?: unknown } = postgres(url).options
  return mode ? { mode, direct: sslnegotiation === 'direct' } : undefined
}

function clientOptions(options: ConnectOptions, tls?: TlsMode) {
  return {
    connect_timeout: CONNECT_TIMEOUT_S,
    // The driver's own waits grow to 20 s: too long after a database that restarts in one.
    backoff: (attempt: number) => Math.min(2 ** attempt / 100, 1),
    onnotice: () => {},
    ssl: false,
    socket: steadySockets(tls),
    // Nothing here passes arrays; and a connection that is cut during this look-up would reject a promise that nobody holds.
    fetch_types: false,
    ...options,
    types: { int8: { to: 20, from: [20], parse: Number, serialize: String } },
    connection: {
      application_name: 'runplane',
      statement_timeout: STATEMENT_TIMEOUT_MS,
      // Nothing here is computed for so long that it would pay, and an estimate that is too high costs 30 ms.
      jit: 'off',
      // A service that hangs, or a network that is cut, must not hold the rows of a run for ever.
      idle_in_transaction_session_timeout: STATEMENT_TIMEOUT_MS,
      ...options.connection,
    },
  }
}

/** The driver's own error about a URL that it cannot read holds the URL, and with it the password. */
function readable<Result>(read: () => Result): Result {
  try {
    return read()
  } catch {
    throw new DatabaseUnavailableError(
      'DATABASE_URL: its value is not a URL. Allowed: postgres://user:password@host:port/database, where / # ? % @ and : in the user and the password are percent-encoded, such as %2F for /.',
    )
  }
}

function withoutSecrets(url: string): string {
  try {
    const { hostname, port, pathname } = new URL(url)
    return `${hostname || 'localhost'}:${port || 5432}${pathname}`
  } catch {
    return 'the given address'
  }
}

/** Node's and PostgreSQL's codes (PostgreSQL 18, appendix A) for what an operator can mend. */
const CONNECT_FAULTS: Record<string, string> = {
  ECONNREFUSED: 'nothing listens there. Is the server running, and the port right?',
  ENOTFOUND: 'there is no such host.',
  EAI_AGAIN: 'the name of the host cannot be looked up.',
  EHOSTUNREACH: 'the host cannot be reached.',
  ENETUNREACH: 'the network cannot be reached.',
  ENOENT: 'there is no such socket.',
  CONNECT_TIMEOUT: `no answer within ${CONNECT_TIMEOUT_S} s.`,
  NO_TLS: 'it does not take connections with TLS. Turn it on there, or leave sslmode out of the URL.',
  '28P01': 'the user or the password is wrong.',
  '28000': 'the server does not let this user in.',
  '3D000': 'there is no such database. Create it, as with createdb.',
  '53300': 'it has no connection free.',
  '57P03': 'it is starting up or shutting down.',
}

function connectFault(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  return CONNECT_FAULTS[code] ?? `${error instanceof Error ? error.message : error}${code && ` (${code})`}`
}
