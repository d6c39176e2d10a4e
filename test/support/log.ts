/** The log without HTTP: an instance's group commit on a database, and what an event to append looks like. */
import { randomUUID } from 'node:crypto'
import type { Database, Sql } from '../../src/db/client.js'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../../src/domain/ids.js'
import { FORMATS, normalizeItem } from '../../src/ingest/normalize.js'
import type { AppendItem, AppendOutcome, AppendReceipt, AppendRequest } from '../../src/log/append-request.js'
import type { CommittedBatch } from '../../src/log/committed.js'
import { createGroupCommit, type GroupCommit } from '../../src/log/group-commit.js'
import { createStates, type States } from '../../src/log/states.js'
import { createLifecycle } from '../../src/runs/lifecycle.js'
import { silent } from './database.js'

export interface LogInstance {
  log: GroupCommit
  states: States
  committed: CommittedBatch[]
  createRun(id?: string): Promise<{ key: string; id: string }>
}

export function logInstance(
  database: Pick<Database, 'sql' | 'connect'>,
  options: { committers?: number; maxQueuedEvents?: number; maxRuns?: number; onCommitted?: (batches: CommittedBatch[]) => void } = {},
): LogInstance {
  const { sql, connect } = database
  const committed: CommittedBatch[] = []
  const states = createStates({ maxRuns: options.maxRuns ?? 100 })
  const log = createGroupCommit({
    sql,
    connect,
    states,
    committers: options.committers ?? 2,
    maxQueuedEvents: options.maxQueuedEvents ?? 10_000,
    onCommitted(batches) {
      committed.push(...batches)
      options.onCommitted?.(batches)
    },
    log: silent,
  })
  const lifecycle = createLifecycle({ sql, log, maxEventBytes: 262_144 })
  return {
    log,
    states,
    committed,
    async createRun(id = `run-${randomUUID()}`) {
      await lifecycle.create(DEFAULT_WORKSPACE_ID, { id })
      const [row] = await sql<{ key: string }[]>`select key from runs where id = ${id}`
      if (!row) throw new Error(`run ${id} was not created`)
      return { key: row.key, id }
    },
  }
}

const native = FORMATS.find((format) => format.name === 'native')

export function item(event: object): AppendItem {
  if (!native) throw new Error('no native format')
  const text = JSON.stringify(event)
  return { text, format: 'native', normalized: normalizeItem(native, JSON.parse(text), { defaultSource: 'tester' }) }
}

export function output(id: string, text = id): AppendItem {
  return item({ id, type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text } })
}

export function request(runKey: string, items: AppendItem[], more: Partial<AppendRequest> = {}): AppendRequest {
  return { runKey, receivedAt: new Date().toISOString(), items, ...more }
}

export function receiptOf(outcome: AppendOutcome): AppendReceipt {
  if (outcome.kind === 'done') return outcome.receipt
  throw outcome.kind === 'refused' ? outcome.error : new Error(outcome.kind)
}

export interface StoredLog {
  seqs: number[]
  rawSeqs: number[]
  eventIds: string[]
  events: { seq: number; json: string; rawSeq: number }[]
  raws: { raw_seq: number; first_seq: number; seq_count: number }[]
  head: { last_seq: number; last_raw_seq: number; status: string; progress: number | null }
}

/** All that the database holds of a run. */
export async function storedLog(sql: Sql, runKey: string): Promise<StoredLog> {
  const canonical = await sql<{ seq: number; json: string }[]>`select seq, event::text as json from run_events_canonical where run_key = ${runKey} order by seq`
  const raws = await sql<{ raw_seq: number; first_seq: number; seq_count: number; event_id: string | null }[]>`
    select raw_seq, first_seq, seq_count, event_id from run_events_raw where run_key = ${runKey} order by raw_seq`
  const [head] = await sql<StoredLog['head'][]>`select last_seq, last_raw_seq, status, progress from runs where key = ${runKey}`
  if (!head) throw new Error('no such run')
  return {
    seqs: canonical.map((row) => row.seq),
    rawSeqs: raws.map((row) => row.raw_seq),
    eventIds: raws.flatMap((row) => row.event_id ?? []),
    events: canonical.map(({ seq, json }) => ({ seq, json, rawSeq: JSON.parse(json).source.rawSeq })),
    raws: [...raws],
    head,
  }
}

export const upTo = (count: number) => Array.from({ length: count }, (_, index) => index + 1)

export const newKey = () => uuidv7()
