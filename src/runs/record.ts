/** The record of a run: its row, as clients see it. */

import { type Static, Type } from '@sinclair/typebox'
import type { Sql } from '../db/client.js'
import { utcColumn } from '../db/utc.js'
import { RUN_STATUSES } from '../domain/run.js'
import { Participant, Tags } from '../domain/run-request.js'
import { runNotFound } from '../errors.js'

const time = Type.String({ format: 'date-time' })
const nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) => Type.Union([schema, Type.Null()])

export const RunRecord = Type.Object(
  {
    runId: Type.String(),
    name: nullable(Type.String()),
    kind: nullable(Type.String()),
    status: Type.Union(RUN_STATUSES.map((status) => Type.Literal(status))),
    progress: nullable(Type.Integer({ minimum: 0, maximum: 100 })),
    attempt: Type.Integer({ minimum: 1 }),
    maxAttempts: nullable(Type.Integer()),
    queue: nullable(Type.String()),
    priority: Type.Integer(),
    availableAt: nullable(time),
    parentRunId: nullable(Type.String()),
    lastSeq: Type.Integer({ minimum: 0 }),
    lastRawSeq: Type.Integer({ minimum: 0 }),
    firstSeq: Type.Integer({ minimum: 1, description: 'the first canonical event that retention kept' }),
    createdAt: time,
    updatedAt: time,
    startedAt: nullable(time),
    endedAt: nullable(time),
    archivedAt: nullable(time),
    error: Type.Unknown(),
    input: Type.Unknown(),
    tags: Tags,
    metadata: Type.Record(Type.String(), Type.Unknown()),
    participants: Type.Array(Participant),
    session: nullable(Type.Record(Type.String(), Type.Unknown())),
    source: Type.Unknown({ description: 'without the values of its headers' }),
    concurrencyKey: nullable(Type.String()),
    cancelRequestedAt: nullable(time),
    lease: nullable(
      Type.Object(
        { workerId: Type.String(), leaseExpiresAt: nullable(time), leaseMs: nullable(Type.Integer()) },
        { description: 'who holds the run, and until when; without an end while the run is suspended' },
      ),
    ),
  },
  { $id: 'Run' },
)
export type RunRecord = Static<typeof RunRecord>

interface Descriptor {
  participants?: Static<typeof Participant>[]
  session?: Record<string, unknown>
  source?: { headers?: Record<string, string> }
  /** Of the redacted bundle that it was imported from. */
  profile?: 'no-content' | 'hashed'
}

export interface RunTableRow {
  key: string
  id: string
  name: string | null
  kind: string | null
  status: RunRecord['status']
  progress: number | null
  attempt: number
  max_attempts: number | null
  queue: string | null
  priority: number
  available_at: string | null
  parent_run_id: string | null
  last_seq: number
  last_raw_seq: number
  first_seq: number
  created_at: string
  updated_at: string
  started_at: string | null
  ended_at: string | null
  archived_at: string | null
  error: unknown
  input: unknown
  tags: string[]
  metadata: Record<string, unknown> | null
  descriptor: Descriptor | null
  concurrency_key: string | null
  cancel_requested_at: string | null
  worker_id: string | null
  lease_expires_at: string | null
  lease_length_ms: number | null
}

/** The columns of a record, with times as RFC 3339 in UTC. */
export function recordColumns(sql: Sql) {
  return sql`key, id, name, kind, status, progress, attempt, max_attempts, queue, priority, ${utcColumn(sql, 'available_at')}, parent_run_id, last_seq,
    last_raw_seq, first_seq, ${utcColumn(sql, 'created_at')}, ${utcColumn(sql, 'updated_at')}, ${utcColumn(sql, 'started_at')}, ${utcColumn(sql, 'ended_at')}, ${utcColumn(sql, 'archived_at')},
    error, input, array_to_json(tags) as tags, metadata, descriptor, concurrency_key, ${utcColumn(sql, 'cancel_requested_at')},
    worker_id, ${utcColumn(sql, 'lease_expires_at')}, lease_length_ms`
}

export function toRecord(row: RunTableRow): RunRecord {
  const { participants = [], session = null, source } = row.descriptor ?? {}
  return {
    runId: row.id,
    name: row.name,
    kind: row.kind,
    status: row.status,
    progress: row.progress,
    attempt: row.attempt,
    maxAttempts: row.max_attempts,
    queue: row.queue,
    priority: row.priority,
    availableAt: row.available_at,
    parentRunId: row.parent_run_id,
    lastSeq: row.last_seq,
    lastRawSeq: row.last_raw_seq,
    firstSeq: row.first_seq,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
    startedAt: row.started_at,
    endedAt: row.ended_at,
    archivedAt: row.archived_at,
    error: row.error,
    input: row.input,
    tags: row.tags,
    metadata: row.metadata ?? {},
    participants,
    session,
    source: source ? { ...source, headers: masked(source.headers) } : null,
    concurrencyKey: row.concurrency_key,
    cancelRequestedAt: row.cancel_requested_at,
    lease: row.worker_id === null ? null : { workerId: row.worker_id, leaseExpiresAt: row.lease_expires_at, leaseMs: row.lease_length_ms },
  }
}

/** Headers of a source carry its credentials: their names are shown, their values are not. */
function masked(headers: Record<string, string> | undefined): Record<string, string> | undefined {
  return headers && Object.fromEntries(Object.keys(headers).map((name) => [name, '***']))
}

/** @throws RUN_NOT_FOUND, for the runs of another workspace as well. */
export async function getRun(sql: Sql, workspaceId: string, runId: string): Promise<RunRecord> {
  const [row] = await sql<RunTableRow[]>`select ${recordColumns(sql)} from runs where workspace_id = ${workspaceId} and id = ${runId}`
  if (!row) throw runNotFound(runId)
  return toRecord(row)
}

/** Undefined for a run that is gone. */
export async function runByKey(sql: Sql, key: string): Promise<RunRecord | undefined> {
  const [row] = await sql<RunTableRow[]>`select ${recordColumns(sql)} from runs where key = ${key}`
  return row && toRecord(row)
}
