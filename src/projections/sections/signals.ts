/** Ambient signals, and who acknowledged each. */

import { withoutNull } from '../../domain/known.js'
import { clipped, idOf, keep, MAX_LABEL_BYTES, MAX_NAME_BYTES, numberOf, payload } from '../bounds.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'

const MAX_SIGNALS = 80
const MAX_PAYLOAD_BYTES = 300

interface Signal {
  id: string
  name: string
  severity: string | null
  sourceParticipantId: string | null
  ts: string
  confidence: number | null
  payload: unknown
  acknowledgedAt: string | null
  acknowledgedBy: string | null
}

export interface SignalsFold {
  signals: Map<string, Signal>
  emitted: number
  acknowledged: number
  /** Acknowledgements of a signal that is not (or no longer) listed. */
  unmatched: number
  dropped: number
  truncated: number
}

export const signals = defineSection({
  name: 'signals',
  initial: (): SignalsFold => ({ signals: new Map(), emitted: 0, acknowledged: 0, unmatched: 0, dropped: 0, truncated: 0 }),
  on: {
    'signal.emitted'(state, event) {
      const { data, ts } = event
      const id = idOf(event.subject.id)
      const sender = senderOf(event)
      const signal: Signal = {
        id,
        name: clipped(state, data.name, MAX_NAME_BYTES) ?? 'Signal',
        severity: clipped(state, data.severity, MAX_LABEL_BYTES),
        sourceParticipantId: sender === undefined ? null : idOf(sender),
        ts,
        confidence: numberOf(data.confidence),
        payload: payload(state, data.payload, MAX_PAYLOAD_BYTES),
        acknowledgedAt: null,
        acknowledgedBy: null,
      }
      state.emitted += 1
      if (keep(state.signals, id, signal, MAX_SIGNALS)) state.dropped += 1
    },
    'signal.acknowledged'(state, event) {
      state.acknowledged += 1
      const signal = state.signals.get(idOf(event.subject.id))
      if (signal === undefined) {
        state.unmatched += 1
        return
      }
      signal.acknowledgedAt = event.ts
      signal.acknowledgedBy = clipped(state, event.data.by ?? senderOf(event), MAX_NAME_BYTES)
    },
  },
  view(state) {
    return { ...state, signals: [...state.signals.values()].map(withoutNull) }
  },
})
