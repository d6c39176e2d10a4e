/** When a delivery that failed is sent again. Pure: time and chance come in as arguments. */

/** The first retry comes after 3 s, each further one 2.5 times later, up to 4 hours: 15 attempts or so in 24 hours. */
const FIRST_DELAY_MS = 3000
const FACTOR = 2.5
const MAX_DELAY_MS = 4 * 3_600_000

/**
 * @param attempts that have failed, from 1
 * @param random from 0 to 1; the delay is up to a fifth shorter or longer, so that what failed at once does not come back at once
 */
export function retryDelayMs(attempts: number, random: number, firstDelayMs = FIRST_DELAY_MS): number {
  return Math.round(Math.min(firstDelayMs * FACTOR ** Math.min(attempts - 1, 50), MAX_DELAY_MS) * (0.8 + 0.4 * random))
}

/** Retry-After in seconds or as a date (RFC 9110, section 10.2.3), as milliseconds from now; undefined for none, or for nonsense. */
export function retryAfterMs(header: string | undefined, nowMs: number): number | undefined {
  if (header === undefined) return undefined
  const text = header.trim()
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000
  // An HTTP date, and nothing else that Date.parse would guess at.
  if (!/^[A-Z][a-z]{2,8}, .* GMT$/.test(text)) return undefined
  const atMs = Date.parse(text)
  return Number.isNaN(atMs) ? undefined : Math.max(0, atMs - nowMs)
}

/** An endpoint that cannot be reached is left alone for a while, so that its attempts do not take the places of others. */
const FAILURES_BEFORE_REST = 3
const FIRST_REST_MS = 1000
const MAX_REST_MS = 60_000

/** @param failures to reach it, one after another, of whichever runs */
export function restMs(failures: number, random: number): number {
  if (failures < FAILURES_BEFORE_REST) return 0
  return Math.round(Math.min(FIRST_REST_MS * 2 ** Math.min(failures - FAILURES_BEFORE_REST, 20), MAX_REST_MS) * (0.8 + 0.4 * random))
}
