/** Identifiers. UUIDv7 (RFC 9562, section 5.7): time-ordered, so that rows of one time lie together. */
import { randomFillSync } from 'node:crypto'

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'))
const bytes = Buffer.alloc(16)
/** Random bytes are fetched for many ids at once: a call for each costs more than the id. */
const pool = Buffer.alloc(4096)
const RANDOM_BYTES = 10
let used = pool.length

/** @param nowMs milliseconds since the Unix epoch. @returns the 36-character text form. */
export function uuidv7(nowMs: number = Date.now()): string {
  if (used + RANDOM_BYTES > pool.length) {
    randomFillSync(pool)
    used = 0
  }
  pool.copy(bytes, 6, used, used + RANDOM_BYTES)
  used += RANDOM_BYTES
  bytes.writeUIntBE(nowMs, 0, 6)
  bytes[6] = (bytes.readUInt8(6) & 0x0f) | 0x70
  bytes[8] = (bytes.readUInt8(8) & 0x3f) | 0x80
  let text = ''
  for (let index = 0; index < 16; index++) {
    text += HEX[bytes.readUInt8(index)]
    if (index === 3 || index === 5 || index === 7 || index === 9) text += '-'
  }
  return text
}

/** What a client may choose as the id of a run: safe in a URL path, a file name and an SSE id. */
export const RUN_ID_PATTERN = '^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$'

/** Of a new run. The others are parts of paths: /runs/compare, /runs/batch/cancel. */
export const NEW_RUN_ID_PATTERN = `^(?!(?:batch|compare)$)${RUN_ID_PATTERN.slice(1)}`

/** The workspace that exists from the first migration on. */
export const DEFAULT_WORKSPACE_ID = '00000000-0000-7000-8000-000000000001'
