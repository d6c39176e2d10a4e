/**
 * Group commit: requests gather while the last group commits, and share the next transaction.
 *
 * The queue is per run, so that a run is in one transaction at a time and its requests stay in order. States:
 *   waiting  requests in the run's queue; the run is in `ready`, unless it is working or held
 *   working  a committer has the run; what arrives meanwhile waits for the next turn
 *   held     somebody else has the run's state, to fold a long log or to save it; the run is ready again afterwards, and no other waits with it
 * A group that can be stored by one statement goes to a connection that all committers share, behind the one before it: Postgres begins with it when that one is
 * committed, while this process answers that one. What takes longer than PATIENCE_MS there, or needs a transaction, has its committer's own connection.
 * The queue is bounded: a full one refuses with OVERLOADED, or lets the caller wait (`whenRoom`).
 * A group that fails for its data is taken apart, request by request and then item by item, so that a fault stays where it is; one that fails for
 * what is damaged in the database, request by request.
 */
import type { BaseLogger } from 'pino'
import type { Database, Sql } from '../db/client.js'
import { type Dedicated, dedicate } from '../db/dedicated.js'
import { isDamage, isDataError, retryDelayMs } from '../db/retry.js'
import { RunplaneError } from '../errors.js'
import { type Attempts, appendGroup, type GroupResult, type Hooks } from './append.js'
import { type AppendOutcome, type AppendRequest, eventsOf } from './append-request.js'
import type { CommittedBatch } from './committed.js'
import type { HotState, States } from './states.js'

/** What one transaction takes at the most; a larger group gains nothing (measured: flat from about 1,000 events on). */
const MAX_GROUP_EVENTS = 2000
const MAX_GROUP_BYTES = 4 * 1024 * 1024
const MAX_QUEUED_BYTES = 64 * 1024 * 1024
/** A group that takes longer holds up nobody: the next one does not wait behind it, and a statement that waits so long for a row's lock lets the next one pass. */
const PATIENCE_MS = 25
/**
 * What the log asks for it finds by keys, and it updates runs in the order of their keys: a plan that reads a whole table does neither, and has been chosen for a table
 * of a thousand runs, for twice the time.
 */
const BY_KEYS = { enable_seqscan: 'off', enable_hashjoin: 'off', enable_mergejoin: 'off' }
/** Attempts at a group that the database could not take for a passing reason. */
const MAX_ATTEMPTS = 8

interface Waiting {
  request: AppendRequest
  weight: number
  bytes: number
  resolve(outcome: AppendOutcome): void
  reject(error: unknown): void
}

type Decide = NonNullable<AppendRequest['decide']>

export interface GroupCommitDeps {
  sql: Sql
  /** Opens the committers' connections: one each. */
  connect: Database['connect']
  states: States
  committers: number
  maxQueuedEvents: number
  /** Called after each commit, before the requests are answered. Where it throws that is logged: the events are stored, and answered as such. */
  onCommitted(batches: CommittedBatch[]): void
  onGroup?(group: { requests: number; events: number; durationMs: number }): void
  log: Pick<BaseLogger, 'warn' | 'error'>
}

export interface GroupCommit {
  /** Durable when it resolves. Throws OVERLOADED when the queue is full. */
  append(request: AppendRequest): Promise<AppendOutcome>
  /** The same for a part of a long body: waits for its turn instead of being refused, and leaves half of the queue to others. */
  appendWhenRoom(request: AppendRequest): Promise<AppendOutcome>
  /** Events of the control plane alone: see AppendRequest. */
  decide(runKey: string, decide: Decide, known?: Pick<AppendRequest, 'source' | 'reserved'>): Promise<AppendOutcome>
  readonly queuedEvents: number
  /** Refuses new requests, and waits for those that it has. */
  close(): Promise<void>
}

export function createGroupCommit(deps: GroupCommitDeps): GroupCommit {
  const { sql, states, log } = deps
  const connections = Array.from({ length: deps.committers }, () => dedicate(deps.connect, { connection: BY_KEYS }))
  const idle = [...connections]
  const shared = dedicate(deps.connect, { connection: { ...BY_KEYS, lock_timeout: PATIENCE_MS } })
  const hooks: Hooks = { enabled: undefined }
  const queues = new Map<string, Waiting[]>()
  const ready: string[] = []
  const working = new Set<string>()
  const held = new Set<string>()
  const roomWaiters: (() => void)[] = []
  const idleWaiters: (() => void)[] = []
  let queuedEvents = 0
  let queuedBytes = 0
  let running = 0
  /** Of the running committers, those whose group has taken longer than PATIENCE_MS. */
  let slow = 0
  let closed = false
  let waitingEvents = 0
  /** In the groups that are under way and not slow. */
  let workingEvents = 0
  let scheduled = false

  /**
   * Requests that arrive in one turn of the event loop share a group: a committer starts after the turn. While groups are under way another one begins when as
   * much waits as they have: large groups cost the least, and two of them keep both Postgres and this process busy.
   */
  function schedule(): void {
    if (scheduled || ready.length === 0 || waitingEvents < workingEvents) return
    scheduled = true
    setImmediate(() => {
      scheduled = false
      startCommitter()
    })
  }

  function startCommitter(): void {
    const connection = ready.length > 0 ? idle.pop() : undefined
    if (!connection) return
    running++
    void commitLoop(connection).finally(() => {
      running--
      idle.push(connection)
      if (isIdle()) for (const resolve of idleWaiters.splice(0)) resolve()
      schedule()
    })
    schedule()
  }

  const isIdle = () => running === 0 && ready.length === 0 && held.size === 0

  /** Whoever has the state may take long: the run is ready again when it is free. */
  function whenFree(runKey: string): void {
    held.add(runKey)
    void states
      .hold(runKey, async () => {})
      .finally(() => {
        held.delete(runKey)
        ready.push(runKey)
        schedule()
      })
  }

  function takeGroup(): { group: Waiting[]; events: number; bytes: number } {
    const group: Waiting[] = []
    let events = 0
    let bytes = 0
    while (ready.length > 0 && events < MAX_GROUP_EVENTS && bytes < MAX_GROUP_BYTES) {
      const runKey = ready.shift()
      const queue = runKey === undefined ? undefined : queues.get(runKey)
      if (runKey === undefined || !queue) continue
      if (states.isHeld(runKey)) {
        whenFree(runKey)
        continue
      }
      working.add(runKey)
      let taken = 0
      for (const one of queue) {
        if (group.length > 0 && (events + one.weight > MAX_GROUP_EVENTS || bytes + one.bytes > MAX_GROUP_BYTES)) break
        group.push(one)
        waitingEvents -= one.weight
        events += one.weight
        bytes += one.bytes
        taken++
      }
      queue.splice(0, taken)
      if (taken === 0) {
        // Did not fit any more: it goes first the next time.
        working.delete(runKey)
        ready.unshift(runKey)
        break
      }
    }
    return { group, events, bytes }
  }

  async function commitLoop(connection: Dedicated): Promise<void> {
    while (ready.length > 0) {
      const { group, events, bytes } = takeGroup()
      if (group.length === 0) return
      const runKeys = [...new Set(group.map((one) => one.request.runKey))]
      workingEvents += events
      let isSlow = false
      const patience = setTimeout(() => {
        isSlow = true
        slow++
        workingEvents -= events
        schedule()
      }, PATIENCE_MS)
      try {
        await states.holdAll(runKeys, (hot) => commit(connection, group, hot))
      } catch (error) {
        for (const one of group) one.reject(error)
      } finally {
        clearTimeout(patience)
        if (isSlow) slow--
        else workingEvents -= events
      }
      queuedEvents -= events
      queuedBytes -= bytes
      for (const runKey of runKeys) {
        working.delete(runKey)
        if (queues.get(runKey)?.length) ready.push(runKey)
        else queues.delete(runKey)
      }
      while (hasRoomForParts()) {
        const admit = roomWaiters.shift()
        if (!admit) break
        admit()
      }
    }
  }

  async function commit(connection: Dedicated, group: Waiting[], hot: Map<string, HotState>): Promise<void> {
    const startedMs = performance.now()
    let result: GroupResult
    const attempts: Attempts = {}
    const atOnce = slow > 0 ? connection.sql : shared.sql
    try {
      result = await withRetries(() =>
        appendGroup(
          connection,
          sql,
          group.map((one) => one.request),
          hot,
          attempts,
          { atOnce, hooks },
        ),
      )
    } catch (error) {
      if (error instanceof RunplaneError || !(isDataError(error) || isDamage(error))) {
        for (const one of group) one.reject(error)
        return
      }
      log.warn({ err: error, requests: group.length }, 'a group of appends failed and is taken apart')
      await takeApart(connection, group, hot, error)
      return
    }
    // Outside the try: what has been stored must not be stored again.
    tell(result.committed)
    // After this turn's promises, by which the next group has been sent: Postgres works on that one while this one is answered.
    process.nextTick(() => {
      result.outcomes.forEach((outcome, index) => {
        group[index]?.resolve(outcome)
      })
    })
    deps.onGroup?.({ requests: group.length, events: result.events, durationMs: performance.now() - startedMs })
  }

  function tell(committed: CommittedBatch[]): void {
    try {
      deps.onCommitted(committed)
    } catch (error) {
      log.error({ err: error }, 'what was committed could not be told to all who wait for it')
    }
    for (const { runId, runKey, events } of committed)
      if (events.length === 0) log.warn({ runId, runKey }, 'a run has failed, for its log cannot be folded; its error says why')
  }

  async function takeApart(connection: Dedicated, group: Waiting[], hot: Map<string, HotState>, error: unknown): Promise<void> {
    if (group.length > 1) {
      for (const one of group) await commit(connection, [one], onlyOf(hot, [one]))
      return
    }
    const [one] = group
    if (!one) return
    if (one.request.items.length < 2 || isDamage(error)) {
      one.reject(error)
      return
    }
    const items = [...one.request.items]
    let poisoned = 0
    for (const [index, item] of items.entries()) {
      try {
        const { ifMatch: _, producer: _p, requestKey: _k, decide: _d, ...request } = one.request
        await withRetries(() => appendGroup(connection, sql, [{ ...request, items: [item] }], hot, {}, { probe: true }))
      } catch (fault) {
        if (!isDataError(fault)) {
          one.reject(fault)
          return
        }
        log.warn({ err: fault, index }, 'the database refused an event')
        poisoned++
        items[index] = {
          ...item,
          normalized: { ok: false, code: 'VALIDATION_ERROR', detail: 'The database cannot hold this event. The others of the request are stored.' },
        }
      }
    }
    if (poisoned === 0) {
      one.reject(error)
      return
    }
    const attempts: Attempts = {}
    try {
      const { outcomes, committed } = await withRetries(() => appendGroup(connection, sql, [{ ...one.request, items }], hot, attempts))
      tell(committed)
      const [outcome] = outcomes
      if (outcome) one.resolve(outcome)
    } catch (fault) {
      one.reject(fault)
    }
  }

  async function withRetries<T>(attempt: () => Promise<T>): Promise<T> {
    for (let count = 1; ; count++) {
      try {
        return await attempt()
      } catch (error) {
        const delayMs = retryDelayMs(error, count)
        if (delayMs === undefined || count >= MAX_ATTEMPTS) throw error
        await new Promise((resolve) => setTimeout(resolve, delayMs))
      }
    }
  }

  const hasRoom = () => queuedEvents < deps.maxQueuedEvents && queuedBytes < MAX_QUEUED_BYTES
  /** Of many uploads at once the parts leave room for what cannot wait. */
  const hasRoomForParts = () => queuedEvents < deps.maxQueuedEvents / 2 && queuedBytes < MAX_QUEUED_BYTES / 2

  function enqueue(request: AppendRequest): Promise<AppendOutcome> {
    if (closed)
      return Promise.reject(new RunplaneError('OVERLOADED', 'The service is shutting down. Send the request again.', { headers: { 'retry-after': '1' } }))
    const weight = weightOf(request)
    const bytes = request.items.reduce((sum, item) => sum + item.text.length, 0)
    queuedEvents += weight
    waitingEvents += weight
    queuedBytes += bytes
    return new Promise((resolve, reject) => {
      const waiting = { request, weight, bytes, resolve, reject }
      const queue = queues.get(request.runKey)
      if (queue) queue.push(waiting)
      else queues.set(request.runKey, [waiting])
      if (!working.has(request.runKey) && !held.has(request.runKey) && !(queue && queue.length > 1)) ready.push(request.runKey)
      schedule()
    })
  }

  function append(request: AppendRequest): Promise<AppendOutcome> {
    if (queuedEvents > 0 && (queuedEvents + weightOf(request) > deps.maxQueuedEvents || !hasRoom())) {
      return Promise.reject(
        new RunplaneError(
          'OVERLOADED',
          `${queuedEvents} events wait for the database already (MAX_QUEUED_EVENTS). Nothing was stored; send the request again in a moment.`,
          { headers: { 'retry-after': '1' } },
        ),
      )
    }
    return enqueue(request)
  }

  return {
    append,
    decide: (runKey, decide, known) => append({ runKey, receivedAt: new Date().toISOString(), items: [], decide, ...known }),
    appendWhenRoom(request) {
      if (hasRoomForParts() && roomWaiters.length === 0) return enqueue(request)
      return new Promise((resolve) => roomWaiters.push(() => resolve(enqueue(request))))
    },
    get queuedEvents() {
      return queuedEvents
    },
    async close() {
      closed = true
      for (const admit of roomWaiters.splice(0)) admit()
      if (!isIdle()) await new Promise<void>((resolve) => idleWaiters.push(resolve))
      await Promise.all([shared, ...connections].map((connection) => connection.end()))
    },
  }
}

/** The events that a request becomes: an item of some formats is many. */
function weightOf({ items }: AppendRequest): number {
  let events = 0
  for (const item of items) events += eventsOf(item)
  return Math.max(1, events)
}

function onlyOf(hot: Map<string, HotState>, group: Waiting[]): Map<string, HotState> {
  const keys = new Set(group.map((one) => one.request.runKey))
  return new Map([...hot].filter(([runKey]) => keys.has(runKey)))
}
