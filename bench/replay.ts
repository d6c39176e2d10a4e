/**
 * The state at a random seq of a run of 1,000,000 events: GET /runs/:id/state?seq=N, each on a connection of its own.
 *
 *   replay-state   with the checkpoints that reading its state once left. Target: the median under 100 ms. The first reading is printed with it, and
 *                  what the checkpoints take.
 * Knobs: EVENTS, READS. The run is made by SQL from a short one (long-log.ts).
 */
import { lengthen } from './long-log.js'
import { quantile, seconds, spread } from './measure.js'
import type { Scenario } from './scenario.js'
import { must, openConnection, request } from './wire.js'
import { createRun, fill } from './workload.js'

const EVENTS = 1_000_000
const READS = 60
const SHORT = 20_001

export const replayState: Scenario = async ({ database, quick, say, startService }) => {
  const events = quick ? 100_000 : EVENTS
  let service = await startService()
  const connection = await openConnection(service.port)
  const id = await createRun(connection, service.port, 'replayed-million')
  await fill(connection, service.port, id, SHORT)
  connection.close()
  await service.stop()
  // A service that had the run in memory would know of another head.
  service = await startService()
  const sql = await database.connect(1)
  say(`${await lengthen(sql, id, 2, events)} events`)
  const ask = async (query: string) => {
    const fresh = await openConnection(service.port)
    const took = await seconds(() => must(fresh, request(service.port, 'GET', `/runs/${id}/state${query}`)))
    fresh.close()
    return took * 1000
  }
  const first = await ask('')
  // The same seqs each time: a fraction of the golden ratio goes round evenly.
  const seqs = Array.from({ length: quick ? 10 : READS }, (_, index) => 1 + Math.floor((((index + 1) * 0.618034) % 1) * events))
  const times: number[] = []
  for (const seq of seqs) times.push(await ask(`?seq=${seq}`))
  const [size] = await sql<{ rows: number; bytes: number }[]>`
    select count(*)::int as rows, pg_total_relation_size('run_checkpoints')::float8 as bytes from run_checkpoints`
  await sql`delete from run_events_canonical where run_key = (select key from runs where id = ${id})`
  await sql`delete from runs where id = ${id}`
  await sql.end()
  await service.stop()
  const ours = spread(times)
  return [
    {
      what: `State at a random seq of a run with ${events.toLocaleString('en')} events`,
      database: database.kind,
      unit: 'ms',
      ours,
      target: 'under 100 ms',
      met: ours.median < 100,
      note: `p95 ${quantile(times, 0.95).toFixed(0)} ms; the first reading, which folds all of it, ${(first / 1000).toFixed(1)} s; ${size?.rows} checkpoints take ${((size?.bytes ?? 0) / 1_048_576).toFixed(1)} MiB`,
    },
  ]
}
