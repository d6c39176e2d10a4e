/**
 * The only writer of events, sequence numbers and run status: one transaction for a group of requests.
 *
 * Under the rows' locks, taken in the order of the keys: find repeats, number, fold, insert, update the runs; commit.
 * Numbers come from inside the transaction, so commit order is seq order and a reader of `after seq` never skips.
 * What a connection lost at its commit did is asked of Postgres (`pg_xact_status`), never guessed.
 */
import type { Queries, Sql } from '../db/client.js'
import type { Dedicated } from '../db/dedicated.js'
import { isConnectionError, isLockTimeout } from '../db/retry.js'
import { isTerminal } from '../domain/run.js'
import { RunplaneError } from '../errors.js'
import { createState } from '../projections/fold.js'
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
import { beginWork, noRows, type Rows, type RunRow, type RunWork, reserve, workOff } from './append-work.js'
import type { CommittedBatch } from './committed.js'
import { assertWhole, failCorrupt, LogCorrupt } from './corrupt.js'
import { catchUp, type HotState, loadSnapshots } from './states.js'

/** A run that has ended after so few events is not kept in memory: it is folded again in no time, should anybody ask. */
const SHORT_EVENTS = 10

export interface GroupResult {
  outcomes: AppendOutcome[]
  committed: CommittedBatch[]
  /** Canonical events stored. */
  events: number
}

/** What is remembered between the attempts at one group. */
export interface Attempts {
  /** A connection was lost while this was stored at once: nobody knows yet whether it was. */
  uncertain?: { result: GroupResult; runKey: string; seq: number; json: string }
}

/** What the last transaction found: whether there is a webhook endpoint, of whichever workspace. While nobody knows, the statement looks for itself. */
export interface Hooks {
  enabled: boolean | undefined
}

/** For so long a run to which somebody else writes is stored in two round trips. */
const CONTENDED_MS = 10_000

/**
 * Stores a group of requests in one transaction. The caller holds the locks of `hot`, one for each run of the group, and the connection.
 * Outcomes are in the order of `requests`. Throws what the database throws: then nothing is stored, and the states are dropped.
 *
 * Where all that the work needs to know is in memory, it is one statement, which stores only if nobody else has written meanwhile; else two
 * round trips: what the work needs to know goes with the BEGIN, and the COMMIT goes with what it stores (a COMMIT after a failed
 * statement is a ROLLBACK). Each round trip of a busy process costs 2 ms of waiting for its turns.
 * @param connection for the transaction; `sql`, the pool, for what is asked outside of it
 * @param attempts the same object for each attempt at this group
 * @param options.probe does everything but the commit
 * @param options.atOnce where to send what is one statement; others may have sent theirs there before. By default the connection itself.
 * @param options.hooks the same object for each group
 */
export async function appendGroup(
  connection: Dedicated,
  sql: Sql,
  requests: readonly AppendRequest[],
  hot: Map<string, HotState>,
  attempts: Attempts = {},
  options: { probe?: boolean; atOnce?: Queries; hooks?: Hooks } = {},
): Promise<GroupResult> {
  if (!options.probe && !attempts.uncertain && isKnown(requests, hot)) {
    const result = await storeAtOnce(options.atOnce ?? connection.sql, requests, hot, attempts, options.hooks)
    if (result) return result
  }
  const tx = connection.sql
  let inTransaction = false
  try {
    // Read before the transaction: what is cold costs no lock time. Not through the pool, where it would wait behind readers.
    beginStates(requests, hot)
    await loadSnapshots(tx, hot.values())
    connection.begin()
    inTransaction = true
    const { result, works, rows, xid } = await work(connection, requests, hot, attempts, options.hooks)
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
    else remember(works, hot)
    return result
  } catch (error) {
    dropStates(hot)
    if (inTransaction && !connection.isLost()) await tx`rollback`.catch(() => {})
    if (error instanceof StoredBefore) return error.result
    throw error
  }
}

/**
 * Whether the work needs nothing from the database: plain events, be it of the run's worker, and claims of what has been reserved, for runs whose
 * rows and states are in memory.
 */
function isKnown(requests: readonly AppendRequest[], hot: Map<string, HotState>): boolean {
  const nowMs = performance.now()
  for (const { runKey, reserved } of requests) {
    const one = reserved && hot.get(runKey)
    if (one) one.row ??= reserved
  }
  for (const { state, row, contendedUntilMs } of hot.values()) if (!state || row?.lastSeq !== state.version || nowMs < contendedUntilMs) return false
  return requests.every(
    ({ runKey, create, decide, reserved, ifMatch, producer, requestKey, source }) =>
      (create ?? ifMatch ?? producer ?? requestKey ?? source) === undefined && (decide === undefined || reserved?.lastSeq === hot.get(runKey)?.row?.lastSeq),
  )
}

/**
 * One statement, one round trip. Where it fails, for a writer elsewhere, a repeated event id or anything else, nothing is stored, the
 * states are dropped, and the caller goes the long way; a connection that is lost leaves that to be found out under the rows' locks.
 */
async function storeAtOnce(
  sql: Queries,
  requests: readonly AppendRequest[],
  hot: Map<string, HotState>,
  attempts: Attempts,
  hooks: Hooks = { enabled: undefined },
): Promise<GroupResult | undefined> {
  const works = new Map<string, RunWork>()
  const hooked = hooks.enabled ?? true
  for (const { runKey, row, state } of hot.values()) {
    if (!row || !state) return undefined
    const { id, workspaceId, lastSeq, lastRawSeq, told } = row
    works.set(runKey, beginWork({ key: runKey, id, workspace_id: workspaceId, last_seq: lastSeq, last_raw_seq: lastRawSeq, hooked, told }, state))
  }
  for (const { runKey, workerId, reserved } of requests) {
    const work = works.get(runKey)
    if (work && workerId !== undefined) work.holder ??= workerId
    if (work && reserved) reserve(work, reserved.place)
  }
  const rows = noRows()
  let result: GroupResult
  try {
    result = workOff(requests, works, { created: new Set(), known: new Map(), receipts: new Map(), owners: new Map() }, rows)
  } catch {
    // It will come again on the long way, or something was to be asked after all.
    dropStates(hot)
    return undefined
  }
  // Rejected items alone: what is wrong with them is known, whether the run is still there is not.
  const [first] = result.committed
  const [event] = first?.events ?? []
  if (!first || !event) return undefined
  try {
    await insertEvents(sql, works, rows, true)
    remember(works, hot)
    return result
  } catch (fault) {
    dropStates(hot)
    hooks.enabled = undefined
    if (isConnectionError(fault)) attempts.uncertain = { result, runKey: first.runKey, seq: event.seq, json: event.json }
    // Whoever has had a row's lock for so long has not written yet.
    else if (!isLockTimeout(fault)) for (const one of hot.values()) one.contendedUntilMs = performance.now() + CONTENDED_MS
    return undefined
  }
}

/** An earlier attempt has stored the group, and only its answer was lost. */
class StoredBefore extends Error {
  constructor(readonly result: GroupResult) {
    super('the group is stored already')
  }
}

/**
 * With the row's lock held, a statement that was lost has either committed or never will: its guard stores nothing once the run has moved on.
 * @throws StoredBefore
 */
async function assertNotStored(connection: Dedicated, { uncertain }: Attempts): Promise<void> {
  if (!uncertain) return
  const [row] = await connection.sql<{ event: string }[]>`
    select event::text as event from run_events_canonical where run_key = ${uncertain.runKey} and seq = ${uncertain.seq}`
  if (row?.event === uncertain.json) throw new StoredBefore(uncertain.result)
}

/** A run that is made now has no snapshot to be looked for. */
function beginStates(requests: readonly AppendRequest[], hot: Map<string, HotState>): void {
  for (const { create, runKey } of requests) {
    const one = create && hot.get(runKey)
    if (one) one.state ??= createState()
  }
}

function remember(works: Map<string, RunWork>, hot: Map<string, HotState>): void {
  for (const one of hot.values()) {
    const work = works.get(one.runKey)
    // Of no run, or of one that was not made after all, nothing is kept.
    if (!work || (isTerminal(work.status) && work.lastSeq <= SHORT_EVENTS)) drop(one)
    else {
      const { row, lastSeq, lastRawSeq, told = row.told } = work
      one.row = { id: row.id, workspaceId: row.workspace_id, lastSeq, lastRawSeq, told }
    }
  }
}

function dropStates(hot: Map<string, HotState>): void {
  for (const one of hot.values()) drop(one)
}

function drop(hot: HotState): void {
  hot.state = undefined
  hot.savedVersion = 0
  hot.row = undefined
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

async function work(connection: Dedicated, requests: readonly AppendRequest[], hot: Map<string, HotState>, attempts: Attempts, hooks?: Hooks): Promise<Worked> {
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
  await assertNotStored(connection, attempts)
  if (hooks && rows[0]) hooks.enabled = rows[0].hooked
  const works = new Map<string, RunWork>()
  const corrupt = new Map<string, LogCorrupt>()
  const failed: CommittedBatch[] = []
  for (const row of rows) {
    const one = hot.get(row.key)
    if (!one) continue
    try {
      assertWhole(row.key, row.error)
      works.set(row.key, beginWork(row, await catchUp(tx, one, row.last_seq)))
    } catch (error) {
      if (!(error instanceof LogCorrupt)) throw error
      corrupt.set(row.key, error)
      assertHeld(connection)
      if (await failCorrupt(tx, error)) failed.push(rowAlone(row))
    }
  }
  const out = { ...noRows(), producers }
  const result = workOff(requests, works, { created, known, receipts, owners, corrupt }, out)
  result.committed.push(...failed)
  return { result, works, rows: out, xid: rows[0]?.xid }
}

/** A run that has failed without an event. */
const rowAlone = ({ key, id, workspace_id, last_seq }: RunRow): CommittedBatch => ({
  runKey: key,
  runId: id,
  workspaceId: workspace_id,
  firstSeq: last_seq + 1,
  lastSeq: last_seq,
  events: [],
  status: 'failed',
})
