/** What the Fastify factory needs, so that even a request that reaches no route is answered in the one form. */
import { type FastifyBaseLogger, type FastifyHttpOptions, LogController, type RawServerDefault } from 'fastify'
import type { Config } from '../config.js'
import { uuidv7 } from '../domain/ids.js'
import type { Mask } from '../ingest/mask.js'
import { loggableUrl } from '../ops/logging.js'
import { brokenHttp, sendProblem } from './plugins/errors.js'
import { RequestLogger } from './request-logger.js'
import { buildSerializer, buildValidator } from './schema-compilers.js'

const REQUEST_ID = /^[A-Za-z0-9._-]{1,128}$/

/** The longest id is 128 characters; what is somewhat longer is refused by the route's schema, which can say why. */
const MAX_PARAM_LENGTH = 512

/** A request of a stream may name 100 runs in 13,000 bytes, and with each of them a cursor in 15,000. Node's own limit is 16 KiB. */
const MAX_HEADER_BYTES = 32_768

export function serverOptions(
  config: Pick<Config, 'MAX_BODY_BYTES' | 'TRUST_PROXY'>,
  logger: FastifyBaseLogger,
  mask: Pick<Mask, 'text'>,
): FastifyHttpOptions<RawServerDefault> {
  return {
    loggerInstance: logger,
    // plugins/requests.ts writes one line a request.
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'requestId' }),
    childLoggerFactory: (parent, bindings, options) => new RequestLogger(parent, bindings, options),
    genReqId: ({ headers }) => {
      const given = headers['x-request-id']
      // One with a secret in it is none: it would be stored and logged.
      return typeof given === 'string' && REQUEST_ID.test(given) && mask.text(given) === given ? given : uuidv7()
    },
    // plugins/errors.ts refuses a request without a Host, or with two, with problem details: Node's own answer has no body, and of two it takes the first.
    http: { maxHeaderSize: MAX_HEADER_BYTES, requireHostHeader: false, joinDuplicateHeaders: true },
    bodyLimit: config.MAX_BODY_BYTES,
    trustProxy: config.TRUST_PROXY,
    routerOptions: { maxParamLength: MAX_PARAM_LENGTH },
    // plugins/errors.ts answers it as problem details.
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    schemaController: { compilersFactory: { buildValidator, buildSerializer } },
    frameworkErrors: (error, request, reply) => {
      sendProblem(error, request, reply)
      // No hook runs for it, the one that writes the line of a request among them.
      request.log.info({ method: request.method, url: loggableUrl(request.raw.url ?? ''), route: 'none', status: reply.statusCode, ip: request.ip })
    },
    clientErrorHandler: (error, socket) => brokenHttp(error, socket, uuidv7()),
  }
}
