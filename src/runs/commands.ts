/**
 * Commands on runs that there are. What each does is decided in domain/command.ts under the run's lock, so that two at once are one after the other;
 * here the run is found, and made anew or deleted.
 */
import type { Sql } from '../db/client.js'
import type { DraftEvent } from '../domain/canonical-event.js'
import {
  assertWorks,
  type Because,
  type CommandedPlace,
  type CommandedRun,
  decideCancel,
  decideResume,
  decideRetry,
  decideSuspend,
  refused,
} from '../domain/command.js'
import { isTerminal, type RunStatus } from '../domain/run.js'
import type { CreateRun, RunDescriptor, RunPlan } from '../domain/run-request.js'
import { runNotFound } from '../errors.js'
import { LogCorrupt } from '../log/corrupt.js'
import type { GroupCommit } from '../log/group-commit.js'
import type { RunKeys } from '../log/run-keys.js'
import type { FoldState } from '../projections/fold.js'
import type { Deletions } from './deletions.js'
import type { Lifecycle } from './lifecycle.js'

export interface RetryAsNew extends Because {
  /** Of the new run. */
  id?: string | undefined
  delayMs?: number | undefined
  idempotencyKey?: string | undefined
}

export interface Commands {
  cancel(workspaceId: string, runId: string, because: Because): Promise<void>
  suspend(workspaceId: string, runId: string, because: Because): Promise<void>
  resume(workspaceId: string, runId: string, because: Because): Promise<void>
  retry(workspaceId: string, runId: string, options: Because & { delayMs?: number | undefined }): Promise<void>
  /** A run of its own, linked both ways. The same Idempotency-Key or id makes one only. @returns its id. */
  retryAsNew(workspaceId: string, runId: string, options: RetryAsNew): Promise<{ runId: string; created: boolean }>
  /** @param overrides fields of the clone that are not the original's */
  clone(workspaceId: string, runId: string, overrides: RunPlan, idempotencyKey: string | undefined): Promise<{ runId: string; created: boolean }>
  archive(workspaceId: string, runId: string): Promise<void>
  unarchive(workspaceId: string, runId: string): Promise<void>
  /** @throws INVALID_STATE_TRANSITION unless the run has ended. */
  delete(workspaceId: string, runId: string): Promise<void>
}

interface OriginalRow {
  key: string
  status: RunStatus
  name: string | null
  kind: string | null
  queue: string | null
  priority: number
  max_attempts: number | null
  lease_ms: number | null
  concurrency_key: string | null
  input: string | null
  metadata: Record<string, unknown> | null
  tags: string[]
  descriptor: (Pick<CreateRun, 'participants' | 'session' | 'source' | 'cancelCallback'> & { descriptor?: RunDescriptor }) | null
}

/** What of a folded state a command is decided on. */
export function commanded({ folds }: FoldState): CommandedRun {
  const { status, attempt, reason, by } = folds.run
  return { status, attempt, reason, by, wasSuspended: folds.timeline.byType.has('run.suspended') }
}

export function createCommands(deps: { sql: Sql; log: GroupCommit; runKeys: RunKeys; lifecycle: Lifecycle; deletions: Deletions }): Commands {
  const { sql, log, runKeys, lifecycle, deletions } = deps

  const decide = (workspaceId: string, runId: string, work: (run: CommandedRun, place: CommandedPlace, state: FoldState) => DraftEvent[]) =>
    runKeys.use(workspaceId, runId, async (runKey) => {
      const outcome = await log.decide(runKey, (state, place) => work(commanded(state), place, state))
      if (outcome.kind === 'refused') throw outcome.error
      if (outcome.kind !== 'done') throw runNotFound(runId)
    })

  async function original(workspaceId: string, runId: string): Promise<OriginalRow> {
    const [row] = await sql<OriginalRow[]>`
      select key, status, name, kind, queue, priority, max_attempts, lease_ms, concurrency_key, input::text as input, metadata, array_to_json(tags) as tags, descriptor
      from runs where workspace_id = ${workspaceId} and id = ${runId}`
    if (!row) throw runNotFound(runId)
    return row
  }

  async function retriedBefore(workspaceId: string, runId: string, { id, idempotencyKey }: RunPlan) {
    const [row] = await sql<{ id: string }[]>`
      select id from runs where workspace_id = ${workspaceId} and parent_run_id = ${runId} and (id = ${id ?? null} or idempotency_key = ${idempotencyKey ?? null})`
    return row && { runId: row.id, created: false }
  }

  async function setArchived(workspaceId: string, runId: string, isArchived: boolean): Promise<void> {
    const at = isArchived ? sql`coalesce(archived_at, clock_timestamp())` : sql`null`
    const rows = await sql`update runs set archived_at = ${at} where workspace_id = ${workspaceId} and id = ${runId} returning key`
    if (rows.length === 0) throw runNotFound(runId)
  }

  return {
    cancel: (workspaceId, runId, because) => decide(workspaceId, runId, (run, place) => decideCancel(run, place, because)),
    suspend: (workspaceId, runId, because) => decide(workspaceId, runId, (run, place) => decideSuspend(run, place, because)),
    resume: (workspaceId, runId, because) => decide(workspaceId, runId, (run, place) => decideResume(run, place, because)),

    retry: (workspaceId, runId, options) => decide(workspaceId, runId, (run, place) => decideRetry(run, place, options)),

    async retryAsNew(workspaceId, runId, { id, delayMs = 0, reason, by, idempotencyKey }) {
      const row = await original(workspaceId, runId)
      if (!isTerminal(row.status)) throw refused('retry as new', row.status)
      const plan: RunPlan = { ...planOf(row), parentRunId: runId, ...(id !== undefined && { id }), ...(idempotencyKey !== undefined && { idempotencyKey }) }
      // The time of a delay is another one each time: a repeat is found first.
      const isDelayed = delayMs > 0 && plan.queue !== undefined
      const made =
        (isDelayed && (await retriedBefore(workspaceId, runId, plan))) || (await lifecycle.create(workspaceId, isDelayed ? delayed(plan, delayMs) : plan))
      // The new run names its parent already; a repeat of the command completes what a crash between the two has left.
      await decide(workspaceId, runId, (_run, place, { folds }) =>
        folds.run.links.has(made.runId)
          ? []
          : [{ type: 'run.linked', ts: place.now, data: { childRunId: made.runId, relation: 'retry', ...(reason && { reason }), ...(by && { by }) } }],
      ).catch((error: unknown) => {
        // Of a log that is corrupt one way has to do.
        if (!(error instanceof LogCorrupt)) throw error
      })
      return made
    },

    async clone(workspaceId, runId, overrides, idempotencyKey) {
      const { id: _, ...plan } = planOf(await original(workspaceId, runId))
      return lifecycle.create(workspaceId, { ...plan, ...overrides, ...(idempotencyKey !== undefined && { idempotencyKey }) })
    },

    archive: (workspaceId, runId) => setArchived(workspaceId, runId, true),
    unarchive: (workspaceId, runId) => setArchived(workspaceId, runId, false),

    async delete(workspaceId, runId) {
      const outcome = await deletions.delete(workspaceId, runId)
      if (outcome === 'missing') throw runNotFound(runId)
      if (outcome !== 'deleted') assertWorks('delete', outcome, 'Cancel it first.')
    },
  }
}

/** What would create the run again: a session of its own, and nothing that names the first one. */
function planOf(row: OriginalRow): RunPlan {
  const { participants, session, source, cancelCallback, descriptor } = row.descriptor ?? {}
  return {
    ...(row.name !== null && { name: row.name }),
    ...(row.kind !== null && { kind: row.kind }),
    ...(row.queue !== null && { queue: row.queue }),
    ...(row.priority !== 0 && { priority: row.priority }),
    ...(row.max_attempts !== null && { maxAttempts: row.max_attempts }),
    ...(row.lease_ms !== null && { leaseMs: row.lease_ms }),
    ...(row.concurrency_key !== null && { concurrencyKey: row.concurrency_key }),
    ...(row.input !== null && { input: JSON.parse(row.input) }),
    ...(row.metadata !== null && { metadata: row.metadata }),
    ...(row.tags.length > 0 && { tags: row.tags }),
    ...(participants && { participants }),
    ...(session && { session: without(session, 'sessionId') }),
    ...(source && { source }),
    ...(cancelCallback && { cancelCallback }),
    ...(descriptor && { descriptor: fresh(descriptor) }),
  }
}

const delayed = (plan: RunPlan, delayMs: number): RunPlan => ({ ...plan, availableAt: new Date(Date.now() + delayMs).toISOString() })

function fresh({ session, execution, ...descriptor }: RunDescriptor): RunDescriptor {
  return { ...descriptor, session: without(session, 'sessionId'), ...(execution && { execution: without(execution, 'idempotencyKey') }) }
}

function without<T extends object>(object: T, key: keyof T): T {
  return Object.fromEntries(Object.entries(object).filter(([name]) => name !== key)) as T
}
