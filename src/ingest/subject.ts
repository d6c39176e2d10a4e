/** What an event is about where the producer does not say: the kind comes from its type, the id from its data. */
import { type DraftEvent, EVENT_TYPES, isEventType, type Reference } from '../domain/canonical-event.js'
import { readText } from './fields.js'

/** Where data of an event tells the id of its subject, by the subject's kind; the first that is there wins. */
const ID_FIELDS: Readonly<Record<string, readonly string[]>> = {
  session: ['sessionId'],
  participant: ['participantId'],
  step: ['name'],
  message: ['messageId'],
  llm_call: ['callId', 'llmCallId'],
  tool: ['toolCallId', 'callId'],
  artifact: ['artifactId'],
  checkpoint: ['checkpointId'],
  input: ['inputId', 'toolCallId'],
  gate: ['gateId', 'name'],
  signal: ['signalId', 'messageId'],
  proposal: ['proposalId'],
  decision: ['commitmentId', 'decisionId', 'proposalId'],
  policy: ['commitmentId', 'policyId', 'policyVersion'],
}

function byId(kind: string, draft: DraftEvent): Reference | undefined {
  const id = readText(draft.data, ...(ID_FIELDS[kind] ?? []))
  return id === undefined ? undefined : { kind, id }
}

function stepReference(draft: DraftEvent): Reference | undefined {
  const id = draft.stepId ?? readText(draft.data, 'stepId')
  return id === undefined ? undefined : { kind: 'step', id }
}

/** @returns undefined where only the log can tell: the run itself, or `raw-<rawSeq>`. */
export function defaultSubject(draft: DraftEvent): Reference | undefined {
  const { type } = draft
  if (!isEventType(type)) return undefined
  const step = stepReference(draft)
  if (type === 'progress.reported') return step ?? byId('participant', draft) ?? byId('message', draft)
  if (type === 'usage.reported') return byId('llm_call', draft) ?? step
  const { subject: kind } = EVENT_TYPES[type]
  return kind === 'step' ? (step ?? byId(kind, draft)) : byId(kind, draft)
}

/** The subject that the log stores for a draft: its own, or the run, or, for another kind, one named after the raw event. */
export function subjectOf(draft: DraftEvent, runId: string, rawSeq: number | string): Reference {
  if (draft.subject !== undefined) return draft.subject
  const kind = isEventType(draft.type) ? EVENT_TYPES[draft.type].subject : 'run'
  return { kind, id: kind === 'run' ? runId : `raw-${rawSeq}` }
}
