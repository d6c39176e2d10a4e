/**
 * One connection of server-sent events over the subscriptions of one run or of several.
 *
 *   flowing --(the socket is full)--> blocked --(drain)--> flowing
 *   blocked --(STREAM_STALL_MS)--> gone
 *   flowing --(all runs ended, a fault, shutdown)--> ending --(close)--> gone
 *   any --(close)--> gone
 *
 * Invariant: while blocked nothing is read, and what waits is what was last written (64 KiB, or one larger frame): a stalled reader costs its cursor.
 * Everything is let go of in `gone`, whichever way it is reached.
 */
import type { ServerResponse } from 'node:http'
import { controlFrame, frameEnd, frameSeq } from './frame.js'
import type { Hub } from './hub.js'
import { type Delivery, type Subscription, type SubscriptionOptions, subscribe } from './subscription.js'

export const STREAM_HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache, no-transform',
  'x-accel-buffering': 'no',
} as const

/** How long a browser waits before it reconnects. */
const RETRY_MS = 3000
/** How long a shutdown waits for a reader to take what was written for it. */
const SHUTDOWN_MS = 1000

export interface EventStreamOptions {
  hub: Hub
  raw: ServerResponse
  /** Headers of the answer beyond those of a stream. */
  headers: Record<string, string | number | string[] | undefined>
  runs: Omit<SubscriptionOptions, 'hub' | 'onReady'>[]
  /** Several runs on one connection: ids are compound cursors, and control frames name their run. */
  isCompound: boolean
  /** The data of the first frame. */
  snapshotJson?: string | undefined
  heartbeatMs: number
  stallMs: number
}

/** Answers with a stream that lives on until it ends, or the reader leaves. The caller has hijacked the reply, and asked the hub whether it is open. */
export function openEventStream(options: EventStreamOptions): void {
  const { hub, raw, isCompound, heartbeatMs, stallMs } = options
  const subscriptions: Subscription[] = []
  const ready = new Set<Subscription>()
  let state: 'flowing' | 'blocked' | 'ending' | 'gone' = 'flowing'
  let stallTimer: NodeJS.Timeout | undefined

  function write(text: string | Buffer): void {
    if (raw.write(text) || state !== 'flowing') return
    state = 'blocked'
    // Node calls every write of 16 KiB full, and says "drain" within the turn where the kernel took it at once.
    setImmediate(park)
    stallTimer = setTimeout(() => raw.destroy(), stallMs)
  }

  function park(): void {
    if (state === 'blocked') for (const subscription of live) subscription.release()
  }

  function drained(): void {
    if (state !== 'blocked') return
    clearTimeout(stallTimer)
    state = 'flowing'
    pump()
  }

  /** Writes until there is nothing more or the socket is full. Several runs take turns. */
  function pump(): void {
    while (state === 'flowing' && ready.size > 0) {
      for (const subscription of ready) {
        const delivery = subscription.next()
        if (delivery) deliver(subscription, delivery)
        else ready.delete(subscription)
        if (state !== 'flowing') return
      }
    }
  }

  function deliver(subscription: Subscription, delivery: Delivery): void {
    const { kind, ...data } = delivery
    switch (delivery.kind) {
      case 'frames':
        write(isCompound ? withCompoundIds(subscription, delivery.bytes) : delivery.bytes)
        break
      case 'cursor':
        control(subscription, kind, data, delivery.seq)
        break
      case 'gap':
        control(subscription, kind, data, delivery.toSeq)
        break
      case 'caught_up':
        control(subscription, kind, data)
        break
      case 'end':
        control(subscription, kind, data)
        leave(subscription)
        break
      case 'fault':
        control(subscription, 'error', data)
        // What may pass with a new connection needs one, whatever the other runs do.
        if (delivery.retryable) end(stallMs)
        else leave(subscription)
        break
      default:
        delivery satisfies never
    }
  }

  function control(subscription: Subscription, event: string, data: object, seq?: number): void {
    const id = seq === undefined || !isCompound ? seq : `${subscription.runId}:${seq}${othersCursor(subscription)}`
    write(controlFrame(event, JSON.stringify(isCompound ? { runId: subscription.runId, ...data } : data), id))
  }

  /** The part of a compound cursor for the runs other than this one; those at their start are left out. */
  function othersCursor(subscription: Subscription): string {
    return subscriptions.map((other) => (other === subscription || other.cursor === 0 ? '' : `,${other.runId}:${other.cursor}`)).join('')
  }

  function withCompoundIds(subscription: Subscription, bytes: Buffer): Buffer {
    const others = othersCursor(subscription)
    const parts: Buffer[] = []
    for (let start = 0; start < bytes.length; ) {
      const end = frameEnd(bytes, start)
      parts.push(Buffer.from(`id: ${subscription.runId}:${frameSeq(bytes, start)}${others}`), bytes.subarray(bytes.indexOf('\n', start, 'latin1'), end))
      start = end
    }
    return Buffer.concat(parts)
  }

  /** A run has nothing more; with the last of them the stream ends. It stays in the compound cursor. */
  function leave(subscription: Subscription): void {
    ready.delete(subscription)
    subscription.close()
    live.delete(subscription)
    if (live.size === 0) end(stallMs)
  }

  function heartbeat(): void {
    if (state !== 'flowing') return
    for (const subscription of live) {
      const untold = subscription.untoldCursor()
      if (untold !== undefined) control(subscription, 'cursor', { seq: untold }, untold)
    }
    const [first] = subscriptions
    write(controlFrame('heartbeat', JSON.stringify({ ts: new Date().toISOString(), ...(isCompound ? {} : { headSeq: first?.headSeq }) })))
  }

  /** Ends in an orderly way, so that all that was written arrives, if it is taken within the limit. */
  function end(limitMs: number): void {
    if (state === 'ending' || state === 'gone') return
    release()
    state = 'ending'
    raw.end()
    stallTimer = setTimeout(() => raw.destroy(), limitMs).unref()
  }

  function release(): void {
    clearInterval(heartbeatTimer)
    clearTimeout(stallTimer)
    for (const subscription of live) subscription.close()
    live.clear()
    ready.clear()
    hub.ended(stream)
  }

  const stream = { end: () => end(SHUTDOWN_MS) }
  hub.opened(stream)
  const live = new Set<Subscription>()
  const heartbeatTimer = setInterval(heartbeat, heartbeatMs)
  raw.on('drain', drained)
  raw.on('error', () => {})
  raw.on('close', () => {
    release()
    clearTimeout(stallTimer)
    state = 'gone'
  })
  for (const run of options.runs) {
    const onReady = () => {
      ready.add(subscription)
      pump()
    }
    const subscription: Subscription = subscribe({ ...run, hub, onReady })
    subscriptions.push(subscription)
    live.add(subscription)
    ready.add(subscription)
  }
  // The reader left while its request was looked at: there will be no close any more.
  if (raw.destroyed || raw.socket === null || raw.socket.destroyed) {
    release()
    state = 'gone'
    return
  }
  raw.writeHead(200, { ...options.headers, ...STREAM_HEADERS })
  write(`retry: ${RETRY_MS}\n\n${options.snapshotJson === undefined ? '' : controlFrame('snapshot', options.snapshotJson)}`)
  pump()
}
