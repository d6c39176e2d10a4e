/**
 * The tables of a bundle: Parquet with typed columns, which DuckDB, pandas and others open as they are. A row group is written as soon as it is
 * full, so that what a table costs in memory does not grow with it.
 */
import type { SchemaElement } from 'hyparquet'
import { ByteWriter, ParquetWriter } from 'hyparquet-writer'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import { totalsOf } from '../projections/sections/llm.js'
import { SECTIONS } from '../projections/sections.js'
import type { ExportedEvent } from './export-source.js'
import { rounded } from './prices.js'

const ROW_GROUP_ROWS = 10_000
/** Of the characters in its texts. */
const ROW_GROUP_CHARS = 4_194_304

type ColumnType = 'text' | 'integer' | 'number' | 'time'
type Value = string | number | null | undefined
type Columns = Readonly<Record<string, ColumnType>>
type Row<C extends Columns> = { -readonly [Name in keyof C]: Value }

const ELEMENTS: Record<ColumnType, Omit<SchemaElement, 'name'>> = {
  text: { type: 'BYTE_ARRAY', converted_type: 'UTF8', logical_type: { type: 'STRING' } },
  integer: { type: 'INT64' },
  number: { type: 'DOUBLE' },
  time: { type: 'INT64', converted_type: 'TIMESTAMP_MICROS', logical_type: { type: 'TIMESTAMP', isAdjustedToUTC: true, unit: 'MICROS' } },
}

const EVENTS = {
  run_id: 'text',
  seq: 'integer',
  ts: 'time',
  received_at: 'time',
  type: 'text',
  attempt: 'integer',
  subject_kind: 'text',
  subject: 'text',
  step: 'text',
  actor: 'text',
  source: 'text',
  tool: 'text',
  model: 'text',
  tokens: 'integer',
  input_tokens: 'integer',
  output_tokens: 'integer',
  cost_usd: 'number',
  duration_ms: 'number',
  error: 'text',
  data: 'text',
} as const satisfies Columns

const STEPS = {
  run_id: 'text',
  attempt: 'integer',
  step: 'text',
  name: 'text',
  kind: 'text',
  phase: 'text',
  status: 'text',
  first_seq: 'integer',
  last_seq: 'integer',
  started_at: 'time',
  ended_at: 'time',
  duration_ms: 'number',
  error: 'text',
} as const satisfies Columns

const LLM_CALLS = {
  run_id: 'text',
  attempt: 'integer',
  seq: 'integer',
  ts: 'time',
  call: 'text',
  step: 'text',
  status: 'text',
  provider: 'text',
  model: 'text',
  input_tokens: 'integer',
  output_tokens: 'integer',
  cache_read_tokens: 'integer',
  cache_write_tokens: 'integer',
  reasoning_tokens: 'integer',
  cost_usd: 'number',
  latency_ms: 'number',
  ttft_ms: 'number',
  error: 'text',
} as const satisfies Columns

/**
 * `take` gives the bytes that are ready, if any; `end` the rest.
 * @param plain columns whose values hardly repeat: a dictionary is not even tried
 */
function createTable<C extends Columns>(definition: C, plain: readonly (keyof C)[] = []) {
  const columns = Object.entries(definition).map(([name, type]) => ({ name, type, physical: PHYSICAL[type](), data: [] as Physical[] }))
  const writer = new ByteWriter(65_536)
  const schema: SchemaElement[] = [
    { name: 'root', num_children: columns.length },
    ...columns.map(({ name, type }) => ({ name, repetition_type: 'OPTIONAL' as const, ...ELEMENTS[type] })),
  ]
  const parquet = new ParquetWriter({ writer, schema, createdBy: 'runplane' })
  let rows = 0
  let chars = 0

  function taken(): Buffer {
    const bytes = Buffer.from(writer.getBytes())
    writer.index = 0
    return bytes
  }

  function writeGroup(): void {
    if (rows === 0) return
    parquet.write({
      columnData: columns.map(({ name, type, data }) => ({
        name,
        data,
        // Those of texts are of no use for what is asked of them, and cost as much as writing them.
        statistics: type !== 'text',
        ...(plain.includes(name) && { encoding: 'PLAIN' as const }),
      })),
      rowGroupSize: ROW_GROUP_ROWS,
    })
    for (const column of columns) column.data = []
    rows = 0
    chars = 0
  }

  return {
    add(row: Row<C>): void {
      rows++
      for (const column of columns) {
        const told = row[column.name]
        const value = told === null || told === undefined ? null : column.physical(told)
        if (typeof value === 'string') chars += value.length
        column.data.push(value)
      }
    },
    take(): Buffer | undefined {
      if (rows < ROW_GROUP_ROWS && chars < ROW_GROUP_CHARS) return undefined
      writeGroup()
      return taken()
    },
    end(): Buffer {
      writeGroup()
      parquet.finish()
      return taken()
    },
  }
}

type Physical = string | number | bigint | null

/** How a column of each type stores a value. What does not fit is null: events come from anywhere. */
const PHYSICAL: Record<ColumnType, () => (value: NonNullable<Value>) => Physical> = {
  text: () => String,
  number: () => (value) => (typeof value === 'number' && Number.isFinite(value) ? value : null),
  integer: () => (value) => (typeof value === 'number' && Math.abs(value) <= Number.MAX_SAFE_INTEGER ? BigInt(Math.round(value)) : null),
  // One time is told again and again: all events of a request came at once.
  time: () => {
    let text = ''
    let micros: bigint | null = null
    return (value) => {
      if (typeof value !== 'string') return null
      if (value !== text) {
        micros = microseconds(value)
        text = value
      }
      return micros
    }
  },
}

/** Of an RFC 3339 time in UTC with milliseconds or microseconds. */
function microseconds(text: string): bigint | null {
  const ms = Date.parse(text)
  if (!Number.isFinite(ms)) return null
  const more = text.length === 27 ? Number(text.slice(23, 26)) : 0
  const micros = ms * 1000 + more
  // From the year 2255 on it is more than a double holds.
  return Number.isSafeInteger(micros) ? BigInt(micros) : BigInt(ms) * 1000n + BigInt(more)
}

export interface EventTable {
  /** The types that it is made of; undefined: all. */
  types: readonly string[] | undefined
  add(exported: ExportedEvent): void
  take(): Buffer | undefined
  end(): Buffer
}

type Data = Readonly<Record<string, unknown>>

const DATA_MEMBER = ',"data":'
/** The data as it is stored, behind the other members: within a string its quotes would have backslashes, and no member before it has one of its name. */
function dataText(event: CanonicalEvent, line: string): string {
  const at = line.indexOf(DATA_MEMBER)
  return at >= 0 && Object.keys(event).at(-1) === 'data' ? line.slice(at + DATA_MEMBER.length, -1) : JSON.stringify(event.data)
}
const text = (value: unknown) => (typeof value === 'string' ? value : null)
const numeric = (value: unknown) => (typeof value === 'number' ? value : null)
const stepOf = (event: CanonicalEvent) => event.stepId ?? (event.subject.kind === 'step' ? event.subject.id : null)
/** An error is a text, or an object with a message. */
function errorOf({ error }: Data): string | null {
  if (typeof error !== 'object' || error === null) return text(error)
  return 'message' in error ? text(error.message) : null
}

const MAX_OPEN = 10_000
/** Remembers the latest so many. */
function remember<T>(map: Map<string, T>, key: string, value: T): T | undefined {
  map.delete(key)
  map.set(key, value)
  if (map.size <= MAX_OPEN) return undefined
  const [oldest] = map
  if (!oldest) return undefined
  map.delete(oldest[0])
  return oldest[1]
}

/** What the start of a call has named, its end need not name again. */
function namedBefore(names: Map<string, string>, id: string, name: unknown): string | null {
  if (typeof name === 'string') remember(names, id, name)
  return names.get(id) ?? null
}

/**
 * A row an event. Its tokens and its cost are what it added to the totals of the run: the same use is often told twice, by a call and by the
 * run's end, and a sum over the table is then what the state says.
 */
export function eventsTable(before = SECTIONS.llm.initial()): EventTable {
  const table = createTable(EVENTS, ['seq', 'ts', 'data'])
  const llm = before
  const reducers: Readonly<Record<string, ((state: typeof llm, event: never) => void) | undefined>> = SECTIONS.llm.on
  let told = totalsOf(llm.sums)
  const tools = new Map<string, string>()
  const models = new Map<string, string>()
  return {
    types: undefined,
    add({ event, line }) {
      const data: Data = event.data
      const reduce = reducers[event.type]
      let used: Partial<typeof told> = {}
      if (reduce) {
        // The table is read by the event's own type.
        reduce(llm, event as never)
        const now = totalsOf(llm.sums)
        if ((['totalTokens', 'inputTokens', 'outputTokens', 'costUsd'] as const).some((name) => now[name] !== told[name])) {
          used = {
            totalTokens: now.totalTokens - told.totalTokens,
            inputTokens: now.inputTokens - told.inputTokens,
            outputTokens: now.outputTokens - told.outputTokens,
            // Nobody told a cost is not that it cost nothing.
            ...(now.costUsd !== told.costUsd && { costUsd: rounded(now.costUsd - told.costUsd) }),
          }
        }
        told = now
      }
      const { kind, id } = event.subject
      const tool = kind === 'tool' ? namedBefore(tools, id, data.name) : null
      const model = kind === 'llm_call' ? namedBefore(models, id, data.model) : text(data.model)
      table.add({
        run_id: event.runId,
        seq: event.seq,
        ts: event.ts,
        received_at: event.receivedAt,
        type: event.type,
        attempt: event.attempt,
        subject_kind: event.subject.kind,
        subject: event.subject.id,
        step: stepOf(event),
        actor: event.actor?.id,
        source: event.source.name,
        tool,
        model,
        tokens: used.totalTokens,
        input_tokens: used.inputTokens,
        output_tokens: used.outputTokens,
        cost_usd: used.costUsd,
        duration_ms: numeric(data.durationMs) ?? numeric(data.latencyMs),
        error: errorOf(data),
        data: line === undefined ? JSON.stringify(data) : dataText(event, line),
      })
    },
    take: table.take,
    end: table.end,
  }
}

/** A row a step of an attempt, when it has ended, or at the end of the table. */
export function stepsTable(): EventTable {
  const table = createTable(STEPS)
  const open = new Map<string, Row<typeof STEPS>>()
  return {
    types: ['step.started', 'step.completed', 'step.failed', 'step.skipped'],
    add({ event }) {
      const data: Data = event.data
      const key = `${event.attempt} ${event.subject.id}`
      const begun = open.get(key)
      const row: Row<typeof STEPS> = {
        run_id: event.runId,
        attempt: event.attempt,
        step: event.subject.id,
        name: text(data.name) ?? begun?.name,
        kind: text(data.kind) ?? begun?.kind,
        phase: text(data.phase) ?? begun?.phase,
        status: event.type.slice('step.'.length),
        first_seq: begun?.first_seq ?? event.seq,
        last_seq: event.seq,
        started_at: begun?.started_at,
        ended_at: event.ts,
        duration_ms: numeric(data.durationMs),
        error: errorOf(data) ?? text(data.reason),
      }
      if (event.type !== 'step.started') {
        open.delete(key)
        if (row.duration_ms === null && typeof row.started_at === 'string') row.duration_ms = Math.max(0, Date.parse(event.ts) - Date.parse(row.started_at))
        table.add(row)
        return
      }
      // Started again without an end: the row of the first start says so.
      if (begun) table.add(begun)
      const dropped = remember(open, key, { ...row, status: 'running', first_seq: event.seq, started_at: event.ts, ended_at: null })
      if (dropped) table.add(dropped)
    },
    take: table.take,
    end() {
      for (const row of open.values()) table.add(row)
      return table.end()
    },
  }
}

/** A row a call of a language model that has ended, as it told it, at its start or its end. */
export function llmCallsTable(): EventTable {
  const table = createTable(LLM_CALLS)
  const open = new Map<string, { provider: string | null; model: string | null; step: string | null }>()
  return {
    types: ['llm.call.started', 'llm.call.completed', 'llm.call.failed'],
    add({ event }) {
      const data: Data = event.data
      const key = `${event.attempt} ${event.subject.id}`
      const begun = open.get(key)
      const provider = text(data.provider) ?? begun?.provider ?? null
      const model = text(data.model) ?? begun?.model ?? null
      const step = stepOf(event) ?? begun?.step ?? null
      if (event.type === 'llm.call.started') {
        remember(open, key, { provider, model, step })
        return
      }
      open.delete(key)
      table.add({
        run_id: event.runId,
        attempt: event.attempt,
        seq: event.seq,
        ts: event.ts,
        call: event.subject.id,
        step,
        status: event.type.slice('llm.call.'.length),
        provider,
        model,
        input_tokens: numeric(data.inputTokens),
        output_tokens: numeric(data.outputTokens),
        cache_read_tokens: numeric(data.cacheReadTokens),
        cache_write_tokens: numeric(data.cacheWriteTokens),
        reasoning_tokens: numeric(data.reasoningTokens),
        cost_usd: numeric(data.costUsd),
        latency_ms: numeric(data.latencyMs),
        ttft_ms: numeric(data.ttftMs),
        error: errorOf(data),
      })
    },
    take: table.take,
    end: table.end,
  }
}
