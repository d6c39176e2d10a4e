/**
 * The state of a run of 100,000 events.
 *
 *   state        GET /runs/:id/state: hot (asked for again), cold (first request after a restart, from the stored snapshot), and folded from its
 *                first event (the same without a snapshot and without the checkpoints on the way). Printed.
 *   fold         the projections alone, in memory, over the same events, parsed beforehand. Target: at least 500,000 events/s.
 * Knobs: ROUNDS.
 */
import type { CanonicalEvent } from '../src/domain/canonical-event.js'
import { createState, foldEvent } from '../src/projections/fold.js'
import { type Row, repeat, seconds, spread } from './measure.js'
import type { Scenario } from './scenario.js'
import { must, openConnection, request } from './wire.js'

const ROUNDS = 5

export const state: Scenario = async ({ database, quick, startService, longRun }) => {
  const rounds = quick ? 2 : ROUNDS
  const cold: number[] = []
  const hot: number[] = []
  const folded: number[] = []
  for (let round = 0; round < rounds; round++) {
    let service = await startService()
    const { id } = await longRun(service)
    const ask = async () => {
      const connection = await openConnection(service.port)
      const bytes = request(service.port, 'GET', `/runs/${id}/state`)
      const took = await seconds(() => must(connection, bytes))
      connection.close()
      return took * 1000
    }
    await ask()
    await service.stop()
    service = await startService()
    cold.push(await ask())
    hot.push(spread(await repeat(20, ask)).median)
    await service.stop()
    service = await startService()
    const sql = await database.connect(1)
    await sql`delete from run_projections`
    await sql`delete from run_checkpoints`
    await sql.end()
    folded.push(await ask())
    await service.stop()
  }
  const row = (what: string, values: number[]): Row => ({
    what: `State of a run with 100,000 events, ${what}`,
    database: database.kind,
    unit: 'ms',
    ours: spread(values),
  })
  return [row('hot', hot), row('cold, from its snapshot', cold), row('cold, without a snapshot', folded)]
}

export const fold: Scenario = async ({ database, quick, startService, longRun }) => {
  const service = await startService()
  const { id, events: length } = await longRun(service)
  const connection = await openConnection(service.port)
  const events: CanonicalEvent[] = []
  while (events.length < length) {
    const page = await must(connection, request(service.port, 'GET', `/runs/${id}/events?afterSeq=${events.length}&limit=1000`))
    const { data }: { data: CanonicalEvent[] } = JSON.parse(page)
    if (data.length === 0) throw new Error(`the log ended at ${events.length} of ${length}`)
    events.push(...data)
  }
  connection.close()
  await service.stop()
  const values = await repeat(quick ? 2 : 2 * ROUNDS, async () => {
    const took = await seconds(async () => {
      const folding = createState()
      for (const event of events) foldEvent(folding, event)
    })
    return events.length / took
  })
  // The first round compiles the code.
  const ours = spread(values.slice(1))
  return [{ what: 'Fold in memory', database: database.kind, unit: 'events/s', ours, target: 'at least 500,000 events/s', met: ours.median >= 500_000 }]
}
