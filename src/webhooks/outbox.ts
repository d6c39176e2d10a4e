/**
 * Deliveries on their way. The append writes them with their events (log/append-rows.ts); here they are claimed, and ended or put off.
 *
 *   pending --(2xx)--> delivered
 *   pending --(the last retry has failed, 410, nothing to send any more)--> dead --(by hand)--> pending
 *
 * The order of a run holds for each endpoint: only the first pending delivery of (endpoint, run), its head, is ever sent. Of a head, `next_at` is the
 * truth; a claim holds it by moving `next_at` on, so that whoever dies in the middle leads to a repeat and not to a loss. Deliveries behind a head
 * are put off by the claims that come across them, so that each is looked at once and not by every claim. Whoever ends a head makes the next one due.
 * That is exact because both lock the head first: the claim before it puts off what is behind it, the end before it looks (with a new
 * snapshot) for what comes next.
 */
import type { Queries, Sql } from '../db/client.js'
import { pgArray } from '../log/states.js'
import type { Secret } from './secrets.js'

/** Deliveries that one claim looks at: those behind a head are most of them where an endpoint has been down. */
const MAX_CANDIDATES = 200

export interface Claimed {
  id: string
  endpointId: string
  runKey: string
  runId: string
  seq: number
  type: string
  /** That have failed. */
  attempts: number
  /** How long it may still be retried; negative: this is the last attempt. */
  leftMs: number
  /** The canonical event and its time, as the log has them; null where the run was deleted, or the event by retention. */
  event: string | null
  ts: string | null
  /** Null: disabled, or gone. */
  endpoint: { url: string; secrets: Secret[] } | null
  /** Whose claim it is. */
  token: string
}

interface Candidate {
  id: string
  run_key: string
}
interface Head extends Candidate {
  due: boolean
  next_at: string
}
interface ClaimedRow {
  id: string
  endpoint_id: string
  run_key: string
  run_id: string
  seq: number
  type: string
  attempts: number
  left_ms: number
  event: string | null
  ts: string | null
  endpoint: { url: string; secrets: Secret[] } | null
  token: string
}

export interface Attempt {
  /** Nothing was sent where there was nothing to send any more. */
  made: boolean
  lastStatus: number | null
  lastError: string | null
  lastAnswer: string | null
}

export type Outbox = ReturnType<typeof createOutbox>

/**
 * @param sql a client of its own, so that deliveries do not take the connections of those who read
 * @param lockMs how long a claim holds: longer than an attempt may take
 * @param retryForMs from the creation of a delivery to its last attempt
 */
export function createOutbox({ sql, lockMs, retryForMs }: { sql: Sql; lockMs: number; retryForMs: number }) {
  const ms = (value: number) => sql`make_interval(secs => ${value / 1000}::float8)`
  const returned = (tx: Queries) => tx`
    d.id, d.endpoint_id, d.run_key, d.run_id, d.seq, d.type, d.attempts, d.locked_until::text as token,
    (extract(epoch from coalesce(d.expires_at, d.created_at + ${ms(retryForMs)}) - clock_timestamp()) * 1000)::float8 as left_ms, e.event, e.ts,
    (select json_build_object('url', w.url, 'secrets', w.secrets) from webhook_endpoints w where w.id = d.endpoint_id and w.enabled) as endpoint`
  const content = (tx: Queries, runKey: string, seq: string) => tx`
    left join lateral (select c.event::text as event, c.event->>'ts' as ts from run_events_canonical c join runs r on r.key = c.run_key
      where c.run_key = ${tx(runKey)} and c.seq = ${tx(seq)}) e on true`

  return {
    /**
     * Claims due heads of an endpoint, those that have been due for longest first.
     * @returns `more`: there may be more that are due
     */
    async claim(endpointId: string, limit: number): Promise<{ claimed: Claimed[]; more: boolean }> {
      return sql.begin(async (tx) => {
        const candidates = await tx<Candidate[]>`
          select id, run_key from webhook_deliveries where endpoint_id = ${endpointId} and status = 'pending' and next_at <= now()
          order by next_at limit ${MAX_CANDIDATES} for update skip locked`
        if (candidates.length === 0) return { claimed: [], more: false }
        const runKeys = pgArray([...new Set(candidates.map((one) => one.run_key))])
        // A head that is being ended at this moment is skipped, and so is what is behind it: it is looked at again by the next claim.
        const heads = await tx<Head[]>`
          select d.id, d.run_key, d.next_at::text as next_at, d.next_at <= now() as due from unnest(${runKeys}::uuid[]) as q(k)
          cross join lateral (select h.id from webhook_deliveries h where h.endpoint_id = ${endpointId} and h.run_key = q.k and h.status = 'pending'
            order by h.seq limit 1) h
          join webhook_deliveries d on d.id = h.id where d.status = 'pending' for update of d skip locked`
        const headOf = new Map(heads.map((head) => [head.run_key, head]))
        const taken: string[] = []
        const behind: { id: string; at: string }[] = []
        let left = 0
        for (const { id, run_key } of candidates) {
          const head = headOf.get(run_key)
          if (!head) left++
          else if (head.id !== id) behind.push({ id, at: head.next_at })
          else if (head.due && taken.length < limit) taken.push(id)
          else if (head.due) left++
        }
        if (behind.length > 0)
          await tx`
            update webhook_deliveries d set next_at = greatest(b.at, clock_timestamp() + ${ms(lockMs)})
            from json_to_recordset(${JSON.stringify(behind)}::text::json) as b(id uuid, at timestamptz) where d.id = b.id`
        const rows =
          taken.length === 0
            ? []
            : await tx<ClaimedRow[]>`
                with taken as (
                  update webhook_deliveries set locked_until = t.until, next_at = t.until from (select clock_timestamp() + ${ms(lockMs)} as until) t
                  where id = any(${pgArray(taken)}::uuid[]) returning webhook_deliveries.*
                ) select ${returned(tx)} from taken d ${content(tx, 'd.run_key', 'd.seq')}`
        return { claimed: rows.map(toClaimed), more: left > 0 || candidates.length === MAX_CANDIDATES }
      })
    },

    /**
     * Ends a claimed delivery. @returns the next one of its run, claimed if `goOn` (and to be sent or released); otherwise that is due for anyone.
     * Nothing happens where the claim was lost meanwhile.
     */
    async end(claimed: Claimed, status: 'delivered' | 'dead', attempt: Attempt, goOn: boolean): Promise<Claimed | undefined> {
      const tx = await sql.reserve()
      try {
        // One round trip. Where the connection is lost in the middle, the second finds that the first was of another transaction.
        const [, ended, next, stored] = await Promise.allSettled([
          tx`begin`.execute(),
          tx`
            update webhook_deliveries set status = ${status}, attempts = attempts + ${attempt.made ? 1 : 0}, last_status = ${attempt.lastStatus},
              last_error = ${attempt.lastError}, last_answer = ${attempt.lastAnswer}, locked_until = null, ended_at = now()
            where id = ${claimed.id} and status = 'pending' and locked_until = ${claimed.token}::text::timestamptz`.execute(),
          tx<ClaimedRow[]>`
            with head as (
              select id from webhook_deliveries where endpoint_id = ${claimed.endpointId} and run_key = ${claimed.runKey} and status = 'pending'
                and seq > ${claimed.seq} and exists (select from webhook_deliveries where id = ${claimed.id} and status = ${status} and ended_at = now())
              order by seq limit 1 for update
            ), next as (
              update webhook_deliveries d set ${goOn ? tx`locked_until = t.until, next_at = t.until` : tx`next_at = least(d.next_at, t.now)`}
              from head, (select clock_timestamp() as now, clock_timestamp() + ${ms(lockMs)} as until) t
              where d.id = head.id and d.status = 'pending' and (d.locked_until is null or d.locked_until <= t.now) returning d.*
            ) select ${returned(tx)} from next d ${goOn ? content(tx, 'd.run_key', 'd.seq') : tx`cross join (select null as event, null as ts) e`}`.execute(),
          tx`commit`.execute(),
        ])
        for (const one of [ended, next, stored]) if (one.status === 'rejected') throw one.reason
        const [row] = next.status === 'fulfilled' ? next.value : []
        return goOn && row ? toClaimed(row) : undefined
      } finally {
        tx.release()
      }
    },

    /** Puts a claimed delivery off. What is behind it waits as well. */
    async putOff(claimed: Claimed, attempt: Attempt, delayMs: number): Promise<void> {
      await sql`
        update webhook_deliveries set attempts = attempts + 1, last_status = ${attempt.lastStatus}, last_error = ${attempt.lastError},
          last_answer = ${attempt.lastAnswer}, locked_until = null, next_at = clock_timestamp() + ${ms(delayMs)}
        where id = ${claimed.id} and status = 'pending' and locked_until = ${claimed.token}::text::timestamptz`
    },

    /** Gives a claim back as if it had not been. */
    async release(claimed: Claimed): Promise<void> {
      await sql`
        update webhook_deliveries set locked_until = null, next_at = clock_timestamp()
        where id = ${claimed.id} and status = 'pending' and locked_until = ${claimed.token}::text::timestamptz`
    },
  }
}

function toClaimed(row: ClaimedRow): Claimed {
  return {
    id: row.id,
    endpointId: row.endpoint_id,
    runKey: row.run_key,
    runId: row.run_id,
    seq: row.seq,
    type: row.type,
    attempts: row.attempts,
    leftMs: row.left_ms,
    event: row.event,
    ts: row.ts,
    endpoint: row.endpoint,
    token: row.token,
  }
}
