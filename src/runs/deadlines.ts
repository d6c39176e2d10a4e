/**
 * Runs whose time is over: a cancellation that was requested a grace ago, a session that has had its time (`session.ttlMs`).
 * Every instance looks; what is due is decided under the run's lock, so that two that find the same run end it once.
 */
import type { Sql } from '../db/client.js'
import type { DraftEvent } from '../domain/canonical-event.js'
import { type CommandedPlace, type CommandedRun, decideExpiry, decideForcedCancel } from '../domain/command.js'
import type { GroupCommit } from '../log/group-commit.js'
import { commanded } from './commands.js'

const ROUND_MS = 500
/** Runs of one kind that one round ends at the most. They are taken at random, so that one that cannot be ended holds up no other. */
const ROUND_RUNS = 200

export interface Deadlines {
  close(): Promise<void>
}

export function startDeadlines(deps: {
  sql: Sql
  log: GroupCommit
  cancelGraceMs: number
  logger: { warn(details: object, message: string): void }
}): Deadlines {
  const { sql, log, cancelGraceMs, logger } = deps
  let running: Promise<void> | undefined

  async function end(runKey: string, decide: (run: CommandedRun, place: CommandedPlace) => DraftEvent[]): Promise<void> {
    try {
      await log.decide(runKey, (state, place) => decide(commanded(state), place))
    } catch (error) {
      logger.warn({ err: error, runKey }, 'a run whose time is over could not be ended; the next round tries again')
    }
  }

  /** Rows that another transaction holds are left for the next round. */
  async function round(): Promise<void> {
    const cancelling = await sql<{ key: string }[]>`
      select key from runs where cancel_requested_at is not null
        and (cancel_requested_at <= clock_timestamp() - ${cancelGraceMs} * interval '1 millisecond' or status = 'queued')
      order by random() limit ${ROUND_RUNS}`
    await Promise.all(cancelling.map(({ key }) => end(key, (run, place) => decideForcedCancel(run, place, cancelGraceMs))))
    const expired = await sql<{ key: string }[]>`
      select key from runs where ttl_expires_at <= statement_timestamp() order by random() limit ${ROUND_RUNS}`
    await Promise.all(expired.map(({ key }) => end(key, decideExpiry)))
  }

  const timer = setInterval(() => {
    running ??= round()
      .catch((error) => logger.warn({ err: error }, 'the runs whose time is over could not be looked for'))
      .finally(() => {
        running = undefined
      })
  }, ROUND_MS)
  timer.unref()

  return {
    async close() {
      clearInterval(timer)
      await running
    },
  }
}
