/** What a run did, used and cost, in numbers: from its folded state, so at any seq alike. */
import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { RUN_STATUSES } from '../domain/run.js'
import type { FoldState } from '../projections/fold.js'
import { totalsOf, usageByModel } from '../projections/sections/llm.js'
import { costOf, type PriceTable, rounded } from './prices.js'

const count = Type.Integer({ minimum: 0 })
const usd = Type.Number({ minimum: 0, description: 'US dollars' })
const orNull = <T extends TSchema>(schema: T, description: string) => Type.Union([schema, Type.Null()], { description })
const time = (description: string) => orNull(Type.String(), description)

const tokens = {
  inputTokens: Type.Number({ minimum: 0 }),
  outputTokens: Type.Number({ minimum: 0 }),
  totalTokens: Type.Number({ minimum: 0 }),
  cacheReadTokens: Type.Number({ minimum: 0 }),
  cacheWriteTokens: Type.Number({ minimum: 0 }),
  reasoningTokens: Type.Number({ minimum: 0 }),
}

export const RunMetrics = Type.Object(
  {
    runId: Type.String(),
    version: Type.Integer({ description: 'the seq that these are of' }),
    status: Type.Union(RUN_STATUSES.map((status) => Type.Literal(status))),
    attempt: Type.Integer({ minimum: 1 }),
    eventCount: count,
    messageCount: Type.Integer({ minimum: 0, description: 'sent, received, and begun to be written' }),
    signalCount: count,
    proposalCount: count,
    decisionCount: count,
    toolCallCount: count,
    toolFailureCount: count,
    llmCallCount: Type.Integer({ minimum: 0, description: 'completed and failed, as toolCallCount has both' }),
    llmFailureCount: count,
    stepCount: Type.Integer({ minimum: 0, description: 'of the current attempt' }),
    artifactCount: count,
    participantCount: count,
    errorCount: count,
    lateCount: Type.Integer({ minimum: 0, description: 'events that came after the end' }),
    streamReconnectCount: count,
    ...tokens,
    promptTokens: Type.Number({ description: 'inputTokens, as macp-control-plane names them' }),
    completionTokens: Type.Number({ description: 'outputTokens, as macp-control-plane names them' }),
    estimatedCostUsd: Type.Number({ description: 'costUsd, as macp-control-plane names it' }),
    costUsd: Type.Number({ description: 'what the run told of its cost; where it told nothing, what the price table makes of its tokens' }),
    costBasis: Type.Union([Type.Literal('reported'), Type.Literal('priced'), Type.Literal('none')]),
    unpricedModels: Type.Array(Type.String(), { description: 'models that used tokens and are not in the price table' }),
    prices: Type.Object({ asOf: Type.String(), source: Type.String() }),
    models: Type.Array(
      Type.Object({
        model: Type.String(),
        calls: Type.Integer({ minimum: 0, description: 'completed' }),
        failed: count,
        ...tokens,
        reportedCostUsd: usd,
        pricedCostUsd: orNull(Type.Number(), 'by the price table; null where it does not have the model'),
      }),
    ),
    tools: Type.Array(Type.Object({ name: Type.String(), called: count, completed: count, failed: count, durationMs: Type.Number() })),
    eventsByType: Type.Array(Type.Object({ type: Type.String(), count })),
    llmLatencyMs: Type.Number(),
    firstEventAt: time('when the run was created'),
    lastEventAt: time('of the last event of the log'),
    startedAt: time('null before it started'),
    endedAt: time('null until it has ended'),
    durationMs: orNull(Type.Number(), 'from its start to its end, or to its last event while it goes on'),
    queuedMs: orNull(Type.Number(), 'from its creation to its start'),
    sessionState: orNull(Type.String(), 'of a coordination session'),
  },
  { $id: 'RunMetrics' },
)
export type RunMetrics = Static<typeof RunMetrics>

export function metricsOf({ version, folds }: FoldState, prices: PriceTable): RunMetrics {
  const { run, timeline, messages, signals, decision, tools, llm, steps, artifacts, participants, errors } = folds
  const { costUsd: reported, ...tokens } = totalsOf(llm.sums)
  const models = usageByModel(llm).map(({ costUsd, ...use }) => {
    const price = prices.priceOf(use.model)
    return { ...use, reportedCostUsd: costUsd, pricedCostUsd: price ? costOf(price, use) : null }
  })
  const priced = rounded(models.reduce((sum, model) => sum + (model.pricedCostUsd ?? 0), 0))
  const costUsd = reported > 0 ? reported : priced
  const lastAt = run.endedAt ?? run.updatedAt
  return {
    runId: run.runId,
    version,
    status: run.status,
    attempt: run.attempt,
    eventCount: timeline.totalEvents,
    messageCount: messages.total + messages.received + messages.started,
    signalCount: signals.emitted,
    proposalCount: decision.contributions,
    decisionCount: decision.decisions,
    toolCallCount: tools.called,
    toolFailureCount: tools.failed,
    llmCallCount: llm.completed + llm.failed,
    llmFailureCount: llm.failed,
    stepCount: steps.total,
    artifactCount: artifacts.created,
    participantCount: participants.total,
    errorCount: errors.total,
    lateCount: run.late,
    streamReconnectCount: Math.max(0, (timeline.byType.get('session.stream.opened') ?? 0) - 1),
    ...tokens,
    promptTokens: tokens.inputTokens,
    completionTokens: tokens.outputTokens,
    estimatedCostUsd: costUsd,
    costUsd,
    costBasis: reported > 0 ? 'reported' : priced > 0 ? 'priced' : 'none',
    unpricedModels: models.filter(({ pricedCostUsd, totalTokens }) => pricedCostUsd === null && totalTokens > 0).map(({ model }) => model),
    prices: { asOf: prices.asOf, source: prices.source },
    models,
    tools: [...tools.byName].map(([name, use]) => ({ name, ...use })),
    eventsByType: [...timeline.byType].map(([type, count]) => ({ type, count })).sort((left, right) => (left.type < right.type ? -1 : 1)),
    llmLatencyMs: llm.latencyMs,
    firstEventAt: run.createdAt,
    lastEventAt: run.updatedAt,
    startedAt: run.startedAt,
    endedAt: run.endedAt,
    durationMs: between(run.startedAt, lastAt),
    queuedMs: between(run.createdAt, run.startedAt),
    sessionState: run.sessionState,
  }
}

/** Producers' clocks may run backwards: never below 0. */
function between(from: string | null, to: string | null): number | null {
  return from === null || to === null ? null : Math.max(0, Date.parse(to) - Date.parse(from))
}
