/**
 * The state of a run as the fold of its canonical events: at once, in any batches, or with snapshots between, always the same.
 * Folding changes the state in place; what clients see is made on reading only.
 */
import type { CanonicalEvent } from '../domain/canonical-event.js'
import type { RunStatus } from '../domain/run.js'
import { runProgress } from './derive.js'
import type { Section } from './section.js'
import { type Folds, type RunState, SECTIONS } from './sections.js'

export type { RunState } from './sections.js'

/** Goes up with every change of what a section keeps or means: a snapshot of another version is rebuilt. */
export const PROJECTION_SCHEMA_VERSION = 7

export interface FoldState {
  /** The seq of the last event that was folded; 0 before the first. */
  version: number
  readonly folds: Folds
}

type AnySection = Section<string, object, unknown, Folds>
type Step = { readonly section: keyof Folds; readonly reduce: (state: object, event: CanonicalEvent) => void }

const NAMES = Object.keys(SECTIONS) as (keyof Folds)[]
const sections: Readonly<Record<keyof Folds, AnySection>> = SECTIONS

/** Which reducers an event of each type goes through. */
const EVERY: readonly Step[] = NAMES.flatMap((section) => {
  const { onEvery } = sections[section]
  return onEvery === undefined ? [] : [{ section, reduce: onEvery }]
})
const BY_TYPE: ReadonlyMap<string, readonly Step[]> = dispatchTable()

function dispatchTable(): Map<string, Step[]> {
  const table = new Map<string, Step[]>()
  for (const section of NAMES) {
    for (const [type, reduce] of Object.entries(sections[section].on)) {
      // The table is read by the event's own type, so that each reducer gets events of its type only.
      const step = { section, reduce: reduce as Step['reduce'] }
      table.set(type, [...(table.get(type) ?? []), step])
    }
  }
  return table
}

export function createState(): FoldState {
  // One entry a section: what `Folds` says.
  return { version: 0, folds: Object.fromEntries(NAMES.map((name) => [name, sections[name].initial()])) as Folds }
}

/** Folds one event in place. Never throws for an event that fits the vocabulary; one of an unknown type is counted. */
export function foldEvent(state: FoldState, event: CanonicalEvent): void {
  const { folds } = state
  for (const step of EVERY) step.reduce(folds[step.section], event)
  const own = BY_TYPE.get(event.type)
  if (own !== undefined) for (const step of own) step.reduce(folds[step.section], event)
  state.version = event.seq
}

/** Folds in place, in order. @returns the same state. */
export function fold(state: FoldState, events: Iterable<CanonicalEvent>): FoldState {
  for (const event of events) foldEvent(state, event)
  return state
}

/**
 * What clients see. It may share payloads with the state: read it or write it out before the next event is folded.
 * @param masked takes secrets out of texts that came in pieces, each of which was looked at by itself; left out where there are no patterns
 */
export function viewState(state: FoldState, masked: (text: string) => string = (text) => text): RunState {
  // One entry a section, made by that section's view: what `RunState` says.
  return Object.fromEntries(NAMES.map((name) => [name, sections[name].view(state.folds[name], state.folds, masked)])) as RunState
}

/** The state as a snapshot's text; a Map is written as its entries. */
export function encodeState(state: FoldState): string {
  const folds = NAMES.map((name) => [
    name,
    Object.fromEntries(Object.entries(state.folds[name]).map(([key, value]) => [key, value instanceof Map ? [...value] : value])),
  ])
  return JSON.stringify({ version: state.version, folds: Object.fromEntries(folds) })
}

/**
 * The state of a snapshot that `encodeState` of the same PROJECTION_SCHEMA_VERSION wrote.
 * @throws SyntaxError or TypeError for any other text: then rebuild.
 */
export function decodeState(text: string): FoldState {
  const snapshot: { version: number; folds: Record<string, Record<string, unknown>> } = JSON.parse(text)
  if (!Number.isInteger(snapshot.version)) throw new TypeError('The snapshot has no version.')
  const state = createState()
  state.version = snapshot.version
  for (const name of NAMES) {
    const saved = snapshot.folds[name]
    if (saved === undefined) throw new TypeError(`The snapshot has no section '${name}'.`)
    for (const [key, initial] of Object.entries(state.folds[name])) {
      Reflect.set(state.folds[name], key, initial instanceof Map ? new Map(saved[key] as [string, unknown][]) : saved[key])
    }
  }
  return state
}

/**
 * The state of a snapshot that an older version wrote, as far as this one understands it: for runs whose first events are gone, so that there is nothing to
 * fold it from anew. What is not in it, or is of another kind, begins empty.
 * @throws SyntaxError for what is no snapshot at all
 */
export function decodeOlderState(text: string): FoldState {
  const snapshot: { version: number; folds: Record<string, Record<string, unknown> | undefined> } = JSON.parse(text)
  const state = createState()
  state.version = snapshot.version
  for (const name of NAMES) {
    for (const [key, initial] of Object.entries(state.folds[name])) {
      const saved = snapshot.folds[name]?.[key]
      if (saved === undefined) continue
      if (initial instanceof Map) {
        if (Array.isArray(saved)) Reflect.set(state.folds[name], key, new Map(saved as [string, unknown][]))
      } else if (initial === null || (saved !== null && typeof saved === typeof initial && Array.isArray(saved) === Array.isArray(initial))) {
        Reflect.set(state.folds[name], key, saved)
      }
    }
  }
  return state
}

/** What the log keeps of a state in the run's row. */
export interface RunSummary {
  runId: string
  status: RunStatus
  /** An integer from 0 to 100; null where nothing is known. */
  progress: number | null
  attempt: number
  startedAt: string | null
  endedAt: string | null
  error: { code: string | null; message: string; stack: string | null } | null
  name: string | null
  kind: string | null
  tags: readonly string[]
}

export function summary(state: FoldState): RunSummary {
  const { runId, status, attempt, startedAt, endedAt, error, name, kind, tags } = state.folds.run
  return { runId, status, progress: runProgress(state.folds), attempt, startedAt, endedAt, error, name, kind, tags }
}
