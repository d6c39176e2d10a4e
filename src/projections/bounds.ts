/**
 * What keeps a state small whatever the events hold: texts, payloads and collections have bounds. Sizes are bytes of JSON
 * (UTF-8, with its escapes), so that the bounds of the sections add up to a bound of the whole state.
 */

/** An id that is longer is shortened and ends in a hash of the whole, so that two long ids stay two. */
export const MAX_ID_BYTES = 64
export const MAX_NAME_BYTES = 80
/** A kind, a role, a status. */
export const MAX_LABEL_BYTES = 32
/** A line of text: a message, a summary. */
export const MAX_LINE_BYTES = 160
export const MAX_TEXT_BYTES = 2_000
const MAX_PAYLOAD_DEPTH = 32

/** What a section counts when a bound bites. */
export interface Cuts {
  truncated: number
}

/** Stands in a state where a payload was too large to keep; the event in the log has it. */
export const TRUNCATED = { truncated: true } as const

/** The bytes that each UTF-16 unit takes in JSON: a surrogate counts half of its pair's four, rounded up. A table: most of a fold is spent here. */
const UNIT_BYTES = Uint8Array.from({ length: 0x10000 }, (_, unit) => {
  if (unit < 0x20) return 6
  if (unit === 0x22 || unit === 0x5c) return 2
  if (unit < 0x80) return 1
  if (unit < 0x800) return 2
  // A lone surrogate is written as an escape.
  return unit >= 0xd800 && unit <= 0xdfff ? 6 : 3
})
const unitBytes = (unit: number) => UNIT_BYTES[unit] ?? 6

/** How many units of the text fit into the bytes. */
function fitting(text: string, maxBytes: number): number {
  if (text.length * 6 <= maxBytes) return text.length
  let left = maxBytes
  for (let index = 0; index < text.length; index++) {
    left -= unitBytes(text.charCodeAt(index))
    if (left < 0) return index
  }
  return text.length
}

/** How many units of a text that is too long fit before an ellipsis, which takes three bytes; undefined where all of it fits. */
function fittingBeforeEllipsis(text: string, maxBytes: number): number | undefined {
  if (text.length * 6 <= maxBytes) return undefined
  let left = maxBytes
  let units = 0
  for (let index = 0; index < text.length; index++) {
    left -= unitBytes(text.charCodeAt(index))
    if (left < 0) return units
    if (left >= 3) units = index + 1
  }
  return undefined
}

/** Where strings are copied through. */
const scratch = Buffer.allocUnsafeSlow(2 * MAX_TEXT_BYTES)

/** The first `units` of the text, as a string of its own (a slice would keep all of the text in memory), and never half of a pair. */
function head(text: string, units: number): string {
  if (units <= 0) return ''
  const last = text.charCodeAt(units - 1)
  const end = last >= 0xd800 && last <= 0xdbff ? units - 1 : units
  for (let index = 0; index < end; index++) if (text.charCodeAt(index) > 0xff) return copied(text.slice(0, end), 'utf16le')
  return copied(text.slice(0, end), 'latin1')
}

function copied(text: string, encoding: 'latin1' | 'utf16le'): string {
  if (text.length * 2 > scratch.length) return Buffer.from(text, encoding).toString(encoding)
  return scratch.toString(encoding, 0, scratch.write(text, encoding))
}

/** The text, or as much of it as fits, with an ellipsis; counted. */
export function clip(cuts: Cuts, text: string, maxBytes: number): string {
  const units = fittingBeforeEllipsis(text, maxBytes)
  if (units === undefined) return text
  cuts.truncated += 1
  return `${head(text, units)}…`
}

export function clipped(cuts: Cuts, text: string | null | undefined, maxBytes: number): string | null {
  return text === null || text === undefined ? null : clip(cuts, text, maxBytes)
}

/** As much of the text as fits, without an ellipsis: more may follow. Counted. */
export function fit(cuts: Cuts, text: string, maxBytes: number): string {
  const units = fitting(text, maxBytes)
  if (units === text.length) return text
  cuts.truncated += 1
  return head(text, units)
}

export function jsonBytes(text: string): number {
  let bytes = 0
  for (let index = 0; index < text.length; index++) bytes += unitBytes(text.charCodeAt(index))
  return bytes
}

/** 64 bits: FNV-1a, and the same with another prime. Tells long ids apart; nothing depends on it being hard to forge. */
export function fingerprint(text: string): string {
  let low = 0x811c9dc5
  let high = 0x1000193
  for (let index = 0; index < text.length; index++) {
    low = Math.imul(low ^ text.charCodeAt(index), 0x01000193)
    high = Math.imul(high ^ text.charCodeAt(index), 0x85ebca6b)
  }
  return (low >>> 0).toString(36) + (high >>> 0).toString(36)
}

/** An id as a key of a state: itself, or, when it is too long, its beginning and a hash. */
export function idOf(id: string): string {
  return fitting(id, MAX_ID_BYTES) === id.length ? id : `${head(id, fitting(id, MAX_ID_BYTES - 18))}…${fingerprint(id)}`
}

/** @returns the bytes left, negative once the value does not fit. */
function room(value: unknown, left: number, depth: number): number {
  if (typeof value === 'string') return value.length > left ? -1 : left - 2 - jsonBytes(value)
  if (typeof value !== 'object' || value === null) return left - 24
  if (depth > MAX_PAYLOAD_DEPTH) return -1
  let rest = left - 2
  if (Array.isArray(value)) {
    for (const item of value) {
      if (rest < 0) return rest
      rest = room(item, rest - 1, depth + 1)
    }
    return rest
  }
  for (const [key, item] of Object.entries(value)) {
    if (rest < 0) return rest
    rest = room(item, rest - jsonBytes(key) - 4, depth + 1)
  }
  return rest
}

/** A foreign payload, or, when it is too large or too deep, a marker; counted. */
export function payload(cuts: Cuts, value: unknown, maxBytes: number): unknown {
  if (value === undefined || value === null) return null
  if (room(value, maxBytes, 0) >= 0) return value
  cuts.truncated += 1
  return TRUNCATED
}

/** A number that can be added up without ever leaving the finite ones; 0 where there is none. */
export function amount(value: unknown): number {
  return typeof value === 'number' && value > 0 ? Math.min(value, Number.MAX_SAFE_INTEGER) : 0
}

/** A number as told; null where there is none (JSON has no infinity). */
export function numberOf(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? value : null
}

export function textOf(value: unknown): string | null {
  return typeof value === 'string' ? value : null
}

/** A field of an open object that the vocabulary does not name. */
export function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, name) ? Reflect.get(value, name) : undefined
}

/** How far from the oldest an entry that may go is looked for. */
const MAX_LOOK = 64

/**
 * Puts an entry at the end. Past the bound the oldest goes, those that `expendable` names first.
 * @returns the entry that had to go.
 */
export function keep<V>(entries: Map<string, V>, key: string, entry: V, max: number, expendable?: (entry: V) => boolean): V | undefined {
  entries.delete(key)
  entries.set(key, entry)
  if (entries.size <= max) return undefined
  let victim: string | undefined
  let looked = 0
  for (const [candidate, value] of entries) {
    victim ??= candidate
    if (candidate === key || looked++ === MAX_LOOK) break
    if (expendable === undefined || expendable(value)) {
      victim = candidate
      break
    }
  }
  const gone = victim === undefined ? undefined : entries.get(victim)
  if (victim !== undefined) entries.delete(victim)
  return gone
}

/** Adds to a list of the most recent. @returns how many had to go. */
export function keepRecent<V>(list: V[], entry: V, max: number): number {
  list.push(entry)
  if (list.length <= max) return 0
  list.shift()
  return 1
}
