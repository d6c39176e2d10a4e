/** Adds up the receipts of a request's parts into its one answer. Bounded: past a limit results are counted, not listed; rejected ones always stay up to it. */
import type { StoredPart } from '../errors.js'
import type { AppendReceipt, ItemResult } from '../log/append-request.js'
import type { AppendAnswer } from './schemas/append.js'

const MAX_RESULTS = 10_000

export class Tally {
  private readonly results: ItemResult[] = []
  private items = 0
  private accepted = 0
  private duplicates = 0
  private rejected = 0
  private truncated = 0
  private firstSeq: number | null = null
  private lastSeq: number | null = null
  private headSeq = 0

  /** @param minimal leaves out the results that are not rejected (`Prefer: return=minimal`, RFC 7240, section 4.2) */
  constructor(private readonly minimal: boolean) {}

  add(receipt: AppendReceipt): void {
    this.headSeq = receipt.headSeq
    for (const result of receipt.results) {
      const index = this.items++
      if (result.status === 'stored') this.accepted++
      else if (result.status === 'duplicate') this.duplicates++
      else this.rejected++
      for (const seq of result.seqs) {
        if (this.firstSeq === null || seq < this.firstSeq) this.firstSeq = seq
        if (this.lastSeq === null || seq > this.lastSeq) this.lastSeq = seq
      }
      if (this.minimal && result.status !== 'rejected') continue
      if (this.results.length >= MAX_RESULTS) this.truncated++
      else this.results.push(result.index === index ? result : { ...result, index })
    }
  }

  /** 200; 207 where some items were rejected, 422 where all were. */
  status(): 200 | 207 | 422 {
    if (this.rejected === 0) return 200
    return this.accepted + this.duplicates === 0 ? 422 : 207
  }

  totals(): StoredPart {
    const { accepted, duplicates, rejected, firstSeq, lastSeq, headSeq } = this
    return { accepted, duplicates, rejected, firstSeq, lastSeq, headSeq }
  }

  answer(runId: string): AppendAnswer {
    const answer: AppendAnswer = { runId, ...this.totals() }
    if (!this.minimal || this.results.length > 0) answer.results = this.results
    if (this.truncated > 0) answer.truncatedResults = this.truncated
    return answer
  }
}
