/** The list of runs: filters, and keyset paging by (created or updated, key), so that a page costs the same wherever it is. */
import type { Sql } from '../db/client.js'
import type { RunStatus } from '../domain/run.js'
import { toUtc } from '../domain/time.js'
import { RunplaneError } from '../errors.js'
import { type RunRecord, type RunTableRow, recordColumns, toRecord } from './record.js'

export interface RunFilter {
  status?: RunStatus[] | undefined
  kind?: string | undefined
  queue?: string | undefined
  /** A run has to have all of them. */
  tags?: string[] | undefined
  createdAfter?: string | undefined
  createdBefore?: string | undefined
  search?: string | undefined
  parentRunId?: string | undefined
  includeArchived: boolean
}

export interface ListQuery extends RunFilter {
  sort: 'createdAt' | 'updatedAt'
  order: 'asc' | 'desc'
  limit: number
  cursor?: string | undefined
  count: boolean
}

export interface RunPage {
  data: RunRecord[]
  /** Where the next page starts; left out on the last one. */
  nextCursor?: string
  /** How many runs the filters match, where it was asked for. */
  total?: number
}

/** Sorting by `updatedAt` while runs go on may show a run again or late: it moves. Sorting by `createdAt` never does. */
export async function listRuns(sql: Sql, workspaceId: string, query: ListQuery): Promise<RunPage> {
  const column = query.sort === 'createdAt' ? sql`created_at` : sql`updated_at`
  const where = matchingRuns(sql, workspaceId, query)
  const after = query.cursor === undefined ? undefined : decodeCursor(query.cursor, query)
  const compare = query.order === 'asc' ? sql`>` : sql`<`
  const direction = query.order === 'asc' ? sql`asc` : sql`desc`
  const rows = await sql<(RunTableRow & { at: string })[]>`
    select ${recordColumns(sql)}, ${column}::text as at from runs
    where ${where} ${after ? sql`and (${column}, key) ${compare} (${after.at}::text::timestamptz, ${after.key}::text::uuid)` : sql``}
    order by ${column} ${direction}, key ${direction} limit ${query.limit + 1}`
  const page: RunPage = { data: rows.slice(0, query.limit).map(toRecord) }
  const last = rows[query.limit - 1]
  if (rows.length > query.limit && last) page.nextCursor = encodeCursor(query, last.at, last.key)
  if (query.count) {
    const [counted] = await sql<{ total: number }[]>`select count(*) as total from runs where ${where}`
    page.total = counted?.total ?? 0
  }
  return page
}

/** The condition that the rows of `runs` meet which the filters match. @throws VALIDATION_ERROR for a time that is none */
export function matchingRuns(sql: Sql, workspaceId: string, query: RunFilter) {
  return sql`workspace_id = ${workspaceId}
    ${query.status ? sql`and status = any(string_to_array(${query.status.join(',')}, ','))` : sql``}
    ${query.kind === undefined ? sql`` : sql`and kind = ${query.kind}`}
    ${query.queue === undefined ? sql`` : sql`and queue = ${query.queue}`}
    ${query.tags ? sql`and tags @> (select array_agg(value) from json_array_elements_text(${JSON.stringify(query.tags)}::text::json))` : sql``}
    ${query.createdAfter === undefined ? sql`` : sql`and created_at > ${timeOf('createdAfter', query.createdAfter)}::text::timestamptz`}
    ${query.createdBefore === undefined ? sql`` : sql`and created_at < ${timeOf('createdBefore', query.createdBefore)}::text::timestamptz`}
    ${query.parentRunId === undefined ? sql`` : sql`and parent_run_id = ${query.parentRunId}`}
    ${query.search === undefined ? sql`` : search(sql, query.search)}
    ${query.includeArchived ? sql`` : sql`and archived_at is null`}`
}

function search(sql: Sql, text: string) {
  const pattern = `%${text.replace(/[\\%_]/g, '\\$&')}%`
  return sql`and (id ilike ${pattern} or name ilike ${pattern} or kind ilike ${pattern} or exists (select from unnest(tags) tag where tag ilike ${pattern}))`
}

/** In UTC: PostgreSQL has no year 0, and no offset of 16 hours. @throws VALIDATION_ERROR */
function timeOf(name: string, text: string): string {
  const utc = toUtc(text)
  if (utc === undefined) throw new RunplaneError('VALIDATION_ERROR', `${name} must be an RFC 3339 time, such as 2026-11-21T08:00:00Z.`)
  return utc
}

function encodeCursor({ sort, order }: ListQuery, at: string, key: string): string {
  return Buffer.from(JSON.stringify([sort, order, at, key])).toString('base64url')
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

function decodeCursor(cursor: string, query: ListQuery): { at: string; key: string } {
  let parts: unknown
  try {
    parts = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'))
  } catch {
    parts = undefined
  }
  if (Array.isArray(parts)) {
    const [sort, order, at, key]: unknown[] = parts
    // PostgreSQL writes an offset of whole hours without its minutes.
    const utc = typeof at === 'string' ? toUtc(at.replace(/[+-]\d\d$/, '$&:00')) : undefined
    if (sort === query.sort && order === query.order && utc !== undefined && typeof key === 'string' && UUID.test(key)) return { at: utc, key }
  }
  throw new RunplaneError('CURSOR_INVALID', 'The cursor is not one of this list. Take nextCursor as it was answered, with the same sort and order.')
}
