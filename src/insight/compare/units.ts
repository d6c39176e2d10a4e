/**
 * Steps, calls of tools and calls of models: each is several events about one subject, from its start to its end. They are aligned as
 * events are, by digests that are put together from those of their events, so that no payload is read but of those that are shown.
 */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import { type Rules, withoutVolatile } from '../../domain/volatile.js'
import { align, type Digests, NONE } from './alignment.js'
import type { Op, StepsDiff, UnitDiff, UnitKind, UnitSide } from './answer.js'
import { eventDiff, fieldDiff } from './fields.js'
import type { Pauses } from './pauses.js'
import { createCounts, tally, walk } from './script.js'
import { type Columns, chunks, type Side, typeAt } from './side.js'

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

const roleOf = (type: string): Role | undefined => (Object.hasOwn(ROLES, type) ? ROLES[type] : undefined)

/** The steps and calls of a run, in the order of their first events. An id that is started again is another one. */
function unitsOf(columns: Columns): Unit[] {
  const roles = columns.types.map(roleOf)
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
  /** What differs of their outputs, where that is asked for. */
  outputs?: Outputs | undefined
}

interface Outputs {
  /** The first that differ are the outputs of this number, from 0. */
  at: number
  /** Indexes of events; NONE: it has no such output. */
  left: number
  right: number
  /** Others that differ. */
  more: number
}

/** Indexes of the outputs of a step or call: its events but for the first and the end. */
function outputsOf({ kind, first, last }: Unit, columns: Columns): number[] {
  const { subject } = columns
  const indexes: number[] = []
  for (let index = first + 1; index <= last; index++) {
    if (subject[index] !== subject[first]) continue
    const role = roleOf(typeAt(columns, index))
    if (role?.part === 'within' && role.kind === kind) indexes.push(index)
  }
  return indexes
}

/** Undefined: they have the same. */
function differingOutputs({ left: one, right: other }: Entry, left: Columns, right: Columns): Outputs | undefined {
  if (!one || !other) return undefined
  const [leftOutputs, rightOutputs] = [outputsOf(one, left), outputsOf(other, right)]
  let outputs: Outputs | undefined
  for (let at = 0; at < Math.max(leftOutputs.length, rightOutputs.length); at++) {
    const [leftIndex, rightIndex] = [leftOutputs[at] ?? NONE, rightOutputs[at] ?? NONE]
    if (leftIndex !== NONE && rightIndex !== NONE && left.content[leftIndex] === right.content[rightIndex]) continue
    if (outputs) outputs.more++
    else outputs = { at, left: leftIndex, right: rightIndex, more: 0 }
  }
  return outputs
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
    for (const entry of chunk) {
      if (options.fields && entry.op === 'changed') entry.outputs = differingOutputs(entry, left, right)
      if (options.pauses.due()) await options.pauses.take()
    }
    const [leftEvents, rightEvents] = await Promise.all([
      eventsOf(
        sides.left,
        left,
        chunk.map((entry) => ({ unit: entry.left, output: entry.outputs?.left })),
      ),
      eventsOf(
        sides.right,
        right,
        chunk.map((entry) => ({ unit: entry.right, output: entry.outputs?.right })),
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

async function eventsOf(
  side: Side,
  { firstSeq }: Columns,
  shown: readonly { unit: Unit | undefined; output: number | undefined }[],
): Promise<Map<number, CanonicalEvent>> {
  const seqs = new Set<number>()
  for (const { unit, output = NONE } of shown) {
    if (!unit) continue
    for (const index of [unit.first, output, unit.end]) if (index !== NONE) seqs.add(firstSeq + index)
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
      const { outputs } = entry
      const output = outputs
        ? partDiff(leftEvents.get(left.firstSeq + outputs.left), rightEvents.get(right.firstSeq + outputs.right), `/outputs/${outputs.at}`, options.rules)
        : NO_DIFF
      item.fields = [...started.fields, ...output.fields, ...ended.fields]
      item.moreFields = started.more + output.more + (outputs?.more ?? 0) + ended.more
    }
  }
  return item
}

const NO_DIFF = { fields: [], more: 0 }

/** Where only one side has the event, its data is what differs. */
function partDiff(left: CanonicalEvent | undefined, right: CanonicalEvent | undefined, path: string, rules: Rules) {
  if (!left || !right) return fieldDiff(left && withoutVolatile(left.data, rules), right && withoutVolatile(right.data, rules), `${path}/data`)
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
  const total = number(usage.totalTokens)
  if (input !== undefined || output !== undefined || total !== undefined) side.totalTokens = Math.max((input ?? 0) + (output ?? 0), total ?? 0)
  const cost = number(usage.costUsd)
  if (cost !== undefined) side.costUsd = cost
  const name = [started.name, ended.name, usage.model, first?.subject.id].find((candidate) => typeof candidate === 'string' && candidate !== '')
  return { name: String(name ?? ''), side, first, end }
}

const number = (value: unknown): number | undefined => (typeof value === 'number' ? value : undefined)
const record = (value: unknown): object | undefined => (typeof value === 'object' && value !== null ? value : undefined)
