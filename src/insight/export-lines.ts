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
  /** What goes before, between and after the items of a list; there is one newline between. */
  open(section: Section): string
  joint(section: Section): string
  close(section: Section): string
  single(section: Section, text: string): string
  manifest(text: string): string
  error(text: string): string
}

export function ndjsonWire(): LineWire {
  let isOpen = false
  const start = ({ kind, field }: Section) => `{"kind":"${kind}","${field}":`
  return {
    header: (text) => `{"kind":"header",${text.slice(1)}\n`,
    open(section) {
      isOpen = true
      return start(section)
    },
    joint: (section) => `}\n${start(section)}`,
    close() {
      if (!isOpen) return ''
      isOpen = false
      return '}\n'
    },
    single: (section, text) => `${start(section)}${text}}\n`,
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
      return `"${section.member}":[\n`
    },
    joint: () => ',\n',
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

  /** @param lines with the joint before each but the first */
  async function* list(section: Section, lines: (joint: string) => AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    let isOpen = false
    for await (const piece of lines(wire.joint(section))) {
      if (!isOpen) yield Buffer.from(wire.open(section))
      isOpen = true
      yield piece
    }
    yield Buffer.from(wire.close(section))
  }

  const joined = (lines: AsyncIterable<string> | Iterable<string>) =>
    async function* (joint: string): AsyncGenerator<Buffer> {
      let before = ''
      for await (const line of lines) {
        yield Buffer.from(`${before}${line}`)
        before = joint
      }
    }

  async function* artifacts(): AsyncGenerator<string> {
    for (const { sha256, bytes, mediaType } of subject.artifacts) {
      const file = createFileTally()
      const record = (piece: Buffer) => JSON.stringify({ sha256, mediaType, bytes, content: piece.toString('base64') })
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

  yield Buffer.from(wire.header(header))
  for (const section of SECTIONS) {
    if (section.file === CANONICAL_FILE) {
      if (subject.canonical) yield* list(section, (joint) => tally.canonical(source.canonical(subject, joint), joint))
    } else if (section.file === RAW_FILE) {
      if (subject.raw) yield* list(section, (joint) => tally.raw(source.raw(subject, joint), joint))
    } else if (section.file === ARTIFACTS_FOLDER) {
      if (subject.artifacts.length > 0) yield* list(section, joined(artifacts()))
    } else if (section.file === CHECKS_FILE) {
      if (subject.canonical) yield* list(section, joined(tally.checks()))
    } else {
      const text = { 'run.json': subject.run, 'state.json': subject.state, 'metrics.json': subject.metrics }[section.file]
      tally.whole(section.file, text)
      yield Buffer.from(wire.single(section, text))
    }
  }
  yield Buffer.from(wire.manifest(tally.manifest(header)))
}
