/**
 * Cuts the body of an append into parts, each of which is stored in one transaction. A JSON body is one part. An NDJSON body is cut as it comes: by count,
 * by bytes, by what becomes of it, and where it pauses, so that what an agent writes line by line is seen as it goes.
 *
 * Where repeats are known by their key, parts are known by the number of items before them, and the log has the last word on where one ends: a part that it
 * has already, cut elsewhere, is looked at once more, with as many items as that one had. So what has been looked at is not taken until it is stored.
 */
import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { RunplaneError } from '../errors.js'
import { createNdjsonSplitter, type ItemLimits, type RawItem, splitJsonBody } from '../ingest/json-items.js'
import { MAX_DERIVED_EVENTS, tooManyDerived } from '../ingest/normalize.js'
import { type AppendItem, eventsOf } from '../log/append-request.js'

/** Bytes of one part of an NDJSON body. */
const PART_BYTES = 1024 * 1024
/** A body that pauses this long is stored so far. */
const PAUSE_MS = 50

export interface PartItem {
  item: AppendItem
  /** What tells it from others: its text as it was sent. Lines that cannot be events are all the same, for none of them is stored. */
  sent: string
}

export interface Part {
  items: PartItem[]
  /** The body ends with it. False also where that is not known yet. */
  end: boolean
}

export interface Parts {
  /**
   * What comes next: as it comes, or, with `count`, so many items, fewer only where the body ends before. As it comes, a part does not end before it has something
   * that may be stored: a request of which nothing is can then be told as such.
   */
  look(count?: number): Part | Promise<Part>
  /** Goes on after the first `count` items of what comes next. */
  take(count: number): void
  /** Drops the rest of the body. */
  close(): void
}

export type ToItem = (raw: RawItem) => AppendItem

class JsonParts implements Parts {
  constructor(private readonly held: PartItem[]) {}

  look(count = this.held.length): Part {
    const { held } = this
    return { items: held.slice(0, count), end: count >= held.length }
  }

  take(count: number): void {
    this.held.splice(0, count)
  }

  close(): void {}
}

/** @throws RunplaneError as splitJsonBody; PAYLOAD_TOO_LARGE where it becomes too many events */
export function jsonParts(body: Buffer, limits: ItemLimits, toItem: ToItem): Parts {
  const held = splitJsonBody(body, limits).map((raw) => partItem(raw, toItem))
  let derived = 0
  for (const { item } of held) derived += eventsOf(item)
  if (derived > MAX_DERIVED_EVENTS) throw tooManyDerived()
  return new JsonParts(held)
}

const partItem = (raw: RawItem, toItem: ToItem): PartItem => ({ item: toItem(raw), sent: raw.ok ? raw.text : raw.code })

export function ndjsonParts(body: IncomingMessage, limits: ItemLimits, toItem: ToItem): Parts {
  const chunks = ndjsonItems(body, limits)
  let reading: Promise<IteratorResult<RawItem[]>> | undefined
  const held: PartItem[] = []
  let raws: RawItem[] = []
  let at = 0
  let ended = false

  async function read(maxWaitMs: number | undefined): Promise<RawItem[] | 'pause' | 'end'> {
    reading ??= chunks.next()
    // It may fail while nobody waits for it.
    reading.catch(() => {})
    if (maxWaitMs !== undefined && !(await settlesWithin(reading, maxWaitMs))) return 'pause'
    const { value, done } = await reading
    reading = undefined
    return done ? 'end' : value
  }

  const part = (count: number): Part => ({ items: held.slice(0, count), end: ended && at === raws.length && count === held.length })

  return {
    async look(count) {
      let items = 0
      /** Those that may be stored. */
      let valid = 0
      let derived = 0
      let bytes = 0
      for (;;) {
        const isWhole = count === undefined ? valid >= limits.maxEvents || derived >= MAX_DERIVED_EVENTS || bytes >= PART_BYTES : items === count
        if (isWhole) return part(items)
        const raw = items === held.length ? raws[at] : undefined
        if (raw) {
          at++
          held.push(partItem(raw, toItem))
        }
        const next = held[items]
        if (next) {
          items++
          bytes += next.item.text.length
          derived += eventsOf(next.item)
          if (next.item.normalized.ok) valid++
          continue
        }
        if (ended) return part(items)
        const came = await read(count === undefined && valid > 0 ? PAUSE_MS : undefined)
        if (came === 'pause') return part(items)
        ended = came === 'end'
        raws = came === 'end' ? [] : came
        at = 0
      }
    },
    take: (count) => void held.splice(0, count),
    // Comes to its end when the chunk that it waits for is there.
    close: () => void chunks.return(undefined).catch(() => {}),
  }
}

/**
 * The items of an NDJSON body as they come. Where it is not read to its end, the rest is dropped: a client that writes all before it reads would wait for ever.
 * @throws RunplaneError PAYLOAD_TOO_LARGE past `maxBytes`; VALIDATION_ERROR where the body breaks off
 */
export async function* ndjsonItems(body: IncomingMessage, limits: ItemLimits, maxBytes = Number.POSITIVE_INFINITY): AsyncGenerator<RawItem[], void, undefined> {
  const splitter = createNdjsonSplitter(limits)
  let bytes = 0
  try {
    for await (const chunk of body.iterator({ destroyOnReturn: false })) {
      bytes += chunk.length
      if (bytes > maxBytes)
        throw new RunplaneError(
          'PAYLOAD_TOO_LARGE',
          `The body is longer than the ${maxBytes} bytes that one request may have (MAX_BODY_BYTES). Send less at once.`,
        )
      yield splitter.feed(chunk)
    }
    // A body that was cut off ends here as well: without its end, its last line is not one.
    if (!body.complete)
      throw new RunplaneError('VALIDATION_ERROR', 'The body broke off. Send it again, with event ids or an Idempotency-Key, so that nothing is stored twice.')
    yield splitter.end()
  } finally {
    body.resume()
  }
}

/** Whether the items are the same, whatever the form of the body that they came in. */
export function hashOf({ items }: Part): string {
  const hash = createHash('sha256')
  for (const { sent } of items) hash.update(sent).update('\n')
  return hash.digest('hex')
}

async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), ms)
  })
  try {
    return await Promise.race([promise.then(() => true), late])
  } finally {
    clearTimeout(timer)
  }
}
