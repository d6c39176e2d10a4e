/** A long run without the time that posting it takes: the log of a short one, repeated by SQL under seqs that go on. */
import type { Sql } from 'postgres'

/**
 * The raw rows are not repeated: what reads states, replays and metrics reads the canonical log.
 * @param id a run that has ended or rests; its log begins with the events before `from` and repeats those after them. @returns its new head.
 */
export async function lengthen(sql: Sql, id: string, from: number, events: number): Promise<number> {
  const [run] = await sql<{ key: string; head: number }[]>`select key::text, last_seq::int as head from runs where id = ${id}`
  if (run === undefined) throw new Error(`no run ${id}`)
  const cycle = run.head - from + 1
  const repeats = Math.ceil((events - run.head) / cycle)
  await sql`
    insert into run_events_canonical (run_key, seq, ts, type, subject, shape, content, event)
    select run_key, seq + n * ${cycle}::bigint, ts, type, subject, shape, content, regexp_replace(event::text, '"seq":[0-9]+', '"seq":' || (seq + n * ${cycle}::bigint))::json
    from generate_series(1, ${repeats}::int) n, run_events_canonical
    where run_key = ${run.key}::uuid and seq between ${from}::bigint and ${run.head}::bigint and seq + n * ${cycle}::bigint <= ${events}::bigint`
  await sql`update runs set last_seq = ${events}::bigint where key = ${run.key}::uuid`
  await sql`delete from run_projections where run_key = ${run.key}::uuid`
  await sql`analyze run_events_canonical`
  return events
}
