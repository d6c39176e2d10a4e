/**
 * What an answer or a failure of a source means. Pure: the timers and the counts are the reader's.
 *
 *   again   worth another try: the network, 5xx, 408, 425 and 429; and, while the source has never been there, 404
 *   never   another try gives the same: any other status, another content type, an address that is refused
 */

import { RunplaneError } from '../errors.js'
import { NDJSON_TYPES } from '../ingest/normalize.js'
import { AddressRefused } from '../ops/outbound.js'

export type Verdict =
  | { kind: 'read'; as: 'sse' | 'ndjson' }
  /** The source says that there is no more. */
  | { kind: 'ended'; reason: string }
  | { kind: 'again'; reason: string; retryAfterMs?: number | undefined }
  | { kind: 'never'; reason: string }

/** A source that asks for a longer pause than this is asked sooner. */
const MAX_RETRY_AFTER_MS = 3_600_000

export interface Answer {
  statusCode: number
  headers: Record<string, string | string[] | undefined>
}

/** @param options.bound the source has been open before */
export function verdictOnAnswer({ statusCode, headers }: Answer, { bound, nowMs }: { bound: boolean; nowMs: number }): Verdict {
  if (statusCode === 204) return { kind: 'ended', reason: 'The source has said that there is no more (204).' }
  if (statusCode === 200) return verdictOnContent(headers)
  const reason = `The source answered ${statusCode}.`
  if (statusCode >= 300 && statusCode < 400) return { kind: 'never', reason: `${reason} Redirects are not followed: name the address that they lead to.` }
  const passing = statusCode >= 500 || statusCode === 408 || statusCode === 425 || statusCode === 429 || (statusCode === 404 && !bound)
  return passing ? { kind: 'again', reason, retryAfterMs: retryAfterMs(textOf(headers['retry-after']), nowMs) } : { kind: 'never', reason }
}

function verdictOnContent(headers: Answer['headers']): Verdict {
  const encoding = textOf(headers['content-encoding'])
  if (encoding !== undefined && encoding.trim().toLowerCase() !== 'identity') {
    return { kind: 'never', reason: `The source sends content in the encoding '${encoding.slice(0, 64)}', though none was asked for.` }
  }
  const type = textOf(headers['content-type'])
  const media = (type?.split(';', 1)[0] ?? '').trim().toLowerCase()
  if (media === 'text/event-stream') return { kind: 'read', as: 'sse' }
  if (NDJSON_TYPES.includes(media)) return { kind: 'read', as: 'ndjson' }
  return { kind: 'never', reason: `The source sends '${media.slice(0, 64)}', neither text/event-stream nor ${NDJSON_TYPES.join(' nor ')}.` }
}

/** Errors of the request itself: the same request fails again. */
const NEVER_CODES = new Set(['UND_ERR_INVALID_ARG', 'UND_ERR_NOT_SUPPORTED', 'ERR_INVALID_URL', 'ERR_INVALID_CHAR', 'ERR_INVALID_ARG_TYPE'])

/** The reason holds nothing of the request: its headers are secret. */
export function verdictOnError(error: unknown, what = 'source'): Extract<Verdict, { kind: 'again' | 'never' }> {
  if (error instanceof AddressRefused || (error instanceof RunplaneError && error.code !== 'OVERLOADED')) return { kind: 'never', reason: error.message }
  const code = codeOf(error)
  if (NEVER_CODES.has(code)) return { kind: 'never', reason: `The ${what} cannot be asked: ${code}.` }
  return { kind: 'again', reason: `The ${what} cannot be reached: ${code}.` }
}

function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return 'unknown error'
  if ('code' in error && typeof error.code === 'string') return error.code
  return error.cause instanceof Error ? codeOf(error.cause) : error.name
}

/** Seconds, or a date (RFC 9110, section 10.2.3). */
function retryAfterMs(text: string | undefined, nowMs: number): number | undefined {
  if (text === undefined) return undefined
  const ms = /^\d{1,9}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - nowMs
  return Number.isNaN(ms) ? undefined : Math.min(Math.max(ms, 0), MAX_RETRY_AFTER_MS)
}

const textOf = (value: string | string[] | undefined) => (Array.isArray(value) ? value[0] : value)

/**
 * The pause before the next try: twice as long each time, up to `maxMs`, of which between a half and all, so that many readers
 * of one source do not come back at once.
 * @param count tries since the last event; at least 1
 * @param atLeastMs what the source asks for
 * @param random from 0 to 1
 */
export function backoffMs({
  count,
  baseMs,
  maxMs,
  atLeastMs = 0,
  random,
}: {
  count: number
  baseMs: number
  maxMs: number
  atLeastMs?: number
  random: number
}): number {
  const fullMs = Math.min(maxMs, baseMs * 2 ** Math.min(count - 1, 30))
  return Math.max(Math.round(fullMs * (0.5 + random / 2)), Math.min(atLeastMs, MAX_RETRY_AFTER_MS))
}
