/**
 * The only writer of events, sequence numbers and run status: one transaction for a group of requests.
 *
 * Under the rows' locks, taken in the order of the keys: find repeats, number, fold, insert, update the runs; commit.
 * Numbers come from inside the transaction, so commit order is seq order and a reader of `after seq` never skips.
 * What a connection lost at its commit did is asked of Postgres (`pg_xact_status`), never guessed.
 */
import { isDeepStrictEqual } from 'node:util'
import type { Queries, Sql } from '../db/client.js'
import type { Dedicated } from '../db/dedicated.js'
import { isConnectionError } from '../db/retry.js'
import { type CanonicalEvent, type DraftEvent, EVENT_SCHEMA_VERSION } from '../domain/canonical-event.js'
import { digestsOf } from '../domain/digest.js'
import { type Placement, placementAfter } from '../domain/placement.js'
import { isTerminal, type RunStatus } from '../domain/run.js'
import { RunplaneError } from '../errors.js'
import { subjectOf } from '../ingest/subject.js'
import { type FoldState, foldEvent, summary } from '../projections/fold.js'
import { changesUsage, usageOf } from '../projections/usage.js'
import type { AppendItem, AppendOutcome, AppendReceipt, AppendRequest, ItemResult, NewRun, PlacedRun } from './append-request.js'
import type { CommittedBatch, CommittedEvent } from './committed.js'
import { catchUp, type HotState, loadSnapshots, pgArray } from './states.js'

/** Who the control plane is in `source`. Its events have no raw event: their rawSeq is 0. */
const CONTROL_PLANE = 'runplane'

interface RunRow {
  key: string
  id: string
  workspace_id: string
  last_seq: number
  last_raw_seq: number
  xid: string
  /** There is a webhook endpoint, of whichever workspace. */
  hooked: boolean
  /** Only where a request of the group asks for it. */
  place?: PlacedRun
}

interface StoredRaw {
  run_key: string
  source: string
  event_id: string
  raw_seq: number
  first_seq: number
  seq_count: number
  body: string
}

interface ProducerRow {
  run_key: string
  producer_id: string
  epoch: number
  last_seq: number
}

interface ReceiptRow {
  run_key: string
  request_key: string
  body_hash: string
  receipt: string
}

/** A repeat within the transaction is found among these, a repeat of an earlier one comes from the database. */
interface KnownEvent {
  text: string
  rawSeq: number
  seqs: number[]
}

/** One run while its requests are worked off. */
interface RunWork {
  row: RunRow
  state: FoldState
  firstSeq: number
  lastSeq: number
  lastRawSeq: number
  status: RunStatus
  placement: Partial<Placement>
  /** What the overview adds up may have changed. */
  usageChanged: boolean
  committed: CommittedEvent[]
}

interface Rows {
  raw: string[]
  canonical: string[]
  producers: Map<string, ProducerRow>
  changedProducers: Set<string>
  receipts: ReceiptRow[]
  /** Cursors of sources, by run. */
  cursors: Map<string, { cursor: string | null }>
}

export interface GroupResult {
  outcomes: AppendOutcome[]
  committed: CommittedBatch[]
  /** Canonical events stored. */
  events: number
}

/** The connection was lost before the COMMIT was sent: nothing is stored. */
class ConnectionLost extends Error {
  readonly code = 'CONNECTION_CLOSED'
}

/** To be asked before anything is sent that may not run outside the transaction. */
function assertHeld(connection: Dedicated): void {
  if (connection.isLost()) throw new ConnectionLost('the connection was lost within the transaction')
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
    tx<RunRow[]>`
      select key, id, workspace_id, last_seq, last_raw_seq, pg_current_xact_id()::text as xid,
        (select exists (select from webhook_endpoints where enabled)) as hooked
        ${requests.some(needsPlace) ? tx`, ${placeColumns(tx)} as place` : tx``}
      from runs where key = any(${pgArray([...hot.keys()])}::uuid[]) order by key for update`.execute(),
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

function markOf(run: RunWork, out: Rows): number {
  return run.lastSeq + run.lastRawSeq + out.receipts.length + out.changedProducers.size
}

/** Works off one request: the checks that may refuse it, then its items, then the control plane's own events. */
function appendOne(
  request: AppendRequest,
  run: RunWork,
  known: Map<string, KnownEvent>,
  receipts: Map<string, ReceiptRow>,
  owners: Map<string, string | null>,
  out: Rows,
): AppendReceipt {
  const repeat = findRepeat(request, run, receipts, out)
  if (repeat) return repeat
  if (request.ifMatch !== undefined && request.ifMatch !== run.lastSeq) {
    throw new RunplaneError(
      'PRECONDITION_FAILED',
      `The run's head is ${run.lastSeq}, not ${request.ifMatch}. Read what came after ${request.ifMatch}, then decide again.`,
    )
  }
  if (request.workerId !== undefined) assertHolds(request.workerId, run)
  if (request.source && owners.get(request.runKey) !== request.source.ownerId) {
    throw new RunplaneError('LEASE_LOST', `Another instance reads the source of run '${run.row.id}' now.`)
  }
  // Decided on the state before this request's own items: what refuses must refuse before anything is stored.
  const decided = request.decide?.(run.state, placed(run))
  const results = request.items.map((item, index) => appendItem(request, item, index, run, known, out))
  if (decided)
    for (const draft of decided)
      appendEvent(request, draft, { kind: 'control-plane', name: CONTROL_PLANE, format: 'native', rawType: draft.type, rawSeq: 0 }, run, out)
  run.status = run.state.folds.run.status
  if (request.source) out.cursors.set(request.runKey, request.source)
  const receipt: AppendReceipt = { results, headSeq: run.lastSeq, status: run.status }
  if (request.requestKey && (request.producer || results.some((result) => result.status !== 'rejected'))) {
    const row: ReceiptRow = {
      run_key: request.runKey,
      request_key: request.requestKey.key,
      body_hash: request.requestKey.hash,
      receipt: JSON.stringify(results),
    }
    receipts.set(`${row.run_key} ${row.request_key}`, row)
    out.receipts.push(row)
  }
  if (request.producer) {
    const { id, epoch, seq } = request.producer
    const key = `${request.runKey} ${id}`
    out.producers.set(key, { run_key: request.runKey, producer_id: id, epoch, last_seq: seq })
    out.changedProducers.add(key)
  }
  return receipt
}

const needsPlace = (request: AppendRequest) => request.decide !== undefined || request.workerId !== undefined
/** The placement of a run that no request of the group asks for: only its end can change it then, which needs to know nothing. */
const UNREAD: Partial<Placement> = {}

function placed(run: RunWork): PlacedRun {
  if (!run.row.place) throw new Error('the placement was not read')
  return { ...run.row.place, ...run.placement }
}

/** @throws LEASE_LOST, so that a worker that was given up on stops. */
function assertHolds(workerId: string, run: RunWork): void {
  const place = placed(run)
  // Suspended with its holder: nobody else can have it.
  if (place.workerId === workerId && (place.leaseActive || run.status === 'suspended')) return
  const holder = place.workerId === null ? 'Nobody holds it now' : place.workerId === workerId ? 'The lease has run out' : 'Another worker holds it now'
  throw new RunplaneError('LEASE_LOST', `Worker '${workerId}' does not hold run '${run.row.id}'. ${holder}: stop working on it, and claim again.`)
}

/** The answer to a request that was answered before; undefined for a new one. Throws where it may not be taken at all. */
function findRepeat(request: AppendRequest, run: RunWork, receipts: Map<string, ReceiptRow>, out: Rows): AppendReceipt | undefined {
  const { producer, requestKey } = request
  const stored = requestKey && receipts.get(`${request.runKey} ${requestKey.key}`)
  if (producer) {
    const last = out.producers.get(`${request.runKey} ${producer.id}`)
    if (last && producer.epoch < last.epoch) {
      throw new RunplaneError('PRODUCER_FENCED', `Producer '${producer.id}' is at epoch ${last.epoch}: a newer instance of it has taken over. Stop this one.`, {
        headers: { 'producer-epoch': String(last.epoch) },
      })
    }
    const expected = last && producer.epoch === last.epoch ? last.last_seq + 1 : 0
    if (producer.seq > expected) {
      throw new RunplaneError(
        'PRODUCER_GAP',
        `Producer '${producer.id}' sent seq ${producer.seq} of epoch ${producer.epoch}, but ${expected} comes next. Send what is missing first.`,
        {
          headers: { 'producer-expected-seq': String(expected), 'producer-received-seq': String(producer.seq) },
        },
      )
    }
    // Below the last one and without a receipt: a slice of an upload that was cut and then given up.
    if (!stored && producer.seq < expected - 1) {
      throw new RunplaneError('PRODUCER_GAP', `Producer '${producer.id}' has moved on to seq ${expected - 1}; seq ${producer.seq} was never sent whole.`, {
        headers: { 'producer-expected-seq': String(expected) },
      })
    }
  }
  if (!stored || !requestKey) return undefined
  if (!producer && stored.body_hash !== requestKey.hash) {
    throw new RunplaneError('IDEMPOTENCY_CONFLICT', 'This Idempotency-Key was used for another body. Use a new key for new content.')
  }
  const results = (JSON.parse(stored.receipt) as ItemResult[]).map(
    (result): ItemResult => (result.status === 'stored' ? { ...result, status: 'duplicate' } : result),
  )
  return { results, headSeq: run.lastSeq, status: run.status }
}

function appendItem(request: AppendRequest, item: AppendItem, index: number, run: RunWork, known: Map<string, KnownEvent>, out: Rows): ItemResult {
  const { normalized } = item
  if (!normalized.ok) return { index, status: 'rejected', seqs: [], rawSeq: null, code: normalized.code, detail: normalized.detail }
  const { eventId, sourceKind, sourceName, rawType } = normalized
  const identity = eventId === undefined ? undefined : knownKey(request.runKey, sourceName, eventId)
  const before = identity === undefined ? undefined : known.get(identity)
  if (before) {
    if (sameContent(before.text, item.text)) return { index, status: 'duplicate', seqs: before.seqs, rawSeq: before.rawSeq }
    return {
      index,
      status: 'rejected',
      seqs: [],
      rawSeq: null,
      code: 'IDEMPOTENCY_CONFLICT',
      detail: `Event id '${eventId}' of source '${sourceName}' was used for other content (rawSeq ${before.rawSeq}). Use a new id for a new event.`,
    }
  }
  const rawSeq = ++run.lastRawSeq
  const firstSeq = run.lastSeq + 1
  const source = { kind: sourceKind, name: sourceName, format: item.format, rawType, rawSeq, eventId }
  const seqs = normalized.events.map((draft) => appendEvent(request, draft, source, run, out))
  if (identity !== undefined) known.set(identity, { text: item.text, rawSeq, seqs })
  out.raw.push(
    `{"k":"${request.runKey}","n":${rawSeq},"at":"${request.receivedAt}","f":${firstSeq},"c":${seqs.length},"fmt":"${item.format}","rt":${JSON.stringify(rawType)},"s":${JSON.stringify(sourceName)},"i":${eventId === undefined ? 'null' : JSON.stringify(eventId)},"b":${JSON.stringify(item.text)}}`,
  )
  return { index, status: 'stored', seqs, rawSeq }
}

/** Numbers, folds and encodes one event. @returns its seq. */
function appendEvent(request: AppendRequest, draft: DraftEvent, source: CanonicalEvent['source'], run: RunWork, out: Rows): number {
  const { state } = run
  const seq = ++run.lastSeq
  const subject = subjectOf(draft, run.row.id, source.rawSeq)
  const late = isTerminal(state.folds.run.status) && !(source.kind === 'control-plane' && draft.type === 'run.retry_scheduled')
  const event = {
    runId: run.row.id,
    seq,
    ts: draft.ts ?? request.receivedAt,
    receivedAt: request.receivedAt,
    type: draft.type,
    schemaVersion: EVENT_SCHEMA_VERSION,
    attempt: state.folds.run.attempt,
    subject,
    parent: draft.parent,
    stepId: draft.stepId,
    actor: draft.actor,
    source,
    trace: draft.trace,
    late: late ? true : undefined,
    data: draft.data,
    // A normaliser's draft fits the schema of its type (ingest/normalize.ts checks it), which the type cannot tell.
  } as CanonicalEvent
  const json = JSON.stringify(event)
  foldEvent(state, event)
  run.placement = placementAfter(run.placement, event, state.folds.run.status)
  run.usageChanged ||= changesUsage(draft.type)
  const { shape, content } = digestsOf(event)
  const subjectText = `${subject.kind}/${subject.id}`
  run.committed.push({ seq, type: draft.type, subject: subjectText, json })
  out.canonical.push(
    `{"k":"${request.runKey}","n":${seq},"t":"${event.ts}","y":"${draft.type}","u":${JSON.stringify(subjectText)},"h":${shape},"d":${content},"e":${json}}`,
  )
  return seq
}

function knownKey(runKey: string, source: string, eventId: string): string {
  return `${runKey} ${source.length} ${source} ${eventId}`
}

/** Retries may write the same event with other white space or another order of keys. */
function sameContent(left: string, right: string): boolean {
  if (left === right) return true
  try {
    return isDeepStrictEqual(JSON.parse(left), JSON.parse(right))
  } catch {
    return false
  }
}

async function insertRuns(tx: Queries, creates: NewRun[]): Promise<Set<string>> {
  if (creates.length === 0) return new Set()
  const sorted = [...creates].sort((left, right) => (left.id < right.id ? -1 : 1))
  const rows = await tx<{ key: string }[]>`
    insert into runs (key, workspace_id, id, name, kind, queue, priority, available_at, max_attempts, lease_ms, concurrency_key, parent_run_id,
      input, metadata, tags, descriptor, request_hash, idempotency_key, status, created_at, updated_at)
    select key, workspace_id, id, name, kind, queue, priority, available_at, max_attempts, lease_ms, concurrency_key, parent_run_id,
      input::json, metadata::json, tags, descriptor::json, decode(request_hash, 'hex'), idempotency_key, 'queued', created_at, created_at
    from json_to_recordset(${JSON.stringify(sorted)}::text::json) as r(key uuid, workspace_id uuid, id text, name text, kind text, queue text,
      priority int, available_at timestamptz, max_attempts int, lease_ms int, concurrency_key text, parent_run_id text, input text, metadata text, tags text[],
      descriptor text, request_hash text, idempotency_key text, created_at timestamptz)
    on conflict do nothing returning key`
  return new Set(rows.map((row) => row.key))
}

/** One index look-up a wanted event, whatever the planner believes of the table: its `limit` keeps this from becoming a join of all. */
const lookup = (tx: Queries) => tx`
  select run_key, source, event_id, raw_seq, first_seq, seq_count, body from run_events_raw
  where run_key = q.k and source = q.s and event_id = q.i and event_id is not null limit 1`

async function findKnown(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, KnownEvent>> {
  const wanted: { k: string; s: string; i: string }[] = []
  for (const { runKey, items } of requests) {
    for (const { normalized } of items)
      if (normalized.ok && normalized.eventId !== undefined) wanted.push({ k: runKey, s: normalized.sourceName, i: normalized.eventId })
  }
  const known = new Map<string, KnownEvent>()
  if (wanted.length === 0) return known
  const rows = await tx<StoredRaw[]>`
    select r.* from json_to_recordset(${JSON.stringify(wanted)}::text::json) as q(k uuid, s text, i text)
    cross join lateral (${lookup(tx)}) r`.execute()
  for (const row of rows) {
    const seqs = Array.from({ length: row.seq_count }, (_, offset) => row.first_seq + offset)
    known.set(knownKey(row.run_key, row.source, row.event_id), { text: row.body, rawSeq: row.raw_seq, seqs })
  }
  return known
}

async function findProducers(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, ProducerRow>> {
  const wanted = requests.flatMap(({ runKey, producer }) => (producer ? [{ k: runKey, p: producer.id }] : []))
  if (wanted.length === 0) return new Map()
  const rows = await tx<ProducerRow[]>`
    select distinct p.run_key, p.producer_id, p.epoch, p.last_seq
    from json_to_recordset(${JSON.stringify(wanted)}::text::json) as q(k uuid, p text) join producers p on p.run_key = q.k and p.producer_id = q.p`.execute()
  return new Map(rows.map((row) => [`${row.run_key} ${row.producer_id}`, row]))
}

/** Who reads the sources whose events these are, locked until the commit. */
async function findOwners(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, string | null>> {
  const keys = requests.flatMap(({ runKey, source }) => (source ? [runKey] : []))
  if (keys.length === 0) return new Map()
  const rows = await tx<{ run_key: string; owner_id: string | null }[]>`
    select run_key, owner_id from run_sources where run_key = any(${pgArray(keys)}::uuid[]) order by run_key for update`.execute()
  return new Map(rows.map((row) => [row.run_key, row.owner_id]))
}

async function findReceipts(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, ReceiptRow>> {
  const wanted = requests.flatMap(({ runKey, requestKey }) => (requestKey ? [{ k: runKey, r: requestKey.key }] : []))
  if (wanted.length === 0) return new Map()
  const rows = await tx<ReceiptRow[]>`
    select a.run_key, a.request_key, encode(a.body_hash, 'hex') as body_hash, a.receipt::text as receipt
    from json_to_recordset(${JSON.stringify(wanted)}::text::json) as q(k uuid, r text) join append_receipts a on a.run_key = q.k and a.request_key = q.r`.execute()
  return new Map(rows.map((row) => [`${row.run_key} ${row.request_key}`, row]))
}

/** The placement in a row of `runs`, as one JSON object: the driver parses one column instead of many. Times are those of `Date.toISOString`. */
function placeColumns(tx: Queries) {
  const utc = (column: string) => tx`to_char(${tx(column)} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`
  return tx`json_build_object('queue', queue, 'priority', priority, 'availableAt', ${utc('available_at')}, 'workerId', worker_id,
    'leaseExpiresAt', ${utc('lease_expires_at')}, 'leaseRemainingMs', lease_remaining_ms, 'leaseLengthMs', lease_length_ms,
    'reservedUntil', ${utc('reserved_until')}, 'ttlExpiresAt', ${utc('ttl_expires_at')},
    'ttlRemainingMs', ttl_remaining_ms, 'cancelRequestedAt', ${utc('cancel_requested_at')}, 'maxAttempts', max_attempts, 'leaseMs', lease_ms,
    'leaseActive', coalesce(lease_expires_at > clock_timestamp(), false),
    'now', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))`
}

/** Both event tables and the runs in one statement, sent before this returns. */
async function insertEvents(tx: Queries, works: Map<string, RunWork>, out: Rows): Promise<void> {
  const changed = [...works.values()].filter((run) => run.committed.length > 0 || run.lastRawSeq > run.row.last_raw_seq)
  if (changed.length === 0) return
  const updates = changed.map((run) => {
    const { status, progress, attempt, error, startedAt, endedAt } = summary(run.state)
    return {
      k: run.row.key,
      n: run.lastSeq,
      r: run.lastRawSeq,
      s: status,
      p: progress,
      a: attempt,
      e: error === undefined || error === null ? null : JSON.stringify(error),
      st: startedAt ?? null,
      en: endedAt ?? null,
      ...(isMoved(run) && { place: run.placement }),
      ...(run.usageChanged && { usage: usageOf(run.state.folds) }),
    }
  })
  // Most groups move no run: then the statement does without.
  const moved = changed.some(isMoved)
  const used = changed.some((run) => run.usageChanged)
  const hooked = changed.some((run) => run.row.hooked)
  await tx`
      with raw as (
        insert into run_events_raw (run_key, raw_seq, received_at, first_seq, seq_count, format, raw_type, source, event_id, body)
        select k, n, at, f, c, fmt, rt, s, i, b from json_to_recordset(${`[${out.raw.join(',')}]`}::text::json)
          as r(k uuid, n bigint, at timestamptz, f bigint, c smallint, fmt text, rt text, s text, i text, b text)
      ), events as (
        select * from json_to_recordset(${`[${out.canonical.join(',')}]`}::text::json)
          as r(k uuid, n bigint, t timestamptz, y text, u text, h bigint, d bigint, e json)
      ), canonical as (
        insert into run_events_canonical (run_key, seq, ts, type, subject, shape, content, event) select k, n, t, y, u, h, d, e from events
      ) ${hooked ? outbox(tx) : tx``}
      update runs set last_seq = u.n, last_raw_seq = u.r, status = u.s, progress = u.p, attempt = u.a, error = u.e::json,
        started_at = u.st, ended_at = u.en, updated_at = greatest(clock_timestamp(), runs.updated_at)
        ${moved ? placementUpdate(tx) : tx``} ${used ? usageUpdate(tx) : tx``}
      from json_to_recordset(${JSON.stringify(updates)}::text::json)
        as u(k uuid, n bigint, r bigint, s text, p int, a int, e text, st timestamptz, en timestamptz, place json, usage json)
      where runs.key = u.k`.execute()
}

const isMoved = (run: RunWork) => run.placement !== (run.row.place ?? UNREAD)

/** Sets what the placement names, and leaves the rest. */
const placementUpdate = (tx: Queries) => tx`,
  reserved_until = case when u.place is null then runs.reserved_until end,
  queue = case when u.place->'queue' is null then runs.queue else u.place->>'queue' end,
  priority = case when u.place->'priority' is null then runs.priority else (u.place->>'priority')::int end,
  available_at = case when u.place->'availableAt' is null then runs.available_at else (u.place->>'availableAt')::timestamptz end,
  worker_id = case when u.place->'workerId' is null then runs.worker_id else u.place->>'workerId' end,
  lease_expires_at = case when u.place->'leaseExpiresAt' is null then runs.lease_expires_at else (u.place->>'leaseExpiresAt')::timestamptz end,
  lease_remaining_ms = case when u.place->'leaseRemainingMs' is null then runs.lease_remaining_ms else (u.place->>'leaseRemainingMs')::bigint end,
  lease_length_ms = case when u.place->'leaseLengthMs' is null then runs.lease_length_ms else (u.place->>'leaseLengthMs')::int end,
  ttl_expires_at = case when u.place->'ttlExpiresAt' is null then runs.ttl_expires_at else (u.place->>'ttlExpiresAt')::timestamptz end,
  ttl_remaining_ms = case when u.place->'ttlRemainingMs' is null then runs.ttl_remaining_ms else (u.place->>'ttlRemainingMs')::bigint end,
  cancel_requested_at = case when u.place->'cancelRequestedAt' is null then runs.cancel_requested_at else (u.place->>'cancelRequestedAt')::timestamptz end`

const usageUpdate = (tx: Queries) => tx`,
  input_tokens = case when u.usage is null then runs.input_tokens else least((u.usage->>'inputTokens')::numeric, 9007199254740991)::bigint end,
  output_tokens = case when u.usage is null then runs.output_tokens else least((u.usage->>'outputTokens')::numeric, 9007199254740991)::bigint end,
  cost_usd = case when u.usage is null then runs.cost_usd else (u.usage->>'costUsd')::float8 end,
  llm_calls = case when u.usage is null then runs.llm_calls else (u.usage->>'llmCalls')::int end,
  tool_calls = case when u.usage is null then runs.tool_calls else (u.usage->>'toolCalls')::int end,
  error_count = case when u.usage is null then runs.error_count else (u.usage->>'errorCount')::int end,
  model_usage = case when u.usage is null then runs.model_usage else u.usage->'models' end`

/** A delivery for each enabled endpoint of the workspace that wants the type, in the transaction of its event. */
const outbox = (tx: Queries) => tx`, outbox as (
  insert into webhook_deliveries (id, endpoint_id, workspace_id, run_key, run_id, seq, type, status, next_at, created_at)
  select gen_random_uuid(), w.id, w.workspace_id, e.k, r.id, e.n, e.y, 'pending', clock_timestamp(), clock_timestamp()
  from events e join runs r on r.key = e.k join webhook_endpoints w on w.workspace_id = r.workspace_id and w.enabled
  where exists (select from unnest(w.types) p where p = '*' or p = e.y or (right(p, 2) = '.*' and starts_with(e.y, left(p, -1))))
)`

/** What few requests have. Each statement is sent only while the transaction is known to be there. */
async function insertRest(connection: Dedicated, out: Rows): Promise<void> {
  const tx = connection.sql
  const producers = [...out.changedProducers].flatMap((key) => out.producers.get(key) ?? [])
  if (producers.length > 0) {
    assertHeld(connection)
    await tx`
      insert into producers (run_key, producer_id, epoch, last_seq)
      select run_key, producer_id, epoch, last_seq from json_to_recordset(${JSON.stringify(producers)}::text::json)
        as p(run_key uuid, producer_id text, epoch bigint, last_seq bigint)
      on conflict (run_key, producer_id) do update set epoch = excluded.epoch, last_seq = excluded.last_seq, updated_at = clock_timestamp()`
  }
  if (out.cursors.size > 0) await storeCursors(connection, out)
  if (out.receipts.length > 0) {
    assertHeld(connection)
    await tx`
      insert into append_receipts (run_key, request_key, body_hash, receipt)
      select run_key, request_key, decode(body_hash, 'hex'), receipt::json from json_to_recordset(${JSON.stringify(out.receipts)}::text::json)
        as a(run_key uuid, request_key text, body_hash text, receipt text)`
  }
}

/** Events came, so what failed before is over. */
async function storeCursors(connection: Dedicated, out: Rows): Promise<void> {
  assertHeld(connection)
  const rows = [...out.cursors].map(([key, { cursor }]) => ({ key, cursor }))
  await connection.sql`
    update run_sources s set cursor = c.cursor, failures = 0, error = null
    from json_to_recordset(${JSON.stringify(rows)}::text::json) as c(key uuid, cursor text) where s.run_key = c.key`
}
