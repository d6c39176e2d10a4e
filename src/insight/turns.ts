/** Work that needs much memory or disk, few at once: whoever comes next waits for a turn, and so many may wait. */
import { RunplaneError } from '../errors.js'

export interface Turns {
  /** Waits for a turn, and takes it. @throws OVERLOADED where too many wait already. */
  take<T>(work: () => Promise<T>): Promise<T>
}

/** @param options.what of which there are too many, for the message: a plural */
export function createTurns({ maxRunning, maxWaiting, what }: { maxRunning: number; maxWaiting: number; what: string }): Turns {
  let running = 0
  const waiting: (() => void)[] = []
  return {
    async take(work) {
      if (running >= maxRunning) {
        if (waiting.length >= maxWaiting) {
          throw new RunplaneError('OVERLOADED', `Too many ${what} are waiting. Try again in a few seconds.`, { headers: { 'retry-after': '5' } })
        }
        // Whoever ends hands its turn over.
        await new Promise<void>((resolve) => waiting.push(resolve))
      } else running++
      try {
        return await work()
      } finally {
        const next = waiting.shift()
        if (next) next()
        else running--
      }
    },
  }
}
