/**
 * Events on their way to a service: in order, in batches, bounded. A post whose answer did not come is repeated; the events carry ids, so the
 * service stores each once. A producer that is faster than the service waits in `push`.
 */
import { setTimeout as delay } from 'node:timers/promises'

export interface OutgoingEvent {
  /** Unique within the run. */
  id: string
  type: string
  ts: string
  subject?: { kind: string; id: string }
  data: Record<string, unknown>
}

export interface Outbox {
  /** Resolves when there is room for more. @throws what a post failed with for good. */
  push(event: OutgoingEvent): Promise<void>
  /** Resolves when everything is stored. @throws what a post failed with for good. */
  drain(): Promise<void>
}

export interface OutboxOptions {
  /** Where events are posted. */
  url: string
  headers: Record<string, string>
  maxQueued?: number
  maxBatch?: number
  /** How long the first event of a batch waits for others. */
  lingerMs?: number
  /** How long one batch is tried. */
  giveUpMs?: number
}

const MAX_BACKOFF_MS = 3000

export function createOutbox({ url, headers, maxQueued = 2000, maxBatch = 200, lingerMs = 50, giveUpMs = 120_000 }: OutboxOptions): Outbox {
  const queue: OutgoingEvent[] = []
  let sending: Promise<void> | undefined
  let failure: Error | undefined

  async function send(): Promise<void> {
    await delay(lingerMs)
    while (queue.length > 0) {
      const batch = queue.slice(0, maxBatch)
      await post(JSON.stringify(batch))
      queue.splice(0, batch.length)
    }
  }

  async function post(body: string): Promise<void> {
    const giveUpAt = Date.now() + giveUpMs
    for (let backoffMs = 100; ; backoffMs = Math.min(backoffMs * 2, MAX_BACKOFF_MS)) {
      const { problem, retryAfterMs, isFinal } = await attempt(body)
      if (problem === undefined) return
      if (isFinal || Date.now() > giveUpAt) throw new Error(`the events could not be posted: ${problem}`)
      await delay(Math.max(backoffMs, retryAfterMs))
    }
  }

  async function attempt(body: string): Promise<{ problem?: string; retryAfterMs: number; isFinal: boolean }> {
    try {
      const response = await fetch(url, { method: 'POST', headers: { ...headers, 'Content-Type': 'application/json', Prefer: 'return=minimal' }, body })
      const text = await response.text()
      if (response.status === 200) return { retryAfterMs: 0, isFinal: true }
      const retryAfterMs = 1000 * (Number(response.headers.get('Retry-After')) || 0)
      // 207 is an answer too: some of the events were refused, and would be again.
      return { problem: `${response.status} ${text}`, retryAfterMs, isFinal: response.status < 500 && response.status !== 429 }
    } catch (error) {
      return { problem: error instanceof Error ? error.message : String(error), retryAfterMs: 0, isFinal: false }
    }
  }

  function start(): Promise<void> {
    sending ??= send()
      .catch((error: Error) => {
        failure = error
      })
      .finally(() => {
        sending = undefined
      })
    return sending
  }

  return {
    async push(event) {
      if (failure) throw failure
      queue.push(event)
      const sent = start()
      if (queue.length >= maxQueued) await sent
    },
    async drain() {
      while (queue.length > 0 && !failure) await start()
      if (failure) throw failure
    },
  }
}
