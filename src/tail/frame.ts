/**
 * Server-sent events (WHATWG HTML, section 9.2) as bytes. The text of an event is JSON without line breaks, so a blank line ends a frame and
 * nothing else: bytes can be cut at frame boundaries, and the seq of a frame be read back, without a table of offsets.
 */

/** The most that a stalled reader keeps waiting in its socket, but for a single frame that is larger. */
export const PIECE_BYTES = 65_536

const END_OF_FRAME = '\n\n'

export function eventFrame(id: string | number, json: string): string {
  return `id: ${id}\nevent: canonical_event\ndata: ${json}\n\n`
}

/** A frame that is not an event of the log. Without an id it leaves the reader's cursor where it is. */
export function controlFrame(event: string, dataJson: string, id?: string | number): string {
  return id === undefined ? `event: ${event}\ndata: ${dataJson}\n\n` : `id: ${id}\nevent: ${event}\ndata: ${dataJson}\n\n`
}

/** The offset behind the frame that starts at `start`. */
export function frameEnd(bytes: Buffer, start: number): number {
  const at = bytes.indexOf(END_OF_FRAME, start, 'latin1')
  return at === -1 ? bytes.length : at + END_OF_FRAME.length
}

/** The offset behind the last frame that ends within `limit` bytes of `start`; behind the first frame if that alone is longer. */
function pieceEnd(bytes: Buffer, start: number, limit: number): number {
  if (bytes.length - start <= limit) return bytes.length
  const at = bytes.lastIndexOf(END_OF_FRAME, start + limit - END_OF_FRAME.length, 'latin1')
  return at >= start ? at + END_OF_FRAME.length : frameEnd(bytes, start)
}

/** The number in the `id` line of the frame at `start`. */
export function frameSeq(bytes: Buffer, start: number): number {
  return Number(bytes.toString('latin1', start + 'id: '.length, bytes.indexOf('\n', start, 'latin1')))
}

export interface Piece {
  bytes: Buffer
  /** The seq of its last frame. */
  lastSeq: number
}

/** Cuts event frames into pieces of at most `limit` bytes that share no memory with `bytes`, so that one waiting in a socket holds no page. */
export function cutFrames(bytes: Buffer, limit: number = PIECE_BYTES): Piece[] {
  const pieces: Piece[] = []
  for (let start = 0; start < bytes.length; ) {
    const end = pieceEnd(bytes, start, limit)
    const before = end - 2 * END_OF_FRAME.length < start ? -1 : bytes.lastIndexOf(END_OF_FRAME, end - 2 * END_OF_FRAME.length, 'latin1')
    const lastFrame = before >= start ? before + END_OF_FRAME.length : start
    pieces.push({ bytes: Buffer.from(bytes.subarray(start, end)), lastSeq: frameSeq(bytes, lastFrame) })
    start = end
  }
  return pieces
}

/** The frames without the first `count`. */
export function skipFrames(bytes: Buffer, count: number): Buffer {
  let start = 0
  for (let skipped = 0; skipped < count; skipped++) start = frameEnd(bytes, start)
  return bytes.subarray(start)
}
