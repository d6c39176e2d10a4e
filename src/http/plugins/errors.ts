/**
 * The one error handler: whatever is thrown, by us, by Fastify or by the database, leaves as problem details.
 * Above 499 the caller learns nothing of the cause; the log does.
 */
import { STATUS_CODES } from 'node:http'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { uuidv7 } from '../../domain/ids.js'
import { ERROR_CATALOGUE, type ErrorCode, type ProblemField, RunplaneError } from '../../errors.js'
import { rememberRoutes } from '../route.js'
import { PROBLEM_CONTENT_TYPE, toProblem } from '../schemas/problem.js'
import { createRouteMatcher } from './route-matcher.js'
import { validationFields } from './validation-fields.js'

/**
 * Errors of the database that pass: the connection (postgres.js and system codes), SQLSTATE 08, 53, 57P0x and 25006 (a standby),
 * and what an operator mends while clients try again: 28 (who may connect), 3D000 and 55000 (a database that is away, or taken out of use).
 */
const UNAVAILABLE = /^(CONNECTION_\w+|CONNECT_TIMEOUT|ECONNREFUSED|ECONNRESET|EPIPE|ENOTFOUND|ETIMEDOUT|ENOENT|08...|28...|3D000|53...|55000|57P0[1-5]|25006)$/

export const errorsPlugin = fastifyPlugin(
  async (app: FastifyInstance) => {
    rememberRoutes(app)
    const routes = createRouteMatcher()
    app.addHook('onRoute', ({ method, url }) => routes.add([method].flat(), url))

    // Node's own answer to an Expect that it does not know has no body. RFC 9110, section 10.1.1, lets it be ignored.
    app.server.on('checkExpectation', (request, response) => app.server.emit('request', request, response))

    // Node closes its connection without a word, unless somebody listens.
    app.server.on('connect', (_request, socket) => {
      socket.on('error', () => {})
      endWithProblem(socket, new RunplaneError('METHOD_NOT_ALLOWED', 'This is no proxy: CONNECT is not taken.', { headers: { allow: '' } }), uuidv7())
    })

    app.addHook('onRequest', (request, _reply, done) => {
      const fault = faultOf(request)
      done(fault === undefined ? undefined : new RunplaneError('VALIDATION_ERROR', fault))
    })

    app.setErrorHandler<FastifyError>(sendProblem)

    app.setNotFoundHandler((request, reply) => {
      const path = request.url.split('?', 1)[0] ?? ''
      const allowed = routes.methodsOf(path)
      const error =
        allowed.length > 0
          ? new RunplaneError('METHOD_NOT_ALLOWED', `${path.slice(0, 200)} takes ${allowed.join(', ')}, not ${request.method}.`, {
              headers: { allow: allowed.join(', ') },
            })
          : new RunplaneError('NOT_FOUND', `There is nothing at ${request.method} ${path.slice(0, 200)}. GET /docs shows what there is.`)
      return sendProblem(error, request, reply)
    })
  },
  { name: 'errors' },
)

/** What is wrong with a request whatever its route. */
function faultOf({ headers: { host }, raw, url }: FastifyRequest): string | undefined {
  if (host === undefined && raw.httpVersion === '1.1') return 'A request of HTTP/1.1 has the header Host.'
  // Joined by Node. RFC 9112, section 3.2: two are refused, since another server may go by the other one.
  if (host?.includes(', ')) return 'A request has one header Host.'
  if (!url.includes('%')) return undefined
  if (url.includes('%00')) return 'The URL must not contain %00: no id, name or text may hold a NUL.'
  return isPercentEncoding(url) ? undefined : 'The URL is not valid percent-encoding of UTF-8.'
}

/** The longest body that is read to its end only to be able to answer that it is too long. */
const MAX_DROPPED_BYTES = 67_108_864

/** Answers the error as problem details; also Fastify's `frameworkErrors`, which runs before any hook. */
export function sendProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const known = catalogued(error, request)
  // Fastify closes the connection of a body that is too long, and a client that still writes sees that instead of the answer. Node reads on
  // and drops what is left; where that is too much to wait for, the connection does close.
  if (known.code === 'PAYLOAD_TOO_LARGE' && Number(request.headers['content-length']) <= MAX_DROPPED_BYTES) reply.removeHeader('connection')
  // That a queue is full is told by the line of the request: an overloaded service has no time for more.
  const isFull = known.code === 'OVERLOADED' && known.cause === undefined
  if (known.status >= 500 && !isFull) request.log[known.code === 'INTERNAL' ? 'error' : 'warn']({ err: error }, `${request.method} failed: ${known.code}`)
  return reply
    .code(known.status)
    .headers(known.headers)
    .header('x-request-id', request.id)
    .header('content-type', PROBLEM_CONTENT_TYPE)
    .header('cache-control', 'no-store')
    .serializer(JSON.stringify)
    .send(toProblem(known, request.id))
}

/** The entry of the catalogue that an error is; what is not known is INTERNAL. */
export function catalogued(error: unknown, request?: FastifyRequest): RunplaneError {
  if (error instanceof RunplaneError) return error
  if (!(error instanceof Error)) return new RunplaneError('INTERNAL', INTERNAL_DETAIL, { cause: error })
  // A client that leaves in the middle of its body is nothing of the database's, whose connections break with the same code.
  if (request?.raw.errored === error) return new RunplaneError('VALIDATION_ERROR', BROKE_OFF, { cause: error })
  if (isUnavailable(error))
    return new RunplaneError('OVERLOADED', 'The database does not answer right now. Try again.', { headers: { 'retry-after': '1' }, cause: error })
  const { code = '', validation, validationContext, statusCode = 500 } = error as Partial<FastifyError>
  if (validation) {
    const errors = validationFields(validation, validationContext)
    if (validationContext === 'body' && request?.body === undefined) return new RunplaneError('VALIDATION_ERROR', EMPTY, { errors })
    return new RunplaneError('VALIDATION_ERROR', summary(errors), { errors })
  }
  const own = FRAMEWORK_ERRORS[code]
  if (own) return new RunplaneError(own.code, own.detail(request), { cause: error })
  // secure-json-parse and other parsers: a status of theirs, a message about the text.
  if (statusCode === 400) return new RunplaneError('VALIDATION_ERROR', `The body cannot be read: ${error.message}`, { cause: error })
  const sameStatus = Object.entries(ERROR_CATALOGUE).find(([, entry]) => entry.status === statusCode && statusCode < 500)
  if (sameStatus) return new RunplaneError(sameStatus[0] as ErrorCode, error.message, { cause: error })
  return new RunplaneError('INTERNAL', INTERNAL_DETAIL, { cause: error })
}

const EMPTY = 'The body is empty, and JSON is wanted.'
const BROKE_OFF = 'The request broke off before its end. Send it again.'
const INTERNAL_DETAIL = 'Something went wrong here. The log has the cause under this requestId.'

/** Fastify's own errors: https://fastify.dev/docs/latest/Reference/Errors */
const FRAMEWORK_ERRORS: Record<string, { code: ErrorCode; detail: (request?: FastifyRequest) => string }> = {
  FST_ERR_CTP_BODY_TOO_LARGE: {
    code: 'PAYLOAD_TOO_LARGE',
    detail: (request) =>
      `The body is longer than the ${request?.routeOptions.bodyLimit ?? 'allowed'} bytes that one request may have (MAX_BODY_BYTES). Send less at once.`,
  },
  FST_ERR_CTP_INVALID_MEDIA_TYPE: {
    code: 'UNSUPPORTED_FORMAT',
    detail: (request) => `Content-Type '${(request?.headers['content-type'] ?? '').slice(0, 100)}' is not known here. Send application/json.`,
  },
  FST_ERR_CTP_EMPTY_TYPE: { code: 'UNSUPPORTED_FORMAT', detail: () => 'The body has no Content-Type. Send application/json.' },
  FST_ERR_CTP_INVALID_JSON_BODY: { code: 'VALIDATION_ERROR', detail: () => 'The body is not valid JSON, or has a member __proto__ or constructor.prototype.' },
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: { code: 'VALIDATION_ERROR', detail: () => 'The body is not as long as its Content-Length says.' },
  FST_ERR_BAD_URL: {
    code: 'VALIDATION_ERROR',
    detail: () => 'The path is not a valid URL: a percent sign must be followed by two hexadecimal digits of valid UTF-8.',
  },
  FST_ERR_MAX_PARAM_LENGTH: { code: 'VALIDATION_ERROR', detail: () => 'A part of the path is too long.' },
  FST_ERR_REOPENED_CLOSE_SERVER: { code: 'OVERLOADED', detail: () => 'The service is stopping.' },
}

function isPercentEncoding(url: string): boolean {
  try {
    decodeURIComponent(url)
    return true
  } catch {
    return false
  }
}

function summary(errors: ProblemField[]): string {
  const [first] = errors
  if (!first) return 'The request is not valid.'
  return `${first.path} ${first.message}${errors.length > 1 ? `, and ${errors.length - 1} more` : ''}.`
}

function isUnavailable(error: unknown): boolean {
  for (let cause = error, depth = 0; cause instanceof Error && depth < 5; cause = cause.cause, depth++) {
    if ('code' in cause && typeof cause.code === 'string' && UNAVAILABLE.test(cause.code)) return true
  }
  return false
}

/** Answers a connection whose HTTP cannot be read: Fastify's `clientErrorHandler`, on the bare socket. */
export function brokenHttp(
  error: Error & { code?: string },
  socket: { writable: boolean; end(text: string): void; destroy(error?: Error): void },
  requestId: string,
): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy(error)
    return
  }
  const problem =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? new RunplaneError('HEADERS_TOO_LARGE', 'The headers of the request are longer than 32 KiB.')
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? new RunplaneError('REQUEST_TIMEOUT', 'The request did not arrive in time. Send it again.')
        : new RunplaneError('VALIDATION_ERROR', error.code === 'HPE_INVALID_EOF_STATE' ? BROKE_OFF : 'This is not a valid HTTP request.')
  endWithProblem(socket, problem, requestId)
}

function endWithProblem(socket: { end(text: string): void }, problem: RunplaneError, requestId: string): void {
  const body = JSON.stringify(toProblem(problem, requestId))
  const headers = Object.entries(problem.headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.end(
    `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status]}\r\n${headers.join('')}content-type: ${PROBLEM_CONTENT_TYPE}\r\ncontent-length: ${Buffer.byteLength(body)}\r\nx-request-id: ${requestId}\r\nconnection: close\r\n\r\n${body}`,
  )
}
