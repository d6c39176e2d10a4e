/**
 * Finds what matches any of several patterns, in time linear in the text whatever the patterns and the text: a backtracking
 * matcher takes 18 s for `[a-z]+@[a-z]+` and 256 KiB of letters, and what agents send is not ours to choose.
 *
 * All patterns become one automaton, whose states are sets of places in the patterns and are made as texts need them (a lazy DFA): a text
 * without a match, which nearly all are, costs one look-up a character (6 ns). Where there is a match, a pass from the end finds where
 * matches begin, and one from each beginning where the longest ends.
 */
import { LAST_UNIT, PatternError, parsePattern, type Ranges, type Tree, WORD } from './mask-pattern.js'

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
/** What the counts in {} may come to. */
const MAX_PLACES = 20_000

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
      return parsePattern(pattern)
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
