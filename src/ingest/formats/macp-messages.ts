/**
 * What each macp message type means: the table of the vocabulary, one entry a row, from an envelope to the facts that it
 * tells besides having been received. A message type that is not here tells nothing more.
 */
import type { DraftEvent, Reference } from '../../domain/canonical-event.js'
import { withoutUndefined } from '../../domain/known.js'
import { clampPercentage } from '../../domain/percentage.js'
import { outcomeOf, voteOf } from '../../domain/vote.js'
import { asNumber, asText, type Fields, isFields, others, read, readNumber, readText } from '../fields.js'

export interface Envelope {
  messageType: string
  messageId: string | undefined
  sessionId: string | undefined
  sender: string | undefined
  modeName: string | undefined
  payload: Fields
  /** Of the envelope itself. */
  metadata: Fields
}

/** Beyond these the declared participants are in `session.bound` only: one envelope must not become a million events. */
const MAX_DECLARED_PARTICIPANTS = 1000

function reference(kind: string, id: string | undefined): Reference | undefined {
  return id === undefined ? undefined : { kind, id }
}

/**
 * Every fact of an envelope tells where it comes from.
 * @param told an object whose other fields pass through; what is named in `data` counts, also where it is undefined
 */
export function fact(envelope: Envelope, type: string, subject: Reference | undefined, data: Fields, told?: Fields): DraftEvent {
  const { modeName, messageType, messageId, sessionId, sender } = envelope
  const named = { modeName, messageType, messageId, sessionId, sender, ...data }
  return { type, ...(subject !== undefined && { subject }), data: { ...(told && others(told, named)), ...withoutUndefined(named) } }
}

function texts(value: unknown): string[] | undefined {
  return Array.isArray(value) ? value.flatMap((entry) => asText(entry) ?? []) : undefined
}

function list(value: unknown): unknown[] | undefined {
  return Array.isArray(value) ? value : undefined
}

function reasonsOf(payload: Fields): string[] {
  const single = ['reason', 'rationale', 'summary'].flatMap((name) => readText(payload, name) ?? [])
  return [...single, ...(texts(read(payload, 'reasons')) ?? [])]
}

/** An error as an object: a text is its message, and what else it tells passes through. */
export function errorOf(error: unknown): Fields | undefined {
  if (!isFields(error)) return asText(error) === undefined ? undefined : { message: asText(error) }
  const named = { code: readText(error, 'code', 'errorCode'), message: readText(error, 'message', 'errorMessage', 'reason'), stack: readText(error, 'stack') }
  return { ...others(error, named), ...withoutUndefined(named) }
}

export function declaredParticipants(payload: Fields): { id: string; role: string | undefined }[] {
  const declared = new Map<string, { id: string; role: string | undefined }>()
  for (const entry of list(read(payload, 'participants', 'participantIds')) ?? []) {
    const fields = isFields(entry) ? entry : undefined
    const id = fields === undefined ? asText(entry) : readText(fields, 'participantId', 'id', 'name')
    if (id !== undefined && !declared.has(id)) declared.set(id, { id, role: fields && readText(fields, 'role') })
  }
  return [...declared.values()]
}

function sessionStart(envelope: Envelope): DraftEvent[] {
  const { payload, sessionId } = envelope
  const participants = declaredParticipants(payload)
  const bound = fact(envelope, 'session.bound', reference('session', sessionId), {
    modeVersion: readText(payload, 'modeVersion'),
    configurationVersion: readText(payload, 'configurationVersion'),
    policyVersion: readText(payload, 'policyVersion'),
    contextId: readText(payload, 'contextId'),
    extensionKeys: texts(read(payload, 'extensionKeys')),
    intent: read(payload, 'intent'),
    ttlMs: readNumber(payload, 'ttlMs'),
    participants: participants.length > 0 ? participants.map(({ id }) => id) : undefined,
    expectedCommitments: list(read(payload, 'expectedCommitments')),
  })
  const seen = participants
    .slice(0, MAX_DECLARED_PARTICIPANTS)
    .map(({ id, role }) => fact(envelope, 'participant.seen', { kind: 'participant', id }, { participantId: id, role }))
  return [bound, ...seen]
}

function proposal(type: 'proposal.created' | 'proposal.updated') {
  return (envelope: Envelope): DraftEvent[] => {
    const { payload, messageType, messageId } = envelope
    const proposalId = readText(payload, 'proposalId', 'requestId', 'taskId', 'handoffId') ?? messageId
    const word = readText(payload, 'vote', 'recommendation')
    return [
      fact(envelope, type, reference('proposal', proposalId), {
        proposalId,
        action: word ?? readText(payload, 'action', 'option', 'revisedAction') ?? messageType,
        confidence: readNumber(payload, 'confidence'),
        vote: voteOf(word, messageType),
        reasons: reasonsOf(payload),
        prompt: messageType === 'Proposal' ? readText(payload, 'prompt', 'rationale') : undefined,
        severity: readText(payload, 'severity'),
        payload,
      }),
    ]
  }
}

function flagOf(value: unknown): boolean | undefined {
  const word = String(value).toLowerCase()
  return word === 'true' ? true : word === 'false' ? false : undefined
}

function supersedesOf(value: unknown): Fields | undefined {
  if (!isFields(value)) return undefined
  const commitment = { sessionId: readText(value, 'sessionId'), commitmentHash: readText(value, 'commitmentHash') }
  return commitment.sessionId === undefined && commitment.commitmentHash === undefined ? undefined : withoutUndefined(commitment)
}

function commitment(envelope: Envelope): DraftEvent[] {
  const { payload, messageId } = envelope
  const commitmentId = readText(payload, 'commitmentId', 'decisionId') ?? messageId
  const action = readText(payload, 'action')
  return [
    fact(envelope, 'decision.finalized', reference('decision', commitmentId), {
      commitmentId,
      proposalId: readText(payload, 'proposalId'),
      action,
      confidence: readNumber(payload, 'confidence'),
      reasons: reasonsOf(payload),
      outcomePositive: outcomeOf(flagOf(read(payload, 'outcomePositive')), action),
      supersedes: supersedesOf(read(payload, 'supersedes')),
      payload,
    }),
  ]
}

function signal(envelope: Envelope): DraftEvent[] {
  const { payload, messageId, messageType } = envelope
  const signalId = readText(payload, 'signalId') ?? messageId
  return [
    fact(envelope, 'signal.emitted', reference('signal', signalId), {
      signalId,
      name: readText(payload, 'signalType', 'name') ?? messageType,
      severity: readText(payload, 'severity'),
      confidence: readNumber(payload, 'confidence'),
      payload,
    }),
  ]
}

function acknowledgement(envelope: Envelope): DraftEvent[] {
  const signalId = readText(envelope.payload, 'signalId') ?? envelope.messageId
  return [
    fact(envelope, 'signal.acknowledged', reference('signal', signalId), {
      signalId,
      name: readText(envelope.payload, 'signalType', 'name'),
      by: envelope.sender,
    }),
  ]
}

function progressFact(envelope: Envelope, data: Fields): DraftEvent {
  const { sender, messageId } = envelope
  return fact(envelope, 'progress.reported', reference('participant', sender) ?? reference('message', messageId), data)
}

/**
 * Progress is a fraction. Where a total is told, whole numbers count towards it; a number above 1 without one is taken as
 * a percentage, which is what a sender of 45 means.
 */
function percentageOf(progress: number | undefined, total: number | undefined): number | undefined {
  if (progress === undefined) return undefined
  if (total !== undefined && total > 1 && (Number.isInteger(progress) || progress > 1)) return clampPercentage((progress / total) * 100)
  return clampPercentage(progress > 1 ? progress : Math.round(progress * 1e8) / 1e6)
}

function progress(envelope: Envelope): DraftEvent[] {
  const { payload } = envelope
  const current = readNumber(payload, 'progress', 'percentage')
  const total = readNumber(payload, 'total')
  return [
    progressFact(envelope, {
      percentage: percentageOf(current, total),
      ...(total !== undefined && { current, total }),
      message: readText(payload, 'message', 'status'),
      progressToken: readText(payload, 'progressToken'),
    }),
  ]
}

const updated = proposal('proposal.updated')
const created = proposal('proposal.created')

function taskUpdate(envelope: Envelope): DraftEvent[] {
  const percentage = percentageOf(readNumber(envelope.payload, 'progress'), undefined)
  const message = readText(envelope.payload, 'message', 'status')
  return percentage === undefined ? updated(envelope) : [...updated(envelope), progressFact(envelope, { percentage, message })]
}

function taskComplete(envelope: Envelope): DraftEvent[] {
  return [...updated(envelope), progressFact(envelope, { percentage: 100, message: readText(envelope.payload, 'summary') ?? 'completed' })]
}

function policyResolved(envelope: Envelope): DraftEvent[] {
  const { payload } = envelope
  const policyId = readText(payload, 'policyId')
  const policyVersion = readText(payload, 'policyVersion') ?? policyId
  return [
    fact(envelope, 'policy.resolved', reference('policy', policyId ?? policyVersion ?? envelope.messageId), {
      policyId,
      policyVersion,
      description: readText(payload, 'description'),
      expectedCommitments: list(read(payload, 'expectedCommitments')),
      payload,
    }),
  ]
}

function verdictOf(value: unknown): string | undefined {
  const vote = voteOf(asText(value))
  return vote === 'allow' || vote === 'deny' ? vote : undefined
}

function policyEvaluated(envelope: Envelope): DraftEvent[] {
  const { payload } = envelope
  const commitmentId = readText(payload, 'commitmentId')
  return [
    fact(envelope, 'policy.commitment.evaluated', reference('policy', commitmentId ?? envelope.messageId), {
      commitmentId,
      decision: verdictOf(read(payload, 'decision')),
      reasons: reasonsOf(payload),
      payload,
    }),
  ]
}

function policyDenied(envelope: Envelope): DraftEvent[] {
  const { payload } = envelope
  const commitmentId = readText(payload, 'commitmentId')
  const errorMessage = readText(payload, 'errorMessage', 'message')
  const reasons = reasonsOf(payload)
  return [
    fact(envelope, 'policy.denied', reference('policy', commitmentId ?? readText(payload, 'policyId') ?? envelope.messageId), {
      commitmentId,
      reasons: reasons.length === 0 && errorMessage !== undefined ? [errorMessage] : reasons,
      errorCode: readText(payload, 'errorCode', 'code'),
      errorMessage,
      payload,
    }),
  ]
}

function toolSubject({ payload, messageId }: Envelope): Reference | undefined {
  return reference('tool', readText(payload, 'toolCallId', 'callId', 'requestId') ?? messageId)
}

function toolCalled(envelope: Envelope): DraftEvent[] {
  const { payload } = envelope
  const data = {
    name: readText(payload, 'name', 'toolName', 'tool'),
    arguments: read(payload, 'arguments', 'args', 'input', 'parameters'),
    server: readText(payload, 'server'),
  }
  return [fact(envelope, 'tool.called', toolSubject(envelope), data, payload)]
}

/** What went wrong, of a result that says that something did; empty where it does not say what. */
function toolErrorOf(payload: Fields): Fields | undefined {
  const error = errorOf(read(payload, 'error'))
  const isError = read(payload, 'isError')
  if (isError === false || (isError !== true && error === undefined)) return undefined
  const code = readText(payload, 'errorCode', 'code')
  return { ...withoutUndefined({ code, message: readText(payload, 'errorMessage', 'message', 'reason', 'result', 'output', 'content') }), ...error }
}

function toolEnded(envelope: Envelope): DraftEvent[] {
  const { payload } = envelope
  const error = toolErrorOf(payload)
  const data = {
    name: readText(payload, 'name', 'toolName', 'tool'),
    result: read(payload, 'result', 'output', 'content'),
    durationMs: asNumber(read(payload, 'durationMs')),
  }
  if (error === undefined) return [fact(envelope, 'tool.completed', toolSubject(envelope), data, payload)]
  return [fact(envelope, 'tool.failed', toolSubject(envelope), { ...data, error }, payload)]
}

type Meaning = (envelope: Envelope) => DraftEvent[]
const all = (meaning: Meaning, ...messageTypes: string[]): [string, Meaning][] => messageTypes.map((messageType) => [messageType, meaning])

export const MESSAGES: ReadonlyMap<string, Meaning> = new Map([
  ...all(sessionStart, 'SessionStart'),
  ...all(created, 'Proposal', 'CounterProposal', 'ApprovalRequest', 'TaskRequest', 'HandoffOffer'),
  ...all(updated, 'Evaluation', 'Objection', 'Vote', 'Accept', 'Reject', 'Withdraw', 'Approve', 'Abstain', 'TaskAccept', 'TaskReject', 'TaskFail'),
  ...all(updated, 'HandoffContext', 'HandoffAccept', 'HandoffDecline', 'Contribute'),
  ...all(taskUpdate, 'TaskUpdate'),
  ...all(taskComplete, 'TaskComplete'),
  ...all(commitment, 'Commitment'),
  ...all(signal, 'Signal'),
  ...all(acknowledgement, 'SignalAck', 'SignalAcknowledged'),
  ...all(progress, 'Progress'),
  ...all(policyResolved, 'PolicyResolved'),
  ...all(policyEvaluated, 'PolicyCommitmentEvaluated'),
  ...all(policyDenied, 'PolicyDenied'),
  ...all(toolCalled, 'ToolCall', 'ToolRequest'),
  ...all(toolEnded, 'ToolResult', 'ToolCompleted', 'ToolOutput'),
])
