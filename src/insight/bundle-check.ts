/**
 * The checks of a bundle while it is read once, from its beginning to its end: each line by itself as it comes, and all of it against the
 * manifest at last. Whoever acts on what it gives out may not let it be seen before `end` has returned.
 */
import { createHash, type Hash } from 'node:crypto'
import type { Static } from '@sinclair/typebox'
import { type TypeCheck, TypeCompiler } from '@sinclair/typebox/compiler'
import type { ImportedRaw } from '../log/import.js'
import {
  ARTIFACTS_FOLDER,
  assertSealed,
  BundleError,
  BundleHeader,
  CANONICAL_FILE,
  CHECKS_FILE,
  Checks,
  checkSpacing,
  createEventTally,
  createFileTally,
  type EventTally,
  MANIFEST_FILE,
  MAX_CHECK_LINES,
  Manifest,
  RAW_FILE,
  SECTIONS,
  type Section,
} from './bundle.js'
import { type CheckedEvent, checkCanonical, checkRaw, isShallow, seqOfLine } from './bundle-events.js'
import { HEADER_PLACE, type Place } from './bundle-lines.js'
import { MAX_ENTRIES } from './zip-bounds.js'

export interface ArtifactPiece {
  sha256: string
  mediaType: string
  content: Buffer
}

const headerCheck = TypeCompiler.Compile(BundleHeader)
const manifestCheck = TypeCompiler.Compile(Manifest)
const checksCheck = TypeCompiler.Compile(Checks)
const SHA256 = /^[0-9a-f]{64}$/
/** Types of events that are counted one by one; the vocabulary has some sixty. */
const MAX_TYPES = 1_000_000

type FileEntry = Manifest['files'][number]

/** @param value of a place, if it is JSON of this schema. @throws BundleError */
function parsed<S extends Parameters<typeof TypeCompiler.Compile>[0]>(place: string, text: string, check: TypeCheck<S>): Static<S> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new BundleError(place, 'it is not JSON')
  }
  if (check.Check(value)) return value
  const fault = check.Errors(value).First()
  throw new BundleError(place, `it is not what this version reads: ${fault?.path ?? ''} ${fault?.message ?? ''}`)
}

/** @throws BundleError unless the text is that of a manifest, to the byte. */
export function readManifest(text: string): Manifest {
  assertSealed(text)
  return parsed(MANIFEST_FILE, text, manifestCheck)
}

/** @throws BundleError */
export function readHeader(text: string): BundleHeader {
  return parsed(HEADER_PLACE, text, headerCheck)
}

export type BundleCheck = ReturnType<typeof createBundleCheck>

export function createBundleCheck() {
  let header: BundleHeader | undefined
  let begins: Manifest['ranges'] | undefined
  let at = -1
  let canonical: EventTally | undefined
  let raw: EventTally | undefined
  let nextSeq = 0
  let nextRawSeq = 0
  let firstSeq = 0
  let firstRawSeq = 0
  let lastOfRaw = 0
  const types = new Map<string, number>()
  const files = new Map<string, FileEntry>()
  const checksFile = createFileTally()
  let checks: Checks[] | undefined
  const artifacts: Manifest['artifacts'] = []
  let artifact: { sha256: string; mediaType: string; bytes: number; read: number; digest: Hash } | undefined

  function known(): BundleHeader {
    if (!header) throw new BundleError(HEADER_PLACE, 'it is missing')
    return header
  }

  function put(file: FileEntry): void {
    if (files.has(file.path)) throw new BundleError(file.path, 'it is there twice')
    if (files.size === MAX_ENTRIES) throw new BundleError(file.path, `the bundle has more than ${MAX_ENTRIES} files`)
    files.set(file.path, file)
  }

  function endArtifact(): void {
    if (!artifact) return
    const { sha256, mediaType, bytes, read, digest } = artifact
    const path = `${ARTIFACTS_FOLDER}${sha256}`
    if (read !== bytes || digest.digest('hex') !== sha256) throw new BundleError(path, 'its content does not have the SHA-256 that is its name')
    put({ path, bytes, sha256 })
    artifacts.push({ sha256, bytes, mediaType })
    artifact = undefined
  }

  /** The first line that differs from what the checks were made of, among those that were read. */
  function divergence(path: string): number | undefined {
    const tally = path === CANONICAL_FILE ? canonical : path === RAW_FILE ? raw : undefined
    return tally?.divergence((checks ?? []).filter(({ file }) => file === path))
  }

  const blame = (path: string) => new BundleError(path, 'it is not what was exported: its SHA-256 is not that of the manifest', divergence(path))

  return {
    divergence,
    get header() {
      return known()
    },
    /** Where the reading is, for what is said of a cut: the first event that is not there, also behind the events. */
    place(file = SECTIONS[Math.max(at, 0)]?.file ?? HEADER_PLACE): Place {
      if (file === RAW_FILE) return { file, seq: raw ? nextRawSeq : begins?.raw?.fromSeq }
      if (canonical) return { file, seq: nextSeq }
      return { file, seq: file === CANONICAL_FILE ? begins?.canonical?.fromSeq : undefined }
    },

    /** @param ranges where the manifest comes first; else each file begins with what its first line says, until the manifest tells. */
    begin(told: BundleHeader, ranges?: Manifest['ranges']) {
      if (header) throw new BundleError(HEADER_PLACE, 'it is there twice')
      header = told
      begins = ranges
    },

    /** Sections come in their order. */
    enter(section: Section) {
      const index = SECTIONS.indexOf(section)
      if (index < at || (index === at && !section.list)) throw new BundleError(section.file, 'it is not in its place')
      if (index > at && artifact) endArtifact()
      at = index
    },

    single(section: Section, line: Buffer): unknown {
      const { runId } = known()
      const file = createFileTally()
      file.add(line)
      file.add('\n')
      put(file.end(section.file))
      if (!isShallow(line)) throw new BundleError(section.file, 'it is no JSON, or nests too deep')
      let value: unknown
      try {
        value = JSON.parse(line.toString('utf8'))
      } catch {
        throw new BundleError(section.file, 'it is not JSON')
      }
      if (typeof value !== 'object' || value === null || !('runId' in value) || value.runId !== runId) {
        throw new BundleError(section.file, `it is not of run '${runId}'`)
      }
      return value
    },

    canonical(line: Buffer): CheckedEvent {
      const { runId, headSeq } = known()
      if (!canonical) {
        firstSeq = begins?.canonical?.fromSeq ?? seqOfLine(line) ?? 1
        nextSeq = firstSeq
        canonical = createEventTally(firstSeq, checkSpacing(headSeq))
      }
      const checked = checkCanonical(line, nextSeq, runId)
      if (nextSeq > headSeq) throw new BundleError(CANONICAL_FILE, `it is beyond the head of the run, which is ${headSeq}`, nextSeq)
      canonical.add(line)
      nextSeq++
      const { type } = checked.event
      types.set(type, (types.get(type) ?? 0) + 1)
      if (types.size > MAX_TYPES) throw new BundleError(CANONICAL_FILE, `there are more than ${MAX_TYPES} types of events`, nextSeq - 1)
      return checked
    },

    raw(line: Buffer): ImportedRaw {
      const { headSeq, headRawSeq } = known()
      if (!raw) {
        firstRawSeq = begins?.raw?.fromSeq ?? seqOfLine(line) ?? 1
        nextRawSeq = firstRawSeq
        raw = createEventTally(firstRawSeq, checkSpacing(headRawSeq))
      }
      const checked = checkRaw(line, nextRawSeq)
      const first = checked.seqs[0]
      if (first !== undefined && first <= lastOfRaw) throw new BundleError(RAW_FILE, 'canonical events came of it that came of an earlier one', nextRawSeq)
      lastOfRaw = checked.seqs.at(-1) ?? lastOfRaw
      if (nextRawSeq > headRawSeq || lastOfRaw > headSeq) throw new BundleError(RAW_FILE, 'it is beyond the head of the run', nextRawSeq)
      raw.add(line)
      nextRawSeq++
      return checked
    },

    /** Pieces of one artifact follow each other. */
    artifact(line: Buffer): ArtifactPiece {
      let value: unknown
      try {
        value = JSON.parse(line.toString('utf8'))
      } catch {
        throw new BundleError(ARTIFACTS_FOLDER, 'a line is not JSON')
      }
      const { sha256, mediaType, bytes, content } = Object(value)
      const decoded = typeof content === 'string' ? Buffer.from(content, 'base64') : undefined
      if (typeof sha256 !== 'string' || !SHA256.test(sha256) || typeof mediaType !== 'string' || !Number.isSafeInteger(bytes) || decoded === undefined) {
        throw new BundleError(ARTIFACTS_FOLDER, 'a line is no piece of an artifact')
      }
      if (line.toString('utf8') !== JSON.stringify({ sha256, mediaType, bytes, content: decoded.toString('base64') })) {
        throw new BundleError(`${ARTIFACTS_FOLDER}${sha256}`, 'a line is not as an export writes it')
      }
      if (artifact?.sha256 !== sha256) this.artifactBegins(sha256, bytes, mediaType)
      else if (artifact.mediaType !== mediaType || artifact.bytes !== bytes)
        throw new BundleError(`${ARTIFACTS_FOLDER}${sha256}`, 'its lines do not agree on its size or media type')
      return this.artifactPiece(decoded)
    },
    artifactBegins(sha256: string, bytes: number, mediaType: string) {
      endArtifact()
      artifact = { sha256, mediaType, bytes, read: 0, digest: createHash('sha256') }
    },
    artifactPiece(content: Buffer): ArtifactPiece {
      if (!artifact) throw new Error('no artifact has begun')
      artifact.digest.update(content)
      artifact.read += content.length
      if (artifact.read > artifact.bytes) throw new BundleError(`${ARTIFACTS_FOLDER}${artifact.sha256}`, 'it is longer than it says')
      return { sha256: artifact.sha256, mediaType: artifact.mediaType, content }
    },

    checks(line: Buffer) {
      checks ??= []
      if (checks.length === MAX_CHECK_LINES) throw new BundleError(CHECKS_FILE, `it has more than ${MAX_CHECK_LINES} lines`)
      checks.push(parsed(CHECKS_FILE, line.toString('utf8'), checksCheck))
      checksFile.add(line)
      checksFile.add('\n')
    },

    /** A file of a zip that is only hashed: a table. */
    other: put,

    /** @throws BundleError unless all that was read is all that the manifest tells. */
    end(manifest: Manifest): void {
      endArtifact()
      if (canonical) put(canonical.end(CANONICAL_FILE))
      if (raw) put(raw.end(RAW_FILE))
      if (checks) put(checksFile.end(CHECKS_FILE))
      // A list that was written without an item is a file without a byte.
      const nothing = createHash('sha256').digest('hex')
      const listed = new Set(manifest.files.map(({ path }) => path))
      for (const { path, bytes, sha256 } of manifest.files) {
        const own = files.get(path) ?? (bytes === 0 ? { bytes: 0, sha256: nothing } : undefined)
        if (!own) throw new BundleError(path, 'it is missing')
        if (own.bytes !== bytes || own.sha256 !== sha256) throw blame(path)
      }
      for (const path of files.keys()) if (!listed.has(path)) throw new BundleError(path, 'the manifest does not tell of it')
      for (const name of Object.keys(BundleHeader.properties) as (keyof BundleHeader)[]) {
        if (manifest[name] !== known()[name]) throw new BundleError(HEADER_PLACE, `its ${name} is not that of the manifest`)
      }
      const counts = { canonical: canonical?.lines ?? 0, raw: raw?.lines ?? 0, artifacts: artifacts.length }
      for (const name of ['canonical', 'raw', 'artifacts'] as const) {
        if (manifest.counts[name] !== counts[name])
          throw new BundleError(MANIFEST_FILE, `it counts ${manifest.counts[name]} of ${name}, and there are ${counts[name]}`)
      }
      for (const type of new Set([...types.keys(), ...Object.keys(manifest.counts.types)])) {
        if (manifest.counts.types[type] !== types.get(type)) throw new BundleError(MANIFEST_FILE, `it does not count the events of type ${type}`)
      }
      const chains = [
        { name: 'canonical', tally: canonical, first: firstSeq, file: CANONICAL_FILE },
        { name: 'raw', tally: raw, first: firstRawSeq, file: RAW_FILE },
      ] as const
      for (const { name, tally, first, file } of chains) {
        const range = manifest.ranges[name]
        if (!tally) continue
        if (!range || range.fromSeq !== first || range.count !== tally.lines || range.toSeq !== first + tally.lines - 1) {
          throw new BundleError(MANIFEST_FILE, `its range of ${name} events is not what there is`)
        }
        if (manifest.chains[name]?.hash !== tally.chain().hash) throw blame(file)
      }
      if (manifest.complete && (firstSeq !== 1 || nextSeq - 1 !== manifest.headSeq)) {
        throw new BundleError(MANIFEST_FILE, 'it says that the bundle is complete, which it is not')
      }
    },
  }
}
