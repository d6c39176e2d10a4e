/**
 * Reading the log: keyset pages by (run, seq), each in one statement, so that a page and the head that it is judged by are of one snapshot.
 *
 * Invariant: numbers come from inside the append's transaction, so commit order is seq order, and "everything after my cursor" misses nothing.
 * Postgres puts the text of a page together from the stored text of its events: nothing is parsed here, and an event looks the same in a page, a frame and a bundle.
 */
import type { Sql } from '../db/client.js'
import { isTerminal, type RunStatus } from '../domain/run.js'

/** What a reader needs to know of a run. */
export interface RunHead {
  key: string
  id: string
  workspaceId: string
  status: RunStatus
  lastSeq: number
  lastRawSeq: number
  /** The first canonical event that retention kept. */
  firstSeq: number
}

export interface EventFilter {
  types?: readonly string[] | undefined
  /** `kind/id` */
  subject?: string | undefined
}

export interface PageRequest {
  runKey: string
  afterSeq: number
  limit: number
  /** The page is cut before the event that would take it past this, but holds at least one. */
  maxBytes: number
  filter?: (EventFilter & { afterTs?: string | undefined; beforeTs?: string | undefined }) | undefined
  /** How many seqs a filtered page looks at, so that it ends even where nothing matches. */
  maxScan?: number | undefined
}

export interface LogPage {
  /** The events' text; undefined where there are none. May share memory with other results: copy what is kept. */
  body: Buffer | undefined
  count: number
  /** Everything that matches up to here is in the page: where the next one starts. */
  scannedTo: number
  status: RunStatus
  terminal: boolean
  headSeq: number
  firstSeq: number
}

export interface RawPage {
  /** JSON texts, each an item of the answer. */
  items: string[]
  lastRawSeq: number
}

export interface WorkspacePageRequest {
  workspaceId: string
  after: { runKey: string; seq: number } | undefined
  runId?: string | undefined
  filter: NonNullable<PageRequest['filter']>
  limit: number
  maxBytes: number
}

export interface WorkspacePage {
  body: Buffer | undefined
  /** Where the next page starts; undefined after the last. */
  next: { runKey: string; seq: number } | undefined
}

export type LogReader = ReturnType<typeof createLogReader>

/** Seqs that one request with a filter looks at: 0.1 to 0.2 s of reading. */
const PAGE_SCAN = 100_000
const WORKSPACE_SCAN = 20_000

const number = (bytes: Buffer | null | undefined) => (bytes ? Number(bytes.toString('latin1')) : 0)

export function createLogReader({ sql }: { sql: Sql }) {
  const items = {
    json: sql`event::text`,
    frames: sql`'id: ' || seq || E'\nevent: canonical_event\ndata: ' || event::text || E'\n\n'`,
  }

  function matching(filter: PageRequest['filter']) {
    // Lists go as one text: the driver then needs no look-up of array types, and no list is too long to prepare.
    const types = filter?.types ? sql`and e.type = any(string_to_array(${filter.types.join(',')}, ','))` : sql``
    const subject = filter?.subject ? sql`and e.subject = ${filter.subject}` : sql``
    const afterTs = filter?.afterTs ? sql`and e.ts > ${filter.afterTs}::text::timestamptz` : sql``
    const beforeTs = filter?.beforeTs ? sql`and e.ts < ${filter.beforeTs}::text::timestamptz` : sql``
    return sql`${types} ${subject} ${afterTs} ${beforeTs}`
  }

  const isFiltered = (filter: PageRequest['filter']) =>
    filter !== undefined && (filter.types !== undefined || filter.subject !== undefined || filter.afterTs !== undefined || filter.beforeTs !== undefined)

  /** One page and the run's head, of one snapshot. Undefined: there is no such run (any more). */
  async function page(request: PageRequest, as: keyof typeof items): Promise<LogPage | undefined> {
    const { runKey, afterSeq, limit, maxBytes, filter } = request
    const filtered = isFiltered(filter)
    const upTo = filtered ? afterSeq + (request.maxScan ?? PAGE_SCAN) : Number.MAX_SAFE_INTEGER
    const range = filtered ? sql`and e.seq <= ${upTo} ${matching(filter)}` : sql``
    // string_agg takes the rows as the window sorts them: an order of its own would sort each page again, a tenth of its time.
    const [row] = await sql`
      select r.status, r.last_seq, r.first_seq, p.found, p.taken, p.up_to, p.body
      from runs r, lateral (
        select count(*) as found, count(*) filter (where fits) as taken, max(seq) filter (where fits) as up_to,
          string_agg(item, ${as === 'json' ? ',' : ''}) filter (where fits) as body
        from (
          select seq, item, row_number() over w <= ${limit} and sum(octet_length(item)) over w - octet_length(item) < ${maxBytes} as fits
          from (
            select seq, ${items[as]} as item from run_events_canonical e
            where e.run_key = ${runKey} and e.seq > ${afterSeq} ${range} order by e.seq limit ${limit + 1}
          ) found
          window w as (order by seq rows unbounded preceding)
        ) sized
      ) p
      where r.key = ${runKey}`.raw()
    if (!row) return undefined
    const [status, lastSeq, firstSeq, found, taken, lastTaken, body] = row as (Buffer | null)[]
    const headSeq = number(lastSeq)
    const cut = number(taken) < number(found)
    const runStatus = statusOf(status)
    return {
      body: body ?? undefined,
      count: number(taken),
      scannedTo: cut ? number(lastTaken) : Math.max(afterSeq, Math.min(upTo, headSeq)),
      status: runStatus,
      terminal: isTerminal(runStatus),
      headSeq,
      firstSeq: number(firstSeq),
    }
  }

  return {
    async findRun(workspaceId: string, runId: string): Promise<RunHead | undefined> {
      const [row] = await sql`select key, status, last_seq, last_raw_seq, first_seq from runs where workspace_id = ${workspaceId} and id = ${runId}`
      if (!row) return undefined
      return {
        key: String(row.key),
        id: runId,
        workspaceId,
        status: statusOf(row.status),
        lastSeq: Number(row.last_seq),
        lastRawSeq: Number(row.last_raw_seq),
        firstSeq: Number(row.first_seq),
      }
    },

    /** Events as the inside of a JSON array. */
    pageOfEvents: (request: PageRequest) => page(request, 'json'),

    /** Events as server-sent events. */
    pageOfFrames: (request: PageRequest) => page(request, 'frames'),

    /** Raw events after a rawSeq. `body` is the text that was sent, so that numbers and duplicate keys come back as they were. */
    async pageOfRaw({ runKey, afterRawSeq, limit, maxBytes }: { runKey: string; afterRawSeq: number; limit: number; maxBytes: number }): Promise<RawPage> {
      const rows = await sql`
        select raw_seq, to_char(received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as received_at, first_seq, seq_count, format, raw_type, source, event_id, body
        from (
          select *, sum(octet_length(body)) over (order by raw_seq rows unbounded preceding) - octet_length(body) as before
          from (select * from run_events_raw where run_key = ${runKey} and raw_seq > ${afterRawSeq} order by raw_seq limit ${limit}) found
        ) sized
        where before < ${maxBytes} order by raw_seq`
      const texts = rows.map((row) => {
        const head = JSON.stringify({
          rawSeq: Number(row.raw_seq),
          receivedAt: String(row.received_at).replace(/000Z$/, 'Z'),
          format: row.format,
          rawType: row.raw_type,
          source: row.source,
          ...(row.event_id === null ? {} : { eventId: row.event_id }),
          seqs: Array.from({ length: Number(row.seq_count) }, (_, index) => Number(row.first_seq) + index),
        })
        return `${head.slice(0, -1)},"body":${row.body}}`
      })
      return { items: texts, lastRawSeq: rows.length === 0 ? afterRawSeq : Number(rows[rows.length - 1]?.raw_seq) }
    },

    /**
     * Events of all runs of a workspace, the runs by age, each run's events in order. The order never changes, so paging repeats and skips nothing
     * of what was there; what earlier runs get after the cursor has passed them is not in it.
     */
    async pageOfWorkspace({ workspaceId, after, runId, filter, limit, maxBytes }: WorkspacePageRequest): Promise<WorkspacePage> {
      const scan = isFiltered(filter) ? WORKSPACE_SCAN : limit + 1
      const from = after ? sql`and key >= ${after.runKey}` : sql``
      const only = runId === undefined ? sql`` : sql`and id = ${runId}`
      const [row] = await sql`
        with scanned as materialized (
          select r.key, e.seq, e.type, e.subject, e.ts
          from (select key from runs where workspace_id = ${workspaceId} ${from} ${only} order by key) r
          cross join lateral (
            select seq, type, subject, ts from run_events_canonical
            where run_key = r.key and seq > ${after ? sql`case when r.key = ${after.runKey} then ${after.seq}::bigint else 0 end` : sql`0`} order by seq limit ${scan}
          ) e
          order by r.key, e.seq limit ${scan}
        ), found as materialized (
          select key, seq from scanned e where true ${matching(filter)} order by key, seq limit ${limit + 1}
        ), sized as (
          select f.key, f.seq, e.event::text as item, row_number() over w as place, sum(octet_length(e.event::text)) over w - octet_length(e.event::text) as before
          from found f join run_events_canonical e on e.run_key = f.key and e.seq = f.seq
          window w as (order by f.key, f.seq rows unbounded preceding)
        ), taken as (select * from sized where before < ${maxBytes} and place <= ${limit})
        select (select string_agg(item, ',' order by place) from taken), (select count(*) from taken), (select count(*) from found), (select count(*) from scanned),
          (select key::text || ' ' || seq from taken order by place desc limit 1), (select key::text || ' ' || seq from scanned order by key desc, seq desc limit 1)`.raw()
      const [body, taken, found, scanned, lastTaken, lastScanned] = (row ?? []) as (Buffer | null)[]
      const cut = number(taken) < number(found)
      const place = cut ? lastTaken : number(scanned) === scan ? lastScanned : undefined
      const [runKey, seq] = place?.toString('latin1').split(' ') ?? []
      return { body: body ?? undefined, next: runKey === undefined ? undefined : { runKey, seq: Number(seq) } }
    },
  }
}

/** The column holds what the append wrote, and that is one of the statuses. */
function statusOf(value: unknown): RunStatus {
  return String(value) as RunStatus
}
