/** Whether two JSON texts under one event id are the same event: retries may write it with other white space, another order of keys or `1.0` for `1`. */
import { isDeepStrictEqual } from 'node:util'
import { beginsNumber, endOfNumber, endOfString, QUOTE } from './json-text.js'

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
  let exact = ''
  let copied = 0
  for (let at = 0; at < text.length; ) {
    const unit = text.charCodeAt(at)
    if (unit === QUOTE) at = endOfString(text, at)
    else if (beginsNumber(unit)) {
      const end = endOfNumber(text, at)
      exact += text.slice(copied, at) + exactNumber(text.slice(at, end))
      copied = end
      at = end
    } else at++
  }
  return exact + text.slice(copied)
}

function exactNumber(token: string): string {
  const [mantissa = '', exponent = '0'] = token.split(/e/i)
  if (exponent.length > MAX_EXPONENT_CHARS) return `"${token}"`
  const sign = mantissa.startsWith('-') ? '-' : ''
  const [whole = '', fraction = ''] = mantissa.slice(sign.length).split('.')
  const digits = `${whole}${fraction}`
  let from = 0
  let to = digits.length
  while (digits[from] === '0') from++
  while (to > from && digits[to - 1] === '0') to--
  const power = from === to ? 0 : Number(exponent) - fraction.length + digits.length - to
  return `"${sign}${digits.slice(from, to)}e${power}"`
}
