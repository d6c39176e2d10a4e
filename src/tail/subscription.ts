/**
 * A reader's place in one run. `next()` gives what comes after the cursor, in order: frames from the hub's cache, else from a page of the log;
 * then `caught_up` once; then nothing until there is news; and `end`.
 *
 * Invariant: the cursor moves only with what `next()` returns, by exactly that. What is held beyond the cursor can be dropped at any time (`release()`),
 * and is found again by it. What a read brings after `release()` and before the next `next()` is let go of too.
 *
 *   behind --(a read that began after the last news finds no more)--> through --(news)--> behind
 *   any --(end, or a fault)--> over
 */

import type { RunStatus } from '../domain/run.js'
import type { EventFilter, RunHead } from '../log/read.js'
import { type Chunk, restOf } from './chunks.js'
import { frameEnd } from './frame.js'
import type { Channel, Hub, TailPage } from './hub.js'

export type Delivery =
  /** Whole event frames. What is lent is given back to the hub when it has been written. */
  | { kind: 'frames'; bytes: Buffer; isLent: boolean }
  | { kind: 'gap'; fromSeq: number; toSeq: number }
  /** Up to here everything was filtered out, or is in the snapshot. */
  | { kind: 'cursor'; seq: number }
  | { kind: 'caught_up'; headSeq: number }
  | { kind: 'end'; status: RunStatus; headSeq: number }
  | { kind: 'fault'; code: 'RUN_NOT_FOUND' | 'INTERNAL'; detail: string; retryable: boolean }

export interface SubscriptionOptions {
  hub: Hub
  run: RunHead
  afterSeq: number
  /** What the ids of the frames have told the reader so far, where it is not `afterSeq`: a snapshot has no id. */
  toldSeq?: number
  filter?: EventFilter | undefined
  /** Stay past the end of the run. */
  follow: boolean
  /** `next()` may have something. */
  onReady: () => void
}

export interface Subscription {
  readonly runId: string
  readonly cursor: number
  readonly headSeq: number
  /** What comes next; undefined: nothing for now, `onReady` will be called. After an end or a fault nothing comes any more. */
  next(): Delivery | undefined
  /** With a filter, where the reader is if it has been told of less. Taking it counts as telling. */
  untoldCursor(): number | undefined
  /** Drops what is held ahead of the cursor, and what is on its way: the reader is not reading. */
  release(): void
  close(): void
}

/** A filtered backfill tells its cursor at least every so many seqs. */
const TELL_CURSOR_SEQS = 20_000
/** How many pieces are kept ready: about a page. */
const LOOK_AHEAD_CHUNKS = 8

export function subscribe({ hub, run, afterSeq, toldSeq = afterSeq, filter, follow, onReady }: SubscriptionOptions): Subscription {
  let cursor = afterSeq
  let toldCursor = toldSeq
  let page: TailPage | undefined
  let place = 0
  let aheadAfter: number | undefined
  /** The next page of a run's only reader: it is in no cache. */
  let ahead: Promise<TailPage | undefined> | undefined
  let readingAfter: number | undefined
  let throughTick = 0
  let isCaughtUp = false
  let over = false
  let isReleased = false
  const queue: Delivery[] = []
  const channel: Channel = hub.join(run, onReady)
  // What this reader may have seen elsewhere was committed before now: only a read that begins later tells it that it is through.
  const joinedTick = hub.now()

  function read(): void {
    const after = cursor
    readingAfter = after
    const reading = (after === aheadAfter && ahead) || hub.read(channel, after, filter)
    ahead = undefined
    reading.then(
      (result) => {
        readingAfter = undefined
        if (over) return
        if (result) {
          page = isReleased ? undefined : result
          place = 0
        } else queue.push({ kind: 'fault', code: 'RUN_NOT_FOUND', detail: `Run '${run.id}' has been deleted.`, retryable: false })
        onReady()
      },
      () => {
        readingAfter = undefined
        if (over) return
        queue.push({ kind: 'fault', code: 'INTERNAL', detail: 'The log cannot be read at the moment. Reconnect with the last id.', retryable: true })
        onReady()
      },
    )
  }

  /** Lets the database work on the next page while the socket takes this one. It goes to the cache, or is kept here where nobody else reads the run. */
  function readAhead(): void {
    if (filter) return
    const isAlone = channel.readers.size === 1
    const upTo = channel.chunks.reach(isAlone && page ? page.scannedTo : cursor, LOOK_AHEAD_CHUNKS)
    if (upTo === undefined || upTo >= channel.headSeq || upTo === aheadAfter) return
    aheadAfter = upTo
    const read = hub.read(channel, upTo, filter)
    ahead = isAlone ? read : undefined
  }

  /** All of a page has been delivered. */
  function turn(last: TailPage): void {
    page = undefined
    cursor = Math.max(cursor, last.scannedTo)
    // A page that others had asked for may be older than this reader, and says nothing of what it may have seen elsewhere.
    if (last.scannedTo < last.headSeq || last.tick <= joinedTick) return
    throughTick = last.tick
    // A page that was read ahead may be older than what is known by now: the end is told only by one that is not.
    const isStale = cursor < channel.headSeq || last.tick < channel.newsTick
    const ends = last.terminal && !follow && cursor === last.headSeq && !isStale
    if (isCaughtUp && !ends) return
    // A reader that has all must know by its cursor that it has, or a browser comes back for ever.
    const untold = filter || ends ? tellCursor() : undefined
    if (untold !== undefined) queue.push({ kind: 'cursor', seq: untold })
    if (!isCaughtUp) queue.push({ kind: 'caught_up', headSeq: cursor })
    isCaughtUp = true
    if (ends) queue.push({ kind: 'end', status: last.status, headSeq: last.headSeq })
  }

  function tellCursor(): number | undefined {
    if (cursor <= toldCursor) return undefined
    toldCursor = cursor
    return cursor
  }

  /** Moves the cursor over a chunk. Undefined: the filter lets none of it through. */
  function take(chunk: Chunk, isLent: boolean): Delivery | undefined {
    cursor = chunk.lastSeq
    if (!filter || !chunk.events) {
      toldCursor = cursor
      return { kind: 'frames', bytes: chunk.bytes, isLent }
    }
    const frames: Buffer[] = []
    let start = 0
    for (const event of chunk.events) {
      const end = frameEnd(chunk.bytes, start)
      if (passes(event, filter)) {
        frames.push(chunk.bytes.subarray(start, end))
        toldCursor = event.seq
      }
      start = end
    }
    return frames.length === 0 ? undefined : { kind: 'frames', bytes: Buffer.concat(frames), isLent: false }
  }

  /** Undefined: something has moved, look again. */
  function fromPage(current: TailPage): Delivery | undefined {
    const keptAfter = current.firstSeq - 1
    if (cursor < keptAfter) {
      const gap: Delivery = { kind: 'gap', fromSeq: cursor + 1, toSeq: keptAfter }
      cursor = keptAfter
      toldCursor = keptAfter
      return gap
    }
    const chunk = current.chunks[place++]
    if (!chunk) {
      turn(current)
      return undefined
    }
    return chunk.lastSeq <= cursor ? undefined : take(filter ? chunk : restOf(chunk, cursor), current.isLent)
  }

  function next(): Delivery | undefined {
    isReleased = false
    while (!over) {
      const queued = queue.shift()
      if (queued) {
        over = queued.kind === 'end' || queued.kind === 'fault'
        return queued
      }
      if (filter && cursor - toldCursor >= TELL_CURSOR_SEQS) {
        toldCursor = cursor
        return { kind: 'cursor', seq: cursor }
      }
      // The cursor stands still while a page for it is on its way.
      if (readingAfter !== undefined) return undefined
      const cached = page ? undefined : channel.chunks.after(cursor)
      if (page || (cached && (!filter || cached.events))) {
        const delivery = page ? fromPage(page) : cached && take(cached, false)
        if (cursor < channel.headSeq) readAhead()
        if (delivery) return delivery
      } else if (cursor >= channel.headSeq && throughTick > Math.max(joinedTick, channel.newsTick)) return undefined
      else read()
    }
    return undefined
  }

  return {
    runId: run.id,
    get cursor() {
      return cursor
    },
    get headSeq() {
      return Math.max(channel.headSeq, cursor)
    },
    next,
    untoldCursor: () => (filter ? tellCursor() : undefined),
    release() {
      isReleased = true
      page = undefined
      ahead = undefined
      aheadAfter = undefined
    },
    close() {
      over = true
      page = undefined
      ahead = undefined
      hub.leave(channel, onReady)
    },
  }
}

function passes(event: { type: string; subject: string }, filter: EventFilter): boolean {
  return (filter.types === undefined || filter.types.includes(event.type)) && (filter.subject === undefined || filter.subject === event.subject)
}
