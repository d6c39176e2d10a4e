/** Comparisons as a service makes them: few at once, since each holds the columns of its runs in memory, and waiting for a turn is bounded as well. */
import type { Sql } from '../../db/client.js'
import { createRules } from '../../domain/volatile.js'
import type { Mask } from '../../ingest/mask.js'
import { createTurns } from '../../ops/turns.js'
import type { RunStates } from '../../runs/state.js'
import type { PriceTable } from '../prices.js'
import type { CompareSection, Comparison, ComparisonMatrix } from './answer.js'
import { withInlineBundle } from './bundle-side.js'
import { compare, compareMany, DEFAULT_LIMIT } from './compare.js'
import { createPauses, type Pauses } from './pauses.js'
import { openRunSide } from './run-side.js'
import type { Side } from './side.js'

export type SideRequest = { runId: string; seq?: number | undefined } | { bundle: string | object }

export interface CompareRequest {
  left: SideRequest
  right: SideRequest
  ignore?: readonly string[] | undefined
  sections?: readonly CompareSection[] | undefined
  limit?: number | undefined
  fields?: boolean | undefined
}

export interface Comparer {
  compare(workspaceId: string, request: CompareRequest, signal: AbortSignal): Promise<Comparison>
  matrix(workspaceId: string, runs: readonly SideRequest[], signal: AbortSignal): Promise<ComparisonMatrix>
}

export interface ComparerDeps {
  sql: Sql
  runStates: Pick<RunStates, 'fold'>
  prices: PriceTable
  mask: Pick<Mask, 'text'>
  config: { COMPARE_MAX_EVENTS: number; MAX_BODY_BYTES: number }
}

const MAX_RUNNING = 2
const MAX_WAITING = 20

export function createComparer({ sql, runStates, prices, mask, config }: ComparerDeps): Comparer {
  const turns = createTurns({ maxRunning: MAX_RUNNING, waiting: { max: MAX_WAITING, what: 'comparisons' } })
  const maxEvents = config.COMPARE_MAX_EVENTS
  const stateOptions = { prices, masked: mask.text }

  async function withSide<T>(
    name: string,
    workspaceId: string,
    request: SideRequest,
    options: { ignore: readonly string[]; pauses: Pauses },
    use: (side: Side) => Promise<T>,
  ): Promise<T> {
    const { pauses } = options
    const rules = createRules(options.ignore)
    if ('bundle' in request) return withInlineBundle(request.bundle, name, { maxBytes: config.MAX_BODY_BYTES, maxEvents, rules, pauses }, use)
    return use(await openRunSide({ sql, runStates, maxEvents }, { workspaceId, ...request }, rules, pauses))
  }

  return {
    compare: (workspaceId, { left, right, ignore = [], sections, limit = DEFAULT_LIMIT, fields = false }, signal) =>
      turns.take(async () => {
        const pauses = createPauses(signal)
        const options = { ignore, pauses }
        const comparison = (one: Side, other: Side) =>
          compare(one, other, { ...stateOptions, sections, rules: createRules(ignore), ignore, limit, fields, pauses })
        return withSide('left', workspaceId, left, options, (one) =>
          // A live run has not changed since it was looked at a moment ago.
          isSameRun(left, right) ? comparison(one, one) : withSide('right', workspaceId, right, options, (other) => comparison(one, other)),
        )
      }, signal),
    matrix: (workspaceId, runs, signal) =>
      turns.take(async () => {
        const options = { ignore: [], pauses: createPauses(signal) }
        const sides: Side[] = []
        const open = async (rest: readonly SideRequest[]): Promise<ComparisonMatrix> => {
          const [next, ...others] = rest
          if (next) {
            return withSide(`runs/${sides.length}`, workspaceId, next, options, async (side) => {
              sides.push(side)
              return open(others)
            })
          }
          return compareMany(sides, stateOptions)
        }
        return open(runs)
      }, signal),
  }
}

function isSameRun(left: SideRequest, right: SideRequest): boolean {
  return 'runId' in left && 'runId' in right && left.runId === right.runId && left.seq === right.seq
}
