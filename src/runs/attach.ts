/**
 * Runs with a source of their own: the service reads it for them, on one instance at a time.
 *
 * A row of run_sources is a source and a lease. Whoever has the lease reads, and stores events with its own id, so that one who was
 * paused and comes back late stores nothing more. States of a source:
 *   waiting  not open yet: it is asked for again and again, until the run's deadline (recovery.ts)
 *   reading  was open; asked for again from the stored cursor whenever it closes
 *   drained  it has said that there is no more (204), or has ended without ids to go on from; the run has not ended, and nobody reads for it (recovery.ts)
 *   ended    the run is over
 *   failed   another try gives the same, and the run failed with it
 * A retry of the run makes it `waiting` again, nobody's, in the retry's transaction (log/append-rows.ts): the next attempt reads on from the cursor.
 * A source that closes has not ended: it may have lost its connection, or serve its events in pages.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Config } from '../config.js'
import type { Sql } from '../db/client.js'
import type { DraftEvent } from '../domain/canonical-event.js'
import { uuidv7 } from '../domain/ids.js'
import { isTerminal, type RunStatus } from '../domain/run.js'
import type { CommittedBatch } from '../log/committed.js'
import type { GroupCommit } from '../log/group-commit.js'
import type { Outbound } from '../ops/outbound.js'
import { type ConnectionEnd, type ReaderDeps, readSource } from './attach-reader.js'
import { nameOf, type SourceConfig } from './attach-source.js'
import { backoffMs } from './attach-verdict.js'

export type AttachConfig = Pick<
  Config,
  | 'RUN_RECOVERY_ENABLED'
  | 'RECOVERY_INTERVAL_MS'
  | 'SOURCES_MAX'
  | 'SOURCE_LEASE_MS'
  | 'SOURCE_IDLE_TIMEOUT_MS'
  | 'SOURCE_RETRY_MS'
  | 'SOURCE_RETRY_MAX_MS'
  | 'SOURCE_MAX_FAILURES'
  | 'MAX_EVENT_BYTES'
  | 'MAX_BATCH_EVENTS'
>

export interface AttachDeps {
  sql: Sql
  log: Pick<GroupCommit, 'decide' | 'appendWhenRoom'>
  outbound: Pick<Outbound, 'dispatcher' | 'assertUrl'>
  config: AttachConfig
  logger: { debug(details: object, message: string): void; warn(details: object, message: string): void }
  onStored?: (format: string, events: number) => void
  /** Of secrets in what sources send. */
  mask?: ReaderDeps['mask']
  /** From 0 to 1. */
  random?: () => number
}

export interface Attach {
  /** Begins to look for sources, at once and then on a timer. */
  start(): void
  /** To be told of each commit: a new run may have a source, and a run that is over needs none. */
  committed(batch: CommittedBatch): void
  /** Sources that are read here. */
  readonly size: number
  /** Stops reading and gives the sources up for others to take. To be closed before the log. */
  close(): Promise<void>
}

interface ClaimedSource {
  run_key: string
  run_id: string
  config: SourceConfig | null
  status: 'waiting' | 'reading'
  previous_owner: string | null
  session_id: string | null
}

interface SourceRow {
  cursor: string | null
  owner_id: string | null
  run_status: RunStatus
}

/** New runs are looked for at most this often. */
const LOOK_MS = 100

export function createAttach(deps: AttachDeps): Attach {
  const { sql, log, config, logger, random = Math.random } = deps
  const ownerId = uuidv7()
  const readers = new Map<string, { aborter: AbortController; done: Promise<void> }>()
  const reader: ReaderDeps = {
    log,
    outbound: deps.outbound,
    limits: { maxEventBytes: config.MAX_EVENT_BYTES, maxEvents: config.MAX_BATCH_EVENTS },
    mask: deps.mask,
    idleTimeoutMs: config.SOURCE_IDLE_TIMEOUT_MS,
    onStored: deps.onStored,
  }
  let closed = false
  let looking: Promise<void> | undefined
  let renewing: Promise<void> | undefined
  let lookTimer: NodeJS.Timeout | undefined
  const timers: NodeJS.Timeout[] = []

  function look(): void {
    looking ??= claimDue()
      .catch((error: unknown) => logger.warn({ err: error }, 'sources could not be looked for'))
      .finally(() => {
        looking = undefined
      })
  }

  function lookSoon(): void {
    if (closed || lookTimer) return
    lookTimer = setTimeout(() => {
      lookTimer = undefined
      // A look that is under way may have begun too early.
      if (looking) lookSoon()
      else look()
    }, LOOK_MS).unref()
  }

  async function claimDue(): Promise<void> {
    const room = config.SOURCES_MAX - readers.size
    if (room <= 0 || closed) return
    // One that is read here is not among them, though its lease may have run out: its reader may be behind one who had it since.
    // Without recovery, what another instance left is not taken up.
    const free = config.RUN_RECOVERY_ENABLED
      ? sql`(s.owner_id is null or s.owner_expires_at <= clock_timestamp())`
      : sql`s.owner_id is null and s.status = 'waiting'`
    const claimed = await sql<ClaimedSource[]>`
      with due as (
        select s.run_key, s.owner_id from run_sources s join runs r on r.key = s.run_key
        where s.status in ('waiting', 'reading') and s.next_at <= clock_timestamp() and ${free}
          and s.run_key <> all(string_to_array(${[...readers.keys()].join(',')}, ',')::uuid[])
          and (r.status <> 'queued' or (r.queue is null and (r.available_at is null or r.available_at <= clock_timestamp())))
        order by s.next_at limit ${room} for update of s skip locked
      )
      update run_sources s set owner_id = ${ownerId}, owner_expires_at = clock_timestamp() + ${config.SOURCE_LEASE_MS}::int * interval '1 ms'
      from due, runs r where s.run_key = due.run_key and r.key = s.run_key
      returning s.run_key, r.id as run_id, s.config, s.status, due.owner_id as previous_owner, r.descriptor->'session'->>'sessionId' as session_id`
    for (const source of claimed) {
      const aborter = new AbortController()
      const done = follow(source, aborter.signal).finally(() => readers.delete(source.run_key))
      readers.set(source.run_key, { aborter, done })
      if (closed) aborter.abort()
    }
    if (claimed.length === room) lookSoon()
  }

  async function renew(): Promise<void> {
    if (readers.size === 0) return
    const keys = [...readers.keys()]
    const rows = await sql<{ run_key: string; status: RunStatus; queue: string | null }[]>`
      with mine as (
        select run_key from run_sources where run_key = any(string_to_array(${keys.join(',')}, ',')::uuid[]) and owner_id = ${ownerId} order by run_key for update
      )
      update run_sources s set owner_expires_at = clock_timestamp() + ${config.SOURCE_LEASE_MS}::int * interval '1 ms'
      from mine, runs r where s.run_key = mine.run_key and r.key = s.run_key returning s.run_key, r.status, r.queue`
    const alive = new Set(rows.flatMap(({ run_key, status, queue }) => (isTerminal(status) || isGivenBack(status, queue) ? [] : [run_key])))
    for (const key of keys) if (!alive.has(key)) readers.get(key)?.aborter.abort()
  }

  /** Reads a source until it or its run ends, or until it is another's. */
  async function follow(source: ClaimedSource, signal: AbortSignal): Promise<void> {
    let bound = source.status === 'reading'
    // Told once, by whoever takes up what another has left.
    let recovers = bound
    let binding = bound
    let tries = 0
    while (!signal.aborted) {
      try {
        const row = await current(source.run_key)
        if (!row || row.owner_id !== ownerId) return
        if (isTerminal(row.run_status)) return await finish(source, 'ended', null)
        // Whatever another version has left here.
        if (typeof source.config?.url !== 'string') return await fail(source, 'The source is stored without a URL.')
        if (!binding && (await tellBinding(source, row.cursor)) === 'over') continue
        binding = true
        const end = await readSource(reader, {
          runKey: source.run_key,
          ownerId,
          config: source.config,
          cursor: row.cursor,
          bound,
          signal,
          opened: (state) => (isTerminal(state.folds.run.status) ? [] : openedEvents(source, { bound, recovers })),
          async onOpen() {
            if (!bound) await sql`update run_sources set status = 'reading' where run_key = ${source.run_key} and owner_id = ${ownerId} and status = 'waiting'`
            bound = true
            recovers = false
          },
        })
        if (end.kind === 'lost') return
        if (end.kind === 'ended') return await tellEnd(source, bound || row.cursor !== null, end.reason)
        if (end.kind === 'never') return await fail(source, end.reason)
        if (end.kind === 'over' || signal.aborted) continue
        tries = end.events > 0 ? 1 : tries + 1
        const failures = await noteClosed(source, end, tries)
        if (failures >= config.SOURCE_MAX_FAILURES) return await fail(source, `${end.reason} It was tried ${failures} times in a row.`)
        await delay(pauseMs(tries, end.atLeastMs), undefined, { signal, ref: false }).catch(() => {})
      } catch (error) {
        logger.warn({ err: error, runKey: source.run_key }, 'a source could not be read; it is tried again')
        await delay(pauseMs(++tries, 0), undefined, { signal, ref: false }).catch(() => {})
      }
    }
    if (!closed)
      await leave(source).catch((error: unknown) => logger.warn({ err: error, runKey: source.run_key }, 'a source was not given up; its lease runs out'))
  }

  const pauseMs = (count: number, atLeastMs: number) =>
    backoffMs({ count, baseMs: config.SOURCE_RETRY_MS, maxMs: config.SOURCE_RETRY_MAX_MS, atLeastMs, random: random() })

  async function current(runKey: string): Promise<SourceRow | undefined> {
    const [row] = await sql<SourceRow[]>`
      select s.cursor, s.owner_id, r.status as run_status from run_sources s join runs r on r.key = s.run_key where s.run_key = ${runKey}`
    return row
  }

  /** Only what was not open counts: a quiet source whose connections end now and then has not failed. */
  async function noteClosed(source: ClaimedSource, end: Extract<ConnectionEnd, { kind: 'closed' }>, tries: number): Promise<number> {
    logger.debug({ runKey: source.run_key, source: nameOf(source.config), reason: end.reason, events: end.events, tries }, 'a source is asked again')
    if (end.opened) return 0
    const [row] = await sql<{ failures: number }[]>`
      update run_sources set failures = failures + 1, error = ${end.reason} where run_key = ${source.run_key} and owner_id = ${ownerId} returning failures`
    return row?.failures ?? 0
  }

  async function tellBinding(source: ClaimedSource, cursor: string | null): Promise<'over' | 'told'> {
    const outcome = await log.decide(
      source.run_key,
      ({ folds }) => (folds.run.status === 'queued' || folds.run.status === 'starting' ? [sessionEvent(source, 'session.bound', 'binding')] : []),
      { source: { ownerId, cursor } },
    )
    return outcome.kind === 'done' && !isTerminal(outcome.receipt.status) ? 'told' : 'over'
  }

  /** The source's own end: others may still say what becomes of the run (recovery.ts), but for one that has had no source at all. */
  async function tellEnd(source: ClaimedSource, bound: boolean, detail: string): Promise<void> {
    if (!bound) return fail(source, 'The source answered 204, that it has nothing, before it was open.')
    // The connection that ended with this may have moved it on.
    const { cursor = null } = (await current(source.run_key)) ?? {}
    await log.decide(source.run_key, ({ folds }) => (isTerminal(folds.run.status) ? [] : [sessionEvent(source, 'session.state.changed', 'ended', detail)]), {
      source: { ownerId, cursor },
    })
    await finish(source, 'drained', detail)
  }

  async function fail(source: ClaimedSource, why: string): Promise<void> {
    // It quotes what the source has said.
    const reason = deps.mask?.text(why) ?? why
    // The connection that ended with this may have moved it on.
    const { cursor = null } = (await current(source.run_key)) ?? {}
    const outcome = await log.decide(
      source.run_key,
      ({ folds }) =>
        isTerminal(folds.run.status) ? [] : [{ type: 'run.failed', data: { error: { code: 'SOURCE_FAILED', message: reason }, retryable: false } }],
      { source: { ownerId, cursor } },
    )
    if (outcome.kind === 'refused') return
    logger.warn({ runKey: source.run_key, source: nameOf(source.config), reason }, 'a source failed, and its run with it')
    await finish(source, 'failed', reason)
  }

  async function finish(source: ClaimedSource, status: 'drained' | 'ended' | 'failed', error: string | null): Promise<void> {
    await sql`
      update run_sources set status = ${status}, error = ${error}, owner_id = null, owner_expires_at = null
      where run_key = ${source.run_key} and owner_id = ${ownerId}`
  }

  /** The run may have ended elsewhere; where it has not, whoever comes next goes on. */
  async function leave(source: ClaimedSource): Promise<void> {
    const row = await current(source.run_key)
    if (row && isTerminal(row.run_status)) await finish(source, 'ended', null)
    else await sql`update run_sources set owner_id = null, owner_expires_at = null where run_key = ${source.run_key} and owner_id = ${ownerId}`
  }

  return {
    start() {
      look()
      const interval = (work: () => void, ms: number) => timers.push(setInterval(work, ms).unref())
      interval(look, config.RECOVERY_INTERVAL_MS)
      interval(() => {
        renewing ??= renew()
          .catch((error: unknown) => logger.warn({ err: error }, 'the leases of sources could not be renewed'))
          .finally(() => {
            renewing = undefined
          })
      }, config.SOURCE_LEASE_MS / 3)
    },
    committed(batch) {
      const has = (type: string) => batch.events.some((event) => event.type === type)
      if (isTerminal(batch.status) || (batch.status === 'queued' && has('run.released'))) readers.get(batch.runKey)?.aborter.abort()
      else if (batch.firstSeq === 1 || batch.status === 'starting' || has('run.retry_scheduled')) lookSoon()
    },
    get size() {
      return readers.size
    },
    async close() {
      closed = true
      clearTimeout(lookTimer)
      for (const timer of timers) clearInterval(timer)
      await looking
      await renewing
      for (const { aborter } of readers.values()) aborter.abort()
      await Promise.all(Array.from(readers.values(), ({ done }) => done))
      await sql`update run_sources set owner_id = null, owner_expires_at = null where owner_id = ${ownerId} and status in ('waiting', 'reading')`.catch(
        (error: unknown) => logger.warn({ err: error }, 'sources were not given up; their leases run out'),
      )
    },
  }
}

/** Nobody holds the run: it is read on once it has been claimed. */
const isGivenBack = (status: RunStatus, queue: string | null) => status === 'queued' && queue !== null

function openedEvents(source: ClaimedSource, { bound, recovers }: { bound: boolean; recovers: boolean }): DraftEvent[] {
  if (!bound) return [sessionEvent(source, 'session.stream.opened', 'opened')]
  // A connection that is made anew by the same reader is no news of the run's.
  if (!recovers) return []
  const detail = 'The source is read again from its stored cursor.'
  return [
    { type: 'run.recovered', data: { ...(source.previous_owner !== null && { previousOwner: source.previous_owner }), detail } },
    sessionEvent(source, 'session.stream.opened', 'recovered', detail),
  ]
}

function sessionEvent({ session_id, run_id }: ClaimedSource, type: string, status: string, detail?: string): DraftEvent {
  const sessionId = session_id ?? run_id
  return { type, subject: { kind: 'session', id: sessionId }, data: { sessionId, status, ...(detail !== undefined && { detail }) } }
}
