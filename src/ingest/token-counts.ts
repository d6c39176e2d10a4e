/** The older names of token counts and costs, which are accepted on input and do not reach the log. */
import type { Fields } from './fields.js'

const CANONICAL_NAMES: ReadonlyMap<string, string> = new Map([
  ['promptTokens', 'inputTokens'],
  ['prompt_tokens', 'inputTokens'],
  ['completionTokens', 'outputTokens'],
  ['completion_tokens', 'outputTokens'],
  ['estimatedCostUsd', 'costUsd'],
])
const OLDER_NAMES = [...CANONICAL_NAMES.keys()]

/** @returns the same object where there is nothing to rename. A canonical name that is given wins. */
export function withCanonicalCounts(fields: Fields): Fields {
  if (!OLDER_NAMES.some((name) => Object.hasOwn(fields, name))) return fields
  const renamed = Object.fromEntries(Object.entries(fields).filter(([name]) => !CANONICAL_NAMES.has(name)))
  for (const [older, canonical] of CANONICAL_NAMES) {
    if (Object.hasOwn(fields, older) && !Object.hasOwn(renamed, canonical)) renamed[canonical] = fields[older]
  }
  return renamed
}
