/**
 * Exports of one run: what is asked for, an ETag for it, and the bytes, made while they are read.
 * A failure on the way ends in an error record and no manifest: what has no manifest is no bundle.
 */
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import { RunplaneError } from '../errors.js'
import { VERSION } from '../ops/version.js'
import { BUNDLE_VERSION, type BundleFormat, type BundleHeader } from './bundle.js'
import { exportLines, jsonWire, type LineWire, ndjsonWire } from './export-lines.js'
import { createExportSource, type ExportOptions, type ExportSourceDeps, type ExportSubject } from './export-source.js'
import { exportZip } from './export-zip.js'

export type { ExportOptions } from './export-source.js'

export interface RunExport {
  /** Of a run that has not changed it is the same, and so are the bytes. */
  etag: string
  fileName: string
  contentType: string
  stream(): Readable
  /** The same, for whoever knows when a piece has been taken and gives its memory back. Not of a zip. */
  pieces(allocate: (bytes: number) => Buffer): AsyncIterable<Buffer>
}

export interface Exporter {
  /** @throws RUN_NOT_FOUND, CURSOR_INVALID for a `fromSeq` beyond the head. */
  open(workspaceId: string, runId: string, options: ExportOptions): Promise<RunExport>
}

const CONTENT_TYPES: Record<BundleFormat, string> = { json: 'application/json; charset=utf-8', ndjson: 'application/x-ndjson', zip: 'application/zip' }
/** A reader that takes nothing for so long is let go. */
export const STALL_MS = 900_000

export function createExporter(deps: ExportSourceDeps & { log: { error(details: object, message: string): void } }): Exporter {
  const source = createExportSource(deps)
  return {
    async open(workspaceId, runId, options) {
      const subject = await source.begin(workspaceId, runId, options)
      const header = JSON.stringify({
        bundleVersion: BUNDLE_VERSION,
        service: VERSION,
        runId,
        format: options.format,
        profile: subject.profile,
        headSeq: subject.headSeq,
        headRawSeq: subject.headRawSeq,
      } satisfies BundleHeader)
      const errorText = (error: unknown) => {
        deps.log.error({ err: error, runId }, 'an export failed')
        const { code, message } = error instanceof RunplaneError ? error : { code: 'INTERNAL', message: 'Something went wrong here. Export the run again.' }
        return JSON.stringify({ code, detail: message })
      }
      const pieces = (allocate?: (bytes: number) => Buffer) => {
        if (options.format === 'zip') return exportZip(source, subject, header, errorText)
        const wire = options.format === 'json' ? jsonWire() : ndjsonWire()
        return withErrorRecord(wire, exportLines(source, { ...subject, allocate }, wire, header), errorText)
      }
      return {
        etag: `"${etagOf(subject, header, options)}"`,
        fileName: `${runId}.${options.format}`,
        contentType: CONTENT_TYPES[options.format],
        stream: () => {
          const stream = Readable.from(
            watched(pieces(), () => stream.destroy()),
            { objectMode: false },
          )
          return stream
        },
        pieces,
      }
    },
  }
}

async function* withErrorRecord(wire: LineWire, bytes: AsyncIterable<Buffer>, errorText: (error: unknown) => string): AsyncGenerator<Buffer> {
  try {
    yield* bytes
  } catch (error) {
    yield Buffer.from(wire.error(errorText(error)))
  }
}

async function* watched(bytes: AsyncIterable<Buffer>, giveUp: () => void): AsyncGenerator<Buffer> {
  for await (const piece of bytes) {
    const timer = setTimeout(giveUp, STALL_MS).unref()
    try {
      yield piece
    } finally {
      clearTimeout(timer)
    }
  }
}

/** Metrics may be others though the run is the same: the prices are of another file. */
function etagOf({ run, state, metrics, canonical, raw, artifacts }: ExportSubject, header: string, { profile }: ExportOptions): string {
  const text = JSON.stringify([header, run, state.length, metrics, canonical, raw, artifacts, profile])
  return createHash('sha256').update(text).digest('base64url').slice(0, 27)
}
