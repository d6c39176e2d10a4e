/** What a run used and how often it failed, as the overview adds it up: from sections that are folded anyway. */

import { totalsOf, usageByModel } from './sections/llm.js'
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
  models: ReturnType<typeof usageByModel>
}

export function usageOf({ llm, tools, errors }: Readonly<Pick<Folds, 'llm' | 'tools' | 'errors'>>): RunUsage {
  const { inputTokens, outputTokens, costUsd } = totalsOf(llm.sums)
  return {
    inputTokens,
    outputTokens,
    costUsd,
    llmCalls: llm.completed + llm.failed,
    toolCalls: tools.called,
    errorCount: errors.total,
    models: usageByModel(llm),
  }
}
