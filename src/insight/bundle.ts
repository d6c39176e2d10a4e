/**
 * What a bundle is: one run as files, with a manifest that covers every byte of them. docs/BUNDLES.md describes it for users.
 *
 * The same files are in each container. In a zip they lie as they are; in NDJSON and JSON each of their lines is a record, and the manifest
 * gives the lengths and hashes that the files have in a zip. Event files hold the stored texts, so that they come back the same from an import.
 */

import { createHash, hash } from 'node:crypto'
import { type Static, Type } from '@sinclair/typebox'
import { SHA256_PATTERN } from '../domain/pattern.js'

export const BUNDLE_VERSION = 1

/** `exactly` names a place in the bundle. `seq` is of the canonical events, `rawSeq` in events/raw.ndjson. */
export class BundleError extends Error {
  readonly file: string
  readonly seq: number | undefined

  constructor(file: string, what: string, seq?: number) {
    super(`${file}${seq === undefined ? '' : `, ${file === RAW_FILE ? 'rawSeq' : 'seq'} ${seq}`}: ${what}`)
    this.name = 'BundleError'
    this.file = file
    this.seq = seq
  }
}

/** It is more than whoever reads it is ready to unpack. */
export class BundleTooLargeError extends Error {
  override readonly name = 'BundleTooLargeError'

  constructor(message = 'The bundle is larger than it may be (MAX_BUNDLE_BYTES)') {
    super(message)
  }
}

export const CANONICAL_FILE = 'events/canonical.ndjson'
export const RAW_FILE = 'events/raw.ndjson'
export const CHECKS_FILE = 'events/checks.ndjson'
export const MANIFEST_FILE = 'manifest.json'
export const ARTIFACTS_FOLDER = 'artifacts/'
export const TABLES = ['tables/events.parquet', 'tables/steps.parquet', 'tables/llm_calls.parquet'] as const

/** The lines of a bundle, in their order. In NDJSON each is a record of this kind, in JSON a member, or a list of them, of this name. */
export const SECTIONS = [
  { file: 'run.json', kind: 'run', field: 'run', member: 'run', list: false },
  { file: 'state.json', kind: 'state', field: 'state', member: 'state', list: false },
  { file: 'metrics.json', kind: 'metrics', field: 'metrics', member: 'metrics', list: false },
  { file: CANONICAL_FILE, kind: 'canonical_event', field: 'event', member: 'canonicalEvents', list: true },
  { file: RAW_FILE, kind: 'raw_event', field: 'event', member: 'rawEvents', list: true },
  { file: ARTIFACTS_FOLDER, kind: 'artifact', field: 'artifact', member: 'artifacts', list: true },
  { file: CHECKS_FILE, kind: 'checks', field: 'checks', member: 'checks', list: true },
] as const
export type Section = (typeof SECTIONS)[number]

export const BundleFormat = Type.Union([Type.Literal('json'), Type.Literal('ndjson'), Type.Literal('zip')])
export type BundleFormat = Static<typeof BundleFormat>
export const Profile = Type.Union([Type.Literal('full'), Type.Literal('no-content'), Type.Literal('hashed')])
export type Profile = Static<typeof Profile>

const count = Type.Integer({ minimum: 0 })
/** Who fetches the content has its media type as a header. */
const HEADER_TEXT_PATTERN = '^[!-~][ -~]{0,1023}$'
const sha256 = Type.String({ pattern: SHA256_PATTERN })
const Range = Type.Object({ fromSeq: count, toSeq: count, headSeq: count, count })
const Chain = Type.Object({ hash: sha256, every: Type.Integer({ minimum: 1 }) })

/** The first record of NDJSON and JSON, and part of each manifest. */
export const BundleHeader = Type.Object({
  bundleVersion: Type.Literal(BUNDLE_VERSION, { description: `${BUNDLE_VERSION}` }),
  service: Type.String(),
  runId: Type.String(),
  format: BundleFormat,
  profile: Profile,
  headSeq: count,
  headRawSeq: count,
})
export type BundleHeader = Static<typeof BundleHeader>

export const Manifest = Type.Object({
  ...BundleHeader.properties,
  versions: Type.Object({ event: Type.Integer(), state: Type.Integer(), normalizers: Type.Record(Type.String(), Type.Integer()) }),
  complete: Type.Boolean(),
  /** Where the next part of a limited export starts. */
  nextSeq: Type.Optional(count),
  counts: Type.Object({ canonical: count, raw: count, artifacts: count, types: Type.Record(Type.String(), count) }),
  ranges: Type.Object({ canonical: Type.Optional(Range), raw: Type.Optional(Range) }),
  files: Type.Array(Type.Object({ path: Type.String(), bytes: count, sha256 })),
  chains: Type.Object({ algorithm: Type.Literal('sha256'), canonical: Type.Optional(Chain), raw: Type.Optional(Chain) }),
  artifacts: Type.Array(Type.Object({ sha256, bytes: count, mediaType: Type.String({ pattern: HEADER_TEXT_PATTERN }) })),
  omissions: Type.Array(
    Type.Object({ what: Type.String(), reason: Type.String(), fromSeq: Type.Optional(Type.Integer()), toSeq: Type.Optional(Type.Integer()) }),
  ),
  /** Of the text of the manifest up to here. */
  sha256,
})
export type Manifest = Static<typeof Manifest>

/** Of each link so many bytes are kept, to find by them where a file was changed. */
const CHECK_BYTES = 3
const CHECKS_OF_LINE = 4096
/** Beyond so many events not every link is kept: what a bundle costs in memory stays bounded. */
const MAX_CHECKS = 1_000_000
/** Lines of events/checks.ndjson: of both files of events, each with its last link. */
export const MAX_CHECK_LINES = 2 * (Math.ceil(MAX_CHECKS / CHECKS_OF_LINE) + 1)

/** One line of events/checks.ndjson. `links` is base64: the first three bytes of every `every`th link of the chain, and of the last. */
export const Checks = Type.Object(
  {
    file: Type.Union([Type.Literal(CANONICAL_FILE), Type.Literal(RAW_FILE)]),
    first: count,
    every: Type.Integer({ minimum: 1 }),
    links: Type.String({ maxLength: (CHECKS_OF_LINE * CHECK_BYTES * 4) / 3 }),
  },
  // They are kept until all is read: what else a line held would be kept as well.
  { additionalProperties: false },
)
export type Checks = Static<typeof Checks>

/** Why events are left out that retention has deleted. */
export const NO_LONGER_KEPT = 'no longer kept'

/** The manifest's text, with its own hash at its end. */
export function sealManifest(manifest: Omit<Manifest, 'sha256'>): string {
  const text = JSON.stringify(manifest).slice(0, -1)
  return `${text},"sha256":"${sha256Of(text)}"}`
}

/** @throws BundleError unless the hash at its end is that of the text before it. */
export function assertSealed(text: string): void {
  const at = text.lastIndexOf(',"sha256":"')
  if (text.slice(at) !== `,"sha256":"${sha256Of(text.slice(0, at))}"}`)
    throw new BundleError(MANIFEST_FILE, 'it was changed: its SHA-256 is not that of its text')
}

function sha256Of(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** Length and hash of a file that is written or read piece by piece. */
export function createFileTally() {
  const digest = createHash('sha256')
  let bytes = 0
  return {
    add(piece: Buffer | string) {
      digest.update(piece)
      bytes += typeof piece === 'string' ? Buffer.byteLength(piece) : piece.length
    },
    end: (path: string) => ({ path, bytes, sha256: digest.digest('hex') }),
  }
}

const LINK_BYTES = 32
const BLOCK_BYTES = 65_536
const NEWLINE = 0x0a
const QUOTE = 0x22

/** @param headSeq of the run: known before the first event is. */
export const checkSpacing = (headSeq: number) => Math.max(1, Math.ceil(headSeq / MAX_CHECKS))

export type EventTally = ReturnType<typeof createEventTally>

/**
 * Length, hash and chain of a file of events. Link 0 is 32 zero bytes, link n the SHA-256 of link n-1 and line n with its newline.
 * @param first the seq of the first line
 */
export function createEventTally(first: number, every: number) {
  const digest = createHash('sha256')
  // One piece that doubles: many small ones that live long keep the memory between them from being used again (90 MB in a run of a million).
  let kept = Buffer.alloc(CHECKS_OF_LINE * CHECK_BYTES)
  let keptBytes = 0
  let scratch = Buffer.alloc(65_536)
  // The file's hash takes blocks: a call for each line would cost as much as the hashing.
  const block = Buffer.allocUnsafe(BLOCK_BYTES)
  let blockBytes = 0
  let bytes = 0
  let lines = 0
  let lastKept = 0

  function flush(): void {
    digest.update(block.subarray(0, blockBytes))
    blockBytes = 0
  }

  function keep(): void {
    lastKept = lines
    if (keptBytes === kept.length) kept = Buffer.concat([kept], kept.length * 2)
    keptBytes += scratch.copy(kept, keptBytes, 0, CHECK_BYTES)
  }

  function finish(): void {
    if (lastKept < lines) keep()
  }

  const links = (index: number) => {
    const start = index * CHECKS_OF_LINE * CHECK_BYTES
    return kept.subarray(start, Math.min(keptBytes, start + CHECKS_OF_LINE * CHECK_BYTES))
  }

  return {
    get lines() {
      return lines
    },
    /** @param text without its newline */
    add(text: Buffer) {
      const end = LINK_BYTES + text.length
      if (end >= scratch.length) {
        const larger = Buffer.alloc(end * 2)
        scratch.copy(larger, 0, 0, LINK_BYTES)
        scratch = larger
      }
      scratch.set(text, LINK_BYTES)
      scratch[end] = NEWLINE
      if (blockBytes + text.length + 1 > BLOCK_BYTES) flush()
      if (text.length + 1 > BLOCK_BYTES) digest.update(scratch.subarray(LINK_BYTES, end + 1))
      else {
        block.set(text, blockBytes)
        blockBytes += text.length + 1
        block[blockBytes - 1] = NEWLINE
      }
      // Half the time of a Buffer for each link.
      scratch.write(hash('sha256', scratch.subarray(0, end + 1), 'binary'), 0, LINK_BYTES, 'latin1')
      bytes += text.length + 1
      lines++
      if (lines % every === 0) keep()
    },
    end(path: string) {
      flush()
      return { path, bytes, sha256: digest.digest('hex') }
    },
    chain: () => ({ hash: scratch.toString('hex', 0, LINK_BYTES), every }),
    /** Lines of events/checks.ndjson. */
    *checks(file: string): Generator<string> {
      finish()
      for (let index = 0; index * CHECKS_OF_LINE * CHECK_BYTES < keptBytes; index++) {
        yield JSON.stringify({ file, first: first + index * CHECKS_OF_LINE * every, every, links: links(index).toString('base64') })
      }
    },
    /** @returns the seq of the first line that is not the one that these checks were made of; undefined where all of them agree. */
    divergence(checks: Iterable<Checks>): number | undefined {
      finish()
      let index = 0
      for (const line of checks) {
        const told = Buffer.from(line.links, 'base64')
        const own = links(index)
        const shared = Math.min(told.length, own.length)
        for (let at = 0; at < shared; at++) {
          if (told[at] !== own[at]) return first + (index * CHECKS_OF_LINE + Math.floor(at / CHECK_BYTES)) * every
        }
        index++
      }
      return undefined
    },
  }
}

/**
 * The type of an event, from its stored text: the members before it are texts and numbers, and a quote within a text is escaped.
 * That the text begins like this is the append's promise, and the import's condition.
 */
export function typeOfText(text: Buffer): string {
  let at = 0
  while (at < text.length && !isTypeMember(text, at)) at++
  const start = at + 8
  return text.toString('latin1', start, text.indexOf(QUOTE, start))
}

/** `"type":` by bytes, a third of the time of indexOf. */
const isTypeMember = (text: Buffer, at: number) =>
  text[at] === QUOTE && text[at + 1] === 0x74 && text[at + 2] === 0x79 && text[at + 3] === 0x70 && text[at + 5] === QUOTE && text[at + 6] === 0x3a
