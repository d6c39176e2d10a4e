/**
 * Pieces of a page, put together from the parts that the driver shows for a moment, before it is known how many there are and how large a piece becomes.
 * The memory for that is used again by the next page.
 */

/** @param size bytes of a piece at most, but for one whose only item is larger */
export function createAssemble(size: number) {
  const free: Buffer[] = []

  /** @param take gets each piece, with the number of its last item; it is of memory that is used again, or the item's own: copy it. */
  return function assemble(take: (piece: Buffer, last: number) => void) {
    let memory: Buffer | undefined
    let bytes = 0
    let last = 0

    function cut(): void {
      if (memory && bytes > 0) take(memory.subarray(0, bytes), last)
      bytes = 0
    }

    return {
      /** @param parts of one item, which stays whole */
      add(parts: readonly Buffer[], number: number): void {
        let added = 0
        for (const part of parts) added += part.length
        if (bytes + added > size) cut()
        last = number
        if (added > size) {
          take(Buffer.concat(parts), last)
          return
        }
        memory ??= free.pop() ?? Buffer.allocUnsafeSlow(size)
        for (const part of parts) {
          memory.set(part, bytes)
          bytes += part.length
        }
      },
      end(): void {
        cut()
        if (memory) free.push(memory)
        memory = undefined
      },
    }
  }
}
