/**
 * One connection to a source, from the request to its end: reads, stores, and tells how it ended.
 *
 * Nothing is read while what was read before waits for the log, so that a source comes in no faster than it can be stored.
 * The cursor is stored with the events that it follows: a crash at any point neither loses nor doubles what has event ids or a cursor.
 */
import type { Readable } from 'node:stream'
import { request } from 'undici'
import { isDataError } from '../db/retry.js'
import type { DraftEvent } from '../domain/canonical-event.js'
import { isTerminal } from '../domain/run.js'
import { RunplaneError } from '../errors.js'
import type { ItemLimits } from '../ingest/json-items.js'
import { formatFor } from '../ingest/normalize.js'
import type { AppendReceipt, AppendRequest } from '../log/append-request.js'
import type { GroupCommit } from '../log/group-commit.js'
import type { Outbound } from '../ops/outbound.js'
import type { FoldState } from '../projections/fold.js'
import { createSourceItems, type Slice, type SourceItemsOptions } from './attach-items.js'
import { nameOf, type SourceConfig, sourceRequest } from './attach-source.js'
import { type Verdict, verdictOnAnswer, verdictOnError } from './attach-verdict.js'

export interface ReaderDeps {
  log: Pick<GroupCommit, 'appendWhenRoom'>
  outbound: Pick<Outbound, 'dispatcher' | 'assertUrl'>
  limits: ItemLimits
  mask?: SourceItemsOptions['mask']
  idleTimeoutMs: number
  onStored?: ((format: string, events: number) => void) | undefined
}

export interface Connection {
  runKey: string
  ownerId: string
  config: SourceConfig
  /** Where the last connection stopped. */
  cursor: string | null
  /** The source has been open before. */
  bound: boolean
  signal: AbortSignal
  /** What is told once the source is open; under the run's lock. */
  opened: (state: FoldState) => DraftEvent[]
  onOpen(): Promise<void>
}

export type ConnectionEnd =
  /** The source closed, stalled or broke: it may have more. `events` came before. */
  | { kind: 'closed'; opened: boolean; events: number; reason: string; atLeastMs: number }
  /** The run is over, or is gone. */
  | { kind: 'over' }
  /** Another instance reads it now. */
  | { kind: 'lost' }
  /** The source has no more. */
  | { kind: 'ended'; reason: string }
  | { kind: 'never'; reason: string }

/** Things that are not events, one after another, after which a source is taken to be something else. */
const MAX_REJECTED = 1000
/** setTimeout takes 2^31 - 1 ms at the most. */
const MAX_IDLE_MS = 86_400_000
/** Bytes that are read while those before them are stored. */
const AHEAD_BYTES = 262_144

class Over extends Error {}
class Lost extends Error {}
class NotEvents extends Error {}
class BrokenOff extends Error {
  readonly code = 'BROKEN_OFF'
}
class Idle extends Error {
  readonly code = 'IDLE'
}

export async function readSource(deps: ReaderDeps, connection: Connection): Promise<ConnectionEnd> {
  const { config, signal, runKey, ownerId } = connection
  const idleMs = Math.min(config.idleTimeoutMs ?? deps.idleTimeoutMs, MAX_IDLE_MS)
  const aborter = new AbortController()
  const abort = () => aborter.abort(signal.reason)
  // The whole wait for the headers, however slowly they come.
  const opening = setTimeout(() => aborter.abort(new Idle()), idleMs).unref()
  let opened = false
  let events = 0
  let atLeastMs = 0
  let rejectedInARow = 0
  let { cursor } = connection

  async function append(more: Partial<AppendRequest>, cursor: string | null): Promise<AppendReceipt> {
    const outcome = await deps.log.appendWhenRoom({ runKey, receivedAt: new Date().toISOString(), items: [], source: { ownerId, cursor }, ...more })
    if (outcome.kind === 'done') return outcome.receipt
    if (outcome.kind === 'refused') throw outcome.error.code === 'LEASE_LOST' ? new Lost() : outcome.error
    throw new Over()
  }

  async function store({ items, cursor, rejected }: Slice, format: string): Promise<boolean> {
    let receipt: AppendReceipt
    try {
      receipt = await append({ items, ...(rejected.length > 0 && { decide: () => [notStored(rejected)] }) }, cursor)
    } catch (error) {
      if (error instanceof Lost || error instanceof Over || error instanceof RunplaneError || !isDataError(error)) throw error
      // What the database cannot hold it could not hold the next time either.
      receipt = await append({ decide: () => [notStored(['The database cannot hold it.'], items.length)] }, cursor)
    }
    let stored = 0
    const conflicts: string[] = []
    for (const result of receipt.results) {
      if (result.status === 'stored') stored++
      else if (result.status === 'rejected') conflicts.push(result.detail)
    }
    if (conflicts.length > 0) await append({ decide: () => [notStored(conflicts)] }, cursor)
    if (stored > 0) deps.onStored?.(format, stored)
    events += items.length
    rejectedInARow = items.length > 0 ? 0 : rejectedInARow + rejected.length
    return !isTerminal(receipt.status)
  }

  try {
    signal.throwIfAborted()
    signal.addEventListener('abort', abort, { once: true })
    const format = formatFor(undefined, config.format)
    deps.outbound.assertUrl(config.url)
    const { url, headers } = sourceRequest(config, connection.cursor)
    const answer = await request(url, { dispatcher: deps.outbound.dispatcher, headers, signal: aborter.signal, headersTimeout: 0, bodyTimeout: idleMs })
    clearTimeout(opening)
    const { body } = answer
    // It may fail while nobody reads it.
    body.on('error', () => {})
    try {
      const verdict = verdictOnAnswer(answer, { bound: connection.bound, nowMs: Date.now() })
      if (verdict.kind !== 'read') return endOf(verdict)
      const chunks = chunksOf(body)
      const receipt = await append({ decide: connection.opened }, connection.cursor)
      if (isTerminal(receipt.status)) return { kind: 'over' }
      await connection.onOpen()
      opened = true
      const items = createSourceItems({
        as: verdict.as,
        format,
        limits: deps.limits,
        mask: deps.mask,
        defaultSource: nameOf(config),
        cursor: connection.cursor,
      })
      const storeAll = async (slices: Slice[]) => {
        // All that was read is stored, though the run may end on the way.
        let goesOn = true
        for (const slice of slices) {
          goesOn = (await store(slice, format.name)) && goesOn
          cursor = slice.cursor
        }
        if (!goesOn) throw new Over()
        if (rejectedInARow > MAX_REJECTED) throw new NotEvents()
      }
      for await (const chunk of chunks) {
        await storeAll(items.feed(chunk))
        atLeastMs = items.retryMs ?? 0
      }
      await storeAll(items.end())
      // Asked again it would begin anew, and all of it would be stored again, for ever. Server-sent events are asked again, as their standard has it.
      if (verdict.as === 'ndjson' && events > 0 && cursor === null)
        return { kind: 'ended', reason: 'The source has ended, and none of its lines has an id from which it could go on.' }
      return { kind: 'closed', opened, events, reason: 'The source closed.', atLeastMs }
    } finally {
      body.destroy()
    }
  } catch (error) {
    if (error instanceof Over) return { kind: 'over' }
    if (error instanceof Lost) return { kind: 'lost' }
    if (error instanceof NotEvents) return { kind: 'never', reason: `The source sends no events of the format '${config.format ?? 'native'}'.` }
    return endOf(verdictOnError(error))
  } finally {
    clearTimeout(opening)
    signal.removeEventListener('abort', abort)
  }

  function endOf(verdict: Exclude<Verdict, { kind: 'read' }>): ConnectionEnd {
    if (verdict.kind !== 'again') return verdict
    return { kind: 'closed', opened, events, reason: verdict.reason, atLeastMs: Math.max(atLeastMs, verdict.retryAfterMs ?? 0) }
  }
}

/**
 * The chunks of a body from now on, and those too that came before it broke: its own iterator forgets what it has not given yet, so that
 * a source that sends a little and breaks would never get further.
 */
function chunksOf(body: Readable): AsyncGenerator<Buffer> {
  const chunks: Buffer[] = []
  let bytes = 0
  let end: { error?: unknown } | undefined
  let wake = () => {}
  const finish = (how: { error?: unknown }) => {
    end ??= how
    wake()
  }
  body.on('data', (chunk: Buffer) => {
    chunks.push(chunk)
    bytes += chunk.length
    if (bytes >= AHEAD_BYTES) body.pause()
    wake()
  })
  body.once('end', () => finish({}))
  body.once('error', (error) => finish({ error }))
  body.once('close', () => finish({ error: new BrokenOff() }))
  return (async function* () {
    for (;;) {
      if (chunks.length > 0) {
        // All that came meanwhile goes together: a source that writes event by event comes in chunks of one event.
        const gathered = Buffer.concat(chunks.splice(0))
        bytes = 0
        body.resume()
        yield gathered
      } else if (end) {
        if ('error' in end) throw end.error
        return
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve
        })
      }
    }
  })()
}

/** What a source sent in vain is told in the log: nobody else would tell it. */
function notStored(details: string[], count = details.length): DraftEvent {
  return {
    type: 'raw.received',
    data: { reason: `${count === 1 ? 'A thing' : `${count} things`} of the source could not be stored. ${details[0] ?? ''}`.slice(0, 1000) },
  }
}
