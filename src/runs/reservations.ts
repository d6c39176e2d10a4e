/**
 * Picking runs for claimers: a reservation keeps a run from other claimers, on whichever instance, until its claim is appended.
 *
 * Runs are picked by priority, then age, and none that is free is passed over. A reserved run takes a place of its queue like a held one,
 * so that limits hold whatever becomes of the claim. A reservation that nobody turned into a claim is undone after a few seconds (leases.ts).
 *
 * Most queues have no limits: one statement then reserves for all claimers that wait. Where a queue has some, its row in `queues` is
 * locked first: what is counted under that lock, no other instance can change but downwards.
 */

import type { Queries, Sql } from '../db/client.js'
import { utcColumn, utcNow } from '../db/utc.js'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import type { PlacedRun } from '../log/append-request.js'
import { pgArray } from '../log/states.js'
import { type RunTableRow, recordColumns } from './record.js'

const RESERVATION_MS = 5000
/** What a run has before its first attempt, and more. */
const SHORT_EVENTS = 10
/** Candidates that are looked at in one go where concurrency keys rule some out. */
const PAGE_ROWS = 200

export interface ReservedRun extends RunTableRow {
  reserved_until: string
  lease_ms: number | null
  lease_remaining_ms: number | null
  ttl_expires_at: string | null
  ttl_remaining_ms: number | null
  /** The database's clock. */
  now: string
  /** Its events, where they are few: the claim is folded onto them. */
  log: CanonicalEvent[] | null
}

export interface Reserved {
  runs: ReservedRun[]
  /** A queue among them has a row in `queues`. */
  hasLimits: boolean
  /** There was more, which another instance has just taken or an append has locked: to be looked for again. */
  isContended: boolean
}

interface Limits {
  name: string
  concurrency: number | null
  key_concurrency: number | null
  paused: boolean
}

export interface Want {
  workspaceId: string
  queues: readonly string[]
  count: number
}

/** What is in the index runs_waiting, and may be claimed. */
const waiting = (sql: Queries) =>
  sql`status = 'queued' and queue is not null and available_at is null and reserved_until is null and cancel_requested_at is null`
const byPriorityAndAge = (sql: Queries) => sql`order by priority desc nulls last, key`
const reservedColumns = (sql: Sql) => sql`${recordColumns(sql)}, ${utcColumn(sql, 'reserved_until')}, lease_ms, lease_remaining_ms,
  ${utcColumn(sql, 'ttl_expires_at')}, ttl_remaining_ms, ${utcNow(sql)} as now, case when last_seq <= ${SHORT_EVENTS} then (
    select json_agg(event order by seq) from run_events_canonical where run_key = runs.key
  ) end as log`
/**
 * No reservation waits for the disk: a claim that builds on it waits for its own commit, which comes after it in the log of the database, and
 * a reservation that a crash undoes leaves its run to be claimed. Until the end of the transaction; to be selected once.
 */
const unflushed = (sql: Queries) => sql`set_config('synchronous_commit', 'off', true)`
/** Whole milliseconds: the text that names a reservation has no more. */
const until = (sql: Queries) => sql`date_trunc('milliseconds', clock_timestamp()) + ${RESERVATION_MS} * interval '1 ms'`

/** Reserves up to `count` runs, the first to be claimed first. */
export async function reserve(sql: Sql, want: Want, expectLimits: boolean): Promise<Reserved> {
  if (!expectLimits) {
    const found = await reserveUnlimited(sql, want)
    if (!found.hasLimits) return found
  }
  return reserveLimited(sql, want)
}

/**
 * Statements that are planned once, not for each claim, which would cost more than to run them: what they take is hidden from the planner
 * (`limit (select ...)`), and keys are looked up one by one (`any(array(...))`), however many there may be.
 */
async function reserveUnlimited(sql: Sql, { workspaceId, queues, count }: Want): Promise<Reserved> {
  const [only] = queues
  // Of one queue, what is locked is passed over. Of several, the best of all are found without locks: else more would be locked than is taken.
  const picked =
    queues.length === 1 && only !== undefined
      ? sql`
    limits as materialized (select count(*) as limits, 0 as found, ${unflushed(sql)} from queues where workspace_id = ${workspaceId} and name = ${only}),
    picked as materialized (
      select key from runs where workspace_id = ${workspaceId} and queue = ${only} and ${waiting(sql)} ${byPriorityAndAge(sql)}
      limit (select ${count}::int) for update skip locked
    )`
      : sql`
    found as materialized (
      select key from unnest(${pgArray(queues)}::text[]) q(name) cross join lateral (
        select key, priority from runs where workspace_id = ${workspaceId} and queue = q.name and ${waiting(sql)} ${byPriorityAndAge(sql)}
        limit (select ${count}::int)
      ) r order by priority desc, key limit (select ${count}::int)
    ),
    limits as materialized (
      select count(*) as limits, (select count(*) from found) as found, ${unflushed(sql)} from queues
      where workspace_id = ${workspaceId} and name = any(${pgArray(queues)}::text[])
    ),
    picked as materialized (select key from runs where key = any(array(select key from found)) and ${waiting(sql)} for update skip locked)`
  const rows = await sql<(Partial<ReservedRun> & { limits: number; found: number })[]>`
    with ${picked}, reserved as (
      update runs set reserved_until = ${until(sql)} where key = any(array(select key from picked)) and (select limits from limits) = 0
      returning ${reservedColumns(sql)}
    )
    select l.limits, l.found, r.* from limits l left join reserved r on true`
  const runs = rows.filter((row): row is ReservedRun & { limits: number; found: number } => typeof row.key === 'string').sort(byTurn)
  const [first] = rows
  return { runs, hasLimits: (first?.limits ?? 0) > 0, isContended: (first?.found ?? 0) > runs.length }
}

function byTurn(left: RunTableRow, right: RunTableRow): number {
  return right.priority - left.priority || (left.key < right.key ? -1 : 1)
}

async function reserveLimited(sql: Sql, { workspaceId, queues, count }: Want): Promise<Reserved> {
  return sql.begin(async (tx): Promise<Reserved> => {
    const limits = await tx<Limits[]>`
      select name, concurrency, key_concurrency, paused, ${unflushed(tx)} from queues
      where workspace_id = ${workspaceId} and name = any(${pgArray(queues)}::text[]) order by name for update`
    const rooms = await roomsOf(tx, workspaceId, queues, limits)
    const picked: string[] = []
    for (let wasFull = true; wasFull && picked.length < count; ) {
      const open = queues.flatMap((name) => {
        const room = rooms.get(name)
        return room && room.left > 0 ? [{ name, full: room.fullKeys(), count: Math.min(room.left, PAGE_ROWS) }] : []
      })
      if (open.length === 0) break
      const page = await tx<{ key: string; queue: string; concurrency_key: string | null }[]>`
        select key, queue, concurrency_key from json_to_recordset(${JSON.stringify(open)}::text::json) as q(name text, "full" json, count int)
        cross join lateral (
          select key, queue, concurrency_key, priority from runs
          where workspace_id = ${workspaceId} and queue = q.name and ${waiting(tx)} and key <> all(${pgArray(picked)}::uuid[])
            and (concurrency_key is null or concurrency_key not in (select json_array_elements_text(q.full)))
          ${byPriorityAndAge(tx)} limit q.count
        ) r order by priority desc, key limit ${PAGE_ROWS}`
      const before = picked.length
      for (const row of page) {
        if (picked.length < count && rooms.get(row.queue)?.take(row.concurrency_key)) picked.push(row.key)
      }
      wasFull = picked.length > before && page.length > picked.length - before
    }
    const runs = await tx<ReservedRun[]>`
      with free as materialized (
        select key from runs where key = any(${pgArray(picked)}::uuid[]) and ${waiting(tx)} for update skip locked
      )
      update runs set reserved_until = ${until(tx)} where key in (select key from free) returning ${reservedColumns(sql)}`
    return { runs: [...runs].sort(byTurn), hasLimits: limits.length > 0, isContended: picked.length > runs.length }
  })
}

interface Room {
  left: number
  take(key: string | null): boolean
  fullKeys(): string[]
}

async function roomsOf(tx: Queries, workspaceId: string, queues: readonly string[], limits: readonly Limits[]): Promise<Map<string, Room>> {
  const counted = limits.filter((limit) => limit.concurrency !== null || limit.key_concurrency !== null).map((limit) => limit.name)
  const taken = await tx<{ queue: string; concurrency_key: string | null; count: number }[]>`
    select queue, concurrency_key, count(*) as count from runs
    where workspace_id = ${workspaceId} and queue = any(${pgArray(counted)}::text[]) and (worker_id is not null or reserved_until is not null)
    group by queue, concurrency_key`
  return new Map(
    queues.map((name) => {
      const limit = limits.find((one) => one.name === name)
      const own = taken.filter((row) => row.queue === name)
      const total = own.reduce((sum, row) => sum + row.count, 0)
      const keys = new Map(own.flatMap((row) => (row.concurrency_key === null ? [] : [[row.concurrency_key, row.count]])))
      const perKey = limit?.key_concurrency ?? Number.POSITIVE_INFINITY
      const room: Room = {
        left: limit?.paused ? 0 : (limit?.concurrency ?? Number.MAX_SAFE_INTEGER) - total,
        take(key) {
          const used = key === null ? 0 : (keys.get(key) ?? 0)
          if (room.left <= 0 || (key !== null && used >= perKey)) return false
          if (key !== null) keys.set(key, used + 1)
          room.left--
          return true
        },
        fullKeys: () => [...keys].flatMap(([key, used]) => (used >= perKey ? [key] : [])),
      }
      return [name, room]
    }),
  )
}

/** The placement of a run as its reservation has found it: it waits, so nobody holds it. */
export function placeOf(run: ReservedRun): PlacedRun {
  return {
    queue: run.queue,
    priority: run.priority,
    availableAt: run.available_at,
    workerId: run.worker_id,
    leaseExpiresAt: run.lease_expires_at,
    leaseRemainingMs: run.lease_remaining_ms,
    leaseLengthMs: run.lease_length_ms,
    ttlExpiresAt: run.ttl_expires_at,
    ttlRemainingMs: run.ttl_remaining_ms,
    cancelRequestedAt: run.cancel_requested_at,
    reservedUntil: run.reserved_until,
    maxAttempts: run.max_attempts,
    leaseMs: run.lease_ms,
    now: run.now,
  }
}

/** Gives back what was reserved and is not wanted after all. */
export async function unreserve(sql: Sql, runs: readonly Pick<ReservedRun, 'key' | 'reserved_until'>[]): Promise<void> {
  await sql`
    update runs r set reserved_until = null from json_to_recordset(${JSON.stringify(runs)}::text::json) as u(key uuid, reserved_until timestamptz)
    where r.key = u.key and r.reserved_until = u.reserved_until`
}

/** Which of the queues have a run that may be free: one probe of the index for each. */
export async function queuesWithRuns(sql: Sql, wanted: readonly { w: string; q: string }[]): Promise<{ w: string; q: string }[]> {
  return sql<{ w: string; q: string }[]>`
    select p.w, p.q from json_to_recordset(${JSON.stringify(wanted)}::text::json) as p(w uuid, q text)
    where exists (select from runs where workspace_id = p.w and queue = p.q and ${waiting(sql)} limit 1)`
}
