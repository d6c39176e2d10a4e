/** What a payload would become, without storing it: the same path as a post, up to the log. */
import type { DraftEvent, Reference, SourceKind } from '../domain/canonical-event.js'
import type { ErrorCode } from '../errors.js'
import type { Format, NormalizeContext } from './format.js'
import { normalizeItem } from './normalize.js'
import type { RawItem } from './raw-item.js'
import { subjectOf } from './subject.js'

/** Stands where the log will put a number or an id of its own. */
const RUN_ID = '<runId>'
const RAW_SEQ = '<rawSeq>'

export type ExplainedEvent = Omit<DraftEvent, 'subject'> & { subject: Reference }

export type ExplainedItem =
  | { index: number; status: 'would_store'; rawType: string; eventId?: string; source: { kind: SourceKind; name: string }; events: ExplainedEvent[] }
  | { index: number; status: 'rejected'; code: ErrorCode; detail: string }

export interface Explanation {
  format: string
  version: number
  /** Items that would be stored, items that would be rejected, and canonical events that would be `raw.received`. */
  wouldStore: number
  rejected: number
  unmapped: number
  results: ExplainedItem[]
}

function explainItem(format: Format, item: RawItem, index: number, context: NormalizeContext): ExplainedItem {
  const result = item.ok ? normalizeItem(format, item.value, context) : item
  if (!result.ok) return { index, status: 'rejected', code: result.code, detail: result.detail }
  const { eventId, sourceKind, sourceName, rawType } = result
  return {
    index,
    status: 'would_store',
    rawType,
    ...(eventId !== undefined && { eventId }),
    source: { kind: sourceKind, name: sourceName },
    events: result.events.map((draft) => ({ ...draft, subject: subjectOf(draft, RUN_ID, RAW_SEQ) })),
  }
}

/** @param items as `splitJsonBody` or an NDJSON splitter cuts them. An event without `ts` gets the time of its receipt. */
export function explain(format: Format, items: readonly RawItem[], context: NormalizeContext): Explanation {
  const results = items.map((item, index) => explainItem(format, item, index, context))
  const events = results.flatMap((result) => (result.status === 'would_store' ? result.events : []))
  const rejected = results.filter((result) => result.status === 'rejected').length
  return {
    format: format.name,
    version: format.version,
    wouldStore: results.length - rejected,
    rejected,
    unmapped: events.filter((event) => event.type === 'raw.received').length,
    results,
  }
}
