/** Bundles as lines, read again: what `ndjsonWire` and `jsonWire` wrote, byte for byte, or an error that says where it is not. */
import { BundleError, MANIFEST_FILE, SECTIONS, type Section } from './bundle.js'
import { PackingError } from './inflate.js'

export const HEADER_PLACE = 'the header'
const NEWLINE = 0x0a
const COMMA = 0x2c
const CLOSE_BRACE = 0x7d
/** What a line is, and its number, is told within so many bytes. */
const START_BYTES = 500
/** An event may have 16 MiB; a state has less. */
export const MAX_LINE_BYTES = 67_108_864

/** A file of the bundle, and in or behind a file of events the number of the first that is not there. */
export interface Place {
  file: string
  seq: number | undefined
}

/**
 * Lines without their newline, those of a piece together. They share memory with the pieces.
 * @param place where the reading is, of a line of which only the beginning is there
 * @throws BundleError for a line that is too long or has no end, and where the pieces end in a PackingError
 */
export async function* readLines(pieces: AsyncIterable<Buffer>, place: (start: Buffer) => Place): AsyncGenerator<Buffer[]> {
  let held: Buffer[] = []
  let heldBytes = 0
  try {
    for await (const piece of pieces) {
      const lines: Buffer[] = []
      let start = 0
      for (let newline = piece.indexOf(NEWLINE); newline !== -1; newline = piece.indexOf(NEWLINE, start)) {
        const end = piece.subarray(start, newline)
        lines.push(held.length === 0 ? end : Buffer.concat([...held, end]))
        held = []
        heldBytes = 0
        start = newline + 1
      }
      if (start < piece.length) {
        held.push(piece.subarray(start))
        heldBytes += piece.length - start
        if (heldBytes > MAX_LINE_BYTES) throw fault(held, `a line is longer than ${MAX_LINE_BYTES} bytes`)
      }
      if (lines.length > 0) yield lines
    }
  } catch (error) {
    throw error instanceof PackingError ? fault(held, error.message) : error
  }
  if (held.length > 0) throw fault(held, 'the last line is cut, or was written anew: there is no newline at its end. Fetch the bundle again')

  function fault(held: Buffer[], what: string): BundleError {
    const { file, seq } = place(Buffer.concat(held.map((piece) => piece.subarray(0, START_BYTES))))
    return new BundleError(file, what, seq)
  }
}

export type Line =
  | { what: 'header' | 'manifest' | 'error'; text: Buffer }
  | { what: 'item'; section: Section; text: Buffer }
  /** The beginning of a list, or the end of one. */
  | { what: 'mark'; section?: Section | undefined }

/** What a line holds; undefined for one that was never written so. A parser is of one bundle. */
export type LineParser = (line: Buffer) => Line | undefined

export function isNdjson(first: Buffer): boolean {
  return first.toString('latin1', 0, 16) === '{"kind":"header"'
}

const MARK: Line = { what: 'mark' }
const OPEN = Buffer.from('{')

export function ndjsonParser(): LineParser {
  const items = SECTIONS.map((section) => ({ section, prefix: Buffer.from(`{"kind":"${section.kind}","${section.field}":`) }))
  const others = (['header', 'manifest', 'error'] as const).map((what) => ({ what, prefix: Buffer.from(`{"kind":"${what}",`) }))
  let last = items[0]
  return (line) => {
    if (line[line.length - 1] !== CLOSE_BRACE) return undefined
    if (!last || !starts(line, last.prefix)) last = items.find(({ prefix }) => starts(line, prefix))
    if (last) return { what: 'item', section: last.section, text: line.subarray(last.prefix.length, line.length - 1) }
    const other = others.find(({ prefix }) => starts(line, prefix))
    return other && { what: other.what, text: Buffer.concat([OPEN, line.subarray(other.prefix.length)]) }
  }
}

export function jsonParser(): LineParser {
  const singles = SECTIONS.filter(({ list }) => !list).map((section) => ({ section, prefix: Buffer.from(`"${section.member}":`) }))
  const lists = new Map<string, Section>(SECTIONS.filter(({ list }) => list).map((section) => [`"${section.member}":[`, section]))
  const header = Buffer.from('{"header":')
  const ends = (['manifest', 'error'] as const).map((what) => ({ what, prefix: Buffer.from(`"${what}":`) }))
  let list: Section | undefined
  /** After an item without a comma only the end of its list may follow. */
  let isLast = false
  return (line) => {
    const hasComma = line[line.length - 1] === COMMA
    if (list) {
      if (line.length === 2 && line.toString('latin1') === '],') {
        list = undefined
        return MARK
      }
      if (isLast) return undefined
      isLast = !hasComma
      return { what: 'item', section: list, text: hasComma ? line.subarray(0, -1) : line }
    }
    if (starts(line, header)) return hasComma ? { what: 'header', text: line.subarray(header.length, -1) } : undefined
    const single = singles.find(({ prefix }) => starts(line, prefix))
    if (single) return hasComma ? { what: 'item', section: single.section, text: line.subarray(single.prefix.length, -1) } : undefined
    const end = ends.find(({ prefix }) => starts(line, prefix))
    if (end) return line[line.length - 1] === CLOSE_BRACE ? { what: end.what, text: line.subarray(end.prefix.length, -1) } : undefined
    list = lists.get(line.toString('latin1', 0, 40))
    isLast = false
    return list && { what: 'mark', section: list }
  }
}

function starts(line: Buffer, prefix: Buffer): boolean {
  return line.length > prefix.length && line.compare(prefix, 0, prefix.length, 0, prefix.length) === 0
}

/** Which file the line of a bundle in NDJSON or JSON belongs to that begins so; undefined for an item of a list in JSON. */
export function fileOfLine(start: Buffer): string | undefined {
  const text = start.toString('latin1', 0, 60)
  if (text.startsWith('{"kind":"manifest",') || text.startsWith('"manifest":')) return MANIFEST_FILE
  return SECTIONS.find(({ kind, member }) => text.startsWith(`{"kind":"${kind}",`) || text.startsWith(`"${member}":`))?.file
}

export function cutError({ file, seq }: Place): BundleError {
  return new BundleError(file, 'the bundle is cut here: its manifest is missing. Fetch it again', seq)
}
