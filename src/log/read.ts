/**
 * Reading the log: keyset pages by (run, seq), each in one statement, so that a page and the head that it is judged by are of one snapshot.
 *
 * Invariant: numbers come from inside the append's transaction, so commit order is seq order, and "everything after my cursor" misses nothing.
 * Events go from the driver's bytes to the answer's as they are stored: nothing is parsed here, and an event looks the same in a page, a frame and a bundle.
 * Measured for 100,000 events of 630 bytes, CPU of Postgres and of Node: rows 135 and 135 ms, a page put together by string_agg 200 and 100 ms, and that
 * with a window over the text of the frames 255 and 110 ms. Rows also let Node work while Postgres does, and leave no buffers of a page's size to collect.
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

export interface FramesRequest extends PageRequest {
  /** Where a piece of so many bytes goes; memory of its own unless given. */
  allocate?: ((bytes: number) => Buffer) | undefined
}

export interface LogPage {
  count: number
  /** Everything that matches up to here is in the page: where the next one starts. */
  scannedTo: number
  status: RunStatus
  terminal: boolean
  headSeq: number
  firstSeq: number
}

/** Whole frames one after another; they share no memory with the page's other pieces. */
export interface Piece {
  bytes: Buffer
  /** The seq of its last frame. */
  lastSeq: number
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

/** The most that one piece of frames holds, but for a single frame that is larger: what a stalled reader keeps waiting in its socket. */
export const PIECE_BYTES = 65_536

const LINE_FEED = 0x0a
const OPENING_BRACKET = 0x5b

const number = (bytes: Buffer | null | undefined) => (bytes ? Number(bytes.toString('latin1')) : 0)
/** The number in the `id` line that an item of a page begins with. */
const seqOf = (item: Buffer) => number(item.subarray('id: '.length, item.indexOf(LINE_FEED)))

export function createLogReader({ sql }: { sql: Sql }) {
  const items = {
    json: sql`concat('id: ', seq, E'\n', event)`,
    frames: sql`concat('id: ', seq, E'\nevent: canonical_event\ndata: ', event, E'\n\n')`,
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

  /**
   * One page and the run's head, of one snapshot. Undefined: there is no such run (any more).
   * @param take gets the items in order. They share memory with what the driver has read: copy what is kept.
   */
  async function page(request: PageRequest, as: keyof typeof items, take: (item: Buffer) => void): Promise<LogPage | undefined> {
    const { runKey, afterSeq, limit, maxBytes, filter } = request
    const filtered = isFiltered(filter)
    const upTo = filtered ? afterSeq + (request.maxScan ?? PAGE_SCAN) : Number.MAX_SAFE_INTEGER
    const range = filtered ? sql`and e.seq <= ${upTo} ${matching(filter)}` : sql``
    let head: [RunStatus, number, number] | undefined
    let last: Buffer | undefined
    let count = 0
    let bytes = 0
    let isCut = false
    // The window keeps Postgres from sending much more than is taken. It counts bytes as stored, which costs no copy and is never more than an item has.
    await sql`
      select json_build_array(status, last_seq, first_seq)::text from runs where key = ${runKey}
      union all (
        select ${items[as]} from (
          select seq, event, sum(pg_column_size(event)) over (order by seq rows unbounded preceding) - pg_column_size(event) as before
          from (
            select seq, event from run_events_canonical e where e.run_key = ${runKey} and e.seq > ${afterSeq} ${range} order by e.seq limit ${limit + 1}
          ) found
        ) sized
        where before < ${maxBytes} order by seq
      )`
      .raw()
      .forEach(([item]) => {
        if (!item) return
        if (item[0] === OPENING_BRACKET) head = JSON.parse(item.toString())
        else if (count === limit || bytes >= maxBytes) isCut = true
        else {
          count++
          bytes += item.length
          last = item
          take(item)
        }
      })
    if (!head) return undefined
    const [status, headSeq, firstSeq] = head
    const scannedTo = last && (isCut || bytes >= maxBytes) ? seqOf(last) : Math.max(afterSeq, Math.min(upTo, headSeq))
    return { count, scannedTo, status, terminal: isTerminal(status), headSeq, firstSeq }
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

    /** Events as JSON texts, for an array. They share memory with what the driver has read: copy what is kept. */
    async pageOfEvents(request: PageRequest): Promise<(LogPage & { items: Buffer[] }) | undefined> {
      const texts: Buffer[] = []
      const found = await page(request, 'json', (item) => texts.push(item.subarray(item.indexOf(LINE_FEED) + 1)))
      return found && { ...found, items: texts }
    },

    /** Events as server-sent events. */
    async pageOfFrames({ allocate = Buffer.allocUnsafe, ...request }: FramesRequest): Promise<(LogPage & { pieces: Piece[] }) | undefined> {
      const pieces: Piece[] = []
      let frames: Buffer[] = []
      let bytes = 0
      const cut = () => {
        const last = frames.at(-1)
        if (!last) return
        const piece = allocate(bytes)
        let at = 0
        for (const frame of frames) {
          piece.set(frame, at)
          at += frame.length
        }
        pieces.push({ bytes: piece, lastSeq: seqOf(last) })
        frames = []
        bytes = 0
      }
      const found = await page(request, 'frames', (frame) => {
        if (bytes + frame.length > PIECE_BYTES) cut()
        frames.push(frame)
        bytes += frame.length
      })
      cut()
      return found && { ...found, pieces }
    },

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
     * The same as lines of a bundle: the exact text of `pageOfRaw`, but for a body that has a line break of its own, which is `bodyText`, a JSON text of it.
     * They share memory with what the driver has read: copy what is kept.
     */
    async pageOfRawLines({ runKey, afterRawSeq, limit, maxBytes }: { runKey: string; afterRawSeq: number; limit: number; maxBytes: number }) {
      const lines: Buffer[] = []
      await sql`
        select concat('{"rawSeq":', raw_seq, ',"receivedAt":"', regexp_replace(to_char(received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '000Z$', 'Z'),
          '","format":', to_json(format), ',"rawType":', to_json(raw_type), ',"source":', to_json(source), ',"eventId":' || to_json(event_id), ',"seqs":[',
          case seq_count when 0 then '' when 1 then first_seq::text
            else (select string_agg(s::text, ',' order by s) from generate_series(first_seq, first_seq + seq_count - 1) s) end,
          '],"body', case when position(chr(10) in body) + position(chr(13) in body) > 0 then concat('Text":', to_json(body)) else concat('":', body) end, '}')
        from (
          select *, sum(octet_length(body)) over (order by raw_seq rows unbounded preceding) - octet_length(body) as before
          from (select * from run_events_raw where run_key = ${runKey} and raw_seq > ${afterRawSeq} order by raw_seq limit ${limit}) found
        ) sized
        where before < ${maxBytes} order by raw_seq`
        .raw()
        .forEach(([line]) => {
          if (line) lines.push(line)
        })
      const last = lines.at(-1)
      return { lines, lastRawSeq: last ? number(last.subarray('{"rawSeq":'.length, last.indexOf(0x2c))) : afterRawSeq }
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
