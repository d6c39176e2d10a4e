/** The events of both runs side by side: how many differ and how, where, and where they first part. */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import type { Rules } from '../../domain/volatile.js'
import { type Alignment, NONE } from './alignment.js'
import type { ContentDivergence, Divergence, EventsDiff, FirstDivergence, Hunk, Op, SeqRange, TypeDelta } from './answer.js'
import { eventDiff } from './fields.js'
import { createCounts, tally, walk } from './script.js'
import { type Columns, type Side, typeAt } from './side.js'

/** Indexes of events: of a pair, or of what stands on each side where the runs part. */
interface Place {
  left: number
  right: number
}

interface Parting extends Place {
  /** The same event, elsewhere: `left` and `right` say where. */
  isMoved: boolean
  /** Whether it is the left run that has the event which is not there in the other. */
  isOfLeft: boolean
}

export interface EventsWalk {
  diff: EventsDiff
  shape: Parting | undefined
  content: Place | undefined
}

export function walkEvents(left: Columns, right: Columns, alignment: Alignment, limit: number): EventsWalk {
  const diff: EventsDiff = { ...createCounts(), hunks: [], moreHunks: 0 }
  let content: Place | undefined
  let last: { op: Op; left: number; right: number; hunk: Hunk | undefined } | undefined
  walk(left, right, alignment, (op, leftIndex, rightIndex) => {
    tally(diff, op)
    if (op === 'changed') content ??= { left: leftIndex, right: rightIndex }
    if (op === 'equal') {
      last = undefined
      return
    }
    const goesOn = last?.op === op && follows(last.left, leftIndex) && follows(last.right, rightIndex)
    if (last && goesOn) {
      const { hunk } = last
      if (hunk) {
        hunk.count++
        if (hunk.left) hunk.left.toSeq++
        if (hunk.right) hunk.right.toSeq++
      }
      last.left = leftIndex
      last.right = rightIndex
      return
    }
    const hunk: Hunk = {
      op,
      count: 1,
      ...(leftIndex !== NONE && { left: range(left, leftIndex) }),
      ...(rightIndex !== NONE && { right: range(right, rightIndex) }),
    }
    const isShown = diff.hunks.length < limit
    if (isShown) diff.hunks.push(hunk)
    else diff.moreHunks++
    last = { op, left: leftIndex, right: rightIndex, hunk: isShown ? hunk : undefined }
  })
  return { diff, shape: partingOf(left, right, alignment), content }
}

/** Where the runs first part: the same place whichever of them is the left one. Up to there each event has its counterpart at its own index. */
function partingOf(left: Columns, right: Columns, { toRight, toLeft, movedTo, movedFrom }: Alignment): Parting | undefined {
  let at = 0
  while (at < left.length && toRight[at] === at) at++
  const isLeftFree = at < left.length && toRight[at] === NONE
  const isRightFree = at < right.length && toLeft[at] === NONE
  if (!isLeftFree && !isRightFree) return undefined
  const here = { left: at, right: at, isMoved: false, isOfLeft: isLeftFree }
  // Both sides have something else there, and that is more than that one of it is also elsewhere.
  if (isLeftFree && isRightFree) return here
  const there = (isLeftFree ? movedTo[at] : movedFrom[at]) ?? NONE
  if (there === NONE) return here
  return { ...here, ...(isLeftFree ? { right: there } : { left: there }), isMoved: true }
}

const follows = (before: number, index: number) => (before === NONE ? index === NONE : index === before + 1)

function range({ firstSeq }: Columns, index: number): SeqRange {
  return { fromSeq: firstSeq + index, toSeq: firstSeq + index }
}

interface Pair {
  left: Side
  right: Side
}

export async function firstDivergence(sides: Pair, left: Columns, right: Columns, found: EventsWalk, rules: Rules): Promise<FirstDivergence> {
  const { shape, content } = found
  return {
    ...(shape && { shape: await shapeDivergence(sides, left, right, shape) }),
    ...(content && { content: await contentDivergence(sides, left, right, content, rules) }),
  }
}

async function shapeDivergence(sides: Pair, left: Columns, right: Columns, place: Parting): Promise<Divergence> {
  const [one, other] = await Promise.all([eventAt(sides.left, left, place.left), eventAt(sides.right, right, place.right)])
  const [here, there] = [one && described(one), other && described(other)]
  let why: string
  const ends = (name: 'left' | 'right') => (hasMore(sides[name]) ? `What there is of the ${name} run ends` : `The ${name} run ends`)
  if (place.isMoved) why = `${here} is in both runs, at another place.`
  else if (place.isOfLeft) why = there === null ? `${ends('right')} before ${here}.` : `The left run has ${here}; in the right run ${there} comes there.`
  else why = here === null ? `${ends('left')} before ${there}.` : `The right run has ${there}; in the left run ${here} comes there.`
  return { leftSeq: one?.seq ?? null, rightSeq: other?.seq ?? null, left: one, right: other, why }
}

/** In the run, but not in what is compared. */
const hasMore = ({ seq, headSeq = 0 }: Side) => headSeq > seq

async function contentDivergence(sides: Pair, left: Columns, right: Columns, place: Place, rules: Rules): Promise<ContentDivergence> {
  const [one, other] = await Promise.all([eventAt(sides.left, left, place.left), eventAt(sides.right, right, place.right)])
  const { fields, more } = one && other ? eventDiff(one, other, rules) : { fields: [], more: 0 }
  const [first] = fields
  const others = fields.length + more - 1
  const why =
    first === undefined
      ? `${one ? described(one) : 'An event'} says something else.`
      : `${one ? described(one) : 'An event'} differs in ${first.path}${others > 0 ? ` and ${others} more ${others === 1 ? 'field' : 'fields'}` : ''}.`
  return { leftSeq: one?.seq ?? null, rightSeq: other?.seq ?? null, left: one, right: other, why, fields, moreFields: more }
}

async function eventAt(side: Side, { firstSeq, length }: Columns, index: number): Promise<CanonicalEvent | null> {
  if (index >= length) return null
  const seq = firstSeq + index
  return (await side.events([seq])).get(seq) ?? null
}

const MAX_NAME = 80

/** What an event is for a person: its type and the name of what it is about. */
export function described({ type, subject, data }: CanonicalEvent): string {
  const said: Readonly<Record<string, unknown>> = data
  const name = [said.name, said.messageType, said.label].find((candidate) => typeof candidate === 'string' && candidate !== '')
  if (typeof name === 'string') return `${type} '${name.slice(0, MAX_NAME)}'`
  return subject.kind === 'run' ? type : `${type} of ${subject.kind} '${subject.id.slice(0, MAX_NAME)}'`
}

/** How often each type is in each run; the types that differ the most first. */
export function eventTypes(left: Columns, right: Columns): TypeDelta[] {
  const counts = new Map<string, TypeDelta>()
  for (const [side, columns] of [
    ['left', left],
    ['right', right],
  ] as const) {
    for (let index = 0; index < columns.length; index++) {
      const type = typeAt(columns, index)
      const entry = counts.get(type) ?? { type, left: 0, right: 0, delta: 0 }
      entry[side]++
      counts.set(type, entry)
    }
  }
  for (const entry of counts.values()) entry.delta = entry.right - entry.left
  return [...counts.values()].sort((one, other) => Math.abs(other.delta) - Math.abs(one.delta) || (one.type < other.type ? -1 : 1))
}
