/** Which database errors pass by themselves, and how long to wait. Codes: PostgreSQL manual, appendix A. */

const DELAY_MS: Record<string, number> = {
  '40001': 5, // serialization_failure
  '40P01': 20, // deadlock_detected
  '55P03': 50, // lock_not_available
  '57P01': 200, // admin_shutdown
  '57P02': 200, // crash_shutdown
  '57P03': 200, // cannot_connect_now
  '53300': 200, // too_many_connections
  '08000': 200,
  '08001': 200,
  '08003': 200,
  '08006': 200,
  CONNECTION_CLOSED: 100,
  CONNECTION_DESTROYED: 100,
  CONNECT_TIMEOUT: 200,
  ECONNREFUSED: 200,
  ECONNRESET: 100,
  EPIPE: 100,
  ENOENT: 200, // the socket file of the embedded database while it restarts
}

function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined
  if ('code' in error && typeof error.code === 'string') return error.code
  return 'cause' in error ? codeOf(error.cause) : undefined
}

/** How long to wait before the next try, in milliseconds with jitter; undefined where another try cannot help. */
export function retryDelayMs(error: unknown, attempt: number): number | undefined {
  const base = DELAY_MS[codeOf(error) ?? '']
  return base === undefined ? undefined : base * Math.min(2 ** (attempt - 1), 8) * (0.5 + Math.random())
}

/**
 * The fault lies in what was to be stored (classes 22, 23 and 54), or in our code that was to store it: another group may do better.
 * Anything else, such as a full disk, would happen to any group.
 */
export function isDataError(error: unknown): boolean {
  const code = codeOf(error)
  return code === undefined || /^(22|23|54)/.test(code)
}

/** What is stored of one run cannot be read (data_corrupted, index_corrupted): the others of its group have nothing to do with it. */
export function isDamage(error: unknown): boolean {
  return /^XX00[12]$/.test(codeOf(error) ?? '')
}

/** Somebody has had the lock of a row for longer than `lock_timeout`. */
export function isLockTimeout(error: unknown): boolean {
  return codeOf(error) === '55P03'
}

/** The database is not there, as against: it refused. */
export function isConnectionError(error: unknown): boolean {
  const code = codeOf(error) ?? ''
  return /^(08|57P|53300|CONNECT|ECONN|EPIPE|ENOENT)/.test(code)
}
