/** Lets others have their turn in a long computation: it works for some milliseconds, then waits for the event loop to have come round. */

const SLICE_MS = 8

export interface Pauses {
  /** To be asked every few microseconds of work. */
  due(): boolean
  take(): Promise<void>
}

/** @param signal ends the computation at its next pause. */
export function createPauses(signal?: AbortSignal): Pauses {
  let asked = 0
  let since = performance.now()
  return {
    due() {
      // The clock costs more than most of what is done between two questions.
      if ((++asked & 0x3f) !== 0) return false
      return performance.now() - since > SLICE_MS
    },
    async take() {
      await new Promise((resolve) => setImmediate(resolve))
      signal?.throwIfAborted()
      since = performance.now()
    },
  }
}
