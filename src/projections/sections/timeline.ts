/** The most recent events in a line each, and how many there were of each type. */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { clip, field, idOf, MAX_LABEL_BYTES } from '../bounds.js'
import { defineSection } from '../section.js'

const MAX_RECENT = 50
const MAX_TYPES = 100
const MAX_SUMMARY_BYTES = 120

interface Line {
  seq: number
  ts: string
  type: string
  kind: string
  id: string
  summary: string | null
}

export interface TimelineFold {
  latestSeq: number
  totalEvents: number
  /** A ring: the event after `totalEvents` goes to that number modulo its size. */
  recent: Line[]
  byType: Map<string, number>
  /** Events of types beyond the first MAX_TYPES. */
  otherTypes: number
  truncated: number
}

/** The first that is there says what an event is about. */
function summaryOf(data: Readonly<Record<string, unknown>>): string | null {
  if (typeof data.message === 'string') return data.message
  if (typeof data.text === 'string') return data.text
  if (typeof data.messageType === 'string') return data.messageType
  if (typeof data.name === 'string') return data.name
  if (typeof data.action === 'string') return data.action
  if (typeof data.reason === 'string') return data.reason
  if (data.error === undefined) return null
  const message = typeof data.error === 'string' ? data.error : field(data.error, 'message')
  return typeof message === 'string' ? message : null
}

function write(state: TimelineFold, line: Line, event: CanonicalEvent, type: string): void {
  const summary = summaryOf(event.data)
  line.seq = event.seq
  line.ts = event.ts
  line.type = type
  line.kind = clip(state, event.subject.kind, MAX_LABEL_BYTES)
  line.id = idOf(event.subject.id)
  line.summary = summary === null ? null : clip(state, summary, MAX_SUMMARY_BYTES)
}

export const timeline = defineSection({
  name: 'timeline',
  initial: (): TimelineFold => ({ latestSeq: 0, totalEvents: 0, recent: [], byType: new Map(), otherTypes: 0, truncated: 0 }),
  onEvery(state, event) {
    const type = idOf(event.type)
    const count = state.byType.get(type)
    if (count !== undefined || state.byType.size < MAX_TYPES) state.byType.set(type, (count ?? 0) + 1)
    else state.otherTypes += 1
    let line = state.recent[state.totalEvents % MAX_RECENT]
    if (line === undefined) {
      line = { seq: 0, ts: '', type: '', kind: '', id: '', summary: null }
      state.recent.push(line)
    }
    write(state, line, event, type)
    state.totalEvents += 1
    state.latestSeq = event.seq
  },
  on: {},
  view(state) {
    const { latestSeq, totalEvents, otherTypes, truncated } = state
    const oldest = totalEvents > MAX_RECENT ? totalEvents % MAX_RECENT : 0
    const recent = [...state.recent.slice(oldest), ...state.recent.slice(0, oldest)].map(({ kind, id, ...line }) => ({
      ...withoutNull(line),
      subject: { kind, id },
    }))
    const countsByType = [...state.byType].sort(([a], [b]) => (a < b ? -1 : 1)).map(([type, count]) => ({ type, count }))
    return { latestSeq, totalEvents, recent, countsByType, otherTypes, dropped: totalEvents - recent.length, truncated }
  },
})
