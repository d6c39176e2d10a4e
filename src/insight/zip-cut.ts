/**
 * Where a zip is cut. With its end went the directory that tells where its files are, so they are read one after another, as they were written, by what
 * stands before each (APPNOTE.TXT, section 4.3). Nothing of them is used but their names and how far their events go: such a bundle is refused.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { createInflateRaw } from 'node:zlib'
import { BundleError, BundleTooLargeError, CANONICAL_FILE, RAW_FILE } from './bundle.js'
import { seqOfLine } from './bundle-events.js'
import { createInflation } from './inflate.js'
import { assertFileName, assertRatio, DEFLATED, isFolder, MAX_ENTRIES, ZIP } from './zip-bounds.js'

const LOCAL_HEADER = Buffer.from('PK\x03\x04')
const DATA_DESCRIPTOR = Buffer.from('PK\x07\x08')
const DIRECTORY = Buffer.from('PK\x01\x02')
const LOCAL_HEADER_BYTES = 30
/** With its signature, and with lengths of 64 bits. */
const MAX_DESCRIPTOR_BYTES = 24
/** The lengths follow the file, in a data descriptor. */
const FLAG_DESCRIPTOR = 8
const READ_BYTES = 16_384

/** @returns the error that names the file, and the seq, at which the zip ends. @throws BundleError, BundleTooLargeError for what is refused anyway */
export async function cutOfZip(path: string, why: string, maxBytes: number): Promise<BundleError> {
  const file = await open(path)
  try {
    return await findCut(file, why, maxBytes)
  } finally {
    await file.close()
  }
}

async function findCut(file: FileHandle, why: string, maxBytes: number): Promise<BundleError> {
  const { size } = await file.stat()
  let budget = maxBytes
  let last: string | undefined
  const seqs = new Map<string, SeqReader>()
  /** As for a cut of NDJSON: of the first event that is not there, also where the cut is behind the events. */
  const fault = (name: string, what: string) =>
    new BundleError(name, `${what}. Fetch the bundle again`, seqs.get(name === RAW_FILE ? RAW_FILE : CANONICAL_FILE)?.next())

  for (let at = 0, entries = 0; entries < MAX_ENTRIES; entries++) {
    const header = await readAt(file, at, LOCAL_HEADER_BYTES)
    if (header.length < LOCAL_HEADER_BYTES || !header.subarray(0, 4).equals(LOCAL_HEADER)) break
    const nameBytes = header.readUInt16LE(26)
    const name = (await readAt(file, at + LOCAL_HEADER_BYTES, nameBytes)).toString('utf8')
    const start = at + LOCAL_HEADER_BYTES + nameBytes + header.readUInt16LE(28)
    // The name may be cut as well.
    if (start > size) break
    if (!isFolder(name)) assertFileName(name)
    const reader = name === CANONICAL_FILE || name === RAW_FILE ? createSeqReader() : undefined
    if (reader) seqs.set(name, reader)
    const take = (piece: Buffer) => {
      reader?.add(piece)
      budget -= piece.length
      if (budget < 0) throw new BundleTooLargeError()
    }
    const content = header.readUInt16LE(8) === DEFLATED ? await inflated(file, start, name, take) : await stored(file, start, header, size, take)
    if ('fault' in content) return fault(name, `the zip is ${content.fault} here, and its end is missing`)
    last = name
    // The descriptor comes with and without a signature, in two lengths.
    const tail = await readAt(file, content.end, MAX_DESCRIPTOR_BYTES + 4)
    const next = [tail.indexOf(LOCAL_HEADER), tail.indexOf(DIRECTORY)].filter((index) => index !== -1)
    at = content.end + (next.length > 0 ? Math.min(...next) : tail.length)
  }
  return last === undefined
    ? new BundleError(ZIP, `it is cut within its first file (${why}). Fetch the bundle again`)
    : fault(last, `the zip is cut or damaged after this file (${why})`)
}

/** Where the content of an entry ends, or what is wrong with it. */
type Content = { end: number } | { fault: 'cut' | 'damaged' }

async function inflated(file: FileHandle, start: number, name: string, take: (piece: Buffer) => void): Promise<Content> {
  const inflation = createInflation(createInflateRaw())
  let unpacked = 0
  for await (const piece of inflation.pieces(readFrom(file, start))) {
    unpacked += piece.length
    assertRatio(name, inflation.usedBytes, unpacked)
    take(piece)
  }
  if (!inflation.fault) return { end: start + inflation.usedBytes }
  return { fault: inflation.fault.code === 'Z_BUF_ERROR' ? 'cut' : 'damaged' }
}

async function stored(file: FileHandle, start: number, header: Buffer, size: number, take: (piece: Buffer) => void): Promise<Content> {
  const hasDescriptor = (header.readUInt16LE(6) & FLAG_DESCRIPTOR) !== 0
  const end = hasDescriptor ? await descriptorOf(file, start) : start + header.readUInt32LE(18)
  for await (const piece of readFrom(file, start, end)) take(piece)
  return end === undefined || end > size ? { fault: 'cut' } : { end }
}

/** Where the descriptor of a stored file is, by the length that it tells; undefined where the zip ends before it. */
async function descriptorOf(file: FileHandle, start: number): Promise<number | undefined> {
  for (let at = start; ; at += READ_BYTES) {
    // One that begins in this piece may end in the next.
    const piece = await readAt(file, at, READ_BYTES + MAX_DESCRIPTOR_BYTES)
    for (let found = piece.indexOf(DATA_DESCRIPTOR); found !== -1 && found + 12 <= piece.length; found = piece.indexOf(DATA_DESCRIPTOR, found + 1)) {
      if (piece.readUInt32LE(found + 8) === (at + found - start) % 2 ** 32) return at + found
    }
    if (piece.length < READ_BYTES + MAX_DESCRIPTOR_BYTES) return undefined
  }
}

async function* readFrom(file: FileHandle, start: number, end = Number.POSITIVE_INFINITY): AsyncGenerator<Buffer> {
  for (let at = start; ; ) {
    const piece = await readAt(file, at, Math.min(READ_BYTES, end - at))
    if (piece.length === 0) return
    yield piece
    at += piece.length
  }
}

/** What there is of so many bytes. */
async function readAt(file: FileHandle, at: number, bytes: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.allocUnsafe(bytes), 0, bytes, at)
  return buffer.subarray(0, bytesRead)
}

type SeqReader = ReturnType<typeof createSeqReader>
/** What is kept of a line: its number is at its beginning. */
const START_BYTES = 400
const NEWLINE = 0x0a

/** Reads up to where a file of events goes, in constant memory. */
function createSeqReader() {
  let last: number | undefined
  let start = Buffer.alloc(0)
  return {
    /** That of the next line, which is not whole. */
    next: () => (last === undefined ? seqOfLine(start) : last + 1),
    add(piece: Buffer) {
      const end = piece.lastIndexOf(NEWLINE)
      if (end !== -1) {
        const before = end === 0 ? -1 : piece.lastIndexOf(NEWLINE, end - 1)
        last = seqOfLine(before === -1 ? Buffer.concat([start, piece.subarray(0, end)]) : piece.subarray(before + 1, end)) ?? last
        start = Buffer.alloc(0)
      }
      if (start.length < START_BYTES) start = Buffer.concat([start, piece.subarray(end + 1, end + 1 + START_BYTES)])
    },
  }
}
