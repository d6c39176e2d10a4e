/**
 * Sends what the outbox holds, on as many instances as there are: whoever claims a delivery sends it.
 *
 * Each endpoint has a lane of its own with a bound on what is under way, which shrinks where the endpoint does not answer; half of all places are kept
 * for the first delivery of lanes that have none under way, and an endpoint that cannot be reached rests between attempts. So a slow or dead one does not starve others.
 * A lane is looked at when an event that its endpoint wants was stored here, when a place in it becomes free, and by the poll, which finds what other
 * instances have stored or left behind and what has to be sent again.
 */
import { setMaxListeners } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { BaseLogger } from 'pino'
import type { Database } from '../db/client.js'
import { retryDelayMs as databaseRetryMs } from '../db/retry.js'
import type { Mask } from '../ingest/mask.js'
import type { CommittedBatch } from '../log/committed.js'
import type { Outbound } from '../ops/outbound.js'
import { wants } from './event-filter.js'
import { type Attempt, type Claimed, createOutbox } from './outbox.js'
import { type PostOutcome, post } from './post.js'
import { restMs, retryDelayMs } from './retries.js'

/** Of one instance. Each may hold an event of MAX_EVENT_BYTES. */
const MAX_IN_FLIGHT = 256
/** Claims at once: more would only wait for a connection. */
const MAX_CLAIMS = 2
const CONNECTIONS = 3
/** Deliveries of a run before it goes to the end of its lane's queue. */
const MAX_IN_A_ROW = 20
/** A claim outlives its attempt by this: for reading the event, and for a database that takes its time. */
const LOCK_MARGIN_MS = 5000
/** Whoever asks for more time for all may have it, but not the whole day at once. */
const MAX_ASKED_REST_MS = 300_000
const END_ATTEMPTS = 5

export interface SenderOptions {
  database: Pick<Database, 'sql' | 'connect'>
  outbound: Pick<Outbound, 'dispatcher'>
  logger: Pick<BaseLogger, 'warn' | 'info'>
  mask: Pick<Mask, 'text'>
  /** Of one attempt, from the connection to the end of the answer. */
  timeoutMs: number
  /** From the creation of a delivery to its last attempt. */
  retryForMs: number
  /** Deliveries under way to one endpoint from this instance. */
  concurrency: number
  pollMs: number
  /** For tests. */
  firstRetryMs?: number
  lockMarginMs?: number
  onAttempt?(attempt: { outcome: 'delivered' | 'failed' | 'dead'; durationMs: number }): void
}

interface Lane {
  id: string
  workspaceId: string
  types: string[]
  /** There may be something to claim. */
  due: boolean
  claiming: boolean
  inFlight: number
  limit: number
  /** One after another to reach it. */
  failures: number
  /** By `performance.now()`. */
  restUntilMs: number
}

export type Sender = ReturnType<typeof createSender>

export function createSender(options: SenderOptions) {
  const { database, outbound, logger, mask, timeoutMs, concurrency } = options
  // A commit need not wait for the disk: what a crash of the database forgets is claimed and sent again.
  const client = database.connect({ max: CONNECTIONS, idle_timeout: 60, connection: { synchronous_commit: 'off' } })
  const outbox = createOutbox({ sql: client, lockMs: timeoutMs + (options.lockMarginMs ?? LOCK_MARGIN_MS), retryForMs: options.retryForMs })
  let lanes = new Map<string, Lane>()
  const working = new Set<Promise<void>>()
  const leave = new AbortController()
  // One for each attempt under way.
  setMaxListeners(MAX_IN_FLIGHT, leave.signal)
  let inFlight = 0
  let claims = 0
  let closing = false
  let polling: Promise<void> | undefined
  let pollAgain = false
  let timer: NodeJS.Timeout | undefined

  async function look(): Promise<void> {
    const rows = await database.sql<{ id: string; workspace_id: string; types: string[]; due: boolean }[]>`
      select w.id, w.workspace_id, array_to_json(w.types) as types,
        exists (select from webhook_deliveries d where d.endpoint_id = w.id and d.status = 'pending' and d.next_at <= now()) as due
      from webhook_endpoints w where w.enabled`
    const seen = new Map<string, Lane>()
    for (const { id, workspace_id, types, due } of rows) {
      const lane = lanes.get(id) ?? { id, workspaceId: workspace_id, types, due, claiming: false, inFlight: 0, limit: concurrency, failures: 0, restUntilMs: 0 }
      lane.types = types
      lane.due ||= due
      seen.set(id, lane)
    }
    lanes = seen
    pump()
  }

  /** One look at a time; one that is asked for meanwhile comes after it. */
  function poll(): void {
    if (closing) return
    if (polling) {
      pollAgain = true
      return
    }
    clearTimeout(timer)
    polling = look()
      .catch((error: unknown) => {
        if (!closing) logger.warn({ err: error }, 'webhooks: the database could not be asked what is to be sent')
      })
      .finally(() => {
        polling = undefined
        if (closing) return
        if (pollAgain) {
          pollAgain = false
          poll()
        } else timer = setTimeout(poll, options.pollMs).unref()
      })
  }

  function freePlaces(lane: Lane): number {
    const own = lane.limit - lane.inFlight
    const shared = MAX_IN_FLIGHT / 2 - inFlight
    return Math.max(Math.min(own, shared), lane.inFlight === 0 && inFlight < MAX_IN_FLIGHT ? 1 : 0)
  }

  function pump(): void {
    if (closing) return
    const nowMs = performance.now()
    for (const lane of lanes.values()) {
      if (claims >= MAX_CLAIMS) return
      if (!lane.due || lane.claiming || lane.restUntilMs > nowMs || freePlaces(lane) <= 0) continue
      // To the end of the line.
      lanes.delete(lane.id)
      lanes.set(lane.id, lane)
      own(claim(lane))
    }
  }

  function own(work: Promise<void>): void {
    working.add(work)
    void work.finally(() => {
      working.delete(work)
      pump()
    })
  }

  async function claim(lane: Lane): Promise<void> {
    const places = freePlaces(lane)
    lane.claiming = true
    lane.due = false
    claims++
    take(lane, places)
    let taken = 0
    try {
      const { claimed, more } = await outbox.claim(lane.id, places)
      taken = claimed.length
      lane.due ||= more
      for (const one of claimed) own(sendRun(lane, one))
    } catch (error) {
      // The poll finds it again.
      if (!closing) logger.warn({ err: error, webhook: lane.id }, 'webhooks: deliveries could not be claimed')
    } finally {
      take(lane, taken - places)
      lane.claiming = false
      claims--
    }
  }

  function take(lane: Lane, places: number): void {
    lane.inFlight += places
    inFlight += places
  }

  /** Sends a run's deliveries one after another, as long as they arrive. */
  async function sendRun(lane: Lane, first: Claimed): Promise<void> {
    let claimed: Claimed | undefined = first
    try {
      for (let count = 1; claimed; count++) claimed = await send(lane, claimed, count < MAX_IN_A_ROW)
    } catch (error) {
      logger.warn({ err: error, webhook: lane.id, run: first.runId }, 'webhooks: the outcome of a delivery could not be stored; it is sent again')
    } finally {
      take(lane, -1)
    }
  }

  /** @returns the next one of the run, claimed */
  async function send(lane: Lane, claimed: Claimed, goOn: boolean): Promise<Claimed | undefined> {
    const { endpoint, event } = claimed
    if (closing || !endpoint) {
      await outbox.release(claimed)
      return undefined
    }
    if (event === null) {
      const lastError = 'The run was deleted, or its events were removed by retention, before this was sent.'
      return end(lane, claimed, 'dead', { made: false, lastStatus: null, lastError, lastAnswer: null }, goOn)
    }
    const body = `{"type":${JSON.stringify(claimed.type)},"timestamp":${JSON.stringify(claimed.ts)},"data":${event}}`
    const outcome = await post(outbound, { id: claimed.id, ...endpoint, body, timeoutMs, mask, signal: leave.signal })
    if (outcome.kind === 'aborted') {
      await outbox.release(claimed)
      return undefined
    }
    learn(lane, outcome)
    const attempt = attemptOf(outcome)
    const isAccepted = outcome.kind === 'answered' && outcome.status >= 200 && outcome.status < 300
    const ended = isAccepted ? 'delivered' : claimed.leftMs <= 0 ? 'dead' : undefined
    options.onAttempt?.({ outcome: ended ?? 'failed', durationMs: outcome.durationMs })
    if (isGone(outcome)) await disable(lane, endpoint.url)
    if (ended) return end(lane, claimed, ended, attempt, goOn && !closing && outcome.kind === 'answered' && !isGone(outcome))
    const asked = outcome.kind === 'answered' ? (outcome.retryAfterMs ?? 0) : 0
    // What was gone is tried as soon as the webhook is enabled again, and what waits behind it then.
    const waitMs = isGone(outcome) ? 0 : Math.max(retryDelayMs(claimed.attempts + 1, Math.random(), options.firstRetryMs), asked)
    await stored(() => outbox.putOff(claimed, attempt, Math.min(waitMs, claimed.leftMs)))
    return undefined
  }

  async function end(lane: Lane, claimed: Claimed, status: 'delivered' | 'dead', attempt: Attempt, goOn: boolean): Promise<Claimed | undefined> {
    const next = await stored(() => outbox.end(claimed, status, attempt, goOn))
    // What comes next of the run is for anyone now.
    if (!goOn) lane.due = true
    return next
  }

  /** What was sent is not sent again only because the database was away for a moment. */
  async function stored<T>(store: () => Promise<T>): Promise<T> {
    for (let count = 1; ; count++) {
      try {
        return await store()
      } catch (error) {
        const waitMs = databaseRetryMs(error, count)
        if (waitMs === undefined || count >= END_ATTEMPTS) throw error
        await delay(waitMs)
      }
    }
  }

  function learn(lane: Lane, outcome: Exclude<PostOutcome, { kind: 'aborted' }>): void {
    if (outcome.kind === 'unreachable') {
      lane.failures++
      lane.limit = 1
      rest(lane, restMs(lane.failures, Math.random()))
      return
    }
    lane.failures = 0
    const isRefused = outcome.status === 429 || outcome.status >= 500
    lane.limit = isRefused ? Math.max(1, Math.floor(lane.limit / 2)) : Math.min(concurrency, lane.limit + 1)
    // Asked of the endpoint, not of one delivery.
    if (outcome.status === 429 || outcome.status === 503) rest(lane, Math.min(outcome.retryAfterMs ?? 0, MAX_ASKED_REST_MS))
  }

  function rest(lane: Lane, forMs: number): void {
    if (forMs > 0) lane.restUntilMs = Math.max(lane.restUntilMs, performance.now() + forMs)
  }

  /** Not if it has been given another address meanwhile. */
  async function disable(lane: Lane, url: string): Promise<void> {
    const reason = `It answered 410 Gone at ${new Date().toISOString()}.`
    const { count } = await client`
      update webhook_endpoints set enabled = false, disabled_reason = ${reason}, updated_at = clock_timestamp() where id = ${lane.id} and url = ${url} and enabled`
    if (count > 0) logger.info({ webhook: lane.id }, 'webhooks: an endpoint answered 410 and is disabled')
  }

  return {
    /** What other instances and those before have left is looked for from now on. */
    start(): void {
      poll()
    },

    /** Events were stored here. Cheap: nothing is asked of the database where no endpoint of the workspace wants them. */
    committed(batches: readonly CommittedBatch[]): void {
      if (lanes.size === 0) return
      let found = false
      for (const lane of lanes.values()) {
        if (lane.due) continue
        lane.due = batches.some((batch) => batch.workspaceId === lane.workspaceId && batch.events.some((event) => wants(lane.types, event.type)))
        found ||= lane.due
      }
      if (found) pump()
    },

    /** Endpoints were changed, or deliveries made due by hand. */
    wake(): void {
      poll()
    },

    /** How many are under way. */
    inFlight: () => inFlight,

    /** Lets attempts end for at most `graceMs`; what has no answer by then is given back and sent again by another instance. */
    async close(graceMs = 2000): Promise<void> {
      closing = true
      clearTimeout(timer)
      const timeUp = setTimeout(() => leave.abort(), graceMs)
      await polling
      while (working.size > 0) await Promise.allSettled(working)
      clearTimeout(timeUp)
      await client.end({ timeout: 5 })
    },
  }
}

const isGone = (outcome: PostOutcome) => outcome.kind === 'answered' && outcome.status === 410

function attemptOf(outcome: Exclude<PostOutcome, { kind: 'aborted' }>): Attempt {
  if (outcome.kind === 'unreachable') return { made: true, lastStatus: null, lastError: outcome.error, lastAnswer: null }
  const { status, answer } = outcome
  const lastError = status < 300 ? null : status < 400 ? `It answered ${status}, and redirects are not followed.` : `It answered ${status}.`
  return { made: true, lastStatus: status, lastError, lastAnswer: answer }
}
