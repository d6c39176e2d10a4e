/**
 * The catalogue of every error that a caller can see. Codes are stable and never reused.
 * Messages say what to do next. On the wire each is problem details (RFC 9457).
 */
export const ERROR_CATALOGUE = {
  VALIDATION_ERROR: { status: 400, title: 'The request is not valid' },
  CURSOR_INVALID: { status: 400, title: 'The cursor is not valid' },
  UNAUTHENTICATED: { status: 401, title: 'No valid API key' },
  FORBIDDEN: { status: 403, title: 'Not allowed' },
  PRODUCER_FENCED: { status: 403, title: 'The producer has been fenced' },
  RUN_NOT_FOUND: { status: 404, title: 'No such run' },
  NOT_FOUND: { status: 404, title: 'Not found' },
  METHOD_NOT_ALLOWED: { status: 405, title: 'Method not allowed' },
  REQUEST_TIMEOUT: { status: 408, title: 'The request took too long to arrive' },
  INVALID_STATE_TRANSITION: { status: 409, title: 'Not possible in this state' },
  LEASE_LOST: { status: 409, title: 'The lease is lost' },
  IDEMPOTENCY_CONFLICT: { status: 409, title: 'Already used for something else' },
  PRODUCER_GAP: { status: 409, title: 'A producer sequence number is missing' },
  PRECONDITION_FAILED: { status: 412, title: 'The run has moved on' },
  PAYLOAD_TOO_LARGE: { status: 413, title: 'Too large' },
  UNSUPPORTED_FORMAT: { status: 415, title: 'Unknown format' },
  RATE_LIMITED: { status: 429, title: 'Too many requests' },
  HEADERS_TOO_LARGE: { status: 431, title: 'The headers are too large' },
  INTERNAL: { status: 500, title: 'Internal error' },
  OVERLOADED: { status: 503, title: 'Overloaded' },
} as const satisfies Record<string, { status: number; title: string }>

export type ErrorCode = keyof typeof ERROR_CATALOGUE

export interface ProblemField {
  path: string
  message: string
}

/** What of a request was stored before it was refused. Seqs are null where there are none. */
export interface StoredPart {
  accepted: number
  duplicates: number
  rejected: number
  firstSeq: number | null
  lastSeq: number | null
  headSeq: number
}

/** An error that a caller may see. `detail` must not hold anything that the caller may not know. */
export class RunplaneError extends Error {
  readonly code: ErrorCode
  readonly status: number
  readonly errors: ProblemField[] | undefined
  /** Response headers, such as `Retry-After` (seconds). */
  readonly headers: Record<string, string>
  /** Undefined where nothing is stored. */
  readonly stored: StoredPart | undefined

  constructor(
    code: ErrorCode,
    detail: string,
    options: { errors?: ProblemField[]; headers?: Record<string, string>; stored?: StoredPart; cause?: unknown } = {},
  ) {
    super(detail, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'RunplaneError'
    this.code = code
    this.status = ERROR_CATALOGUE[code].status
    this.errors = options.errors
    this.headers = options.headers ?? {}
    this.stored = options.stored
  }
}

export function runNotFound(runId: string): RunplaneError {
  return new RunplaneError('RUN_NOT_FOUND', `There is no run '${runId}' in this workspace. GET /runs lists the runs that there are.`)
}
