/**
 * Reading the log: keyset pages by (run, seq), each in one statement, so that a page and the head that it is judged by are of one snapshot.
 *
 * Invariant: numbers come from inside the append's transaction, so commit order is seq order, and "everything after my cursor" misses nothing.
 * Events go from the driver's bytes to the answer's as they are stored: nothing is parsed here, and an event looks the same in a page, a frame and a bundle.
 * Rows, not a page put together by string_agg: Node works while Postgres does. Measured for a page of 1,000 events of 650 bytes, the time of Postgres: bare
 * rows 1.9 ms, with a window over their sizes 2.35, with their frames made by concat as well 2.85. (Lines of a bundle are put together by a few dozen.)
 * What the driver shows is in memory that the next read overwrites (db/message-reads.ts): it is copied where it is taken.
 */
import type { Sql } from '../db/client.js'
import { isTerminal, type RunStatus } from '../domain/run.js'
import { createAssemble } from './assembly.js'

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
  /** The first raw event that it kept. */
  firstRawSeq: number
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

export interface LinesRequest {
  runKey: string
  /** The canonical events, or the raw ones. */
  log: 'canonical' | 'raw'
  /** A seq, or a rawSeq. */
  after: number
  limit: number
  /** The page is cut after the block that takes it past this. */
  maxBytes: number
  /** About how large an event is, where that is known. */
  averageBytes: number | undefined
  /** What goes between two lines. */
  joint: string
  /** Before the first line too: there are others before. */
  isContinued: boolean
  /** Where a piece of so many bytes goes; memory of its own unless given. */
  allocate?: ((bytes: number) => Buffer) | undefined
}

/** Lines one after another, with the joint between two of them. */
export interface Lines {
  pieces: Buffer[]
  count: number
  bytes: number
}

export interface RawPage {
  /** JSON texts, each an item of the answer. */
  items: string[]
  lastRawSeq: number
}

export interface WorkspacePageRequest {
  workspaceId: string
  after: { runKey: string; seq: number } | undefined
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
/** The same of lines. */
export const LINES_PIECE_BYTES = 262_144

interface EventSizes {
  largest: number
  average: number
}

/** Runs of which it is remembered how large their events are. */
const MAX_SIZED_RUNS = 1000

const ZERO = 0x30
/** A frame is its seq and its event between these. */
const FRAME = { start: Buffer.from('id: '), middle: Buffer.from('\nevent: canonical_event\ndata: '), end: Buffer.from('\n\n') }
const FRAME_BYTES = FRAME.start.length + FRAME.middle.length + FRAME.end.length

const number = (bytes: Buffer | null | undefined) => (bytes ? Number(bytes.toString('latin1')) : 0)

/** Of lines that the database joins: a quarter of what the driver reads at once, which copies what it has not read to its end. */
const BLOCK_BYTES = 16_384
const BLOCK_LINES = 32
/** Not joined with others. */
const LARGE_EVENT_BYTES = 262_144

export function createLogReader({ sql }: { sql: Sql }) {
  /** Bytes of the events of a run's last page. */
  const sizes = new Map<string, EventSizes>()
  const assembleFrames = createAssemble(PIECE_BYTES)
  const assembleLines = createAssemble(LINES_PIECE_BYTES)

  function remember(key: string, largest: number, total: number, count: number): void {
    sizes.delete(key)
    if (count > 0) sizes.set(key, { largest, average: total / count })
    if (sizes.size > MAX_SIZED_RUNS) for (const oldest of sizes.keys()) if (sizes.delete(oldest)) break
  }

  /** Events known to be small: a limit will do then; should they have grown, what is too much is sent once, and let go of. */
  const areSmall = (known: EventSizes | undefined, limit: number, maxBytes: number) => known !== undefined && known.largest * limit <= 4 * maxBytes
  /** No more than will be taken, as far as is known. */
  const fitting = (known: EventSizes | undefined, limit: number, maxBytes: number) =>
    known === undefined ? limit : Math.min(limit, Math.max(16, Math.ceil(maxBytes / known.average)))

  /** The events of a page, those that begin within `maxBytes`, and one more to tell whether there is more. */
  function found({ runKey, afterSeq, limit, maxBytes, filter }: PageRequest, upTo: number) {
    const range = isFiltered(filter) ? sql`and e.seq <= ${upTo} ${matching(filter)}` : sql``
    const rows = sql`
      select seq, event from run_events_canonical e where e.run_key = ${runKey} and e.seq > ${afterSeq} ${range} order by e.seq limit ${limit + 1}`
    if (areSmall(sizes.get(runKey), limit, maxBytes) && !isFiltered(filter)) return rows
    // The window keeps Postgres from sending much more than is taken. It counts bytes as stored, which costs no copy and is never more than an event has.
    return sql`
      select seq, event from (
        select seq, event, sum(pg_column_size(event)) over (order by seq rows unbounded preceding) - pg_column_size(event) as before from (${rows}) found
      ) sized
      where before < ${maxBytes} order by seq`
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
   * @param take gets the events in order, each with its seq as text, in memory of the driver's: copy what is kept.
   */
  async function page(request: PageRequest, take: (seq: Buffer, event: Buffer) => void): Promise<LogPage | undefined> {
    const { runKey, afterSeq, maxBytes, filter } = request
    const filtered = isFiltered(filter)
    const limit = filtered ? request.limit : fitting(sizes.get(runKey), request.limit, maxBytes)
    const upTo = filtered ? afterSeq + (request.maxScan ?? PAGE_SCAN) : Number.MAX_SAFE_INTEGER
    let head: [RunStatus, number, number] | undefined
    let last: number | undefined
    let count = 0
    let bytes = 0
    let largestBytes = 0
    let isCut = false
    await sql`
      select 0::bigint as seq, json_build_array(status, last_seq, first_seq) as event from runs where key = ${runKey}
      union all (${found({ ...request, limit }, upTo)})`
      .raw()
      .forEach(([seq, event]) => {
        if (!seq || !event) return
        if (seq[0] === ZERO) head = JSON.parse(event.toString())
        else if (count === limit || bytes >= maxBytes) isCut = true
        else {
          count++
          bytes += event.length + FRAME_BYTES
          if (event.length > largestBytes) largestBytes = event.length
          last = number(seq)
          take(seq, event)
        }
      })
    if (!head) return undefined
    if (!filtered) remember(runKey, largestBytes, bytes, count)
    const [status, headSeq, firstSeq] = head
    const scannedTo = last && (isCut || bytes >= maxBytes) ? last : Math.max(afterSeq, Math.min(upTo, headSeq))
    return { count, scannedTo, status, terminal: isTerminal(status), headSeq, firstSeq }
  }

  const rawLine = () => sql`
    '{"rawSeq":' || raw_seq || ',"receivedAt":"' || to_char(received_at at time zone interval '0',
        case when date_trunc('milliseconds', received_at at time zone interval '0') = received_at at time zone interval '0'
          then 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"' else 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"' end)
      || '","format":' || to_json(format) || ',"rawType":' || to_json(raw_type) || ',"source":' || to_json(source)
      || coalesce(',"eventId":' || to_json(event_id), '') || ',"seqs":['
      || case seq_count when 0 then '' when 1 then first_seq::text
        else (select string_agg(s::text, ',' order by s) from generate_series(first_seq, first_seq + seq_count - 1) s) end
      || '],"body' || case when position(chr(10) in body) + position(chr(13) in body) > 0 then 'Text":' || to_json(body) else '":' || body end || '}'`

  /**
   * `step` lines are a block: the driver and V8 have a 32nd of the rows and objects, and the database works little more (measured for 100,000 events of 650
   * bytes: 190 ms rather than 150, and Node 150 rather than 250). Blocks by a join with their seqs: each has its lines in order, by whatever plan.
   */
  async function linesBy(
    step: number,
    { log, runKey, after, limit, maxBytes, joint, isContinued, allocate = Buffer.allocUnsafe }: LinesRequest,
  ): Promise<Lines> {
    const to = after + limit
    const jointBytes = Buffer.from(joint)
    const pieces: Buffer[] = []
    let bytes = 0
    const assembly = assembleLines((lines) => {
      const piece = allocate(lines.length)
      piece.set(lines)
      pieces.push(piece)
      bytes += piece.length
    })
    const lines =
      log === 'canonical'
        ? sql`
          select count(*), max(seq) as last, max(pg_column_size(event)) as largest, string_agg(event::text, ${joint}) as block
          from (select seq, event from run_events_canonical where run_key = ${runKey} and seq > g and seq <= least(g + ${step}, ${to}::bigint) order by seq) e`
        : sql`
          select count(*), max(raw_seq) as last, max(octet_length(body)) as largest, string_agg(${rawLine()}, ${joint}) as block
          from (select * from run_events_raw where run_key = ${runKey} and raw_seq > g and raw_seq <= least(g + ${step}, ${to}::bigint) order by raw_seq) e`
    let count = 0
    await sql`
      select count, last, block from (
        select b.*, sum(octet_length(block)) over (rows unbounded preceding) - octet_length(block) as before
        from generate_series(${after}::bigint, ${to - 1}::bigint, ${step}::bigint) g cross join lateral (${lines}) b
      ) sized
      where before < ${maxBytes} and largest < ${step === 1 ? Number.MAX_SAFE_INTEGER : LARGE_EVENT_BYTES}::bigint`
      .raw()
      .forEach(([lines, last, block]) => {
        // What comes after a block that is not here, or not whole, is of no use.
        if (!block || number(last) !== after + count + number(lines)) return
        count += number(lines)
        assembly.add(isContinued || count > number(lines) ? [jointBytes, block] : [block], count)
      })
    assembly.end()
    return { pieces, count, bytes }
  }

  return {
    async findRun(workspaceId: string, runId: string): Promise<RunHead | undefined> {
      const [row] =
        await sql`select key, status, last_seq, last_raw_seq, first_seq, first_raw_seq from runs where workspace_id = ${workspaceId} and id = ${runId}`
      if (!row) return undefined
      return {
        key: String(row.key),
        id: runId,
        workspaceId,
        status: statusOf(row.status),
        lastSeq: Number(row.last_seq),
        lastRawSeq: Number(row.last_raw_seq),
        firstSeq: Number(row.first_seq),
        firstRawSeq: Number(row.first_raw_seq),
      }
    },

    /** Events as JSON texts, for an array. */
    async pageOfEvents(request: PageRequest): Promise<(LogPage & { items: Buffer[] }) | undefined> {
      const items: Buffer[] = []
      const found = await page(request, (_, event) => items.push(Buffer.from(event)))
      return found && { ...found, items }
    },

    /** Events as server-sent events. */
    async pageOfFrames({ allocate = Buffer.allocUnsafe, ...request }: FramesRequest): Promise<(LogPage & { pieces: Piece[] }) | undefined> {
      const pieces: Piece[] = []
      const assembly = assembleFrames((frames, lastSeq) => {
        const bytes = allocate(frames.length)
        bytes.set(frames)
        pieces.push({ bytes, lastSeq })
      })
      const found = await page(request, (seq, event) => assembly.add([FRAME.start, seq, FRAME.middle, event, FRAME.end], number(seq)))
      assembly.end()
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
     * Events as lines of a bundle: of canonical ones the stored text; of raw ones the exact text of `pageOfRaw`, but for a body that has a line break of its
     * own, which is `bodyText`, a JSON text of it. Fewer than asked for where they are too large, or are not there any more: none, then.
     */
    async pageOfLines(request: LinesRequest): Promise<Lines> {
      const step = request.averageBytes === undefined ? 1 : Math.max(1, Math.min(BLOCK_LINES, Math.floor(BLOCK_BYTES / request.averageBytes)))
      const lines = await linesBy(step, request)
      return lines.count === 0 && step > 1 ? linesBy(1, request) : lines
    },

    /**
     * Events of all runs of a workspace, the runs by age, each run's events in order. The order never changes, so paging repeats and skips nothing
     * of what was there; what earlier runs get after the cursor has passed them is not in it.
     */
    async pageOfWorkspace({ workspaceId, after, filter, limit, maxBytes }: WorkspacePageRequest): Promise<WorkspacePage> {
      const scan = isFiltered(filter) ? WORKSPACE_SCAN : limit + 1
      const from = after ? sql`and key >= ${after.runKey}` : sql``
      let row: (Buffer | null)[] = []
      await sql`
        with scanned as materialized (
          select r.key, e.seq, e.type, e.subject, e.ts
          from (select key from runs where workspace_id = ${workspaceId} ${from} order by key) r
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
          (select key::text || ' ' || seq from taken order by place desc limit 1), (select key::text || ' ' || seq from scanned order by key desc, seq desc limit 1)`
        .raw()
        .forEach((values: (Buffer | null)[]) => {
          row = values.map((value) => value && Buffer.from(value))
        })
      const [body, taken, found, scanned, lastTaken, lastScanned] = row
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
