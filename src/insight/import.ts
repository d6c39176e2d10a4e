/**
 * Imports: a bundle goes to a file of its own as it arrives, is read from there once, checked line by line and written under a key that nobody
 * knows; only when all of it has agreed with its manifest does the run become visible, all at once. The same bundle again changes nothing.
 */
import { randomUUID } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import { type TSchema, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { Sql } from '../db/client.js'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import { NEW_RUN_ID_PATTERN, RUN_ID_PATTERN } from '../domain/ids.js'
import { toUtc } from '../domain/time.js'
import { RunplaneError } from '../errors.js'
import { beginImport, type ImportedRun, type RunImport } from '../log/import.js'
import type { LogReader } from '../log/read.js'
import { createTurns } from '../ops/turns.js'
import { createState, encodeState, type FoldState, foldEvent } from '../projections/fold.js'
import { isCheckpointDue, type Since } from '../runs/checkpoints.js'
import type { Artifacts } from './artifacts.js'
import { BundleError, BundleTooLargeError, CANONICAL_FILE, checkSpacing, createEventTally, type EventTally, type Manifest, NO_LONGER_KEPT } from './bundle.js'
import { type CheckedEvent, isStorable } from './bundle-events.js'
import { scanBundle } from './bundle-reader.js'
import { heldOf } from './import-repeat.js'

export interface ImportAnswer {
  runId: string
  /** False: the run was there already, with all of the canonical events. */
  imported: boolean
  lastSeq: number
  lastRawSeq: number
  /** What of the bundle is in the run: one that was there already may lack raw events and artifacts, and gets none. */
  events: { canonical: number; raw: number }
  artifacts: number
  /** Of the canonical events as they are stored here. */
  chain: string
}

export interface Importer {
  /**
   * @param options.as an id for the run other than its own
   * @throws VALIDATION_ERROR that names the file and the seq, IDEMPOTENCY_CONFLICT where a run of this id has other events, PAYLOAD_TOO_LARGE,
   *   OVERLOADED where too many wait for their turn, or there is no room for it.
   */
  import(workspaceId: string, body: Readable, options: { as?: string | undefined }): Promise<ImportAnswer>
}

export interface ImporterDeps {
  sql: Sql
  reader: LogReader
  artifacts: Pick<Artifacts, 'store' | 'list'>
  /** Folder of bundles on their way. */
  folder: string
  maxBytes: number
  /** Further ones wait, before anything of them is read. */
  maxAtOnce: number
  /** A body that pauses for longer has ended. */
  pauseMs: number
}

const MAX_WAITING = 100
const BATCH_EVENTS = 1000
const BATCH_CHARS = 2_097_152
/** What a process left behind that was killed. */
const STALE_MS = 86_400_000
const RUN_ID = new RegExp(NEW_RUN_ID_PATTERN)

const nullable = <T extends TSchema>(schema: T) => Type.Optional(Type.Union([schema, Type.Null()]))
/** As `POST /runs` takes it (domain/run-request.ts), with room for what was masked or hashed since: that is longer than it was. */
const label = Type.String({ maxLength: 1024 })
const members = Type.Record(Type.String(), Type.Unknown())
/** What is read of run.json; the rest is folded from the events. */
const BundleRun = Type.Object({
  name: nullable(label),
  kind: nullable(label),
  priority: Type.Optional(Type.Integer({ minimum: -1_000_000, maximum: 1_000_000 })),
  maxAttempts: nullable(Type.Integer({ minimum: 1, maximum: 1_000_000 })),
  parentRunId: nullable(Type.String({ pattern: RUN_ID_PATTERN })),
  input: Type.Optional(Type.Unknown()),
  metadata: nullable(members),
  tags: Type.Optional(Type.Array(label, { maxItems: 100 })),
  participants: nullable(Type.Array(members, { maxItems: 1000 })),
  session: nullable(members),
  source: nullable(members),
  createdAt: Type.String(),
  updatedAt: Type.String(),
  archivedAt: nullable(Type.String()),
})

export function createImporter({ sql, reader, artifacts, folder, maxBytes, maxAtOnce, pauseMs }: ImporterDeps): Importer {
  const turns = createTurns({ maxRunning: maxAtOnce, waiting: { max: MAX_WAITING, what: 'imports' } })
  return {
    async import(workspaceId, body, { as }) {
      if (as !== undefined && !RUN_ID.test(as)) throw new RunplaneError('VALIDATION_ERROR', `'${as.slice(0, 200)}' is no id for a run: ${NEW_RUN_ID_PATTERN}.`)
      return turns.take(async () => {
        const place = join(folder, randomUUID())
        try {
          await sweep(folder)
          await mkdir(place, { recursive: true })
          const path = join(place, 'bundle')
          await spool(body, path, maxBytes, pauseMs)
          return await importFile({ sql, reader, artifacts, maxBytes }, workspaceId, path, place, as)
        } catch (error) {
          throw refusal(error)
        } finally {
          await rm(place, { recursive: true, force: true })
        }
      })
    },
  }
}

async function sweep(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    const path = join(folder, name)
    const found = await stat(path).catch(() => undefined)
    if (found && Date.now() - found.mtimeMs > STALE_MS) await rm(path, { recursive: true, force: true })
  }
}

/** A body that is too long is read on and dropped up to here: a client that still sends hears of nothing else. */
const MAX_DROPPED_BYTES = 67_108_864

async function spool(body: Readable, path: string, maxBytes: number, pauseMs: number): Promise<void> {
  const pieces: AsyncIterator<Buffer> = body[Symbol.asyncIterator]()
  let bytes = 0

  async function next(): Promise<Buffer | undefined> {
    let timer: NodeJS.Timeout | undefined
    const pause = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const detail = `Nothing of the bundle arrived for ${pauseMs} ms (BODY_TIMEOUT_MS). Send it again.`
        reject(new RunplaneError('REQUEST_TIMEOUT', detail, { headers: { connection: 'close' } }))
      }, pauseMs)
    })
    const { value, done } = await Promise.race([pieces.next(), pause]).finally(() => clearTimeout(timer))
    return done ? undefined : value
  }

  await pipeline(async function* () {
    for (let piece = await next(); piece; piece = await next()) {
      bytes += piece.length
      if (bytes <= maxBytes) yield piece
      else if (bytes > maxBytes + MAX_DROPPED_BYTES) break
    }
  }, createWriteStream(path))
  if (bytes > maxBytes) throw new BundleTooLargeError()
  if (bytes === 0) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send a bundle: what GET /runs/:id/export answered.')
}

/** What a caller is told. */
function refusal(error: unknown): unknown {
  if (error instanceof BundleError) {
    return new RunplaneError('VALIDATION_ERROR', `The bundle is refused: ${error.message}.`, { errors: [{ path: error.file, message: error.message }] })
  }
  if (error instanceof BundleTooLargeError) return new RunplaneError('PAYLOAD_TOO_LARGE', `${error.message}.`)
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  if (code === 'ENOSPC') {
    const detail = 'There is no room for the bundle in DATA_DIR. Make some, or import it where there is.'
    return new RunplaneError('OVERLOADED', detail, { headers: { 'retry-after': '60' }, cause: error })
  }
  // PostgreSQL, appendix A: data that it cannot hold, a row that is there twice, a value that is too deep or too large.
  if (/^(22|23|54)...$/.test(code)) {
    return new RunplaneError('VALIDATION_ERROR', `The bundle is refused: the database cannot hold what is in it (${code}).`, { cause: error })
  }
  return error
}

type FileDeps = Pick<ImporterDeps, 'sql' | 'reader' | 'artifacts' | 'maxBytes'>

async function importFile(deps: FileDeps, workspaceId: string, path: string, place: string, as: string | undefined): Promise<ImportAnswer> {
  const { sql, artifacts, maxBytes } = deps
  const state = createState()
  let since: Since = { events: 0, bytes: 0 }
  let runId = ''
  let renamed: ((event: CheckedEvent) => CheckedEvent) | undefined
  let tally: EventTally | undefined
  let record: unknown
  let manifest: Manifest | undefined
  let writing: RunImport | undefined
  const files = createArtifactFiles(place)
  const sender = createSender()

  try {
    for await (const part of scanBundle(path, { maxBytes })) {
      switch (part.kind) {
        case 'header': {
          const { header } = part
          runId = as ?? header.runId
          if (!RUN_ID.test(runId)) throw new BundleError('the header', `'${runId.slice(0, 200)}' is no id for a run`)
          if (runId !== header.runId) renamed = renamer(header.runId, runId)
          tally = createEventTally(1, checkSpacing(header.headSeq))
          const [there] = await sql`select key from runs where workspace_id = ${workspaceId} and id = ${runId}`
          if (!there) writing = await beginImport(sql, workspaceId, runId)
          break
        }
        case 'run':
          record = part.value
          break
        case 'canonical': {
          const events = renamed ? part.events.map(renamed) : part.events
          for (const { text, event } of events) {
            tally?.add(Buffer.from(text))
            if (!writing) continue
            foldOne(state, event)
            since.events++
            since.bytes += text.length
            if (!isCheckpointDue(since)) continue
            await sender.checkpoint(writing, state)
            since = { events: 0, bytes: 0 }
          }
          if (writing) await sender.canonical(writing, events)
          break
        }
        case 'raw':
          if (writing) await sender.raw(writing, part.events)
          break
        case 'artifact':
          if (writing) await files.add(part.piece.sha256, part.piece.content)
          break
        case 'manifest':
          manifest = part.manifest
      }
    }
    if (writing) await sender.flush(writing)
    await files.close()
    if (!manifest || !tally) throw new Error('the scan ended without a manifest')
    assertComplete(manifest)
    const row = rowOf(record, manifest)
    const { canonical, raw } = manifest.counts
    const answer = {
      runId,
      lastSeq: manifest.headSeq,
      lastRawSeq: manifest.headRawSeq,
      events: { canonical, raw },
      artifacts: manifest.artifacts.length,
      chain: tally.chain().hash,
    }
    if (writing) {
      for (const { sha256, mediaType } of manifest.artifacts) {
        await artifacts.store(workspaceId, writing.runKey, { bytes: createReadStream(files.pathOf(sha256)), mediaType, sha256 })
      }
      if (await writing.publish(row, state)) return { ...answer, imported: true }
    }
    // It was there before, or somebody else has just imported it.
    const held = await heldOf(deps, workspaceId, runId, tally, manifest)
    if (writing) await writing.abandon()
    return { ...answer, events: { canonical, raw: held.raw }, artifacts: held.artifacts, imported: false }
  } catch (error) {
    await sender.settle()
    await files.close()
    await writing?.abandon()
    throw error
  }
}

function foldOne(state: FoldState, event: CanonicalEvent): void {
  try {
    foldEvent(state, event)
  } catch (error) {
    throw new BundleError(CANONICAL_FILE, `it cannot be folded: ${error instanceof Error ? error.message : ''}`, event.seq)
  }
}

/** A state is folded from the first event on: what is left of a run that was trimmed (docs/adr/0009), or a part of an export, cannot be a run. */
function assertComplete({ complete, headSeq, ranges, omissions }: Manifest): void {
  if (complete) return
  const held =
    ranges.canonical && ranges.canonical.count > 0
      ? `it holds the events ${ranges.canonical.fromSeq} to ${ranges.canonical.toSeq}`
      : 'it holds none of the events'
  const why = omissions.filter(({ what }) => what === 'canonical_events').map(({ reason }) => reason)
  const advice = why.includes(NO_LONGER_KEPT)
    ? 'Retention has deleted the first ones where it was exported, and without them its state cannot be folded. ' +
      'Import a bundle from before that (a policy with "export": true keeps one); this one can still be verified, read and compared.'
    : 'Export all of them: with canonical events, and without fromSeq and limit.'
  throw new RunplaneError('VALIDATION_ERROR', `The bundle is a part of a run: ${held} of 1 to ${headSeq} (${why.join(', ')}). ${advice}`)
}

/** The same event under another id of its run: its own `runId`, and where it refers to the run. */
function renamer(from: string, to: string): (event: CheckedEvent) => CheckedEvent {
  const moved = <R extends { kind: string; id: string } | undefined>(reference: R) =>
    reference?.kind === 'run' && reference.id === from ? { ...reference, id: to } : reference
  return ({ event }) => {
    const { subject, parent } = event
    const renamed: CanonicalEvent = { ...event, runId: to, subject: moved(subject) }
    if (parent) renamed.parent = moved(parent)
    return { event: renamed, text: JSON.stringify(renamed) }
  }
}

function rowOf(record: unknown, manifest: Manifest): ImportedRun {
  const place = 'run.json'
  if (!Value.Check(BundleRun, record) || !isStorable(record)) throw new BundleError(place, 'it is not the record of a run')
  const time = (text: string) => {
    const utc = toUtc(text)
    if (utc === undefined) throw new BundleError(place, `'${text.slice(0, 40)}' is not an RFC 3339 time`)
    return utc
  }
  const json = (value: unknown) => (value === undefined || value === null ? null : JSON.stringify(value))
  const raw = manifest.ranges.raw
  return {
    name: record.name ?? null,
    kind: record.kind ?? null,
    priority: record.priority ?? 0,
    max_attempts: record.maxAttempts ?? null,
    parent_run_id: record.parentRunId ?? null,
    input: json(record.input),
    metadata: json(record.metadata),
    tags: record.tags ?? [],
    descriptor: json({
      participants: record.participants,
      session: record.session ?? undefined,
      source: record.source ?? undefined,
      ...(manifest.profile !== 'full' && { profile: manifest.profile }),
    }),
    last_raw_seq: manifest.headRawSeq,
    first_raw_seq: raw && raw.count > 0 && raw.toSeq === manifest.headRawSeq ? raw.fromSeq : manifest.headRawSeq + 1,
    created_at: time(record.createdAt),
    updated_at: time(record.updatedAt),
    archived_at: record.archivedAt ? time(record.archivedAt) : null,
  }
}

/** Gathers what goes to the database in one statement, and sends it while the next is read. */
function createSender() {
  let canonical: CheckedEvent[] = []
  let raw: Parameters<RunImport['raw']>[0][number][] = []
  let chars = 0
  let sent: Promise<void> = Promise.resolve()

  async function send(work: () => Promise<void>): Promise<void> {
    await sent
    sent = work()
    // It is asked how it went before the next is sent, and at the end.
    sent.catch(() => {})
  }

  async function sendCanonical(to: RunImport): Promise<void> {
    const events = canonical
    canonical = []
    chars = 0
    if (events.length > 0) await send(() => to.canonical(events))
  }
  async function sendRaw(to: RunImport): Promise<void> {
    const events = raw
    raw = []
    chars = 0
    if (events.length > 0) await send(() => to.raw(events))
  }

  return {
    async canonical(to: RunImport, events: readonly CheckedEvent[]): Promise<void> {
      for (const event of events) {
        canonical.push(event)
        chars += event.text.length
        if (canonical.length === BATCH_EVENTS || chars > BATCH_CHARS) await sendCanonical(to)
      }
    },
    async raw(to: RunImport, events: typeof raw): Promise<void> {
      for (const event of events) {
        raw.push(event)
        chars += event.body.length
        if (raw.length === BATCH_EVENTS || chars > BATCH_CHARS) await sendRaw(to)
      }
    },
    /** The state as it is now. */
    async checkpoint(to: RunImport, state: FoldState): Promise<void> {
      const { version } = state
      const text = encodeState(state)
      await send(() => to.checkpoint(version, text))
    },
    async flush(to: RunImport): Promise<void> {
      await sendCanonical(to)
      await sendRaw(to)
      await sent
    },
    /** Nothing is written any more after this. */
    settle: () => sent.catch(() => {}),
  }
}

/** Contents of artifacts wait in files until all is checked. */
function createArtifactFiles(place: string) {
  let open: { sha256: string; stream: ReturnType<typeof createWriteStream> } | undefined
  async function close(): Promise<void> {
    const stream = open?.stream
    open = undefined
    if (!stream) return
    stream.end()
    await finished(stream)
  }
  return {
    pathOf: (sha256: string) => join(place, sha256),
    async add(sha256: string, content: Buffer): Promise<void> {
      if (open?.sha256 !== sha256) {
        await close()
        open = { sha256, stream: createWriteStream(join(place, sha256)) }
      }
      if (!open.stream.write(content)) await new Promise<void>((resolve) => open?.stream.once('drain', resolve))
    },
    close,
  }
}
