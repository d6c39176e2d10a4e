/** What the states of two runs say of their differences: the summary that macp-control-plane answered, metrics, decision, policy, configuration, state. */
import { createPatch, type Operation } from 'rfc6902'
import { createRules, type Rules, withoutVolatile } from '../../domain/volatile.js'
import { type FoldState, type RunState, viewState } from '../../projections/fold.js'
import { metricsOf, type RunMetrics } from '../metrics.js'
import type { PriceTable } from '../prices.js'
import type { DecisionDiff, Delta, PartDiff, SideAnswer } from './answer.js'
import { fieldDiff } from './fields.js'
import type { Side } from './side.js'

/** What the facts of a side are made with. */
export interface StateOptions {
  prices: PriceTable
  /** Takes secrets out of texts that came in pieces; left out where there are no patterns. */
  masked?: ((text: string) => string) | undefined
}

export interface Facts {
  side: SideAnswer
  state: RunState
  metrics: RunMetrics
}

export function factsOf(side: Side, fold: FoldState, { prices, masked }: StateOptions): Facts {
  const state = viewState(fold, masked)
  const metrics = metricsOf(fold, prices)
  const { name, modeName } = state.run
  return {
    side: {
      runId: side.runId,
      kind: side.kind,
      firstSeq: side.firstSeq,
      seq: side.seq,
      status: metrics.status,
      ...(name !== undefined && { name }),
      ...(modeName !== undefined && { modeName }),
      ...(metrics.durationMs !== null && { durationMs: metrics.durationMs }),
    },
    state,
    metrics,
  }
}

export function summaryOf(left: Facts, right: Facts) {
  const durations = [left.metrics.durationMs, right.metrics.durationMs] as const
  const confidences = [confidenceOf(left), confidenceOf(right)] as const
  return {
    statusMatch: left.metrics.status === right.metrics.status,
    ...(durations[0] !== null && durations[1] !== null && { durationDeltaMs: durations[1] - durations[0] }),
    ...(confidences[0] !== undefined && confidences[1] !== undefined && { confidenceDelta: rounded(confidences[1] - confidences[0]) }),
  }
}

function confidenceOf({ state }: Facts): number | undefined {
  return state.decision.current?.confidence
}

export function participantsDiff(left: Facts, right: Facts) {
  return sets(
    left.state.participants.map(({ participantId }) => participantId),
    right.state.participants.map(({ participantId }) => participantId),
  )
}

export function signalsDiff(left: Facts, right: Facts) {
  const { added, removed } = sets(
    left.state.signals.signals.map(({ name }) => name),
    right.state.signals.signals.map(({ name }) => name),
  )
  return { added, removed }
}

function sets(left: readonly string[], right: readonly string[]) {
  const [one, other] = [new Set(left), new Set(right)]
  return {
    added: [...other].filter((name) => !one.has(name)),
    removed: [...one].filter((name) => !other.has(name)),
    common: [...one].filter((name) => other.has(name)).sort(),
  }
}

/** The metrics of `GET /runs/:id/metrics` that are one number. */
export const METRICS = [
  'durationMs',
  'queuedMs',
  'attempt',
  'eventCount',
  'messageCount',
  'signalCount',
  'proposalCount',
  'decisionCount',
  'toolCallCount',
  'toolFailureCount',
  'llmCallCount',
  'llmFailureCount',
  'llmLatencyMs',
  'stepCount',
  'artifactCount',
  'participantCount',
  'errorCount',
  'inputTokens',
  'outputTokens',
  'totalTokens',
  'cacheReadTokens',
  'cacheWriteTokens',
  'reasoningTokens',
  'costUsd',
] as const satisfies readonly (keyof RunMetrics)[]
export type MetricName = (typeof METRICS)[number]

export function metricsDiff(left: Facts, right: Facts): Record<MetricName, Delta> {
  const deltas = METRICS.map((name) => {
    const [one, other] = [left.metrics[name], right.metrics[name]]
    return [name, { left: one, right: other, delta: one === null || other === null ? null : rounded(other - one) }]
  })
  // One entry a metric.
  return Object.fromEntries(deltas) as Record<MetricName, Delta>
}

/** Differences of fractions drift. */
function rounded(value: number): number {
  return Number(value.toFixed(9))
}

/** @param ignore see `createRules`, here and below */
export function decisionDiff(left: Facts, right: Facts, ignore: readonly string[]): DecisionDiff {
  const [one, other] = [voted(left), voted(right)]
  const votes = [...new Set([...one.keys(), ...other.keys()])].sort().map((participantId) => ({
    participantId,
    left: one.get(participantId) ?? null,
    right: other.get(participantId) ?? null,
  }))
  return { ...partDiff(decisionOf(left), decisionOf(right), ignore), votes }
}

function decisionOf({ state }: Facts) {
  const { current } = state.decision
  if (!current) return null
  const { proposals, ...decision } = current
  return decision
}

/** The last vote of each participant. */
function voted({ state }: Facts): Map<string, string> {
  const votes = new Map<string, string>()
  for (const { participantId, vote } of state.decision.current?.proposals ?? []) if (vote !== undefined && participantId !== '') votes.set(participantId, vote)
  return votes
}

export function policyDiff(left: Facts, right: Facts, ignore: readonly string[]): PartDiff {
  return partDiff(left.state.policy, right.state.policy, ignore)
}

export function configurationDiff(left: Facts, right: Facts, ignore: readonly string[]): PartDiff {
  // Its members are where the event has them that told of them: /data/input/seed.
  return partDiff(configurationOf(left), configurationOf(right), ignore, ['data'])
}

/** What the run was told to do, and with what. */
function configurationOf({ state: { run, participants } }: Facts) {
  const { name, kind, tags, agent, model, queue, priority, modeName, modeVersion, configurationVersion, policyVersion, input } = run
  const roles = Object.fromEntries(participants.flatMap(({ participantId, role }) => (role === undefined ? [] : [[participantId, role]])))
  return { name, kind, tags, agent, model, queue, priority, modeName, modeVersion, configurationVersion, policyVersion, input, roles }
}

function partDiff(left: unknown, right: unknown, ignore: readonly string[], place = IN_STATE): PartDiff {
  const compared = (part: unknown) => withoutVolatile(part, createRules(ignore), [...place])
  const { fields, more } = fieldDiff(compared(left), compared(right))
  return { same: fields.length === 0, left, right, fields, moreFields: more }
}

/** Not a member of an event's data, and still one that a rule for a name is about. */
const IN_STATE = ['data', 'state']

/** Where things are in the log is as volatile as when they happened. */
const STATE_IGNORED = ['seq', 'uri', 'stateSeq']

/** @returns a patch (RFC 6902) from the left state to the right one, both without what is volatile. */
export function stateDiff(left: Facts, right: Facts, ignore: readonly string[]): Operation[] {
  const rules = createRules([...STATE_IGNORED.map((name) => `/**/${name}`), ...ignore])
  return patch(comparedState(left.state, rules), comparedState(right.state, rules))
}

export function comparedState(state: RunState, rules: Rules): unknown {
  return withoutVolatile(state, rules, [...IN_STATE])
}

function patch(left: unknown, right: unknown): Operation[] {
  return createPatch(left, right, (one, other, pointer) => (Array.isArray(one) && Array.isArray(other) ? patchList(one, other, pointer.toString()) : undefined))
}

/** The library's own way of lists compares each item with each, which takes seconds for some hundred steps. */
function patchList(left: readonly unknown[], right: readonly unknown[], path: string): Operation[] {
  const [one, other] = [left.map((item) => JSON.stringify(item)), right.map((item) => JSON.stringify(item))]
  let start = 0
  while (start < one.length && start < other.length && one[start] === other[start]) start++
  let end = 0
  while (end < one.length - start && end < other.length - start && one.at(-1 - end) === other.at(-1 - end)) end++
  const [leftTo, rightTo] = [one.length - end, other.length - end]
  const operations: Operation[] = []
  let index = start
  for (; index < leftTo && index < rightTo; index++) {
    for (const operation of patch(left[index], right[index])) operations.push({ ...operation, path: `${path}/${index}${operation.path}` })
  }
  for (let at = leftTo - 1; at >= index; at--) operations.push({ op: 'remove', path: `${path}/${at}` })
  for (; index < rightTo; index++) operations.push({ op: 'add', path: `${path}/${index}`, value: right[index] })
  return operations
}
