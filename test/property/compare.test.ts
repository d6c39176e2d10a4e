/** What holds for any two runs: the same runs do not differ, right and left mirror left and right, and a patch leads from one state to the other. */
import fc from 'fast-check'
import { applyPatch } from 'rfc6902'
import t from 'tap'
import type { CanonicalEvent } from '../../src/domain/canonical-event.js'
import { createRules } from '../../src/domain/volatile.js'
import { type Alignment, align, type Digests, NONE } from '../../src/insight/compare/alignment.js'
import type { Comparison, Counts, Divergence } from '../../src/insight/compare/answer.js'
import { compare, DEFAULT_LIMIT } from '../../src/insight/compare/compare.js'
import { openEventsSide } from '../../src/insight/compare/events-side.js'
import { createPauses } from '../../src/insight/compare/pauses.js'
import { comparedState } from '../../src/insight/compare/summary.js'
import { createPrices } from '../../src/insight/prices.js'
import { viewState } from '../../src/projections/fold.js'
import { arbitraryEvents } from '../support/arbitrary-events.js'

const prices = createPrices()
const rules = createRules([])

async function sideOf(events: readonly CanonicalEvent[], runId = 'run-1') {
  return openEventsSide({ runId, kind: 'bundle', name: runId, events: () => events }, 100_000, rules, createPauses())
}

async function compared(left: readonly CanonicalEvent[], right: readonly CanonicalEvent[]): Promise<Comparison> {
  return compare(await sideOf(left), await sideOf(right), { prices, rules, ignore: [], limit: DEFAULT_LIMIT, fields: true, pauses: createPauses() })
}

/** Few shapes and contents, so that there is something to align; a content has one shape. */
const digests = (contents: number): fc.Arbitrary<Digests> =>
  fc.array(fc.nat(contents), { maxLength: 40, size: 'max' }).map((list) => ({
    length: list.length,
    shape: Float64Array.from(list, (content) => content % 3),
    content: Float64Array.from(list),
  }))

const anyDigests = fc.oneof(...[0, 1, 4, 30, 1000].map(digests))

/** @throws where it is no alignment of the two. */
function assertSound(left: Digests, right: Digests, { toRight, toLeft, movedTo, movedFrom }: Alignment): void {
  let last = NONE
  toRight.forEach((there, index) => {
    if (there === NONE) return
    if (there <= last) throw new Error('pairs cross')
    last = there
    if (toLeft[there] !== index) throw new Error('a pair is not mutual')
    if (left.shape[index] !== right.shape[there]) throw new Error('a pair is of two shapes')
    if (movedTo[index] !== NONE || movedFrom[there] !== NONE) throw new Error('what has a counterpart has not moved')
  })
  if (toLeft.filter((there) => there !== NONE).length !== toRight.filter((there) => there !== NONE).length) throw new Error('the sides tell of different pairs')
  movedTo.forEach((there, index) => {
    if (there === NONE) return
    if (movedFrom[there] !== index || toLeft[there] !== NONE) throw new Error('a move is not mutual')
    if (left.content[index] !== right.content[there]) throw new Error('what has moved has changed')
  })
}

t.test('an alignment pairs events of one shape in order, and is the mirror of that the other way round', async () => {
  await fc.assert(
    fc.asyncProperty(anyDigests, anyDigests, async (left, right) => {
      const one = await align(left, right, createPauses())
      const other = await align(right, left, createPauses())
      assertSound(left, right, one)
      for (const [name, mirrored] of [
        ['toRight', 'toLeft'],
        ['toLeft', 'toRight'],
        ['movedTo', 'movedFrom'],
        ['movedFrom', 'movedTo'],
      ] as const) {
        if (one[name].join() !== other[mirrored].join()) throw new Error(`${name}: ${one[name]} and ${other[mirrored]}`)
      }
    }),
    { numRuns: 2000 },
  )
})

t.test('with an edit at one place everything else is aligned', async () => {
  const edit = fc.record({ at: fc.nat(39), removed: fc.nat(3), added: fc.array(fc.integer({ min: 5000, max: 6000 }), { maxLength: 3 }) })
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(4000), { minLength: 1, maxLength: 40, size: 'max' }), edit, async (list, { at, removed, added }) => {
      const from = Math.min(at, list.length)
      const edited = [...list.slice(0, from), ...added, ...list.slice(from + removed)]
      const digestsOf = (contents: readonly number[]): Digests => ({
        length: contents.length,
        shape: Float64Array.from(contents, (content) => content % 3),
        content: Float64Array.from(contents),
      })
      const { toRight } = await align(digestsOf(list), digestsOf(edited), createPauses())
      const equal = toRight.filter((there, index) => there !== NONE && list[index] === edited[there]).length
      const kept = list.length - list.slice(from, from + removed).length
      if (equal < kept) throw new Error(`${equal} of ${kept} events are found again`)
    }),
    { numRuns: 1000 },
  )
})

const zero = ({ changed, leftOnly, rightOnly, moved }: Counts) => changed + leftOnly + rightOnly + moved === 0

t.test('a run does not differ from itself, nor from one with other ids, times and hosts', async () => {
  await fc.assert(
    fc.asyncProperty(arbitraryEvents({ maxLength: 40 }), async (events) => {
      const others = events.map((event) => ({ ...event, ts: new Date(Date.parse(event.ts) + 5).toISOString(), receivedAt: '2026-02-02T02:02:02Z' }))
      for (const right of [events, others]) {
        const {
          events: diff,
          steps,
          firstDivergence,
          eventTypes,
          stateDiff,
          artifacts,
          decision,
          policy,
          configuration,
          ...rest
        } = await compared(events, right)
        if (!diff || !steps || !zero(diff) || !zero(steps) || diff.hunks.length > 0) throw new Error(JSON.stringify({ diff, steps }))
        if (Object.keys(firstDivergence ?? {}).length > 0) throw new Error(JSON.stringify(firstDivergence))
        if (eventTypes?.some(({ delta }) => delta !== 0)) throw new Error(JSON.stringify(eventTypes))
        if (stateDiff?.length !== 0) throw new Error(JSON.stringify(stateDiff).slice(0, 2000))
        if (artifacts && artifacts.added.length + artifacts.removed.length + artifacts.changed.length > 0) throw new Error(JSON.stringify(artifacts))
        for (const part of [decision, policy, configuration]) if (!part?.same || part.fields.length > 0) throw new Error(JSON.stringify(part))
        if (!rest.statusMatch || rest.approximate !== false) throw new Error(JSON.stringify(rest))
      }
    }),
    { numRuns: 60 },
  )
})

t.test('compare(A, B) mirrors compare(B, A)', async () => {
  const swappedOp: Record<string, string> = { left_only: 'right_only', right_only: 'left_only' }
  const swap = ({ op, left, right, ...rest }: { op: string; left?: unknown; right?: unknown }) =>
    JSON.stringify({ op: swappedOp[op] ?? op, left: right, right: left, ...rest })
  await fc.assert(
    fc.asyncProperty(arbitraryEvents({ maxLength: 30 }), arbitraryEvents({ maxLength: 30 }), fc.nat(30), fc.nat(30), async (some, more, cut, to) => {
      // Runs that have something in common, and one of whose events has moved.
      const left = renumbered(some)
      const edited = [...some.slice(0, cut), ...more, ...some.slice(cut + 2)]
      const right = renumbered(edited.toSpliced(to, 0, ...edited.splice(0, 1)))
      const one = await compared(left, right)
      const other = await compared(right, left)
      const counts = ({ equal, changed, leftOnly, rightOnly, moved }: Counts) => [equal, changed, leftOnly, rightOnly, moved].join()
      const mirrored = ({ equal, changed, leftOnly, rightOnly, moved }: Counts) => [equal, changed, rightOnly, leftOnly, moved].join()
      for (const section of ['events', 'steps'] as const) {
        const [here, there] = [one[section], other[section]]
        if (!here || !there || counts(here) !== mirrored(there)) throw new Error(`${section}: ${JSON.stringify([here, there]).slice(0, 2000)}`)
      }
      // What moved, and what stands between, is told in the order of the left run: compared event by event.
      if (spread(one, (hunk) => JSON.stringify(hunk)) !== spread(other, swap)) throw new Error(JSON.stringify([one.events, other.events]))
      if (one.participantsDiff?.added.slice().sort().join() !== other.participantsDiff?.removed.slice().sort().join()) throw new Error('participants')
      if (one.participantsDiff?.common.join() !== other.participantsDiff?.common.join()) throw new Error('common participants')
      for (const [name, { delta }] of Object.entries(one.metrics ?? {})) {
        const back = other.metrics?.[name]?.delta
        if (delta === null ? back !== null : delta + (back ?? 0) !== 0) throw new Error(`${name}: ${delta} and ${back}`)
      }
      if (one.statusMatch !== other.statusMatch) throw new Error('status')
      if (one.firstDivergence?.content?.leftSeq !== other.firstDivergence?.content?.rightSeq) throw new Error('first divergence of content')
      const place = (shape: Divergence | undefined, from: 'leftSeq' | 'rightSeq', to: 'leftSeq' | 'rightSeq') => shape && [shape[from], shape[to]].join()
      const [here, there] = [one.firstDivergence?.shape, other.firstDivergence?.shape]
      if (place(here, 'leftSeq', 'rightSeq') !== place(there, 'rightSeq', 'leftSeq'))
        throw new Error(`first divergence of shape: ${JSON.stringify([here, there])}`)
      const artifacts = [one.artifacts?.added.length, one.artifacts?.removed.length, one.artifacts?.changed.length].join()
      if (artifacts !== [other.artifacts?.removed.length, other.artifacts?.added.length, other.artifacts?.changed.length].join()) throw new Error(artifacts)
    }),
    { numRuns: 80 },
  )
})

/** Hunks as single events, sorted. */
function spread({ events }: Comparison, show: (hunk: { op: string; left?: unknown; right?: unknown }) => string): string {
  return (events?.hunks ?? [])
    .flatMap(({ op, count, left, right }) =>
      Array.from({ length: count }, (_, at) => show({ op, left: left ? left.fromSeq + at : null, right: right ? right.fromSeq + at : null })),
    )
    .sort()
    .join('\n')
}

function renumbered(events: readonly CanonicalEvent[]): CanonicalEvent[] {
  return events.map((event, index) => ({ ...event, seq: index + 1 }))
}

t.test('the patch of the states leads from the left one to the right one', async () => {
  await fc.assert(
    fc.asyncProperty(arbitraryEvents({ maxLength: 40 }), arbitraryEvents({ maxLength: 40 }), async (left, right) => {
      const stateRules = createRules(['/**/seq', '/**/uri', '/**/stateSeq'])
      const [one, other] = await Promise.all([left, right].map(async (events) => comparedState(viewState(await (await sideOf(events)).state()), stateRules)))
      // The library that applies the patch here drops such a member.
      fc.pre(!JSON.stringify([one, other]).includes('"__proto__"'))
      const { stateDiff } = await compared(left, right)
      const patched = JSON.parse(JSON.stringify(one))
      const faults = applyPatch(patched, JSON.parse(JSON.stringify(stateDiff))).filter((fault) => fault !== null)
      if (faults.length > 0) throw new Error(String(faults[0]))
      if (JSON.stringify(sorted(patched)) !== JSON.stringify(sorted(JSON.parse(JSON.stringify(other)))))
        throw new Error(JSON.stringify(stateDiff).slice(0, 2000))
    }),
    { numRuns: 60 },
  )
})

/** The order of members means nothing. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value)
      .sort(([one], [other]) => (one < other ? -1 : 1))
      .map(([name, member]) => [name, sorted(member)]),
  )
}
