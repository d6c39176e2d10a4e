/**
 * Retention: what policies say is archived, deleted or trimmed, every RETENTION_INTERVAL_MS, by one instance at a time (an advisory lock). Off without a policy.
 * Runs are worked on one after another; one that cannot be worked on is told, and holds up no other. What went has a line in the audit log each, which is
 * written before anything goes and completed afterwards, as those of commands are.
 * The lock saves work only: two at once would do the same, and each step can be repeated.
 */
import type { Database, Sql } from '../db/client.js'
import { uuidv7 } from '../domain/ids.js'
import type { RunStatus } from '../domain/run.js'
import type { FoldState } from '../projections/fold.js'
import type { Deletions } from './deletions.js'
import { type RetentionPolicy, statusesOf } from './retention-policy.js'
import { type TrimmedRun, trimRun } from './trim.js'

/** 'runplane retention', as a key of pg_try_advisory_lock. */
const LOCK = 0x7270_7265
const PAGE_RUNS = 100
const AUDIT_ROWS = 5000
const DAY_MS = 86_400_000

export interface RetentionRun extends TrimmedRun {
  workspaceId: string
  status: RunStatus
  lastSeq: number
}

export interface RetentionAudit {
  /** Durable when it resolves. @returns the line's id */
  begin(line: { workspaceId: string; action: string; runId: string; detail: { policy: string } }): Promise<string>
  finish(lineId: string, end: { outcome: 'done' | 'refused' | 'failed'; detail: Record<string, unknown> }): Promise<void>
}

export interface RetentionDeps {
  database: Pick<Database, 'sql' | 'connect'>
  policies: readonly RetentionPolicy[]
  /** Days that lines of the audit log are kept; 0: for ever. */
  auditKeepDays: number
  intervalMs: number
  deletions: Pick<Deletions, 'delete'>
  stateAt(run: TrimmedRun, seq: number): Promise<FoldState>
  /** Stores a bundle of the whole run, and says where. Throws unless all of it is stored. */
  exportRun(run: RetentionRun): Promise<string>
  audit: RetentionAudit
  log: { warn(details: object, message: string): void; info(details: object, message: string): void }
}

export interface Retention {
  /** One round now, unless another instance is at it. @returns whether it was done here. */
  run(): Promise<boolean>
  close(): Promise<void>
}

export function startRetention(deps: RetentionDeps): Retention {
  const { database, policies, auditKeepDays, intervalMs, log } = deps
  const { sql } = database
  let running: Promise<boolean> | undefined
  let closed = false

  function run(): Promise<boolean> {
    running ??= locked().finally(() => {
      running = undefined
    })
    return running
  }

  /** On a connection of its own: the lock is the session's. */
  async function locked(): Promise<boolean> {
    const session = database.connect({ max: 1 })
    try {
      const [row] = await session<{ taken: boolean }[]>`select pg_try_advisory_lock(${LOCK}) as taken`
      if (!row?.taken) return false
      for (const policy of policies) await apply(policy)
      if (auditKeepDays > 0) await deleteAuditLines(sql, auditKeepDays)
      return true
    } finally {
      await session.end({ timeout: 1 })
    }
  }

  async function apply(policy: RetentionPolicy): Promise<void> {
    let runs = 0
    let after: string | undefined
    while (!closed) {
      const page = await due(sql, policy, after)
      for (const one of page) {
        if (closed) return
        if (await worked(policy, one)) runs++
      }
      after = page.at(-1)?.key
      if (after === undefined || page.length < PAGE_RUNS) break
    }
    if (runs > 0) log.info({ policy: policy.name, action: policy.action, runs }, 'retention has been at work')
  }

  /** @returns whether anything was done. */
  async function worked(policy: RetentionPolicy, one: RetentionRun): Promise<boolean> {
    const by = { policy: policy.name }
    let lineId: string | undefined
    const begin = async () => {
      lineId ??= await deps.audit.begin({ workspaceId: one.workspaceId, action: `run.${policy.action}`, runId: one.id, detail: by })
      return lineId
    }
    try {
      const went = await work(policy, one, begin)
      if (went) await deps.audit.finish(await begin(), { outcome: 'done', detail: { ...by, ...went } })
      else if (lineId !== undefined) await deps.audit.finish(lineId, { outcome: 'refused', detail: { ...by, reason: 'The run has changed meanwhile.' } })
      return went !== undefined
    } catch (error) {
      log.warn({ err: error, policy: policy.name, runId: one.id }, 'retention could not work on a run')
      await begin()
        .then((id) => deps.audit.finish(id, { outcome: 'failed', detail: by }))
        .catch((fault) => log.warn({ err: fault, runId: one.id }, 'an audit line of retention could not be written'))
      return false
    }
  }

  /**
   * @param begin to be waited for before anything goes
   * @returns what went; undefined: nothing did
   */
  async function work(policy: RetentionPolicy, one: RetentionRun, begin: () => Promise<unknown>): Promise<Record<string, unknown> | undefined> {
    if (policy.action === 'archive') {
      await begin()
      const rows = await sql`update runs set archived_at = clock_timestamp() where key = ${one.key} and archived_at is null returning key`
      return rows.length > 0 ? {} : undefined
    }
    if (policy.action === 'trim') {
      const exported: { export?: string } = {}
      const before = async () => {
        await begin()
        if (policy.export) exported.export = await deps.exportRun(one)
      }
      const cut = one.lastSeq - (policy.keepEvents ?? 0)
      const went = await trimRun(sql, one, { cut, rawOnly: policy.only === 'raw', stateAt: deps.stateAt, before })
      return went.events + went.rawEvents > 0 ? { ...went, ...exported } : undefined
    }
    await begin()
    const exported = policy.export ? { export: await deps.exportRun(one) } : {}
    // Only as it was exported: what came meanwhile is looked at again in the next round.
    const outcome = await deps.deletions.delete(one.workspaceId, one.id, { key: one.key, lastSeq: one.lastSeq })
    return outcome === 'deleted' ? { events: one.lastSeq, ...exported } : undefined
  }

  const isOn = policies.length > 0 || auditKeepDays > 0
  const timer = isOn
    ? setInterval(() => run().catch((error) => log.warn({ err: error }, 'retention failed; the next round tries again')), intervalMs)
    : undefined
  timer?.unref()

  return {
    run,
    async close() {
      closed = true
      clearInterval(timer)
      await running?.catch(() => {})
    },
  }
}

/** Runs that the policy means and that it has not worked on yet, by key. */
async function due(sql: Sql, policy: RetentionPolicy, after: string | undefined): Promise<RetentionRun[]> {
  const { action, workspace, kind, tags, archived, minEvents, afterDays, keepEvents = 0, only } = policy
  const left = {
    archive: sql`and archived_at is null`,
    delete: sql``,
    trim: only === 'raw' ? sql`and first_raw_seq <= last_raw_seq` : sql`and (first_seq <= last_seq - ${keepEvents} or first_raw_seq <= last_raw_seq)`,
  }
  return sql<RetentionRun[]>`
    select key, id, workspace_id as "workspaceId", status, last_seq as "lastSeq" from runs
    where status = any(string_to_array(${statusesOf(policy).join(',')}, ','))
      and coalesce(ended_at, updated_at) <= clock_timestamp() - ${afterDays * DAY_MS} * interval '1 millisecond'
      ${workspace === undefined ? sql`` : sql`and workspace_id = (select id from workspaces where name = ${workspace})`}
      ${kind === undefined ? sql`` : sql`and kind = ${kind}`}
      ${tags === undefined ? sql`` : sql`and tags @> (select array_agg(value) from json_array_elements_text(${JSON.stringify(tags)}::text::json))`}
      ${archived === undefined ? sql`` : archived ? sql`and archived_at is not null` : sql`and archived_at is null`}
      ${minEvents === undefined ? sql`` : sql`and last_seq - first_seq + 1 > ${minEvents}`}
      ${left[action]} ${after === undefined ? sql`` : sql`and key > ${after}::text::uuid`}
    order by key limit ${PAGE_RUNS}`
}

/** An id is a time: the old ones are those before that of the day. */
async function deleteAuditLines(sql: Sql, keepDays: number): Promise<void> {
  const before = `${uuidv7(Date.now() - keepDays * DAY_MS).slice(0, 14)}7000-8000-000000000000`
  for (;;) {
    const gone = await sql`delete from audit_log where id in (select id from audit_log where id < ${before}::text::uuid order by id limit ${AUDIT_ROWS})`
    if (gone.count < AUDIT_ROWS) return
  }
}
