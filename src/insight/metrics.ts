/** What a run did, used and cost, in numbers: from its folded state, so at any seq alike. */
import type { RunStatus } from '../domain/run.js'
import type { FoldState } from '../projections/fold.js'
import { totalsOf, usageByModel } from '../projections/sections/llm.js'
import { costOf, type PriceTable, rounded } from './prices.js'

export interface ModelMetrics {
  model: string
  calls: number
  failed: number
  inputTokens: number
  outputTokens: number
  totalTokens: number
  cacheReadTokens: number
  cacheWriteTokens: number
  reasoningTokens: number
  /** As the run told it; 0 where it told none. */
  reportedCostUsd: number
  /** By the price table; null where it does not have the model. */
  pricedCostUsd: number | null
}

export interface RunMetrics {
  runId: string
  /** The seq that these are of. */
  version: number
  status: RunStatus
  attempt: number
  eventCount: number
  messageCount: number
  signalCount: number
  proposalCount: number
  decisionCount: number
  toolCallCount: number
  toolFailureCount: number
  llmCallCount: number
  llmFailureCount: number
  stepCount: number
  artifactCount: number
  participantCount: number
  errorCount: number
  lateCount: number
  streamReconnectCount: number
  inputTokens: number
  outputTokens: number
  totalTokens: number
  cacheReadTokens: number
  cacheWriteTokens: number
  reasoningTokens: number
  /** The names of macp-control-plane for the same. */
  promptTokens: number
  completionTokens: number
  estimatedCostUsd: number
  /** What the run told of its cost; where it told nothing, what the price table makes of its tokens. */
  costUsd: number
  costBasis: 'reported' | 'priced' | 'none'
  /** Models that used tokens and are not in the price table. */
  unpricedModels: string[]
  prices: { asOf: string; source: string }
  models: ModelMetrics[]
  tools: { name: string; called: number; completed: number; failed: number; durationMs: number }[]
  eventsByType: { type: string; count: number }[]
  llmLatencyMs: number
  firstEventAt: string | null
  lastEventAt: string | null
  startedAt: string | null
  endedAt: string | null
  /** From its start to its end, or to its last event while it goes on; null before it started. */
  durationMs: number | null
  /** From its creation to its start. */
  queuedMs: number | null
  sessionState: string | null
}

export function metricsOf({ version, folds }: FoldState, prices: PriceTable): RunMetrics {
  const { run, timeline, messages, signals, decision, tools, llm, steps, artifacts, participants, errors } = folds
  const { costUsd: reported, ...tokens } = totalsOf(llm.sums)
  const models = usageByModel(llm).map(({ costUsd, ...use }): ModelMetrics => {
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
