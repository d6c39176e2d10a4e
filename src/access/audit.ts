/**
 * The audit log: who commanded what, of which run, key, endpoint or queue, and what came of it.
 *
 * A command's line is written before it begins, as one that failed without an outcome, and completed before its answer is sent. So a service that is
 * killed in between leaves a line that says so, and never a command without one. Lines that come at once share a statement.
 */
import type { Sql } from '../db/client.js'
import { uuidv7 } from '../domain/ids.js'
import { RunplaneError } from '../errors.js'

export const AUDIT_OUTCOMES = ['done', 'refused', 'failed'] as const
export type AuditOutcome = (typeof AUDIT_OUTCOMES)[number]

export interface AuditEntry {
  workspaceId: string
  /** The name of the key, or of the part of the service that acted by itself. */
  actor: string
  actorKeyId?: string | undefined
  action: string
  targetKind: string
  targetId?: string | undefined
  requestId?: string | undefined
  outcome: AuditOutcome
  /** Never a secret. */
  detail?: Record<string, unknown> | undefined
}

export interface AuditLine {
  id: string
  at: string
  actor: string
  actorKeyId: string | null
  action: string
  target: { kind: string; id: string | null }
  requestId: string | null
  outcome: AuditOutcome
  detail: Record<string, unknown> | null
}

export interface AuditQuery {
  actor?: string | undefined
  /** `run.cancel`, or `run.*` for a family. */
  action?: string | undefined
  targetKind?: string | undefined
  targetId?: string | undefined
  outcome?: AuditOutcome | undefined
  /** RFC 3339, both inclusive: times as the lines show them, in milliseconds. */
  from?: string | undefined
  to?: string | undefined
  limit: number
  cursor?: string | undefined
}

export interface Audit {
  /** Durable when it resolves. */
  record(entries: readonly AuditEntry[]): Promise<void>
  /** Writes the line of a command that is about to begin. Durable when it resolves. @returns its id. */
  begin(entry: Omit<AuditEntry, 'outcome'>): Promise<string>
  finish(id: string, end: Pick<AuditEntry, 'outcome' | 'targetId' | 'detail'>): Promise<void>
  /** Newest first. @throws CURSOR_INVALID */
  list(workspaceId: string, query: AuditQuery): Promise<{ data: AuditLine[]; nextCursor?: string }>
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

type Row = AuditEntry & { id: string }
type End = Pick<AuditEntry, 'outcome' | 'targetId' | 'detail'> & { id: string }

export function createAudit({ sql }: { sql: Sql }): Audit {
  const insert = gathering<Row>(async (rows) => {
    await sql`
      insert into audit_log (id, workspace_id, actor, actor_key_id, action, target_kind, target_id, request_id, outcome, detail)
      select id, "workspaceId", actor, "actorKeyId", action, "targetKind", "targetId", "requestId", outcome, detail
      from json_to_recordset(${jsonOf(rows)}::text::json) as r(id uuid, "workspaceId" uuid, actor text, "actorKeyId" text, action text,
        "targetKind" text, "targetId" text, "requestId" text, outcome text, detail json)`
  })
  const update = gathering<End>(async (ends) => {
    await sql`
      update audit_log a set outcome = e.outcome, detail = e.detail, target_id = coalesce(e."targetId", a.target_id)
      from json_to_recordset(${jsonOf(ends)}::text::json) as e(id uuid, outcome text, "targetId" text, detail json) where a.id = e.id`
  })

  return {
    async record(entries) {
      await Promise.all(entries.map((entry) => insert({ ...entry, id: uuidv7() })))
    },
    async begin(entry) {
      const id = uuidv7()
      await insert({ ...entry, id, outcome: 'failed', detail: { ...entry.detail, unfinished: true } })
      return id
    },
    finish: (id, end) => update({ ...end, id }),
    async list(workspaceId, query) {
      const { actor, action, targetKind, targetId, outcome, from, to, limit, cursor } = query
      if (cursor !== undefined && !UUID.test(cursor))
        throw new RunplaneError('CURSOR_INVALID', 'The cursor is not one of this list. Take nextCursor as it was answered.')
      const family = action?.endsWith('.*') ? action.slice(0, -1) : undefined
      const rows = await sql`
        select id, to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as at, actor, actor_key_id, action, target_kind, target_id, request_id, outcome, detail
        from audit_log where workspace_id = ${workspaceId}
          ${actor === undefined ? sql`` : sql`and actor = ${actor}`}
          ${action === undefined ? sql`` : family === undefined ? sql`and action = ${action}` : sql`and starts_with(action, ${family})`}
          ${targetKind === undefined ? sql`` : sql`and target_kind = ${targetKind}`}
          ${targetId === undefined ? sql`` : sql`and target_id = ${targetId}`}
          ${outcome === undefined ? sql`` : sql`and outcome = ${outcome}`}
          ${from === undefined ? sql`` : sql`and at >= ${from}::text::timestamptz`}
          ${to === undefined ? sql`` : sql`and date_trunc('milliseconds', at) <= ${to}::text::timestamptz`}
          ${cursor === undefined ? sql`` : sql`and id < ${cursor}::text::uuid`}
        order by id desc limit ${limit + 1}`
      const data = rows.slice(0, limit).map(
        (row): AuditLine => ({
          id: row.id,
          at: row.at,
          actor: row.actor,
          actorKeyId: row.actor_key_id,
          action: row.action,
          target: { kind: row.target_kind, id: row.target_id },
          requestId: row.request_id,
          outcome: row.outcome,
          detail: row.detail,
        }),
      )
      const last = data.at(-1)
      return rows.length > limit && last ? { data, nextCursor: last.id } : { data }
    },
  }
}

/** The database holds neither NUL nor lone surrogates, which are what JSON.stringify escapes so. */
function jsonOf(rows: readonly object[]): string {
  return JSON.stringify(rows).replace(/\\u(?:0000|d[89a-f][0-9a-f]{2})/g, '\\ufffd')
}

/** What comes while one is being written goes together with the next. */
function gathering<Item>(write: (items: Item[]) => Promise<void>): (item: Item) => Promise<void> {
  let gathered: Item[] = []
  let next: Promise<void> | undefined
  let writing: Promise<void> = Promise.resolve()
  return (item) => {
    gathered.push(item)
    next ??= writing
      .catch(() => {})
      .then(() => {
        const items = gathered
        gathered = []
        next = undefined
        writing = write(items)
        return writing
      })
    return next
  }
}
