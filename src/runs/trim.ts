/**
 * Deleting the first events of a run. What is after them stays readable, and so does the state from there on.
 *
 * Order, which a crash may cut anywhere: first the state at the cut is stored (`run_bases`), from which every later fold begins; then, batch by batch and
 * each in one statement, `first_seq` moves up and the rows before it go. So a row that is gone is always before `first_seq`, and there is always a state to
 * begin with; streams tell what is gone by a `gap` frame. What a crash leaves, the next round finds, for its run still has events before its cut.
 */
import type { Sql } from '../db/client.js'
import { encodeState, type FoldState, PROJECTION_SCHEMA_VERSION } from '../projections/fold.js'

/** Rows that one statement deletes. The run's row is locked for so long: 20 to 50 ms. */
const BATCH_ROWS = 5000

export interface TrimmedRun {
  key: string
  id: string
}

export interface Trimmed {
  events: number
  rawEvents: number
}

/**
 * @param options.cut the last canonical event that goes; raw events go that gave nothing after it
 * @param options.rawOnly leaves the canonical events
 * @param options.stateAt the state of the run at a seq, from the log
 * @param options.before is waited for where anything is to go
 * @throws what the database throws; then a part of it may have gone
 */
export async function trimRun(
  sql: Sql,
  run: TrimmedRun,
  options: { cut: number; rawOnly: boolean; stateAt(run: TrimmedRun, seq: number): Promise<FoldState>; before?(): Promise<void> },
): Promise<Trimmed> {
  const { cut, rawOnly, stateAt } = options
  const rawCut = await rawCutOf(sql, run, cut)
  const [row] = await sql<{ first_seq: number; first_raw_seq: number }[]>`select first_seq, first_raw_seq from runs where key = ${run.key}`
  const hasEvents = !rawOnly && row !== undefined && row.first_seq <= cut
  const hasRaw = row !== undefined && row.first_raw_seq <= rawCut
  if (!hasEvents && !hasRaw) return { events: 0, rawEvents: 0 }
  await options.before?.()
  if (hasEvents) await storeBase(sql, run, cut, await stateAt(run, cut))
  const rawEvents = hasRaw ? await deleteRaw(sql, run, rawCut) : 0
  return { events: hasEvents ? await deleteCanonical(sql, run, cut) : 0, rawEvents }
}

async function storeBase(sql: Sql, run: TrimmedRun, cut: number, state: FoldState): Promise<void> {
  if (state.version !== cut) throw new Error(`the state of run ${run.key} is that at seq ${state.version}, not at ${cut}`)
  await sql`
    insert into run_bases (run_key, seq, schema_version, state)
    select key, ${cut}, ${PROJECTION_SCHEMA_VERSION}, ${encodeState(state)}::text::json from runs where key = ${run.key}
    on conflict (run_key) do update set seq = excluded.seq, schema_version = excluded.schema_version, state = excluded.state where run_bases.seq < excluded.seq`
}

async function deleteCanonical(sql: Sql, run: TrimmedRun, cut: number): Promise<number> {
  let events = 0
  for (;;) {
    const [row] = await sql<{ first_seq: number; deleted: number }[]>`
      with moved as (
        update runs set first_seq = least(first_seq + ${BATCH_ROWS}, ${cut + 1}) where key = ${run.key} and first_seq <= ${cut}
          and exists (select from run_bases where run_key = runs.key and seq >= ${cut}) returning first_seq
      ), gone as (
        delete from run_events_canonical where run_key = ${run.key} and seq < (select first_seq from moved) returning 1
      )
      select (select first_seq from moved) as first_seq, (select count(*) from gone) as deleted`
    if (row?.first_seq == null) break
    events += row.deleted
    if (row.first_seq > cut) break
  }
  // States on the way to what is not there any more.
  await sql`delete from run_checkpoints where run_key = ${run.key} and seq < ${cut}`
  return events
}

/** The last raw event none of whose canonical events is after the cut. They are in order, so those after it are found in the reverse order. */
async function rawCutOf(sql: Sql, run: TrimmedRun, cut: number): Promise<number> {
  const [row] = await sql<{ raw_cut: number }[]>`
    select case when last_seq <= ${cut} then last_raw_seq else coalesce((
      select raw_seq from run_events_raw e where e.run_key = r.key and e.first_seq + e.seq_count - 1 <= ${cut} order by raw_seq desc limit 1), 0) end as raw_cut
    from runs r where key = ${run.key}`
  return row?.raw_cut ?? 0
}

async function deleteRaw(sql: Sql, run: TrimmedRun, rawCut: number): Promise<number> {
  let events = 0
  for (;;) {
    const [row] = await sql<{ first_raw_seq: number; deleted: number }[]>`
      with moved as (
        update runs set first_raw_seq = least(first_raw_seq + ${BATCH_ROWS}, ${rawCut + 1}) where key = ${run.key} and first_raw_seq <= ${rawCut} returning first_raw_seq
      ), gone as (
        delete from run_events_raw where run_key = ${run.key} and raw_seq < (select first_raw_seq from moved) returning 1
      )
      select (select first_raw_seq from moved) as first_raw_seq, (select count(*) from gone) as deleted`
    if (row?.first_raw_seq == null) break
    events += row.deleted
    if (row.first_raw_seq > rawCut) break
  }
  return events
}
