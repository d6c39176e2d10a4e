/** Identifiers. UUIDv7 (RFC 9562, section 5.7): time-ordered, so that rows of one time lie together. */

import { randomFillSync } from 'node:crypto'
import { pattern } from './pattern.js'

/** Random bytes are fetched for many ids at once, each after room for its time: a call for each costs more than the id. */
const pool = Buffer.alloc(4096)
const ID_BYTES = 16
let used = pool.length

/** @param nowMs milliseconds since the Unix epoch. @returns the 36-character text form. */
export function uuidv7(nowMs: number = Date.now()): string {
  if (used === pool.length) {
    randomFillSync(pool)
    used = 0
  }
  const start = used
  used += ID_BYTES
  pool.writeUIntBE(nowMs, start, 6)
  pool[start + 6] = ((pool[start + 6] ?? 0) & 0x0f) | 0x70
  pool[start + 8] = ((pool[start + 8] ?? 0) & 0x3f) | 0x80
  const hex = pool.toString('hex', start, used)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

/** What a client may choose as the id of a run: safe in a URL path, a file name and an SSE id. */
const ID_IN_WORDS = '1 to 128 letters, digits and . _ ~ -, of which the first is a letter or a digit'
export const RUN_ID_PATTERN = pattern('^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$', ID_IN_WORDS)

/** Of a new run. The others are parts of paths: /runs/compare, /runs/batch/cancel. */
export const NEW_RUN_ID_PATTERN = pattern(`^(?!(?:batch|compare)$)${RUN_ID_PATTERN.slice(1)}`, `${ID_IN_WORDS}; but not "batch" or "compare"`)

/** The workspace that exists from the first migration on. */
export const DEFAULT_WORKSPACE_ID = '00000000-0000-7000-8000-000000000001'
