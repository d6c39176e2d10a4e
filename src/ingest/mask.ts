/**
 * Takes secrets out of what comes in, before anything is stored, logged or derived from it. A pure function of the text: the same
 * text is masked to the same text, so that a repeat of an event is still a repeat of it.
 *
 * In a JSON text each name, each text and each number is looked at by itself, as it is meant: escapes are read first, and JSON and
 * base64 within a text are looked into. What holds no secret stays as it was sent, to the byte. What takes a secret's place is
 * `[masked:` and twelve letters, which are the same for the same secret and tell nothing of it to whoever lacks the key; without a key,
 * `[masked]`. A number with a secret in it becomes 0, so that it is still a number.
 */
import { isUtf8 } from 'node:buffer'
import { createHmac } from 'node:crypto'
import { beginsNumber, endOfNumber, endOfString, QUOTE } from './json-text.js'
import { createMatcher, PatternError } from './mask-matcher.js'

import { parseItem, type RawItem } from './raw-item.js'

export { PatternError } from './mask-matcher.js'

export interface Mask {
  /** There are no patterns: everything comes back as it went in. */
  readonly isOff: boolean
  text(text: string): string
  /** A text that is JSON stays JSON. */
  json(text: string): string
  /** A parsed JSON value. @param isKept says which members are left as they are, by their path */
  value(value: unknown, isKept?: (path: readonly string[]) => boolean): unknown
  /** A raw event: its text and what it means. */
  item(item: RawItem): RawItem
  /** Bytes of whatever kind, in pieces; those that are no text are left as they are. */
  bytes(bytes: AsyncIterable<Buffer>): AsyncIterable<Buffer>
}

export const NO_MASK: Mask = {
  isOff: true,
  text: (text) => text,
  json: (text) => text,
  value: (value) => value,
  item: (item) => item,
  bytes: (bytes) => bytes,
}

const MASKED = /^\[masked(?::[a-p]{12})?\]/
const STAND_IN_START = '[masked'
/** `[masked:` and the letters and `]` */
const STAND_IN_CHARS = 21
const LETTERS = 'abcdefghijklmnop'
/** Texts within texts that are looked into: a payload in base64 that holds JSON whose texts are JSON again. */
const MAX_DEPTH = 4
/** Shorter ones hold nothing that is worth a pattern. */
const BASE64_RUN = /[A-Za-z0-9+/_-]{16,}={0,2}/g
const BASE64_LINES = /^[A-Za-z0-9+/_\s-]{16,}={0,2}\s*$/
/** How long a secret may be to be found in bytes that come in pieces. */
const OVERLAP_CHARS = 65_536
const WINDOW_CHARS = 1_048_576

/**
 * @param key of the letters that take a secret's place
 * @throws PatternError that names the pattern and says what is wrong with it
 */
export function createMask(patterns: readonly string[], key?: Buffer): Mask {
  if (patterns.length === 0) return NO_MASK
  const matcher = createMatcher(patterns)
  if (matcher.test('[masked]')) throw new PatternError('a pattern matches the text [masked], which stands for what is masked')

  function standIn(secret: string): string {
    if (key === undefined) return '[masked]'
    const letters = Array.from(
      createHmac('sha256', key).update(secret).digest().subarray(0, 6),
      (byte) => LETTERS.charAt(byte >> 4) + LETTERS.charAt(byte & 15),
    )
    return `[masked:${letters.join('')}]`
  }

  /**
   * The text without what matches, up to `end`, or up to the end of the last match that begins before it.
   * What stands for a secret is not masked again: a repeat would become another text.
   */
  function plain(text: string, end = text.length): { masked: string; upTo: number } {
    let masked = ''
    let at = 0
    for (const [begin, stop] of matcher.find(text)) {
      if (begin >= end) break
      // Looked for close by only: a text may be nothing but matches.
      const low = Math.max(at, begin - STAND_IN_CHARS)
      const offset = text.slice(low, begin + STAND_IN_START.length).lastIndexOf(STAND_IN_START)
      const before = low + offset
      const standing = offset >= 0 ? MASKED.exec(text.slice(before, before + STAND_IN_CHARS)) : null
      if (standing && stop <= before + standing[0].length) continue
      masked += text.slice(at, begin) + standIn(text.slice(begin, stop))
      at = stop
    }
    const upTo = Math.max(at, end)
    return { masked: at === 0 && upTo === text.length ? text : masked + text.slice(at, upTo), upTo }
  }

  /** What the base64 holds, masked, in base64 as it was; undefined where it holds no secret. Bytes that are no text stay as they are. */
  function masked64(encoded: string, depth: number): string | undefined {
    const bytes = Buffer.from(encoded, 'base64')
    const encoding = isUtf8(bytes) ? 'utf8' : 'latin1'
    const inside = bytes.toString(encoding)
    const masked = encoding === 'utf8' ? within(inside, depth + 1) : plain(inside).masked
    if (masked === inside) return undefined
    const again = Buffer.from(masked, encoding).toString(/[_-]/.test(encoded) ? 'base64url' : 'base64')
    return encoded.endsWith('=') || encoded.length % 4 === 0 ? again : again.replace(/=+$/, '')
  }

  function within(text: string, depth: number): string {
    let { masked } = plain(text)
    if (depth >= MAX_DEPTH) return masked
    if (masked.includes('\\') && isJsonLike(masked)) masked = json(masked, depth + 1)
    if (masked.length < 16) return masked
    // Written in lines, as MIME does it (RFC 2045, section 6.8).
    if (/\s/.test(masked) && BASE64_LINES.test(masked)) return masked64(masked, depth) ?? masked
    return masked.replace(BASE64_RUN, (run) => masked64(run, depth) ?? run)
  }

  /** Texts and numbers of a JSON text, one after another. What is not JSON is not hurt. */
  function json(text: string, depth: number): string {
    let masked = ''
    let copied = 0
    const put = (from: number, to: number, instead: string) => {
      masked += text.slice(copied, from) + instead
      copied = to
    }
    for (let at = 0; at < text.length; ) {
      const unit = text.charCodeAt(at)
      if (unit === QUOTE) {
        const end = endOfString(text, at)
        const inner = text.slice(at + 1, end - 1)
        const meant = inner.includes('\\') ? meaningOf(text.slice(at, end)) : inner
        const clean = meant === undefined ? undefined : within(meant, depth)
        if (clean !== undefined && clean !== meant) put(at, end, JSON.stringify(clean))
        at = end
      } else if (beginsNumber(unit)) {
        const end = endOfNumber(text, at)
        const number = text.slice(at, end)
        if (number.length > 1 && isSecretNumber(number)) put(at, end, '0')
        at = end
      } else at++
    }
    return copied === 0 ? text : masked + text.slice(copied)
  }

  /** As it is written, and as it is meant: 1e3 is 1000. */
  const isSecretNumber = (text: string) => matcher.test(text) || matcher.test(String(Number(text)))

  function value(one: unknown, isKept: (path: readonly string[]) => boolean, path: string[]): unknown {
    if (typeof one === 'string') return within(one, 0)
    if (typeof one === 'number') return isSecretNumber(String(one)) ? 0 : one
    if (Array.isArray(one)) return one.map((item) => value(item, isKept, path))
    if (typeof one !== 'object' || one === null) return one
    return Object.fromEntries(
      Object.entries(one).map(([name, member]) => {
        path.push(name)
        const kept: [string, unknown] = isKept(path) ? [name, member] : [within(name, 0), value(member, isKept, path)]
        path.pop()
        return kept
      }),
    )
  }

  return {
    isOff: false,
    text: (text) => within(text, 0),
    json: (text) => json(text, 0),
    value: (one, isKept = () => false) => value(one, isKept, []),
    item(item) {
      if (!item.ok) return item
      const text = json(item.text, 0)
      return text === item.text ? item : parseItem(text, { suspicious: true })
    },
    async *bytes(bytes) {
      /** A character a byte (Latin-1), so that nothing but a match is changed, whatever the encoding. */
      let held = ''
      let isText: boolean | undefined
      let isWhole = true
      for await (const piece of bytes) {
        if (isText === false) {
          yield piece
          continue
        }
        held += piece.toString('latin1')
        if (held.length < WINDOW_CHARS) continue
        isText ??= looksLikeText(held)
        isWhole = false
        const { masked, upTo } = isText ? plain(held, held.length - OVERLAP_CHARS) : { masked: held, upTo: held.length }
        yield Buffer.from(masked, 'latin1')
        held = held.slice(upTo)
      }
      const rest = Buffer.from(held, 'latin1')
      if (!(isText ?? looksLikeText(held))) yield rest
      else if (isWhole && isUtf8(rest)) {
        const text = rest.toString('utf8')
        yield Buffer.from(isJsonLike(text) ? json(text, 0) : within(text, 0), 'utf8')
      } else yield Buffer.from(plain(held).masked, 'latin1')
    },
  }
}

/** As git tells it: what has a NUL near its beginning is no text. */
const looksLikeText = (text: string) => !text.slice(0, 8192).includes('\0')

function isJsonLike(text: string): boolean {
  if (!/^\s*[{["]/.test(text)) return false
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

function meaningOf(literal: string): string | undefined {
  try {
    return String(JSON.parse(literal))
  } catch {
    return undefined
  }
}
