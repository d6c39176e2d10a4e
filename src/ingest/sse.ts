/**
 * Cuts a stream of server-sent events (WHATWG HTML, section 9.2.6) into frames as it arrives, by its bytes, so that no
 * character and no CRLF is harmed by where a chunk ends. What is too long is counted and let go: it holds one event's bytes at most.
 */

export interface SseFrame {
  /** The data lines, joined. Undefined: the frame holds none, or more than the limit. */
  data: Buffer | undefined
  /** Bytes of data over the limit; 0 for a frame that is not. */
  oversizeBytes: number
  /** The frame's `event` field. */
  name: string
  /** The `id` field of this very frame. */
  id: string | undefined
  /** Where a reader resumes after this frame; '' where the source resets it. */
  lastId: string
}

export interface SseSplitter {
  /** @returns the frames that this chunk ends, in order; a frame without data is among them only if it moves `lastId`. */
  feed(chunk: Buffer): SseFrame[]
  /** Milliseconds that the source wants a reader to wait before it reconnects. */
  readonly retryMs: number | undefined
}

const LF = 0x0a
const CR = 0x0d
const COLON = 0x3a
const SPACE = 0x20
/** Ids longer than this are no header that a server takes. */
const MAX_ID_BYTES = 2048
/** Characters that no header may hold; RFC 9110, section 5.5. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNSENDABLE = /[\x00-\x08\x0a-\x1f\x7f]/

/**
 * @param maxEventBytes of the data of one frame
 * @param lastId the id that the stream is resumed after
 */
export function createSseSplitter({ maxEventBytes, lastId = '' }: { maxEventBytes: number; lastId?: string }): SseSplitter {
  // Room for the field's name besides its value.
  const capacity = maxEventBytes + 8
  let held: Buffer = Buffer.alloc(0)
  let heldBytes = 0
  let skippedBytes = 0
  let isFirstLine = true
  let afterCr = false
  let retryMs: number | undefined

  let data: Buffer = Buffer.alloc(0)
  let dataBytes = 0
  let hasLine = false
  let oversizeBytes = 0
  let name = ''
  let id: string | undefined
  let lastIdBefore = lastId

  function hold(piece: Buffer): void {
    const room = capacity - heldBytes
    // The start of the line is kept: it tells which field this is.
    if (piece.length > room) skippedBytes += piece.length - room
    const kept = Math.min(piece.length, room)
    if (heldBytes + kept > held.length) {
      const grown = Buffer.allocUnsafe(Math.min(capacity, Math.max(1024, held.length * 2, heldBytes + kept)))
      held.copy(grown, 0, 0, heldBytes)
      held = grown
    }
    piece.copy(held, heldBytes, 0, kept)
    heldBytes += kept
  }

  function field(line: Buffer): void {
    const colon = line.indexOf(COLON)
    const nameEnd = colon === -1 ? line.length : colon
    const valueStart = colon === -1 ? line.length : line[colon + 1] === SPACE ? colon + 2 : colon + 1
    if (nameEnd > 5) return
    switch (line.toString('latin1', 0, nameEnd)) {
      case 'data':
        dataLine(line.subarray(valueStart))
        return
      case 'event':
        name = line.toString('utf8', valueStart, Math.min(line.length, valueStart + 256))
        return
      case 'id': {
        const value = line.toString('utf8', valueStart)
        if (skippedBytes === 0 && value.length <= MAX_ID_BYTES && !UNSENDABLE.test(value)) {
          id = value
          lastId = value
        }
        return
      }
      case 'retry': {
        const value = line.toString('latin1', valueStart)
        if (/^\d{1,9}$/.test(value)) retryMs = Number(value)
      }
    }
  }

  function dataLine(value: Buffer): void {
    const offset = hasLine ? dataBytes + 1 : 0
    const bytes = offset + value.length + skippedBytes
    hasLine = true
    if (oversizeBytes > 0 || bytes > maxEventBytes) {
      oversizeBytes = oversizeBytes > 0 ? oversizeBytes + 1 + value.length + skippedBytes : bytes
      return
    }
    if (bytes > data.length) {
      const grown = Buffer.allocUnsafe(Math.min(maxEventBytes, Math.max(1024, data.length * 2, bytes)))
      data.copy(grown, 0, 0, dataBytes)
      data = grown
    }
    if (offset > 0) data[offset - 1] = LF
    value.copy(data, offset)
    dataBytes = bytes
  }

  function endLine(piece: Buffer, frames: SseFrame[]): void {
    let line = piece
    if (heldBytes > 0) {
      hold(piece)
      line = held.subarray(0, heldBytes)
    } else if (piece.length > capacity) {
      skippedBytes = piece.length - capacity
      line = piece.subarray(0, capacity)
    }
    if (isFirstLine && line[0] === 0xef && line[1] === 0xbb && line[2] === 0xbf) line = line.subarray(3)
    isFirstLine = false
    if (line.length > 0) field(line)
    else endFrame(frames)
    heldBytes = 0
    skippedBytes = 0
  }

  function endFrame(frames: SseFrame[]): void {
    const isWhole = dataBytes > 0 && oversizeBytes === 0
    if (isWhole || oversizeBytes > 0 || lastId !== lastIdBefore) {
      // A copy: the next frame is gathered in the same place.
      frames.push({ data: isWhole ? Buffer.from(data.subarray(0, dataBytes)) : undefined, oversizeBytes, name, id, lastId })
    }
    lastIdBefore = lastId
    dataBytes = 0
    hasLine = false
    oversizeBytes = 0
    name = ''
    id = undefined
  }

  return {
    feed(chunk) {
      const frames: SseFrame[] = []
      let start = afterCr && chunk[0] === LF ? 1 : 0
      if (chunk.length > 0) afterCr = false
      let cr = chunk.indexOf(CR, start)
      let lf = chunk.indexOf(LF, start)
      while (cr !== -1 || lf !== -1) {
        const end = cr === -1 ? lf : lf === -1 ? cr : Math.min(cr, lf)
        endLine(chunk.subarray(start, end), frames)
        start = end + 1
        if (end === cr) {
          if (start === chunk.length) afterCr = true
          else if (chunk[start] === LF) start++
          cr = chunk.indexOf(CR, start)
        }
        if (lf !== -1 && lf < start) lf = chunk.indexOf(LF, start)
      }
      if (start < chunk.length) hold(chunk.subarray(start))
      return frames
    },
    get retryMs() {
      return retryMs
    },
  }
}
