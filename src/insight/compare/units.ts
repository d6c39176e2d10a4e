/**
 * Steps, calls of tools and calls of models: each is several events about one subject, from its start to its end. They are aligned as
 * events are, by digests that are put together from those of their events, so that no payload is read but of those that are shown.
 */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import type { Rules } from '../../domain/volatile.js'
import { align, type Digests, NONE } from './alignment.js'
import type { Op, StepsDiff, UnitDiff, UnitKind, UnitSide } from './answer.js'
import { eventDiff } from './fields.js'
import type { Pauses } from './pauses.js'
import { createCounts, tally, walk } from './script.js'
import { type Columns, chunks, type Side } from './side.js'

interface Unit {
  kind: UnitKind
  first: number
  last: number
  end: number
  status: UnitSide['status']
  events: number
  shape: number
  one: number
  two: number
}

interface Role {
  kind: UnitKind
  part: 'start' | 'within' | 'end'
  status: UnitSide['status']
}

const ROLES: Readonly<Record<string, Role>> = {
  'step.started': { kind: 'step', part: 'start', status: 'running' },
  'step.output': { kind: 'step', part: 'within', status: 'running' },
  'step.completed': { kind: 'step', part: 'end', status: 'completed' },
  'step.failed': { kind: 'step', part: 'end', status: 'failed' },
  'step.skipped': { kind: 'step', part: 'end', status: 'skipped' },
  'tool.called': { kind: 'tool', part: 'start', status: 'running' },
  'tool.output': { kind: 'tool', part: 'within', status: 'running' },
  'tool.completed': { kind: 'tool', part: 'end', status: 'completed' },
  'tool.failed': { kind: 'tool', part: 'end', status: 'failed' },
  'llm.call.started': { kind: 'llm_call', part: 'start', status: 'running' },
  'llm.call.completed': { kind: 'llm_call', part: 'end', status: 'completed' },
  'llm.call.failed': { kind: 'llm_call', part: 'end', status: 'failed' },
}

/** The steps and calls of a run, in the order of their first events. An id that is started again is another one. */
function unitsOf(columns: Columns): Unit[] {
  const roles = columns.types.map((type) => (Object.hasOwn(ROLES, type) ? ROLES[type] : undefined))
  const units: Unit[] = []
  const open: Record<UnitKind, Map<number, Unit>> = { step: new Map(), tool: new Map(), llm_call: new Map() }
  for (let index = 0; index < columns.length; index++) {
    const role = roles[columns.type[index] ?? 0]
    if (role === undefined) continue
    const subject = columns.subject[index] ?? 0
    let unit = open[role.kind].get(subject)
    if (unit === undefined || role.part === 'start' || (role.part === 'end' && unit.end !== NONE)) {
      const shape = columns.shape[index] ?? 0
      unit = { kind: role.kind, first: index, last: index, end: NONE, status: 'running', events: 0, shape, one: 1, two: 2 }
      units.push(unit)
      open[role.kind].set(subject, unit)
    }
    unit.last = index
    unit.events++
    mix(unit, columns.content[index] ?? 0)
    if (role.part === 'end') {
      unit.end = index
      unit.status = role.status
    }
  }
  return units
}

function mix(unit: Unit, digest: number): void {
  const low = digest | 0
  const high = (digest / 4_294_967_296) | 0
  unit.one = Math.imul(unit.one ^ low, 2_654_435_761)
  unit.one = Math.imul((unit.one ^ (unit.one >>> 15)) + high, 2_246_822_507)
  unit.two = Math.imul(unit.two ^ high, 1_597_334_677)
  unit.two = Math.imul((unit.two ^ (unit.two >>> 13)) + low, 3_266_489_909)
}

function digestsOf(units: readonly Unit[]): Digests {
  return {
    length: units.length,
    shape: Float64Array.from(units, (unit) => unit.shape),
    content: Float64Array.from(units, ({ one, two }) => (two & 0x1f_ffff) * 4_294_967_296 + (one >>> 0)),
  }
}

interface Entry {
  op: Op
  left: Unit | undefined
  right: Unit | undefined
}

export interface UnitOptions {
  limit: number
  fields: boolean
  rules: Rules
  pauses: Pauses
}

/** @returns also where the alignment is approximate, as indexes of events. */
export async function diffUnits(sides: { left: Side; right: Side }, left: Columns, right: Columns, options: UnitOptions) {
  const leftUnits = unitsOf(left)
  const rightUnits = unitsOf(right)
  const [leftDigests, rightDigests] = [digestsOf(leftUnits), digestsOf(rightUnits)]
  const alignment = await align(leftDigests, rightDigests, options.pauses)
  const counts = createCounts()
  const byKind = { step: createCounts(), tool: createCounts(), llm_call: createCounts() }
  const entries: Entry[] = []
  walk(leftDigests, rightDigests, alignment, (op, leftIndex, rightIndex) => {
    const entry = { op, left: leftUnits[leftIndex], right: rightUnits[rightIndex] }
    tally(counts, op)
    const { kind } = entry.left ?? entry.right ?? { kind: undefined }
    if (kind) tally(byKind[kind], op)
    entries.push(entry)
  })
  const shown = within(entries, options.limit)
  const items: UnitDiff[] = []
  for (const chunk of chunks(shown, CHUNK)) {
    const [leftEvents, rightEvents] = await Promise.all([
      eventsOf(
        sides.left,
        left,
        chunk.map((entry) => entry.left),
      ),
      eventsOf(
        sides.right,
        right,
        chunk.map((entry) => entry.right),
      ),
    ])
    for (const entry of chunk) items.push(itemOf(entry, left, right, leftEvents, rightEvents, options))
    if (options.pauses.due()) await options.pauses.take()
  }
  const steps: StepsDiff = { ...counts, byKind, items, moreItems: entries.length - shown.length }
  const approximate = alignment.approximate.map((gap) => ({
    leftFrom: leftUnits[gap.leftFrom]?.first ?? left.length,
    leftTo: (leftUnits[gap.leftTo - 1]?.last ?? left.length - 1) + 1,
    rightFrom: rightUnits[gap.rightFrom]?.first ?? right.length,
    rightTo: (rightUnits[gap.rightTo - 1]?.last ?? right.length - 1) + 1,
  }))
  return { steps, approximate }
}

/** Entries whose payloads are in memory at once. */
const CHUNK = 50

/** As many as may be shown: those that differ, in their order, and equal ones where there is room for all of them. */
function within(entries: readonly Entry[], limit: number): readonly Entry[] {
  if (entries.length <= limit) return entries
  return entries.filter(({ op }) => op !== 'equal').slice(0, limit)
}

async function eventsOf(side: Side, { firstSeq }: Columns, units: readonly (Unit | undefined)[]): Promise<Map<number, CanonicalEvent>> {
  const seqs = new Set<number>()
  for (const unit of units) {
    if (!unit) continue
    seqs.add(firstSeq + unit.first)
    if (unit.end !== NONE) seqs.add(firstSeq + unit.end)
  }
  return side.events([...seqs])
}

function itemOf(
  entry: Entry,
  left: Columns,
  right: Columns,
  leftEvents: Map<number, CanonicalEvent>,
  rightEvents: Map<number, CanonicalEvent>,
  options: UnitOptions,
): UnitDiff {
  const one = entry.left && shownSide(entry.left, left, leftEvents)
  const other = entry.right && shownSide(entry.right, right, rightEvents)
  const named = one ?? other
  const item: UnitDiff = { op: entry.op, kind: entry.left?.kind ?? entry.right?.kind ?? 'step', name: named?.name ?? '' }
  if (one) item.left = one.side
  if (other) item.right = other.side
  if (one && other) {
    const [from, to] = [one.side, other.side]
    if (from.durationMs !== null && to.durationMs !== null) item.durationDeltaMs = to.durationMs - from.durationMs
    if (from.totalTokens !== undefined || to.totalTokens !== undefined) item.tokensDelta = (to.totalTokens ?? 0) - (from.totalTokens ?? 0)
    if (from.costUsd !== undefined || to.costUsd !== undefined) item.costDeltaUsd = Number(((to.costUsd ?? 0) - (from.costUsd ?? 0)).toFixed(9))
    if (options.fields && entry.op === 'changed') {
      const started = partDiff(one.first, other.first, '/started', options.rules)
      const ended = one.first === one.end && other.first === other.end ? NO_DIFF : partDiff(one.end, other.end, '/ended', options.rules)
      item.fields = [...started.fields, ...ended.fields]
      item.moreFields = started.more + ended.more
    }
  }
  return item
}

const NO_DIFF = { fields: [], more: 0 }

function partDiff(left: CanonicalEvent | undefined, right: CanonicalEvent | undefined, path: string, rules: Rules) {
  if (!left || !right) return NO_DIFF
  const { fields, more } = eventDiff(left, right, rules)
  return { fields: fields.map((field) => ({ ...field, path: path + field.path })), more }
}

interface Shown {
  name: string
  side: UnitSide
  first: CanonicalEvent | undefined
  end: CanonicalEvent | undefined
}

function shownSide(unit: Unit, columns: Columns, events: Map<number, CanonicalEvent>): Shown {
  const first = events.get(columns.firstSeq + unit.first)
  const end = unit.end === NONE ? undefined : events.get(columns.firstSeq + unit.end)
  const started: Readonly<Record<string, unknown>> = first?.data ?? {}
  const ended: Readonly<Record<string, unknown>> = end?.data ?? {}
  const usage = { ...started, ...record(ended.usage), ...ended }
  const told = number(ended.durationMs) ?? number(ended.latencyMs)
  const between = unit.end === NONE || unit.end === unit.first ? null : Math.max(0, (columns.tsMs[unit.end] ?? 0) - (columns.tsMs[unit.first] ?? 0))
  const side: UnitSide = {
    id: first?.subject.id ?? '',
    fromSeq: columns.firstSeq + unit.first,
    toSeq: columns.firstSeq + unit.last,
    events: unit.events,
    status: unit.status,
    durationMs: told ?? between,
  }
  if (typeof usage.model === 'string') side.model = usage.model
  const [input, output] = [number(usage.inputTokens), number(usage.outputTokens)]
  if (input !== undefined || output !== undefined) side.totalTokens = (input ?? 0) + (output ?? 0)
  const cost = number(usage.costUsd)
  if (cost !== undefined) side.costUsd = cost
  const name = [started.name, ended.name, usage.model, first?.subject.id].find((candidate) => typeof candidate === 'string' && candidate !== '')
  return { name: String(name ?? ''), side, first, end }
}

const number = (value: unknown): number | undefined => (typeof value === 'number' ? value : undefined)
const record = (value: unknown): object | undefined => (typeof value === 'object' && value !== null ? value : undefined)
