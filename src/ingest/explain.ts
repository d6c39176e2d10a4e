/** What a payload would become, without storing it: the same path as a post, up to the log. */
import type { DraftEvent, Reference, SourceKind } from '../domain/canonical-event.js'
import type { ErrorCode } from '../errors.js'
import type { Format, NormalizeContext } from './format.js'
import { MAX_DERIVED_EVENTS, normalizeItem, tooManyDerived } from './normalize.js'
import type { RawItem } from './raw-item.js'
import { isSameContent } from './same-content.js'
import { subjectOf } from './subject.js'

/** Stands where the log will put a number or an id of its own. */
const RUN_ID = '<runId>'
const RAW_SEQ = '<rawSeq>'

export type ExplainedEvent = Omit<DraftEvent, 'subject'> & { subject: Reference }

export type ExplainedItem =
  | { index: number; status: 'would_store'; rawType: string; eventId?: string; source: { kind: SourceKind; name: string }; events: ExplainedEvent[] }
  | { index: number; status: 'duplicate'; duplicateOf: number; eventId: string; source: { kind: SourceKind; name: string } }
  | { index: number; status: 'rejected'; code: ErrorCode; detail: string }

export interface Explanation {
  format: string
  version: number
  /** Items that would be stored, that would be rejected, that repeat others of the payload, and canonical events that would be `raw.received`. */
  wouldStore: number
  rejected: number
  duplicates: number
  unmapped: number
  results: ExplainedItem[]
}

/** By source name and event id. */
type Told = Map<string, { index: number; text: string }>

function explainItem(format: Format, item: RawItem, index: number, context: NormalizeContext, told: Told): ExplainedItem {
  const result = item.ok ? normalizeItem(format, item.value, context) : item
  if (!result.ok) return { index, status: 'rejected', code: result.code, detail: result.detail }
  const { eventId, sourceKind, sourceName, rawType } = result
  const source = { kind: sourceKind, name: sourceName }
  if (eventId !== undefined && item.ok) {
    const key = JSON.stringify([sourceName, eventId])
    const before = told.get(key)
    if (before === undefined) told.set(key, { index, text: item.text })
    else if (isSameContent(before.text, item.text)) return { index, status: 'duplicate', duplicateOf: before.index, eventId, source }
    else return { index, status: 'rejected', code: 'IDEMPOTENCY_CONFLICT', detail: `Item ${before.index} has the event id '${eventId}' for other content.` }
  }
  return {
    index,
    status: 'would_store',
    rawType,
    ...(eventId !== undefined && { eventId }),
    source,
    events: result.events.map((draft) => ({ ...draft, subject: subjectOf(draft, RUN_ID, RAW_SEQ) })),
  }
}

/**
 * @param items as `splitJsonBody` or an NDJSON splitter cuts them. An event without `ts` gets the time of its receipt.
 * @throws RunplaneError PAYLOAD_TOO_LARGE where they become too many events to be answered at once
 */
export function explain(format: Format, items: readonly RawItem[], context: NormalizeContext): Explanation {
  const told: Told = new Map()
  const results: ExplainedItem[] = []
  const events: ExplainedEvent[] = []
  for (const [index, item] of items.entries()) {
    const result = explainItem(format, item, index, context, told)
    results.push(result)
    if (result.status === 'would_store') events.push(...result.events)
    if (events.length > MAX_DERIVED_EVENTS) throw tooManyDerived()
  }
  const count = (status: ExplainedItem['status']) => results.filter((result) => result.status === status).length
  return {
    format: format.name,
    version: format.version,
    wouldStore: count('would_store'),
    rejected: count('rejected'),
    duplicates: count('duplicate'),
    unmapped: events.filter((event) => event.type === 'raw.received').length,
    results,
  }
}
