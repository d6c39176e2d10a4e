/** Patterns of texts that clients send, each with what it asks for in words: a regular expression helps nobody who got it wrong. */

const words = new Map<string, string>()

/** @param regex for a JSON schema. @param asks what goes on with "must be": `lower-case letters, at most 63` */
export function pattern(regex: string, asks: string): string {
  words.set(regex, asks)
  return regex
}

/** The sentence about a text that does not match; undefined where nobody has said what the pattern asks for. */
export function mustBe(regex: string): string | undefined {
  const asks = words.get(regex)
  return asks && `must be ${asks}`
}

export const SHA256_PATTERN = pattern('^[0-9a-f]{64}$', '64 lower-case hexadecimal digits')
export const NO_CONTROLS_PATTERN = pattern('^[^\\u0000-\\u001f\\u007f]*$', 'text without control characters')
