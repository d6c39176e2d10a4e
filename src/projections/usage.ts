/** What a run used, decided and told, and how often it failed, as the overview adds it up: from sections that are folded anyway. */

import { totalsOf, usageByModel } from './sections/llm.js'
import type { Tally } from './sections/participants.js'
import type { Folds } from './sections.js'

/** Types that can change what `usageOf` says. */
const TYPES: ReadonlySet<string> = new Set([
  'llm.call.started',
  'llm.call.completed',
  'llm.call.failed',
  'usage.reported',
  'step.completed',
  'step.failed',
  'step.skipped',
  'run.completed',
  'run.failed',
  'tool.called',
  'tool.failed',
  'message.send_failed',
  'gate.failed',
  'policy.denied',
  'message.sent',
  'message.received',
  'message.started',
  'signal.emitted',
  'proposal.created',
  'proposal.updated',
  'decision.finalized',
])

export function changesUsage(type: string): boolean {
  return TYPES.has(type)
}

export interface RunUsage {
  inputTokens: number
  outputTokens: number
  /** As reported. */
  costUsd: number
  llmCalls: number
  toolCalls: number
  errorCount: number
  models: ReturnType<typeof usageByModel> | null
  signals: number
  decisions: number
  /** Of the decision that was made last: 1 for, -1 against, 0: nobody can tell; null: none was made. */
  outcome: 1 | 0 | -1 | null
  agents: (Tally & { id: string })[] | null
}

export function usageOf({ llm, tools, errors, signals, decision, participants }: Readonly<Folds>): RunUsage {
  const { inputTokens, outputTokens, costUsd } = totalsOf(llm.sums)
  const { current } = decision
  return {
    inputTokens,
    outputTokens,
    costUsd,
    llmCalls: llm.completed + llm.failed,
    toolCalls: tools.called,
    errorCount: errors.total,
    models: llm.models.size > 0 ? usageByModel(llm) : null,
    signals: signals.emitted,
    decisions: decision.decisions,
    outcome: current?.finalized ? (current.outcomePositive === null ? 0 : current.outcomePositive ? 1 : -1) : null,
    agents: participants.tallies.size > 0 ? Array.from(participants.tallies, ([id, tally]) => ({ id, ...tally })) : null,
  }
}
