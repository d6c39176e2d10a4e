/** Queues as records: their limits, which are rows, and what waits and runs in them, which is counted. A queue without a row has no limits. */
import { type Static, Type } from '@sinclair/typebox'
import type { Sql } from '../db/client.js'

const nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) => Type.Union([schema, Type.Null()])
const limit = (description: string) => Type.Union([Type.Integer({ minimum: 1, maximum: 1_000_000 }), Type.Null()], { description })

export const QueueLimits = Type.Object(
  {
    concurrency: Type.Optional(limit('runs of the queue that are held at once; null, or left out: any number')),
    keyConcurrency: Type.Optional(limit('runs with the same concurrencyKey that are held at once')),
    paused: Type.Optional(Type.Boolean({ description: 'no run is handed out; false when left out' })),
  },
  { $id: 'QueueLimits', additionalProperties: false },
)
export type QueueLimits = Static<typeof QueueLimits>

export const QueueRecord = Type.Object(
  {
    name: Type.String(),
    concurrency: nullable(Type.Integer()),
    keyConcurrency: nullable(Type.Integer()),
    paused: Type.Boolean(),
    depth: Type.Integer({ description: 'runs that can be claimed, or could but for a limit' }),
    delayed: Type.Integer({ description: 'runs that wait for their time' }),
    running: Type.Integer({ description: 'runs that are held' }),
    oldest: nullable(Type.String({ format: 'date-time', description: 'when the oldest run of `depth` was created' })),
  },
  { $id: 'Queue' },
)
export type QueueRecord = Static<typeof QueueRecord>

/** The queues that have limits or runs, by name. */
export async function listQueues(sql: Sql, workspaceId: string, name?: string): Promise<QueueRecord[]> {
  const only = name === undefined ? sql`` : sql`and queue = ${name}`
  return sql<QueueRecord[]>`
    with counts as (
      select queue, 0 as depth, 0 as delayed, count(*) as running, null::uuid as oldest from runs
      where workspace_id = ${workspaceId} ${only} and queue is not null and worker_id is not null and (worker_id is not null or reserved_until is not null) group by queue
      union all
      select queue, count(*), 0, 0, min(key::text)::uuid from runs
      where workspace_id = ${workspaceId} ${only} and status = 'queued' and queue is not null and available_at is null and reserved_until is null group by queue
      union all
      select queue, 0, count(*), 0, null from runs
      where workspace_id = ${workspaceId} ${only} and status = 'queued' and queue is not null and available_at is not null group by queue
      union all
      select name, 0, 0, 0, null from queues where workspace_id = ${workspaceId} ${name === undefined ? sql`` : sql`and name = ${name}`}
    ), totals as (
      select queue, sum(depth)::int as depth, sum(delayed)::int as delayed, sum(running)::int as running, min(oldest::text)::uuid as oldest from counts group by queue
    )
    select t.queue as name, q.concurrency, q.key_concurrency as "keyConcurrency", coalesce(q.paused, false) as paused, t.depth, t.delayed, t.running,
      (select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') from runs where key = t.oldest) as oldest
    from totals t left join queues q on q.workspace_id = ${workspaceId} and q.name = t.queue
    order by t.queue`
}

/** Sets all limits of the queue: what is left out is none. */
export async function setLimits(sql: Sql, workspaceId: string, name: string, limits: QueueLimits): Promise<void> {
  await sql`
    insert into queues (workspace_id, name, concurrency, key_concurrency, paused, updated_at)
    values (${workspaceId}, ${name}, ${limits.concurrency ?? null}, ${limits.keyConcurrency ?? null}, ${limits.paused ?? false}, clock_timestamp())
    on conflict (workspace_id, name) do update
    set concurrency = excluded.concurrency, key_concurrency = excluded.key_concurrency, paused = excluded.paused, updated_at = excluded.updated_at`
}
