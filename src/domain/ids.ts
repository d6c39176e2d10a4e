/** Identifiers. UUIDv7 (RFC 9562, section 5.7): time-ordered, so that rows of one time lie together. */
import { randomFillSync } from 'node:crypto'

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
export const RUN_ID_PATTERN = '^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$'

/** Of a new run. The others are parts of paths: /runs/compare, /runs/batch/cancel. */
export const NEW_RUN_ID_PATTERN = `^(?!(?:batch|compare)$)${RUN_ID_PATTERN.slice(1)}`

/** The workspace that exists from the first migration on. */
export const DEFAULT_WORKSPACE_ID = '00000000-0000-7000-8000-000000000001'
