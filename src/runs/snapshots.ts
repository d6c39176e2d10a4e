/**
 * Snapshots of states, written behind: after so many events or so long, at a run's end, and on shutdown; never by an append.
 * A row is a cache: an older state never replaces a newer one, and losing all rows costs time only.
 */
import type { Sql } from '../db/client.js'
import { isTerminal } from '../domain/run.js'
import type { HotState, States } from '../log/states.js'
import { encodeState, PROJECTION_SCHEMA_VERSION } from '../projections/fold.js'

/** How often the states in memory are looked through. */
const ROUND_MS = 500
/** A run that goes on is saved at most this often, and at the latest this long after its last event. */
const MIN_AGE_MS = 2000
const MAX_AGE_MS = 10_000
/** Events that a state is ahead of its row for it to be saved when memory lets go of it, or when its run ends. */
const WORTH_SAVING_EVENTS = 100
/** States that memory has let go of and that wait to be saved: they are still held until then. */
const MAX_WAITING = 100

export interface Snapshots {
  /** Saves a state that memory lets go of. */
  evicted(hot: HotState): void
  /** Saves all that is unsaved, and stops. */
  close(): Promise<void>
}

/** @param options.everyEvents events after which a run is saved (setting SNAPSHOT_EVERY_EVENTS) */
export function startSnapshots(deps: { sql: Sql; states: States; everyEvents: number; log: { warn(details: object, message: string): void } }): Snapshots {
  const { sql, states, everyEvents, log } = deps
  let round: Promise<void> = Promise.resolve()
  let waiting = 0
  let looking = false

  /** One after another; while the database is slow or gone no more gather than this: what is left out is in the log. */
  function later(work: () => Promise<void>): void {
    if (waiting >= MAX_WAITING) return
    waiting++
    round = round.then(work).finally(() => waiting--)
  }

  const isDue = ({ state, savedVersion, savedAtMs }: HotState, nowMs: number): boolean => {
    if (!state) return false
    const ageMs = nowMs - savedAtMs
    // A short run that has ended is folded again faster than its state is written, and many are never looked at again.
    if (isTerminal(state.folds.run.status)) return ageMs > ROUND_MS && state.version >= WORTH_SAVING_EVENTS
    return (state.version - savedVersion >= everyEvents && ageMs >= MIN_AGE_MS) || ageMs >= MAX_AGE_MS
  }

  async function save(due: (hot: HotState) => boolean): Promise<void> {
    for (const { runKey } of [...states.unsaved()].filter(due)) {
      try {
        await states.hold(runKey, (hot) => saveSnapshot(sql, hot))
      } catch (error) {
        log.warn({ err: error, runKey }, 'a snapshot could not be saved; the log has all of it')
      }
    }
  }

  const timer = setInterval(() => {
    if (looking) return
    looking = true
    round = round.then(() => save((hot) => isDue(hot, Date.now()))).finally(() => (looking = false))
  }, ROUND_MS)
  timer.unref()

  return {
    evicted(hot) {
      // With more active runs than fit, each event would save a state: folding a few events again costs less.
      if (hot.state && hot.state.version - hot.savedVersion < WORTH_SAVING_EVENTS) return
      later(() => saveSnapshot(sql, hot).catch((error) => log.warn({ err: error, runKey: hot.runKey }, 'a snapshot could not be saved; the log has all of it')))
    },
    async close() {
      clearInterval(timer)
      await round
      await save(() => true)
    },
  }
}

/** Saves the state that is in memory; the caller holds the run's lock. */
export async function saveSnapshot(sql: Sql, hot: HotState): Promise<void> {
  const { state } = hot
  if (!state || state.version <= hot.savedVersion) return
  const { version } = state
  const text = encodeState(state)
  await sql`
    insert into run_projections (run_key, version, schema_version, state)
    select key, ${version}, ${PROJECTION_SCHEMA_VERSION}, ${text}::text::json from runs where key = ${hot.runKey}
    on conflict (run_key) do update set version = excluded.version, schema_version = excluded.schema_version, state = excluded.state, updated_at = clock_timestamp()
    where run_projections.version <= excluded.version or run_projections.schema_version <> excluded.schema_version`
  hot.savedVersion = version
  hot.savedAtMs = Date.now()
  hot.bytes = text.length
}
