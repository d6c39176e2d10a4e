/**
 * One connection of server-sent events over the subscriptions of one run or of several.
 *
 *   flowing --(the socket is full)--> blocked --(drain)--> flowing
 *   blocked --(STREAM_STALL_MS)--> gone
 *   flowing --(all runs ended, a fault, a revoked key, shutdown)--> ending --(close)--> gone
 *   any --(close)--> gone
 *
 * Invariant: while blocked nothing is read, and, after a moment, what waits is what was last written (64 KiB, or one larger frame): a stalled reader
 * costs its cursor.
 * Everything is let go of in `gone`, whichever way it is reached.
 */
import type { ServerResponse } from 'node:http'
import { createOtherCursors, type OtherCursors } from './cursor.js'
import { controlFrame, frameEnd, frameSeq } from './frame.js'
import type { Hub, OpenStream } from './hub.js'
import { type Delivery, type Subscription, type SubscriptionOptions, subscribe } from './subscription.js'

export const STREAM_HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache, no-transform',
  'x-accel-buffering': 'no',
} as const

/** How long a browser waits before it reconnects. */
const RETRY_MS = 3000
/**
 * How long a full socket keeps the page that it was being filled from. Sockets are full all the time, most for a moment only:
 * without this a page was read anew for each of its pieces where the cache was too small for all readers (a tenth of the speed).
 */
const PARK_MS = 100
/** Why an open stream ends whose key is not valid any more. */
export const NOT_ADMITTED = {
  code: 'UNAUTHENTICATED',
  detail: 'The key is not valid any more: it was revoked. Connect again with another one.',
  retryable: false,
} as const
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
  new EventStream(options).start(options)
}

/** The frames of one run on a connection of several: each id is its own seq, and then the cursors of the others. */
function withCompoundIds(runId: string, bytes: Buffer, others: string): Buffer {
  const parts: Buffer[] = []
  for (let start = 0; start < bytes.length; ) {
    const end = frameEnd(bytes, start)
    parts.push(Buffer.from(`id: ${runId}:${frameSeq(bytes, start)}${others}`), bytes.subarray(bytes.indexOf('\n', start, 'latin1'), end))
    start = end
  }
  return Buffer.concat(parts)
}

const ignore = () => {}

/** A class, not closures, for there are thousands: functions of its own would make a connection's memory half as much again. */
class EventStream implements OpenStream {
  private readonly hub: Hub
  private readonly raw: ServerResponse
  /** Of a connection of several runs. */
  private readonly otherCursors: OtherCursors | undefined
  private readonly stallMs: number
  private readonly all: Subscription[] = []
  /** Those that may have something, in turn. */
  private ready: Subscription[] = []
  private live = 0
  private state: 'flowing' | 'blocked' | 'ending' | 'gone' = 'flowing'
  private stallTimer: NodeJS.Timeout | undefined
  private readonly heartbeatTimer: NodeJS.Timeout

  constructor({ hub, raw, runs, isCompound, stallMs, heartbeatMs }: EventStreamOptions) {
    this.hub = hub
    this.raw = raw
    this.otherCursors = isCompound ? createOtherCursors(runs.map(({ run }) => run.id)) : undefined
    this.stallMs = stallMs
    this.heartbeatTimer = setInterval(heartbeat, heartbeatMs, this)
  }

  start({ runs, headers, snapshotJson }: EventStreamOptions): void {
    const { hub, raw } = this
    hub.opened(this)
    raw.on('drain', () => this.drained())
    raw.on('error', ignore)
    raw.on('close', () => this.closed())
    for (const run of runs) {
      const subscription: Subscription = subscribe({ ...run, hub, onReady: () => this.wake(subscription) })
      this.all.push(subscription)
      this.ready.push(subscription)
      this.live++
    }
    // The reader left while its request was looked at: there will be no close any more.
    if (raw.destroyed || raw.socket === null || raw.socket.destroyed) {
      this.closed()
      return
    }
    raw.writeHead(200, { ...headers, ...STREAM_HEADERS })
    this.write(`retry: ${RETRY_MS}\n\n${snapshotJson === undefined ? '' : controlFrame('snapshot', snapshotJson)}`)
    this.pump()
  }

  private wake(subscription: Subscription): void {
    if (!this.ready.includes(subscription)) this.ready.push(subscription)
    this.pump()
  }

  private write(text: string | Buffer, written: (error?: Error | null) => void = ignore): void {
    if (this.raw.write(text, written) || this.state !== 'flowing') return
    this.state = 'blocked'
    this.stallTimer = setTimeout(park, PARK_MS, this)
  }

  private drained(): void {
    if (this.state !== 'blocked') return
    clearTimeout(this.stallTimer)
    this.stallTimer = undefined
    this.state = 'flowing'
    this.pump()
  }

  /** The socket is still full: lets go of what is held ahead of the cursors. */
  park(): void {
    for (const subscription of this.all) subscription.release()
    this.stallTimer = setTimeout(destroy, Math.max(0, this.stallMs - PARK_MS), this.raw)
  }

  /** Writes until there is nothing more or the socket is full. Several runs take turns. */
  private pump(): void {
    while (this.state === 'flowing') {
      const subscription = this.ready.shift()
      if (!subscription) return
      const delivery = subscription.next()
      if (!delivery) continue
      this.ready.push(subscription)
      this.deliver(subscription, delivery)
    }
  }

  private deliver(subscription: Subscription, delivery: Delivery): void {
    const { kind, ...data } = delivery
    switch (delivery.kind) {
      case 'frames':
        this.frames(subscription, delivery.bytes, delivery.isLent)
        break
      case 'cursor':
        this.control(subscription, kind, data, delivery.seq)
        break
      case 'gap':
        this.control(subscription, kind, data, delivery.toSeq)
        break
      case 'caught_up':
        this.control(subscription, kind, data)
        break
      case 'end':
        this.control(subscription, kind, data)
        this.leave(subscription)
        break
      case 'fault':
        this.control(subscription, 'error', data)
        // What may pass with a new connection needs one, whatever the other runs do.
        if (delivery.retryable) this.finish(this.stallMs)
        else this.leave(subscription)
        break
      default:
        delivery satisfies never
    }
  }

  private frames(subscription: Subscription, bytes: Buffer, isLent: boolean): void {
    if (this.otherCursors) this.write(withCompoundIds(subscription.runId, bytes, this.others(subscription)))
    // With an error the socket may still have a part of it.
    else if (isLent) this.write(bytes, (error) => error || this.hub.giveBack(bytes))
    else this.write(bytes)
  }

  private others(subscription: Subscription): string {
    return (
      this.otherCursors?.(
        this.all.indexOf(subscription),
        this.all.map(({ cursor }) => cursor),
      ) ?? ''
    )
  }

  private control(subscription: Subscription, event: string, data: object, seq?: number): void {
    const { runId } = subscription
    if (this.otherCursors) {
      const id = seq === undefined ? undefined : `${runId}:${seq}${this.others(subscription)}`
      this.write(controlFrame(event, JSON.stringify({ runId, ...data }), id))
    } else this.write(controlFrame(event, JSON.stringify(data), seq))
  }

  /** A run has nothing more; with the last of them the stream ends. It stays in the compound cursor. */
  private leave(subscription: Subscription): void {
    this.ready = this.ready.filter((other) => other !== subscription)
    subscription.close()
    this.live--
    if (this.live === 0) this.finish(this.stallMs)
  }

  heartbeat(): void {
    void this.hub.isAdmitted(this.raw.req.headers).then((isAdmitted) => isAdmitted || this.refuse())
    if (this.state !== 'flowing') return
    const moved = this.all.filter((subscription) => subscription.untoldCursor() !== undefined)
    // The id of the last one has them all.
    for (const subscription of moved) {
      const { cursor } = subscription
      this.control(subscription, 'cursor', { seq: cursor }, subscription === moved.at(-1) ? cursor : undefined)
    }
    const [first] = this.all
    this.write(controlFrame('heartbeat', JSON.stringify({ ts: new Date().toISOString(), ...(this.otherCursors ? {} : { headSeq: first?.headSeq }) })))
  }

  private refuse(): void {
    if (this.state === 'ending' || this.state === 'gone') return
    this.write(controlFrame('error', JSON.stringify(NOT_ADMITTED)))
    this.finish(this.stallMs)
  }

  /** The service shuts down. */
  end(): void {
    this.finish(SHUTDOWN_MS)
  }

  /** Ends in an orderly way, so that all that was written arrives, if it is taken within the limit. */
  private finish(limitMs: number): void {
    if (this.state === 'ending' || this.state === 'gone') return
    this.release()
    this.state = 'ending'
    this.raw.end()
    this.stallTimer = setTimeout(destroy, limitMs, this.raw).unref()
  }

  private closed(): void {
    this.release()
    this.state = 'gone'
  }

  private release(): void {
    clearInterval(this.heartbeatTimer)
    clearTimeout(this.stallTimer)
    for (const subscription of this.all) subscription.close()
    this.ready = []
    this.hub.ended(this)
  }
}

const heartbeat = (stream: EventStream) => stream.heartbeat()
const park = (stream: EventStream) => stream.park()
const destroy = (raw: ServerResponse) => raw.destroy()
