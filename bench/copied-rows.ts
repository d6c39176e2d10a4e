/**
 * The baseline of the appends: the rows that the service wrote for the same events, read back from its tables and inserted again under
 * runs of the baseline's own, through `postgres` and nothing else. Same tables, same indexes, same sizes; the numbers are counted here,
 * so unlike the service the baseline locks no run, checks nothing for repeats and folds nothing.
 */
import type { Sql } from 'postgres'
import { uuidv7 } from '../src/domain/ids.js'

export interface RowTemplate {
  receivedAt: string
  format: string
  rawType: string
  source: string
  body: string
  ts: string
  type: string
  subject: string
  /** int8 as text, as it is passed again. */
  shape: string
  content: string
  event: string
}

/** The first `count` events that were posted to a run, as they lie in the tables. */
export async function templates(sql: Sql, runId: string, count: number): Promise<RowTemplate[]> {
  return await sql<RowTemplate[]>`
    select raw.received_at::text as "receivedAt", raw.format, raw.raw_type as "rawType", raw.source, raw.body,
      canonical.ts::text, canonical.type, canonical.subject, canonical.shape::text, canonical.content::text, canonical.event::text
    from runs join run_events_raw raw on raw.run_key = runs.key
      join run_events_canonical canonical on canonical.run_key = runs.key and canonical.seq = raw.first_seq
    where runs.id = ${runId} and raw.seq_count = 1 order by raw.raw_seq limit ${count}`
}

export interface CopiedRun {
  key: string
  lastSeq: number
}
export const copiedRun = (): CopiedRun => ({ key: uuidv7(), lastSeq: 0 })

/** One event, one statement. */
export async function insertOne(sql: Sql, run: CopiedRun, row: RowTemplate): Promise<void> {
  const seq = ++run.lastSeq
  await sql`
    with raw as (
      insert into run_events_raw (run_key, raw_seq, received_at, first_seq, seq_count, format, raw_type, source, body)
      values (${run.key}, ${seq}, ${row.receivedAt}, ${seq}, 1, ${row.format}, ${row.rawType}, ${row.source}, ${row.body})
    )
    insert into run_events_canonical (run_key, seq, ts, type, subject, shape, content, event)
    values (${run.key}, ${seq}, ${row.ts}, ${row.type}, ${row.subject}, ${row.shape}, ${row.content}, ${row.event})`
}

/** All rows in one statement. Arrays through `unnest` are as fast as COPY (design, section 3). */
export async function insertMany(sql: Sql, run: CopiedRun, rows: readonly RowTemplate[]): Promise<void> {
  const column = <K extends keyof RowTemplate>(name: K) => rows.map((row) => row[name])
  const first = run.lastSeq + 1
  run.lastSeq += rows.length
  await sql`
    with rows as (
      select ${first}::bigint + ordinality - 1 as seq, received_at, format, raw_type, source, body, ts, type, subject, shape, content, event
      from unnest(${column('receivedAt')}::timestamptz[], ${column('format')}::text[], ${column('rawType')}::text[], ${column('source')}::text[],
        ${column('body')}::text[], ${column('ts')}::timestamptz[], ${column('type')}::text[], ${column('subject')}::text[], ${column('shape')}::int8[],
        ${column('content')}::int8[], ${column('event')}::text[])
        with ordinality as row (received_at, format, raw_type, source, body, ts, type, subject, shape, content, event, ordinality)
    ), raw as (
      insert into run_events_raw (run_key, raw_seq, received_at, first_seq, seq_count, format, raw_type, source, body)
      select ${run.key}::uuid, seq, received_at, seq, 1, format, raw_type, source, body from rows
    )
    insert into run_events_canonical (run_key, seq, ts, type, subject, shape, content, event)
    select ${run.key}::uuid, seq, ts, type, subject, shape, content, event::json from rows`
}
