/**
 * What an ingest format is: a pure function from one raw event to zero or more drafts of canonical events.
 * One file a format under formats/, listed in normalize.ts.
 */
import type { DraftEvent, SourceKind } from '../domain/canonical-event.js'
import type { ErrorCode } from '../errors.js'
import { asText, type Fields } from './fields.js'

export interface NormalizeContext {
  /** The producer's name where the event does not give one: the name of the API key, or `anonymous`. */
  readonly defaultSource: string
}

export interface Normalized {
  ok: true
  /** The event's own id, unique per run and source name; undefined where the format has none. */
  eventId?: string | undefined
  sourceKind: SourceKind
  sourceName: string
  /** The event's type as the format names it. */
  rawType: string
  events: DraftEvent[]
}

export interface Rejected {
  ok: false
  code: ErrorCode
  /** Says what is wrong, where, and what is allowed. */
  detail: string
}

export type NormalizeResult = Normalized | Rejected

export interface Format {
  readonly name: string
  /** Raised when the same raw event would map to other canonical events than before. */
  readonly version: number
  /** What becomes of an event that does not fit its type: the item is rejected, or the event becomes `raw.received`. */
  readonly misfits: 'reject' | 'keep-raw'
  /**
   * Pure and total: never throws. `value` is the parsed JSON of one raw event, already free of NUL and lone surrogates.
   * The drafts need not fit their types, nor have their default subjects: `normalizeItem` sees to both.
   */
  normalize(value: Fields, context: NormalizeContext): NormalizeResult
}

/** Bounds of what the log indexes: an event id and a source name must fit one row of a Postgres index (2,704 bytes) together. */
export const MAX_ID_CHARS = 512
export const MAX_SOURCE_CHARS = 256

/** @returns the id of an event; none where it is too long, or an integer that a double cannot hold, which would make two ids one. */
export function asEventId(value: unknown): string | undefined {
  const id = typeof value === 'number' && !Number.isSafeInteger(value) ? undefined : asText(value)
  return id !== undefined && id.length <= MAX_ID_CHARS ? id : undefined
}

export const EVENT_ID = `a text of 1 to ${MAX_ID_CHARS} characters, or an integer between -(2^53 - 1) and 2^53 - 1`

/** An event that is kept although nothing could be made of it. */
export function unmapped(reason: string, ts?: string): DraftEvent {
  return { type: 'raw.received', ...(ts !== undefined && { ts }), data: { reason } }
}
