/**
 * Leases: what their holders do (heartbeat, release), and what time does to runs in queues.
 *
 * A loop on every instance finds leases that ran out, runs whose time has come, and reservations that nobody turned into a claim. What
 * becomes of a run is decided under its lock, so that several instances may find the same: the second one decides that there is nothing to do.
 * They are looked for by the time of the statement: an index cannot be searched by `clock_timestamp()`, which may be another one for each row.
 * A heartbeat is no event: it moves the row's lease on, if the row says that the worker holds it at that moment.
 */
import type { BaseLogger } from 'pino'
import type { Sql } from '../db/client.js'
import { utcColumn } from '../db/utc.js'
import { UNPLACED } from '../domain/placement.js'
import { assertHolder, decideExpiry, decideRelease, type LeaseDefaults } from '../domain/queue.js'
import type { RunStatus } from '../domain/run.js'
import { RunplaneError, runNotFound } from '../errors.js'
import { LEASE_HOLDS } from '../log/append-rows.js'
import type { GroupCommit } from '../log/group-commit.js'

export interface Heartbeat {
  /** Null while the lease stands still, for the run is suspended. */
  leaseExpiresAt: string | null
  cancelRequested: boolean
  status: RunStatus
}

export interface Leases {
  /** @throws RUN_NOT_FOUND, LEASE_LOST */
  heartbeat(workspaceId: string, runId: string, workerId: string, leaseMs?: number): Promise<Heartbeat>
  /** @throws RUN_NOT_FOUND, LEASE_LOST, INVALID_STATE_TRANSITION */
  release(run: { key: string; id: string }, workerId: string, delayMs?: number): Promise<void>
  /** Looks within a moment: a run has come that waits for its time. */
  soon(): void
  start(): void
  close(): Promise<void>
}

export interface LeasesDeps {
  sql: Sql
  log: GroupCommit
  defaults: LeaseDefaults
  checkMs: number
  logger: Pick<BaseLogger, 'warn'>
  /** Runs of a queue can be claimed now. */
  onArrived(workspaceId: string, queue: string): void
}

/** Runs of one round; more of them follow at once. */
const BATCH = 200
/** Several runs that wait for their time share a look. */
const SOON_MS = 5

interface QueueRow {
  workspace_id: string
  queue: string
}

export function createLeases({ sql, log, defaults, checkMs, logger, onArrived }: LeasesDeps): Leases {
  let timer: NodeJS.Timeout | undefined
  let soonTimer: NodeJS.Timeout | undefined
  let dueTimer: NodeJS.Timeout | undefined
  let round: Promise<void> | undefined
  let dueRound: Promise<void> | undefined
  let isClosed = false

  /** Runs whose time has come can be claimed from now on. Asks when the next one is due. */
  async function due(): Promise<void> {
    for (let count = BATCH; count === BATCH; ) {
      const rows = await sql<QueueRow[]>`
        with due as materialized (
          select key from runs where status = 'queued' and queue is not null and available_at is not null and available_at <= statement_timestamp()
          order by available_at limit ${BATCH} for update skip locked
        )
        update runs set available_at = null where key in (select key from due) returning workspace_id, queue`
      count = rows.length
      tell(rows)
    }
    const [next] = await sql<{ ms: number | null }[]>`
      select (extract(epoch from min(available_at) - clock_timestamp()) * 1000)::float8 as ms from runs
      where status = 'queued' and queue is not null and available_at is not null`
    clearTimeout(dueTimer)
    // What is due later than the next round is found by it.
    if (!isClosed && typeof next?.ms === 'number' && next.ms < checkMs) dueTimer = setTimeout(lookForDue, Math.max(1, next.ms)).unref()
  }

  function lookForDue(): void {
    if (isClosed || dueRound) return
    dueRound = due()
      .catch((error: unknown) => logger.warn({ err: error }, 'runs whose time has come could not be looked for'))
      .finally(() => {
        dueRound = undefined
      })
  }

  function tell(rows: readonly QueueRow[]): void {
    const told = new Set<string>()
    for (const { workspace_id, queue } of rows) {
      const name = `${workspace_id} ${queue}`
      if (!told.has(name)) onArrived(workspace_id, queue)
      told.add(name)
    }
  }

  async function undoReservations(): Promise<void> {
    const rows = await sql<QueueRow[]>`
      with lapsed as materialized (select key from runs where reserved_until < statement_timestamp() limit ${BATCH} for update skip locked)
      update runs set reserved_until = null where key in (select key from lapsed) returning workspace_id, queue`
    tell(rows)
  }

  /** A run that was suspended with its holder, and whose agent went on by its own word: its lease runs again. */
  async function restart(): Promise<void> {
    await sql`
      with still as materialized (
        select key from runs where worker_id is not null and (worker_id is not null or reserved_until is not null) and lease_expires_at is null
          and status in ('starting', 'binding_session', 'running') limit ${BATCH} for update skip locked
      )
      update runs set lease_remaining_ms = null,
        lease_expires_at = date_trunc('milliseconds', clock_timestamp()) + coalesce(lease_remaining_ms, lease_length_ms, ${defaults.leaseMs}) * interval '1 ms'
      where key in (select key from still)`
  }

  async function expire(): Promise<void> {
    for (let count = BATCH; count === BATCH && !isClosed; ) {
      // Those that are locked just now are being changed: the next round looks again.
      const rows = await sql<{ key: string; id: string }[]>`
        select key, id from runs where lease_expires_at <= statement_timestamp() order by lease_expires_at limit ${BATCH} for update skip locked`
      count = rows.length
      const ended = await Promise.allSettled(rows.map((run) => expireOne(run)))
      for (const [index, result] of ended.entries()) {
        if (result.status === 'rejected') {
          logger.warn({ err: result.reason, runId: rows[index]?.id }, 'a lease that ran out could not be ended; the next round tries again')
          count = 0
        }
      }
    }
  }

  async function expireOne(run: { key: string; id: string }): Promise<void> {
    await log.decide(run.key, (state, place) => {
      const { status, attempt } = state.folds.run
      return decideExpiry({ jitter: Math.random() }, { runId: run.id, status, attempt }, place, place.now, defaults)
    })
  }

  async function rounds(): Promise<void> {
    for (const work of [undoReservations, restart, expire]) {
      await work().catch((error: unknown) => {
        if (!isClosed) logger.warn({ err: error }, 'leases could not be looked at')
      })
    }
    lookForDue()
    await dueRound
  }

  function schedule(): void {
    if (isClosed) return
    // Instances do not look at the same moment.
    timer = setTimeout(
      () => {
        round = rounds().finally(schedule)
      },
      checkMs * (0.75 + Math.random() / 2),
    ).unref()
  }

  return {
    async heartbeat(workspaceId, runId, workerId, leaseMs) {
      const [beaten] = await sql<{ status: RunStatus; lease_expires_at: string | null; cancel_requested: boolean }[]>`
        update runs set
          lease_expires_at = case when lease_expires_at is not null or status <> 'suspended' then
            date_trunc('milliseconds', clock_timestamp()) + coalesce(${leaseMs ?? null}::int, lease_length_ms, ${defaults.leaseMs}) * interval '1 ms' end,
          lease_remaining_ms = case when lease_expires_at is null and status = 'suspended' then lease_remaining_ms end
        where workspace_id = ${workspaceId} and id = ${runId} and worker_id = ${workerId} and ${sql.unsafe(LEASE_HOLDS)}
        returning status, ${utcColumn(sql, 'lease_expires_at')}, cancel_requested_at is not null as cancel_requested`
      if (beaten) return { leaseExpiresAt: beaten.lease_expires_at, cancelRequested: beaten.cancel_requested, status: beaten.status }
      const [row] = await sql<{ status: RunStatus; attempt: number; worker_id: string | null }[]>`
        select status, attempt, worker_id from runs where workspace_id = ${workspaceId} and id = ${runId}`
      if (!row) throw runNotFound(runId)
      // Whatever the row says now, the lease was not there when it was to be moved on.
      assertHolder(workerId, { runId, ...row }, { ...UNPLACED, workerId: row.worker_id }, new Date().toISOString())
      throw new RunplaneError('LEASE_LOST', `Worker '${workerId}' does not hold run '${runId}': stop working on it, and claim again.`)
    },

    async release(run, workerId, delayMs) {
      const outcome = await log.decide(run.key, (state, place) => {
        const { status, attempt } = state.folds.run
        return decideRelease({ workerId, delayMs }, { runId: run.id, status, attempt }, place, place.now)
      })
      if (outcome.kind === 'refused') throw outcome.error
      if (outcome.kind !== 'done') throw runNotFound(run.id)
    },

    soon() {
      if (isClosed) return
      soonTimer ??= setTimeout(() => {
        soonTimer = undefined
        lookForDue()
      }, SOON_MS).unref()
    },

    start() {
      schedule()
    },

    async close() {
      isClosed = true
      for (const one of [timer, soonTimer, dueTimer]) clearTimeout(one)
      await round
      await dueRound
    },
  }
}
