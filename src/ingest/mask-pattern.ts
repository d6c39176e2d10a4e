/**
 * The language of masking patterns: that of JavaScript's regular expressions without what an automaton cannot do (back references,
 * look-around) and without `\p` and `\k`. `(?i)` in front ignores the case of ASCII letters. As the longest match counts, a lazy quantifier
 * is as a greedy one.
 */

/** Why a pattern cannot be used: to be told to whoever wrote it. */
export class PatternError extends Error {
  override readonly name = 'PatternError'
}

/** Code units, both ends included, in order and apart. */
export type Ranges = readonly (readonly [number, number])[]

export type Tree =
  | { kind: 'units'; ranges: Ranges }
  | { kind: 'assert'; what: '^' | '$' | 'b' | 'B' }
  | { kind: 'sequence' | 'either'; parts: Tree[] }
  | { kind: 'repeat'; part: Tree; min: number; max: number }

export const LAST_UNIT = 0xffff
const DIGIT: Ranges = [[48, 57]]
export const WORD: Ranges = [
  [48, 57],
  [65, 90],
  [95, 95],
  [97, 122],
]
const SPACE: Ranges = [
  [9, 13],
  [32, 32],
  [160, 160],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
]
const LINE_END: Ranges = [
  [10, 10],
  [13, 13],
  [0x2028, 0x2029],
]
const CLASSES: Readonly<Record<string, Ranges>> = { d: DIGIT, w: WORD, s: SPACE, D: complement(DIGIT), W: complement(WORD), S: complement(SPACE) }
const CONTROLS: Readonly<Record<string, number>> = { t: 9, n: 10, v: 11, f: 12, r: 13, 0: 0 }

function union(ranges: Ranges): Ranges {
  const joined: [number, number][] = []
  for (const [from, to] of [...ranges].sort((left, right) => left[0] - right[0])) {
    const last = joined.at(-1)
    if (last && from <= last[1] + 1) last[1] = Math.max(last[1], to)
    else joined.push([from, to])
  }
  return joined
}

function complement(ranges: Ranges): Ranges {
  const rest: [number, number][] = []
  let next = 0
  for (const [from, to] of union(ranges)) {
    if (from > next) rest.push([next, from - 1])
    next = to + 1
  }
  if (next <= LAST_UNIT) rest.push([next, LAST_UNIT])
  return rest
}

function bothCases(ranges: Ranges): Ranges {
  const other = (first: number, shift: number) =>
    ranges.flatMap(([from, to]): [number, number][] => {
      const [low, high] = [Math.max(from, first), Math.min(to, first + 25)]
      return low <= high ? [[low + shift, high + shift]] : []
    })
  return union([...ranges, ...other(65, 32), ...other(97, -32)])
}

/** The largest count in {}. */
const MAX_REPEATS = 1000

class Parser {
  private at = 0
  private readonly text: string
  private readonly anyCase: boolean

  constructor(pattern: string) {
    this.anyCase = pattern.startsWith('(?i)')
    this.text = this.anyCase ? pattern.slice(4) : pattern
  }

  parse(): Tree {
    const tree = this.either()
    if (this.at < this.text.length) this.fail(`'${this.text[this.at]}' stands alone`)
    return tree
  }

  private fail(reason: string): never {
    throw new PatternError(reason)
  }

  private take(expected: string): boolean {
    if (!this.text.startsWith(expected, this.at)) return false
    this.at += expected.length
    return true
  }

  private either(): Tree {
    const parts = [this.sequence()]
    while (this.take('|')) parts.push(this.sequence())
    return parts.length === 1 && parts[0] ? parts[0] : { kind: 'either', parts }
  }

  private sequence(): Tree {
    const parts: Tree[] = []
    while (this.at < this.text.length && !'|)'.includes(this.text[this.at] ?? '')) parts.push(this.repeated())
    return { kind: 'sequence', parts }
  }

  private repeated(): Tree {
    const part = this.atom()
    const { text, at } = this
    const counted = /^\{(\d+)(,(\d*))?\}/.exec(text.slice(at, at + 20))
    let bounds: [number, number] | undefined
    if (this.take('*')) bounds = [0, Number.POSITIVE_INFINITY]
    else if (this.take('+')) bounds = [1, Number.POSITIVE_INFINITY]
    else if (this.take('?')) bounds = [0, 1]
    else if (counted) {
      this.at += counted[0].length
      const min = Number(counted[1])
      bounds = [min, counted[2] === undefined ? min : counted[3] === '' ? Number.POSITIVE_INFINITY : Number(counted[3])]
    }
    if (bounds === undefined) return part
    this.take('?')
    const [min, max] = bounds
    if (part.kind === 'assert') this.fail('^, $, \\b and \\B cannot be repeated')
    if (/^[*+?{]/.test(text.slice(this.at))) this.fail('one quantifier stands on another')
    if (min > max || min > MAX_REPEATS || (Number.isFinite(max) && max > MAX_REPEATS)) this.fail(`a count in {} is at most ${MAX_REPEATS}, the smaller first`)
    return { kind: 'repeat', part, min, max }
  }

  private atom(): Tree {
    const char = this.text[this.at++] ?? ''
    switch (char) {
      case '(': {
        if (this.take('?') && !this.take(':') && !/^<[A-Za-z_]/.test(this.text.slice(this.at))) this.fail('(?= (?! (?<= and (?<! are not supported')
        const name = /^<\w+>/.exec(this.text.slice(this.at))
        if (name && this.text[this.at - 1] === '?') this.at += name[0].length
        const tree = this.either()
        if (!this.take(')')) this.fail('a ( is not closed')
        return tree
      }
      case '[':
        return this.units(this.set())
      case '.':
        return this.units(complement(LINE_END))
      case '^':
      case '$':
        return { kind: 'assert', what: char }
      case '\\': {
        const next = this.text[this.at]
        if (next === 'b' || next === 'B') {
          this.at++
          return { kind: 'assert', what: next }
        }
        return this.escape()
      }
      case '*':
      case '+':
      case '?':
        return this.fail(`there is nothing before '${char}'`)
      default: {
        const code = this.text.codePointAt(this.at - 1) ?? 0
        if (code > LAST_UNIT) this.at++
        return this.point(code)
      }
    }
  }

  private units(ranges: Ranges): Tree {
    return { kind: 'units', ranges: this.anyCase ? bothCases(ranges) : ranges }
  }

  /** A character beyond the first 65,536 is two units. */
  private point(code: number): Tree {
    const units = Array.from(String.fromCodePoint(code).split(''), (unit) => unit.charCodeAt(0))
    return { kind: 'sequence', parts: units.map((unit) => this.units([[unit, unit]])) }
  }

  /** After the backslash. */
  private escape(): Tree {
    const found = CLASSES[this.text[this.at] ?? '']
    if (found) {
      this.at++
      return this.units(found)
    }
    return this.point(this.escapedPoint())
  }

  private escapedPoint(): number {
    const rest = this.text.slice(this.at, this.at + 12)
    const hex = /^(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\})/.exec(rest)
    if (hex) {
      this.at += hex[0].length
      const code = Number.parseInt(hex[1] ?? hex[2] ?? hex[3] ?? '', 16)
      return code <= 0x10ffff ? code : this.fail('there is no such character')
    }
    const char = rest[0]
    if (char === undefined) this.fail('a \\ stands at the end')
    this.at++
    const control = CONTROLS[char]
    if (control !== undefined && !(char === '0' && /^\d/.test(rest.slice(1)))) return control
    if (/[A-Za-z0-9]/.test(char)) this.fail(`\\${char} is not supported`)
    return char.charCodeAt(0)
  }

  /** After the bracket. */
  private set(): Ranges {
    const negated = this.take('^')
    const ranges: [number, number][] = []
    while (!this.take(']')) {
      if (this.at >= this.text.length) this.fail('a [ is not closed')
      const from = this.member()
      if (typeof from !== 'number') {
        ranges.push(...from.map(([low, high]): [number, number] => [low, high]))
        continue
      }
      if (this.text[this.at] === '-' && this.text[this.at + 1] !== ']' && this.at + 1 < this.text.length) {
        this.at++
        const to = this.member()
        if (typeof to !== 'number' || to < from) this.fail('a range in [ ] goes from the smaller character to the larger')
        ranges.push([from, to])
      } else ranges.push([from, from])
    }
    // The case first: [^a] without case has neither a nor A.
    const both = this.anyCase ? bothCases(ranges) : union(ranges)
    return negated ? complement(both) : both
  }

  private member(): number | Ranges {
    if (this.take('\\')) {
      const found = CLASSES[this.text[this.at] ?? '']
      if (found) {
        this.at++
        return found
      }
      if (this.take('b')) return 8
      if (this.take('-')) return 45
      return this.unit(this.escapedPoint())
    }
    const code = this.text.codePointAt(this.at) ?? 0
    this.at += code > LAST_UNIT ? 2 : 1
    return this.unit(code)
  }

  private unit(code: number): number {
    return code <= LAST_UNIT ? code : this.fail('characters beyond U+FFFF are not supported in [ ]')
  }
}

function matchesEmpty(tree: Tree): boolean {
  switch (tree.kind) {
    case 'units':
      return false
    case 'assert':
      return true
    case 'sequence':
      return tree.parts.every(matchesEmpty)
    case 'either':
      return tree.parts.some(matchesEmpty)
    case 'repeat':
      return tree.min === 0 || matchesEmpty(tree.part)
  }
}

/** @throws PatternError that says what is wrong with it. */
export function parsePattern(pattern: string): Tree {
  const tree = new Parser(pattern).parse()
  if (matchesEmpty(tree)) throw new PatternError('it matches the empty text')
  return tree
}
