/**
 * Runs that nobody moves on: looked for at the start and on a timer, by every instance. What is due is decided under the run's lock,
 * so that two instances that find the same run fail it once, and a run that has moved on meanwhile is left alone.
 *
 * Sources that an instance left are taken up by attach.ts, and leases that workers let run out by leases.ts. What remains is a run that
 * is on its way to running and does not get there: its source is never open, or nobody holds it; or one that is running, whose source has no
 * more, and that nobody else tells of. It is failed after its time.
 */
import type { Config } from '../config.js'
import type { Sql } from '../db/client.js'
import type { DraftEvent } from '../domain/canonical-event.js'
import { TERMINAL_STATUSES } from '../domain/run.js'
import type { GroupCommit } from '../log/group-commit.js'

export interface RecoveryDeps {
  sql: Sql
  log: Pick<GroupCommit, 'decide'>
  config: Pick<Config, 'RUN_RECOVERY_ENABLED' | 'RECOVERY_INTERVAL_MS' | 'STARTING_TIMEOUT_MS' | 'BINDING_TIMEOUT_MS'>
  logger: { warn(details: object, message: string): void }
}

export interface Recovery {
  start(): void
  close(): Promise<void>
}

interface StuckRun {
  key: string
  status: 'starting' | 'binding_session' | 'running'
  last_seq: number
  /** Why its source is not open. */
  source_error: string | null
}

/** Runs that one round fails at the most. They are taken at random, so that one that cannot be failed holds up no other. */
const ROUND_RUNS = 200

export function createRecovery({ sql, log, config, logger }: RecoveryDeps): Recovery {
  let timer: NodeJS.Timeout | undefined
  let running: Promise<void> | undefined

  async function round(): Promise<void> {
    const stuck = await sql<StuckRun[]>`
      select r.key, r.status, r.last_seq, s.error as source_error from runs r left join run_sources s on s.run_key = r.key
      where (r.status = 'binding_session' or r.status = 'starting' and r.lease_expires_at is null)
        and r.updated_at <= clock_timestamp() - interval '1 ms' *
          case r.status when 'starting' then ${config.STARTING_TIMEOUT_MS}::bigint else ${config.BINDING_TIMEOUT_MS}::bigint end
      order by random() limit ${ROUND_RUNS}`
    await sql`
      with over as (
        select s.run_key from run_sources s join runs r on r.key = s.run_key
        where s.status = 'drained' and r.status = any(string_to_array(${TERMINAL_STATUSES.join(',')}, ',')) for update of s skip locked
      )
      update run_sources s set status = 'ended' from over where s.run_key = over.run_key`
    const left = await sql<StuckRun[]>`
      select r.key, r.status, r.last_seq, s.error as source_error from run_sources s join runs r on r.key = s.run_key
      where s.status = 'drained' and r.status = 'running' and r.lease_expires_at is null
        and r.updated_at <= clock_timestamp() - interval '1 ms' * ${config.BINDING_TIMEOUT_MS}::bigint
      order by random() limit ${ROUND_RUNS}`
    await Promise.all([...stuck, ...left].map(fail))
  }

  async function fail(run: StuckRun): Promise<void> {
    try {
      await log.decide(run.key, ({ version, folds }, place) =>
        // Something came meanwhile: its time begins anew.
        version === run.last_seq && folds.run.status === run.status && (run.status === 'binding_session' || place.leaseExpiresAt === null)
          ? [timedOut(run)]
          : [],
      )
    } catch (error) {
      logger.warn({ err: error, runKey: run.key }, 'a run that is stuck could not be failed; the next round tries again')
    }
  }

  function timedOut({ status, source_error }: StuckRun): DraftEvent {
    const because = source_error === null ? '' : ` ${source_error}`
    const error = {
      starting: { code: 'STARTING_TIMEOUT', message: `The run was starting for ${config.STARTING_TIMEOUT_MS} ms (STARTING_TIMEOUT_MS), and nobody holds it.` },
      binding_session: {
        code: 'BINDING_TIMEOUT',
        message: `The run's source was not open within ${config.BINDING_TIMEOUT_MS} ms (BINDING_TIMEOUT_MS).${because}`,
      },
      running: {
        code: 'SOURCE_ENDED',
        message: `${source_error} Nothing has told the run's end, and nothing came of it for ${config.BINDING_TIMEOUT_MS} ms (BINDING_TIMEOUT_MS).`,
      },
    }[status]
    return { type: 'run.failed', data: { error, retryable: true } }
  }

  function look(): void {
    running ??= round()
      .catch((error: unknown) => logger.warn({ err: error }, 'runs that are stuck could not be looked for'))
      .finally(() => {
        running = undefined
      })
  }

  return {
    start() {
      if (!config.RUN_RECOVERY_ENABLED) return
      look()
      timer = setInterval(look, config.RECOVERY_INTERVAL_MS).unref()
    },
    async close() {
      clearInterval(timer)
      await running
    },
  }
}
