/**
 * What a connection to Postgres reads, in one piece of memory that is used again and again. By itself Node takes 64 KiB of new memory for each read, and the
 * driver as much again to join a message that two reads have cut: V8 counts it all, and collects the whole heap for it.
 *
 * So whole messages are handed on, and the beginning of the next is kept for the next read. The driver has read them when `take` returns; whoever has it
 * pass rows as they are (`.raw()`) copies what is kept. A message too large for the memory is handed on in pieces, which are copies: the driver joins them.
 *
 * A message is a byte of its type and the length of the rest, in four bytes that count themselves (PostgreSQL 18, section 54.1.1).
 */

const READ_BYTES = 65_536
const HEADER_BYTES = 5

export function createMessageReads(take: (bytes: Buffer) => void, size = READ_BYTES) {
  const memory = Buffer.allocUnsafeSlow(size)
  /** Bytes at its start, of a message that is not whole. */
  let kept = 0
  /** Bytes still to come of a message that is too large. */
  let missing = 0

  return {
    /** Where the next bytes go. */
    room: () => memory.subarray(kept),

    /** @param bytes how many came */
    arrived(bytes: number): void {
      const end = kept + bytes
      let at = Math.min(missing, end)
      missing -= at
      while (missing === 0 && at + HEADER_BYTES <= end) {
        const next = at + 1 + memory.readUInt32BE(at + 1)
        if (next - at > size) missing = next - end
        if (next > end) break
        at = next
      }
      if (missing > 0) {
        kept = 0
        take(Buffer.from(memory.subarray(0, end)))
        return
      }
      kept = end - at
      if (at > 0) take(memory.subarray(0, at))
      memory.copyWithin(0, at, end)
    },
  }
}
