/**
 * Which event of the left run is which of the right one, by their digests alone.
 *
 * First by content: what both ends have in common; then contents that are there once on each side, as far as they come in the same
 * order ("patience"); then, between two of those, the longest common subsequence. What content leaves open is aligned by shape in the same
 * way: a pair of the same shape is one event that says something else. Where runs say nothing alike (each text is another), the few
 * contents that happen to be the same are no guide, and shapes alone are.
 *
 * The alignment of right and left is the mirror of that of left and right: the two are put into an order of their own first.
 */
import { type Budget, commonSubsequence, type Gap } from './myers.js'
import type { Pauses } from './pauses.js'

export interface Digests {
  readonly length: number
  readonly shape: Float64Array
  readonly content: Float64Array
}

export interface Alignment {
  /** For each event of the left run the index of its counterpart in the right one, or NONE. */
  readonly toRight: Int32Array
  readonly toLeft: Int32Array
  /** For each event without a counterpart, where the very same event is in the other run, or NONE. */
  readonly movedTo: Int32Array
  readonly movedFrom: Int32Array
  /** Where the budget bit: there, fewer events may be aligned than could be. */
  readonly approximate: readonly Gap[]
}

export const NONE = -1

/** 0.3 s of steps: two runs of 100,000 events with 8,000 differences that nothing sets apart. */
const STEPS = 100_000_000
/** Of the shorter side, how much has to be there on the other side too for contents to be a guide. */
const TRUSTED_SHARE = 0.1
/** Gaps of up to so many pairs are small: contents are always a guide. */
const SMALL = 4096
/** How often a gap is cut at unique tokens before the common subsequence is sought: it keeps hostile sequences from n² steps. */
const MAX_CUTS = 12

export async function align(left: Digests, right: Digests, pauses: Pauses): Promise<Alignment> {
  if (!isMirrored(left, right)) return alignOrdered(left, right, pauses)
  const { toRight, toLeft, movedTo, movedFrom, approximate } = await alignOrdered(right, left, pauses)
  return {
    toRight: toLeft,
    toLeft: toRight,
    movedTo: movedFrom,
    movedFrom: movedTo,
    approximate: approximate.map(({ leftFrom, leftTo, rightFrom, rightTo }) => ({
      leftFrom: rightFrom,
      leftTo: rightTo,
      rightFrom: leftFrom,
      rightTo: leftTo,
    })),
  }
}

function isMirrored(left: Digests, right: Digests): boolean {
  if (left.length !== right.length) return left.length > right.length
  for (let index = 0; index < left.length; index++) {
    const difference = (left.content[index] ?? 0) - (right.content[index] ?? 0)
    if (difference !== 0) return difference > 0
  }
  return false
}

type Pass = 'content' | 'shape'

async function alignOrdered(left: Digests, right: Digests, pauses: Pauses): Promise<Alignment> {
  const contents = intern(left.content, right.content)
  const shapes = intern(left.shape, right.shape)
  const toRight = new Int32Array(left.length).fill(NONE)
  const toLeft = new Int32Array(right.length).fill(NONE)
  const movedTo = new Int32Array(left.length).fill(NONE)
  const movedFrom = new Int32Array(right.length).fill(NONE)
  const approximate: Gap[] = []
  const budget: Budget = { steps: STEPS }
  const pair = (leftIndex: number, rightIndex: number) => {
    toRight[leftIndex] = rightIndex
    toLeft[rightIndex] = leftIndex
  }

  await cut({ leftFrom: 0, leftTo: left.length, rightFrom: 0, rightTo: right.length }, contents, 'content')
  slideTogether(contents.left, toRight, toLeft)
  slideTogether(contents.right, toLeft, toRight)
  const open = gapsOf(toRight, left.length, right.length)
  findMovedApart(open)
  for (const gap of open) await cut(gap, shapes, 'shape')
  const isChanged = (leftIndex: number, rightIndex: number) => contents.left[leftIndex] !== contents.right[rightIndex]
  placeBlocks({ shapes: shapes.left, contents: contents.left, isOnlyHere: shapes.isOnlyLeft }, toRight, toLeft, movedTo, isChanged)
  placeBlocks({ shapes: shapes.right, contents: contents.right, isOnlyHere: shapes.isOnlyRight }, toLeft, toRight, movedFrom, (rightIndex, leftIndex) =>
    isChanged(leftIndex, rightIndex),
  )
  findMoved()
  return { toRight, toLeft, movedTo, movedFrom, approximate }

  /** Aligns a gap by one kind of token. */
  async function cut(from: Gap, tokens: Tokens, pass: Pass): Promise<void> {
    const gaps: (Gap & { cuts: number })[] = [{ ...from, cuts: 0 }]
    for (let gap = gaps.pop(); gap; gap = gaps.pop()) {
      const { cuts } = gap
      const inner = trim(gap, tokens)
      if (inner.leftFrom === inner.leftTo || inner.rightFrom === inner.rightTo) continue
      if (pauses.due()) await pauses.take()
      const counts = count(inner, tokens)
      const leftLength = inner.leftTo - inner.leftFrom
      const rightLength = inner.rightTo - inner.rightFrom
      const isGuide = pass === 'shape' || leftLength * rightLength <= SMALL || counts.common >= TRUSTED_SHARE * Math.min(leftLength, rightLength)
      if (counts.common === 0 || !isGuide) {
        clear(inner, tokens)
        continue
      }
      const anchors = cuts < MAX_CUTS ? uniquePairs(inner, tokens) : []
      if (anchors.length > 0) {
        clear(inner, tokens)
        // Pushed from the end, so that they are taken, and told, from the start.
        let { leftTo, rightTo } = inner
        for (let index = anchors.length - 1; index >= 0; index--) {
          const [anchorLeft, anchorRight] = anchors[index] as [number, number]
          pair(anchorLeft, anchorRight)
          gaps.push({ leftFrom: anchorLeft + 1, leftTo, rightFrom: anchorRight + 1, rightTo, cuts: cuts + 1 })
          leftTo = anchorLeft
          rightTo = anchorRight
        }
        gaps.push({ leftFrom: inner.leftFrom, leftTo, rightFrom: inner.rightFrom, rightTo, cuts: cuts + 1 })
        continue
      }
      await longest(inner, tokens)
    }
  }

  /** Pairs what both ends of the gap have in common. @returns what is left of it. */
  function trim(gap: Gap, tokens: Tokens): Gap {
    let { leftFrom, leftTo, rightFrom, rightTo } = gap
    while (leftFrom < leftTo && rightFrom < rightTo && isPair(leftFrom, rightFrom, tokens)) pair(leftFrom++, rightFrom++)
    while (leftFrom < leftTo && rightFrom < rightTo && isPair(leftTo - 1, rightTo - 1, tokens)) pair(--leftTo, --rightTo)
    return { leftFrom, leftTo, rightFrom, rightTo }
  }

  function isPair(leftIndex: number, rightIndex: number, tokens: Tokens): boolean {
    return tokens.left[leftIndex] === tokens.right[rightIndex] && movedTo[leftIndex] === NONE && movedFrom[rightIndex] === NONE
  }

  /** Pairs the longest common subsequence of what is on both sides of the gap. Of the gap, `counts` are known. */
  async function longest(gap: Gap, tokens: Tokens): Promise<void> {
    // What is on one side only is in no common subsequence, and costs the most.
    const leftIndexes = shared(gap.leftFrom, gap.leftTo, tokens.left, tokens.rightCount, movedTo)
    const rightIndexes = shared(gap.rightFrom, gap.rightTo, tokens.right, tokens.leftCount, movedFrom)
    clear(gap, tokens)
    await commonSubsequence(
      leftIndexes.map((index) => tokens.left[index] ?? 0),
      rightIndexes.map((index) => tokens.right[index] ?? 0),
      budget,
      pauses,
      {
        onPair: (leftAt, rightAt) => pair(leftIndexes[leftAt] ?? 0, rightIndexes[rightAt] ?? 0),
        onApproximate: (box) =>
          approximate.push({
            leftFrom: leftIndexes[box.leftFrom] ?? gap.leftTo,
            leftTo: (leftIndexes[box.leftTo - 1] ?? gap.leftTo - 1) + 1,
            rightFrom: rightIndexes[box.rightFrom] ?? gap.rightTo,
            rightTo: (rightIndexes[box.rightTo - 1] ?? gap.rightTo - 1) + 1,
          }),
      },
    )
  }

  function count({ leftFrom, leftTo, rightFrom, rightTo }: Gap, tokens: Tokens): { common: number } {
    const { leftCount, rightCount, leftAt, rightAt } = tokens
    for (let index = leftFrom; index < leftTo; index++) {
      if (movedTo[index] !== NONE) continue
      const token = tokens.left[index] ?? 0
      leftCount[token] = (leftCount[token] ?? 0) + 1
      leftAt[token] = index
    }
    let common = 0
    for (let index = rightFrom; index < rightTo; index++) {
      if (movedFrom[index] !== NONE) continue
      const token = tokens.right[index] ?? 0
      const before = rightCount[token] ?? 0
      if (before < (leftCount[token] ?? 0)) common++
      rightCount[token] = before + 1
      rightAt[token] = index
    }
    return { common }
  }

  function clear({ leftFrom, leftTo, rightFrom, rightTo }: Gap, tokens: Tokens): void {
    for (let index = leftFrom; index < leftTo; index++) tokens.leftCount[tokens.left[index] ?? 0] = 0
    for (let index = rightFrom; index < rightTo; index++) tokens.rightCount[tokens.right[index] ?? 0] = 0
  }

  /** The most tokens that are on each side once and come in the same order. None, where most of them don't: then they are no guide. */
  function uniquePairs({ leftFrom, leftTo }: Gap, tokens: Tokens): [number, number][] {
    const candidates: [number, number][] = []
    for (let index = leftFrom; index < leftTo; index++) {
      const token = tokens.left[index] ?? 0
      if (tokens.leftCount[token] === 1 && tokens.rightCount[token] === 1 && tokens.leftAt[token] === index) {
        candidates.push([index, tokens.rightAt[token] ?? 0])
      }
    }
    const rising = longestRising(candidates)
    return rising.length * 2 >= candidates.length ? rising : []
  }

  /** Contents that are once in each run, but in different gaps: the event has moved, and is not another event's change. */
  function findMovedApart(gaps: readonly Gap[]): void {
    const whereLeft = new Map<number, { index: number; gap: number } | undefined>()
    gaps.forEach(({ leftFrom, leftTo }, gap) => {
      for (let index = leftFrom; index < leftTo; index++) {
        const token = contents.left[index] ?? 0
        if (contents.isUnique(token)) whereLeft.set(token, { index, gap })
      }
    })
    if (whereLeft.size === 0) return
    gaps.forEach(({ rightFrom, rightTo }, gap) => {
      for (let index = rightFrom; index < rightTo; index++) {
        const left = whereLeft.get(contents.right[index] ?? 0)
        if (left === undefined || left.gap === gap) continue
        movedTo[left.index] = index
        movedFrom[index] = left.index
      }
    })
  }

  /** What is left over on both sides and says the same: the first with the first. */
  function findMoved(): void {
    const waiting = new Map<number, number[]>()
    for (let index = 0; index < right.length; index++) {
      if (toLeft[index] !== NONE || movedFrom[index] !== NONE) continue
      const token = contents.right[index] ?? 0
      const list = waiting.get(token)
      if (list) list.push(index)
      else waiting.set(token, [index])
    }
    const taken = new Map<number, number>()
    for (let index = 0; index < left.length; index++) {
      if (toRight[index] !== NONE || movedTo[index] !== NONE) continue
      const token = contents.left[index] ?? 0
      const next = taken.get(token) ?? 0
      const there = waiting.get(token)?.[next]
      if (there === undefined) continue
      taken.set(token, next + 1)
      movedTo[index] = there
      movedFrom[there] = index
    }
  }
}

/** What lies between the pairs, where there is something on both sides. */
function gapsOf(toRight: Int32Array, leftLength: number, rightLength: number): Gap[] {
  const gaps: Gap[] = []
  let leftFrom = 0
  let rightFrom = 0
  for (let index = 0; index <= leftLength; index++) {
    const counterpart = index === leftLength ? rightLength : (toRight[index] ?? NONE)
    if (counterpart === NONE) continue
    if (leftFrom < index && rightFrom < counterpart) gaps.push({ leftFrom, leftTo: index, rightFrom, rightTo: counterpart })
    leftFrom = index + 1
    rightFrom = counterpart + 1
  }
  return gaps
}

/** However far like events go on: beyond, the place of one of them means little. */
const MAX_SLIDE = 64

/**
 * Of several like events in a row, which one has no counterpart is a choice (`a a` and `a b a`). This goes through the events without one,
 * block by block, and moves a block [from, to) over equal tokens, by what `choose` says: below 0 towards the start.
 */
function slide(
  tokens: Int32Array,
  toOther: Int32Array,
  toThis: Int32Array,
  choose: (up: number, down: number, from: number, to: number) => number,
  mayMove: (giver: number, taker: number, other: number) => boolean = () => true,
): void {
  const { length } = toOther
  for (let from = 0; from < length; from++) {
    if (toOther[from] !== NONE) continue
    let to = from + 1
    while (to < length && toOther[to] === NONE) to++
    let up = 0
    while (up < MAX_SLIDE && isFree(from - up - 1, to - up - 1)) up++
    let down = 0
    while (down < MAX_SLIDE && isFree(to + down, from + down)) down++
    const by = choose(up, down, from, to)
    for (let step = 1; step <= -by; step++) pass(from - step, to - step)
    for (let step = 0; step < by; step++) pass(to + step, from + step)
    from = Math.max(to, to + by)
  }

  function isFree(giver: number, taker: number): boolean {
    const other = toOther[giver] ?? NONE
    return other !== NONE && tokens[giver] === tokens[taker] && mayMove(giver, taker, other)
  }

  function pass(giver: number, taker: number): void {
    const other = toOther[giver] ?? NONE
    toOther[giver] = NONE
    toOther[taker] = other
    toThis[other] = taker
  }
}

/** Moves what one side lacks next to what the other lacks, within reach: one event that has changed is then not two that came and went. */
function slideTogether(tokens: Int32Array, toOther: Int32Array, toThis: Int32Array): void {
  /** NaN where there is none, so that nothing is more than it. */
  const counterpart = (index: number) => {
    if (index < 0) return -1
    const other = index < toOther.length ? (toOther[index] ?? NONE) : toThis.length
    return other === NONE ? Number.NaN : other
  }
  slide(tokens, toOther, toThis, (up, down, from, to) => {
    // Whether the other side has something without a counterpart where the block would then be.
    if (counterpart(to) - counterpart(from - 1) > 1) return 0
    for (let by = 1; by <= up; by++) if (counterpart(from - by) - counterpart(from - by - 1) > 1) return -by
    for (let by = 1; by <= down; by++) if (counterpart(to + by) - counterpart(to + by - 1) > 1) return by
    return 0
  })
}

interface Placing {
  shapes: Int32Array
  contents: Int32Array
  /** The other side has no event of this shape. */
  isOnlyHere(shape: number): boolean
}

/**
 * Which of several like events is missing: a block begins with what there is on this side only, where it has that. A step that was put in is then
 * its start and what follows it, rather than the end of the step before and its start. Where nothing tells, it is the middle one: the others are
 * then off by the least.
 */
function placeBlocks(
  { shapes, contents, isOnlyHere }: Placing,
  toOther: Int32Array,
  toThis: Int32Array,
  moved: Int32Array,
  isChanged: (index: number, other: number) => boolean,
): void {
  // What has moved has its place.
  const hasPlace = (from: number, to: number) => moved.subarray(from, to).some((there) => there !== NONE)
  const begins = (index: number) => isOnlyHere(shapes[index] ?? 0)
  const toItsStart = (up: number, down: number, from: number, to: number) => {
    if (hasPlace(from, to)) return 0
    for (let by = 0; by <= Math.max(up, down); by++) {
      if (by <= down && begins(from + by)) return by
      if (by <= up && begins(from - by)) return -by
    }
    return 0
  }
  slide(shapes, toOther, toThis, toItsStart, (giver, taker, other) => isChanged(giver, other) || contents[giver] === contents[taker])
  const toTheMiddle = (up: number, down: number, from: number, to: number) => (hasPlace(from, to) || begins(from) ? 0 : Math.trunc((down - up) / 2))
  slide(shapes, toOther, toThis, toTheMiddle, (giver, _, other) => isChanged(giver, other))
}

/** Indexes of events whose token is on the other side too. */
function shared(from: number, to: number, tokens: Int32Array, others: Int32Array, moved: Int32Array): Int32Array {
  const indexes = new Int32Array(to - from)
  let length = 0
  for (let index = from; index < to; index++) if ((others[tokens[index] ?? 0] ?? 0) > 0 && moved[index] === NONE) indexes[length++] = index
  return indexes.subarray(0, length)
}

/** The longest subsequence whose second members rise; the first ones do. */
function longestRising(pairs: readonly [number, number][]): [number, number][] {
  const lasts: number[] = []
  const before = new Int32Array(pairs.length)
  pairs.forEach(([, value], index) => {
    let low = 0
    let high = lasts.length
    while (low < high) {
      const middle = (low + high) >> 1
      if ((pairs[lasts[middle] ?? 0]?.[1] ?? 0) < value) low = middle + 1
      else high = middle
    }
    before[index] = low === 0 ? NONE : (lasts[low - 1] ?? NONE)
    lasts[low] = index
  })
  const rising: [number, number][] = []
  for (let index = lasts.at(-1) ?? NONE; index !== NONE; index = before[index] ?? NONE) rising.push(pairs[index] as [number, number])
  return rising.reverse()
}

interface Tokens {
  readonly left: Int32Array
  readonly right: Int32Array
  /** How often, and where last, each token is in the gap that is looked at. */
  readonly leftCount: Int32Array
  readonly rightCount: Int32Array
  readonly leftAt: Int32Array
  readonly rightAt: Int32Array
  /** Once in each of the two runs. */
  isUnique(token: number): boolean
  isOnlyLeft(token: number): boolean
  isOnlyRight(token: number): boolean
}

/** Digests as small numbers, equal ones the same: then what is counted of each is an array. */
function intern(left: Float64Array, right: Float64Array): Tokens {
  let slots = 16
  while (slots < 2 * (left.length + right.length)) slots *= 2
  const digests = new Float64Array(slots).fill(Number.NaN)
  const numbers = new Int32Array(slots)
  let size = 0
  const number = (digest: number) => {
    let slot = (digest % 4294967291) & (slots - 1)
    while (digests[slot] !== digest) {
      if (Number.isNaN(digests[slot] ?? 0)) {
        digests[slot] = digest
        numbers[slot] = size++
        break
      }
      slot = (slot + 1) & (slots - 1)
    }
    return numbers[slot] ?? 0
  }
  const leftTokens = Int32Array.from(left, number)
  const rightTokens = Int32Array.from(right, number)
  const inLeft = new Int32Array(size)
  const inRight = new Int32Array(size)
  for (const token of leftTokens) inLeft[token] = (inLeft[token] ?? 0) + 1
  for (const token of rightTokens) inRight[token] = (inRight[token] ?? 0) + 1
  return {
    left: leftTokens,
    right: rightTokens,
    leftCount: new Int32Array(size),
    rightCount: new Int32Array(size),
    leftAt: new Int32Array(size),
    rightAt: new Int32Array(size),
    isUnique: (token) => inLeft[token] === 1 && inRight[token] === 1,
    isOnlyLeft: (token) => inRight[token] === 0,
    isOnlyRight: (token) => inLeft[token] === 0,
  }
}
