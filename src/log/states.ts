/**
 * The folded states of hot runs, in memory, by version.
 *
 * A state is a cache of the log: it is caught up from the log before it is used, and dropped when the transaction that it
 * was folded in fails. One holder at a time: whoever reads or folds a run's state holds its lock, so that nobody sees
 * events that are not committed yet. A holder of a transaction never waits for a lock: locks are taken first.
 */

import type { Queries } from '../db/client.js'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import { RunplaneError } from '../errors.js'
import { createState, decodeOlderState, decodeState, type FoldState, foldEvent, PROJECTION_SCHEMA_VERSION, type RunSummary } from '../projections/fold.js'
import { LogCorrupt } from './corrupt.js'

/** A state that is larger than this as text counts as several: most have a few KiB, the largest about a MiB, and in memory it is three times that. */
const BYTES_OF_ONE = 128 * 1024
/** Rows of one page of a catch-up. */
const PAGE_ROWS = 1000

/** What a run's row says of its state. */
export type Told = Pick<RunSummary, 'status' | 'progress' | 'attempt' | 'error' | 'startedAt' | 'endedAt'>

/** What a run's row said after this process's last commit to it. As long as nobody else writes, it still does. */
export interface KnownRow {
  id: string
  workspaceId: string
  lastSeq: number
  lastRawSeq: number
  /** Undefined: not known. */
  told?: Told | undefined
}

export interface HotState {
  readonly runKey: string
  /** Undefined where somebody else may have written since. */
  row: KnownRow | undefined
  /** Not before, in milliseconds of `performance.now()`, the row is trusted again: others write to this run as well. */
  contendedUntilMs: number
  /** Undefined until first loaded, and again after a failed transaction. */
  state: FoldState | undefined
  /** The version that the snapshot row in the database holds, as far as this process knows. */
  savedVersion: number
  savedAtMs: number
  /** Of the state as text, when it was last read or saved. */
  bytes: number
}

interface Slot extends HotState {
  holders: number
  /** What it counts as among all. */
  weight: number
  /** Who come after the holder that has the lock, in order. */
  waiting: (() => void)[]
}

export interface States {
  /** Waits for the run's lock, and runs `work` under it. */
  hold<T>(runKey: string, work: (hot: HotState) => Promise<T>): Promise<T>
  /** The same for several runs at once; locks are taken in the order of the keys, so that two callers cannot wait for each other. */
  holdAll<T>(runKeys: string[], work: (hot: Map<string, HotState>) => Promise<T>): Promise<T>
  /** Somebody has the run's lock. */
  isHeld(runKey: string): boolean
  /** Runs whose state is in memory and newer than what is saved. */
  unsaved(): Iterable<HotState>
  forget(runKey: string): void
  /** Another instance has written to the run. */
  stale(runKey: string): void
  readonly size: number
}

/** @param options.maxRuns states kept, of which a large one counts as several; the least recently used goes first. `onEvict` gets those that hold unsaved events. */
export function createStates(options: { maxRuns: number; onEvict?: (hot: HotState) => void }): States {
  const slots = new Map<string, Slot>()
  let weights = 0

  /** @returns the slot, and what to wait for before it is one's own: nothing, where nobody has it. */
  function acquire(runKey: string): { slot: Slot; ready: Promise<void> | undefined } {
    let slot = slots.get(runKey)
    if (slot) slots.delete(runKey)
    else slot = newSlot(runKey)
    slots.set(runKey, slot)
    const { waiting } = slot
    const ready = slot.holders++ === 0 ? undefined : new Promise<void>((resolve) => waiting.push(resolve))
    return { slot, ready }
  }

  function release(slot: Slot): void {
    slot.holders--
    slot.waiting.shift()?.()
    // Runs by the thousand come and go in a queue: a slot that says nothing is garbage while it is young.
    if (slot.holders === 0 && !slot.state && slot.contendedUntilMs === 0) remove(slot)
    else weigh(slot, Math.max(1, Math.ceil(slot.bytes / BYTES_OF_ONE)))
    evict()
  }

  function weigh(slot: Slot, weight: number): void {
    weights += weight - slot.weight
    slot.weight = weight
  }

  function remove(slot: Slot): void {
    weigh(slot, 0)
    slots.delete(slot.runKey)
  }

  function evict(): void {
    if (weights <= options.maxRuns) return
    for (const slot of slots.values()) {
      // The last one stays, however large: it is the one in use.
      if (weights <= options.maxRuns || slots.size === 1) return
      if (slot.holders > 0) continue
      remove(slot)
      if (slot.state && slot.state.version > slot.savedVersion) options.onEvict?.(slot)
    }
  }

  return {
    async hold(runKey, work) {
      const { slot, ready } = acquire(runKey)
      try {
        if (ready) await ready
        return await work(slot)
      } finally {
        release(slot)
      }
    },
    async holdAll(runKeys, work) {
      const held = [...new Set(runKeys)].sort().map(acquire)
      try {
        const hot = new Map<string, HotState>()
        for (const { slot, ready } of held) {
          if (ready) await ready
          hot.set(slot.runKey, slot)
        }
        return await work(hot)
      } finally {
        for (const { slot } of held) release(slot)
      }
    },
    isHeld: (runKey) => (slots.get(runKey)?.holders ?? 0) > 0,
    *unsaved() {
      for (const slot of slots.values()) if (slot.state && slot.state.version > slot.savedVersion) yield slot
    },
    stale(runKey) {
      const slot = slots.get(runKey)
      if (slot) slot.row = undefined
    },
    forget(runKey) {
      const slot = slots.get(runKey)
      if (!slot) return
      slot.state = undefined
      slot.savedVersion = 0
      if (slot.holders === 0) remove(slot)
    },
    get size() {
      return slots.size
    },
  }
}

function newSlot(runKey: string): Slot {
  return {
    runKey,
    row: undefined,
    contendedUntilMs: 0,
    state: undefined,
    savedVersion: 0,
    savedAtMs: Date.now(),
    bytes: 0,
    holders: 0,
    weight: 0,
    waiting: [],
  }
}

/** Loads the saved states of the runs that are not in memory. A snapshot of another schema version is as good as none. */
export async function loadSnapshots(sql: Queries, hot: Iterable<HotState>): Promise<void> {
  const cold = [...hot].filter((one) => one.state === undefined)
  if (cold.length === 0) return
  const rows = await sql<{ run_key: string; version: number; state: string }[]>`
    select run_key, version, state::text as state from run_projections
    where run_key = any(${pgArray(cold.map((one) => one.runKey))}::uuid[]) and schema_version = ${PROJECTION_SCHEMA_VERSION}`
  const byKey = new Map(rows.map((row) => [row.run_key, row]))
  for (const one of cold) {
    const row = byKey.get(one.runKey)
    const saved = row && decoded(row.state)
    one.state = saved ?? createState()
    one.savedVersion = one.state.version
    one.bytes = row?.state.length ?? 0
  }
}

/**
 * Brings runs into memory, where the append would read the log of each on its own, under its lock.
 * @param runs the key and the head of each, and its log as a JSON array; null where that is long
 */
export async function warm(states: States, runs: readonly { key: string; last_seq: number; log: CanonicalEvent[] | null }[]): Promise<void> {
  const logs = new Map(runs.map((run) => [run.key, run]))
  await states.holdAll([...logs.keys()], async (hot) => {
    for (const one of hot.values()) {
      const { log = null, last_seq = 0 } = logs.get(one.runKey) ?? {}
      if (one.state || !log) continue
      const state = createState()
      try {
        for (const event of log) if (event.seq === state.version + 1) foldEvent(state, event)
      } catch {
        // The append meets it again, and tells.
        continue
      }
      if (state.version === last_seq) one.state = state
    }
  })
}

/** A row that cannot be read is as good as none: the log has all of it. */
function decoded(text: string): FoldState | undefined {
  try {
    return decodeState(text)
  } catch {
    return undefined
  }
}

/**
 * Folds the log into the state up to `toSeq`, page by page. `sql` is the transaction where one is held.
 * A state that is ahead of `toSeq` came from a transaction that was lost: it is rebuilt.
 */
export async function catchUp(sql: Queries, hot: HotState, toSeq: number): Promise<FoldState> {
  if (hot.state && hot.state.version > toSeq) hot.state = undefined
  if (!hot.state) {
    await loadSnapshots(sql, [hot])
    if (!hot.state || (hot.state as FoldState).version > toSeq) {
      hot.state = createState()
      hot.savedVersion = 0
    }
  }
  const state: FoldState = hot.state
  const from = state.version
  try {
    await foldFromLog(sql, hot.runKey, state, toSeq)
  } catch (error) {
    hot.state = undefined
    if (!(error instanceof LogCorrupt) || from === 0) throw error
    // It may be the snapshot that is wrong.
    hot.state = createState()
    hot.savedVersion = 0
    return catchUp(sql, hot, toSeq)
  }
  return state
}

/** Folds the events after `state.version` up to and with `toSeq` into `state`. @throws LogCorrupt, or CURSOR_INVALID for a seq that retention has not kept. */
export async function foldFromLog(sql: Queries, runKey: string, state: FoldState, toSeq: number): Promise<void> {
  while (state.version < toSeq) await foldPage(sql, runKey, state, toSeq)
  assertReached(state, toSeq)
}

/** Where the first events of a run are not kept, a fold begins at its base, which may be past what was asked for. @throws CURSOR_INVALID */
export function assertReached(state: FoldState, seq: number): void {
  if (state.version > seq) {
    throw new RunplaneError(
      'CURSOR_INVALID',
      `The events up to seq ${state.version} are not kept any more (retention). The first state that there is, is that at seq ${state.version}.`,
    )
  }
}

/**
 * Folds a page of them, each as it comes, so that they are never in memory together and the process has its turns between.
 * Where the next event is not kept any more (retention), `state` becomes the run's base, which may be past `toSeq`: it never folds over a hole.
 * Where it throws, `state` may have folded some of them: drop it. @throws LogCorrupt for an event that is none, or is not there.
 */
export async function foldPage(sql: Queries, runKey: string, state: FoldState, toSeq: number): Promise<{ events: number; bytes: number }> {
  const page = { events: 0, bytes: 0 }
  let isHole = false
  let fault: LogCorrupt | undefined
  await sql`
    select event from run_events_canonical
    where run_key = ${runKey} and seq > ${state.version} and seq <= ${toSeq} order by seq limit ${PAGE_ROWS}`
    .raw()
    .forEach(([event]) => {
      if (!event || isHole || fault) return
      try {
        const next = JSON.parse(event.toString()) as CanonicalEvent
        isHole = next.seq !== state.version + 1
        if (isHole) return
        foldEvent(state, next)
      } catch (error) {
        fault = corrupt(runKey, state, `cannot be folded (${error instanceof Error ? error.message : error})`, error)
        return
      }
      page.events++
      page.bytes += event.length
    })
  if (fault) throw fault
  if (page.events === 0 && state.version < toSeq) await adoptBase(sql, runKey, state)
  return page
}

const corrupt = (runKey: string, { version }: FoldState, fault: string, cause?: unknown) =>
  new LogCorrupt(runKey, version + 1, `The log of the run is corrupt: event ${version + 1} ${fault}.`, cause)

/** Makes `state` what it was before the first event that retention has kept. @throws LogCorrupt, or RUN_NOT_FOUND for a run that has been deleted meanwhile. */
async function adoptBase(sql: Queries, runKey: string, state: FoldState): Promise<void> {
  const [row] = await sql<{ seq: number | null; schema_version: number; state: string; is_there: boolean }[]>`
    select b.seq, b.schema_version, b.state::text as state,
      exists (select from run_events_canonical where run_key = r.key and seq = ${state.version + 1}) as is_there
    from runs r left join run_bases b on b.run_key = r.key where r.key = ${runKey}`
  if (!row) throw new RunplaneError('RUN_NOT_FOUND', 'The run has been deleted.')
  if (row.seq === null || row.seq <= state.version) throw corrupt(runKey, state, row.is_there ? 'is not the one that its row says' : 'is missing')
  try {
    Object.assign(state, row.schema_version === PROJECTION_SCHEMA_VERSION ? decodeState(row.state) : decodeOlderState(row.state))
  } catch (error) {
    throw corrupt(runKey, state, 'was deleted by retention, and the state that was kept for it cannot be read', error)
  }
}

/** A Postgres array literal of texts: parameters are passed as text (see db/client.ts). */
export function pgArray(values: readonly string[]): string {
  return `{${values.map((value) => `"${value.replace(/[\\"]/g, '\\$&')}"`).join(',')}}`
}
