/**
 * Claims: workers that wait for runs, and the runs that are handed to them.
 *
 * Claimers that want the same queues of the same workspace wait in one line. When runs may have come, one statement reserves runs for as many as
 * wait, and the claims are appended together; so thousands of claimers cost the database no more than one.
 * A line is looked at when a claimer joins it, when a run arrives here (`committed`) or on another instance (`woken`), and when the poll, one
 * statement for all lines, finds that a wake-up was lost.
 *
 *   joining -> in line -> being served -> answered with a run
 *                 ^          |  refused: the run was gone
 *                 +----------+
 *              in line -> answered with none (its time is over, or the service stops), or gone (disconnected): then a run that it was just
 *              given is released at once
 */
import { createHash } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import type { BaseLogger } from 'pino'
import type { Sql } from '../db/client.js'
import { decideClaim, decideRelease, type LeaseDefaults } from '../domain/queue.js'
import { isTerminal } from '../domain/run.js'
import type { CommittedBatch, CommittedEvent } from '../log/committed.js'
import type { GroupCommit } from '../log/group-commit.js'
import type { RunKeys } from '../log/run-keys.js'
import { type States, warm } from '../log/states.js'
import { type RunRecord, runByKey, toRecord } from './record.js'
import { placeOf, queuesWithRuns, type ReservedRun, reserve, unreserve } from './reservations.js'

export interface ClaimRequest {
  workspaceId: string
  queues: readonly string[]
  workerId: string
  leaseMs?: number | undefined
  /** How long to wait for a run; 0: not at all. */
  waitMs: number
}

export interface Claims {
  /** The run that the worker holds from now on; undefined when none came in time. A claimer whose signal aborts is given none. */
  claim(request: ClaimRequest, gone: AbortSignal): Promise<RunRecord | undefined>
  /** The answer could not be delivered: the run goes back. */
  giveBack(workspaceId: string, runId: string, workerId: string): Promise<void>
  /** What has been committed here. */
  committed(batches: readonly CommittedBatch[]): void
  /** Runs of a queue can be claimed now. */
  arrived(workspaceId: string, queue: string): void
  /** A wake-up of another instance. @returns false where it is not about queues */
  woken(hint: string): boolean
  /** Answers all that wait. */
  stop(): void
  /** Waits for what is under way. */
  close(): Promise<void>
}

export interface ClaimsDeps {
  sql: Sql
  log: GroupCommit
  states: States
  runKeys: Pick<RunKeys, 'remember'>
  defaults: Pick<LeaseDefaults, 'leaseMs'>
  /** Between two looks for what a lost wake-up would have told. */
  pollMs: number
  logger: Pick<BaseLogger, 'warn'>
  /** Tells other instances. */
  publish(hint: string): void
  /** A run waits for its time. */
  onDelayed(): void
}

interface Claimer {
  request: ClaimRequest
  number: number
  isGone: boolean
  /** Past its time: it is answered after the next look that it is part of. */
  isLast: boolean
  timer: NodeJS.Timeout | undefined
  answer(run: RunRecord | undefined): void
  fail(error: unknown): void
}

interface Line {
  name: string
  workspaceId: string
  queues: readonly string[]
  waiting: Set<Claimer>
  isLooking: boolean
  lookAgain: boolean
  hasLimits: boolean
}

/** Claimers that one statement reserves for. */
const MAX_BATCH = 100
/** After a line came up short: what another transaction had locked just then may be free. */
const SECOND_LOOK_MS = 150
/** While the runs that were found are all locked by others. */
const CONTENDED_MS = 5
/** Ends of runs make room in queues with limits; several share a look. */
const FREED_MS = 10
const ARRIVED = 'q:'
const FREED = 'f:'

/** A wake-up is as short as the key of a run. */
const hintOf = (kind: typeof ARRIVED | typeof FREED, ...names: string[]) => kind + createHash('sha256').update(names.join(' ')).digest('hex').slice(0, 32)
const MAX_HINTS = 1000

export function createClaims({ sql, log, states, runKeys, defaults, pollMs, logger, publish, onDelayed }: ClaimsDeps): Claims {
  const lines = new Map<string, Line>()
  const linesByHint = new Map<string, Set<Line>>()
  const freedHints = new Map<string, string>()
  const underWay = new Set<Promise<unknown>>()
  let claimers = 0
  let isStopped = false
  let pollTimer: NodeJS.Timeout | undefined
  let pollAt = Number.POSITIVE_INFINITY
  let freedTimer: NodeJS.Timeout | undefined

  function track(work: Promise<unknown>): void {
    const owned: Promise<unknown> = work
      .catch((error: unknown) => logger.warn({ err: error }, 'a claim could not be finished'))
      .finally(() => underWay.delete(owned))
    underWay.add(owned)
  }

  function lineOf({ workspaceId, queues }: ClaimRequest): Line {
    const names = [...new Set(queues)].sort()
    const name = JSON.stringify([workspaceId, ...names])
    const known = lines.get(name)
    if (known) return known
    const line: Line = { name, workspaceId, queues: names, waiting: new Set(), isLooking: false, lookAgain: false, hasLimits: false }
    lines.set(name, line)
    for (const hint of hintsOf(line)) linesByHint.set(hint, (linesByHint.get(hint) ?? new Set()).add(line))
    return line
  }

  const hintsOf = (line: Line) => [hintOf(FREED, line.workspaceId), ...line.queues.map((queue) => hintOf(ARRIVED, line.workspaceId, queue))]

  function dropIfEmpty(line: Line): void {
    if (line.waiting.size > 0 || line.isLooking) return
    lines.delete(line.name)
    for (const hint of hintsOf(line)) {
      const group = linesByHint.get(hint)
      group?.delete(line)
      if (group?.size === 0) linesByHint.delete(hint)
    }
  }

  function look(line: Line): void {
    if (line.isLooking) line.lookAgain = true
    else {
      line.isLooking = true
      track(serve(line))
    }
  }

  async function serve(line: Line): Promise<void> {
    try {
      do {
        line.lookAgain = false
        const count = Math.min(line.waiting.size, MAX_BATCH)
        if (count === 0) break
        const joined = claimers
        const found = await reserve(sql, { workspaceId: line.workspaceId, queues: line.queues, count }, line.hasLimits)
        line.hasLimits = found.hasLimits
        await warm(states, found.runs)
        handOut(line, found.runs)
        if (found.isContended || found.runs.length === count) {
          line.lookAgain = true
          if (found.runs.length === 0) await delay(CONTENDED_MS)
        } else {
          for (const claimer of line.waiting) if (claimer.isLast && claimer.number <= joined) leave(line, claimer)
          if (line.waiting.size > 0 && !line.hasLimits) pollWithin(SECOND_LOOK_MS)
        }
      } while (line.lookAgain)
    } catch (error) {
      logger.warn({ err: error }, 'no runs could be reserved')
      for (const claimer of line.waiting) {
        if (!claimer.isLast) continue
        line.waiting.delete(claimer)
        claimer.fail(error)
      }
    } finally {
      line.isLooking = false
      dropIfEmpty(line)
    }
  }

  function handOut(line: Line, runs: readonly ReservedRun[]): void {
    const left: ReservedRun[] = []
    for (const run of runs) {
      const [claimer] = line.waiting
      if (claimer) {
        line.waiting.delete(claimer)
        track(claimFor(line, claimer, run))
      } else left.push(run)
    }
    if (left.length > 0) track(putBack(line, left))
  }

  async function putBack(line: Line, runs: readonly ReservedRun[]): Promise<void> {
    await unreserve(sql, runs)
    for (const { queue } of runs) if (queue !== null) arrived(line.workspaceId, queue)
  }

  async function claimFor(line: Line, claimer: Claimer, run: ReservedRun): Promise<void> {
    const { workerId, leaseMs } = claimer.request
    let place = placeOf(run)
    let lease: Readonly<Record<string, unknown>> = {}
    const reserved = { id: run.id, workspaceId: line.workspaceId, lastSeq: run.last_seq, lastRawSeq: run.last_raw_seq, place }
    try {
      const outcome = await log.decide(
        run.key,
        (state, placed) => {
          place = placed
          const events = decideClaim({ workerId, leaseMs, reservedUntil: run.reserved_until }, foldedRun(run.id, state.folds.run), placed, placed.now, defaults)
          lease = events[0]?.data ?? {}
          return events
        },
        { reserved },
      )
      if (outcome.kind !== 'done') {
        rejoin(line, claimer)
        return
      }
      if (claimer.isGone) {
        await release(run.key, run.id, workerId)
        return
      }
      const { receipt } = outcome
      runKeys.remember(line.workspaceId, run.id, run.key)
      const isAsRead = receipt.headSeq === run.last_seq + 1
      claimer.answer(isAsRead ? recordOf(run, receipt.status, receipt.headSeq, place.now, lease) : await runByKey(sql, run.key))
    } catch (error) {
      claimer.fail(error)
      await putBack(line, [run])
    }
  }

  function rejoin(line: Line, claimer: Claimer): void {
    if (claimer.isGone) return
    if (isStopped) {
      claimer.answer(undefined)
      return
    }
    // The line may have been dropped meanwhile.
    const current = lineOf(claimer.request)
    claimer.number = ++claimers
    current.waiting.add(claimer)
    look(current)
    if (current !== line) dropIfEmpty(line)
  }

  function leave(line: Line, claimer: Claimer): void {
    line.waiting.delete(claimer)
    claimer.answer(undefined)
    dropIfEmpty(line)
  }

  async function release(runKey: string, runId: string, workerId: string): Promise<void> {
    await log.decide(runKey, (state, placed) => decideRelease({ workerId }, foldedRun(runId, state.folds.run), placed, placed.now))
  }

  function arrived(workspaceId: string, queue: string): void {
    const hint = hintOf(ARRIVED, workspaceId, queue)
    publish(hint)
    woken(hint)
  }

  function woken(hint: string): boolean {
    if (hint.startsWith(ARRIVED)) for (const line of linesByHint.get(hint) ?? []) look(line)
    else if (hint.startsWith(FREED)) {
      if ([...(linesByHint.get(hint) ?? [])].some((line) => line.hasLimits)) freedTimer ??= setTimeout(lookForRoom, FREED_MS)
    } else return false
    return true
  }

  function lookForRoom(): void {
    freedTimer = undefined
    for (const line of lines.values()) if (line.hasLimits) look(line)
  }

  function pollWithin(ms: number): void {
    if (isStopped || Date.now() + ms >= pollAt) return
    clearTimeout(pollTimer)
    pollAt = Date.now() + ms
    pollTimer = setTimeout(() => track(poll(ms < pollMs)), ms).unref()
  }

  /** @param isEarly for those only whose runs may have been locked: where a limit is full, the end of a run tells that there is room. */
  async function poll(isEarly: boolean): Promise<void> {
    pollAt = Number.POSITIVE_INFINITY
    const waiting = [...lines.values()].filter((line) => line.waiting.size > 0 && !(isEarly && line.hasLimits))
    try {
      const wanted = new Map(waiting.flatMap((line) => line.queues.map((q) => [hintOf(ARRIVED, line.workspaceId, q), { w: line.workspaceId, q }])))
      if (wanted.size > 0) for (const { w, q } of await queuesWithRuns(sql, [...wanted.values()])) woken(hintOf(ARRIVED, w, q))
    } finally {
      if ([...lines.values()].some((line) => line.waiting.size > 0)) pollWithin(pollMs)
    }
  }

  return {
    claim(request, gone) {
      return new Promise((resolve, reject) => {
        if (isStopped || gone.aborted) {
          resolve(undefined)
          return
        }
        const line = lineOf(request)
        const done = () => {
          clearTimeout(claimer.timer)
          gone.removeEventListener('abort', onGone)
        }
        const claimer: Claimer = {
          request,
          number: ++claimers,
          isGone: false,
          isLast: request.waitMs === 0,
          timer: undefined,
          answer(run) {
            done()
            resolve(run)
          },
          fail(error) {
            done()
            reject(error)
          },
        }
        const leaveLine = () => {
          const current = lines.get(line.name)
          if (current?.waiting.has(claimer)) leave(current, claimer)
        }
        const onGone = () => {
          claimer.isGone = true
          leaveLine()
          claimer.answer(undefined)
        }
        gone.addEventListener('abort', onGone, { once: true })
        if (request.waitMs > 0) {
          claimer.timer = setTimeout(() => {
            // While it is being served, the answer is on its way; if the run is gone by then, there is one more look.
            claimer.isLast = true
            leaveLine()
          }, request.waitMs)
        }
        line.waiting.add(claimer)
        look(line)
        pollWithin(pollMs)
      })
    },
    async giveBack(workspaceId, runId, workerId) {
      const [row] = await sql<{ key: string }[]>`select key from runs where workspace_id = ${workspaceId} and id = ${runId}`
      if (row) await release(row.key, runId, workerId)
    },
    committed(batches) {
      const freed = new Set<string>()
      for (const batch of batches) {
        let isFreed = isTerminal(batch.status)
        for (const event of batch.events) {
          if (event.type !== 'run.queued' && event.type !== 'run.released' && event.type !== 'run.retry_scheduled') continue
          isFreed ||= event.type !== 'run.queued'
          const { queue, isDelayed } = queuedBy(event)
          if (isDelayed) onDelayed()
          else if (queue !== undefined) arrived(batch.workspaceId, queue)
        }
        if (isFreed) freed.add(batch.workspaceId)
      }
      for (const workspaceId of freed) {
        const hint = freedHints.get(workspaceId) ?? hintOf(FREED, workspaceId)
        if (freedHints.size < MAX_HINTS) freedHints.set(workspaceId, hint)
        publish(hint)
        woken(hint)
      }
    },
    arrived,
    woken,
    stop() {
      isStopped = true
      clearTimeout(pollTimer)
      clearTimeout(freedTimer)
      for (const line of lines.values()) for (const claimer of line.waiting) leave(line, claimer)
    },
    async close() {
      while (underWay.size > 0) await Promise.all(underWay)
    },
  }
}

const foldedRun = (runId: string, { status, attempt }: { status: RunRecord['status']; attempt: number }) => ({ runId, status, attempt })

/** Where an event puts its run. */
function queuedBy(event: CommittedEvent): { queue: string | undefined; isDelayed: boolean } {
  const { data }: { data: { queue?: unknown; availableAt?: unknown; delayMs?: unknown } } = JSON.parse(event.json)
  // Whatever an agent has told: the queue's own are of these types.
  const isLater = typeof data.delayMs === 'number' && data.delayMs > 0
  return { queue: typeof data.queue === 'string' ? data.queue : undefined, isDelayed: data.availableAt !== undefined || isLater }
}

/** The record as it is after the claim: what was read when the run was reserved, and what the claim has changed since. */
function recordOf(run: ReservedRun, status: RunRecord['status'], lastSeq: number, now: string, lease: Readonly<Record<string, unknown>>): RunRecord {
  return toRecord({
    ...run,
    status,
    last_seq: lastSeq,
    updated_at: now,
    worker_id: String(lease.workerId),
    lease_expires_at: String(lease.leaseExpiresAt),
    lease_length_ms: Number(lease.leaseMs),
  })
}
