/**
 * The messages of a run, page by page from its log: those that went out and came in, and those that an agent wrote, with their text, also where that
 * was told piece by piece. The state keeps only the recent ones.
 */
import { type Static, Type } from '@sinclair/typebox'
import type { Sql } from '../db/client.js'
import type { EventOf } from '../domain/canonical-event.js'
import type { Mask } from '../ingest/mask.js'
import type { LogReader } from '../log/read.js'
import { pgArray } from '../log/states.js'
import { field, textOf } from '../projections/bounds.js'
import { senderOf } from '../projections/sender.js'

const TYPES = ['message.sent', 'message.received', 'message.send_failed', 'message.completed'] as const
type WrittenEvent = EventOf<'message.completed'>
type MessageEvent = WrittenEvent | EventOf<'message.sent'> | EventOf<'message.received'> | EventOf<'message.send_failed'>

/** A page ends early where its messages are large. */
const PAGE_BYTES = 1_048_576
/** How many seqs before its end the pieces of a message are looked for. */
const PIECES_WITHIN = 20_000
/** Characters of one message that was told piece by piece; the log has the rest. */
const MAX_TEXT = 65_536

const text = Type.Optional(Type.String())

export const Message = Type.Object(
  {
    seq: Type.Integer(),
    ts: Type.String(),
    direction: Type.Union([Type.Literal('sent'), Type.Literal('received'), Type.Literal('written')], { description: 'written: told by an agent as it writes' }),
    status: Type.Union(['accepted', 'queued', 'rejected', 'received', 'completed'].map((status) => Type.Literal(status))),
    messageId: Type.String(),
    messageType: text,
    sender: text,
    recipients: Type.Optional(Type.Array(Type.String())),
    sessionId: text,
    role: text,
    name: text,
    channel: text,
    text: Type.Optional(Type.String({ description: 'put together where it was told piece by piece' })),
    reasoning: Type.Optional(Type.String({ description: 'that was told piece by piece beside the text' })),
    truncated: Type.Optional(Type.Boolean({ description: 'there is more text in the log' })),
    content: Type.Optional(Type.Unknown({ description: 'as it was told, where it is no text' })),
    payload: Type.Optional(Type.Unknown()),
    error: Type.Optional(Type.Object({ code: text, message: text })),
  },
  { $id: 'Message' },
)
export type Message = Static<typeof Message>

/** What was told piece by piece, by its channel. */
interface Texts {
  text: string
  reasoning: string
}

export interface MessagePage {
  data: Message[]
  /** Only where there is more: with few messages in a long log a page may be short, or empty, and still have it. */
  nextAfterSeq?: number
  headSeq: number
}

export function createMessages({ sql, log, mask }: { sql: Sql; log: Pick<LogReader, 'pageOfEvents'>; mask: Pick<Mask, 'text'> }) {
  /** Undefined: there is no such run any more. */
  async function page(runKey: string, afterSeq: number, limit: number): Promise<MessagePage | undefined> {
    const found = await log.pageOfEvents({ runKey, afterSeq, limit, maxBytes: PAGE_BYTES, filter: { types: TYPES } })
    if (!found) return undefined
    const events = found.items.map((item): MessageEvent => JSON.parse(item.toString()))
    const written = events.filter(isWithoutText)
    const texts = written.length > 0 ? await piecesOf(runKey, written) : new Map<string, Texts>()
    return {
      data: events.map((event) => messageOf(event, texts, mask.text)),
      ...(found.scannedTo < found.headSeq && { nextAfterSeq: found.scannedTo }),
      headSeq: found.headSeq,
    }
  }

  async function piecesOf(runKey: string, events: readonly MessageEvent[]): Promise<Map<string, Texts>> {
    const from = Math.max(0, (events[0]?.seq ?? 0) - PIECES_WITHIN)
    const to = events.at(-1)?.seq ?? 0
    const subjects = [...new Set(events.map(({ subject }) => `${subject.kind}/${subject.id}`))]
    const texts = new Map<string, Texts>()
    await sql<{ event: EventOf<'message.delta'> }[]>`
      select event from run_events_canonical
      where run_key = ${runKey} and seq > ${from} and seq < ${to} and type = 'message.delta' and subject = any(${pgArray(subjects)}::text[]) order by seq`.forEach(
      ({ event }) => {
        const told = texts.get(event.subject.id) ?? { text: '', reasoning: '' }
        const channel = event.data.channel === 'reasoning' ? 'reasoning' : 'text'
        // One more than is shown tells that there is more.
        if (told[channel].length <= MAX_TEXT) told[channel] = (told[channel] + event.data.text).slice(0, MAX_TEXT + 1)
        texts.set(event.subject.id, told)
      },
    )
    return texts
  }

  return { page }
}

function isWithoutText(event: MessageEvent): event is WrittenEvent {
  return event.type === 'message.completed' && event.data.content === undefined
}

/** @param masked takes secrets out of a text that is put together here: of its pieces each was looked at by itself as it came in */
function messageOf(event: MessageEvent, texts: ReadonlyMap<string, Texts>, masked: (text: string) => string): Message {
  const { seq, ts, subject } = event
  const sender = senderOf(event)
  const common = { seq, ts, ...(sender !== undefined && { sender }) }
  if (event.type === 'message.completed') {
    const { role, name, channel, content } = event.data
    const pieces = content === undefined ? texts.get(subject.id) : undefined
    const own = channel === 'reasoning' ? 'reasoning' : 'text'
    const text = masked(pieces?.[own] ?? wholeText(content) ?? '')
    const reasoning = own === 'text' ? masked(pieces?.reasoning ?? '') : ''
    return {
      ...common,
      direction: 'written',
      status: 'completed',
      messageId: subject.id,
      ...definedOf({ role, name, channel }),
      ...(text !== '' && { text: text.slice(0, MAX_TEXT) }),
      ...(reasoning !== '' && { reasoning: reasoning.slice(0, MAX_TEXT) }),
      ...(Math.max(text.length, reasoning.length) > MAX_TEXT && { truncated: true }),
      ...(content !== undefined && typeof content !== 'string' && { content }),
    }
  }
  const { data, type } = event
  const { messageId, messageType, recipients, sessionId, payload, errorCode, errorMessage } = data
  return {
    ...common,
    direction: type === 'message.received' ? 'received' : 'sent',
    status: type === 'message.received' ? 'received' : type === 'message.send_failed' ? 'rejected' : sentStatus(data),
    messageId: messageId ?? subject.id,
    ...definedOf({ messageType, recipients, sessionId, payload }),
    ...((errorCode !== undefined || errorMessage !== undefined) && { error: definedOf({ code: errorCode, message: errorMessage }) }),
  }
}

function sentStatus(data: unknown): 'accepted' | 'queued' | 'rejected' {
  if (field(data, 'ok') === false) return 'rejected'
  return field(data, 'status') === 'queued' ? 'queued' : 'accepted'
}

/** The text of a message that is told whole: itself, or that of its text blocks. */
function wholeText(content: unknown): string | undefined {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) return undefined
  const texts = content.map((block) => textOf(field(block, 'text'))).filter((part) => part !== null)
  return texts.length > 0 ? texts.join('') : undefined
}

function definedOf<T extends object>(fields: T): T {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T
}
