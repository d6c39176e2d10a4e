/**
 * One raw event: its text exactly as sent (numbers, escapes, duplicate keys, white space), and its parsed value made
 * harmless: what neither Postgres nor a JSON text of ours can hold is replaced, so that the value survives being stored.
 */
import { isUtf8 } from 'node:buffer'
import { storable } from '../domain/storable.js'
import type { ErrorCode } from '../errors.js'
import { endOfValue, JsonFault, type ScanMarks, skipSpace } from './json-scan.js'

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

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * The value without what cannot be stored: NUL and lone surrogates in strings and names become U+FFFD, and a number that
 * overflows a double becomes null, which is what JSON would make of it. Names such as `__proto__` stay plain own properties.
 */
export function harmless(value: unknown): unknown {
  if (typeof value === 'string') return storable(value)
  if (typeof value === 'number') return Number.isFinite(value) ? value : null
  if (Array.isArray(value)) return value.map(harmless)
  if (!isObject(value)) return value
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [storable(name), harmless(member)]))
}

/** @throws SyntaxError when the text is not JSON. */
export function parseItem(text: string, marks: ScanMarks): RawItem {
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

export function hasByteOrderMark(bytes: Buffer): boolean {
  return bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf
}

export function eventTooLarge(bytes: number, limits: ItemLimits): string {
  return `An event of ${bytes} bytes is over the limit of ${limits.maxEventBytes} bytes an event (setting MAX_EVENT_BYTES). Send large content as an artifact.`
}

/** The offset of the first byte that is not UTF-8: where decoding puts a U+FFFD that the bytes do not have. */
export function invalidUtf8Offset(bytes: Buffer): number {
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
