/** What a text of the database can hold: no NUL, and no half of a surrogate pair. Texts that clients choose by are refused for one; of what is kept, it is replaced. */
import { pattern } from './pattern.js'

export const STORABLE_PATTERN = pattern('^[^\\u0000\\ud800-\\udfff]*$', 'text without a NUL or half of a surrogate pair')

/** The text with U+FFFD in place of what cannot be stored. */
export function storable(text: string): string {
  return text.replaceAll('\0', '\uFFFD').toWellFormed()
}
