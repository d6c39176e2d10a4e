/**
 * From the bytes of a source to what is appended: items, and the cursor after them. One for each connection.
 *
 * An event that repeats after a reconnect is known by the event id of its format. Where that gives none, by the id of its frame
 * and its content: sources exist that use one id for several frames, and none of those may be lost.
 */
import { createHash } from 'node:crypto'
import { RunplaneError } from '../errors.js'
import type { Format, Rejected } from '../ingest/format.js'
import { createNdjsonSplitter, type ItemLimits, type RawItem, splitJsonBody } from '../ingest/json-items.js'
import type { Mask } from '../ingest/mask.js'
import { normalizeItem } from '../ingest/normalize.js'
import { eventTooLarge } from '../ingest/raw-item.js'
import { createSseSplitter, type SseFrame } from '../ingest/sse.js'
import type { AppendItem } from '../log/append-request.js'

/** What one append takes. */
export interface Slice {
  items: AppendItem[]
  /** After the slice's last item. */
  cursor: string | null
  /** Why things of the source are not events. */
  rejected: string[]
}

export interface SourceItems {
  /** The slices of what this chunk completes; none where it completes nothing. */
  feed(chunk: Buffer): Slice[]
  /** What is complete once the source has ended as it should. */
  end(): Slice[]
  readonly retryMs: number | undefined
}

export interface SourceItemsOptions {
  as: 'sse' | 'ndjson'
  format: Format
  limits: ItemLimits
  mask?: Pick<Mask, 'item' | 'text'> | undefined
  /** The producer's name of events that do not tell it. */
  defaultSource: string
  cursor: string | null
}

/** Bytes of one slice, about. */
const SLICE_BYTES = 1024 * 1024
/** Frames with these names keep the connection alive or mark a place in it, and are no events unless their content is one. */
const SERVICE_FRAMES = new Set(['caught_up', 'cursor', 'done', 'end', 'heartbeat', 'keep-alive', 'keepalive', 'ping', 'snapshot'])
/** How streams of model providers end. */
const DONE = '[DONE]'
/** Ids of frames that are longer are hashed whole: what the log indexes is bounded. */
const MAX_FRAME_ID_CHARS = 256

export function createSourceItems(options: SourceItemsOptions): SourceItems {
  const { format, limits, defaultSource } = options
  let { cursor } = options

  function toItem(sent: RawItem): AppendItem {
    const raw = options.mask?.item(sent) ?? sent
    if (!raw.ok) return { text: '', format: format.name, normalized: { ok: false, code: raw.code, detail: raw.detail } }
    return { text: raw.text, format: format.name, normalized: normalizeItem(format, raw.value, { defaultSource }) }
  }

  function slicer() {
    const slices: Slice[] = []
    let slice: Slice | undefined
    let bytes = 0
    const open = (): Slice => {
      if (slice === undefined || slice.items.length >= limits.maxEvents || bytes >= SLICE_BYTES) {
        slice = { items: [], cursor, rejected: [] }
        bytes = 0
        slices.push(slice)
      }
      return slice
    }
    return {
      slices,
      add(item: AppendItem): void {
        const { normalized } = item
        const to = open()
        if (normalized.ok) {
          to.items.push(item)
          bytes += item.text.length
        } else to.rejected.push(normalized.detail)
      },
      moveTo(next: string | null): void {
        if (next === cursor) return
        cursor = next
        // Of the slice that holds what the cursor is after, full or not.
        slice ??= open()
        slice.cursor = next
      },
    }
  }

  if (options.as === 'ndjson') {
    const splitter = createNdjsonSplitter(limits)
    const cut = (found: RawItem[]): Slice[] => {
      const to = slicer()
      for (const raw of found) {
        const item = toItem(raw)
        to.add(item)
        if (item.normalized.ok && item.normalized.eventId !== undefined) to.moveTo(item.normalized.eventId)
      }
      return to.slices
    }
    return {
      feed: (chunk) => cut(splitter.feed(chunk)),
      // A last line without its newline may be half a line.
      end: () => cut(splitter.end().filter((raw) => raw.ok)),
      retryMs: undefined,
    }
  }

  const splitter = createSseSplitter({ maxEventBytes: limits.maxEventBytes, lastId: cursor ?? '' })
  return {
    feed(chunk) {
      const to = slicer()
      for (const frame of splitter.feed(chunk)) {
        for (const item of itemsOf(frame)) to.add(item)
        to.moveTo(frame.lastId === '' ? null : frame.lastId)
      }
      return to.slices
    },
    end: () => [],
    get retryMs() {
      return splitter.retryMs
    },
  }

  function itemsOf(frame: SseFrame): AppendItem[] {
    if (frame.oversizeBytes > 0) return [refused({ ok: false, code: 'PAYLOAD_TOO_LARGE', detail: eventTooLarge(frame.oversizeBytes, limits) })]
    if (frame.data === undefined || isBlank(frame.data)) return []
    let raws: RawItem[]
    try {
      raws = splitJsonBody(frame.data, limits)
    } catch (error) {
      if (!(error instanceof RunplaneError)) throw error
      if (SERVICE_FRAMES.has(frame.name)) return []
      return [refused({ ok: false, code: error.code, detail: `A frame is not an event. ${error.message}` })]
    }
    const items = raws.map((raw, index) => withFrameId(toItem(raw), frame.id && (options.mask?.text(frame.id) ?? frame.id), index))
    return SERVICE_FRAMES.has(frame.name) ? items.filter(isMapped) : items
  }

  function refused(normalized: Rejected): AppendItem {
    return { text: '', format: format.name, normalized }
  }
}

const isBlank = (data: Buffer) => data.length < 16 && ['', DONE].includes(data.toString('latin1').trim())

const isMapped = ({ normalized }: AppendItem) => normalized.ok && normalized.events.some((event) => event.type !== 'raw.received')

function withFrameId(item: AppendItem, frameId: string | undefined, index: number): AppendItem {
  const { normalized } = item
  if (!normalized.ok || normalized.eventId !== undefined || frameId === undefined || frameId === '') return item
  const content = createHash('sha256').update(frameId).update('\0').update(String(index)).update('\0').update(item.text).digest('hex')
  const eventId = frameId.length > MAX_FRAME_ID_CHARS ? content : `${frameId}#${content.slice(0, 16)}`
  return { ...item, normalized: { ...normalized, eventId } }
}
