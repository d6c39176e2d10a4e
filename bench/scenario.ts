/** What a scenario is given. Each starts a service of its own, so that none inherits the heap or the caches of another. */
import type { BenchDatabase } from './database.js'
import type { Row } from './measure.js'
import type { Service } from './process.js'

export interface Context {
  database: BenchDatabase
  /** A fraction of the work, to see whether it runs: the figures mean little. */
  quick: boolean
  startService(env?: Record<string, string>): Promise<Service>
  say(text: string): void
  /** The id of a run of 100,000 events (`run.created` is one of them), made by the first scenario that asks for it. */
  longRun(service: Service): Promise<{ id: string; events: number }>
}

export type Scenario = (context: Context) => Promise<Row[]>
