/**
 * Messages: how many went out and how they fared (total, queued, accepted, rejected), how many came in, and the recent
 * ones that an agent writes piece by piece, each with the beginning of its text.
 *
 * The pieces of a text are kept apart, and joined where they are shown: a secret that came in pieces is in no stored state, and the view masks it.
 */
import type { EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { clip, clipped, field, fit, idOf, jsonBytes, keep, MAX_LABEL_BYTES, MAX_NAME_BYTES, textOf } from '../bounds.js'
import { defineSection } from '../section.js'

const MAX_STREAMS = 20
const MAX_STREAM_BYTES = 1_000
const MAX_TYPES = 50

interface Stream {
  messageId: string
  role: string | null
  name: string | null
  status: 'streaming' | 'completed'
  /** Pieces, none of them empty. */
  text: string[]
  reasoning: string[]
  /** Bytes left for what comes piece by piece. */
  room: number
  deltas: number
  finishReason: string | null
  startedAt: string
  endedAt: string | null
}

export interface MessagesFold {
  total: number
  queued: number
  accepted: number
  rejected: number
  received: number
  receivedByType: Map<string, number>
  otherTypes: number
  written: Map<string, Stream>
  started: number
  completed: number
  deltas: number
  dropped: number
  truncated: number
}

function streamOf(state: MessagesFold, event: EventOf<'message.started' | 'message.delta' | 'message.completed'>): Stream {
  const messageId = idOf(event.subject.id)
  const known = state.written.get(messageId)
  if (known !== undefined) return known
  const stream: Stream = {
    messageId,
    role: null,
    name: null,
    status: 'streaming',
    text: [],
    reasoning: [],
    room: MAX_STREAM_BYTES,
    deltas: 0,
    finishReason: null,
    startedAt: event.ts,
    endedAt: null,
  }
  state.started += 1
  if (keep(state.written, messageId, stream, MAX_STREAMS, (other) => other.status === 'completed')) state.dropped += 1
  return stream
}

function describe(state: MessagesFold, stream: Stream, data: { role?: string; name?: string; finishReason?: string }): void {
  stream.role = clipped(state, data.role, MAX_LABEL_BYTES) ?? stream.role
  stream.name = clipped(state, data.name, MAX_NAME_BYTES) ?? stream.name
  stream.finishReason = clipped(state, data.finishReason, MAX_LABEL_BYTES) ?? stream.finishReason
}

/** The text of a message that is told whole: itself, or that of its text blocks, as far as there is room for it. Null: it has none. */
function contentPieces(state: MessagesFold, content: unknown): string[] | null {
  const texts = (Array.isArray(content) ? content.map((block) => textOf(field(block, 'text'))) : [textOf(content)]).filter((text) => text !== null)
  if (texts.length === 0) return null
  const pieces: string[] = []
  let room = MAX_STREAM_BYTES
  for (const text of texts) {
    if (text === '') continue
    const piece = clip(state, text, room)
    pieces.push(piece)
    if (piece !== text) break
    room -= jsonBytes(piece)
  }
  return pieces
}

export const messages = defineSection({
  name: 'messages',
  initial: (): MessagesFold => ({
    total: 0,
    queued: 0,
    accepted: 0,
    rejected: 0,
    received: 0,
    receivedByType: new Map(),
    otherTypes: 0,
    written: new Map(),
    started: 0,
    completed: 0,
    deltas: 0,
    dropped: 0,
    truncated: 0,
  }),
  on: {
    'message.sent'(state, { data }) {
      state.total += 1
      if (field(data, 'ok') === false) state.rejected += 1
      else if (field(data, 'status') === 'queued') state.queued += 1
      else state.accepted += 1
    },
    'message.send_failed'(state) {
      state.total += 1
      state.rejected += 1
    },
    'message.received'(state, { data }) {
      state.received += 1
      const type = idOf(data.messageType ?? '')
      const count = state.receivedByType.get(type)
      if (count !== undefined || state.receivedByType.size < MAX_TYPES) state.receivedByType.set(type, (count ?? 0) + 1)
      else state.otherTypes += 1
    },
    'message.started'(state, event) {
      describe(state, streamOf(state, event), event.data)
    },
    'message.delta'(state, event) {
      const stream = streamOf(state, event)
      const channel = event.data.channel === 'reasoning' ? 'reasoning' : 'text'
      state.deltas += 1
      stream.deltas += 1
      const piece = fit(state, event.data.text, stream.room)
      if (piece !== '') stream[channel].push(piece)
      stream.room = piece === event.data.text ? stream.room - jsonBytes(piece) : 0
    },
    'message.completed'(state, event) {
      const stream = streamOf(state, event)
      describe(state, stream, event.data)
      if (stream.status === 'streaming') state.completed += 1
      stream.status = 'completed'
      stream.endedAt = event.ts
      const pieces = contentPieces(state, event.data.content)
      if (pieces !== null) stream[event.data.channel === 'reasoning' ? 'reasoning' : 'text'] = pieces
    },
  },
  view({ written, ...state }, _folds, masked) {
    const receivedByType = [...state.receivedByType].map(([messageType, count]) => ({ messageType, count }))
    const streams = [...written.values()].map(({ room, ...stream }) => ({
      ...withoutNull(stream),
      text: masked(stream.text.join('')),
      reasoning: masked(stream.reasoning.join('')),
    }))
    return { ...state, receivedByType, streams }
  },
})
