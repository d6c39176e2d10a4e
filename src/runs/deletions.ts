/**
 * Deleting runs. The row in `runs` goes at once, in one transaction, and with it the run: nobody finds it, appends to it or reads on in it.
 * Its events go later, in batches, so that a run of millions holds up nobody: `run_deletions` says which are left.
 *
 * Invariant: the key of a deleted run is never used again. A run that is made anew under the same id has another key, and none of the old one's events.
 */
import type { Sql } from '../db/client.js'
import { isTerminal, type RunStatus, TERMINAL_STATUSES } from '../domain/run.js'
import type { RunKeys } from '../log/run-keys.js'
import { pgArray, type States } from '../log/states.js'

/** Rows of one table that one transaction deletes. */
const BATCH_ROWS = 5000
const ROUND_MS = 2000
/** Runs that one transaction works on: most are small. */
const BATCH_RUNS = 50

export interface Deletions {
  /**
   * @param only of this key and with this head: else it is `missing`
   * @returns the status: the run has not ended, and is left
   */
  delete(workspaceId: string, runId: string, only?: { key: string; lastSeq: number }): Promise<'deleted' | 'missing' | RunStatus>
  /** Deletes what is left of deleted runs, until nothing is due. Any number of instances may do so at once. */
  sweep(): Promise<void>
  close(): Promise<void>
}

export interface DeletionsDeps {
  sql: Sql
  runKeys: RunKeys
  states: States
  /** Tells this instance's readers and the other instances. */
  onDeleted(runKey: string): void
  log: { warn(details: object, message: string): void }
}

export function createDeletions({ sql, runKeys, states, onDeleted, log }: DeletionsDeps): Deletions {
  let sweeping: Promise<void> | undefined
  let closed = false

  const timer = setInterval(() => void sweep(), ROUND_MS)
  timer.unref()

  function sweep(): Promise<void> {
    sweeping ??= round()
      .catch((error) => log.warn({ err: error }, 'the rows of deleted runs could not be deleted; the next round tries again'))
      .finally(() => {
        sweeping = undefined
      })
    return sweeping
  }

  async function round(): Promise<void> {
    while (!closed && (await deleteBatch()));
  }

  /**
   * One transaction, on some that no other instance works on. An import that was given up is swept as well, when it is due.
   * @returns whether there may be more
   */
  async function deleteBatch(): Promise<boolean> {
    return sql.begin(async (tx) => {
      // Neither sorted nor joined: each batch would go through all that is left, and through all runs that there are.
      const due = await tx<{ run_key: string }[]>`
        select run_key from run_deletions d where due_at <= statement_timestamp() and (select key from runs where key = d.run_key) is null
        limit ${BATCH_RUNS} for update skip locked`
      if (due.length === 0) return false
      const keys = pgArray(due.map((row) => row.run_key))
      const ofThem = tx`run_key = any(${keys}::uuid[])`
      // Run by run in the order of the keys, and then by their place in the table: else each batch of a long run would look at all that is left of it.
      const rows = (table: string, order: string) => tx`
        delete from ${tx(table)} where ctid = any(array(
          select e.ctid from unnest(${keys}::uuid[]) k
          cross join lateral (select ctid from ${tx(table)} where run_key = k order by ${tx(order)} limit ${BATCH_ROWS}) e limit ${BATCH_ROWS}))`
      const canonical = await rows('run_events_canonical', 'seq')
      const raw = await rows('run_events_raw', 'raw_seq')
      const receipts = await rows('append_receipts', 'request_key')
      if (Math.max(canonical.count, raw.count, receipts.count) === BATCH_ROWS) return true
      await tx`delete from run_projections where ${ofThem}`
      await tx`delete from run_checkpoints where ${ofThem}`
      await tx`delete from run_bases where ${ofThem}`
      await tx`delete from producers where ${ofThem}`
      await tx`delete from run_sources where ${ofThem}`
      await tx`delete from webhook_deliveries where ${ofThem}`
      // Content that no other run needs is found by what sweeps contents (insight/artifacts.ts).
      await tx`delete from run_artifacts where ${ofThem}`
      await tx`delete from run_deletions where ${ofThem}`
      return true
    })
  }

  return {
    async delete(workspaceId, runId, only) {
      const found = await sql.begin(async (tx) => {
        const [run] = await tx<{ key: string; status: RunStatus }[]>`
          select key, status from runs where workspace_id = ${workspaceId} and id = ${runId}
            ${only ? tx`and key = ${only.key} and last_seq = ${only.lastSeq}` : tx``} for update`
        if (!run) return undefined
        if (!isTerminal(run.status)) return run
        await tx`insert into run_deletions (run_key, workspace_id, run_id) values (${run.key}, ${workspaceId}, ${runId}) on conflict (run_key) do nothing`
        // What another part would still act on goes with the run.
        await tx`delete from run_sources where run_key = ${run.key}`
        await tx`delete from webhook_deliveries where run_key = ${run.key} and status = 'pending'`
        await tx`delete from runs where key = ${run.key} and status = any(string_to_array(${TERMINAL_STATUSES.join(',')}, ','))`
        return run
      })
      if (!found) return 'missing'
      if (!isTerminal(found.status)) return found.status
      runKeys.forget(workspaceId, runId)
      states.forget(found.key)
      onDeleted(found.key)
      return 'deleted'
    },
    sweep,
    async close() {
      closed = true
      clearInterval(timer)
      await sweeping
    },
  }
}
