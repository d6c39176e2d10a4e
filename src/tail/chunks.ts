/**
 * The cache of encoded frames: recent commits and pages of the log alike, each a fact that cannot change ("the frames of seqs after a, up to b").
 * So whatever is found in it is right, whoever put it there and in whatever order; what is missing is read from the log.
 * One budget for all runs; the oldest goes first.
 */
import { skipFrames } from './frame.js'

export interface Chunk {
  afterSeq: number
  lastSeq: number
  bytes: Buffer
  /** What a filter needs, for each frame; only of commits. */
  events?: readonly { seq: number; type: string; subject: string }[] | undefined
}

export interface RunChunks {
  add(chunk: Chunk): void
  /** The chunk that starts right after the cursor, or the rest of the one that the cursor is in the middle of. */
  after(cursor: number): Chunk | undefined
  /** How far one gets from the cursor without a gap; undefined where there is more than so many chunks of it. */
  reach(cursor: number, maxChunks: number): number | undefined
  clear(): void
}

/** What a chunk costs beyond its frames. */
const CHUNK_OVERHEAD_BYTES = 200

export function createChunkCache(maxBytes: number) {
  const oldestFirst = new Map<Chunk, Chunk[]>()
  let bytes = 0

  function forget(chunk: Chunk): void {
    oldestFirst.delete(chunk)
    bytes -= chunk.bytes.length + CHUNK_OVERHEAD_BYTES
  }

  /** The place of the first chunk that starts after the cursor. */
  function placeAfter(chunks: readonly Chunk[], cursor: number): number {
    let low = 0
    let high = chunks.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((chunks[middle]?.afterSeq ?? 0) <= cursor) low = middle + 1
      else high = middle
    }
    return low
  }

  return {
    get bytes() {
      return bytes
    },
    forRun(): RunChunks {
      const chunks: Chunk[] = []
      return {
        add(chunk) {
          const place = placeAfter(chunks, chunk.afterSeq)
          const before = chunks[place - 1]
          if (before && before.lastSeq >= chunk.lastSeq) return
          const replaces = before?.afterSeq === chunk.afterSeq
          if (before && replaces) forget(before)
          chunks.splice(replaces ? place - 1 : place, replaces ? 1 : 0, chunk)
          oldestFirst.set(chunk, chunks)
          bytes += chunk.bytes.length + CHUNK_OVERHEAD_BYTES
          for (const [oldest, siblings] of oldestFirst) {
            if (bytes <= maxBytes) break
            forget(oldest)
            siblings.splice(siblings.indexOf(oldest), 1)
          }
        },
        after(cursor) {
          const chunk = chunks[placeAfter(chunks, cursor) - 1]
          return chunk && chunk.lastSeq > cursor ? restOf(chunk, cursor) : undefined
        },
        reach(cursor, maxChunks) {
          let reached = cursor
          let place = placeAfter(chunks, cursor) - 1
          for (let count = 0; ; count++, place++) {
            const chunk = chunks[place]
            if (!chunk || chunk.afterSeq > reached) return reached
            if (count === maxChunks) return undefined
            reached = Math.max(reached, chunk.lastSeq)
          }
        },
        clear() {
          for (const chunk of chunks) forget(chunk)
          chunks.length = 0
        },
      }
    },
  }
}

/** What of the chunk comes after the cursor. */
export function restOf(chunk: Chunk, cursor: number): Chunk {
  const skipped = cursor - chunk.afterSeq
  if (skipped <= 0) return chunk
  return { afterSeq: cursor, lastSeq: chunk.lastSeq, bytes: skipFrames(chunk.bytes, skipped), events: chunk.events?.slice(skipped) }
}
