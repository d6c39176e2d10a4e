/** What the manifest tells, counted while the bundle is written: the same whatever the container. */
import { EVENT_SCHEMA_VERSION } from '../domain/canonical-event.js'
import { FORMATS } from '../ingest/normalize.js'
import { PROJECTION_SCHEMA_VERSION } from '../projections/fold.js'
import {
  ARTIFACTS_FOLDER,
  type BundleHeader,
  CANONICAL_FILE,
  CHECKS_FILE,
  checkSpacing,
  createEventTally,
  createFileTally,
  type Manifest,
  RAW_FILE,
  sealManifest,
  typeOfText,
} from './bundle.js'
import type { EventRange, ExportSubject } from './export-source.js'

const NEWLINE = 0x0a

type FileTally = ReturnType<typeof createFileTally>

/** Passes the pieces on and counts their lines. They have no newline, and before each but the first of all is the joint, which has one. */
async function* counted(pieces: AsyncIterable<Buffer>, joint: string, count: (line: Buffer) => void): AsyncGenerator<Buffer> {
  const before = joint.indexOf('\n')
  let start = 0
  for await (const piece of pieces) {
    while (start < piece.length) {
      const at = piece.indexOf(NEWLINE, start)
      const end = at === -1 ? piece.length : at - before
      count(piece.subarray(start, end))
      start = end + joint.length
    }
    start = joint.length
    yield piece
  }
}

const lengthOf = (range: EventRange | undefined) => (range ? Math.max(0, range.to - range.from + 1) : 0)

export function createExportTally(subject: ExportSubject) {
  const { canonical: range, raw: rawRange } = subject
  const canonical = createEventTally(range?.from ?? 1, checkSpacing(subject.headSeq))
  const raw = createEventTally(rawRange?.from ?? 1, checkSpacing(subject.headRawSeq))
  const types = new Map<string, number>()
  const files: Manifest['files'] = []

  return {
    /** @param pieces see `ExportSource.canonical`; they are passed on. */
    canonical: (pieces: AsyncIterable<Buffer>, joint: string) =>
      counted(pieces, joint, (text) => {
        canonical.add(text)
        const type = typeOfText(text)
        types.set(type, (types.get(type) ?? 0) + 1)
      }),
    raw: (pieces: AsyncIterable<Buffer>, joint: string) => counted(pieces, joint, raw.add),
    /** How many events of these types have been through. */
    countOf: (of: readonly string[]) => of.reduce((sum, type) => sum + (types.get(type) ?? 0), 0),

    /** A file of one line. */
    whole(path: string, text: string) {
      const file = createFileTally()
      file.add(`${text}\n`)
      files.push(file.end(path))
    },
    file(path: string, file: FileTally) {
      files.push(file.end(path))
    },
    /** @throws where the content is not what its name says. */
    artifact(sha256: string, file: FileTally) {
      const ended = file.end(`${ARTIFACTS_FOLDER}${sha256}`)
      if (ended.sha256 !== sha256) throw new Error(`the stored content of artifact ${sha256} has the hash ${ended.sha256}`)
      files.push(ended)
    },

    /** The lines of events/checks.ndjson, when all events are through. */
    *checks(): Generator<string> {
      const file = createFileTally()
      const lines = function* () {
        yield* canonical.checks(CANONICAL_FILE)
        if (rawRange) yield* raw.checks(RAW_FILE)
      }
      for (const line of lines()) {
        file.add(`${line}\n`)
        yield line
      }
      files.push(file.end(CHECKS_FILE))
    },

    /** @throws where the log gave fewer events than it has. */
    manifest(header: string): string {
      if (range && canonical.lines !== lengthOf(range)) throw new Error(`${canonical.lines} of ${lengthOf(range)} events were read`)
      if (rawRange && raw.lines !== lengthOf(rawRange)) throw new Error(`${raw.lines} of ${lengthOf(rawRange)} raw events were read`)
      if (range) files.push(canonical.end(CANONICAL_FILE))
      if (rawRange) files.push(raw.end(RAW_FILE))
      const rangeOf = ({ from, to, head }: EventRange) => ({ fromSeq: from, toSeq: to, headSeq: head, count: Math.max(0, to - from + 1) })
      return sealManifest({
        ...(JSON.parse(header) as BundleHeader),
        versions: {
          event: EVENT_SCHEMA_VERSION,
          state: PROJECTION_SCHEMA_VERSION,
          normalizers: Object.fromEntries(FORMATS.map(({ name, version }) => [name, version])),
        },
        complete: subject.complete,
        ...(subject.nextSeq !== undefined && { nextSeq: subject.nextSeq }),
        counts: {
          canonical: canonical.lines,
          raw: raw.lines,
          artifacts: subject.artifacts.length,
          types: Object.fromEntries([...types].sort(([left], [right]) => (left < right ? -1 : 1))),
        },
        ranges: { ...(range && { canonical: rangeOf(range) }), ...(rawRange && { raw: rangeOf(rawRange) }) },
        files: files.sort((left, right) => (left.path < right.path ? -1 : 1)),
        chains: { algorithm: 'sha256', ...(range && { canonical: canonical.chain() }), ...(rawRange && { raw: raw.chain() }) },
        artifacts: subject.artifacts,
        omissions: subject.omissions,
      })
    },
  }
}
