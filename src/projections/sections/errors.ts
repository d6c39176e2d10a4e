/** What went wrong, the most recent first-hand: every event that tells a failure, with where it came from. */
import type { EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { clip, idOf, keepRecent, MAX_LABEL_BYTES, MAX_NAME_BYTES } from '../bounds.js'
import { failureOf } from '../failure.js'
import { linesOf } from '../lines.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'

const MAX_RECENT = 50
const MAX_MESSAGE_BYTES = 400

type FailureType = 'run.failed' | 'step.failed' | 'llm.call.failed' | 'tool.failed' | 'message.send_failed' | 'gate.failed' | 'policy.denied'

interface Failure {
  seq: number
  ts: string
  type: FailureType
  subject: { kind: string; id: string }
  code: string | null
  message: string
  source: { kind: string; name: string }
  participantId: string | null
  attempt: number
}

export interface ErrorsFold {
  recent: Failure[]
  total: number
  byType: Map<string, number>
  dropped: number
  truncated: number
}

function record(state: ErrorsFold, event: EventOf<FailureType>, failure: { code: string | null; message: string } | null): void {
  const { seq, ts, type, subject, source, attempt } = event
  const sender = senderOf(event)
  state.total += 1
  state.byType.set(type, (state.byType.get(type) ?? 0) + 1)
  const entry: Failure = {
    seq,
    ts,
    type,
    subject: { kind: clip(state, subject.kind, MAX_LABEL_BYTES), id: idOf(subject.id) },
    code: failure?.code ?? null,
    message: failure?.message ?? 'No message was given.',
    source: { kind: source.kind, name: clip(state, source.name, MAX_NAME_BYTES) },
    participantId: sender === undefined ? null : idOf(sender),
    attempt,
  }
  state.dropped += keepRecent(state.recent, entry, MAX_RECENT)
}

function recordError(state: ErrorsFold, event: EventOf<'run.failed' | 'step.failed' | 'llm.call.failed' | 'tool.failed'>): void {
  // The stack stays in the log.
  record(state, event, failureOf(state, event.data.error, MAX_MESSAGE_BYTES))
}

function recordReasons(state: ErrorsFold, event: EventOf<'policy.denied'>): void {
  const reasons = linesOf(state, event.data.reasons)
  const code = event.data.errorCode === undefined ? null : clip(state, event.data.errorCode, MAX_LABEL_BYTES)
  record(state, event, { code, message: reasons.length > 0 ? reasons.join('; ') : 'The policy denied it.' })
}

export const errors = defineSection({
  name: 'errors',
  initial: (): ErrorsFold => ({ recent: [], total: 0, byType: new Map(), dropped: 0, truncated: 0 }),
  on: {
    'run.failed': recordError,
    'step.failed': recordError,
    'llm.call.failed': recordError,
    'tool.failed': recordError,
    'message.send_failed'(state, event) {
      const { errorCode, errorMessage } = event.data
      record(state, event, failureOf(state, { code: errorCode, message: errorMessage }, MAX_MESSAGE_BYTES))
    },
    'gate.failed'(state, event) {
      record(state, event, failureOf(state, event.data.reason ?? 'The gate was not passed.', MAX_MESSAGE_BYTES))
    },
    'policy.denied': recordReasons,
  },
  view(state) {
    const byType = [...state.byType].map(([type, count]) => ({ type, count }))
    return { recent: state.recent.map(withoutNull), total: state.total, byType, dropped: state.dropped, truncated: state.truncated }
  },
})
