/**
 * Cuts an NDJSON body into raw events as it arrives. A line that is broken, not UTF-8 or too large is a rejected item, and what is around it
 * is not touched; blank lines are skipped. Holds at most one event's bytes, whatever the length of a line.
 */
import { isUtf8 } from 'node:buffer'
import type { ErrorCode } from '../errors.js'
import { endOfValue, findFault, JsonFault, type ScanMarks, skipSpace } from './json-scan.js'
import { eventTooLarge, hasByteOrderMark, type ItemLimits, invalidUtf8Offset, MAX_EVENT_DEPTH, parseItem, type RawItem, type RejectedItem } from './raw-item.js'

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
