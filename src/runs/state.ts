/** The state of a run for a reader: never behind what was acknowledged before, on any instance. */
import type { Sql } from '../db/client.js'
import { RunplaneError, runNotFound } from '../errors.js'
import { catchUp, foldFromLog, type HotState, type States } from '../log/states.js'
import { createState, decodeState, encodeState, type FoldState, PROJECTION_SCHEMA_VERSION, viewState } from '../projections/fold.js'
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
  /** The same as the fold that it is a view of: the caller's own, to read from or to fold on. */
  fold(run: { key: string; id: string }, seq?: number): Promise<FoldState>
  /** Forgets what is cached of the run, folds its log anew and saves that. */
  rebuild(run: { key: string; id: string }): Promise<StateAnswer>
}

export function createRunStates({ sql, states }: { sql: Sql; states: States }): RunStates {
  async function headOf(run: { key: string; id: string }): Promise<number> {
    const [row] = await sql<{ last_seq: number }[]>`select last_seq from runs where key = ${run.key}`
    if (!row) throw runNotFound(run.id)
    return row.last_seq
  }

  async function current(hot: HotState, headSeq: number): Promise<FoldState> {
    // Under the lock a state in memory holds committed events only, and may be ahead of a head that was read before.
    if (hot.state && hot.state.version >= headSeq) return hot.state
    return catchUp(sql, hot, headSeq)
  }

  /** @param use reads the state at once: what is at the head goes on being folded. */
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
    const state = createState()
    await foldFromLog(sql, run.key, state, seq ?? headSeq)
    return use(state)
  }

  return {
    read: (run, seq) => at(run, seq, answer),
    fold: (run, seq) => at(run, seq, (state) => decodeState(encodeState(state))),
    async rebuild(run) {
      return states.hold(run.key, async (hot) => {
        await sql`delete from run_projections where run_key = ${run.key}`
        hot.state = createState()
        hot.savedVersion = 0
        const state = await catchUp(sql, hot, await headOf(run))
        await saveSnapshot(sql, hot)
        return answer(state)
      })
    },
  }
}

function answer(state: FoldState): StateAnswer {
  return { version: state.version, schemaVersion: PROJECTION_SCHEMA_VERSION, stateJson: JSON.stringify(viewState(state)) }
}
