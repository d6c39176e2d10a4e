/**
 * From the spawn of the process to the first 200 of /readyz: on a new database (the migrations run; the embedded one is made) and on one
 * that exists. Printed. Knobs: ROUNDS.
 */
import { embeddedDatabase, serverDatabase } from './database.js'
import { type Row, spread } from './measure.js'
import { startService } from './process.js'
import type { Scenario } from './scenario.js'

const ROUNDS = 5

export const start: Scenario = async ({ database, quick }) => {
  const fresh: number[] = []
  const existing: number[] = []
  for (let round = 0; round < (quick ? 1 : ROUNDS); round++) {
    const own = await (database.kind === 'embedded' ? embeddedDatabase() : serverDatabase(process.env.DATABASE_URL ?? ''))
    for (const times of [fresh, existing]) {
      const service = await startService(own.env)
      times.push(service.readyMs)
      await service.stop()
    }
    await own.remove()
  }
  const row = (what: string, values: number[]): Row => ({ what: `Start to ready, ${what}`, database: database.kind, unit: 'ms', ours: spread(values) })
  return [row('new database', fresh), row('existing database', existing)]
}
