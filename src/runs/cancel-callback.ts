/**
 * Tells a worker that its run is to be cancelled: a POST to the `cancelCallback` that the run names, at least once.
 *
 * What is due is found in the database: runs with a request to cancel that has no row here yet, so that a crash at any point loses none. A row
 * is reserved while it is tried, and tried again, by whichever instance, until an answer of 2xx, a refusal or MAX_ATTEMPTS.
 */
import { request } from 'undici'
import type { Sql } from '../db/client.js'
import type { RunPlan } from '../domain/run-request.js'
import type { CommittedBatch } from '../log/committed.js'
import type { Outbound } from '../ops/outbound.js'
import { VERSION } from '../ops/version.js'
import { backoffMs, verdictOnError } from './attach-verdict.js'

export interface CancelCallbacksDeps {
  sql: Sql
  outbound: Pick<Outbound, 'dispatcher' | 'assertUrl'>
  logger: { warn(details: object, message: string): void }
  /** Between two looks. */
  pollMs: number
  timeoutMs?: number
  retryMs?: number
  random?: () => number
}

export interface CancelCallbacks {
  start(): void
  /** To be told of each commit. */
  committed(batch: CommittedBatch): void
  close(): Promise<void>
}

interface Due {
  run_key: string
  attempts: number
  run_id: string | null
  callback: RunPlan['cancelCallback'] | null
  requested_at: string
}

type Outcome = { kind: 'told' } | { kind: 'again' | 'never'; reason: string }

const MAX_ATTEMPTS = 8
/** Callbacks that one round tries at once. */
const ROUND = 20
const MAX_RETRY_MS = 60_000
/** Where the request is looked for in the log, from its head backwards. */
const LOOK_BACK_EVENTS = 20_000
/** A commit wakes a round after this long, so that several go together. */
const GATHER_MS = 20

export function createCancelCallbacks(deps: CancelCallbacksDeps): CancelCallbacks {
  const { sql, outbound, logger, timeoutMs = 10_000, retryMs = 1000, random = Math.random } = deps
  const aborter = new AbortController()
  let timer: NodeJS.Timeout | undefined
  let soon: NodeJS.Timeout | undefined
  let running: Promise<void> | undefined

  function look(): void {
    if (running) return
    running = round()
      .catch((error: unknown) => logger.warn({ err: error }, 'cancel callbacks could not be looked for'))
      .finally(() => {
        running = undefined
      })
  }

  function lookSoon(): void {
    if (soon || aborter.signal.aborted) return
    soon = setTimeout(() => {
      soon = undefined
      if (running) lookSoon()
      else look()
    }, GATHER_MS).unref()
  }

  async function round(): Promise<void> {
    await sql`
      insert into cancel_callbacks as c (run_key, requested_at)
      select key, cancel_requested_at from runs r where cancel_requested_at is not null and descriptor->'cancelCallback' is not null
        and not exists (select from cancel_callbacks k where k.run_key = r.key and k.requested_at >= r.cancel_requested_at)
      on conflict (run_key) do update set requested_at = excluded.requested_at, attempts = 0, next_at = clock_timestamp(), ended_at = null, error = null
        where c.requested_at < excluded.requested_at`
    // Of a run that is over nobody asks any more; one that is not would be told anew.
    await sql`delete from cancel_callbacks c where ended_at is not null and not exists (select from runs r where r.key = c.run_key and r.cancel_requested_at is not null)`
    while (!aborter.signal.aborted) {
      const due = await sql<Due[]>`
        with due as (
          select run_key from cancel_callbacks where ended_at is null and next_at <= statement_timestamp() order by next_at limit ${ROUND} for update skip locked
        )
        update cancel_callbacks c set attempts = attempts + 1, next_at = clock_timestamp() + ${timeoutMs * 2}::int * interval '1 ms'
        from due left join runs r on r.key = due.run_key where c.run_key = due.run_key
        returning c.run_key, c.attempts, r.id as run_id, r.descriptor->'cancelCallback' as callback,
          to_char(c.requested_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as requested_at`
      if (due.length === 0) return
      await Promise.all(due.map(tell))
    }
  }

  async function tell(due: Due): Promise<void> {
    try {
      if (due.run_id === null || !due.callback) {
        await sql`delete from cancel_callbacks where run_key = ${due.run_key}`
        return
      }
      const outcome = await post(due, due.run_id, due.callback)
      // A stop is no failure of the callback's: another instance goes on at once.
      if (aborter.signal.aborted && outcome.kind !== 'told') {
        await sql`update cancel_callbacks set attempts = attempts - 1, next_at = clock_timestamp() where run_key = ${due.run_key}`
        return
      }
      const isOver = outcome.kind !== 'again' || due.attempts >= MAX_ATTEMPTS
      const reason = outcome.kind === 'told' ? null : outcome.reason
      const pauseMs = backoffMs({ count: due.attempts, baseMs: retryMs, maxMs: MAX_RETRY_MS, random: random() })
      if (isOver && reason !== null) logger.warn({ runKey: due.run_key, reason, attempts: due.attempts }, 'a cancel callback is given up')
      await sql`
        update cancel_callbacks set error = ${reason}, ended_at = case when ${isOver} then clock_timestamp() end,
          next_at = clock_timestamp() + ${pauseMs}::int * interval '1 ms'
        where run_key = ${due.run_key} and ended_at is null`
    } catch (error) {
      logger.warn({ err: error, runKey: due.run_key }, 'a cancel callback was not noted; it is tried again')
    }
  }

  async function post(due: Due, runId: string, { url, headers }: NonNullable<RunPlan['cancelCallback']>): Promise<Outcome> {
    const [stored] = await sql<{ event: string }[]>`
      select event::text as event from run_events_canonical
      where run_key = ${due.run_key} and seq > (select last_seq - ${LOOK_BACK_EVENTS}::int from runs where key = ${due.run_key}) and type = 'run.cancel_requested'
      order by seq desc limit 1`
    try {
      const own = Object.fromEntries(Object.entries(headers ?? {}).map(([name, value]) => [name.toLowerCase(), value]))
      const { statusCode, body } = await request(outbound.assertUrl(url), {
        dispatcher: outbound.dispatcher,
        method: 'POST',
        headers: { 'user-agent': `runplane/${VERSION}`, ...own, 'content-type': 'application/json', 'idempotency-key': `${runId}:${due.requested_at}` },
        body: stored?.event ?? JSON.stringify({ runId, type: 'run.cancel_requested', ts: due.requested_at, data: {} }),
        signal: AbortSignal.any([aborter.signal, AbortSignal.timeout(timeoutMs)]),
      })
      // Nothing of the answer is needed.
      body.on('error', () => {}).destroy()
      if (statusCode >= 200 && statusCode < 300) return { kind: 'told' }
      const passing = statusCode >= 500 || statusCode === 408 || statusCode === 425 || statusCode === 429
      return { kind: passing ? 'again' : 'never', reason: `The callback answered ${statusCode}.` }
    } catch (error) {
      return verdictOnError(error, 'callback')
    }
  }

  return {
    start() {
      look()
      timer = setInterval(look, deps.pollMs).unref()
    },
    committed(batch) {
      if (batch.events.some((event) => event.type === 'run.cancel_requested')) lookSoon()
    },
    async close() {
      clearInterval(timer)
      clearTimeout(soon)
      aborter.abort()
      await running
    },
  }
}
