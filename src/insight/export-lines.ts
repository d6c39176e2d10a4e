/**
 * A bundle as lines: NDJSON, a record a line; and JSON, one object that is written with an item a line. `openLines` reads both again, and is
 * as strict as this is exact: a byte that this would not have written is refused.
 */
import { ARTIFACTS_FOLDER, CANONICAL_FILE, CHECKS_FILE, createFileTally, RAW_FILE, SECTIONS, type Section } from './bundle.js'
import type { ExportSource, ExportSubject } from './export-source.js'
import { createExportTally } from './export-tally.js'

/** Of an artifact, so many bytes are in one record; a multiple of 3, so that only the last has padding. */
const ARTIFACT_PIECE_BYTES = 49_152

/** How items become lines. A wire is of one bundle: JSON has to know what came before. */
export interface LineWire {
  header(text: string): string
  /** What goes before, between and after the items of a list; called for each page, in order. */
  open(section: Section): { first: Buffer; between: Buffer }
  close(section: Section): string
  single(section: Section, text: string): string
  manifest(text: string): string
  error(text: string): string
}

export function ndjsonWire(): LineWire {
  let isOpen = false
  return {
    header: (text) => `{"kind":"header",${text.slice(1)}\n`,
    open(section) {
      isOpen = true
      const start = `{"kind":"${section.kind}","${section.field}":`
      return { first: Buffer.from(start), between: Buffer.from(`}\n${start}`) }
    },
    close() {
      if (!isOpen) return ''
      isOpen = false
      return '}\n'
    },
    single: (section, text) => `{"kind":"${section.kind}","${section.field}":${text}}\n`,
    manifest: (text) => `{"kind":"manifest",${text.slice(1)}\n`,
    error: (text) => `${isOpen ? '}\n' : ''}{"kind":"error",${text.slice(1)}\n`,
  }
}

export function jsonWire(): LineWire {
  let list: 'none' | 'empty' | 'filled' = 'none'
  return {
    header: (text) => `{"header":${text},\n`,
    open(section) {
      list = 'filled'
      return { first: Buffer.from(`"${section.member}":[\n`), between: Buffer.from(',\n') }
    },
    close(section) {
      const text = list === 'filled' ? '\n],\n' : `"${section.member}":[\n],\n`
      list = 'none'
      return text
    },
    single: (section, text) => `"${section.member}":${text},\n`,
    manifest: (text) => `"manifest":${text}}\n`,
    error: (text) => `${list === 'filled' ? '\n],\n' : ''}"error":${text}}\n`,
  }
}

export async function* exportLines(source: ExportSource, subject: ExportSubject, wire: LineWire, header: string): AsyncGenerator<Buffer> {
  const tally = createExportTally(subject)

  /** One piece of memory for each page: the lines share theirs with what the driver has read. */
  async function* list(section: Section, pages: AsyncIterable<readonly Buffer[]>): AsyncGenerator<Buffer> {
    let joint: Buffer | undefined
    let between = joint
    for await (const page of pages) {
      if (!joint || !between) ({ first: joint, between } = wire.open(section))
      let size = joint.length - between.length
      for (const line of page) size += between.length + line.length
      const piece = Buffer.allocUnsafe(size)
      let at = 0
      for (const line of page) {
        // Not `copy`, which makes an object of each.
        piece.set(joint, at)
        piece.set(line, at + joint.length)
        at += joint.length + line.length
        joint = between
      }
      yield piece
    }
    yield Buffer.from(wire.close(section))
  }

  async function* counted(pages: AsyncIterable<Buffer[]>, count: (line: Buffer) => void) {
    for await (const page of pages) {
      for (const line of page) count(line)
      yield page
    }
  }

  async function* artifacts(): AsyncGenerator<Buffer[]> {
    for (const { sha256, bytes, mediaType } of subject.artifacts) {
      const file = createFileTally()
      const record = (piece: Buffer) => [Buffer.from(JSON.stringify({ sha256, mediaType, bytes, content: piece.toString('base64') }))]
      let rest: Buffer = Buffer.alloc(0)
      let isEmpty = true
      for await (const chunk of await source.artifact(subject, sha256)) {
        file.add(chunk)
        rest = Buffer.concat([rest, chunk])
        for (; rest.length >= ARTIFACT_PIECE_BYTES; rest = rest.subarray(ARTIFACT_PIECE_BYTES)) {
          isEmpty = false
          yield record(rest.subarray(0, ARTIFACT_PIECE_BYTES))
        }
      }
      if (rest.length > 0 || isEmpty) yield record(rest)
      tally.artifact(sha256, file)
    }
  }

  async function* checks(): AsyncGenerator<Buffer[]> {
    for (const line of tally.checks()) yield [Buffer.from(line)]
  }

  yield Buffer.from(wire.header(header))
  for (const section of SECTIONS) {
    if (section.file === CANONICAL_FILE) {
      if (subject.canonical) yield* list(section, counted(source.canonical(subject), tally.canonical))
    } else if (section.file === RAW_FILE) {
      if (subject.raw) yield* list(section, counted(source.raw(subject), tally.raw))
    } else if (section.file === ARTIFACTS_FOLDER) {
      if (subject.artifacts.length > 0) yield* list(section, artifacts())
    } else if (section.file === CHECKS_FILE) {
      if (subject.canonical) yield* list(section, checks())
    } else {
      const text = { 'run.json': subject.run, 'state.json': subject.state, 'metrics.json': subject.metrics }[section.file]
      tally.whole(section.file, text)
      yield Buffer.from(wire.single(section, text))
    }
  }
  yield Buffer.from(wire.manifest(tally.manifest(header)))
}
