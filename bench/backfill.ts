/**
 * One reader that fetches a run of 100,000 events over SSE, from its first event to `caught_up`, checking that no id is missing.
 * Baseline: the same rows read by keyset, 1,000 a page, through `postgres`, json as text. Target: at least 0.8 x its events/s.
 * Knobs: ROUNDS.
 */
import { compared, inTurns, seconds } from './measure.js'
import type { Scenario } from './scenario.js'
import { frameCounter, openStream } from './wire.js'

const ROUNDS = 7

export const backfill: Scenario = async ({ database, quick, startService, longRun }) => {
  const service = await startService()
  const { id, events } = await longRun(service)
  let bytesRead = 0
  const ours = async () => {
    const took = await seconds(
      () =>
        new Promise<void>((resolve, reject) => {
          const frames = frameCounter(0)
          bytesRead = 0
          openStream(service.port, `/runs/${id}/stream`, (chunk) => {
            bytesRead += chunk.length
            if (frames.push(chunk) < events) return true
            resolve()
            return false
          }).then((socket) => {
            socket.on('close', () => reject(new Error(`the stream ended at ${frames.last} of ${events}`)))
            stop = () => socket.removeAllListeners('close').destroy()
          }, reject)
        }),
    )
    stop()
    return events / took
  }
  let stop: () => unknown = () => undefined

  const sql = await database.connect(1)
  const [run] = await sql<{ key: string }[]>`select key from runs where id = ${id}`
  if (run === undefined) throw new Error('the run is not in the database')
  // Without statistics, until autovacuum comes round, the planner may sort the whole run for each page of the baseline: a sixth of its speed.
  await sql`analyze run_events_canonical`
  const baseline = async () => {
    let seq = 0
    const took = await seconds(async () => {
      for (;;) {
        const page = await sql<{ seq: string; event: string }[]>`
          select seq, event from run_events_canonical where run_key = ${run.key} and seq > ${seq} order by seq limit 1000`
        const last = page.at(-1)
        if (last === undefined) break
        seq = Number(last.seq)
        if (page.length < 1000) break
      }
    })
    if (seq !== events) throw new Error(`the baseline read ${seq} of ${events}`)
    return events / took
  }
  await ours()
  await baseline()
  const pairs = await inTurns(quick ? 2 : ROUNDS, ours, baseline)
  await sql.end()
  await service.stop()
  const note = `${(bytesRead / events).toFixed(0)} bytes an event on the wire`
  return [
    compared({ what: `Backfill of ${events.toLocaleString('en')} events over SSE`, database: database.kind, unit: 'events/s', note }, pairs, { atLeast: 0.8 }),
  ]
}
