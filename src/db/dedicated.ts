/**
 * A connection of one owner, for transactions whose statements are sent without waiting for each other's answers.
 *
 * The driver connects again by itself and runs what comes next there, outside the transaction that was lost: so its owner
 * asks `isLost` before it sends anything that may not run alone. The answer is exact, for the driver tells of a loss in the same turn.
 */
import type { ConnectOptions, Database, Sql } from './client.js'

export interface Dedicated {
  sql: Sql
  /** From now on `isLost` speaks of losses after this call. */
  begin(): void
  isLost(): boolean
  /** Nothing may be under way. */
  end(): Promise<void>
}

export function dedicate(connect: Database['connect'], options: ConnectOptions = {}): Dedicated {
  let lost = false
  let wasLost = false
  const sql = connect({
    ...options,
    max: 1,
    // The driver must not renew the connection in the middle of a transaction, which it does not know of.
    max_lifetime: null,
    onclose: () => {
      lost = true
      wasLost = true
    },
  })
  return {
    sql,
    begin: () => {
      lost = false
    },
    isLost: () => lost,
    // After a loss the driver takes the query that it has rejected for one that still runs, and waits for it.
    end: () => sql.end({ timeout: wasLost ? 0 : 5 }),
  }
}
