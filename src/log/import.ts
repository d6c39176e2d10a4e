/**
 * The writer of runs that come whole, from a bundle: events under a new key, batch by batch, and the run's row last. Until then nobody sees them;
 * what an import that failed, or a process that ended, has left behind is swept like the rows of a deleted run.
 */
import type { Sql } from '../db/client.js'
import { runLarge } from '../db/run-large.js'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import { digestsOf } from '../domain/digest.js'
import { uuidv7 } from '../domain/ids.js'
import { groupingOf } from '../domain/run-request.js'
import { encodeState, type FoldState, PROJECTION_SCHEMA_VERSION, summary } from '../projections/fold.js'
import { usageOf } from '../projections/usage.js'
import { addRow, noEventRows, parametersOf, storingEvents } from './event-rows.js'

const INSERT_EVENTS = `with ${storingEvents()} select 1`

/** The columns of the row that are not folded from its events. Times are RFC 3339 texts, JSON columns are JSON texts. */
export interface ImportedRun {
  name: string | null
  kind: string | null
  priority: number
  max_attempts: number | null
  parent_run_id: string | null
  input: string | null
  metadata: string | null
  tags: string[]
  descriptor: string | null
  last_raw_seq: number
  /** Beyond `last_raw_seq` where no raw event came along. */
  first_raw_seq: number
  created_at: string
  updated_at: string
  archived_at: string | null
}

export interface ImportedRaw {
  rawSeq: number
  receivedAt: string
  format: string
  rawType: string
  source: string
  eventId: string | undefined
  seqs: readonly number[]
  body: string
}

export interface RunImport {
  readonly runKey: string
  /** Events in order, as the texts that they are stored as. */
  canonical(events: readonly { text: string; event: CanonicalEvent }[]): Promise<void>
  raw(events: readonly ImportedRaw[]): Promise<void>
  /** A state on the way (runs/checkpoints.ts), as `encodeState` writes it. */
  checkpoint(seq: number, state: string): Promise<void>
  /** Makes the run visible, with all that was written. False: there is a run of this id by now, and nothing is visible. */
  publish(run: ImportedRun, state: FoldState): Promise<boolean>
  /** What was written goes. */
  abandon(): Promise<void>
}

/** An import that says nothing for so long has ended with its process. */
const DUE_MINUTES = 15
const RENEW_MS = 60_000

export async function beginImport(sql: Sql, workspaceId: string, runId: string): Promise<RunImport> {
  const key = uuidv7()
  await sql`
    insert into run_deletions (run_key, workspace_id, run_id, due_at) values (${key}, ${workspaceId}, ${runId}, clock_timestamp() + make_interval(mins => ${DUE_MINUTES}))`
  let renewedAt = performance.now()
  let firstSeqOfNext = 1

  const lost = () => new Error(`the import of run ${runId} took longer than ${DUE_MINUTES} minutes between two batches`)

  async function renew(): Promise<void> {
    if (performance.now() - renewedAt < RENEW_MS) return
    renewedAt = performance.now()
    // What is due may be half swept.
    const renewed = await sql`
      update run_deletions set due_at = clock_timestamp() + make_interval(mins => ${DUE_MINUTES}) where run_key = ${key} and due_at > clock_timestamp()`
    if (renewed.count === 0) throw lost()
  }

  return {
    runKey: key,

    async canonical(events) {
      const rows = noEventRows()
      for (const { text, event } of events) {
        const { shape, content } = digestsOf(event)
        const subject = JSON.stringify(`${event.subject.kind}/${event.subject.id}`)
        const columns = `"n":${event.seq},"t":${JSON.stringify(event.ts)},"y":${JSON.stringify(event.type)},"u":${subject},"h":${shape},"d":${content}`
        addRow(rows, `{"k":"${key}",${columns}}`, '', text)
      }
      await renew()
      await runLarge(sql, INSERT_EVENTS, parametersOf(rows))
    },

    async raw(events) {
      const rows = noEventRows()
      for (const { rawSeq, receivedAt, format, rawType, source, eventId, seqs, body } of events) {
        const first = seqs[0] ?? firstSeqOfNext
        firstSeqOfNext = first + seqs.length
        const row = { k: key, r: rawSeq, at: receivedAt, f: first, c: seqs.length, fmt: format, rt: rawType, s: source, i: eventId }
        addRow(rows, JSON.stringify(row), body, '')
      }
      await renew()
      await runLarge(sql, INSERT_EVENTS, parametersOf(rows))
    },

    async checkpoint(seq, state) {
      await renew()
      await sql`insert into run_checkpoints (run_key, seq, schema_version, state) values (${key}, ${seq}, ${PROJECTION_SCHEMA_VERSION}, ${state}::text::json)`
    },

    async publish(run, state) {
      const { status, progress, attempt, error, startedAt, endedAt } = summary(state)
      const row = {
        ...run,
        key,
        workspace_id: workspaceId,
        id: runId,
        status,
        progress,
        attempt,
        error: error ? JSON.stringify(error) : null,
        last_seq: state.version,
        started_at: startedAt ?? null,
        ended_at: endedAt ?? null,
        usage: usageOf(state.folds),
        ...groupingOf(run.metadata === null ? undefined : JSON.parse(run.metadata)),
      }
      return sql.begin(async (tx) => {
        // Neither a place in a queue nor a holder: the run is a copy, and its work is done elsewhere.
        const made = await tx`
          insert into runs (key, workspace_id, id, name, kind, priority, max_attempts, parent_run_id, input, metadata, tags, descriptor, status, progress, attempt,
            error, last_seq, last_raw_seq, first_raw_seq, created_at, updated_at, started_at, ended_at, archived_at,
            input_tokens, output_tokens, cost_usd, llm_calls, tool_calls, error_count, model_usage, signals, decisions, decision_outcome, agents,
            scenario, environment)
          select key, workspace_id, id, name, kind, priority, max_attempts, parent_run_id, input::json, metadata::json, tags, descriptor::json, status, progress, attempt,
            error::json, last_seq, last_raw_seq, first_raw_seq, created_at, updated_at, started_at, ended_at, archived_at,
            least((usage->>'inputTokens')::numeric, 9007199254740991)::bigint, least((usage->>'outputTokens')::numeric, 9007199254740991)::bigint,
            (usage->>'costUsd')::float8, (usage->>'llmCalls')::int, (usage->>'toolCalls')::int, (usage->>'errorCount')::int, (usage->>'models')::json,
            (usage->>'signals')::int, (usage->>'decisions')::int, (usage->>'outcome')::smallint, (usage->>'agents')::json, scenario, environment
          from json_to_record(${JSON.stringify(row)}::text::json) as r(key uuid, workspace_id uuid, id text, name text, kind text, priority int, max_attempts int,
            parent_run_id text, input text, metadata text, tags text[], descriptor text, status text, progress int, attempt int, error text, last_seq bigint,
            last_raw_seq bigint, first_raw_seq bigint, created_at timestamptz, updated_at timestamptz, started_at timestamptz, ended_at timestamptz,
            archived_at timestamptz, usage json, scenario text, environment text)
          on conflict (workspace_id, id) do nothing`
        if (made.count === 0) return false
        await tx`
          insert into run_projections (run_key, version, schema_version, state)
          values (${key}, ${state.version}, ${PROJECTION_SCHEMA_VERSION}, ${encodeState(state)}::text::json)`
        const kept = await tx`delete from run_deletions where run_key = ${key} and due_at > clock_timestamp()`
        if (kept.count === 0) throw lost()
        return true
      })
    },

    async abandon() {
      await sql`update run_deletions set due_at = clock_timestamp() where run_key = ${key}`
    },
  }
}
