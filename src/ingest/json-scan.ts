/**
 * Finds where JSON values lie in a body, by their bytes, so that what a producer sent can be kept exactly as it was sent.
 *
 * The scan is loose (it skips strings and counts brackets); whoever takes a range parses it with JSON.parse, which is strict.
 * `findFault` is the strict reading, used only to say where broken JSON is broken: V8's messages often have no position.
 */
const QUOTE = 0x22
const BACKSLASH = 0x5c
const OPEN_BRACE = 0x7b
const CLOSE_BRACE = 0x7d
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d
const COMMA = 0x2c
const COLON = 0x3a
const MINUS = 0x2d
const LOWER_U = 0x75

/** Digits from which on a double without an exponent may overflow (Number.MAX_VALUE has 309). */
const LONG_NUMBER_CHARS = 300

/** What is wrong with a JSON text, and at which byte of it. */
export class JsonFault extends Error {
  readonly offset: number
  constructor(reason: string, offset: number) {
    super(reason)
    this.offset = offset
  }
}

/** Set by a scan, never cleared by it. */
export interface ScanMarks {
  /** The value has a `\u` escape or a number that may overflow a double: see `harmless` in raw-item.ts. */
  suspicious: boolean
}

function isSpace(byte: number | undefined): boolean {
  return byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= 0x30 && byte <= 0x39
}

/** @returns the offset of the first byte from `at` on that is not white space, or `end`. */
export function skipSpace(bytes: Buffer, at: number, end: number): number {
  let next = at
  while (next < end && isSpace(bytes[next])) next++
  return next
}

/** @returns the offset after the closing quote of the string that opens at `at`, or -1 when it does not close. */
function endOfString(bytes: Buffer, at: number, end: number, marks: ScanMarks): number {
  let next = at + 1
  while (next < end) {
    const byte = bytes[next]
    if (byte === QUOTE) return next + 1
    if (byte === BACKSLASH) {
      if (bytes[next + 1] === LOWER_U) marks.suspicious = true
      next++
    }
    next++
  }
  return -1
}

function endOfNumber(bytes: Buffer, at: number, end: number, marks: ScanMarks): number {
  let next = at + 1
  for (; next < end; next++) {
    const byte = bytes[next] as number
    if (byte >= 0x30 && byte <= 0x39) continue
    if (byte === 0x65 || byte === 0x45) marks.suspicious = true
    else if (byte !== 0x2e && byte !== 0x2b && byte !== MINUS) break
  }
  if (next - at > LONG_NUMBER_CHARS) marks.suspicious = true
  return next
}

/**
 * @param at where the value begins, white space skipped.
 * @returns the offset after the value, or -1 when it does not end before `end`.
 * @throws JsonFault when it nests deeper than `maxDepth`.
 */
export function endOfValue(bytes: Buffer, at: number, end: number, maxDepth: number, marks: ScanMarks): number {
  let depth = 0
  let next = at
  while (next < end) {
    const byte = bytes[next] as number
    if (byte === QUOTE) {
      next = endOfString(bytes, next, end, marks)
      if (next === -1) return -1
      if (depth === 0) return next
    } else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
      if (++depth > maxDepth) throw new JsonFault(`an event may nest ${maxDepth} levels deep, and this one goes deeper`, next)
      next++
    } else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
      // At depth 0 the bracket belongs to what is around the value.
      if (depth === 0) return next
      next++
      if (--depth === 0) return next
    } else if (byte === MINUS || (byte >= 0x30 && byte <= 0x39)) {
      next = endOfNumber(bytes, next, end, marks)
    } else {
      if (depth === 0 && (byte === COMMA || isSpace(byte))) return next
      next++
    }
  }
  return depth === 0 ? next : -1
}

const LITERALS = ['true', 'false', 'null']
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y

/** Reads strictly (RFC 8259), and throws at the first byte that is wrong. */
class StrictReader {
  private at: number

  constructor(
    private readonly bytes: Buffer,
    start: number,
    private readonly end: number,
  ) {
    this.at = start
  }

  document(): void {
    this.value()
    if (this.peek() !== undefined) this.fail('there is more after the end of the JSON value')
  }

  private fail(reason: string): never {
    throw new JsonFault(reason, this.at)
  }

  private peek(): number | undefined {
    this.at = skipSpace(this.bytes, this.at, this.end)
    return this.at < this.end ? this.bytes[this.at] : undefined
  }

  private unexpected(wanted: string): never {
    if (this.at >= this.end) this.fail(`the text ends where ${wanted} should be`)
    const found = this.bytes.toString('utf8', this.at, Math.min(this.at + 4, this.end)).at(0) ?? ''
    this.fail(`${JSON.stringify(found)} stands where ${wanted} should be`)
  }

  private expect(byte: number, wanted: string): void {
    if (this.peek() !== byte) this.unexpected(wanted)
    this.at++
  }

  private value(): void {
    const byte = this.peek()
    if (byte === OPEN_BRACE) this.members(CLOSE_BRACE, () => this.member())
    else if (byte === OPEN_BRACKET) this.members(CLOSE_BRACKET, () => this.value())
    else if (byte === QUOTE) this.string()
    else this.word()
  }

  private members(close: number, member: () => void): void {
    this.at++
    if (this.peek() === close) {
      this.at++
      return
    }
    for (;;) {
      member()
      if (this.peek() === close) break
      this.expect(COMMA, close === CLOSE_BRACE ? "',' or '}'" : "',' or ']'")
    }
    this.at++
  }

  private member(): void {
    if (this.peek() !== QUOTE) this.unexpected('a name in double quotes')
    this.string()
    this.expect(COLON, "':'")
    this.value()
  }

  private string(): void {
    this.at++
    for (;;) {
      const byte = this.at < this.end ? this.bytes[this.at] : undefined
      if (byte === undefined) this.fail('a string does not end')
      if (byte < 0x20) this.fail('a control character stands in a string; write it as an escape')
      if (byte === BACKSLASH && !/^\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/.test(this.bytes.toString('latin1', this.at, Math.min(this.at + 6, this.end)))) {
        this.fail('a string has an escape that JSON does not have')
      }
      this.at += byte === BACKSLASH ? 2 : 1
      if (byte === QUOTE) return
    }
  }

  private word(): void {
    const text = this.bytes.toString('latin1', this.at, Math.min(this.at + 5, this.end))
    const literal = LITERALS.find((word) => text.startsWith(word))
    if (literal !== undefined) {
      this.at += literal.length
      return
    }
    let stop = this.at
    while (stop < this.end && (isDigit(this.bytes[stop]) || '+-.eE'.includes(String.fromCharCode(this.bytes[stop] ?? 0)))) stop++
    NUMBER.lastIndex = 0
    const match = NUMBER.exec(this.bytes.toString('latin1', this.at, stop))
    if (match === null) this.unexpected('a value')
    this.at += match[0].length
  }
}

/**
 * Where a text that JSON.parse refuses is wrong. The text may not nest deeper than some hundred levels.
 * @returns undefined when nothing is wrong.
 */
export function findFault(bytes: Buffer, start: number, end: number): JsonFault | undefined {
  try {
    new StrictReader(bytes, start, end).document()
    return undefined
  } catch (error) {
    if (error instanceof JsonFault) return error
    // A text whose nesting the scan did not see, such as brackets after a broken string.
    if (error instanceof RangeError) return new JsonFault('it nests too deep', start)
    throw error
  }
}
