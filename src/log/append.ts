/**
 * The only writer of events, sequence numbers and run status: one transaction for a group of requests.
 *
 * Under the rows' locks, taken in the order of the keys: find repeats, number, fold, insert, update the runs; commit.
 * Numbers come from inside the transaction, so commit order is seq order and a reader of `after seq` never skips.
 * What a connection lost at its commit did is asked of Postgres (`pg_xact_status`), never guessed.
 */
import type { Sql } from '../db/client.js'
import type { Dedicated } from '../db/dedicated.js'
import { isConnectionError } from '../db/retry.js'
import { RunplaneError } from '../errors.js'
import type { AppendOutcome, AppendRequest } from './append-request.js'
import {
  assertHeld,
  ConnectionLost,
  findKnown,
  findOwners,
  findProducers,
  findReceipts,
  insertEvents,
  insertRest,
  insertRuns,
  lockRuns,
} from './append-rows.js'
import { appendOne, markOf, type Rows, type RunWork, UNREAD } from './append-work.js'
import type { CommittedBatch } from './committed.js'
import { catchUp, type HotState, loadSnapshots } from './states.js'

export interface GroupResult {
  outcomes: AppendOutcome[]
  committed: CommittedBatch[]
  /** Canonical events stored. */
  events: number
}

/**
 * Stores a group of requests in one transaction. The caller holds the locks of `hot`, one for each run of the group, and the connection.
 * Outcomes are in the order of `requests`. Throws what the database throws: then nothing is stored, and the states are dropped.
 *
 * Two round trips: what the work needs to know goes with the BEGIN, and the COMMIT goes with what it stores (a COMMIT after a failed
 * statement is a ROLLBACK). Each round trip of a busy process costs 2 ms of waiting for its turns, a third of the whole transaction.
 * @param connection for the transaction; `sql`, the pool, for what is asked outside of it
 * @param options.probe does everything but the commit
 */
export async function appendGroup(
  connection: Dedicated,
  sql: Sql,
  requests: readonly AppendRequest[],
  hot: Map<string, HotState>,
  options: { probe?: boolean } = {},
): Promise<GroupResult> {
  const tx = connection.sql
  let inTransaction = false
  try {
    // Read before the transaction: what is cold costs no lock time.
    await loadSnapshots(sql, hot.values())
    connection.begin()
    inTransaction = true
    const { result, works, rows, xid } = await work(connection, requests, hot)
    await insertRest(connection, rows)
    assertHeld(connection)
    const [stored, ended] = await Promise.allSettled([insertEvents(tx, works, rows), options.probe ? tx`rollback`.execute() : tx`commit`.execute()])
    inTransaction = false
    const failure = stored.status === 'rejected' ? stored : ended.status === 'rejected' ? ended : undefined
    // A COMMIT of a transaction that has failed, or that is not there any more, does not fail.
    if (!failure && !options.probe && ended.status === 'fulfilled' && ended.value.command !== 'COMMIT')
      throw new ConnectionLost(`the COMMIT was a ${ended.value.command}`)
    if (failure) {
      const committed = isConnectionError(failure.reason) && xid !== undefined && (await commitVerdict(sql, xid, failure.reason)) === 'committed'
      if (!committed) throw failure.reason
    }
    if (options.probe) dropStates(hot)
    return result
  } catch (error) {
    dropStates(hot)
    if (inTransaction && !connection.isLost()) await tx`rollback`.catch(() => {})
    throw error
  }
}

function dropStates(hot: Map<string, HotState>): void {
  for (const one of hot.values()) {
    one.state = undefined
    one.savedVersion = 0
  }
}

/** Asks until the database answers what became of a transaction whose connection was lost (30 s at most: longer than a restart takes). */
async function commitVerdict(sql: Sql, xid: string, cause: unknown): Promise<'committed' | 'aborted'> {
  const deadline = Date.now() + 30_000
  for (let delayMs = 50; ; delayMs = Math.min(delayMs * 2, 1000)) {
    try {
      const [row] = await sql<{ status: string | null }[]>`select pg_xact_status(${xid}::text::xid8) as status`
      if (row?.status === 'committed' || row?.status === 'aborted') return row.status
    } catch {
      // Not back yet.
    }
    if (Date.now() > deadline) {
      throw new RunplaneError('OVERLOADED', 'The database was lost while it committed. Send the request again with the same event ids.', {
        cause,
        headers: { 'retry-after': '1' },
      })
    }
    await new Promise((resolve) => setTimeout(resolve, delayMs))
  }
}

interface Worked {
  result: GroupResult
  works: Map<string, RunWork>
  rows: Rows
  xid: string | undefined
}

async function work(connection: Dedicated, requests: readonly AppendRequest[], hot: Map<string, HotState>): Promise<Worked> {
  const tx = connection.sql
  const begun = tx`begin`.execute()
  const creates = requests.flatMap((request) => (request.create ? [request.create] : []))
  let created = new Set<string>()
  if (creates.length > 0) {
    await begun
    assertHeld(connection)
    created = await insertRuns(tx, creates)
  }
  // Reads only, which may be sent together with the BEGIN: where that is lost, so is what they are read for.
  const [, rows, known, producers, receipts, owners] = await Promise.all([
    begun,
    lockRuns(tx, hot.keys(), requests),
    findKnown(tx, requests),
    findProducers(tx, requests),
    findReceipts(tx, requests),
    findOwners(tx, requests),
  ])
  const works = new Map<string, RunWork>()
  for (const row of rows) {
    const one = hot.get(row.key)
    if (!one) continue
    const state = await catchUp(tx, one, row.last_seq)
    works.set(row.key, {
      row,
      state,
      firstSeq: row.last_seq + 1,
      lastSeq: row.last_seq,
      lastRawSeq: row.last_raw_seq,
      status: state.folds.run.status,
      placement: row.place ?? UNREAD,
      usageChanged: false,
      committed: [],
    })
  }

  const out: Rows = { raw: [], canonical: [], producers, changedProducers: new Set(), receipts: [], cursors: new Map() }
  const outcomes = requests.map((request): AppendOutcome => {
    const run = works.get(request.runKey)
    if (request.create && !created.has(request.runKey)) return { kind: 'taken' }
    if (!run) return { kind: 'missing' }
    const mark = markOf(run, out)
    try {
      return { kind: 'done', receipt: appendOne(request, run, known, receipts, owners, out) }
    } catch (error) {
      // A refusal comes before anything of its request is numbered; anything else spoils the state and ends the transaction.
      if (error instanceof RunplaneError && mark === markOf(run, out)) return { kind: 'refused', error }
      throw error
    }
  })
  const committed: CommittedBatch[] = []
  let events = 0
  for (const run of works.values()) {
    if (run.committed.length === 0) continue
    events += run.committed.length
    committed.push({
      runKey: run.row.key,
      runId: run.row.id,
      workspaceId: run.row.workspace_id,
      firstSeq: run.firstSeq,
      lastSeq: run.lastSeq,
      events: run.committed,
      status: run.status,
    })
  }
  return { result: { outcomes, committed, events }, works, rows: out, xid: rows[0]?.xid }
}
