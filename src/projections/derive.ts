/** What is derived from several sections after the fold. It names only what it reads of each, and imports none of them. */
import type { RunStatus } from '../domain/run.js'

interface StepCounts {
  total: number
  completed: number
  failed: number
  skipped: number
  partial: number
  /** Once something late was told of a step: what the steps came to before. */
  final: { progress: number | null } | null
}

export interface ProgressFacts {
  run: { status: RunStatus }
  progress: { reported: { percentage: number | null } | null }
  steps: StepCounts
}

/**
 * The progress of the run: an integer from 0 to 100, or null where nothing is known. A completed run is at 100; else the
 * last report about the run counts; else its steps do.
 */
export function runProgress({ run, progress, steps }: Readonly<ProgressFacts>): number | null {
  if (run.status === 'completed') return 100
  const told = progress.reported?.percentage ?? null
  // 100 is what is complete.
  if (told !== null) return told < 100 ? Math.min(99, Math.round(told)) : 100
  return steps.final === null ? progressOfSteps(steps) : steps.final.progress
}

/** Steps that are over, whichever way, count as a whole, running ones by their own progress. */
export function progressOfSteps({ total, completed, failed, skipped, partial }: Readonly<Omit<StepCounts, 'final'>>): number | null {
  if (total === 0) return null
  return Math.min(100, Math.max(0, Math.floor(((completed + failed + skipped) * 100 + partial) / total)))
}
