/** Statistics of a benchmark: what is measured against a baseline is measured in turns with it, and compared pair by pair. */
import { performance } from 'node:perf_hooks'

/** V8 goes on making a busy service faster for seconds: what is measured is one that has been in use. */
export const WARM_UP_MS = 5000

export interface Pair {
  ours: number
  baseline: number
}

export interface Spread {
  median: number
  min: number
  max: number
}

/** One line of the table. `target` is met if the ratio (or, where there is no baseline, the value) is on the right side of it. */
export interface Row {
  what: string
  database: string
  unit: string
  ours: Spread
  baseline?: Spread
  /** Ours over the baseline, round by round. */
  ratio?: Spread
  target?: string
  met?: boolean
  note?: string
  /** Where it was measured earlier than the rest of the table. */
  measuredAt?: string
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN
}

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? Number.NaN
  const median = sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
  return { median, min: sorted[0] ?? Number.NaN, max: sorted.at(-1) ?? Number.NaN }
}

/** Ours, baseline, ours, baseline: a machine that slows down for a while slows both. */
export async function inTurns(rounds: number, ours: () => Promise<number>, baseline: () => Promise<number>): Promise<Pair[]> {
  const pairs: Pair[] = []
  for (let round = 0; round < rounds; round++) pairs.push({ ours: await ours(), baseline: await baseline() })
  return pairs
}

export async function repeat(rounds: number, measure: () => Promise<number>): Promise<number[]> {
  const values: number[] = []
  for (let round = 0; round < rounds; round++) values.push(await measure())
  return values
}

/** @param target the least ratio (`atLeast`) or the greatest (`atMost`) of ours to the baseline. */
export function compared(row: Pick<Row, 'what' | 'database' | 'unit' | 'note'>, pairs: readonly Pair[], target: { atLeast: number } | { atMost: number }): Row {
  const { ratio, ...sides } = against(pairs)
  const times = (factor: number) => `${factor.toLocaleString('en', { minimumFractionDigits: 1 })} x`
  const [met, text] =
    'atLeast' in target
      ? [ratio.median >= target.atLeast, `at least ${times(target.atLeast)}`]
      : [ratio.median <= target.atMost, `at most ${times(target.atMost)}`]
  return { ...row, ...sides, ratio, target: text, met }
}

/** Both sides of the rounds, and their ratios round by round. */
export function against(pairs: readonly Pair[]) {
  return {
    ours: spread(pairs.map((pair) => pair.ours)),
    baseline: spread(pairs.map((pair) => pair.baseline)),
    ratio: spread(pairs.map((pair) => pair.ours / pair.baseline)),
  }
}

export async function seconds(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now()
  await work()
  return (performance.now() - start) / 1000
}

/** Every worker works, one piece after another, until the time is over. @returns how much they said they did, per second. */
export async function rateOf(workers: readonly (() => Promise<number>)[], durationMs: number): Promise<number> {
  const start = performance.now()
  let done = 0
  const loop = async (work: () => Promise<number>) => {
    while (performance.now() - start < durationMs) {
      // Not `done += await work()`, which would read `done` before it waits, and lose what the others did meanwhile.
      const piece = await work()
      done += piece
    }
  }
  await Promise.all(workers.map(loop))
  return done / ((performance.now() - start) / 1000)
}

export async function until(condition: () => boolean | Promise<boolean>, what: string, timeoutMs = 120_000): Promise<void> {
  const start = performance.now()
  while (!(await condition())) {
    if (performance.now() - start > timeoutMs) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
