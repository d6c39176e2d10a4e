/**
 * Finds what matches any of several patterns, in time linear in the text whatever the patterns and the text: a backtracking
 * matcher takes 18 s for `[a-z]+@[a-z]+` and 256 KiB of letters, and what agents send is not ours to choose.
 *
 * All patterns become one automaton, whose states are sets of places in the patterns and are made as texts need them (a lazy DFA): a text
 * without a match, which nearly all are, costs one look-up a character (6 ns). Where there is a match, a pass from the end finds where matches begin, and one from each beginning where the longest ends.
 *
 * The language is that of JavaScript's regular expressions without what an automaton cannot do (back references, look-around) and without
 * `\p` and `\k`. `(?i)` in front ignores the case of ASCII letters. As the longest match counts, a lazy quantifier is as a greedy one.
 */

/** Why a pattern cannot be used: to be told to whoever wrote it. */
export class PatternError extends Error {
  override readonly name = 'PatternError'
}

/** Code units, both ends included, in order and apart. */
type Ranges = readonly (readonly [number, number])[]

type Tree =
  | { kind: 'units'; ranges: Ranges }
  | { kind: 'assert'; what: '^' | '$' | 'b' | 'B' }
  | { kind: 'sequence' | 'either'; parts: Tree[] }
  | { kind: 'repeat'; part: Tree; min: number; max: number }

const LAST_UNIT = 0xffff
const DIGIT: Ranges = [[48, 57]]
const WORD: Ranges = [
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

/** Bounds what `{m,n}` may come to. */
const MAX_REPEATS = 1000
const MAX_PLACES = 20_000

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
function parse(pattern: string): Tree {
  const tree = new Parser(pattern).parse()
  if (matchesEmpty(tree)) throw new PatternError('it matches the empty text')
  return tree
}

/** A place in the patterns: a step over one unit, an assertion, a fork, or the end of one. Numbers are places. */
type Place =
  | { kind: 'units'; ranges: Ranges; next: number }
  | { kind: 'assert'; what: '^' | '$' | 'b' | 'B'; next: number }
  | { kind: 'fork'; next: number[] }
  | { kind: 'match' }

/** What stands beside a place: the edge of the text, a word character, or another. */
const EDGE = 0
const WORD_UNIT = 1
const OTHER_UNIT = 2
type Beside = typeof EDGE | typeof WORD_UNIT | typeof OTHER_UNIT

/** Units that no pattern tells apart are one class. */
interface Alphabet {
  classOf: Uint8Array
  /** The first unit of each class. */
  firsts: readonly number[]
  beside: readonly Beside[]
}

const MAX_CLASSES = 256
const MAX_STATES = 2000

const isIn = (ranges: Ranges, unit: number) => ranges.some(([from, to]) => unit >= from && unit <= to)

function alphabetOf(trees: readonly Tree[]): Alphabet {
  const edges = new Set([0])
  const visit = (tree: Tree): void => {
    if (tree.kind === 'units') for (const [from, to] of tree.ranges) edges.add(from).add(to + 1)
    else if (tree.kind === 'repeat') visit(tree.part)
    else if (tree.kind !== 'assert') tree.parts.forEach(visit)
  }
  visit({ kind: 'units', ranges: WORD })
  trees.forEach(visit)
  const firsts = [...edges].filter((edge) => edge <= LAST_UNIT).sort((left, right) => left - right)
  if (firsts.length > MAX_CLASSES) throw new PatternError(`the patterns tell more than ${MAX_CLASSES} kinds of characters apart`)
  const classOf = new Uint8Array(LAST_UNIT + 1)
  for (const [index, first] of firsts.entries()) classOf.fill(index, first, firsts[index + 1] ?? LAST_UNIT + 1)
  return { classOf, firsts, beside: firsts.map((first) => (isIn(WORD, first) ? WORD_UNIT : OTHER_UNIT)) }
}

/** Where the patterns may be, and what stood before. What comes next, by class: undefined, it is not known yet. */
interface State {
  readonly at: readonly number[]
  readonly before: Beside
  readonly next: (State | undefined)[]
  /** A match ends before a unit of this class. */
  readonly matched: boolean[]
}

class Automaton {
  private readonly places: Place[] = [{ kind: 'match' }]
  private readonly starts: number[]
  private states = new Map<string, State>()

  /** @param options.restart a match may begin anywhere, rather than at the first unit only; options.reversed the text is read from its end */
  constructor(
    trees: readonly Tree[],
    private readonly alphabet: Alphabet,
    private readonly options: { restart: boolean; reversed: boolean },
  ) {
    this.starts = trees.map((tree) => this.build(tree, 0))
  }

  private add(place: Place): number {
    if (this.places.length >= MAX_PLACES) throw new PatternError('with their counts in {} the patterns are too large')
    return this.places.push(place) - 1
  }

  /** Built from the end: `next` is where it goes on. */
  private build(tree: Tree, next: number): number {
    switch (tree.kind) {
      case 'units':
        return this.add({ kind: 'units', ranges: tree.ranges, next })
      case 'assert':
        return this.add({ kind: 'assert', what: tree.what, next })
      case 'sequence': {
        const parts = this.options.reversed ? [...tree.parts].reverse() : tree.parts
        return parts.reduceRight((after, part) => this.build(part, after), next)
      }
      case 'either':
        return this.add({ kind: 'fork', next: tree.parts.map((part) => this.build(part, next)) })
      case 'repeat': {
        let after = next
        if (tree.max === Number.POSITIVE_INFINITY) {
          const fork: number[] = [next]
          after = this.add({ kind: 'fork', next: fork })
          fork.push(this.build(tree.part, after))
        } else for (let count = tree.min; count < tree.max; count++) after = this.add({ kind: 'fork', next: [next, this.build(tree.part, after)] })
        for (let count = 0; count < tree.min; count++) after = this.build(tree.part, after)
        return after
      }
    }
  }

  start(before: Beside): State {
    return this.stateOf(this.starts, before)
  }

  private stateOf(at: readonly number[], before: Beside): State {
    const key = `${before} ${at.join()}`
    const known = this.states.get(key)
    if (known) return known
    // Patterns and texts that need ever new states: they are forgotten, at the cost of making them anew.
    if (this.states.size >= MAX_STATES) this.states = new Map()
    const state: State = { at, before, next: new Array(this.alphabet.firsts.length).fill(undefined), matched: [] }
    this.states.set(key, state)
    return state
  }

  /** Fills in what comes after a unit of this class. */
  step(state: State, unitClass: number): State {
    const beside = this.alphabet.beside[unitClass] ?? OTHER_UNIT
    const unit = this.alphabet.firsts[unitClass] ?? 0
    const { steps, matched } = this.closure(state, beside)
    const to = new Set(this.options.restart ? this.starts : [])
    for (const { ranges, next } of steps) if (isIn(ranges, unit)) to.add(next)
    const next = this.stateOf(
      [...to].sort((left, right) => left - right),
      beside,
    )
    state.next[unitClass] = next
    state.matched[unitClass] = matched
    return next
  }

  matchedAt(state: State, after: Beside): boolean {
    return this.closure(state, after).matched
  }

  /** The units that can be stepped over, and whether a match ends here. */
  private closure({ at, before }: State, after: Beside): { steps: Extract<Place, { kind: 'units' }>[]; matched: boolean } {
    const seen = new Set<number>()
    const steps: Extract<Place, { kind: 'units' }>[] = []
    const open = [...at]
    for (let one = open.pop(); one !== undefined; one = open.pop()) {
      const place = this.places[one]
      if (!place || seen.has(one)) continue
      seen.add(one)
      if (place.kind === 'units') steps.push(place)
      else if (place.kind === 'fork') open.push(...place.next)
      else if (place.kind === 'assert' && this.holds(place.what, before, after)) open.push(place.next)
    }
    return { steps, matched: seen.has(0) }
  }

  private holds(what: '^' | '$' | 'b' | 'B', before: Beside, after: Beside): boolean {
    if (what === '^') return (this.options.reversed ? after : before) === EDGE
    if (what === '$') return (this.options.reversed ? before : after) === EDGE
    return ((before === WORD_UNIT) !== (after === WORD_UNIT)) === (what === 'b')
  }
}

export interface Matcher {
  /** There is a match. */
  test(text: string): boolean
  /** Where matches begin and end: the leftmost, and of those the longest, then the next after its end. */
  find(text: string): [number, number][]
}

/** @throws PatternError that names the pattern and says what is wrong. */
export function createMatcher(patterns: readonly string[]): Matcher {
  const trees = patterns.map((pattern) => {
    try {
      return parse(pattern)
    } catch (error) {
      throw error instanceof PatternError ? new PatternError(`'${pattern}': ${error.message}`) : error
    }
  })
  const alphabet = alphabetOf(trees)
  const { classOf, beside } = alphabet
  const anywhere = new Automaton(trees, alphabet, { restart: true, reversed: false })
  const backwards = new Automaton(trees, alphabet, { restart: true, reversed: true })
  const anchored = new Automaton(trees, alphabet, { restart: false, reversed: false })
  const classAt = (text: string, at: number) => classOf[text.charCodeAt(at)] as number
  const besideAt = (text: string, at: number): Beside => (at < 0 || at >= text.length ? EDGE : (beside[classAt(text, at)] ?? OTHER_UNIT))

  function test(text: string): boolean {
    let state = anywhere.start(EDGE)
    for (let at = 0; at < text.length; at++) {
      const unitClass = classAt(text, at)
      const next = state.next[unitClass] ?? anywhere.step(state, unitClass)
      if (state.matched[unitClass]) return true
      state = next
    }
    return anywhere.matchedAt(state, EDGE)
  }

  /** Where matches begin, the last first. */
  function beginnings(text: string): number[] {
    const found: number[] = []
    let state = backwards.start(EDGE)
    for (let at = text.length - 1; at >= 0; at--) {
      const unitClass = classAt(text, at)
      const next = state.next[unitClass] ?? backwards.step(state, unitClass)
      if (state.matched[unitClass]) found.push(at + 1)
      state = next
    }
    if (backwards.matchedAt(state, EDGE)) found.push(0)
    return found
  }

  function longestFrom(text: string, begin: number): number {
    let end = begin
    let state = anchored.start(besideAt(text, begin - 1))
    for (let at = begin; at < text.length && state.at.length > 0; at++) {
      const unitClass = classAt(text, at)
      const next = state.next[unitClass] ?? anchored.step(state, unitClass)
      if (state.matched[unitClass]) end = at
      state = next
      if (at === text.length - 1 && anchored.matchedAt(state, EDGE)) end = text.length
    }
    return end
  }

  return {
    test,
    find(text) {
      const found: [number, number][] = []
      if (!test(text)) return found
      let at = 0
      for (const begin of beginnings(text).reverse()) {
        if (begin < at) continue
        at = longestFrom(text, begin)
        found.push([begin, at])
      }
      return found
    },
  }
}
