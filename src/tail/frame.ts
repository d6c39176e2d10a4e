/**
 * Server-sent events (WHATWG HTML, section 9.2) as bytes. The text of an event is JSON without line breaks, so a blank line ends a frame and
 * nothing else: bytes can be cut at frame boundaries, and the seq of a frame be read back, without a table of offsets.
 */

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

/** The number in the `id` line of the frame at `start`. */
export function frameSeq(bytes: Buffer, start: number): number {
  return Number(bytes.toString('latin1', start + 'id: '.length, bytes.indexOf('\n', start, 'latin1')))
}

/** The frames without the first `count`. */
export function skipFrames(bytes: Buffer, count: number): Buffer {
  let start = 0
  for (let skipped = 0; skipped < count; skipped++) start = frameEnd(bytes, start)
  return bytes.subarray(start)
}
