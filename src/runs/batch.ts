/** One command on many runs: by their ids, or by the filters of the list, with a result for each. One that is refused or fails holds up no other. */
import type { Sql } from '../db/client.js'
import type { RunStatus } from '../domain/run.js'
import { type ErrorCode, RunplaneError } from '../errors.js'
import { type ListQuery, listRuns } from './list.js'

export type BatchFilter = Partial<Omit<ListQuery, 'sort' | 'order' | 'limit' | 'cursor' | 'count'>>

export interface BatchRequest {
  runIds?: readonly string[] | undefined
  filter?: BatchFilter | undefined
  /** Runs of a filter that one request takes. */
  limit?: number | undefined
  cursor?: string | undefined
}

export interface BatchResult {
  runId: string
  outcome: 'done' | 'refused' | 'failed'
  code?: ErrorCode
  detail?: string
}

export interface BatchAnswer {
  done: number
  refused: number
  failed: number
  results: BatchResult[]
  /** There may be more that the filter matches: send it again with this cursor. */
  nextCursor?: string
}

export const MAX_BATCH_RUNS = 1000
/** Commands at once: enough to share the transactions of the log, few enough to leave connections to others. */
const AT_ONCE = 8
const PAGE_RUNS = 200

interface BatchDeps {
  sql: Sql
  workspaceId: string
  /** Statuses that a filter without one means. */
  statuses: readonly RunStatus[] | undefined
  work(runId: string): Promise<void>
  log: { error(details: object, message: string): void }
}

/** @throws VALIDATION_ERROR unless it has either `runIds` or a `filter` that leaves some out; CURSOR_INVALID */
export async function runBatch(request: BatchRequest, deps: BatchDeps): Promise<BatchAnswer> {
  if ((request.runIds === undefined) === (request.filter === undefined))
    throw new RunplaneError('VALIDATION_ERROR', 'Send either runIds or a filter, and not both.')
  if (request.filter && Object.keys(request.filter).every((name) => name === 'includeArchived'))
    throw new RunplaneError('VALIDATION_ERROR', 'includeArchived alone means every run. Name at least one other filter.')
  if (request.runIds && (request.cursor !== undefined || request.limit !== undefined))
    throw new RunplaneError('VALIDATION_ERROR', 'cursor and limit go with a filter; runIds are all worked on.')
  const found = request.filter ? await matching(request, request.filter, deps) : { runIds: [...new Set(request.runIds)] }
  const results: BatchResult[] = []
  for (let at = 0; at < found.runIds.length; at += AT_ONCE) {
    results.push(...(await Promise.all(found.runIds.slice(at, at + AT_ONCE).map((runId) => one(runId, deps)))))
  }
  const count = (outcome: BatchResult['outcome']) => results.filter((result) => result.outcome === outcome).length
  return {
    done: count('done'),
    refused: count('refused'),
    failed: count('failed'),
    results,
    ...(found.nextCursor !== undefined && { nextCursor: found.nextCursor }),
  }
}

/** By age, which never changes: a run that the command takes out of the filter moves no other past the cursor. */
async function matching(
  request: BatchRequest,
  filter: BatchFilter,
  { sql, workspaceId, statuses }: BatchDeps,
): Promise<{ runIds: string[]; nextCursor?: string }> {
  const limit = request.limit ?? MAX_BATCH_RUNS
  const runIds: string[] = []
  let cursor = request.cursor
  for (;;) {
    const page = await listRuns(sql, workspaceId, {
      includeArchived: false,
      ...filter,
      status: filter.status ?? (statuses && [...statuses]),
      sort: 'createdAt',
      order: 'asc',
      limit: Math.min(PAGE_RUNS, limit - runIds.length),
      cursor,
      count: false,
    })
    for (const { runId } of page.data) runIds.push(runId)
    cursor = page.nextCursor
    if (cursor === undefined) return { runIds }
    if (runIds.length >= limit) return { runIds, nextCursor: cursor }
  }
}

async function one(runId: string, { work, log }: BatchDeps): Promise<BatchResult> {
  try {
    await work(runId)
    return { runId, outcome: 'done' }
  } catch (error) {
    if (error instanceof RunplaneError) return { runId, outcome: error.status < 500 ? 'refused' : 'failed', code: error.code, detail: error.message }
    log.error({ err: error, runId }, 'a command of a batch failed')
    return { runId, outcome: 'failed', code: 'INTERNAL', detail: 'Something went wrong here. The log has the cause.' }
  }
}
