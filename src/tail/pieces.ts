/**
 * Memory for the frames of a page that one reader alone reads: lent to the page, and given back when the socket has taken a piece.
 * Without it V8 counts 64 KiB for every hundred events and collects the whole heap for them: half of what the service spent on a backfill.
 *
 * Invariant: what is given back is seen by nobody any more. So only pages that are neither shared nor cached have lent memory, each piece is written
 * once, and what was not written to its end is left to the garbage collector.
 */
import { PIECE_BYTES } from '../log/read.js'

export type PiecePool = ReturnType<typeof createPiecePool>

/** 2 MiB: two pages of a few readers. */
const MAX_FREE = 32

export function createPiecePool() {
  const free: ArrayBufferLike[] = []
  return {
    lend(bytes: number): Buffer {
      // Small ones would hold far more memory than they fill.
      if (bytes < PIECE_BYTES / 2 || bytes > PIECE_BYTES) return Buffer.allocUnsafeSlow(bytes)
      return Buffer.from(free.pop() ?? new ArrayBuffer(PIECE_BYTES), 0, bytes)
    },
    giveBack(piece: Buffer): void {
      if (piece.buffer.byteLength === PIECE_BYTES && free.length < MAX_FREE) free.push(piece.buffer)
    },
  }
}
