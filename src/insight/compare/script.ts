/** An alignment as a script: what a reader who goes through both runs at once meets, one after another. */
import { type Alignment, type Digests, NONE } from './alignment.js'
import type { Counts, Op } from './answer.js'

/** @param visit gets indexes; one of them is NONE for `left_only` and `right_only`. What moved comes at its place in the left run, once. */
export function walk(
  left: Digests,
  right: Digests,
  { toRight, toLeft, movedTo, movedFrom }: Alignment,
  visit: (op: Op, left: number, right: number) => void,
): void {
  let leftIndex = 0
  let rightIndex = 0
  while (leftIndex < left.length || rightIndex < right.length) {
    if (leftIndex < left.length && toRight[leftIndex] === NONE) {
      const there = movedTo[leftIndex] ?? NONE
      visit(there === NONE ? 'left_only' : 'moved', leftIndex++, there)
    } else if (rightIndex < right.length && toLeft[rightIndex] === NONE) {
      if (movedFrom[rightIndex] === NONE) visit('right_only', NONE, rightIndex)
      rightIndex++
    } else {
      visit(left.content[leftIndex] === right.content[rightIndex] ? 'equal' : 'changed', leftIndex++, rightIndex++)
    }
  }
}

export function createCounts(): Counts {
  return { equal: 0, changed: 0, leftOnly: 0, rightOnly: 0, moved: 0 }
}

export function tally(counts: Counts, op: Op): void {
  if (op === 'left_only') counts.leftOnly++
  else if (op === 'right_only') counts.rightOnly++
  else counts[op]++
}
