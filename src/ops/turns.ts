/** Work of which only so much may be done at once: whoever comes next waits for a turn, and so many may wait. */
import { RunplaneError } from '../errors.js'

export interface Turns {
  /**
   * Waits for a turn, and takes it.
   * @throws OVERLOADED where too many wait already; the reason of `signal` where it has come by then
   */
  take<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T>
}

export interface TurnsOptions {
  maxRunning: number
  /** Without it, any number may wait. `what` they are, a plural, is for the message. */
  waiting?: { max: number; what: string }
}

export function createTurns({ maxRunning, waiting }: TurnsOptions): Turns {
  let running = 0
  const line: (() => void)[] = []
  return {
    async take(work, signal) {
      if (running >= maxRunning) {
        if (waiting && line.length >= waiting.max) {
          throw new RunplaneError('OVERLOADED', `Too many ${waiting.what} are waiting. Try again in a few seconds.`, { headers: { 'retry-after': '5' } })
        }
        // Whoever ends hands its turn over.
        await new Promise<void>((resolve) => line.push(resolve))
      } else running++
      try {
        signal?.throwIfAborted()
        return await work()
      } finally {
        const next = line.shift()
        if (next) next()
        else running--
      }
    },
  }
}
