/**
 * A replay: a part of a run's log once more, as server-sent events like those of the tail, at once, at the pace at which it came, or so many events at a time.
 * It ends with its last event, where a tail would wait: what comes after is not part of it.
 *
 *   playing --(the socket is full)--> waiting --(drain)--> playing
 *   waiting --(STREAM_STALL_MS)--> gone
 *   playing --(the last event, or those that were asked for, a fault, shutdown)--> ended --> gone
 *
 * Invariant: one page is held at a time, and, after a moment, none while the socket is full: a slow reader costs what was last written (64 KiB, or one
 * larger event), and one of a timed replay a page as small.
 */
import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import type { FastifyBaseLogger } from 'fastify'
import { type LogReader, PIECE_BYTES, type RunHead } from '../log/read.js'
import { controlFrame, eventFrame } from '../tail/frame.js'
import type { Hub } from '../tail/hub.js'
import { NOT_ADMITTED, STREAM_HEADERS } from '../tail/sse.js'

export const REPLAY_MODES = ['instant', 'timed', 'step'] as const
export type ReplayMode = (typeof REPLAY_MODES)[number]

export const DEFAULT_MAX_PAUSE_MS = 2000

export interface ReplayOptions {
  run: RunHead
  mode: ReplayMode
  /** How many times as fast as it was. */
  speed: number
  /** No pause is longer than this, after `speed`. */
  maxPauseMs: number
  /** Events that a connection gives in mode `step`. */
  count: number
  afterSeq: number
  /** The last event. */
  toSeq: number
  hub: Pick<Hub, 'opened' | 'ended' | 'isAdmitted'>
  log: Pick<LogReader, 'pageOfEvents' | 'pageOfFrames'>
  raw: ServerResponse
  /** Headers of the answer beyond those of a stream. */
  headers: Record<string, string | number | string[] | undefined>
  heartbeatMs: number
  stallMs: number
  logger: Pick<FastifyBaseLogger, 'warn'>
}

/** How long a browser waits before it reconnects. */
const RETRY_MS = 3000
const PAGE_ROWS = 768
const PAGE_BYTES = 524_288
/** A page that is played slowly is held long. */
const TIMED_ROWS = 200
/** How long a full socket keeps the page that it is being filled from (tail/sse.ts). */
const PARK_MS = 100
/** How long a shutdown waits for a reader to take what was written for it. */
const SHUTDOWN_MS = 1000
/** Timers are no finer. */
const TICK_MS = 1

/** Answers with a stream that lives on until it ends, or the reader leaves. The caller has hijacked the reply, and asked the hub whether it is open. */
export async function openReplay(options: ReplayOptions): Promise<void> {
  const { run, mode, toSeq, hub, raw, heartbeatMs, stallMs, logger } = options
  const replay = new Replay(options)
  const heartbeat = setInterval(() => replay.heartbeat(), heartbeatMs)
  const stream = { end: () => replay.end() }
  hub.opened(stream)
  raw.on('error', () => {})
  try {
    await replay.play()
  } catch (error) {
    if (!(error instanceof Gone)) {
      logger.warn({ err: error, runKey: run.key, mode, toSeq }, 'a replay failed')
      replay.fault('INTERNAL', 'The log cannot be read at the moment. Reconnect with the last id.', true)
    }
  } finally {
    clearInterval(heartbeat)
    hub.ended(stream)
    raw.end()
    const cut = setTimeout(() => raw.destroy(), replay.isEnding ? SHUTDOWN_MS : stallMs).unref()
    raw.once('close', () => clearTimeout(cut))
  }
}

/** The reader has left, or was let go of. */
class Gone extends Error {}

class Replay {
  isEnding = false
  private readonly stop = new AbortController()
  private cursor: number
  /** Until the socket has drained. */
  private full: Promise<void> | undefined
  /** When the next event is due, in milliseconds of `performance.now()`. */
  private dueMs = 0
  private lastTs: number | undefined

  constructor(private readonly options: ReplayOptions) {
    this.cursor = options.afterSeq
    options.raw.once('close', () => this.stop.abort())
  }

  async play(): Promise<void> {
    const { run, raw, headers, mode, toSeq, afterSeq, count } = this.options
    // The reader left while its request was looked at: there will be no close any more.
    if (raw.destroyed || raw.socket === null || raw.socket.destroyed) throw new Gone()
    raw.writeHead(200, { ...headers, ...STREAM_HEADERS })
    this.write(`retry: ${RETRY_MS}\n\n`)
    const stopAt = mode === 'step' ? Math.min(toSeq, afterSeq + count) : toSeq
    let status = run.status
    while (this.cursor < stopAt) {
      await this.full
      const told = await (mode === 'timed' ? this.timedPage(stopAt) : this.page(stopAt))
      if (told === undefined) return this.fault('RUN_NOT_FOUND', `Run '${run.id}' has been deleted.`, false)
      status = told
    }
    if (this.cursor < toSeq) this.control('paused', { seq: this.cursor, toSeq, remaining: toSeq - this.cursor })
    else this.control('end', { status, headSeq: Math.max(run.lastSeq, toSeq), toSeq })
  }

  /** @returns the run's status; undefined where there is no such run any more. */
  private async page(stopAt: number) {
    const { run, log } = this.options
    const page = await log.pageOfFrames({ runKey: run.key, afterSeq: this.cursor, limit: Math.min(PAGE_ROWS, stopAt - this.cursor), maxBytes: PAGE_BYTES })
    if (!page || this.gap(page.firstSeq, stopAt)) return page?.status
    this.assertMoved(page.count)
    for (const { bytes, lastSeq } of page.pieces) {
      this.write(bytes)
      this.cursor = lastSeq
      // What is left of the page is read again.
      if (!(await this.drained(PARK_MS))) break
    }
    return page.status
  }

  private async timedPage(stopAt: number) {
    const { run, log } = this.options
    const page = await log.pageOfEvents({ runKey: run.key, afterSeq: this.cursor, limit: Math.min(TIMED_ROWS, stopAt - this.cursor), maxBytes: PIECE_BYTES })
    if (!page || this.gap(page.firstSeq, stopAt)) return page?.status
    this.assertMoved(page.count)
    // The driver's memory is larger than what is kept of it.
    const texts = page.items.map(String)
    let frames = ''
    for (const text of texts) {
      const { ts }: { ts: string } = JSON.parse(text)
      const pauseMs = this.pauseBefore(Date.parse(ts))
      if (pauseMs > TICK_MS) {
        this.write(frames)
        frames = ''
        await this.full
        await this.sleep(pauseMs)
      }
      this.cursor++
      frames += eventFrame(this.cursor, text)
    }
    this.write(frames)
    return page.status
  }

  /** The log has no hole: a page with nothing in it would be asked for over and over. */
  private assertMoved(count: number): void {
    if (count === 0) throw new Error(`the log has nothing after ${this.cursor}`)
  }

  private pauseBefore(ts: number): number {
    const { speed, maxPauseMs } = this.options
    const now = performance.now()
    // Producers' clocks may run backwards.
    const sinceMs = this.lastTs === undefined ? 0 : Math.max(0, ts - this.lastTs)
    this.dueMs = (this.lastTs === undefined ? now : this.dueMs) + Math.min(sinceMs / speed, maxPauseMs)
    this.lastTs = ts
    return this.dueMs - now
  }

  /** What was asked for is not kept any more: the reader is told, and goes on after it. */
  private gap(firstSeq: number, stopAt: number): boolean {
    const keptAfter = Math.min(firstSeq - 1, stopAt)
    if (this.cursor >= keptAfter) return false
    this.control('gap', { fromSeq: this.cursor + 1, toSeq: keptAfter }, keptAfter)
    this.cursor = keptAfter
    return true
  }

  private control(event: string, data: object, id?: number): void {
    this.options.raw.write(controlFrame(event, JSON.stringify(data), id))
  }

  fault(code: 'RUN_NOT_FOUND' | 'INTERNAL', detail: string, retryable: boolean): void {
    this.control('error', { code, detail, retryable })
  }

  heartbeat(): void {
    const { hub, raw, run, toSeq } = this.options
    void hub.isAdmitted(raw.req.headers).then((isAdmitted) => isAdmitted || this.refuse())
    if (!this.full && raw.headersSent) this.control('heartbeat', { ts: new Date().toISOString(), headSeq: Math.max(run.lastSeq, toSeq) })
  }

  private refuse(): void {
    if (this.stop.signal.aborted) return
    this.control('error', NOT_ADMITTED)
    this.end()
  }

  /** The service shuts down: the reader goes on by its cursor elsewhere. */
  end(): void {
    this.isEnding = true
    this.stop.abort()
  }

  /** @throws Gone */
  private write(bytes: string | Buffer): void {
    const { raw, stallMs } = this.options
    if (this.stop.signal.aborted) throw new Gone()
    if (bytes.length === 0 || raw.write(bytes) || this.full) return
    const fromMs = performance.now()
    const stalled = setTimeout(() => raw.destroy(), stallMs)
    this.full = once(raw, 'drain', { signal: this.stop.signal })
      .then(
        () => {
          // Time stood still: what was missed is not made up for in a rush.
          this.dueMs += performance.now() - fromMs
          this.full = undefined
        },
        () => {
          throw new Gone()
        },
      )
      .finally(() => clearTimeout(stalled))
    // Whoever waits for it is told; nobody may.
    this.full.catch(() => {})
  }

  /** Whether the socket takes more within the time. @throws Gone */
  private async drained(withinMs: number): Promise<boolean> {
    if (!this.full) return true
    let timer: NodeJS.Timeout | undefined
    const patience = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, withinMs)
    })
    await Promise.race([this.full, patience])
    clearTimeout(timer)
    return this.full === undefined
  }

  private async sleep(ms: number): Promise<void> {
    const { signal } = this.stop
    let wake = () => {}
    const timer = setTimeout(() => wake(), ms)
    const slept = new Promise<void>((resolve) => {
      wake = resolve
      signal.addEventListener('abort', wake, { once: true })
    })
    await slept
    clearTimeout(timer)
    signal.removeEventListener('abort', wake)
    if (signal.aborted) throw new Gone()
  }
}
