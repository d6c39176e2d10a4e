/** Times on the wire: RFC 3339 in UTC with up to microseconds. */

/** The beginning of the year 1. */
const FIRST_MS = -62_135_596_800_000
const RFC3339 = /^(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(\.\d+)?([Zz]|([+-])(\d{2}):(\d{2}))$/

/**
 * Normalises an RFC 3339 time (any offset) to UTC, keeping at most microseconds.
 * @returns the text with a `Z`, with milliseconds or, where given, microseconds; undefined if it is not a time.
 */
export function toUtc(text: string): string | undefined {
  if (isIso(text)) return text
  const match = RFC3339.exec(text)
  if (!match) return undefined
  const [, year, month, day, hour, minute, second, fraction = '', zone = 'Z', sign, zoneHours, zoneMinutes] = match
  // A leap second is folded into the second before it: neither Date nor timestamptz can hold :60.
  const seconds = Math.min(Number(second), 59)
  if (Number(month) < 1 || Number(month) > 12 || Number(hour) > 23 || Number(minute) > 59 || Number(second) > 60) return undefined
  if (Number(year) < 1) return undefined
  const utc = new Date(0)
  utc.setUTCFullYear(Number(year), Number(month) - 1, Number(day))
  if (utc.getUTCDate() !== Number(day)) return undefined
  utc.setUTCHours(Number(hour), Number(minute), seconds)
  let epochMs = utc.getTime()
  if (zone !== 'Z' && zone !== 'z') {
    if (Number(zoneHours) > 23 || Number(zoneMinutes) > 59) return undefined
    const offsetMs = (Number(zoneHours) * 60 + Number(zoneMinutes)) * 60_000
    epochMs += sign === '-' ? offsetMs : -offsetMs
  }
  const iso = new Date(epochMs).toISOString()
  if (iso.length !== 24 || iso.startsWith('0000')) return undefined
  const digits = fraction.slice(1, 7)
  if (digits.length <= 3) return `${iso.slice(0, 20)}${digits.padEnd(3, '0')}Z`
  return `${iso.slice(0, 20)}${digits.padEnd(6, '0')}Z`
}

const ISO = /^\d\d\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d\d\dZ$/

/** As most clients send it, and as it is stored; a day that not every month has takes the long way. */
function isIso(text: string): boolean {
  return text.length === 24 && ISO.test(text) && !text.startsWith('0000')
}

/** Milliseconds since the Unix epoch as an RFC 3339 text; undefined outside the years 1 to 9999. */
export function fromEpochMs(epochMs: number): string | undefined {
  if (!Number.isFinite(epochMs) || epochMs < FIRST_MS || epochMs > 253_402_300_799_999) return undefined
  return new Date(epochMs).toISOString()
}
