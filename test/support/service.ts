/**
 * The service as a process of its own, on a database of its own, for tests that kill it.
 * Whatever happens to the test, no process, postmaster, directory or database of it is left behind.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import postgres from 'postgres'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const READY_MS = 60_000
const STOP_MS = 12_000

/** The server that tests may make databases on; undefined where there is none. */
export const TEST_DATABASE_URL = process.env.TEST_DATABASE_URL || undefined
export const NO_SERVER = 'TEST_DATABASE_URL is not set: there is no Postgres server to test on'

export type DatabaseKind = 'embedded' | 'postgres'

/** What a test of tap offers, as far as this file needs it. */
export interface Teardown {
  teardown(release: () => unknown): unknown
}

export interface ServiceOptions {
  database: DatabaseKind
  env?: Record<string, string>
  port?: number
  /** Joins the database of another service instead of making one. */
  sharing?: Service
}

export interface Service {
  readonly url: string
  readonly port: number
  readonly pid: number
  /** Of the embedded database. */
  readonly dataDir: string
  /** Of the server's database; undefined for the embedded one. */
  readonly databaseUrl: string | undefined
  /** Ends the process by a signal and resolves when it is gone. Its database is left as it is. */
  kill(signal: NodeJS.Signals): Promise<void>
  /** Starts the process again, on the same port and database, and resolves when it is ready. */
  restart(): Promise<void>
  /** A graceful end. @returns the exit code, null if it had to be killed */
  stop(): Promise<number | null>
  /** Resident memory of the process, in bytes (Linux). */
  residentBytes(): number
  /** Process ids of the embedded postmasters that are alive. */
  postmasters(): number[]
  logs(): string
}

/** What must not outlive this process. */
const owned = new Map<string, { children: Set<ChildProcess>; root: string }>()

function killAll(): void {
  for (const { children, root } of owned.values()) {
    for (const child of children) child.kill('SIGKILL')
    for (const pid of postmastersBelow(root)) signalProcess(pid, 'SIGQUIT')
    rmSync(root, { recursive: true, force: true })
  }
  owned.clear()
}
process.once('exit', killAll)
process.once('SIGTERM', () => {
  killAll()
  setTimeout(() => process.exit(143), 300).unref()
})

function signalProcess(pid: number, signal: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, signal)
  } catch {
    return false
  }
}

/** Postmasters that are alive and whose data directory is at most three folders below `root`. */
function postmastersBelow(root: string, depth = 3): number[] {
  let entries: ReturnType<typeof listDirectory>
  try {
    entries = listDirectory(root)
  } catch {
    return []
  }
  const own = entries.some((entry) => entry.name === 'postmaster.pid') ? [Number(readFileSync(join(root, 'postmaster.pid'), 'utf8').split('\n')[0])] : []
  const below =
    depth === 0 || own.length > 0 ? [] : entries.filter((entry) => entry.isDirectory()).flatMap((entry) => postmastersBelow(join(root, entry.name), depth - 1))
  return [...own.filter((pid) => pid > 1 && signalProcess(pid, 0)), ...below]
}

const listDirectory = (path: string) => readdirSync(path, { withFileTypes: true })

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  if (address === null || typeof address === 'string') throw new Error('no free port')
  return address.port
}

let counter = 0

/** An empty database on TEST_DATABASE_URL, dropped at teardown. @returns its URL */
export async function createServerDatabase(t: Teardown): Promise<string> {
  if (TEST_DATABASE_URL === undefined) throw new Error(NO_SERVER)
  const name = `rp_test_${process.pid}_${Date.now().toString(36)}_${counter++}`
  const admin = postgres(TEST_DATABASE_URL, { max: 1, onnotice: () => {} })
  await admin.unsafe(`create database ${name}`)
  t.teardown(async () => {
    await admin.unsafe(`drop database if exists ${name} with (force)`)
    await admin.end()
  })
  const url = new URL(TEST_DATABASE_URL)
  url.pathname = `/${name}`
  return url.href
}

/** The environment of the service: nothing of the test runner's, no settings of whoever runs the tests. */
function serviceEnvironment(settings: Record<string, string>): Record<string, string> {
  const kept = ['PATH', 'HOME', 'TMPDIR', 'LANG', 'TZ', 'USER', 'LD_LIBRARY_PATH']
  const environment: Record<string, string> = {}
  for (const name of kept) {
    const value = process.env[name]
    if (value !== undefined) environment[name] = value
  }
  return { ...environment, ...settings }
}

const command = () => (process.env.RUNPLANE_TEST_DIST === '1' ? ['dist/main.js'] : ['--import', 'tsx', 'src/main.ts'])

export async function startService(t: Teardown, options: ServiceOptions): Promise<Service> {
  const root = mkdtempSync(join(tmpdir(), 'runplane-test-'))
  // The embedded Postgres may run as another user, who has to get at its files.
  chmodSync(root, 0o755)
  const children = new Set<ChildProcess>()
  owned.set(root, { children, root })
  // Teardowns run last in, first out: the database is dropped after the service is gone.
  const databaseUrl = options.sharing ? options.sharing.databaseUrl : options.database === 'postgres' ? await createServerDatabase(t) : undefined
  const dataDir = options.sharing ? options.sharing.dataDir : join(root, 'data')
  const port = options.port ?? (await freePort())
  const url = `http://127.0.0.1:${port}`
  const settings: Record<string, string> = { HOST: '127.0.0.1', PORT: String(port), DATA_DIR: dataDir, LOG_LEVEL: 'warn', ...options.env }
  if (databaseUrl !== undefined) settings.DATABASE_URL = databaseUrl

  let output = ''
  let child: ChildProcess | undefined

  const gone = async (process: ChildProcess) => {
    if (process.exitCode === null && process.signalCode === null) await once(process, 'exit')
  }
  const start = async () => {
    const started = spawn(process.execPath, command(), { cwd: ROOT, env: serviceEnvironment(settings), stdio: ['ignore', 'pipe', 'pipe'] })
    child = started
    children.add(started)
    const keep = (chunk: Buffer) => {
      output = (output + chunk.toString('utf8')).slice(-200_000)
    }
    started.stdout.on('data', keep)
    started.stderr.on('data', keep)
    const deadline = Date.now() + READY_MS
    for (;;) {
      if (started.exitCode !== null || started.signalCode !== null)
        throw new Error(`the service ended with ${started.exitCode ?? started.signalCode} before it was ready:\n${output}`)
      const ready = await fetch(`${url}/readyz`, { signal: AbortSignal.timeout(2000) }).then(
        async (answer) => {
          await answer.arrayBuffer()
          return answer.status === 200
        },
        () => false,
      )
      if (ready) return
      if (Date.now() > deadline) {
        started.kill('SIGKILL')
        throw new Error(`the service was not ready after ${READY_MS} ms:\n${output}`)
      }
      await delay(25)
    }
  }
  const kill = async (signal: NodeJS.Signals) => {
    if (!child) return
    child.kill(signal)
    await gone(child)
    children.delete(child)
  }
  const stop = async () => {
    const stopping = child
    if (!stopping) return null
    stopping.kill('SIGTERM')
    const timer = setTimeout(() => stopping.kill('SIGKILL'), STOP_MS)
    await gone(stopping)
    clearTimeout(timer)
    children.delete(stopping)
    return stopping.exitCode
  }

  t.teardown(async () => {
    if (child && child.exitCode === null && child.signalCode === null) await stop()
    const deadline = Date.now() + 5000
    for (const pid of postmastersBelow(root)) {
      signalProcess(pid, 'SIGQUIT')
      while (signalProcess(pid, 0) && Date.now() < deadline) await delay(20)
    }
    rmSync(root, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 })
    owned.delete(root)
  })
  await start()

  return {
    url,
    port,
    get pid() {
      return child?.pid ?? 0
    },
    dataDir,
    databaseUrl,
    kill,
    restart: start,
    stop,
    residentBytes: () => {
      const pages = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${child?.pid}/status`, 'utf8'))
      return Number(pages?.[1] ?? 0) * 1024
    },
    postmasters: () => postmastersBelow(dataDir),
    logs: () => output,
  }
}
