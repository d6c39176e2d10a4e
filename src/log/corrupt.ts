/**
 * Runs whose log cannot be folded (docs/adr/0011). The log is evidence and stays as it is: it is the run's row that fails, with a `seq` in its error,
 * which no failure that an event tells has. From then on the run takes nothing more, until a rebuild gets to the head of its log.
 */
import type { Queries, Sql } from '../db/client.js'
import { isTerminal, TERMINAL_STATUSES } from '../domain/run.js'
import { RunplaneError } from '../errors.js'
import { type FoldState, summary } from '../projections/fold.js'

const ADVICE = 'What is there can still be read and exported. Once it has been repaired, POST /runs/:id/projection/rebuild.'

export class LogCorrupt extends RunplaneError {
  constructor(
    readonly runKey: string,
    /** The first event that cannot be folded. */
    readonly seq: number,
    readonly reason: string,
    cause?: unknown,
  ) {
    super('INVALID_STATE_TRANSITION', `${reason} ${ADVICE}`, { cause })
  }
}

/** The error in a run's row. */
export interface RowError {
  message: string
  seq?: number
}

/** @throws LogCorrupt where that is what the run has failed for. */
export function assertWhole(runKey: string, error: RowError | null | undefined): void {
  if (error?.seq !== undefined) throw new LogCorrupt(runKey, error.seq, error.message)
}

/** Fails the run's row and frees what the run holds, unless it has ended. @returns whether it has failed now. */
export async function failCorrupt(tx: Queries, { runKey, seq, reason }: LogCorrupt): Promise<boolean> {
  const error = JSON.stringify({ code: 'LOG_CORRUPT', message: reason, stack: null, seq })
  const failed = await tx`
    with failed as (
      update runs set status = 'failed', error = ${error}::text::json, ended_at = clock_timestamp(), updated_at = greatest(clock_timestamp(), updated_at),
        worker_id = null, lease_expires_at = null, lease_remaining_ms = null, lease_length_ms = null, reserved_until = null,
        ttl_expires_at = null, ttl_remaining_ms = null, cancel_requested_at = null
      where key = ${runKey} and status <> all(string_to_array(${TERMINAL_STATUSES.join(',')}, ',')) returning key
    ), given_up as (
      update run_sources s set status = 'failed', error = ${reason}, owner_id = null, owner_expires_at = null from failed where s.run_key = failed.key
    )
    select from failed`
  return failed.count > 0
}

/**
 * Sets the row of a run that has failed so as its log has it, now that this can be folded: the run goes on as after a crash. A worker that held it has lost its
 * lease, and its source is read on from the cursor. The caller holds the lock of the run.
 */
export async function restoreRow(sql: Sql, runKey: string, state: FoldState): Promise<void> {
  const [row] = await sql<{ error: RowError; text: string }[]>`select error, error::text as text from runs where key = ${runKey} and status = 'failed'`
  if (row?.error.seq === undefined) return
  const { status, progress, attempt, error, startedAt, endedAt } = summary(state)
  const { workerId, leaseExpiresAt } = state.folds.run
  const wasHeld = leaseExpiresAt !== null && !isTerminal(status)
  await sql`
    with restored as (
      update runs set status = ${status}, progress = ${progress}, attempt = ${attempt}, error = ${error && JSON.stringify(error)}::text::json,
        started_at = ${startedAt}::text::timestamptz, ended_at = ${endedAt}::text::timestamptz, updated_at = greatest(clock_timestamp(), updated_at),
        worker_id = case when ${wasHeld} and queue is not null then ${workerId} end,
        lease_expires_at = case when ${wasHeld && status !== 'suspended'} and queue is not null then clock_timestamp() end
      where key = ${runKey} and last_seq = ${state.version} and error::text = ${row.text} returning key
    )
    update run_sources s set status = ${isTerminal(status) ? 'ended' : 'waiting'}, failures = 0, error = null, next_at = clock_timestamp()
    from restored where s.run_key = restored.key`
}
