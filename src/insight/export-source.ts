/**
 * What an export is made of: one run as of its head when the export begins. What comes later is not in it; what is there does not change.
 * Events are read in keyset pages, a few ahead of what is written, so that a slow reader holds no connection and no more pages than these.
 */
import { setImmediate } from 'node:timers/promises'
import type { Sql } from '../db/client.js'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import { RunplaneError, runNotFound } from '../errors.js'
import type { Mask } from '../ingest/mask.js'
import { LogCorrupt } from '../log/corrupt.js'
import type { Lines, LogReader } from '../log/read.js'
import { PROJECTION_SCHEMA_VERSION, viewState } from '../projections/fold.js'
import type { LlmFold } from '../projections/sections/llm.js'
import { type RunTableRow, recordColumns, toRecord } from '../runs/record.js'
import type { RunStates } from '../runs/state.js'
import { type Manifest, NO_LONGER_KEPT, type Profile } from './bundle.js'
import { metricsOf } from './metrics.js'
import type { PriceTable } from './prices.js'
import type { Redactor } from './redact.js'

export interface ExportOptions {
  format: 'json' | 'ndjson' | 'zip'
  canonical: boolean
  raw: boolean
  artifacts: boolean
  profile: Profile
  fromSeq?: number | undefined
  /** Canonical events at most. */
  limit?: number | undefined
}

/** Events `from` to `to`, of which the log has `head`; none where `to` is below `from`. */
export interface EventRange {
  from: number
  to: number
  head: number
}

export type Omission = Manifest['omissions'][number]

export interface ExportedEvent {
  event: CanonicalEvent
  /** Its text as it is stored; none of an event that is redacted. */
  line?: string
}

export interface ExportSubject {
  runKey: string
  runId: string
  workspaceId: string
  headSeq: number
  headRawSeq: number
  /** JSON texts. */
  run: string
  state: string
  metrics: string
  canonical: EventRange | undefined
  raw: EventRange | undefined
  artifacts: Manifest['artifacts']
  omissions: Omission[]
  complete: boolean
  nextSeq: number | undefined
  /** As asked for, or as the run was redacted before it came here. */
  profile: Profile
  redactor: Redactor | undefined
  /** Where a piece of so many bytes goes; memory of its own unless given. */
  allocate?: ((bytes: number) => Buffer) | undefined
}

/** What an artifact is read from; see insight/artifacts.ts. */
export interface ArtifactSource {
  list(runKey: string): Promise<Manifest['artifacts']>
  open(workspaceId: string, sha256: string): Promise<{ body: AsyncIterable<Buffer> } | undefined>
}

export interface ExportSourceDeps {
  sql: Sql
  reader: LogReader
  runStates: RunStates
  prices: PriceTable
  mask: Pick<Mask, 'text'>
  artifacts: ArtifactSource
  redactorFor(profile: Profile): Promise<Redactor>
}

/** The first page, of which nothing is known. */
const PAGE_EVENTS = 500
/** The others: the database is at work for 10 ms then, which is what keeps it on a core of its own. */
const LONG_PAGE_BYTES = 1_048_576
const LONG_PAGE_EVENTS = 4000
/** Seqs that one look for some types goes over: few enough that every plan is a good one, also before the table has been analyzed (50 ms a page else, not 4). */
const TYPES_SCAN = 5000
/** Asked for at once. */
const PAGES_AHEAD = 2
/** A run that is written all the time is folded at the head of its row, rather than met at rest. */
const TRIES = 3

export type ExportSource = ReturnType<typeof createExportSource>

export function createExportSource({ sql, reader, runStates, prices, mask, artifacts, redactorFor }: ExportSourceDeps) {
  /** The run's row and the fold of its log at the same seq; of a log that is corrupt, as far as it can be folded. */
  async function atHead(workspaceId: string, runId: string) {
    for (let attempt = 1; ; attempt++) {
      const [row] = await sql<(RunTableRow & { first_raw_seq: number })[]>`
        select ${recordColumns(sql)}, first_raw_seq from runs where workspace_id = ${workspaceId} and id = ${runId}`
      if (!row) throw runNotFound(runId)
      const run = { key: row.key, id: runId }
      try {
        const fold = await runStates.fold(run, attempt < TRIES ? undefined : row.last_seq)
        if (fold.version === row.last_seq) return { row, fold }
      } catch (error) {
        if (!(error instanceof LogCorrupt)) throw error
        return { row, fold: await runStates.fold(run, error.seq - 1) }
      }
    }
  }

  /** Raw events belong to the canonical events that came of them; those of which none came, to the next one. */
  async function rawRange(row: { key: string; last_raw_seq: number; first_raw_seq: number }, from: number, to: number, headSeq: number): Promise<EventRange> {
    const after = async (seq: number) => {
      const [found] = await sql<{ raw_seq: number }[]>`
        select raw_seq from run_events_raw where run_key = ${row.key} and first_seq >= ${seq} order by raw_seq limit 1`
      return found?.raw_seq ?? row.last_raw_seq + 1
    }
    const first = from <= 1 ? 1 : await after(from)
    const last = to >= headSeq ? row.last_raw_seq : (await after(to + 1)) - 1
    return { from: Math.max(first, row.first_raw_seq), to: Math.min(last, row.last_raw_seq), head: row.last_raw_seq }
  }

  /**
   * Seqs have no gaps, so that pages can be asked for before those before them have come: the database reads while this process hashes and writes.
   * @param joint before each line but the first of all
   */
  async function* pages({ runKey, runId, allocate }: ExportSubject, log: 'canonical' | 'raw', range: EventRange, joint: string): AsyncGenerator<Buffer> {
    const ahead: { after: number; page: Promise<Lines> }[] = []
    let averageBytes: number | undefined
    let asked = range.from - 1
    const ask = () => {
      while (asked < range.to && ahead.length < (averageBytes === undefined ? 1 : PAGES_AHEAD)) {
        const most = averageBytes === undefined ? PAGE_EVENTS : Math.min(LONG_PAGE_EVENTS, Math.ceil(LONG_PAGE_BYTES / averageBytes))
        const limit = Math.min(most, range.to - asked)
        const isContinued = asked >= range.from
        const page = reader.pageOfLines({ log, runKey, after: asked, limit, maxBytes: LONG_PAGE_BYTES, averageBytes, joint, isContinued, allocate })
        // Whoever stops in between never asks how it ended.
        page.catch(() => {})
        ahead.push({ after: asked, page })
        asked += limit
      }
    }
    for (let after = range.from - 1; after < range.to; ) {
      ask()
      const page = await ahead.shift()?.page
      if (!page?.count) throw new RunplaneError('RUN_NOT_FOUND', `Events of run '${runId}' were deleted while it was exported.`)
      averageBytes = page.bytes / page.count
      after += page.count
      if (after !== (ahead[0]?.after ?? asked)) {
        // Cut, for its events are larger than those before: what was asked for is not what comes next.
        ahead.length = 0
        asked = after
      }
      ask()
      // The driver sends in a turn of its own: now, so that the database works while this page does.
      await setImmediate()
      yield* page.pieces
    }
  }

  const parse = (line: string): ExportedEvent => ({ event: JSON.parse(line), line })

  async function* parsed(subject: ExportSubject, range: EventRange): AsyncGenerator<ExportedEvent[]> {
    for await (const piece of pages(subject, 'canonical', range, '\n')) yield piece.toString().split('\n').filter(Boolean).map(parse)
  }

  return {
    async begin(workspaceId: string, runId: string, options: ExportOptions): Promise<ExportSubject> {
      const { row, fold } = await atHead(workspaceId, runId)
      const redactor = options.profile === 'full' ? undefined : await redactorFor(options.profile)
      const redactedBefore = row.descriptor?.profile
      const text = (value: unknown) => JSON.stringify(redactor ? redactor.record(value) : value)
      const { last_seq: headSeq, first_seq: firstSeq } = row
      const { fromSeq = 1, limit } = options
      if (fromSeq > headSeq + 1) throw new RunplaneError('CURSOR_INVALID', `The run's head is ${headSeq}; fromSeq ${fromSeq} is beyond it.`)
      const from = Math.max(fromSeq, firstSeq)
      const readableSeq = fold.version
      const to = Math.min(readableSeq, limit === undefined ? headSeq : from + limit - 1)
      const raw = options.raw && !redactor ? await rawRange(row, from, to, headSeq) : undefined
      const state = viewState(fold, mask.text)
      const stored = options.artifacts && !redactor ? await artifacts.list(row.key) : []
      return {
        runKey: row.key,
        runId,
        workspaceId,
        headSeq,
        headRawSeq: row.last_raw_seq,
        // Who holds the run now is nothing of its past; who held it is.
        run: text({ ...toRecord(row), lease: null, attempts: state.run.attempts }),
        state: text({ runId, version: fold.version, schemaVersion: PROJECTION_SCHEMA_VERSION, state }),
        // Counts, and names that every profile keeps.
        metrics: JSON.stringify(metricsOf(fold, prices)),
        canonical: options.canonical ? { from, to, head: headSeq } : undefined,
        raw,
        artifacts: stored,
        omissions: omissionsOf(options, {
          from,
          to,
          headSeq,
          readableSeq,
          firstSeq,
          raw,
          firstRawSeq: row.first_raw_seq,
          redactedBefore: redactedBefore !== undefined,
        }),
        complete: options.canonical && from === 1 && to === headSeq,
        nextSeq: to < readableSeq ? to + 1 : undefined,
        profile: redactor ? options.profile : (redactedBefore ?? 'full'),
        redactor,
      }
    },

    /** Stored texts of the canonical events, which have no newlines, with the joint before each but the first of all. */
    async *canonical(subject: ExportSubject, joint: string): AsyncGenerator<Buffer> {
      const { redactor, canonical } = subject
      if (!canonical) return
      if (!redactor) return yield* pages(subject, 'canonical', canonical, joint)
      let before = ''
      for await (const events of parsed(subject, canonical)) {
        yield Buffer.from(before + events.map(({ event }) => JSON.stringify(redactor.event(event))).join(joint))
        before = joint
      }
    },

    /**
     * The events of these types, or all, parsed, some at a time.
     * @param count how many there are: behind the last of them nothing is looked at
     */
    async *ofTypes(subject: ExportSubject, types: readonly string[] | undefined, count: number): AsyncGenerator<ExportedEvent[]> {
      const { redactor, canonical, runKey } = subject
      if (!canonical) return
      const told = (events: ExportedEvent[]) => (redactor ? events.map(({ event }) => ({ event: redactor.event(event) })) : events)
      if (!types) {
        for await (const events of parsed(subject, canonical)) yield told(events)
        return
      }
      for (let afterSeq = canonical.from - 1, found = 0; afterSeq < canonical.to && found < count; ) {
        const limit = Math.min(LONG_PAGE_EVENTS, canonical.to - afterSeq)
        const page = await reader.pageOfEvents({ runKey, afterSeq, limit, maxBytes: LONG_PAGE_BYTES, maxScan: TYPES_SCAN, filter: { types } })
        if (!page || page.scannedTo === afterSeq)
          throw new RunplaneError('RUN_NOT_FOUND', `Events of run '${subject.runId}' were deleted while it was exported.`)
        afterSeq = page.scannedTo
        const events = page.items.map((item) => parse(item.toString())).filter(({ event }) => event.seq <= canonical.to)
        found += events.length
        yield told(events)
      }
    },

    /** What the run had used before the first event of the export. */
    async usedBefore(subject: ExportSubject): Promise<LlmFold | undefined> {
      const { canonical, runKey, runId } = subject
      if (!canonical || canonical.from === 1) return undefined
      return (await runStates.fold({ key: runKey, id: runId }, canonical.from - 1)).folds.llm
    },

    raw(subject: ExportSubject, joint: string): AsyncIterable<Buffer> {
      return pages(subject, 'raw', subject.raw ?? { from: 1, to: 0, head: 0 }, joint)
    },

    async artifact(subject: ExportSubject, sha256: string): Promise<AsyncIterable<Buffer>> {
      const found = await artifacts.open(subject.workspaceId, sha256)
      if (!found) throw new RunplaneError('NOT_FOUND', `The content of artifact ${sha256} is not in the store any more. Export the run without artifacts.`)
      return found.body
    },
  }
}

interface Bounds {
  from: number
  to: number
  headSeq: number
  readableSeq: number
  firstSeq: number
  firstRawSeq: number
  raw: EventRange | undefined
  redactedBefore: boolean
}

const REDACTED = 'redacted'

/** What of the run is not in the bundle, and why. */
function omissionsOf(options: ExportOptions, { from, to, headSeq, readableSeq, firstSeq, firstRawSeq, raw, redactedBefore }: Bounds): Omission[] {
  const omissions: Omission[] = []
  const what = 'canonical_events'
  if (!options.canonical) omissions.push({ what, reason: 'not asked for', fromSeq: 1, toSeq: headSeq })
  else {
    if (firstSeq > 1) omissions.push({ what, reason: NO_LONGER_KEPT, fromSeq: 1, toSeq: firstSeq - 1 })
    if (from > firstSeq) omissions.push({ what, reason: 'before fromSeq', fromSeq: firstSeq, toSeq: from - 1 })
    if (to < readableSeq) omissions.push({ what, reason: 'beyond the limit', fromSeq: to + 1, toSeq: readableSeq })
    if (readableSeq < headSeq) omissions.push({ what, reason: 'the log is corrupt', fromSeq: readableSeq + 1, toSeq: headSeq })
  }
  const redacted = options.profile !== 'full'
  if (!options.raw || redacted) omissions.push({ what: 'raw_events', reason: redacted ? REDACTED : 'not asked for' })
  else if (raw) {
    if (firstRawSeq > 1) omissions.push({ what: 'raw_events', reason: redactedBefore ? REDACTED : NO_LONGER_KEPT, fromSeq: 1, toSeq: firstRawSeq - 1 })
    if (raw.from > Math.max(1, firstRawSeq)) omissions.push({ what: 'raw_events', reason: 'before fromSeq', fromSeq: firstRawSeq, toSeq: raw.from - 1 })
    if (raw.to < raw.head) omissions.push({ what: 'raw_events', reason: 'beyond the limit', fromSeq: raw.to + 1, toSeq: raw.head })
  }
  if (!options.artifacts || redacted) omissions.push({ what: 'artifacts', reason: redacted ? REDACTED : 'not asked for' })
  return omissions
}
