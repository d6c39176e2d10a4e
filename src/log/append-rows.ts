/** The statements of an append: what it needs to know, and what it stores, each for a whole group at once. */

import type { Queries } from '../db/client.js'
import type { Dedicated } from '../db/dedicated.js'
import { runLarge } from '../db/run-large.js'
import { utc, utcNow } from '../db/utc.js'
import { summary } from '../projections/fold.js'
import { usageOf } from '../projections/usage.js'
import type { AppendRequest, NewRun } from './append-request.js'
import { type KnownEvent, knownKey, needsPlace, type ProducerRow, type ReceiptRow, type Rows, type RunRow, type RunWork, UNREAD } from './append-work.js'
import { parametersOf, storingEvents } from './event-rows.js'
import { pgArray, type Told } from './states.js'

interface StoredRaw {
  run_key: string
  source: string
  event_id: string
  raw_seq: number
  first_seq: number
  seq_count: number
  body: string
}

/** The connection was lost before the COMMIT was sent: nothing is stored. */
export class ConnectionLost extends Error {
  readonly code = 'CONNECTION_CLOSED'
}

/** To be asked before anything is sent that may not run outside the transaction. */
export function assertHeld(connection: Dedicated): void {
  if (connection.isLost()) throw new ConnectionLost('the connection was lost within the transaction')
}

export async function insertRuns(tx: Queries, creates: NewRun[]): Promise<Set<string>> {
  if (creates.length === 0) return new Set()
  const sorted = [...creates].sort((left, right) => (left.id < right.id ? -1 : 1))
  const rows = await tx<{ key: string }[]>`
    insert into runs (key, workspace_id, id, name, kind, queue, priority, available_at, max_attempts, lease_ms, concurrency_key, parent_run_id,
      input, metadata, scenario, environment, tags, descriptor, request_hash, idempotency_key, status, created_at, updated_at)
    select key, workspace_id, id, name, kind, queue, priority, available_at, max_attempts, lease_ms, concurrency_key, parent_run_id,
      input::json, metadata::json, scenario, environment, tags, descriptor::json, decode(request_hash, 'hex'), idempotency_key, 'queued', created_at, created_at
    from json_to_recordset(${JSON.stringify(sorted)}::text::json) as r(key uuid, workspace_id uuid, id text, name text, kind text, queue text,
      priority int, available_at timestamptz, max_attempts int, lease_ms int, concurrency_key text, parent_run_id text, input text, metadata text, scenario text, environment text, tags text[],
      descriptor text, request_hash text, idempotency_key text, created_at timestamptz)
    on conflict do nothing returning key`
  const created = new Set(rows.map((row) => row.key))
  const sources = creates.flatMap(({ key, workspace_id, source }) => (source !== null && created.has(key) ? [{ key, workspace_id, source }] : []))
  if (sources.length > 0) {
    await tx`
      insert into run_sources (run_key, workspace_id, config, status)
      select key, workspace_id, source::json, 'waiting' from json_to_recordset(${JSON.stringify(sources)}::text::json)
        as s(key uuid, workspace_id uuid, source text)`
  }
  return created
}

/** One index look-up a wanted event, whatever the planner believes of the table: its `limit` keeps this from becoming a join of all. */
const lookup = (tx: Queries) => tx`
  select run_key, source, event_id, raw_seq, first_seq, seq_count, body from run_events_raw
  where run_key = q.k and source = q.s and event_id = q.i and event_id is not null limit 1`

export async function findKnown(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, KnownEvent>> {
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

export async function findProducers(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, ProducerRow>> {
  const wanted = requests.flatMap(({ runKey, producer }) => (producer ? [{ k: runKey, p: producer.id }] : []))
  if (wanted.length === 0) return new Map()
  const rows = await tx<ProducerRow[]>`
    select distinct p.run_key, p.producer_id, p.epoch, p.last_seq
    from json_to_recordset(${JSON.stringify(wanted)}::text::json) as q(k uuid, p text) join producers p on p.run_key = q.k and p.producer_id = q.p`.execute()
  return new Map(rows.map((row) => [`${row.run_key} ${row.producer_id}`, row]))
}

/** Who reads the sources whose events these are, locked until the commit; and those of runs that a command may retry, so that all are locked in their order. */
export async function findOwners(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, string | null>> {
  const keys = requests.flatMap(({ runKey, source, create, decide }) => (source || (decide && !create) ? [runKey] : []))
  if (keys.length === 0) return new Map()
  const rows = await tx<{ run_key: string; owner_id: string | null }[]>`
    select run_key, owner_id from run_sources where run_key = any(${pgArray(keys)}::uuid[]) order by run_key for update`.execute()
  return new Map(rows.map((row) => [row.run_key, row.owner_id]))
}

export async function findReceipts(tx: Queries, requests: readonly AppendRequest[]): Promise<Map<string, ReceiptRow>> {
  const wanted: { k: string; r: string }[] = []
  for (const { runKey, requestKey } of requests) {
    if (requestKey) wanted.push({ k: runKey, r: requestKey.key })
    if (requestKey?.also !== undefined) wanted.push({ k: runKey, r: requestKey.also })
  }
  if (wanted.length === 0) return new Map()
  const rows = await tx<ReceiptRow[]>`
    select a.run_key, a.request_key, encode(a.body_hash, 'hex') as body_hash, a.receipt::text as receipt
    from json_to_recordset(${JSON.stringify(wanted)}::text::json) as q(k uuid, r text) join append_receipts a on a.run_key = q.k and a.request_key = q.r`.execute()
  return new Map(rows.map((row) => [`${row.run_key} ${row.request_key}`, row]))
}

/** The rows of the runs, locked in the order of their keys. */
export async function lockRuns(tx: Queries, runKeys: Iterable<string>, requests: readonly AppendRequest[]): Promise<RunRow[]> {
  return await tx<RunRow[]>`
    select key, id, workspace_id, last_seq, last_raw_seq, pg_current_xact_id()::text as xid,
      (select exists (select from webhook_endpoints where enabled)) as hooked, case when status = 'failed' then error end as error
      ${requests.some(needsPlace) ? tx`, ${placeColumns(tx)} as place` : tx``}
    from runs where key = any(${pgArray([...runKeys])}::uuid[]) order by key for update`.execute()
}

/** The placement in a row of `runs`, as one JSON object: the driver parses one column instead of many. Times are those of `Date.toISOString`. */
function placeColumns(tx: Queries) {
  return tx`json_build_object('queue', queue, 'priority', priority, 'availableAt', ${utc(tx, 'available_at')}, 'workerId', worker_id,
    'leaseExpiresAt', ${utc(tx, 'lease_expires_at')}, 'leaseRemainingMs', lease_remaining_ms, 'leaseLengthMs', lease_length_ms,
    'reservedUntil', ${utc(tx, 'reserved_until')}, 'ttlExpiresAt', ${utc(tx, 'ttl_expires_at')},
    'ttlRemainingMs', ttl_remaining_ms, 'cancelRequestedAt', ${utc(tx, 'cancel_requested_at')}, 'maxAttempts', max_attempts, 'leaseMs', lease_ms,
    'now', ${utcNow(tx)})`
}

/**
 * The events and the runs in one statement, sent before this returns.
 * @param guarded by itself, without a transaction around it: it fails, and stores nothing, unless every run is where `work` began
 */
export async function insertEvents(tx: Queries, works: Map<string, RunWork>, out: Rows, guarded = false): Promise<void> {
  const changed = [...works.values()].filter((run) => run.committed.length > 0 || run.lastRawSeq > run.row.last_raw_seq)
  if (changed.length === 0) return
  // What is undefined is left out: a member that is not there is null in the record.
  const updates = changed.map((run) => {
    const told = summary(run.state)
    run.told = told
    return {
      k: run.row.key,
      f: run.row.last_seq,
      g: run.row.last_raw_seq,
      b: run.firstStatus === 'running' ? undefined : run.firstStatus,
      w: run.holder,
      v: run.reservedUntil ?? undefined,
      n: run.lastSeq,
      r: run.lastRawSeq,
      ...((isMoved(run) || isNews(told, run.row.told)) && {
        s: told.status,
        p: told.progress ?? undefined,
        a: told.attempt,
        e: told.error ? JSON.stringify(told.error) : undefined,
        st: told.startedAt ?? undefined,
        en: told.endedAt ?? undefined,
      }),
      ...(isMoved(run) && { ...run.placement, moved: true, placed: run.placement.queue !== undefined }),
      ...(run.usageChanged && { ...usageOf(run.state.folds), used: true }),
    }
  })
  const statement = storingStatement({
    guarded,
    // What no run of the group needs, the statement does without.
    held: changed.some((run) => run.holder !== undefined || run.reservedUntil),
    told: updates.some((update) => 's' in update),
    moved: changed.some(isMoved),
    used: changed.some((run) => run.usageChanged),
    hooked: changed.some((run) => run.row.hooked),
  })
  const parameters = [...parametersOf(out.events), JSON.stringify(updates)]
  await runLarge(tx, statement, guarded ? [...parameters, String(changed.length)] : parameters)
}

/** Whether the row says something else of the run, as far as it is known what it says. */
function isNews(now: Told, before: Told | undefined): boolean {
  return (
    before === undefined ||
    now.error !== null ||
    before.error !== null ||
    now.status !== before.status ||
    now.progress !== before.progress ||
    now.attempt !== before.attempt ||
    now.startedAt !== before.startedAt ||
    now.endedAt !== before.endedAt
  )
}

interface Shape {
  guarded: boolean
  /** There is a worker or a reservation to be made sure of. */
  held: boolean
  /** The row has to say something else of a run. */
  told: boolean
  moved: boolean
  used: boolean
  /** There may be webhooks. */
  hooked: boolean
}

/**
 * Parameters: the events, three (see event-rows.ts); the updates of runs; where it is guarded, their number.
 *
 * The runs come first, in the order of their keys: whoever writes has their locks before it inserts anything, so that two writers do not wait for each other. Where it is
 * guarded, a row that has moved on, or has failed for its log, or that its worker or its reservation has lost, is not among those that are updated. Then no event is inserted,
 * and the cast at the end fails, which undoes the update of the others: to lock the rows and to compare them before they are updated took a fifth longer.
 */
function storingStatement({ guarded, held, told, moved, used, hooked }: Shape): string {
  return `
    with updated as (
      update runs set last_seq = u.n, last_raw_seq = u.r, updated_at = greatest(clock_timestamp(), runs.updated_at)
        ${told ? toldUpdate(moved) : ''} ${moved ? PLACEMENT_UPDATE : ''} ${used ? USAGE_UPDATE : ''}
      from (
        select * from json_to_recordset($4::text::json) as u(k uuid, f bigint, g bigint, b text, n bigint, r bigint
          ${held ? ', w text, v timestamptz' : ''} ${told ? TOLD_COLUMNS : ''} ${moved ? PLACEMENT_COLUMNS : ''} ${used ? USAGE_COLUMNS : ''})
        order by k
      ) u where runs.key = u.k ${guarded ? UNMOVED : ''} ${guarded && held ? HELD : ''} returning 1
    ), ${storingEvents(guarded ? '(select count(*) from updated) = $5::int' : 'true')}
    ${hooked ? OUTBOX : ''}
    select ${guarded ? guard(hooked) : 'count(*)'} from updated`
}

const UNMOVED = "and runs.last_seq = u.f and runs.last_raw_seq = u.g and runs.status = coalesce(u.b, 'running')"
/** Of a run that has a worker: the run listens to it now (`isHeld` in domain/placement, in the words of the database). */
export const LEASE_HOLDS =
  'case when runs.lease_expires_at is null then runs.lease_remaining_ms is distinct from 0 else runs.lease_expires_at > clock_timestamp() end'
const HELD = `and (u.w is null or runs.worker_id = u.w and ${LEASE_HOLDS})
  and (u.v is null or runs.reserved_until = u.v)`

const ENDPOINTS = '(select from webhook_endpoints where enabled)'
const guard = (hooked: boolean) => `case when count(*) = $5::int ${hooked ? '' : `and not exists ${ENDPOINTS}`} then 0
  else ('nothing is stored: ' || count(*) || ' of ' || $5 || ' runs are where they were${hooked ? '' : ', or there are webhooks now'}')::int end`

const isMoved = (run: RunWork) => run.placement !== (run.row.place ?? UNREAD)

/** A run that has ended, of which no more was to be known, is freed: its place in the queue stays as it is. */
const PLACEMENT_UPDATE = `,
  reserved_until = case when u.moved then null else runs.reserved_until end,
  queue = case when u.placed then u.queue else runs.queue end,
  priority = case when u.placed then u.priority else runs.priority end,
  available_at = case when u.placed then u."availableAt" else runs.available_at end,
  worker_id = case when u.moved then u."workerId" else runs.worker_id end,
  lease_expires_at = case when u.moved then u."leaseExpiresAt" else runs.lease_expires_at end,
  lease_remaining_ms = case when u.moved then u."leaseRemainingMs" else runs.lease_remaining_ms end,
  lease_length_ms = case when u.moved then u."leaseLengthMs" else runs.lease_length_ms end,
  cancel_requested_at = case when u.moved then u."cancelRequestedAt" else runs.cancel_requested_at end`
const PLACEMENT_COLUMNS = `, moved bool, placed bool, queue text, priority int, "availableAt" timestamptz, "workerId" text, "leaseExpiresAt" timestamptz,
  "leaseRemainingMs" bigint, "leaseLengthMs" int, "cancelRequestedAt" timestamptz, "ttlExpiresAt" timestamptz, "ttlRemainingMs" bigint`

/**
 * The session's time (`session.ttlMs`) runs while the run does, whoever started or suspended it; else what is left of it is kept, and a new attempt has all of it.
 * The descriptor is looked into only when a run begins to run.
 */
const toldUpdate = (moved: boolean) => `,
  status = coalesce(u.s, runs.status), attempt = coalesce(u.a, runs.attempt),
  progress = case when u.s is null then runs.progress else u.p end,
  error = case when u.s is null then runs.error else u.e::json end,
  started_at = case when u.s is null then runs.started_at else u.st end,
  ended_at = case when u.s is null then runs.ended_at else u.en end,
  ttl_expires_at = case when u.s is null or u.s = 'running' and runs.status = 'running' then runs.ttl_expires_at when u.s = 'running' then coalesce(
    ${moved ? 'u."ttlExpiresAt",' : ''} runs.ttl_expires_at,
    clock_timestamp() + interval '1 millisecond' * coalesce(runs.ttl_remaining_ms, case when json_typeof(runs.descriptor->'session'->'ttlMs') = 'number'
      then least(greatest((runs.descriptor->'session'->>'ttlMs')::numeric, 0), 315360000000)::bigint end)) end,
  ttl_remaining_ms = case when u.s is null then runs.ttl_remaining_ms when u.s = 'suspended' then coalesce(${moved ? 'u."ttlRemainingMs",' : ''} runs.ttl_remaining_ms,
    case when runs.ttl_expires_at is not null then greatest(0, extract(epoch from runs.ttl_expires_at - clock_timestamp()) * 1000)::bigint end) end`
const TOLD_COLUMNS = ', s text, p int, a int, e text, st timestamptz, en timestamptz'

const USAGE_UPDATE = `,
  input_tokens = case when u.used then least(u."inputTokens", 9007199254740991)::bigint else runs.input_tokens end,
  output_tokens = case when u.used then least(u."outputTokens", 9007199254740991)::bigint else runs.output_tokens end,
  cost_usd = case when u.used then u."costUsd" else runs.cost_usd end,
  llm_calls = case when u.used then u."llmCalls" else runs.llm_calls end,
  tool_calls = case when u.used then u."toolCalls" else runs.tool_calls end,
  error_count = case when u.used then u."errorCount" else runs.error_count end,
  model_usage = case when u.used then u.models else runs.model_usage end,
  signals = case when u.used then u.signals else runs.signals end,
  decisions = case when u.used then u.decisions else runs.decisions end,
  decision_outcome = case when u.used then u.outcome else runs.decision_outcome end,
  agents = case when u.used then u.agents else runs.agents end`
const USAGE_COLUMNS = `, used bool, "inputTokens" numeric, "outputTokens" numeric, "costUsd" float8, "llmCalls" int, "toolCalls" int, "errorCount" int,
  models json, signals int, decisions int, outcome smallint, agents json`

/**
 * A delivery for each enabled endpoint of the workspace that wants the type, in the transaction of its event. Its id is a UUIDv7, which PostgreSQL
 * has none of before 18: 48 bits of milliseconds, then 12 of the seq as a counter (RFC 9562, section 6.2), so that they are listed in their order.
 * Endpoints are asked for each type once, not for each event: a hundred of them took five times as long as the append itself.
 */
const OUTBOX = `, hooked as (
  select e.k, e.n, e.y, r.id, r.workspace_id from events e join runs r on r.key = e.k where e.n is not null and (select exists ${ENDPOINTS})
), wanted as materialized (
  select array_agg(w.id) as ids, t.workspace_id, t.y from (select distinct workspace_id, y from hooked) t join webhook_endpoints w on w.workspace_id = t.workspace_id and w.enabled
  where exists (select from unnest(w.types) p where p = '*' or p = t.y or (right(p, 2) = '.*' and starts_with(t.y, left(p, -1)))) group by t.workspace_id, t.y
), outbox as (
  insert into webhook_deliveries (id, endpoint_id, workspace_id, run_key, run_id, seq, type, status, next_at, created_at)
  select encode(int8send(((extract(epoch from statement_timestamp()) * 1000)::bigint << 16) | 28672 | (e.n & 4095))
      || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid,
    endpoint, w.workspace_id, e.k, e.id, e.n, e.y, 'pending', statement_timestamp(), statement_timestamp()
  from hooked e join wanted w on w.workspace_id = e.workspace_id and w.y = e.y, unnest(w.ids) as endpoint
)`

/** What few requests have. Each statement is sent only while the transaction is known to be there. */
export async function insertRest(connection: Dedicated, out: Rows): Promise<void> {
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
  if (out.retried.size > 0) {
    assertHeld(connection)
    // Read anew from the stored cursor, by whoever comes first: who reads it now has the last attempt's.
    await tx`
      update run_sources set status = 'waiting', failures = 0, error = null, next_at = clock_timestamp(), owner_id = null, owner_expires_at = null
      where run_key = any(${pgArray([...out.retried])}::uuid[])`
  }
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
