/** Cuts a JSON body into raw events by their bytes: one object, an array, or `{"events":[...]}`. For lines see ndjson.ts. */
import { isAscii, isUtf8 } from 'node:buffer'
import { RunplaneError } from '../errors.js'
import { endOfValue, findFault, JsonFault, type ScanMarks, skipSpace } from './json-scan.js'
import { eventTooLarge, hasByteOrderMark, type ItemLimits, invalidUtf8Offset, MAX_EVENT_DEPTH, parseItem, type RawItem } from './raw-item.js'

// Whoever reads bodies needs this module only.
export { createNdjsonSplitter, type NdjsonSplitter } from './ndjson.js'
export { harmless, type ItemLimits, MAX_EVENT_DEPTH, type ParsedItem, type RawItem, type RejectedItem } from './raw-item.js'

const SHAPES = 'Send one JSON object, an array of objects, or {"events":[...]}.'

function invalid(detail: string): RunplaneError {
  return new RunplaneError('VALIDATION_ERROR', detail)
}

function brokenJson(body: Buffer, start: number): RunplaneError {
  const fault = findFault(body, start, body.length)
  return invalid(fault === undefined ? 'The body is not valid JSON.' : `The body is not valid JSON: at byte ${fault.offset}, ${fault.message}.`)
}

class BodySplitter {
  private readonly items: RawItem[] = []
  private readonly marks: ScanMarks = { suspicious: false }

  constructor(
    private readonly body: Buffer,
    private readonly start: number,
    private readonly limits: ItemLimits,
    /** `latin1` where the body is ASCII: half the time of decoding UTF-8. */
    private readonly encoding: 'latin1' | 'utf8',
  ) {}

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
  const encoding = isAscii(body) ? 'latin1' : 'utf8'
  if (encoding === 'utf8' && !isUtf8(body)) throw invalid(`The body is not valid UTF-8, from byte ${invalidUtf8Offset(body)} on.`)
  return new BodySplitter(body, start, limits, encoding).split()
}
