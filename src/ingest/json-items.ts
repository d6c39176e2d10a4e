/**
 * Cuts a request's body into raw events: a JSON body at once, an NDJSON body as it arrives.
 *
 * Each item holds its text exactly as sent (numbers, escapes, duplicate keys, white space), and the parsed value made
 * harmless: what neither Postgres nor a JSON text of ours can hold is replaced, so that the value survives being stored.
 */
import { isAscii, isUtf8 } from 'node:buffer'
import { type ErrorCode, RunplaneError } from '../errors.js'
import { endOfValue, findFault, JsonFault, type ScanMarks, skipSpace } from './json-scan.js'

export interface ItemLimits {
  /** Setting MAX_EVENT_BYTES. */
  readonly maxEventBytes: number
  /** Setting MAX_BATCH_EVENTS; JSON bodies only. */
  readonly maxEvents: number
}

/** A JSON object as it was sent, and what it means. */
export interface ParsedItem {
  ok: true
  text: string
  value: Record<string, unknown>
}

/** An item that cannot be an event; the others of the body are not touched by it. */
export interface RejectedItem {
  ok: false
  code: ErrorCode
  detail: string
  /** NDJSON only: the number of the line, counted from 1. */
  line?: number
}

export type RawItem = ParsedItem | RejectedItem

/** Levels of brackets of one event; more would put the recursion of JSON.stringify at risk. */
export const MAX_EVENT_DEPTH = 128

const SHAPES = 'Send one JSON object, an array of objects, or {"events":[...]}.'

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function harmlessText(text: string): string {
  return text.replaceAll('\0', '\uFFFD').toWellFormed()
}

/**
 * The value without what cannot be stored: NUL and lone surrogates in strings and names become U+FFFD, and a number that
 * overflows a double becomes null, which is what JSON would make of it. Names such as `__proto__` stay plain own properties.
 */
export function harmless(value: unknown): unknown {
  if (typeof value === 'string') return harmlessText(value)
  if (typeof value === 'number') return Number.isFinite(value) ? value : null
  if (Array.isArray(value)) return value.map(harmless)
  if (!isObject(value)) return value
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [harmlessText(name), harmless(member)]))
}

function parseItem(text: string, marks: ScanMarks): RawItem {
  const parsed: unknown = JSON.parse(text)
  const value = marks.suspicious ? harmless(parsed) : parsed
  if (isObject(value)) return { ok: true, text, value }
  return { ok: false, code: 'VALIDATION_ERROR', detail: `An event is a JSON object, not ${kindOf(value)}.` }
}

/**
 * A JSON object within a text of base64 (or the JSON itself), made harmless as an item is.
 * @returns undefined where the text holds no such object.
 */
export function parseBase64Json(text: string): Record<string, unknown> | undefined {
  const bytes = Buffer.from(text, text.trimStart().startsWith('{') ? 'utf8' : 'base64')
  const start = skipSpace(bytes, 0, bytes.length)
  if (bytes[start] !== 0x7b || !isUtf8(bytes)) return undefined
  const marks: ScanMarks = { suspicious: false }
  try {
    // Throws when too deep; what it finds is strict only after JSON.parse.
    endOfValue(bytes, start, bytes.length, MAX_EVENT_DEPTH, marks)
    const item = parseItem(bytes.toString('utf8', start), marks)
    return item.ok ? item.value : undefined
  } catch (error) {
    if (error instanceof JsonFault || error instanceof SyntaxError) return undefined
    throw error
  }
}

function kindOf(value: unknown): string {
  if (value === null) return 'null'
  return Array.isArray(value) ? 'an array' : `a ${typeof value}`
}

function hasByteOrderMark(bytes: Buffer): boolean {
  return bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf
}

function eventTooLarge(bytes: number, limits: ItemLimits): string {
  return `An event of ${bytes} bytes is over the limit of ${limits.maxEventBytes} bytes an event (setting MAX_EVENT_BYTES). Send large content as an artifact.`
}

function invalid(detail: string): RunplaneError {
  return new RunplaneError('VALIDATION_ERROR', detail)
}

function brokenJson(body: Buffer, start: number): RunplaneError {
  const fault = findFault(body, start, body.length)
  return invalid(fault === undefined ? 'The body is not valid JSON.' : `The body is not valid JSON: at byte ${fault.offset}, ${fault.message}.`)
}

/** The offset of the first byte that is not UTF-8: where decoding puts a U+FFFD that the bytes do not have. */
function invalidUtf8Offset(bytes: Buffer): number {
  const text = bytes.toString('utf8')
  let offset = 0
  let seen = 0
  for (let mark = text.indexOf('\uFFFD'); mark !== -1; mark = text.indexOf('\uFFFD', mark + 1)) {
    offset += Buffer.byteLength(text.slice(seen, mark))
    if (bytes[offset] !== 0xef || bytes[offset + 1] !== 0xbf || bytes[offset + 2] !== 0xbd) return offset
    seen = mark
  }
  return bytes.length
}

class BodySplitter {
  private readonly items: RawItem[] = []
  private readonly marks: ScanMarks = { suspicious: false }
  private readonly encoding: 'latin1' | 'utf8'

  constructor(
    private readonly body: Buffer,
    private readonly start: number,
    private readonly limits: ItemLimits,
  ) {
    // One byte a character: half the time of decoding UTF-8.
    this.encoding = isAscii(body) ? 'latin1' : 'utf8'
  }

  split(): RawItem[] {
    const first = this.body[this.start]
    let end: number
    if (first === 0x5b) {
      end = this.array(this.start)
    } else if (first === 0x7b) {
      const events = this.firstMemberEvents()
      end = events === undefined ? this.item(this.start) : this.endOfBatch(this.array(events))
    } else {
      throw findFault(this.body, this.start, this.body.length)
        ? brokenJson(this.body, this.start)
        : invalid(`The body is neither an object nor an array. ${SHAPES}`)
    }
    if (skipSpace(this.body, end, this.body.length) < this.body.length) throw brokenJson(this.body, this.start)
    return this.items
  }

  /** @returns the offset of the array of `{"events":[...]}`; undefined for any other object, which is an event itself. */
  private firstMemberEvents(): number | undefined {
    const { body } = this
    const name = skipSpace(body, this.start + 1, body.length)
    if (body.toString('latin1', name, name + 8) !== '"events"') return undefined
    const colon = skipSpace(body, name + 8, body.length)
    const value = skipSpace(body, colon + 1, body.length)
    return body[colon] === 0x3a && body[value] === 0x5b ? value : undefined
  }

  private endOfBatch(at: number): number {
    const next = skipSpace(this.body, at, this.body.length)
    if (this.body[next] === 0x7d) return next + 1
    const broken = findFault(this.body, this.start, this.body.length)
    throw broken ? brokenJson(this.body, this.start) : invalid(`At byte ${next}: {"events":[...]} has no other member.`)
  }

  private array(open: number): number {
    const { body } = this
    let next = skipSpace(body, open + 1, body.length)
    if (body[next] === 0x5d) throw invalid(`There is no event in the body. ${SHAPES}`)
    for (;;) {
      if (this.items.length === this.limits.maxEvents) {
        throw new RunplaneError(
          'PAYLOAD_TOO_LARGE',
          `A JSON request may hold ${this.limits.maxEvents} events (setting MAX_BATCH_EVENTS), and this one holds more. Send several requests, or NDJSON, which has no limit.`,
        )
      }
      next = skipSpace(body, this.item(next), body.length)
      if (body[next] === 0x5d) return next + 1
      if (body[next] !== 0x2c) throw brokenJson(body, this.start)
      next = skipSpace(body, next + 1, body.length)
    }
  }

  private item(at: number): number {
    const { body, limits, marks } = this
    marks.suspicious = false
    let end: number
    try {
      end = endOfValue(body, at, body.length, MAX_EVENT_DEPTH, marks)
    } catch (error) {
      throw error instanceof JsonFault ? invalid(`At byte ${error.offset}, ${error.message}.`) : error
    }
    if (end === -1) throw brokenJson(body, this.start)
    if (end - at > limits.maxEventBytes) throw new RunplaneError('PAYLOAD_TOO_LARGE', eventTooLarge(end - at, limits))
    try {
      this.items.push(parseItem(body.toString(this.encoding, at, end), marks))
    } catch (error) {
      throw error instanceof SyntaxError ? brokenJson(body, this.start) : error
    }
    return end
  }
}

/**
 * The events of a JSON body (one object, an array, or `{"events":[...]}`), in order. An element of an array that is JSON
 * but not an object is a rejected item. A byte order mark at the start is skipped (RFC 8259, section 8.1).
 * @throws RunplaneError VALIDATION_ERROR when the body is empty, is not UTF-8 or JSON, or nests too deep; PAYLOAD_TOO_LARGE past a limit.
 */
export function splitJsonBody(body: Buffer, limits: ItemLimits): RawItem[] {
  const start = skipSpace(body, hasByteOrderMark(body) ? 3 : 0, body.length)
  if (start === body.length) throw invalid(`The body is empty. ${SHAPES}`)
  if (!isUtf8(body)) throw invalid(`The body is not valid UTF-8, from byte ${invalidUtf8Offset(body)} on.`)
  return new BodySplitter(body, start, limits).split()
}

export interface NdjsonSplitter {
  /** @returns the items of the lines that this chunk ends, in order. The chunk may be reused afterwards. */
  feed(chunk: Buffer): RawItem[]
  /** @returns the item of a last line without a newline, if there is one. */
  end(): RawItem[]
}

function lineItem(line: Buffer, number: number, limits: ItemLimits): RawItem | undefined {
  const start = skipSpace(line, number === 1 && hasByteOrderMark(line) ? 3 : 0, line.length)
  if (start === line.length) return undefined
  const reject = (code: ErrorCode, detail: string): RejectedItem => ({ ok: false, code, detail, line: number })
  let end = line.length
  while (line[end - 1] === 0x0d || line[end - 1] === 0x20 || line[end - 1] === 0x09) end--
  if (end - start > limits.maxEventBytes) return reject('PAYLOAD_TOO_LARGE', eventTooLarge(end - start, limits))
  if (!isUtf8(line)) return reject('VALIDATION_ERROR', `Line ${number} is not valid UTF-8, from its byte ${invalidUtf8Offset(line)} on.`)
  const marks: ScanMarks = { suspicious: false }
  try {
    endOfValue(line, start, end, MAX_EVENT_DEPTH, marks)
    const item = parseItem(line.toString('utf8', start, end), marks)
    return item.ok ? item : reject(item.code, `Line ${number}: ${item.detail}`)
  } catch (error) {
    const fault = error instanceof JsonFault ? error : error instanceof SyntaxError ? findFault(line, start, end) : undefined
    if (fault === undefined) throw error
    return reject('VALIDATION_ERROR', `Line ${number} is not valid JSON for an event: at its byte ${fault.offset}, ${fault.message}.`)
  }
}

/**
 * Cuts an NDJSON body as it arrives. A line that is broken, not UTF-8 or too large is a rejected item, and what is around it
 * is not touched; blank lines are skipped. Holds at most one event's bytes, whatever the line's length.
 */
export function createNdjsonSplitter(limits: ItemLimits): NdjsonSplitter {
  // Room for a byte order mark and `\r` besides the event itself.
  const capacity = limits.maxEventBytes + 8
  let held: Buffer = Buffer.alloc(0)
  let heldBytes = 0
  let lineNumber = 1
  /** The line is too long to hold: what follows of it is only counted. */
  let skippedBytes = 0

  function hold(piece: Buffer): void {
    if (skippedBytes > 0 || heldBytes + piece.length > capacity) {
      skippedBytes += heldBytes + piece.length
      heldBytes = 0
      return
    }
    if (heldBytes + piece.length > held.length) {
      const grown = Buffer.allocUnsafe(Math.min(capacity, Math.max(4096, held.length * 2, heldBytes + piece.length)))
      held.copy(grown, 0, 0, heldBytes)
      held = grown
    }
    piece.copy(held, heldBytes)
    heldBytes += piece.length
  }

  function endLine(piece: Buffer, items: RawItem[]): void {
    let item: RawItem | undefined
    if (heldBytes === 0 && skippedBytes === 0) {
      item = lineItem(piece, lineNumber, limits)
    } else {
      hold(piece)
      item =
        skippedBytes > 0
          ? { ok: false, code: 'PAYLOAD_TOO_LARGE', detail: eventTooLarge(skippedBytes, limits), line: lineNumber }
          : lineItem(held.subarray(0, heldBytes), lineNumber, limits)
    }
    if (item !== undefined) items.push(item)
    heldBytes = 0
    skippedBytes = 0
    lineNumber++
  }

  return {
    feed(chunk) {
      const items: RawItem[] = []
      let start = 0
      for (let newline = chunk.indexOf(0x0a); newline !== -1; newline = chunk.indexOf(0x0a, start)) {
        endLine(chunk.subarray(start, newline), items)
        start = newline + 1
      }
      if (start < chunk.length) hold(chunk.subarray(start))
      return items
    },
    end() {
      const items: RawItem[] = []
      endLine(Buffer.alloc(0), items)
      return items
    },
  }
}
