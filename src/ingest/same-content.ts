/** Whether two JSON texts under one event id are the same event: retries may write it with other white space, another order of keys or `1.0` for `1`. */
import { isDeepStrictEqual } from 'node:util'

/** Strings, to be passed over, and numbers with their parts. */
const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?/g

/** Both have been parsed before they were stored. Numbers are compared as they are written, to the last digit: a double holds 15 of them. */
export function isSameContent(left: string, right: string): boolean {
  if (left === right) return true
  try {
    // Exact numbers are texts: the first comparison tells a text of digits from them.
    return isDeepStrictEqual(JSON.parse(left), JSON.parse(right)) && isDeepStrictEqual(JSON.parse(withExactNumbers(left)), JSON.parse(withExactNumbers(right)))
  } catch {
    return false
  }
}

/** An exponent of more digits is compared as it is written. */
const MAX_EXPONENT_CHARS = 12

/** Each number as a string of its digits and its exponent, in the one way of writing them. */
function withExactNumbers(text: string): string {
  return text.replace(STRING_OR_NUMBER, (token, sign: string | undefined, whole = '', fraction = '', exponent = '0') => {
    if (sign === undefined) return token
    if (exponent.length > MAX_EXPONENT_CHARS) return `"${token}"`
    const digits = `${whole}${fraction}`
    let from = 0
    let to = digits.length
    while (digits[from] === '0') from++
    while (to > from && digits[to - 1] === '0') to--
    const power = from === to ? 0 : Number(exponent) - fraction.length + digits.length - to
    return `"${sign}${digits.slice(from, to)}e${power}"`
  })
}
