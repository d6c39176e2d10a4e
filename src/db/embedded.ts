/**
 * The service's own PostgreSQL: started as needed, shared by all services on one data directory, restarted when it dies.
 *
 * Invariants:
 * - One postmaster serves a data directory. PostgreSQL itself sees to that (postmaster.pid and its shared memory): whoever loses joins.
 * - The postmaster outlives its starter (a session of its own, a log file instead of pipes), so that neither Ctrl-C nor `kill -9` takes it
 *   along; the next start adopts it.
 * - Each service holds a shared advisory lock on a connection of its own, its presence. Who leaves and gets that lock alone is the last one,
 *   and stops the postmaster while holding it; who comes in that moment is refused the lock, waits, and starts the postmaster again.
 * - The end of the presence connection is how a service learns that the postmaster died, its own or an adopted one.
 *
 * States: attending (start or adopt, until present) -> present -> (connection lost) attending ... -> closed.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync, readlinkSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { BaseLogger } from 'pino'
import postgres from 'postgres'
import { EmbeddedDatabaseError, isCode } from './embedded-binaries.js'
import { type Cluster, explained, isAlive, lastLines, prepareCluster, SUPERUSER, spawnOptions } from './embedded-cluster.js'

export { EmbeddedDatabaseError } from './embedded-binaries.js'

/** Any number, the same for all services: "present" in ASCII without its last letter. */
const PRESENCE_LOCK = 0x7072_6573
/** How long a start may be refused by what a killed postmaster left: its backends hold the shared memory until they notice. */
const START_PATIENCE_MS = 30_000
const STOP_PATIENCE_MS = 30_000
/** A postmaster writes its file as soon as it has made it. */
const EMPTY_LOCK_AGE_MS = 5000
const PROBE_PATIENCE_MS = 5000
const TELL_EVERY_MS = 10_000
const MAX_BACKOFF_MS = 5000
const MAX_LOG_BYTES = 16 * 1024 * 1024

export interface EmbeddedDatabase {
  socketPath: string
  user: string
  /** The database that is there from the start. */
  database: string
  /** Leaves; the last one to leave stops the postmaster. Close all other connections first. */
  close(): Promise<void>
}

export interface EmbeddedOptions {
  dataDir: string
  /** Connections that this service will open at most. */
  poolMax: number
  logger: BaseLogger
  /** `process.platform`-`process.arch`, for tests. */
  platform?: string
}

type Attendance = { state: 'present'; sql: postgres.Sql } | { state: 'absent' } | { state: 'busy'; why: string }

/**
 * Starts or adopts the database of a data directory.
 * @throws {EmbeddedDatabaseError} in one line that says what to do.
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<EmbeddedDatabase> {
  const { logger } = options
  const cluster = prepareCluster({ dataDir: options.dataDir, platform: options.platform ?? `${process.platform}-${process.arch}` })
  let presence: postgres.Sql | undefined
  const closing = new AbortController()
  let mending: Promise<void> | undefined

  const lost = () => {
    presence = undefined
    if (!closing.signal.aborted) mending ??= mend().finally(() => (mending = undefined))
  }

  async function mend(): Promise<void> {
    logger.warn('the embedded database is gone; starting it again')
    for (let backoffMs = 100; !closing.signal.aborted; backoffMs = Math.min(backoffMs * 2, MAX_BACKOFF_MS)) {
      try {
        presence = await attend(cluster, options, lost, closing.signal)
        if (presence) logger.info('the embedded database is back')
        return
      } catch (error) {
        logger.error({ err: error }, 'the embedded database does not start; trying again')
        await delay(backoffMs, undefined, { signal: closing.signal }).catch(() => {})
      }
    }
  }

  try {
    presence = await attend(cluster, options, lost, closing.signal)
  } catch (error) {
    throw explained(error, options.dataDir)
  }
  return {
    socketPath: cluster.socketPath,
    user: SUPERUSER,
    database: 'postgres',
    async close() {
      if (closing.signal.aborted) return
      closing.abort()
      await mending
      if (presence) await leave(cluster, presence, logger)
    },
  }
}

/** Until present: connect; where nobody listens, start a postmaster; where one is coming or going, wait. @returns undefined once stopped. */
async function attend(cluster: Cluster, options: EmbeddedOptions, onLost: () => void, stop: AbortSignal): Promise<postgres.Sql | undefined> {
  let child: Postmaster | undefined
  let refusedUntil: number | undefined
  let tellAt = Date.now() + TELL_EVERY_MS
  while (!stop.aborted) {
    const attendance = await probe(cluster, onLost)
    if (attendance.state === 'present') return attendance.sql
    if (attendance.state === 'busy' && Date.now() > tellAt) {
      options.logger.info({ why: attendance.why }, 'waiting for the embedded database')
      tellAt = Date.now() + TELL_EVERY_MS
    }
    if (child?.ended()) {
      refusedUntil ??= Date.now() + START_PATIENCE_MS
      const reason = child.said()
      if (!mayPass(child, reason, cluster.directory) || Date.now() > refusedUntil)
        throw new EmbeddedDatabaseError(`The embedded database does not start: ${lastLines(reason)} (all of it: ${cluster.logPath})`)
      child = undefined
      await delay(100)
    }
    if (attendance.state === 'absent') child ??= spawnPostmaster(cluster, options)
    await delay(20)
  }
  return undefined
}

/** Whether another try can help: another service was first, or stopped it, or a dead postmaster has left something. */
function mayPass(child: Postmaster, reason: string, directory: string): boolean {
  if (child.ended() === 'stopped') return true
  if (reason.includes('postmaster.pid" already exists') || reason.includes('postmaster.pid" is empty')) {
    clearStaleLock(directory)
    return true
  }
  return /lock file ".*" already exists|shared memory block .* is still in use/.test(reason)
}

/** One attempt to connect and to become present. */
async function probe(cluster: Cluster, onLost: () => void): Promise<Attendance> {
  let present = false
  const sql = postgres({
    path: cluster.socketPath,
    user: SUPERUSER,
    database: 'postgres',
    max: 1,
    connect_timeout: PROBE_PATIENCE_MS / 1000,
    idle_timeout: 0,
    max_lifetime: null,
    fetch_types: false,
    onnotice: () => {},
    connection: { application_name: 'runplane presence' },
    onclose: () => present && onLost(),
  })
  try {
    // The driver tries again by itself where a connection is closed without a word, as by a postmaster that is going.
    const answer = await Promise.race([
      sql`select pg_try_advisory_lock_shared(${PRESENCE_LOCK}) as locked`,
      delay(PROBE_PATIENCE_MS, undefined, { ref: false }),
    ])
    present = answer?.[0]?.locked === true
    if (present) return { state: 'present', sql }
    await sql.end({ timeout: 0 })
    return { state: 'busy', why: answer ? 'another service is stopping it' : 'it does not answer' }
  } catch (error) {
    await sql.end({ timeout: 0 })
    if (isCode(error, 'ENOENT') || isCode(error, 'ECONNREFUSED')) return { state: 'absent' }
    // 57P0x: starting up, recovering, shutting down; else a connection that was cut.
    const code = error instanceof Error && 'code' in error ? String(error.code) : ''
    if (/^(57P0\d|53300|CONNECTION_.*|CONNECT_TIMEOUT|ECONNRESET|EPIPE|EAGAIN)$/.test(code)) return { state: 'busy', why: code }
    throw error
  }
}

interface Postmaster {
  /** Refused to run, or was stopped from outside: by another service, or killed. */
  ended(): 'refused' | 'stopped' | undefined
  /** What it wrote to the log so far. */
  said(): string
}

function spawnPostmaster(cluster: Cluster, options: EmbeddedOptions): Postmaster {
  const log = openLog(cluster.logPath)
  const settings = {
    listen_addresses: '',
    unix_socket_directories: '.',
    unix_socket_permissions: '0700',
    // What was acknowledged is durable, whatever stands in the configuration files.
    fsync: 'on',
    synchronous_commit: 'on',
    full_page_writes: 'on',
    // For a small machine. wal_level stays `replica`: `minimal` would spare nothing for plain inserts, and forbid a base backup.
    shared_buffers: '128MB',
    max_connections: String(Math.max(100, options.poolMax + 30)),
    jit: 'off',
    timezone: 'UTC',
    log_timezone: 'UTC',
    log_checkpoints: 'off',
    cluster_name: 'runplane',
  }
  const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  let ended: 'refused' | 'stopped' | undefined
  let fault = ''
  const child: ChildProcess = spawn(cluster.binaries.postgres, ['-D', cluster.ownName, ...args], {
    ...spawnOptions(cluster.directory, cluster.owner),
    detached: true,
    stdio: ['ignore', log.handle, log.handle],
  })
  child.on('error', (error) => {
    ended = 'refused'
    fault = error.message
  })
  child.on('exit', (code) => (ended = code ? 'refused' : 'stopped'))
  child.unref()
  closeSync(log.handle)
  return {
    ended: () => ended,
    said: () => readFileSync(cluster.logPath).subarray(log.offset).toString('utf8') + fault,
  }
}

function openLog(path: string): { handle: number; offset: number } {
  const bytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0
  if (bytes > MAX_LOG_BYTES) renameSync(path, `${path}.1`)
  return { handle: openSync(path, 'a', 0o600), offset: bytes > MAX_LOG_BYTES ? 0 : bytes }
}

/**
 * PostgreSQL takes any live process of the pid in postmaster.pid for a postmaster: after a crash that can be a stranger, or a zombie that nobody
 * reaps. An empty one, of a crash while it was written, keeps it out for good. Clears such a file; where old backends still run, their shared
 * memory keeps a new postmaster out.
 */
function clearStaleLock(directory: string): void {
  const path = join(directory, 'postmaster.pid')
  const pid = postmasterPid(directory)
  const writtenMs = statSync(path, { throwIfNoEntry: false })?.mtimeMs
  if (writtenMs === undefined || (pid === undefined ? Date.now() - writtenMs < EMPTY_LOCK_AGE_MS : isPostmasterOf(directory, pid))) return
  const aside = `${path}.stale-${process.pid}`
  try {
    renameSync(path, aside)
    // Between the look and the rename a new postmaster may have come.
    if (readPid(aside) !== pid) renameSync(aside, path)
    rmSync(aside, { force: true })
  } catch (error) {
    if (!isCode(error, 'ENOENT')) throw error
  }
}

function postmasterPid(directory: string): number | undefined {
  return readPid(join(directory, 'postmaster.pid'))
}

/** @returns undefined where there is no such file, or nothing in it. */
function readPid(path: string): number | undefined {
  try {
    const pid = Number.parseInt(readFileSync(path, 'utf8'), 10)
    return pid > 0 ? pid : undefined
  } catch (error) {
    if (isCode(error, 'ENOENT')) return undefined
    throw error
  }
}

/** A postmaster works in its data directory. Without /proc, or the right to look, a live process is given the benefit of the doubt. */
function isPostmasterOf(directory: string, pid: number): boolean {
  if (!isAlive(pid)) return false
  if (!existsSync('/proc/self')) return true
  try {
    return readlinkSync(`/proc/${pid}/cwd`) === directory
  } catch {
    // A zombie has no command line either.
    return existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('postgres')
  }
}

async function leave(cluster: Cluster, presence: postgres.Sql, logger: BaseLogger): Promise<void> {
  try {
    await presence`select pg_advisory_unlock_shared(${PRESENCE_LOCK})`
    const [last] = await presence`select pg_try_advisory_lock(${PRESENCE_LOCK}) as alone`
    if (last?.alone === true) await stopPostmaster(cluster.directory)
    else logger.info('another service uses the embedded database: it stays')
  } catch (error) {
    logger.warn({ err: error }, 'the embedded database could not be stopped cleanly; the next start recovers it')
  } finally {
    await presence.end({ timeout: 1 })
  }
}

/** SIGINT is PostgreSQL's fast shutdown: open connections end, all is written. */
async function stopPostmaster(directory: string): Promise<void> {
  const pid = postmasterPid(directory)
  if (pid === undefined) return
  process.kill(pid, 'SIGINT')
  for (const until = Date.now() + STOP_PATIENCE_MS; isPostmasterOf(directory, pid); await delay(10)) {
    if (Date.now() > until)
      throw new EmbeddedDatabaseError(`The embedded database (pid ${pid} in ${dirname(directory)}) has not stopped within ${STOP_PATIENCE_MS / 1000} s.`)
  }
}
