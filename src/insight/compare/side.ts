/**
 * One of the two runs that are compared, wherever it is: in the log as of a seq, or in a bundle.
 * What every event needs is in columns (34 bytes an event); payloads are read for the few events that are shown.
 */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import type { FoldState } from '../../projections/fold.js'
import type { Digests } from './alignment.js'

export interface Side {
  readonly runId: string
  readonly firstSeq: number
  /** The last event that is compared. */
  readonly seq: number
  /** The last event of the run, where the side is a part of it. */
  readonly headSeq?: number | undefined
  readonly kind: 'run' | 'bundle'
  columns(): Promise<Columns>
  state(): Promise<FoldState>
  /** Some events, by seq: for as many as may be in memory at once. */
  events(seqs: readonly number[]): Promise<Map<number, CanonicalEvent>>
}

/** The events in order, without a hole: the seq of the one at `index` is `firstSeq + index`. */
export interface Columns extends Digests {
  readonly firstSeq: number
  /** A number for each subject, equal within the run only. */
  readonly subject: Float64Array
  readonly tsMs: Float64Array
  /** An index of `types`. */
  readonly type: Uint16Array
  readonly types: readonly string[]
}

/** Room for the types of a run; the vocabulary has some sixty. What comes after is counted as one. */
const MAX_TYPES = 0xffff
const OTHER_TYPES = '(other)'

export interface ColumnsWriter {
  type(name: string): number
  readonly columns: Columns
}

export function createColumns(length: number, firstSeq: number): ColumnsWriter {
  const numbers = new Map<string, number>()
  const types: string[] = []
  return {
    type(name) {
      const known = numbers.get(name)
      if (known !== undefined) return known
      const number = Math.min(types.length, MAX_TYPES)
      numbers.set(name, number)
      types[number] = number === MAX_TYPES ? OTHER_TYPES : name
      return number
    },
    columns: {
      length,
      firstSeq,
      shape: new Float64Array(length),
      content: new Float64Array(length),
      subject: new Float64Array(length),
      tsMs: new Float64Array(length),
      type: new Uint16Array(length),
      types,
    },
  }
}

export function typeAt({ type, types }: Columns, index: number): string {
  return types[type[index] ?? 0] ?? ''
}

/** Chunks of events whose payloads are in memory at once: an event is at most some 256 KiB. */
export function* chunks<T>(items: readonly T[], size: number): Generator<readonly T[]> {
  for (let from = 0; from < items.length; from += size) yield items.slice(from, from + size)
}
