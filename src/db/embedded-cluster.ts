/**
 * The files of the embedded database: `<DATA_DIR>/postgres` (made by initdb), `postgres.log` beside it, and the way to its socket.
 *
 * Invariant: `<DATA_DIR>/postgres` is a whole cluster or is not there. initdb works in a directory of another name, which is renamed when
 * all of it is on disk; a crash in between leaves only something to sweep. It is closed to everybody but its owner (0700), and so is
 * the socket in it: that is what stands in for a password.
 */
import { spawnSync } from 'node:child_process'
import {
  accessSync,
  chmodSync,
  chownSync,
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { type Binaries, EmbeddedDatabaseError, findBinaries, isCode, type Owner } from './embedded-binaries.js'

/** The major version of the installed binaries: they read no other version's files. */
const MAJOR_VERSION = '18'
/** The uid and gid of `nobody` on Linux: PostgreSQL refuses to run as root. */
const NOBODY = 65_534
/** Bytes of a socket's path, the least of the platforms (macOS: 104 with the final zero; Linux: 108). */
const MAX_SOCKET_PATH_BYTES = 103
export const SUPERUSER = 'runplane'
const SOCKET_NAME = '.s.PGSQL.5432'

export interface Cluster {
  /** The cluster's files, absolute, without symbolic links. */
  directory: string
  /** How a postmaster calls its own directory: see `ownName`. */
  ownName: string
  socketPath: string
  logPath: string
  owner: Owner | undefined
  binaries: Binaries
}

/**
 * Makes what is missing; changes nothing of a cluster that is there.
 * @throws {EmbeddedDatabaseError} with what to do, when the platform, the disk, the rights or the version forbid it.
 */
export function prepareCluster(options: { dataDir: string; platform: string }): Cluster {
  const dataDir = resolve(options.dataDir)
  try {
    makeFolder(dataDir)
    accessSync(dataDir, constants.W_OK | constants.X_OK)
    const directory = join(realpathSync(dataDir), 'postgres')
    assertOwn(dataDir, directory)
    const owner = ownerOf(directory)
    const binaries = findBinaries(options.platform, dataDir, owner)
    sweepDrafts(dataDir)
    if (!isCluster(directory)) initialize(directory, binaries, owner)
    checkVersion(directory)
    return { directory, ownName: ownName(directory), socketPath: shortSocketPath(directory), logPath: join(dataDir, 'postgres.log'), owner, binaries }
  } catch (error) {
    throw explained(error, dataDir)
  }
}

/** Node's own recursive way never returns where a folder that is there takes none, as /proc: it takes the ENOENT for a parent that is missing. */
function makeFolder(path: string): void {
  const parent = dirname(path)
  if (!existsSync(parent)) makeFolder(parent)
  try {
    mkdirSync(path)
  } catch (error) {
    if (isCode(error, 'ENOENT')) throw new EmbeddedDatabaseError(`DATA_DIR: ${path} cannot be made. Set DATA_DIR to another folder, or set DATABASE_URL.`)
    if (!isCode(error, 'EEXIST') || !statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw error
  }
}

/** What we keep in a data directory, and what else one may hold from its beginning: the root of a disk, a folder in a repository. */
const OWN_NAMES =
  /^(?:postgres|postgres\.log(?:\.1)?|postgres-(?:draft|binaries)-.+|socket-link|blobs|drafts|imports|lost\+found|\.gitkeep|\.gitignore|\.DS_Store)$/

/** Nothing is put beside the files of others: a path that was mistyped, or `/etc` where all may be written, is told before anything is. */
function assertOwn(dataDir: string, directory: string): void {
  if (existsSync(join(directory, 'PG_VERSION'))) return
  const foreign = readdirSync(dataDir).find((name) => !OWN_NAMES.test(name))
  if (foreign === undefined) return
  throw new EmbeddedDatabaseError(
    `DATA_DIR ${dataDir} holds other files (such as ${foreign}), and no data of Runplane. Set DATA_DIR to a folder that is empty or not there yet, or set DATABASE_URL.`,
  )
}

/** As root: who owns the files that are there, else nobody. */
function ownerOf(directory: string): Owner | undefined {
  if (process.getuid?.() !== 0) return undefined
  const found = statSync(directory, { throwIfNoEntry: false })
  if (found === undefined) return { uid: NOBODY, gid: NOBODY }
  if (found.uid === 0)
    throw new EmbeddedDatabaseError(`${directory} belongs to root, and PostgreSQL refuses to run as root. Run: chown -R ${NOBODY}:${NOBODY} ${directory}`)
  return { uid: found.uid, gid: found.gid }
}

/**
 * As root on Linux the database runs with a uid that may not be let through the directories above its own (a home of mode 700), but that
 * needs nothing of them when it is started in its directory and knows it by no other name.
 */
function ownName(directory: string): string {
  return process.platform === 'linux' && process.getuid?.() === 0 ? '/proc/self/cwd' : directory
}

/** What a process has to be started with to work on the cluster. The environment holds no PG* variables of the user's. */
export function spawnOptions(directory: string, owner: Owner | undefined) {
  return { ...owner, cwd: directory, env: { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' } }
}

function isCluster(directory: string): boolean {
  if (existsSync(join(directory, 'PG_VERSION'))) return true
  const entries = existsSync(directory) ? readdirSync(directory) : []
  if (entries.length > 0)
    throw new EmbeddedDatabaseError(`${directory} holds files, but no PostgreSQL cluster. Set DATA_DIR to another folder, or move them away.`)
  return false
}

function checkVersion(directory: string): void {
  const version = readFileSync(join(directory, 'PG_VERSION'), 'utf8').trim()
  if (version === MAJOR_VERSION) return
  throw new EmbeddedDatabaseError(
    `${directory} is of PostgreSQL ${version}, and this Runplane embeds PostgreSQL ${MAJOR_VERSION}. Set DATA_DIR to another folder; to keep the data, serve it with PostgreSQL ${version}, set DATABASE_URL to that, or move it with pg_dump.`,
  )
}

/** The name tells whose it is, so that it can be swept when that process is gone. */
const DRAFT = /^postgres-draft-(\d+)-/

function sweepDrafts(dataDir: string): void {
  for (const name of readdirSync(dataDir)) {
    const pid = Number(DRAFT.exec(name)?.[1])
    if (!(pid > 0) || (pid !== process.pid && isAlive(pid))) continue
    try {
      rmSync(join(dataDir, name), { recursive: true, force: true, maxRetries: 5, retryDelay: 20 })
    } catch {
      // Its initdb, orphaned, may still write to it: the next start sweeps it.
    }
  }
}

export function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return isCode(error, 'EPERM')
  }
}

function initialize(directory: string, binaries: Binaries, owner: Owner | undefined): void {
  const draft = mkdtempSync(join(dirname(directory), `postgres-draft-${process.pid}-`))
  try {
    chmodSync(draft, 0o700)
    if (owner) chownSync(draft, owner.uid, owner.gid)
    const encoding = ['--encoding=UTF8', '--locale=C', '--locale-provider=builtin', '--builtin-locale=C.UTF-8']
    const made = spawnSync(binaries.initdb, ['-D', ownName(draft), '-U', SUPERUSER, '--auth=trust', '--no-instructions', ...encoding], {
      ...spawnOptions(draft, owner),
      encoding: 'utf8',
    })
    if (made.error) throw made.error
    if (made.status !== 0) throw new EmbeddedDatabaseError(`The database could not be made in ${directory}: ${lastLines(made.stderr)}`)
    renameSync(draft, directory)
    syncDirectory(dirname(directory))
  } catch (error) {
    rmSync(draft, { recursive: true, force: true })
    // Another service was first: its cluster is as good.
    if (!isCode(error, 'ENOTEMPTY') && !isCode(error, 'EEXIST')) throw error
  }
}

/** A rename is durable when the directory is. */
function syncDirectory(directory: string): void {
  const handle = openSync(directory, 'r')
  try {
    fsyncSync(handle)
  } finally {
    closeSync(handle)
  }
}

/**
 * Where clients connect. The postmaster makes its socket as `./.s.PGSQL.5432`, so that only we need a short path: where the real one is too
 * long, through a symbolic link in a directory of our own (0700) below the system's temporary one, which the data directory remembers.
 */
function shortSocketPath(directory: string): string {
  const path = join(directory, SOCKET_NAME)
  if (Buffer.byteLength(path) <= MAX_SOCKET_PATH_BYTES) return path
  const record = join(dirname(directory), 'socket-link')
  const recorded = existsSync(record) ? readFileSync(record, 'utf8').trim() : ''
  if (leadsTo(recorded, directory)) return join(recorded, SOCKET_NAME)
  const link = join(mkdtempSync(join(tmpdir(), 'runplane-')), 'pg')
  symlinkSync(directory, link)
  writeFileSync(record, `${link}\n`)
  return join(link, SOCKET_NAME)
}

function leadsTo(link: string, directory: string): boolean {
  const found = link === '' ? undefined : lstatSync(link, { throwIfNoEntry: false })
  const parent = link === '' ? undefined : lstatSync(dirname(link), { throwIfNoEntry: false })
  if (!found?.isSymbolicLink() || parent === undefined) return false
  return parent.uid === process.getuid?.() && (parent.mode & 0o077) === 0 && readlinkSync(link) === directory
}

/** The end of what PostgreSQL said, on one line. */
export function lastLines(text: string): string {
  return text.trim().split('\n').slice(-6).join(' | ')
}

const SYSTEM_ADVICE: Record<string, string> = {
  ENOSPC: 'the disk is full. Make room, or set DATA_DIR to a folder on another disk; an empty database takes 50 MB',
  EDQUOT: 'the disk quota is used up. Make room, or set DATA_DIR to a folder on another disk',
  EACCES: 'permission denied. Set DATA_DIR to a folder that this user may write to, or give it the folder that is there',
  EPERM: 'not permitted. Set DATA_DIR to a folder that this user may write to, or give it the folder that is there',
  EROFS: 'the disk is read-only. Set DATA_DIR to a folder that can be written to',
  ENOTDIR: 'there is a file where a folder should be. Set DATA_DIR to a folder',
  EEXIST: 'there is a file where a folder should be. Set DATA_DIR to a folder',
}

/** Gives the faults that an operator can mend a message that says how; others pass. */
export function explained(error: unknown, dataDir: string): unknown {
  if (!(error instanceof Error)) return error
  const full = /No space left on device/.test(error.message)
  if (error instanceof EmbeddedDatabaseError && !full) return error
  const code = full ? 'ENOSPC' : 'code' in error ? String(error.code) : ''
  const advice = SYSTEM_ADVICE[code]
  return advice === undefined
    ? error
    : new EmbeddedDatabaseError(`DATA_DIR ${dataDir} cannot hold the embedded database: ${advice}. Or set DATABASE_URL. (${error.message})`, { cause: error })
}
