/**
 * What an ingest format is: a pure function from one raw event to zero or more drafts of canonical events.
 * One file a format under formats/, listed in normalize.ts.
 */
import type { DraftEvent, SourceKind } from '../domain/canonical-event.js'
import type { ErrorCode } from '../errors.js'

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
  /** Pure and total: never throws. `value` is the parsed JSON of one raw event, already free of NUL and lone surrogates. */
  normalize(value: unknown, context: NormalizeContext): NormalizeResult
}
