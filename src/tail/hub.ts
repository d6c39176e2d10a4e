/**
 * The hub of this instance's readers: what has just been committed, encoded once for all of them, pages of the log that they share, and wake-ups.
 *
 * Invariant: the hub never holds the only copy. A reader that finds nothing in it after its cursor reads the log, and it waits only when a read that
 * began after the last sign of news has found nothing more. What "began after" means is told by a tick that counts registrations, wakes and reads.
 */
import type { IncomingHttpHeaders } from 'node:http'
import type { FastifyBaseLogger } from 'fastify'
import { isTerminal, type RunStatus } from '../domain/run.js'
import { RunplaneError } from '../errors.js'
import type { CommittedBatch, CommittedEvent } from '../log/committed.js'
import { type EventFilter, type LogReader, PIECE_BYTES, type RunHead } from '../log/read.js'
import { createTurns } from '../ops/turns.js'
import { type Chunk, createChunkCache, type RunChunks } from './chunks.js'
import { eventFrame } from './frame.js'
import { createPiecePool } from './pieces.js'

export interface TailPage {
  /** Frames in order, cut into pieces; with a filter the frames that fit. */
  chunks: Chunk[]
  /** The memory of the chunks is the hub's, and goes back to it (`giveBack`). */
  isLent: boolean
  scannedTo: number
  status: RunStatus
  terminal: boolean
  headSeq: number
  firstSeq: number
  /** When the read began. */
  tick: number
}

/** A run that somebody reads. */
export interface Channel {
  readonly runKey: string
  readonly chunks: RunChunks
  /** The highest seq that is known of. */
  headSeq: number
  /** When that was seen. A later read counts, even if it finds less: after a failover the log may have lost its end. */
  headTick: number
  /** When there was last a sign that the log may hold more, or the run have ended. */
  newsTick: number
  readonly readers: Set<() => void>
}

/** Something open that ends when the service does. */
export interface OpenStream {
  end(): void
}

export interface HubOptions {
  log: LogReader
  logger: Pick<FastifyBaseLogger, 'warn'>
  /** Whether a request with these headers would still be let in; everybody is unless given. It is asked with each heartbeat of each stream. */
  isAdmitted?: (headers: IncomingHttpHeaders) => Promise<boolean>
  /** For the frames of all runs together. */
  cacheBytes?: number
  pageRows?: number
  pageBytes?: number
  /** Pages that are read at once; more readers wait, so that they leave connections to the writers. */
  maxReads?: number
  /** How often a failed read is tried again, and after how long. */
  retryDelaysMs?: readonly number[]
}

export type Hub = ReturnType<typeof createHub>

/** Seqs that one filtered read looks at. */
const FILTER_SCAN = 5000

export function createHub({ log, logger, isAdmitted = async () => true, ...options }: HubOptions) {
  const { cacheBytes = 33_554_432, pageRows = 768, pageBytes = 524_288, maxReads = 4, retryDelaysMs = [100, 300, 1000, 3000] } = options
  const cache = createChunkCache(cacheBytes)
  const pool = createPiecePool(PIECE_BYTES)
  const channels = new Map<string, Channel>()
  const streams = new Set<OpenStream>()
  const reads = new Map<string, Promise<TailPage | undefined>>()
  const turns = createTurns({ maxRunning: maxReads })
  let pending: CommittedBatch[] = []
  const woken = new Set<Channel>()
  let tick = 0
  let flushing = false
  let closed = false

  function flushSoon(): void {
    if (flushing) return
    flushing = true
    setImmediate(flush)
  }

  /** Once a turn: what all commits of the turn have brought goes into the cache in as few pieces as can be, then each reader is woken once. */
  function flush(): void {
    flushing = false
    const batches = pending
    pending = []
    const byRun = new Map<string, CommittedBatch[]>()
    for (const batch of batches) {
      const siblings = byRun.get(batch.runKey)
      if (siblings) siblings.push(batch)
      else byRun.set(batch.runKey, [batch])
    }
    for (const [runKey, siblings] of byRun) {
      const channel = channels.get(runKey)
      if (!channel) continue
      // Two committers may report out of order.
      siblings.sort((a, b) => a.firstSeq - b.firstSeq)
      encode(
        channel,
        siblings.flatMap((batch) => batch.events),
      )
      const last = siblings[siblings.length - 1]
      if (last) sawHead(channel, Math.max(channel.headSeq, last.lastSeq), ++tick)
      // The end is told only after a look at the log: another instance may have added to it.
      if (siblings.some((batch) => isTerminal(batch.status))) channel.newsTick = ++tick
      woken.add(channel)
    }
    const toWake = [...woken]
    woken.clear()
    for (const channel of toWake) for (const wake of channel.readers) wake()
  }

  function encode(channel: Channel, events: CommittedEvent[]): void {
    let text = ''
    let bytes = 0
    let members: CommittedEvent[] = []
    const emit = () => {
      const first = members[0]
      const last = members[members.length - 1]
      if (first && last) {
        const facts = members.map(({ seq, type, subject }) => ({ seq, type, subject }))
        channel.chunks.add({ afterSeq: first.seq - 1, lastSeq: last.seq, bytes: Buffer.from(text), events: facts })
      }
      text = ''
      bytes = 0
      members = []
    }
    for (const event of events) {
      const frame = eventFrame(event.seq, event.json)
      const frameBytes = Buffer.byteLength(frame)
      const last = members[members.length - 1]
      if (last && (last.seq + 1 !== event.seq || bytes + frameBytes > PIECE_BYTES)) emit()
      text += frame
      bytes += frameBytes
      members.push(event)
    }
    emit()
  }

  function sawHead(channel: Channel, headSeq: number, at: number): void {
    if (headSeq < channel.headSeq && at < channel.headTick) return
    channel.headSeq = headSeq
    channel.headTick = Math.max(channel.headTick, at)
  }

  async function readPage(channel: Channel, afterSeq: number, filter: EventFilter | undefined, isLent: boolean): Promise<TailPage | undefined> {
    const began = ++tick
    const allocate = isLent ? pool.lend : undefined
    const page = await log.pageOfFrames({ runKey: channel.runKey, afterSeq, limit: pageRows, maxBytes: pageBytes, filter, maxScan: FILTER_SCAN, allocate })
    if (!page) return undefined
    let from = Math.max(afterSeq, page.firstSeq - 1)
    const chunks = page.pieces.map(({ bytes, lastSeq }) => {
      const chunk: Chunk = { afterSeq: from, lastSeq, bytes }
      from = lastSeq
      return chunk
    })
    if (!filter && !isLent && channels.get(channel.runKey) === channel) for (const chunk of chunks) channel.chunks.add(chunk)
    sawHead(channel, page.headSeq, began)
    const { scannedTo, status, terminal, headSeq, firstSeq } = page
    return { chunks, isLent, scannedTo, status, terminal, headSeq, firstSeq, tick: began }
  }

  async function readWithRetries(channel: Channel, afterSeq: number, filter: EventFilter | undefined, isLent: boolean): Promise<TailPage | undefined> {
    for (let attempt = 0; ; attempt++) {
      try {
        return await turns.take(() => readPage(channel, afterSeq, filter, isLent))
      } catch (error) {
        const delayMs = retryDelaysMs[attempt]
        logger.warn({ err: error, runKey: channel.runKey, attempt }, 'reading the log for a stream failed')
        if (delayMs === undefined || closed) throw error
        await new Promise((resolve) => setTimeout(resolve, delayMs).unref())
      }
    }
  }

  return {
    /** What this instance has just committed. Costs nothing where nobody reads the run. */
    committed(batch: CommittedBatch): void {
      if (!channels.has(batch.runKey)) return
      pending.push(batch)
      flushSoon()
    },

    /** The log of a run may have grown, or the run have failed or be gone: its readers look. */
    wake(runKey: string): void {
      const channel = channels.get(runKey)
      if (!channel) return
      channel.newsTick = ++tick
      woken.add(channel)
      flushSoon()
    },

    /** The runs that are read here, with the highest seq that is known of each. */
    watched(): Map<string, number> {
      return new Map(Array.from(channels.values(), (channel) => [channel.runKey, channel.headSeq]))
    },

    /** Registers a reader; it is called when there may be something new. Two signs within a turn are one call. */
    join(run: RunHead, wake: () => void): Channel {
      let channel = channels.get(run.key)
      if (!channel) {
        channel = { runKey: run.key, chunks: cache.forRun(), headSeq: run.lastSeq, headTick: 0, newsTick: 0, readers: new Set() }
        channels.set(run.key, channel)
      }
      channel.readers.add(wake)
      if (run.lastSeq > channel.headSeq) {
        sawHead(channel, run.lastSeq, ++tick)
        woken.add(channel)
        flushSoon()
      }
      return channel
    },

    /** A moment: reads that begin later have a higher tick. */
    now: () => ++tick,

    leave(channel: Channel, wake: () => void): void {
      channel.readers.delete(wake)
      if (channel.readers.size > 0 || channels.get(channel.runKey) !== channel) return
      channels.delete(channel.runKey)
      channel.chunks.clear()
    },

    /**
     * A page of the log. Readers at the same place share it, and it goes to the cache; but a run's only reader gets one of its own, in memory that is lent:
     * for nobody else, a cache would only be work. Failed reads are tried again.
     * @returns undefined when the run is gone. @throws when the log cannot be read for long.
     */
    read(channel: Channel, afterSeq: number, filter: EventFilter | undefined): Promise<TailPage | undefined> {
      const key = `${channel.runKey} ${afterSeq} ${filter?.types?.join() ?? ''} ${filter?.subject ?? ''}`
      const running = reads.get(key)
      if (running) return running
      const isLent = !filter && channel.readers.size === 1
      const read = readWithRetries(channel, afterSeq, filter, isLent).finally(() => isLent || reads.delete(key))
      // Without this a read ahead that fails, and whose reader has left, would end the process.
      read.catch(() => {})
      if (!isLent) reads.set(key, read)
      return read
    },

    /** A chunk of a lent page, once, after the socket has taken it and nothing looks at it any more. */
    giveBack: pool.giveBack,

    /** @throws RunplaneError OVERLOADED while the service is shutting down. */
    assertOpen(): void {
      if (closed) throw new RunplaneError('OVERLOADED', 'The service is shutting down. Connect again.', { headers: { 'retry-after': '1' } })
    },

    /** Whether the reader of an open stream may stay. Where that cannot be told at the moment, it may. */
    isAdmitted: (headers: IncomingHttpHeaders): Promise<boolean> => isAdmitted(headers).catch(() => true),

    opened(stream: OpenStream): void {
      streams.add(stream)
    },

    ended(stream: OpenStream): void {
      streams.delete(stream)
    },

    /** Ends all streams, in an orderly way, so that clients reconnect by their cursors. For a `preClose` hook. */
    close(): void {
      closed = true
      for (const stream of [...streams]) stream.end()
    },

    stats() {
      let readers = 0
      for (const channel of channels.values()) readers += channel.readers.size
      return { streams: streams.size, readers, runs: channels.size, cachedBytes: cache.bytes }
    },
  }
}
