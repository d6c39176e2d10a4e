/**
 * How far the run is: a whole percentage or null. A completed run is at 100; else the last report about the run counts,
 * even if it goes down; else its steps. An attempt begins with nothing known. Reports about participants are kept beside it.
 */
import type { EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { percentageOf } from '../../domain/percentage.js'
import { nextAttempt } from '../../domain/run.js'
import { clipped, idOf, keep, MAX_LABEL_BYTES, MAX_LINE_BYTES, numberOf, textOf } from '../bounds.js'
import { type ProgressFacts, runProgress } from '../derive.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'

const MAX_ENTRIES = 60

interface Report {
  percentage: number | null
  current: number | null
  total: number | null
  unit: string | null
  message: string | null
  ts: string
}

export interface ProgressFold {
  attempt: number
  /** The last report about the run in this attempt. */
  reported: Report | null
  /** The last report about each participant. */
  entries: Map<string, { participantId: string; percentage: number | null; message: string | null; ts: string }>
  reports: number
  dropped: number
  truncated: number
}

function beginAttempt(state: ProgressFold, event: EventOf<'run.started' | 'run.retry_scheduled'>): void {
  const attempt = nextAttempt(state.attempt, event)
  if (attempt === state.attempt) return
  state.attempt = attempt
  state.reported = null
  state.entries.clear()
}

export const progress = defineSection({
  name: 'progress',
  initial: (): ProgressFold => ({ attempt: 1, reported: null, entries: new Map(), reports: 0, dropped: 0, truncated: 0 }),
  on: {
    'run.started': beginAttempt,
    'run.retry_scheduled': beginAttempt,
    'progress.reported'(state, event) {
      const { subject, ts, data } = event
      state.reports += 1
      const percentage = percentageOf(data)
      const message = clipped(state, data.message, MAX_LINE_BYTES)
      if (subject.kind === 'run') {
        if (event.late === true) return
        state.reported = {
          // A report that only says something leaves the figure where it is.
          percentage: percentage ?? state.reported?.percentage ?? null,
          current: numberOf(data.current),
          total: numberOf(data.total),
          unit: clipped(state, textOf(data.unit), MAX_LABEL_BYTES),
          message,
          ts,
        }
        return
      }
      const participant = subject.kind === 'participant' ? subject.id : subject.kind === 'message' ? senderOf(event) : undefined
      if (participant === undefined) return
      const participantId = idOf(participant)
      const entry = { participantId, percentage: percentage ?? state.entries.get(participantId)?.percentage ?? null, message, ts }
      if (keep(state.entries, participantId, entry, MAX_ENTRIES)) state.dropped += 1
    },
  },
  view(state, folds: Readonly<ProgressFacts>) {
    const { reports, dropped, truncated } = state
    return {
      percentage: runProgress(folds),
      ...(state.reported && { reported: withoutNull(state.reported) }),
      entries: [...state.entries.values()].map(withoutNull),
      reports,
      dropped,
      truncated,
    }
  },
})
