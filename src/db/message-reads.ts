/**
 * What a connection to Postgres reads, in one piece of memory that is used again and again. By itself Node takes 64 KiB of new memory for each read, and the
 * driver as much again to join a message that two reads have cut: V8 counts it all, and collects the whole heap for it.
 *
 * So whole messages are handed on, and the beginning of the next is kept for the next read. The driver has read them when `take` returns; whoever has it
 * pass rows as they are (`.raw()`) copies what is kept. A message too large for the memory is handed on in pieces, which are copies: the driver joins them.
 *
 * A message is a byte of its type and the length of the rest, in four bytes that count themselves (PostgreSQL 18, section 54.1.1).
 *
 * An error with which the server ends the session is not handed on: postgres 3.4.9 keeps one that comes while it waits for an answer until the connection is ready
 * again, which is the next connection, whose first query then fails with it (ADR 0017).
 */

const READ_BYTES = 65_536
const HEADER_BYTES = 5
const ERROR_RESPONSE = 0x45

/** @param lost is given the error that ends the session, in place of its message; without it, the message is handed on as any other. */
export function createMessageReads(take: (bytes: Buffer) => void, lost?: (error: Error) => void, size = READ_BYTES) {
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
        const error = lost && memory[at] === ERROR_RESPONSE ? endOfSession(memory.toString('utf8', at + HEADER_BYTES, next)) : undefined
        if (error) {
          kept = 0
          if (at > 0) take(memory.subarray(0, at))
          lost?.(error)
          return
        }
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

    /** For bytes that are in memory of somebody else's. */
    read(bytes: Buffer): void {
      for (let at = 0; at < bytes.length; ) {
        const copied = bytes.copy(this.room(), 0, at)
        at += copied
        this.arrived(copied)
      }
    },
  }
}

/** @param fields each a letter and a text that ends with NUL (PostgreSQL 18, section 54.8). @returns undefined where the session goes on */
function endOfSession(fields: string): Error | undefined {
  const { V: severity, C: code, M: message } = Object.fromEntries(fields.split('\0').map((field) => [field.charAt(0), field.slice(1)]))
  return severity === 'FATAL' || severity === 'PANIC' ? Object.assign(new Error(message), { name: 'PostgresError', code, severity }) : undefined
}
