/**
 * The registry of formats, and the one way from a raw event to drafts that the log may store: whatever comes in, what
 * comes out fits the vocabulary, or the item is rejected. Nothing is dropped: what cannot be mapped becomes `raw.received`.
 */
import type { DraftEvent } from '../domain/canonical-event.js'
import { RunplaneError } from '../errors.js'
import { isFields } from './fields.js'
import { fitDraft } from './fit.js'
import { type Format, type NormalizeContext, type NormalizeResult, type Rejected, unmapped } from './format.js'
import { jobs } from './formats/jobs.js'
import { macp } from './formats/macp.js'
import { native } from './formats/native.js'

export const FORMATS: readonly Format[] = [native, jobs, macp]

/** Canonical events that one request may become: an item may become a thousand of them, and they are made at once. */
export const MAX_DERIVED_EVENTS = 10_000

const JSON_TYPE = 'application/json'
export const NDJSON_TYPES: readonly string[] = ['application/x-ndjson', 'application/ndjson', 'application/jsonl', 'application/x-jsonlines']

function mediaType(contentType: string): string {
  return (contentType.split(';')[0] ?? '').trim().toLowerCase()
}

/**
 * @param contentType the request's header; without one the body is taken as JSON.
 * @param formatParam the query's `format`; without one the media type decides.
 * @throws RunplaneError UNSUPPORTED_FORMAT, which lists what there is.
 */
export function formatFor(contentType: string | undefined, formatParam: string | undefined): Format {
  const media = contentType === undefined || contentType === JSON_TYPE ? JSON_TYPE : mediaType(contentType)
  if (media !== JSON_TYPE && !NDJSON_TYPES.includes(media)) {
    throw new RunplaneError(
      'UNSUPPORTED_FORMAT',
      `There is no format with the content type '${media}'. Send ${[JSON_TYPE, ...NDJSON_TYPES].join(', ')}; with curl: -H 'content-type: application/json'.`,
    )
  }
  const name = formatParam ?? native.name
  const format = FORMATS.find((candidate) => candidate.name === name)
  if (format === undefined) {
    throw new RunplaneError('UNSUPPORTED_FORMAT', `There is no format '${name}'. Known formats: ${FORMATS.map((known) => known.name).join(', ')}.`)
  }
  return format
}

/** The refusal of a request that becomes more than MAX_DERIVED_EVENTS. */
export function tooManyDerived(): RunplaneError {
  return new RunplaneError(
    'PAYLOAD_TOO_LARGE',
    `A request may become ${MAX_DERIVED_EVENTS} canonical events, and this one becomes more. Send several requests; an NDJSON body that is posted to a run has no limit.`,
  )
}

function rejected(detail: string): Rejected {
  return { ok: false, code: 'VALIDATION_ERROR', detail }
}

interface Misfit {
  draft: DraftEvent
  reason: string
}

/** One event for all that does not fit, since it is one raw event: what it was about is not known, when it happened is. */
function keptRaw([first, ...others]: [Misfit, ...Misfit[]]): DraftEvent {
  const more = others.length === 0 ? '' : ` (and ${others.length} more of this event)`
  return { ...unmapped(`${first.draft.type} does not fit: ${first.reason}${more}`), ...(first.draft.ts !== undefined && { ts: first.draft.ts }) }
}

/**
 * What a raw event becomes. Total: never throws, whatever the value.
 * @param value the parsed value of an item of json-items.ts.
 * @returns drafts that fit the schemas of their types, at least one; or why the item is rejected.
 */
export function normalizeItem(format: Format, value: unknown, context: NormalizeContext): NormalizeResult {
  if (!isFields(value)) return rejected('An event is a JSON object.')
  const result = format.normalize(value, context)
  if (!result.ok) return result
  if (result.events.length === 0) result.events.push(unmapped(`The ${format.name} format makes nothing of this event.`))
  let misfits: [Misfit, ...Misfit[]] | undefined
  for (const draft of result.events) {
    const reason = fitDraft(draft, format.misfits === 'keep-raw')
    if (reason === undefined) continue
    if (format.misfits === 'reject') return rejected(reason)
    if (misfits === undefined) misfits = [{ draft, reason }]
    else misfits.push({ draft, reason })
  }
  if (misfits === undefined) return result
  const unfit = new Set(misfits.map(({ draft }) => draft))
  return { ...result, events: [...result.events.filter((draft) => !unfit.has(draft)), keptRaw(misfits)] }
}
