/**
 * The longest common subsequence of two sequences of tokens, after Myers, "An O(ND) Difference Algorithm and Its Variations" (1986),
 * in linear space: a search from both ends finds a point on a shortest path, and the two parts are solved by themselves.
 *
 * Sequences that have little in common would take the product of their lengths. So there is a budget of steps: a search that
 * has used its share of it takes the farthest point that it has reached, and the result is no longer sure to be the longest.
 * The budget counts steps, not time: the same sequences always give the same result.
 */
import type { Pauses } from './pauses.js'

/** Half open: `leftTo` and `rightTo` are past the end. */
export interface Gap {
  leftFrom: number
  leftTo: number
  rightFrom: number
  rightTo: number
}

/** Steps that a comparison may take; a step takes some 3 ns. */
export interface Budget {
  steps: number
}

/** However little is left: with fewer, a search could pass over an edit of some lines. */
const LEAST_COST = 64

interface Box extends Gap {
  /** A search that gave up led here: it has been reported. */
  isApproximate: boolean
}

export interface CommonSubsequence {
  /** Calls back for each pair, in no order. */
  onPair(left: number, right: number): void
  /** Within this gap the longest may have been missed. */
  onApproximate(gap: Gap): void
}

export async function commonSubsequence(left: Int32Array, right: Int32Array, budget: Budget, pauses: Pauses, on: CommonSubsequence): Promise<void> {
  // Diagonals are numbered from -right.length - 1 to left.length + 1.
  const offset = right.length + 1
  const forward = new Int32Array(left.length + right.length + 3)
  const backward = new Int32Array(left.length + right.length + 3)
  const boxes: Box[] = [{ leftFrom: 0, leftTo: left.length, rightFrom: 0, rightTo: right.length, isApproximate: false }]

  for (let box = boxes.pop(); box; box = boxes.pop()) {
    let { leftFrom, leftTo, rightFrom, rightTo } = box
    while (leftFrom < leftTo && rightFrom < rightTo && left[leftFrom] === right[rightFrom]) on.onPair(leftFrom++, rightFrom++)
    while (leftFrom < leftTo && rightFrom < rightTo && left[leftTo - 1] === right[rightTo - 1]) on.onPair(--leftTo, --rightTo)
    if (leftFrom === leftTo || rightFrom === rightTo) continue
    if (pauses.due()) await pauses.take()
    const gap = { leftFrom, leftTo, rightFrom, rightTo }
    const split = await search(gap)
    const isApproximate = box.isApproximate || split.gaveUp
    if (split.gaveUp && !box.isApproximate) on.onApproximate(gap)
    boxes.push({ leftFrom: split.left, leftTo, rightFrom: split.right, rightTo, isApproximate })
    boxes.push({ leftFrom, leftTo: split.left, rightFrom, rightTo: split.right, isApproximate })
  }

  /** A point within the gap (and not both of its ends at once) that a shortest path goes through. */
  async function search({ leftFrom, leftTo, rightFrom, rightTo }: Gap): Promise<{ left: number; right: number; gaveUp: boolean }> {
    const maxCost = Math.max(LEAST_COST, Math.floor(Math.sqrt(Math.max(0, budget.steps) / 2)))
    const lowest = leftFrom - rightTo
    const highest = leftTo - rightFrom
    const start = leftFrom - rightFrom
    const end = leftTo - rightTo
    const isOdd = ((start - end) & 1) !== 0
    let forwardMin = start
    let forwardMax = start
    let backwardMin = end
    let backwardMax = end
    forward[start + offset] = leftFrom
    backward[end + offset] = leftTo

    for (let cost = 1; ; cost++) {
      if (forwardMin > lowest) forward[--forwardMin - 1 + offset] = -1
      else forwardMin++
      if (forwardMax < highest) forward[++forwardMax + 1 + offset] = -1
      else forwardMax--
      for (let diagonal = forwardMax; diagonal >= forwardMin; diagonal -= 2) {
        const below = at(forward, diagonal - 1)
        const above = at(forward, diagonal + 1)
        let x = below < above ? above : below + 1
        let y = x - diagonal
        while (x < leftTo && y < rightTo && left[x] === right[y]) {
          x++
          y++
        }
        forward[diagonal + offset] = x
        if (isOdd && backwardMin <= diagonal && diagonal <= backwardMax && at(backward, diagonal) <= x) return spend(cost, x, y, false)
      }

      if (backwardMin > lowest) backward[--backwardMin - 1 + offset] = MAX
      else backwardMin++
      if (backwardMax < highest) backward[++backwardMax + 1 + offset] = MAX
      else backwardMax--
      for (let diagonal = backwardMax; diagonal >= backwardMin; diagonal -= 2) {
        const below = at(backward, diagonal - 1)
        const above = at(backward, diagonal + 1)
        let x = below < above ? below : above - 1
        let y = x - diagonal
        while (leftFrom < x && rightFrom < y && left[x - 1] === right[y - 1]) {
          x--
          y--
        }
        backward[diagonal + offset] = x
        if (!isOdd && forwardMin <= diagonal && diagonal <= forwardMax && x <= at(forward, diagonal)) return spend(cost, x, y, false)
      }

      if (cost >= maxCost) return giveUp(cost)
      if (pauses.due()) await pauses.take()
    }

    function at(ends: Int32Array, diagonal: number): number {
      return ends[diagonal + offset] ?? 0
    }

    function spend(cost: number, x: number, y: number, gaveUp: boolean) {
      budget.steps -= cost * cost * 2
      return { left: x, right: y, gaveUp }
    }

    /** The farthest point that was reached, from the end that went farther. */
    function giveUp(cost: number) {
      let best = { sum: -1, x: leftFrom, y: rightFrom }
      for (let diagonal = forwardMax; diagonal >= forwardMin; diagonal -= 2) {
        let x = Math.min(at(forward, diagonal), leftTo)
        let y = x - diagonal
        if (y > rightTo) {
          y = rightTo
          x = y + diagonal
        }
        if (x + y > best.sum) best = { sum: x + y, x, y }
      }
      let least = { sum: MAX, x: leftTo, y: rightTo }
      for (let diagonal = backwardMax; diagonal >= backwardMin; diagonal -= 2) {
        let x = Math.max(at(backward, diagonal), leftFrom)
        let y = x - diagonal
        if (y < rightFrom) {
          y = rightFrom
          x = y + diagonal
        }
        if (x + y < least.sum) least = { sum: x + y, x, y }
      }
      const { x, y } = best.sum - leftFrom - rightFrom > leftTo + rightTo - least.sum ? best : least
      return spend(cost, x, y, true)
    }
  }
}

const MAX = 0x7fffffff
