/** Adds up the receipts of a request's parts into its one answer. Bounded: past a limit results are counted, not listed; rejected ones always stay up to it. */
import type { StoredPart } from '../errors.js'
import type { AppendReceipt, ItemResult } from '../log/append-request.js'
import type { AppendAnswer } from './schemas/append.js'

const MAX_RESULTS = 10_000

export interface Tally {
  add(receipt: AppendReceipt): void
  /** 200; 207 where some items were rejected, 422 where all were. */
  status(): 200 | 207 | 422
  totals(): StoredPart
  answer(runId: string): AppendAnswer
}

/** @param minimal leaves out the results that are not rejected (`Prefer: return=minimal`, RFC 7240, section 4.2) */
export function createTally(minimal: boolean): Tally {
  const results: ItemResult[] = []
  let items = 0
  let accepted = 0
  let duplicates = 0
  let rejected = 0
  let truncated = 0
  let firstSeq: number | null = null
  let lastSeq: number | null = null
  let headSeq = 0
  const totals = () => ({ accepted, duplicates, rejected, firstSeq, lastSeq, headSeq })
  return {
    add(receipt) {
      headSeq = receipt.headSeq
      for (const result of receipt.results) {
        const index = items++
        if (result.status === 'stored') accepted++
        else if (result.status === 'duplicate') duplicates++
        else rejected++
        for (const seq of result.seqs) {
          if (firstSeq === null || seq < firstSeq) firstSeq = seq
          if (lastSeq === null || seq > lastSeq) lastSeq = seq
        }
        if (minimal && result.status !== 'rejected') continue
        if (results.length >= MAX_RESULTS) truncated++
        else results.push(result.index === index ? result : { ...result, index })
      }
    },
    status() {
      if (rejected === 0) return 200
      return accepted + duplicates === 0 ? 422 : 207
    },
    totals,
    answer(runId) {
      const answer: AppendAnswer = { runId, ...totals() }
      if (!minimal || results.length > 0) answer.results = results
      if (truncated > 0) answer.truncatedResults = truncated
      return answer
    },
  }
}
