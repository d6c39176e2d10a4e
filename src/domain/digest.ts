/**
 * Two digests of a canonical event, stored with it, so that two runs are compared without reading what their events hold:
 * `shape` is what kind of thing happened, `content` is all that it says but for what differs between any two runs.
 *
 * 53 bits each (a safe integer, two mixed 32-bit lanes): among 200,000 different events two share a digest by chance
 * with a probability of 2 in a million. They are no protection against somebody who wants two events to look the same.
 * A change of what they mean comes with a migration that empties the columns; an empty one is computed on reading.
 */
import type { CanonicalEvent } from './canonical-event.js'

export interface EventDigests {
  shape: number
  content: number
}

/** Members of `data` that tell which thing it was rather than what it said. */
const NAMING = ['name', 'kind', 'phase', 'stream', 'role', 'channel', 'model', 'provider', 'server', 'messageType', 'queue', 'state', 'status', 'decision']
/** Ids, times, durations and places: different in any two runs. */
const VOLATILE = /(?:^id|Id|Ids|At|Ms|Url|_id|_at|_ms)$|^(?:ts|timestamp|time|duration|latency|host|hostname|pid|port|ip|url|uri|path)$/

export function digestsOf(event: CanonicalEvent): EventDigests {
  const data: Readonly<Record<string, unknown>> = event.data
  const hash = new Hash()
  hash.text(event.type)
  hash.text(event.subject.kind)
  for (const name of NAMING) {
    const value = data[name]
    if (typeof value === 'string') {
      hash.text(name)
      hash.text(value)
    }
  }
  const shape = hash.value()
  hash.object(data)
  return { shape, content: hash.value() }
}

/** cyrb53 by bryc (public domain), fed piece by piece. */
class Hash {
  private one = 0xdeadbeef
  private two = 0x41c6ce57

  code(code: number): void {
    this.one = Math.imul(this.one ^ code, 2654435761)
    this.two = Math.imul(this.two ^ code, 1597334677)
  }

  text(text: string): void {
    let { one, two } = this
    for (let index = 0; index < text.length; index++) {
      const code = text.charCodeAt(index)
      one = Math.imul(one ^ code, 2654435761)
      two = Math.imul(two ^ code, 1597334677)
    }
    this.one = one
    this.two = two
    // No character has this code: 'ab' and 'c' are not 'a' and 'bc'.
    this.code(0x10000)
  }

  object(value: Readonly<Record<string, unknown>>): void {
    const names = Object.keys(value)
    if (names.length > 1) names.sort()
    for (const name of names) {
      const member = value[name]
      if (member === undefined || VOLATILE.test(name)) continue
      this.text(name)
      this.any(member)
    }
    this.code(0x10001)
  }

  any(value: unknown): void {
    if (typeof value === 'string') this.text(value)
    else if (Array.isArray(value)) {
      for (const member of value) this.any(member)
      this.code(0x10002)
    } else if (typeof value === 'object' && value !== null) this.object(value as Record<string, unknown>)
    else {
      this.code(0x10003)
      this.text(String(value))
    }
  }

  value(): number {
    let { one, two } = this
    one = Math.imul(one ^ (one >>> 16), 2246822507) ^ Math.imul(two ^ (two >>> 13), 3266489909)
    two = Math.imul(two ^ (two >>> 16), 2246822507) ^ Math.imul(one ^ (one >>> 13), 3266489909)
    return 4294967296 * (2097151 & two) + (one >>> 0)
  }
}
