/**
 * Two digests of a canonical event, stored with it, so that two runs are compared without reading what their events hold:
 * `shape` is what kind of thing happened (its type, the kind of its subject, and the names of what it is about), `content` is all that
 * it says but for what differs between any two runs (volatile.ts). Events of equal content have an equal shape.
 *
 * 53 bits each (a safe integer, two mixed 32-bit lanes): among 200,000 different events two share a digest by chance
 * with a probability of 2 in a million. They are no protection against somebody who wants two events to look the same.
 * A change of what they mean comes with a migration that empties the columns; an empty one is computed on reading.
 */
import { type CanonicalEvent, EVENT_TYPES } from './canonical-event.js'
import { isChosenId, isVolatileField, isVolatileName, type Rules, volatileText, withoutVolatile } from './volatile.js'

export interface EventDigests {
  shape: number
  content: number
}

/** Members of `data` that tell which thing it was rather than what it said. A model is content: another one does the same step differently. */
export const NAMING = ['name', 'kind', 'phase', 'stream', 'role', 'channel', 'server', 'messageType', 'state', 'status'] as const

/** The naming members of each type, by its schema; of a type that the vocabulary does not have, all of them. */
const NAMING_OF: ReadonlyMap<string, readonly string[]> = new Map(
  Object.entries(EVENT_TYPES).map(([type, { data }]) => [
    type,
    // Two runs of the same thing may each have a name of their own.
    // The state of a snapshot is anything, and no name.
    NAMING.filter((name) => Object.hasOwn(data.properties, name) && !(type === 'run.created' && name === 'name') && type !== 'state.snapshot'),
  ]),
)

export function digestsOf(event: CanonicalEvent): EventDigests {
  return digest(event, event.data, false)
}

/** The digests under other rules of what is volatile. They are those of `digestsOf` for an event that the rules do not concern. */
export function digestsUnder(rules: Rules, event: CanonicalEvent): EventDigests {
  // What is left out of an object is an object.
  return digest(event, withoutVolatile(event.data, rules) as Record<string, unknown>, true)
}

function digest({ type, subject, actor, data: named }: CanonicalEvent, said: Readonly<Record<string, unknown>>, isPruned: boolean): EventDigests {
  const hash = new Hash(isPruned)
  const data: Readonly<Record<string, unknown>> = named
  hash.text(type)
  hash.text(subject.kind)
  for (const name of NAMING_OF.get(type) ?? NAMING) {
    const value = data[name]
    if (typeof value === 'string') {
      hash.text(name)
      hash.text(value)
    }
  }
  const shape = hash.value()
  if (subject.kind === 'participant' && isChosenId(subject.id)) hash.text(subject.id)
  if (actor !== undefined) {
    hash.text(actor.kind)
    if (isChosenId(actor.id)) hash.text(actor.id)
  }
  hash.object(said, isVolatileField)
  return { shape, content: hash.value() }
}

/** cyrb53 by bryc (public domain), fed piece by piece and two characters at a time. */
class Hash {
  private one = 0xdeadbeef
  private two = 0x41c6ce57
  private readonly isPruned: boolean

  constructor(isPruned: boolean) {
    this.isPruned = isPruned
  }

  code(code: number): void {
    this.one = Math.imul(this.one ^ code, 2654435761)
    this.two = Math.imul(this.two ^ code, 1597334677)
  }

  text(text: string): void {
    let { one, two } = this
    const { length } = text
    const even = length & ~1
    for (let index = 0; index < even; index += 2) {
      const codes = text.charCodeAt(index) | (text.charCodeAt(index + 1) << 16)
      one = Math.imul(one ^ codes, 2654435761)
      two = Math.imul(two ^ codes, 1597334677)
      // The products carry upwards only: without this the upper character of a pair would touch few bits.
      one ^= one >>> 15
      two ^= two >>> 13
    }
    this.one = one
    this.two = two
    if (even < length) this.code(text.charCodeAt(even))
    // The length keeps 'ab' and 'c' from being 'a' and 'bc'.
    this.code(0x10000 + length)
  }

  object(value: Readonly<Record<string, unknown>>, isVolatile = isVolatileName): void {
    const names = Object.keys(value)
    if (names.length > 1) names.sort()
    for (const name of names) {
      const member = value[name]
      if (member === undefined || (!this.isPruned && isVolatile(name))) continue
      this.text(name)
      this.any(member)
    }
    this.code(0x10001)
  }

  any(value: unknown): void {
    if (typeof value === 'string') this.text(this.isPruned ? value : (volatileText(value) ?? value))
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
