/** The state of a run for a reader: never behind what was acknowledged before, on any instance. */
import type { Sql } from '../db/client.js'
import { RunplaneError, runNotFound } from '../errors.js'
import type { Mask } from '../ingest/mask.js'
import { restoreRow } from '../log/corrupt.js'
import { catchUp, type HotState, loadSnapshots, type States } from '../log/states.js'
import { idOf } from '../projections/bounds.js'
import { decodeState, encodeState, type FoldState, PROJECTION_SCHEMA_VERSION, viewState } from '../projections/fold.js'
import type { Checkpoints } from './checkpoints.js'
import { saveSnapshot } from './snapshots.js'

export interface StateAnswer {
  version: number
  schemaVersion: number
  /** The sections as JSON text. */
  stateJson: string
}

export interface RunStates {
  /** The state at the head, or, with `seq`, as it was then. @throws RUN_NOT_FOUND, CURSOR_INVALID beyond the head. */
  read(run: { key: string; id: string }, seq?: number): Promise<StateAnswer>
  /** What `use` makes of the state, at once: afterwards it goes on being folded. */
  at<T>(run: { key: string; id: string }, seq: number | undefined, use: (state: FoldState) => T): Promise<T>
  /** The state as the caller's own, to keep or to fold on. */
  fold(run: { key: string; id: string }, seq?: number): Promise<FoldState>
  /** Forgets what is cached of the run, folds its log anew and saves that. A run that had failed for its log goes on, where it can be folded now. */
  rebuild(run: { key: string; id: string }): Promise<StateAnswer>
}

/** Events that are folded from the last snapshot without leaving checkpoints for the next reader. */
const NEAR_EVENTS = 10_000

export interface RunStatesDeps {
  sql: Sql
  states: States
  checkpoints: Checkpoints
  mask: Pick<Mask, 'text'>
}

export function createRunStates({ sql, states, checkpoints, mask }: RunStatesDeps): RunStates {
  async function headOf(run: { key: string; id: string }): Promise<number> {
    const [row] = await sql<{ last_seq: number }[]>`select last_seq from runs where key = ${run.key}`
    if (!row) throw runNotFound(run.id)
    return row.last_seq
  }

  async function current(hot: HotState, headSeq: number): Promise<FoldState> {
    const isCold = !hot.state
    if (isCold) await loadSnapshots(sql, [hot])
    // Under the lock a state holds committed events only, and may be ahead of a head that was read before; so may one that another instance has saved since.
    if (hot.state && hot.state.version >= headSeq) return hot.state
    if (isCold && headSeq - hot.savedVersion > NEAR_EVENTS) hot.state = await checkpoints.stateAt(hot.runKey, headSeq)
    return catchUp(sql, hot, headSeq)
  }

  async function at<T>(run: { key: string; id: string }, seq: number | undefined, use: (state: FoldState) => T): Promise<T> {
    const headSeq = await headOf(run)
    if (seq !== undefined && seq > headSeq) throw new RunplaneError('CURSOR_INVALID', `The run's head is ${headSeq}; seq ${seq} is not there yet.`)
    if (seq === undefined || seq === headSeq) {
      const atHead = await states.hold(run.key, async (hot) => {
        const state = await current(hot, headSeq)
        // More may have come since the head was read: that is not the state at `seq`.
        return seq === undefined || state.version === seq ? { used: use(state) } : undefined
      })
      if (atHead) return atHead.used
    }
    const state = await checkpoints.stateAt(run.key, seq ?? headSeq)
    // Its first event tells a state whose it is; before that it is nobody's.
    if (state.version === 0) state.folds.run.runId = idOf(run.id)
    return use(state)
  }

  function answer(state: FoldState): StateAnswer {
    return { version: state.version, schemaVersion: PROJECTION_SCHEMA_VERSION, stateJson: JSON.stringify(viewState(state, mask.text)) }
  }

  return {
    at,
    read: (run, seq) => at(run, seq, answer),
    fold: (run, seq) => at(run, seq, (state) => decodeState(encodeState(state))),
    async rebuild(run) {
      return states.hold(run.key, async (hot) => {
        await sql`delete from run_projections where run_key = ${run.key}`
        await checkpoints.forget(run.key)
        hot.state = undefined
        hot.savedVersion = 0
        const state = await checkpoints.stateAt(run.key, await headOf(run))
        hot.state = state
        await restoreRow(sql, run.key, state)
        await saveSnapshot(sql, hot)
        return answer(state)
      })
    },
  }
}
