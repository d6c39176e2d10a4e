/** The state of a run for a reader: never behind what was acknowledged before, on any instance. */
import type { Sql } from '../db/client.js'
import { RunplaneError, runNotFound } from '../errors.js'
import { catchUp, foldFromLog, type HotState, type States } from '../log/states.js'
import { createState, type FoldState, PROJECTION_SCHEMA_VERSION, viewState } from '../projections/fold.js'
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

  return {
    async read(run, seq) {
      const headSeq = await headOf(run)
      if (seq !== undefined && seq > headSeq) throw new RunplaneError('CURSOR_INVALID', `The run's head is ${headSeq}; seq ${seq} is not there yet.`)
      if (seq === undefined || seq === headSeq) {
        const atHead = await states.hold(run.key, async (hot) => {
          const state = await current(hot, headSeq)
          // More may have come since the head was read: that is not the state at `seq`.
          return seq === undefined || state.version === seq ? answer(state) : undefined
        })
        if (atHead) return atHead
      }
      const state = createState()
      await foldFromLog(sql, run.key, state, seq ?? headSeq)
      return answer(state)
    },
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
