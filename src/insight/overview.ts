/**
 * The overview of a workspace's runs over a window, and of what their participants told: one statement each, over columns that the append
 * has folded, so that no event and no state is read.
 *
 * Counted are the runs that were created in the window. What has a time of its own (throughput and durations: the end) is put where it happened,
 * of the runs that were created in the window or up to a day before it.
 */

import { type Static, type TSchema, Type } from '@sinclair/typebox'
import type { Queries, Sql } from '../db/client.js'
import { utc } from '../db/utc.js'
import { RUN_STATUSES, type RunStatus } from '../domain/run.js'
import { toUtc } from '../domain/time.js'
import { RunplaneError } from '../errors.js'
import { costOf, type PriceTable, rounded, type TokenCounts } from './prices.js'

const HOUR_S = 3600
const WINDOWS = { '1h': HOUR_S, '6h': 6 * HOUR_S, '24h': 24 * HOUR_S, '7d': 168 * HOUR_S, '30d': 720 * HOUR_S } as const
export type Window = keyof typeof WINDOWS
export const WINDOW_NAMES = Object.keys(WINDOWS) as Window[]

const BUCKET_S = { minute: 60, hour: HOUR_S, day: 24 * HOUR_S } as const
const MAX_RANGE_S = 366 * 24 * HOUR_S
/** How long before the window a run may have begun that ended in it. */
const LOOK_BACK_S = 24 * HOUR_S
const TOP = 10
const RUNTIME_KIND = 'runplane'

export interface OverviewQuery {
  window?: Window | undefined
  /** RFC 3339; instead of the window. */
  from?: string | undefined
  to?: string | undefined
  /** Whole, or a part of it. */
  scenarioRef?: string | undefined
  environment?: string | undefined
}

const count = Type.Number({ minimum: 0 })
const orNull = <T extends TSchema>(schema: T, description: string) => Type.Union([schema, Type.Null()], { description })
const duration = orNull(Type.Number(), 'of completed runs; null where there is none')
const series = (description: string) => Type.Object({ labels: Type.Array(Type.String()), data: Type.Array(Type.Number()) }, { description })
const sparse = (description: string) =>
  Type.Object({ labels: Type.Array(Type.String()), data: Type.Array(Type.Union([Type.Number(), Type.Null()])) }, { description })

const Kpis = Type.Object({
  totalRuns: count,
  activeRuns: count,
  queuedRuns: count,
  completedRuns: count,
  failedRuns: count,
  cancelledRuns: count,
  successRate: orNull(Type.Number(), 'percent of the runs that have ended; null where none has'),
  totalSignals: count,
  totalDecisions: count,
  totalErrors: count,
  totalLlmCalls: count,
  totalToolCalls: count,
  inputTokens: count,
  outputTokens: count,
  totalTokens: count,
  totalCostUsd: Type.Number({ description: 'as reported, and, of runs that reported none, by the price table' }),
  reportedCostUsd: count,
  unpricedModels: Type.Array(Type.String(), { description: 'models whose tokens have no price, the first ten' }),
  avgDurationMs: duration,
  p50DurationMs: duration,
  p95DurationMs: duration,
  p99DurationMs: duration,
})

const RecentRun = Type.Object({
  id: Type.String(),
  runId: Type.String(),
  name: Type.Optional(Type.String()),
  kind: Type.Optional(Type.String()),
  status: Type.Union(RUN_STATUSES.map((status) => Type.Literal(status))),
  runtimeKind: Type.String({ description: 'that of `runtimeHealth`: macp-control-plane has one for each run' }),
  sourceRef: Type.Optional(Type.String()),
  createdAt: Type.String(),
  startedAt: Type.Optional(Type.String()),
  endedAt: Type.Optional(Type.String()),
})

export const Overview = Type.Object(
  {
    window: Type.Object({ from: Type.String(), to: Type.String(), bucket: Type.Union([Type.Literal('minute'), Type.Literal('hour'), Type.Literal('day')]) }),
    kpis: Kpis,
    recentRuns: Type.Array(RecentRun),
    runtimeHealth: Type.Object({ ok: Type.Boolean(), runtimeKind: Type.String() }),
    charts: Type.Object({
      runVolume: series('runs created'),
      latency: sparse('mean duration of the runs that completed then, in milliseconds'),
      latencyP50: sparse('median of the same'),
      latencyP95: sparse('95th percentile of the same'),
      latencyP99: sparse('99th percentile of the same'),
      throughput: series('runs completed'),
      queueDepth: series('of the runs created then, those that have not begun yet'),
      successRate: sparse('of the runs created then that have ended, percent completed'),
      cost: series('of the runs created then, in US dollars'),
      tokens: series('of the runs created then'),
      signalVolume: series('of the runs created then'),
      errors: series('errors told in the runs created then'),
      decisions: series('of the runs created then'),
      decisionOutcome: series('of the runs created then, those decided for less those decided against'),
      errorClasses: series('failed runs by error code, the ten most'),
      perScenario: series('runs by scenario, or by kind where they have none, the ten most'),
    }),
  },
  { $id: 'Overview' },
)
export type Overview = Static<typeof Overview>

export const AgentMetrics = Type.Object(
  {
    participantId: Type.String(),
    runs: count,
    messages: count,
    signals: count,
    averageConfidence: Type.Number({ description: 'over what it signalled and proposed; 0 where it never said how sure it is' }),
  },
  { $id: 'AgentMetrics' },
)
export type AgentMetrics = Static<typeof AgentMetrics>

interface CreatedRow {
  /** The number of the bucket. */
  b: number
  runs: number
  active: number
  queued: number
  completed: number
  failed: number
  cancelled: number
  signals: number
  decisions: number
  outcome: number
  errors: number
  llm_calls: number
  tool_calls: number
  input_tokens: number
  output_tokens: number
  cost_usd: number
}

interface EndedRow {
  /** Null: all of them. */
  b: number | null
  completed: number
  average: number | null
  quantiles: (number | null)[] | null
}

type ModelRow = TokenCounts & { b: number; model: string }

interface Found {
  created: CreatedRow[] | null
  ended: EndedRow[] | null
  models: ModelRow[] | null
  errors: { label: string; count: number }[] | null
  scenarios: { label: string; count: number }[] | null
  recent: Record<string, string | null>[] | null
}

export function createOverview({ sql, prices, now = Date.now }: { sql: Sql; prices: PriceTable; now?: () => number }) {
  const filters = ({ scenarioRef, environment }: OverviewQuery) => sql`
    ${scenarioRef === undefined ? sql`` : sql`and scenario ilike ${`%${scenarioRef.replace(/[\\%_]/g, '\\$&')}%`}`}
    ${environment === undefined ? sql`` : sql`and environment = ${environment}`}`

  /**
   * With memory for 100,000 runs instead of files, and neither compiled nor spread over the cores: compiling takes longer than the query, and the
   * cores are the writers'. Measured with 100,000 runs in the window: 0.6 s of CPU, and 1.5 s without this.
   */
  const analyzing = <T>(work: (tx: Queries) => Promise<T>): Promise<T> =>
    sql.begin('read only', async (tx) => {
      await tx.unsafe(`set local work_mem = '32MB'; set local jit = off; set local max_parallel_workers_per_gather = 0`)
      return work(tx)
    }) as Promise<T>

  return {
    /** @throws VALIDATION_ERROR for a range that is none. */
    async overview(workspaceId: string, query: OverviewQuery): Promise<Overview> {
      const range = rangeOf(query, now())
      const { fromS, toS, startS, sizeS, buckets } = range
      // `extract` counts in numeric: twice as slow.
      const bucket = (column: string) => sql`floor((date_part('epoch', ${sql(column)}) - ${startS}::float8) / ${sizeS}::float8)::int`
      const time = (seconds: number) => sql`to_timestamp(${seconds}::float8)`
      const [row] = await analyzing(
        (tx) => tx<{ found: Found }[]>`
        with runs_ as materialized (
          select status, created_at, ended_at, created_at >= ${time(fromS)} as inside, ${bucket('created_at')} as b,
            case when status = 'completed' and ended_at >= ${time(fromS)} and ended_at < ${time(toS)} then ${bucket('ended_at')} end as ended_b,
            greatest(0, date_part('epoch', ended_at - started_at) * 1000) as duration,
            signals, decisions, coalesce(decision_outcome, 0) as outcome, error_count, llm_calls, tool_calls, input_tokens, output_tokens, cost_usd,
            case when status = 'failed' then error end as error, coalesce(scenario, kind) as scenario
          from runs where workspace_id = ${workspaceId} and created_at >= ${time(fromS - LOOK_BACK_S)} and created_at < ${time(toS)} ${filters(query)}
        ), created as (
          select b, count(*) as runs,
            count(*) filter (where status not in ('completed', 'failed', 'cancelled')) as active,
            count(*) filter (where status in ('queued', 'starting', 'binding_session')) as queued,
            count(*) filter (where status = 'completed') as completed, count(*) filter (where status = 'failed') as failed,
            count(*) filter (where status = 'cancelled') as cancelled,
            sum(signals) as signals, sum(decisions) as decisions, sum(outcome) as outcome, sum(error_count) as errors, sum(llm_calls) as llm_calls,
            sum(tool_calls) as tool_calls, sum(input_tokens) as input_tokens, sum(output_tokens) as output_tokens, sum(cost_usd) as cost_usd
          from runs_ where inside group by b
        ), ended as (
          select ended_b as b, count(*) as completed, avg(duration) as average,
            percentile_cont(array[0.5, 0.95, 0.99]) within group (order by duration) as quantiles
          from runs_ where ended_b is not null group by grouping sets ((ended_b), ())
        ), models as (
          select ${bucket('created_at')} as b, m.model, sum(m."inputTokens") as "inputTokens", sum(m."outputTokens") as "outputTokens",
            sum(coalesce(m."cacheReadTokens", 0)) as "cacheReadTokens", sum(coalesce(m."cacheWriteTokens", 0)) as "cacheWriteTokens"
          from runs cross join lateral json_to_recordset(model_usage)
            as m(model text, "inputTokens" float8, "outputTokens" float8, "cacheReadTokens" float8, "cacheWriteTokens" float8)
          where workspace_id = ${workspaceId} and created_at >= ${time(fromS)} and created_at < ${time(toS)} and cost_usd = 0 and model_usage is not null
            ${filters(query)}
          group by 1, 2
        ), errors as (
          select coalesce(error->>'code', 'UNKNOWN') as label, count(*) as count from runs_ where inside and status = 'failed' group by 1 order by 2 desc, 1 limit ${TOP}
        ), scenarios as (
          select coalesce(scenario, 'unknown') as label, count(*) as count from runs_ where inside group by 1 order by 2 desc, 1 limit ${TOP}
        ), recent as (
          select id, name, kind, status, scenario, ${utc(sql, 'created_at')} as "createdAt", ${utc(sql, 'started_at')} as "startedAt", ${utc(sql, 'ended_at')} as "endedAt"
          from runs where workspace_id = ${workspaceId} and archived_at is null ${filters(query)} order by created_at desc, key desc limit ${TOP}
        )
        select json_build_object('created', (select json_agg(created) from created), 'ended', (select json_agg(ended) from ended),
          'models', (select json_agg(models) from models), 'errors', (select json_agg(errors) from errors),
          'scenarios', (select json_agg(scenarios) from scenarios), 'recent', (select json_agg(recent) from recent)) as found`,
      )
      if (!row) throw new Error('an aggregate has one row')
      const { created, ended, models, errors, scenarios, recent } = row.found
      const labels = Array.from({ length: buckets }, (_, index) => new Date((startS + index * sizeS) * 1000).toISOString())
      const chart = <T, V>(rows: readonly (T & { b: number | null })[] | null, empty: V, value: (row: T) => V) => {
        const data = new Array<V>(buckets).fill(empty)
        for (const one of rows ?? []) if (one.b !== null && one.b >= 0 && one.b < buckets) data[one.b] = value(one)
        return { labels, data }
      }
      const list = (rows: { label: string; count: number }[] | null) => ({
        labels: (rows ?? []).map(({ label }) => label),
        data: (rows ?? []).map(({ count }) => count),
      })
      const priced = pricedBy(models ?? [])
      const cost = (one: CreatedRow) => rounded(one.cost_usd + (priced.byBucket.get(one.b) ?? 0))
      const all = ended?.find(({ b }) => b === null)
      return {
        window: { from: new Date(fromS * 1000).toISOString(), to: new Date(toS * 1000).toISOString(), bucket: range.bucket },
        kpis: kpisOf(created ?? [], all, priced),
        recentRuns: (recent ?? []).map(recentRun),
        // There is no runtime but this service, and it has answered.
        runtimeHealth: { ok: true, runtimeKind: RUNTIME_KIND },
        charts: {
          runVolume: chart(created, 0, ({ runs }) => runs),
          latency: chart<EndedRow, number | null>(ended, null, ({ average }) => whole(average)),
          latencyP50: chart<EndedRow, number | null>(ended, null, ({ quantiles }) => whole(quantiles?.[0])),
          latencyP95: chart<EndedRow, number | null>(ended, null, ({ quantiles }) => whole(quantiles?.[1])),
          latencyP99: chart<EndedRow, number | null>(ended, null, ({ quantiles }) => whole(quantiles?.[2])),
          throughput: chart(ended, 0, ({ completed }) => completed),
          queueDepth: chart(created, 0, ({ queued }) => queued),
          successRate: chart<CreatedRow, number | null>(created, null, successRate),
          cost: chart(created, 0, cost),
          tokens: chart(created, 0, (one) => one.input_tokens + one.output_tokens),
          signalVolume: chart(created, 0, ({ signals }) => signals),
          errors: chart(created, 0, (one) => one.errors),
          decisions: chart(created, 0, ({ decisions }) => decisions),
          decisionOutcome: chart(created, 0, ({ outcome }) => outcome),
          errorClasses: list(errors),
          perScenario: list(scenarios),
        },
      }
    },

    /** What each participant told in the runs of the window, the most runs first. */
    async agents(workspaceId: string, query: OverviewQuery, limit: number): Promise<AgentMetrics[]> {
      const { fromS, toS } = rangeOf({ ...query, window: query.window ?? '30d' }, now())
      return analyzing(
        (tx) => tx<AgentMetrics[]>`
        select a.id as "participantId", count(*) as runs, sum(a.messages)::float8 as messages, sum(a.signals)::float8 as signals,
          coalesce(round((sum(a.confidence) / nullif(sum(a.confidences), 0))::numeric, 6), 0)::float8 as "averageConfidence"
        from runs cross join lateral json_to_recordset(agents) as a(id text, messages int, signals int, confidences int, confidence float8)
        where workspace_id = ${workspaceId} and created_at >= to_timestamp(${fromS}::float8) and created_at < to_timestamp(${toS}::float8)
          and agents is not null ${filters(query)}
        group by a.id order by 2 desc, 3 desc, 1 limit ${limit}`,
      )
    },
  }

  function pricedBy(models: readonly ModelRow[]) {
    const byBucket = new Map<number, number>()
    const unpriced = new Set<string>()
    for (const { b, model, ...counts } of models) {
      const price = prices.priceOf(model)
      if (price) byBucket.set(b, (byBucket.get(b) ?? 0) + costOf(price, counts))
      else if (counts.inputTokens + counts.outputTokens > 0) unpriced.add(model)
    }
    return { byBucket, unpriced: [...unpriced].sort().slice(0, TOP) }
  }
}

const ended = ({ completed, failed, cancelled }: Pick<CreatedRow, 'completed' | 'failed' | 'cancelled'>) => completed + failed + cancelled
const whole = (value: number | null | undefined): number | null => (typeof value === 'number' ? Math.round(value) : null)

function successRate(row: Pick<CreatedRow, 'completed' | 'failed' | 'cancelled'>): number | null {
  return ended(row) === 0 ? null : Number(((row.completed / ended(row)) * 100).toFixed(2))
}

function kpisOf(created: readonly CreatedRow[], all: EndedRow | undefined, priced: { byBucket: Map<number, number>; unpriced: string[] }): Overview['kpis'] {
  const sum = (name: keyof CreatedRow) => created.reduce((total, row) => total + row[name], 0)
  const counts = { completed: sum('completed'), failed: sum('failed'), cancelled: sum('cancelled') }
  const reportedCostUsd = rounded(sum('cost_usd'))
  return {
    totalRuns: sum('runs'),
    activeRuns: sum('active'),
    queuedRuns: sum('queued'),
    completedRuns: counts.completed,
    failedRuns: counts.failed,
    cancelledRuns: counts.cancelled,
    successRate: successRate(counts),
    totalSignals: sum('signals'),
    totalDecisions: sum('decisions'),
    totalErrors: sum('errors'),
    totalLlmCalls: sum('llm_calls'),
    totalToolCalls: sum('tool_calls'),
    inputTokens: sum('input_tokens'),
    outputTokens: sum('output_tokens'),
    totalTokens: sum('input_tokens') + sum('output_tokens'),
    totalCostUsd: rounded(reportedCostUsd + [...priced.byBucket.values()].reduce((total, cost) => total + cost, 0)),
    reportedCostUsd,
    unpricedModels: priced.unpriced,
    avgDurationMs: whole(all?.average),
    p50DurationMs: whole(all?.quantiles?.[0]),
    p95DurationMs: whole(all?.quantiles?.[1]),
    p99DurationMs: whole(all?.quantiles?.[2]),
  }
}

function recentRun({ id, name, kind, status, scenario, createdAt, startedAt, endedAt }: Record<string, string | null>): Overview['recentRuns'][number] {
  return {
    id: id ?? '',
    runId: id ?? '',
    ...(name && { name }),
    ...(kind && { kind }),
    // The column holds what the append wrote, and that is one of the statuses.
    status: status as RunStatus,
    runtimeKind: RUNTIME_KIND,
    ...(scenario && { sourceRef: scenario }),
    createdAt: createdAt ?? '',
    ...(startedAt && { startedAt }),
    ...(endedAt && { endedAt }),
  }
}

/** Seconds since the epoch; `startS` is where the bucket of `fromS` begins, in UTC. */
function rangeOf({ window = '24h', from, to }: OverviewQuery, nowMs: number) {
  // To the end of this second: what has just been created is in it.
  const toS = to === undefined ? Math.floor(nowMs / 1000) + 1 : timeOf('to', to)
  const fromS = from === undefined ? toS - WINDOWS[window] : timeOf('from', from)
  if (fromS >= toS) throw new RunplaneError('VALIDATION_ERROR', 'from must be earlier than to.')
  if (toS - fromS > MAX_RANGE_S) throw new RunplaneError('VALIDATION_ERROR', 'from and to are more than 366 days apart. Ask for a shorter time.')
  const hours = (toS - fromS) / HOUR_S
  const bucket = hours <= 6 ? ('minute' as const) : hours <= 48 ? ('hour' as const) : ('day' as const)
  const sizeS = BUCKET_S[bucket]
  const startS = Math.floor(fromS / sizeS) * sizeS
  return { fromS, toS, bucket, sizeS, startS, buckets: Math.ceil((toS - startS) / sizeS) }
}

function timeOf(name: string, text: string): number {
  const utc = toUtc(text)
  if (utc === undefined) throw new RunplaneError('VALIDATION_ERROR', `${name} must be an RFC 3339 time, such as 2026-11-21T08:00:00Z.`)
  return Date.parse(utc) / 1000
}
