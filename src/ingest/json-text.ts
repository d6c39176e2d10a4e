/** Where the strings and numbers of a JSON text lie. What is not JSON is walked through all the same. */

export const QUOTE = 0x22
const BACKSLASH = 0x5c
const MINUS = 0x2d
const DIGIT_0 = 0x30
const DIGIT_9 = 0x39

/** After the closing quote of the string that opens at `at`; the end of the text where there is none. */
export function endOfString(text: string, at: number): number {
  for (let quote = text.indexOf('"', at + 1); quote !== -1; quote = text.indexOf('"', quote + 1)) {
    let backslashes = 0
    while (text.charCodeAt(quote - 1 - backslashes) === BACKSLASH) backslashes++
    if (backslashes % 2 === 0) return quote + 1
  }
  return text.length
}

export function beginsNumber(unit: number): boolean {
  return unit === MINUS || (unit >= DIGIT_0 && unit <= DIGIT_9)
}

/** No repetition is in it, for each character of one takes stack. */
const NOT_OF_NUMBER = /[^0-9.eE+-]/g

/** After the number that begins at `at`. */
export function endOfNumber(text: string, at: number): number {
  NOT_OF_NUMBER.lastIndex = at
  return NOT_OF_NUMBER.exec(text)?.index ?? text.length
}
