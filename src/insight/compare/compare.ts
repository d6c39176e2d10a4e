/** Two runs side by side: only the sections that are asked for are computed, and only what they need is read. */
import type { Rules } from '../../domain/volatile.js'
import { align } from './alignment.js'
import { type Approximation, COMPARE_SECTIONS, type CompareSection, type Comparison, type ComparisonMatrix } from './answer.js'
import { artifactsDiff } from './artifacts.js'
import { eventTypes, firstDivergence, walkEvents } from './events.js'
import type { Gap } from './myers.js'
import type { Pauses } from './pauses.js'
import type { Columns, Side } from './side.js'
import {
  configurationDiff,
  decisionDiff,
  type Facts,
  factsOf,
  metricsDiff,
  participantsDiff,
  policyDiff,
  type StateOptions,
  signalsDiff,
  stateDiff,
  summaryOf,
} from './summary.js'
import { diffUnits } from './units.js'

export interface CompareOptions extends StateOptions {
  sections?: readonly CompareSection[] | undefined
  rules: Rules
  /** What the rules were made of. */
  ignore: readonly string[]
  /** Hunks and items that are listed, of each. */
  limit: number
  /** Field diffs of changed steps. */
  fields: boolean
  pauses: Pauses
}

export const DEFAULT_LIMIT = 1000
export const MAX_LIMIT = 10_000

/** Sections that need the columns of all events. */
const OF_EVENTS: ReadonlySet<CompareSection> = new Set(['eventTypes', 'firstDivergence', 'events', 'steps', 'artifacts'])

export async function compare(left: Side, right: Side, options: CompareOptions): Promise<Comparison> {
  const { rules, limit, pauses } = options
  const { sections = [] } = options
  const wanted = new Set(sections.length > 0 ? sections : COMPARE_SECTIONS)
  const [one, other] = await Promise.all([facts(left, options), facts(right, options)])
  const approximate = missingOf(left, right)
  const answer: Comparison = { left: one.side, right: other.side, ...summaryOf(one, other), approximate: false }
  if (wanted.has('participantsDiff')) answer.participantsDiff = participantsDiff(one, other)
  if (wanted.has('signalsDiff')) answer.signalsDiff = signalsDiff(one, other)
  if (wanted.has('metrics')) answer.metrics = metricsDiff(one, other)
  if ([...wanted].some((section) => OF_EVENTS.has(section))) await compareEvents()
  if (wanted.has('decision')) answer.decision = decisionDiff(one, other, options.ignore)
  if (wanted.has('policy')) answer.policy = policyDiff(one, other, options.ignore)
  if (wanted.has('configuration')) answer.configuration = configurationDiff(one, other, options.ignore)
  if (wanted.has('stateDiff')) answer.stateDiff = stateDiff(one, other, options.ignore)
  if (approximate.length > 0) answer.approximate = approximate
  return answer

  async function compareEvents(): Promise<void> {
    const sides = { left, right }
    const [leftColumns, rightColumns] = await Promise.all([left.columns(), right.columns()])
    const note = (what: Approximation['what'], gaps: readonly Gap[]) => {
      for (const gap of gaps)
        approximate.push({ what, left: seqs(leftColumns, gap.leftFrom, gap.leftTo), right: seqs(rightColumns, gap.rightFrom, gap.rightTo) })
    }
    if (wanted.has('eventTypes')) answer.eventTypes = eventTypes(leftColumns, rightColumns)
    if (wanted.has('artifacts')) answer.artifacts = await artifactsDiff(sides, leftColumns, rightColumns)
    if (wanted.has('firstDivergence') || wanted.has('events')) {
      const alignment = await align(leftColumns, rightColumns, pauses)
      note('events', alignment.approximate)
      const found = walkEvents(leftColumns, rightColumns, alignment, limit)
      if (wanted.has('firstDivergence')) answer.firstDivergence = await firstDivergence(sides, leftColumns, rightColumns, found, rules)
      if (wanted.has('events')) answer.events = found.diff
    }
    if (wanted.has('steps')) {
      const { steps, approximate: gaps } = await diffUnits(sides, leftColumns, rightColumns, { limit, fields: options.fields, rules, pauses })
      note('steps', gaps)
      answer.steps = steps
    }
  }
}

/** What retention has taken, or an export has left out, at the beginning and at the end, cannot be compared. */
function missingOf(left: Side, right: Side): Approximation[] {
  const range = (fromSeq: number, toSeq: number) => (fromSeq <= toSeq ? { fromSeq, toSeq } : null)
  const ends = [
    { left: range(1, left.firstSeq - 1), right: range(1, right.firstSeq - 1) },
    { left: range(left.seq + 1, left.headSeq ?? 0), right: range(right.seq + 1, right.headSeq ?? 0) },
  ]
  return ends.filter((end) => end.left ?? end.right).map((end) => ({ what: 'events', ...end }))
}

function seqs({ firstSeq }: Columns, from: number, to: number) {
  return from < to ? { fromSeq: firstSeq + from, toSeq: firstSeq + to - 1 } : null
}

async function facts(side: Side, options: StateOptions): Promise<Facts> {
  return factsOf(side, await side.state(), options)
}

/** Each run against the first, by what their states say. */
export async function compareMany([first, ...others]: readonly Side[], options: StateOptions): Promise<ComparisonMatrix> {
  if (!first) throw new TypeError('there is nothing to compare')
  const baseline = await facts(first, options)
  const runs: ComparisonMatrix['runs'] = []
  for (const side of others) {
    const other = await facts(side, options)
    runs.push({
      ...other.side,
      ...summaryOf(baseline, other),
      participantsDiff: participantsDiff(baseline, other),
      signalsDiff: signalsDiff(baseline, other),
      metrics: metricsDiff(baseline, other),
    })
  }
  return { baseline: baseline.side, runs }
}
