/**
 * Memory for what one reader alone reads, the frames of a page or the lines of a bundle: lent to the page, and given back when the socket has taken a piece.
 * Without it V8 counts 64 KiB for every hundred events and collects the whole heap for them: half of what the service spent on a backfill.
 *
 * Invariant: what is given back is seen by nobody any more. So only pages that are neither shared nor cached have lent memory, each piece is written
 * once, and what was not written to its end is left to the garbage collector.
 */
/** A few pages of a few readers. */
const MAX_FREE_BYTES = 2_097_152

/** @param size bytes of a full piece */
export function createPiecePool(size: number) {
  const free: ArrayBufferLike[] = []
  return {
    lend(bytes: number): Buffer {
      // Small ones would hold far more memory than they fill.
      if (bytes < size / 2 || bytes > size) return Buffer.allocUnsafeSlow(bytes)
      return Buffer.from(free.pop() ?? new ArrayBuffer(size), 0, bytes)
    },
    giveBack(piece: Buffer): void {
      if (piece.buffer.byteLength === size && free.length * size < MAX_FREE_BYTES) free.push(piece.buffer)
    },
  }
}
