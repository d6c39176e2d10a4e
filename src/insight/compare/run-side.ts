/** A run of the log as a side, as of a seq. Digests come from their columns; they are computed only where rules change them, or where they are missing. */
import type { Sql } from '../../db/client.js'
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import { digestsOf, digestsUnder } from '../../domain/digest.js'
import type { Rules } from '../../domain/volatile.js'
import { RunplaneError, runNotFound } from '../../errors.js'
import type { RunStates } from '../../runs/state.js'
import type { Pauses } from './pauses.js'
import { type Columns, createColumns, type Side } from './side.js'

/** Rows of a page of columns: 32 bytes each and the name of the type. */
const PAGE_ROWS = 10_000
/** Rows of a page of payloads, and bytes after which it ends. */
const PAYLOAD_ROWS = 500
const PAYLOAD_BYTES = 4_194_304

/** An int8 of a missing digest: no digest is negative. */
const MISSING = -1
const CELL_BYTES = 32
const EPOCH_2000_MS = 946_684_800_000

export interface RunSideDeps {
  sql: Sql
  runStates: Pick<RunStates, 'fold'>
  maxEvents: number
}

export interface RunReference {
  workspaceId: string
  runId: string
  /** Without one, the head as it is now. */
  seq?: number | undefined
}

/** @throws RUN_NOT_FOUND, CURSOR_INVALID beyond the head, PAYLOAD_TOO_LARGE for more events than may be compared. */
export async function openRunSide({ sql, runStates, maxEvents }: RunSideDeps, reference: RunReference, rules: Rules, pauses: Pauses): Promise<Side> {
  const { workspaceId, runId } = reference
  const [row] = await sql<{ key: string; last_seq: number; first_seq: number }[]>`
    select key, last_seq, first_seq from runs where workspace_id = ${workspaceId} and id = ${runId}`
  if (!row) throw runNotFound(runId)
  const { key, last_seq: head, first_seq: firstSeq } = row
  const seq = reference.seq ?? head
  if (seq > head) throw new RunplaneError('CURSOR_INVALID', `The head of run '${runId}' is ${head}; seq ${seq} is not there yet.`)
  if (seq < firstSeq - 1) throw new RunplaneError('CURSOR_INVALID', `Of run '${runId}' the events before ${firstSeq} are not kept any more.`)
  const count = seq - firstSeq + 1
  if (count > maxEvents) {
    throw new RunplaneError(
      'PAYLOAD_TOO_LARGE',
      `Run '${runId}' has ${count} events, and ${maxEvents} can be compared (COMPARE_MAX_EVENTS). Compare an earlier part of it: {"runId": "${runId}", "seq": ${firstSeq + maxEvents - 1}}.`,
    )
  }

  async function readColumns(): Promise<Columns> {
    const { columns, type } = createColumns(count, firstSeq)
    let isIncomplete = false
    for (let index = 0; index < count; ) {
      // The page is in order, and the aggregates take it as it comes: with an order of their own PostgreSQL before 16 sorts it twice.
      const [page] = await sql<{ cells: Buffer | null; types: string | null }[]>`
        select string_agg(int8send(coalesce(shape, ${MISSING})) || int8send(coalesce(content, ${MISSING})) || int8send(hashtextextended(subject, 0))
            || timestamptz_send(ts), ''::bytea) as cells,
          string_agg(type, ',') as types
        from (
          select seq, shape, content, subject, ts, type from run_events_canonical
          where run_key = ${key} and seq >= ${firstSeq + index} and seq <= ${seq} order by seq limit ${PAGE_ROWS}
        ) page`
      const cells = page?.cells
      // Deleted, or cut by retention, since the head was read.
      if (!cells || !page.types) throw runNotFound(runId)
      for (const [at, name] of page.types.split(',').entries()) columns.type[index + at] = type(name)
      for (let at = 0; at < cells.length; at += CELL_BYTES, index++) {
        const shape = safeAt(cells, at)
        columns.shape[index] = shape
        columns.content[index] = safeAt(cells, at + 8)
        columns.subject[index] = safeAt(cells, at + 16)
        columns.tsMs[index] = EPOCH_2000_MS + (cells.readInt32BE(at + 24) * 4_294_967_296 + cells.readUInt32BE(at + 28)) / 1000
        if (cells.readInt32BE(at) < 0) isIncomplete = true
      }
      if (pauses.due()) await pauses.take()
    }
    if (isIncomplete) await compute(columns, sql`shape is null or content is null`, digestsOf)
    if (rules.rules.length > 0) await compute(columns, concerned(), (event) => digestsUnder(rules, event))
    return columns
  }

  /** The rows that the rules may concern: the others keep their digests. */
  function concerned() {
    if (rules.needles === undefined) return sql`true`
    return sql`exists (select from json_array_elements_text(${JSON.stringify(rules.needles)}::text::json) needle where strpos(event::text, needle) > 0)`
  }

  async function compute(columns: Columns, which: ReturnType<typeof concerned>, digests: typeof digestsOf): Promise<void> {
    for (let after = firstSeq - 1; ; ) {
      const rows = await sql<{ seq: number; event: string }[]>`
        select seq, event from (
          select seq, event::text as event, sum(pg_column_size(event)) over (order by seq) - pg_column_size(event) as before from (
            select seq, event from run_events_canonical where run_key = ${key} and seq > ${after} and seq <= ${seq} and (${which}) order by seq limit ${PAYLOAD_ROWS}
          ) found
        ) sized where before < ${PAYLOAD_BYTES} order by seq`
      for (const row of rows) {
        const { shape, content } = digests(parsed(row.event))
        columns.shape[row.seq - firstSeq] = shape
        columns.content[row.seq - firstSeq] = content
        if (pauses.due()) await pauses.take()
      }
      const last = rows.at(-1)
      if (last === undefined) return
      after = last.seq
    }
  }

  return {
    runId,
    seq,
    firstSeq,
    kind: 'run',
    columns: readColumns,
    state: () => runStates.fold({ key, id: runId }, seq),
    async events(seqs) {
      // One look-up a seq: of a run that is newer than the statistics PostgreSQL before 17 would read all events, and drop those of other seqs.
      const rows = await sql<{ seq: number; event: string }[]>`
        select found.seq, found.event::text as event from unnest(string_to_array(${seqs.join(',')}, ',')::bigint[]) as wanted(seq)
        cross join lateral (select seq, event from run_events_canonical where run_key = ${key} and seq = wanted.seq limit 1) found`
      return new Map(rows.map((row) => [row.seq, parsed(row.event)]))
    },
  }
}

/** The lower 53 bits of an int8. */
function safeAt(cells: Buffer, at: number): number {
  return (cells.readUInt32BE(at) & 0x1f_ffff) * 4_294_967_296 + cells.readUInt32BE(at + 4)
}

/** What the log holds is a canonical event. */
function parsed(text: string): CanonicalEvent {
  return JSON.parse(text)
}
