/** Deliveries as their operator sees them: listed, sent again by hand; and removed when they are old. What is on its way is in outbox.ts. */

import { type Static, Type } from '@sinclair/typebox'
import type { Sql } from '../db/client.js'
import { utc } from '../db/utc.js'
import { uuidv7 } from '../domain/ids.js'
import { RunplaneError } from '../errors.js'
import { pgArray } from '../log/states.js'
import { webhookNotFound } from './endpoints.js'

const BATCH = 1000

export const DELIVERY_STATUSES = ['pending', 'delivered', 'dead'] as const
export type DeliveryStatus = (typeof DELIVERY_STATUSES)[number]

const optionalTime = Type.Union([Type.String({ format: 'date-time' }), Type.Null()])
export const Delivery = Type.Object(
  {
    id: Type.String({ format: 'uuid', description: 'the `webhook-id` of each attempt' }),
    runId: Type.String(),
    seq: Type.Integer(),
    type: Type.String(),
    status: Type.Union(DELIVERY_STATUSES.map((status) => Type.Literal(status))),
    attempts: Type.Integer({ description: 'since it was written, or sent again by hand' }),
    lastStatus: Type.Union([Type.Integer(), Type.Null()], { description: 'of the last answer' }),
    lastError: Type.Union([Type.String(), Type.Null()]),
    lastAnswer: Type.Union([Type.String(), Type.Null()], { description: 'the beginning of the last answer, 2 KiB at most' }),
    createdAt: Type.String({ format: 'date-time' }),
    nextAttemptAt: Type.Union([Type.String({ format: 'date-time' }), Type.Null()], {
      description: 'not before; later where an earlier event of its run waits. Null while it is being sent, and once it has ended',
    }),
    endedAt: optionalTime,
  },
  { $id: 'Delivery' },
)
export type Delivery = Static<typeof Delivery>

interface DeliveryRow {
  id: string
  run_id: string
  seq: number
  type: string
  status: DeliveryStatus
  attempts: number
  last_status: number | null
  last_error: string | null
  last_answer: string | null
  created_at: string
  next_at: string | null
  ended_at: string | null
}

export interface DeliveryPage {
  data: Delivery[]
  nextCursor?: string
}

export interface SweepOptions {
  keepDeliveredMs: number
  keepDeadMs: number
}

export type Deliveries = ReturnType<typeof createDeliveries>

/**
 * @param retryForMs as of those that send
 * @param onDue deliveries were made due by hand
 */
export function createDeliveries({ sql, retryForMs, onDue }: { sql: Sql; retryForMs: number; onDue(): void }) {
  const ms = (value: number) => sql`make_interval(secs => ${value / 1000}::float8)`

  async function assertEndpoint(workspaceId: string, endpointId: string): Promise<void> {
    const [row] = await sql`select 1 from webhook_endpoints where id = ${endpointId} and workspace_id = ${workspaceId}`
    if (!row) throw webhookNotFound(endpointId)
  }

  /** Ids of all endpoints that have deliveries, those that are gone as well: one step in the index for each. */
  async function endpointIds(): Promise<{ id: string; exists: boolean; enabled: boolean }[]> {
    return sql<{ id: string; exists: boolean; enabled: boolean }[]>`
      with recursive ids as (
        (select endpoint_id as id from webhook_deliveries order by endpoint_id limit 1)
        union all
        select (select d.endpoint_id from webhook_deliveries d where d.endpoint_id > ids.id order by d.endpoint_id limit 1) from ids where ids.id is not null
      ) select ids.id, w.id is not null as exists, coalesce(w.enabled, false) as enabled from ids left join webhook_endpoints w on w.id = ids.id where ids.id is not null`
  }

  /** @returns how many, in batches that others can work between */
  async function inBatches(batch: () => Promise<number>): Promise<number> {
    let total = 0
    for (;;) {
      const count = await batch()
      total += count
      if (count < BATCH) return total
    }
  }

  return {
    /** Newest first. */
    async list(
      workspaceId: string,
      endpointId: string,
      query: { status?: DeliveryStatus | undefined; limit: number; cursor?: string | undefined },
    ): Promise<DeliveryPage> {
      await assertEndpoint(workspaceId, endpointId)
      const statuses = query.status ? [query.status] : [...DELIVERY_STATUSES]
      // A range of the index for each status, merged.
      const rows = await sql<DeliveryRow[]>`
        select d.id, d.run_id, d.seq, d.type, d.status, d.attempts, d.last_status, d.last_error, d.last_answer, ${utc(sql, 'd.created_at')} as created_at,
          case when d.status = 'pending' and (d.locked_until is null or d.locked_until < now()) then ${utc(sql, 'd.next_at')} end as next_at,
          ${utc(sql, 'd.ended_at')} as ended_at
        from unnest(${pgArray(statuses)}::text[]) as s(status) cross join lateral (
          select * from webhook_deliveries w where w.endpoint_id = ${endpointId} and w.status = s.status
            ${query.cursor === undefined ? sql`` : sql`and w.id < ${cursorOf(query.cursor)}`}
          order by w.id desc limit ${query.limit + 1}
        ) d order by d.id desc limit ${query.limit + 1}`
      const page: DeliveryPage = { data: rows.slice(0, query.limit).map(toDelivery) }
      const last = page.data.at(-1)
      if (rows.length > query.limit && last) page.nextCursor = last.id
      return page
    },

    /** Sends one again that has ended: with the same id, retried as if it were new. Earlier ones of its run that wait as well go first. */
    async resend(workspaceId: string, endpointId: string, id: string): Promise<void> {
      await assertEndpoint(workspaceId, endpointId)
      const again = await revive(sql`id = ${id} and endpoint_id = ${endpointId} and status <> 'pending'`)
      if (again === 0) {
        const [row] = await sql`select 1 from webhook_deliveries where id = ${id} and endpoint_id = ${endpointId}`
        if (!row) throw new RunplaneError('NOT_FOUND', `There is no delivery '${id}'. GET /webhooks/${endpointId}/deliveries lists those that there are.`)
        throw new RunplaneError('INVALID_STATE_TRANSITION', 'The delivery waits to be sent already. One that is delivered or dead can be sent again.')
      }
      onDue()
    },

    /** Sends all that are dead again, but not those that die again meanwhile. @returns how many */
    async resendDead(workspaceId: string, endpointId: string): Promise<number> {
      await assertEndpoint(workspaceId, endpointId)
      const [start] = await sql<{ now: string }[]>`select clock_timestamp()::text as now`
      const count = await inBatches(() =>
        revive(
          sql`id in (select id from webhook_deliveries where endpoint_id = ${endpointId} and status = 'dead'
            and ended_at <= ${start?.now ?? null}::text::timestamptz order by id limit ${BATCH} for update skip locked)`,
        ),
      )
      if (count > 0) onDue()
      return count
    },

    /** Removes what is old, or of an endpoint that is gone, and ends what nobody will send any more. Several instances may do it at once. */
    async sweep({ keepDeliveredMs, keepDeadMs }: SweepOptions): Promise<{ removed: number; expired: number }> {
      const nowMs = Date.now()
      let removed = 0
      let expired = 0
      for (const { id: endpointId, exists, enabled } of await endpointIds()) {
        if (!exists) {
          removed += await inBatches(async () => {
            const { count } = await sql`
              delete from webhook_deliveries where id in (select id from webhook_deliveries where endpoint_id = ${endpointId} limit ${BATCH} for update skip locked)`
            return count
          })
          continue
        }
        for (const [status, keepMs] of [
          ['delivered', keepDeliveredMs],
          ['dead', keepDeadMs],
        ] as const) {
          removed += await inBatches(async () => {
            const { count } = await sql`
              delete from webhook_deliveries where id in (select id from webhook_deliveries where endpoint_id = ${endpointId} and status = ${status}
                and id < ${uuidv7(nowMs - keepMs)} and ended_at < ${at(nowMs - keepMs)}::text::timestamptz order by id limit ${BATCH} for update skip locked)`
            return count
          })
        }
        // What has failed until its time was up, and what an endpoint that was disabled all the time will not get. What had no turn because of
        // those before it gets as long again.
        expired += await inBatches(async () => {
          const { count } = await sql`
            update webhook_deliveries set status = 'dead', ended_at = clock_timestamp(), locked_until = null,
              last_error = coalesce(last_error, ${enabled ? 'It was not sent in time: those before it were not delivered.' : 'The endpoint was disabled.'})
            where id in (select id from webhook_deliveries where endpoint_id = ${endpointId} and status = 'pending' and id < ${uuidv7(nowMs - retryForMs)}
              and coalesce(expires_at, created_at + ${ms(retryForMs)}) < clock_timestamp()
                - case when ${!enabled}::text::boolean then interval '0' when attempts > 0 then interval '10 minutes' else ${ms(retryForMs)} end
              and (locked_until is null or locked_until < clock_timestamp()) order by id limit ${BATCH} for update skip locked)`
          return count
        })
      }
      return { removed, expired }
    },
  }

  async function revive(which: ReturnType<typeof sql>): Promise<number> {
    const { count } = await sql`
      update webhook_deliveries set status = 'pending', attempts = 0, next_at = clock_timestamp(), locked_until = null, ended_at = null,
        expires_at = clock_timestamp() + ${ms(retryForMs)}
      where ${which}`
    return count
  }
}

const at = (epochMs: number) => new Date(epochMs).toISOString()

function toDelivery(row: DeliveryRow): Delivery {
  return {
    id: row.id,
    runId: row.run_id,
    seq: row.seq,
    type: row.type,
    status: row.status,
    attempts: row.attempts,
    lastStatus: row.last_status,
    lastError: row.last_error,
    lastAnswer: row.last_answer,
    createdAt: row.created_at,
    nextAttemptAt: row.next_at,
    endedAt: row.ended_at,
  }
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

function cursorOf(cursor: string): string {
  if (UUID.test(cursor)) return cursor
  throw new RunplaneError('CURSOR_INVALID', 'The cursor is not one of this list. Take nextCursor as it was answered.')
}
