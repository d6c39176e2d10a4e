/**
 * Reading bundles: zip, NDJSON or JSON, the latter two also gzipped. `scanBundle` gives what is in one as it reads, and throws at the first
 * byte that is not as it was exported; only when it has ended is what it gave known to be whole.
 */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { open, stat } from 'node:fs/promises'
import { createInflateRaw } from 'node:zlib'
import { type Entry, openPromise, type ZipFile } from 'yauzl'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import type { ImportedRaw } from '../log/import.js'
import {
  ARTIFACTS_FOLDER,
  BundleError,
  BundleTooLargeError,
  CANONICAL_FILE,
  CHECKS_FILE,
  createFileTally,
  MANIFEST_FILE,
  type Manifest,
  RAW_FILE,
  SECTIONS,
  type Section,
  TABLES,
} from './bundle.js'
import { type ArtifactPiece, createBundleCheck, readHeader, readManifest } from './bundle-check.js'
import { type CheckedEvent, seqOfLine } from './bundle-events.js'
import {
  cutError,
  fileOfLine,
  HEADER_PLACE,
  isNdjson,
  jsonParser,
  type LineParser,
  MAX_LINE_BYTES,
  ndjsonParser,
  type Place,
  readLines,
} from './bundle-lines.js'
import { gunzipped, unpackedToFault } from './inflate.js'
import { assertFileName, assertRatio, DEFLATED, isFolder, MAX_ENTRIES, ZIP } from './zip-bounds.js'
import { cutOfZip } from './zip-cut.js'

export { BundleError, BundleTooLargeError } from './bundle.js'

export type BundlePart =
  | { kind: 'header'; header: { runId: string; headSeq: number; headRawSeq: number } }
  | { kind: 'run' | 'state' | 'metrics'; value: unknown }
  | { kind: 'canonical'; events: CheckedEvent[] }
  | { kind: 'raw'; events: ImportedRaw[] }
  | { kind: 'artifact'; piece: ArtifactPiece }
  /** The last: all is checked. */
  | { kind: 'manifest'; manifest: Manifest }

export interface ReadLimits {
  /** Of all files, unpacked. */
  maxBytes: number
}

export interface Bundle {
  manifest: Manifest
  /** The record in run.json. */
  run: Record<string, unknown>
  state: unknown
  events(): AsyncIterable<CanonicalEvent>
  close(): Promise<void>
}

const NO_LIMIT: ReadLimits = { maxBytes: Number.MAX_SAFE_INTEGER }
const READ_BYTES = 262_144
/** Whoever parses a JSON bundle and writes it again has the same bundle, and other bytes. */
const AS_EXPORTED = ': bundles in JSON and NDJSON have to be as they were exported, line by line'

/**
 * Reads all of a bundle and checks it, and then gives its events as often as they are wanted.
 * @throws BundleError that names the file and, where there is one, the seq.
 */
export async function openBundle(path: string, limits: ReadLimits = NO_LIMIT): Promise<Bundle> {
  let run: Record<string, unknown> = {}
  let state: unknown
  let manifest: Manifest | undefined
  for await (const part of scanBundle(path, limits)) {
    // The check has seen that it is an object.
    if (part.kind === 'run') run = part.value as Record<string, unknown>
    else if (part.kind === 'state') state = part.value
    else if (part.kind === 'manifest') manifest = part.manifest
  }
  if (!manifest) throw cutError({ file: MANIFEST_FILE, seq: undefined })
  return {
    manifest,
    run,
    state,
    async *events() {
      for await (const part of scanBundle(path, limits)) {
        if (part.kind === 'canonical') for (const { event } of part.events) yield event
        else if (part.kind === 'raw') return
      }
    },
    async close() {},
  }
}

/** What is in a bundle, in the order of its sections. @throws BundleError; BundleTooLargeError where it is larger than it may be. */
export async function* scanBundle(path: string, limits: ReadLimits = NO_LIMIT): AsyncGenerator<BundlePart> {
  const start = await firstBytes(path)
  if (start.length === 0) throw new BundleError(HEADER_PLACE, 'the bundle is empty')
  if (start.toString('latin1', 0, 4) === 'PK\x03\x04' || start.toString('latin1', 0, 4) === 'PK\x05\x06') yield* scanZip(path, limits)
  else yield* scanLines(path, start[0] === 0x1f && start[1] === 0x8b, limits)
}

async function firstBytes(path: string): Promise<Buffer> {
  const file = await open(path)
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4), 0, 4, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

async function* limited(pieces: AsyncIterable<Buffer>, budget: { bytes: number }): AsyncGenerator<Buffer> {
  for await (const piece of pieces) {
    budget.bytes -= piece.length
    if (budget.bytes < 0) throw new BundleTooLargeError()
    yield piece
  }
}

async function* scanLines(path: string, isGzip: boolean, limits: ReadLimits): AsyncGenerator<BundlePart> {
  const check = createBundleCheck()
  let parser: LineParser | undefined
  let isEnded = false
  const place = (start?: Buffer): Place => {
    if (!parser) return { file: HEADER_PLACE, seq: undefined }
    const { file, seq } = check.place(isEnded ? MANIFEST_FILE : start && fileOfLine(start))
    return { file, seq: seq ?? (start && seqOfLine(start)) }
  }
  const fault = (what: string) => {
    const { file, seq } = place()
    return new BundleError(file, what, seq)
  }
  const bytes = isGzip ? gunzipped(path, READ_BYTES) : createReadStream(path, { highWaterMark: READ_BYTES })
  for await (const lines of readLines(limited(bytes, { bytes: limits.maxBytes }), place)) {
    const batch = createBatch()
    for (const line of lines) {
      if (isEnded) throw new BundleError(MANIFEST_FILE, 'something follows it')
      parser ??= isNdjson(line) ? ndjsonParser() : jsonParser()
      const item = parser(line)
      if (!item) throw fault(`a line is not one of a bundle${AS_EXPORTED}`)
      if (item.what === 'header') {
        check.begin(readHeader(item.text.toString('utf8')))
        batch.add({ kind: 'header', header: check.header })
      } else if (item.what === 'item') takeItem(check, item.section, item.text, batch)
      else if (item.what === 'mark' && item.section) check.enter(item.section)
      else if (item.what === 'error') throw fault(`the export failed here: ${item.text.toString('utf8', 0, 500)}`)
      else if (item.what === 'manifest') {
        isEnded = true
        const manifest = readManifest(item.text.toString('utf8'))
        check.end(manifest)
        batch.add({ kind: 'manifest', manifest })
      }
    }
    yield* batch.parts
  }
  if (!isEnded) throw parser ? cutError(place()) : new BundleError(HEADER_PLACE, 'it is missing')
}

/** Events that follow each other are one part. */
function createBatch() {
  const parts: BundlePart[] = []
  return {
    parts,
    add: (part: BundlePart) => void parts.push(part),
    canonical(event: CheckedEvent) {
      const last = parts.at(-1)
      if (last?.kind === 'canonical') last.events.push(event)
      else parts.push({ kind: 'canonical', events: [event] })
    },
    raw(event: ImportedRaw) {
      const last = parts.at(-1)
      if (last?.kind === 'raw') last.events.push(event)
      else parts.push({ kind: 'raw', events: [event] })
    },
  }
}

type Batch = ReturnType<typeof createBatch>

function takeItem(check: ReturnType<typeof createBundleCheck>, section: Section, line: Buffer, batch: Batch): void {
  check.enter(section)
  switch (section.file) {
    case CANONICAL_FILE:
      batch.canonical(check.canonical(line))
      break
    case RAW_FILE:
      batch.raw(check.raw(line))
      break
    case ARTIFACTS_FOLDER:
      batch.add({ kind: 'artifact', piece: check.artifact(line) })
      break
    case CHECKS_FILE:
      check.checks(line)
      break
    default:
      batch.add({ kind: section.kind, value: check.single(section, line) })
  }
}

async function* scanZip(path: string, limits: ReadLimits): AsyncGenerator<BundlePart> {
  let zip: ZipFile
  try {
    zip = await openPromise(path, { autoClose: false, lazyEntries: true, strictFileNames: true, validateEntrySizes: true, decodeStrings: true })
  } catch (error) {
    throw await cutOfZip(path, error instanceof Error ? error.message : '', limits.maxBytes)
  }
  try {
    yield* scanEntries(path, zip, await entriesOf(zip, limits), limits)
  } finally {
    zip.close()
  }
}

async function entriesOf(zip: ZipFile, limits: ReadLimits): Promise<Map<string, Entry>> {
  const entries = new Map<string, Entry>()
  if (zip.entryCount > MAX_ENTRIES) throw new BundleError(ZIP, `it has ${zip.entryCount} entries`)
  let bytes = 0
  try {
    for await (const entry of zip.eachEntry()) {
      const { fileName, uncompressedSize, compressedSize } = entry
      if (isFolder(fileName) && uncompressedSize === 0) continue
      assertFileName(fileName)
      if (entries.has(fileName)) throw new BundleError(fileName, 'it is there twice')
      assertRatio(fileName, compressedSize, uncompressedSize)
      bytes += uncompressedSize
      entries.set(fileName, entry)
    }
  } catch (error) {
    if (error instanceof BundleError || error instanceof BundleTooLargeError) throw error
    throw new BundleError(ZIP, `its directory is damaged: ${error instanceof Error ? error.message : ''}`)
  }
  if (bytes > limits.maxBytes) throw new BundleTooLargeError()
  return entries
}

async function* scanEntries(path: string, zip: ZipFile, entries: Map<string, Entry>, limits: ReadLimits): AsyncGenerator<BundlePart> {
  const check = createBundleCheck()
  const budget = { bytes: limits.maxBytes }

  /** What there is of a damaged file, after the bytes that have been given; nothing where it cannot even be begun. */
  async function* untilFault(entry: Entry, given: number): AsyncGenerator<Buffer> {
    try {
      for await (const piece of unpackedToFault(() => zip.openReadStreamPromise(entry, { decodeFileData: false }), createInflateRaw, given)) {
        yield piece.subarray(0, entry.uncompressedSize - given)
        given += piece.length
        if (given >= entry.uncompressedSize) break
      }
    } catch {
      // What is wrong with it is known.
    }
  }

  async function* unpacked(file: string): AsyncGenerator<Buffer> {
    const entry = entries.get(file)
    if (!entry) throw new BundleError(file, 'it is missing')
    let given = 0
    try {
      for await (const piece of await zip.openReadStreamPromise(entry)) {
        given += piece.length
        yield piece
      }
    } catch (error) {
      if (entry.compressionMethod === DEFLATED) yield* untilFault(entry, given)
      throw new BundleError(file, `it is cut or damaged here: ${error instanceof Error ? error.message : ''}`, check.place(file).seq)
    }
  }

  const contentOf = (file: string) => limited(unpacked(file), budget)

  async function wholeLine(file: string): Promise<Buffer> {
    const pieces: Buffer[] = []
    let bytes = 0
    for await (const piece of contentOf(file)) {
      pieces.push(piece)
      bytes += piece.length
      if (bytes > MAX_LINE_BYTES) throw new BundleError(file, `it is longer than ${MAX_LINE_BYTES} bytes`)
    }
    const text = Buffer.concat(pieces)
    if (text.indexOf(0x0a) !== text.length - 1) throw new BundleError(file, 'it is not one line')
    return text.subarray(0, -1)
  }

  /** Damage to what is packed may change some lines before the first that cannot be one: the checks tell, out of their turn. */
  async function firstFault(error: BundleError): Promise<BundleError> {
    try {
      for await (const lines of readLines(contentOf(CHECKS_FILE), () => check.place(CHECKS_FILE))) for (const line of lines) check.checks(line)
    } catch {
      return error
    }
    const seq = check.divergence(error.file)
    if (seq === undefined || error.seq === undefined || seq >= error.seq) return error
    return new BundleError(error.file, 'it is not what was exported from here on', seq)
  }

  const manifest = readManifest((await wholeLine(MANIFEST_FILE)).toString('utf8'))
  check.begin(manifest, manifest.ranges)
  yield { kind: 'header', header: check.header }
  for (const section of SECTIONS) {
    const { file } = section
    if (file === ARTIFACTS_FOLDER) {
      check.enter(section)
      const artifacts = new Map(manifest.artifacts.map((artifact) => [artifact.sha256, artifact]))
      for (const name of entries.keys()) {
        if (!name.startsWith(ARTIFACTS_FOLDER)) continue
        const artifact = artifacts.get(name.slice(ARTIFACTS_FOLDER.length))
        if (!artifact) throw new BundleError(name, 'the manifest does not tell of it')
        check.artifactBegins(artifact.sha256, artifact.bytes, artifact.mediaType)
        yield { kind: 'artifact', piece: check.artifactPiece(Buffer.alloc(0)) }
        for await (const piece of contentOf(name)) yield { kind: 'artifact', piece: check.artifactPiece(piece) }
      }
    } else if (entries.has(file)) {
      check.enter(section)
      if (!section.list) {
        const batch = createBatch()
        batch.add({ kind: section.kind, value: check.single(section, await wholeLine(file)) })
        yield* batch.parts
        continue
      }
      try {
        for await (const lines of readLines(contentOf(file), () => check.place(file))) {
          const batch = createBatch()
          for (const line of lines) takeItem(check, section, line, batch)
          yield* batch.parts
        }
      } catch (error) {
        throw error instanceof BundleError ? await firstFault(error) : error
      }
    }
  }
  for (const table of TABLES) {
    if (!entries.has(table)) continue
    const tally = createFileTally()
    for await (const piece of contentOf(table)) tally.add(piece)
    check.other(tally.end(table))
  }
  check.end(manifest)
  await checkSeal(path, zip.comment)
  yield { kind: 'manifest', manifest }
}

/**
 * An export writes the hash of the zip's bytes into its comment: between its files there are bytes too. A zip that was packed anew from the same
 * files has none, and its files are what counts.
 */
async function checkSeal(path: string, comment: string): Promise<void> {
  if (comment === '') return
  const { size } = await stat(path)
  const digest = createHash('sha256')
  // All but the comment and its length.
  for await (const piece of createReadStream(path, { end: size - comment.length - 3 })) digest.update(piece)
  if (comment !== `sha256:${digest.digest('hex')}`)
    throw new BundleError(ZIP, 'its bytes are not those that were exported: the SHA-256 in its comment is another')
}
