/**
 * A bundle as a zip: the files as they are, one after another as they are read, so that nothing waits in memory or on disk.
 * Its comment is the SHA-256 of all bytes before it, so that a change is found that no file shows.
 */
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import { ZipFile } from 'yazl'
import { ARTIFACTS_FOLDER, CANONICAL_FILE, CHECKS_FILE, createFileTally, MANIFEST_FILE, RAW_FILE, TABLES } from './bundle.js'
import type { ExportSource, ExportSubject } from './export-source.js'
import { createExportTally } from './export-tally.js'
import type { EventTable } from './parquet.js'

export const ERROR_FILE = 'error.json'
/** zlib's own default is 6, which takes twice as long for a tenth less. */
const COMPRESSION_LEVEL = 3
/** End of central directory record without a comment (APPNOTE.TXT, section 4.3.16); the length of the comment are its last two bytes. */
const END_RECORD_BYTES = 22

/** @param errorText what is told of a failure in error.json; there is no manifest then. */
export async function* exportZip(source: ExportSource, subject: ExportSubject, header: string, errorText: (error: unknown) => string): AsyncGenerator<Buffer> {
  const tally = createExportTally(subject)
  const zip = new ZipFile()
  const mtime = new Date(JSON.parse(subject.run).updatedAt)
  let current: Readable | undefined
  let stopped = false

  /** Resolves when all of it is in the zip. What fails ends the entry there, and then rejects. */
  function add(path: string, content: AsyncIterable<Buffer>, compress = true): Promise<void> {
    return new Promise((resolve, reject) => {
      let failure: { error: unknown } | undefined
      const whole = async function* () {
        try {
          yield* content
        } catch (error) {
          failure = { error }
        }
      }
      current = Readable.from(whole(), { objectMode: false })
      current.on('end', () => (failure ? reject(failure.error) : resolve()))
      current.on('close', () => reject(new Error('nobody reads the export any more')))
      zip.addReadStream(current, path, compress ? { mtime, compressionLevel: COMPRESSION_LEVEL } : { mtime, compress: false })
    })
  }

  async function* once(text: string): AsyncGenerator<Buffer> {
    yield Buffer.from(`${text}\n`)
  }
  const whole = (path: string, text: string) => {
    tally.whole(path, text)
    return add(path, once(text))
  }

  async function* tallied(content: AsyncIterable<Buffer>, file: ReturnType<typeof createFileTally>): AsyncGenerator<Buffer> {
    for await (const chunk of content) {
      file.add(chunk)
      yield chunk
    }
  }

  async function* table(rows: EventTable): AsyncGenerator<Buffer> {
    for await (const events of source.ofTypes(subject, rows.types, tally.countOf(rows.types ?? []))) {
      for (const event of events) {
        rows.add(event)
        const bytes = rows.take()
        if (bytes) yield bytes
      }
    }
    yield rows.end()
  }

  async function entries(): Promise<void> {
    await whole('run.json', subject.run)
    await whole('state.json', subject.state)
    await whole('metrics.json', subject.metrics)
    if (subject.canonical) await add(CANONICAL_FILE, ended(tally.canonical(source.canonical(subject, '\n'), '\n')))
    if (subject.raw) await add(RAW_FILE, ended(tally.raw(source.raw(subject, '\n'), '\n')))
    for (const { sha256 } of subject.artifacts) {
      const file = createFileTally()
      await add(`${ARTIFACTS_FOLDER}${sha256}`, tallied(await source.artifact(subject, sha256), file))
      tally.artifact(sha256, file)
    }
    if (subject.canonical) {
      await add(CHECKS_FILE, Readable.from(checkLines()))
      // Most instances write no zip; and the loader of the tests does not find what it imports.
      const { eventsTable, llmCallsTable, stepsTable } = await import('./parquet.js')
      const tables: [string, () => Promise<EventTable>][] = [
        [TABLES[0], async () => eventsTable(await source.usedBefore(subject))],
        [TABLES[1], async () => stepsTable()],
        [TABLES[2], async () => llmCallsTable()],
      ]
      for (const [path, make] of tables) {
        const file = createFileTally()
        // Their pages are compressed already.
        await add(path, tallied(table(await make()), file), false)
        tally.file(path, file)
      }
    }
    await add(MANIFEST_FILE, once(tally.manifest(header)))
  }

  function* checkLines(): Generator<Buffer> {
    for (const line of tally.checks()) yield Buffer.from(`${line}\n`)
  }

  const written = entries()
    .catch((error) => (stopped ? undefined : add(ERROR_FILE, once(errorText(error)))))
    .catch(() => {})
    .then(() => zip.end())
  try {
    yield* sealed(zip.outputStream)
  } finally {
    stopped = true
    current?.destroy()
    await written
  }
}

/** The last line has a newline as well. */
async function* ended(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let isEmpty = true
  for await (const piece of pieces) {
    isEmpty = false
    yield piece
  }
  if (!isEmpty) yield Buffer.from('\n')
}

async function* sealed(zip: NodeJS.ReadableStream): AsyncGenerator<Buffer> {
  const digest = createHash('sha256')
  let held = Buffer.alloc(0)
  for await (const chunk of zip) {
    const bytes = Buffer.concat([held, Buffer.from(chunk)])
    const out = bytes.subarray(0, Math.max(0, bytes.length - END_RECORD_BYTES))
    held = Buffer.from(bytes.subarray(out.length))
    digest.update(out)
    yield out
  }
  const endRecord = held.subarray(0, END_RECORD_BYTES - 2)
  const comment = Buffer.from(`sha256:${digest.update(endRecord).digest('hex')}`)
  const length = Buffer.alloc(2)
  length.writeUInt16LE(comment.length)
  yield Buffer.concat([endRecord, length, comment])
}
