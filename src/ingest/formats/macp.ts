/**
 * macp: envelopes of multi-agent coordination, `{ macpVersion, mode, messageType, messageId, sessionId, sender,
 * timestampUnixMs, payload, metadata? }`, in camelCase or snake_case, the payload a JSON object or base64 of one.
 *
 * Every envelope is received (`message.received`); what more it tells is in macp-messages.ts. A session snapshot, which has
 * no message type, tells the session's state only. The source name is the session: message ids are unique within it, so
 * the same message counts once, whoever posts it.
 */
import type { DraftEvent } from '../../domain/canonical-event.js'
import { fromEpochMs } from '../../domain/time.js'
import { asFields, asNumber, asText, type Fields, isFields, read, readNumber, readText } from '../fields.js'
import { asEventId, EVENT_ID, type Format, MAX_ID_CHARS, MAX_SOURCE_CHARS, unmapped } from '../format.js'
import { parseBase64Json } from '../raw-item.js'
import { declaredParticipants, type Envelope, errorOf, fact, MESSAGES } from './macp-messages.js'

const STATE_PREFIX = 'SESSION_STATE_'
const STATE_MESSAGES = new Set(['SessionState', 'SessionStateChanged', 'SessionSnapshot'])

/** Bytes come as base64; those that hold no JSON object are kept as they are. */
function decodePayload(payload: unknown): unknown {
  if (typeof payload !== 'string' || payload === '') return payload === '' ? {} : payload
  return parseBase64Json(payload) ?? { base64: payload }
}

/** The data of a signal is bytes of its own within the payload. */
function decodeSignalData(payload: Fields): Fields {
  const data = read(payload, 'data')
  const decoded = typeof data === 'string' ? parseBase64Json(data) : undefined
  return decoded === undefined ? payload : { ...payload, data: decoded }
}

function stateOf(payload: Fields, messageType: string): string | undefined {
  const state = readText(payload, 'state', 'sessionState')?.toUpperCase()
  if (state?.startsWith(STATE_PREFIX)) return state
  return state !== undefined && STATE_MESSAGES.has(messageType) ? `${STATE_PREFIX}${state}` : undefined
}

/** What the end or the pause of a session means for the run. An open session says nothing that its messages do not. */
function runFact(envelope: Envelope, state: string): DraftEvent[] {
  const reason = readText(envelope.payload, 'reason', 'detail')
  const by = readText(envelope.payload, 'cancelledBy', 'by')
  switch (state.slice(STATE_PREFIX.length)) {
    case 'RESOLVED':
      return [fact(envelope, 'run.completed', undefined, { output: read(envelope.payload, 'output', 'result') })]
    case 'EXPIRED':
      return [fact(envelope, 'run.failed', undefined, { error: { code: 'SESSION_EXPIRED', message: reason ?? 'The session expired before it was resolved.' } })]
    case 'SUSPENDED':
      return [fact(envelope, 'run.suspended', undefined, { reason, by })]
    case 'CANCELLED':
      return [fact(envelope, 'run.cancelled', undefined, { reason, by })]
    default:
      return []
  }
}

function stateFacts(envelope: Envelope, state: string | undefined): DraftEvent[] {
  if (state === undefined) return []
  const { payload, sessionId } = envelope
  const changed = fact(envelope, 'session.state.changed', sessionId === undefined ? undefined : { kind: 'session', id: sessionId }, {
    state,
    detail: readText(payload, 'detail', 'reason'),
    modeVersion: readText(payload, 'modeVersion'),
    configurationVersion: readText(payload, 'configurationVersion'),
    policyVersion: readText(payload, 'policyVersion'),
    startedAtUnixMs: readNumber(payload, 'startedAtUnixMs'),
    expiresAtUnixMs: readNumber(payload, 'expiresAtUnixMs'),
  })
  return [changed, ...runFact(envelope, state)]
}

function countsOf(call: Fields): Fields {
  const usage = asFields(read(call, 'tokenUsage')) ?? {}
  const count = (...names: string[]) => asNumber(read(call, ...names) ?? read(usage, ...names))
  return {
    inputTokens: count('inputTokens', 'promptTokens'),
    outputTokens: count('outputTokens', 'completionTokens'),
    totalTokens: count('totalTokens'),
    cacheReadTokens: count('cacheReadTokens'),
    cacheWriteTokens: count('cacheWriteTokens'),
    reasoningTokens: count('reasoningTokens'),
    latencyMs: count('latencyMs'),
    ttftMs: count('ttftMs'),
    costUsd: count('costUsd', 'estimatedCostUsd'),
  }
}

function finishReasonsOf(value: unknown): unknown {
  return typeof value === 'string' ? [value] : value
}

/** The model call that a message reports with it; the first place that holds one wins. */
function llmCall(envelope: Envelope): DraftEvent[] {
  const { payload } = envelope
  const places = [payload, asFields(read(payload, 'metadata')), envelope.metadata]
  const signalData = readText(payload, 'signalType') === 'llm.call.completed' ? asFields(read(payload, 'data')) : undefined
  const held = (name: string) => places.reduce<Fields | undefined>((found, place) => found ?? (place && asFields(read(place, name))), undefined)
  const call = held('llmCall') ?? held('tokenUsage') ?? signalData
  if (call === undefined) return []
  const told = {
    provider: readText(call, 'provider'),
    model: readText(call, 'model'),
    ...countsOf(call),
    finishReasons: finishReasonsOf(read(call, 'finishReasons', 'finishReason')),
    prompt: read(call, 'prompt'),
    response: read(call, 'response'),
    artifactId: readText(call, 'artifactId'),
    error: errorOf(read(call, 'error')),
  }
  if (Object.values(told).every((value) => value === undefined)) return []
  const callId = readText(call, 'callId', 'id') ?? envelope.messageId
  return [fact(envelope, 'llm.call.completed', callId === undefined ? undefined : { kind: 'llm_call', id: callId }, told, call)]
}

function received(envelope: Envelope, value: Fields, payload: unknown): DraftEvent {
  const named = read(value, 'recipients', 'to')
  const recipients = Array.isArray(named) ? named.flatMap((recipient) => asText(recipient) ?? []) : undefined
  // A session's start goes to everyone whom it declares.
  const declared = envelope.messageType === 'SessionStart' ? declaredParticipants(envelope.payload).map(({ id }) => id) : []
  const implied = declared.filter((id) => id !== envelope.sender)
  const { messageId } = envelope
  return fact(envelope, 'message.received', messageId === undefined ? undefined : { kind: 'message', id: messageId }, {
    recipients: recipients ?? (implied.length > 0 ? implied : undefined),
    payload,
  })
}

function draftsOf(value: Fields, eventId: string | undefined): DraftEvent[] {
  const messageType = readText(value, 'messageType')
  if (eventId === undefined && readText(value, 'messageId') !== undefined) return [unmapped(`/messageId: expected ${EVENT_ID}`)]
  const time = asNumber(read(value, 'timestampUnixMs', 'timestamp'))
  // 0 is how protobuf writes a time that is not set.
  const ts = time === undefined || time === 0 ? undefined : fromEpochMs(time)
  if (time !== 0 && ts === undefined && read(value, 'timestampUnixMs') !== undefined) {
    return [unmapped('/timestampUnixMs: expected milliseconds since the Unix epoch')]
  }
  // A snapshot of a session is its own payload.
  const payload = messageType === undefined ? value : decodePayload(read(value, 'payload') ?? {})
  const fields = messageType === 'Signal' ? decodeSignalData(asFields(payload) ?? {}) : (asFields(payload) ?? {})
  const envelope: Envelope = {
    messageType: messageType ?? 'SessionSnapshot',
    messageId: eventId,
    sessionId: readText(value, 'sessionId') ?? readText(fields, 'sessionId'),
    sender: readText(value, 'sender'),
    modeName: readText(value, 'mode', 'modeName'),
    payload: fields,
    metadata: asFields(read(value, 'metadata')) ?? {},
  }
  // They stand in every fact: a start that declares 1,000 participants would store them 1,000 times.
  for (const [name, text] of Object.entries({ sessionId: envelope.sessionId, mode: envelope.modeName })) {
    if (text !== undefined && text.length > MAX_ID_CHARS) return [unmapped(`/${name}: expected a text of at most ${MAX_ID_CHARS} characters`)]
  }
  const states = stateFacts(envelope, stateOf(fields, envelope.messageType))
  const drafts =
    messageType === undefined
      ? states
      : [received(envelope, value, isFields(payload) ? fields : payload), ...(MESSAGES.get(messageType)?.(envelope) ?? []), ...states, ...llmCall(envelope)]
  if (drafts.length === 0) return [unmapped('/messageType: expected a text, such as Proposal')]
  for (const draft of drafts) {
    if (ts !== undefined) draft.ts = ts
    if (envelope.sender !== undefined) draft.actor = { kind: 'participant', id: envelope.sender }
  }
  return drafts
}

export const macp: Format = {
  name: 'macp',
  version: 1,
  misfits: 'keep-raw',
  normalize(value) {
    const eventId = asEventId(read(value, 'messageId'))
    const sessionId = readText(value, 'sessionId')
    return {
      ok: true,
      ...(eventId !== undefined && { eventId }),
      sourceKind: 'runtime',
      sourceName: sessionId !== undefined && sessionId.length <= MAX_SOURCE_CHARS ? sessionId : 'macp',
      rawType: readText(value, 'messageType') ?? 'SessionSnapshot',
      events: draftsOf(value, eventId),
    }
  },
}
