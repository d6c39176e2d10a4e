/** What the Fastify factory needs, so that even a request that reaches no route is answered in the one form. */
import { AjvCompiler } from '@fastify/ajv-compiler'
import { type FastifyBaseLogger, type FastifyHttpOptions, LogController, type RawServerDefault } from 'fastify'
import type { Config } from '../config.js'
import { uuidv7 } from '../domain/ids.js'
import type { Mask } from '../ingest/mask.js'
import { loggableUrl } from '../ops/logging.js'
import { brokenHttp, sendProblem } from './plugins/errors.js'

const REQUEST_ID = /^[A-Za-z0-9._-]{1,128}$/

/** The longest id is 128 characters; what is somewhat longer is refused by the route's schema, which can say why. */
const MAX_PARAM_LENGTH = 512

export function serverOptions(
  config: Pick<Config, 'MAX_BODY_BYTES' | 'TRUST_PROXY'>,
  logger: FastifyBaseLogger,
  mask: Pick<Mask, 'text'>,
): FastifyHttpOptions<RawServerDefault> {
  return {
    loggerInstance: logger,
    // plugins/requests.ts writes one line a request.
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'requestId' }),
    genReqId: ({ headers }) => {
      const given = headers['x-request-id']
      // One with a secret in it is none: it would be stored and logged.
      return typeof given === 'string' && REQUEST_ID.test(given) && mask.text(given) === given ? given : uuidv7()
    },
    // plugins/errors.ts refuses a request without a Host, or with two, with problem details: Node's own answer has no body, and of two it takes the first.
    http: { requireHostHeader: false, joinDuplicateHeaders: true },
    bodyLimit: config.MAX_BODY_BYTES,
    trustProxy: config.TRUST_PROXY,
    routerOptions: { maxParamLength: MAX_PARAM_LENGTH },
    // plugins/errors.ts answers it as problem details.
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    schemaController: { compilersFactory: { buildValidator } },
    frameworkErrors: (error, request, reply) => {
      sendProblem(error, request, reply)
      // No hook runs for it, the one that writes the line of a request among them.
      request.log.info({ method: request.method, url: loggableUrl(request.raw.url ?? ''), route: 'none', status: reply.statusCode, ip: request.ip })
    },
    clientErrorHandler: (error, socket) => brokenHttp(error, socket, uuidv7()),
  }
}

const ajvCompilers = AjvCompiler()

/** What is in a URL or a header is text, and becomes what the schema wants; what is in a body has a type already, and "5" is not 5. */
const buildValidator: typeof ajvCompilers = (sharedSchemas, options) => {
  const customOptions = { removeAdditional: false, useDefaults: true, allErrors: false } as const
  const coercing = ajvCompilers(sharedSchemas, { customOptions: { ...customOptions, coerceTypes: 'array' }, plugins: options?.plugins })
  const strict = ajvCompilers(sharedSchemas, { customOptions: { ...customOptions, coerceTypes: false }, plugins: options?.plugins })
  // Fastify hands over { schema, method, url, httpPart }.
  return (route) => (typeof route === 'object' && 'httpPart' in route && route.httpPart === 'body' ? strict : coercing)(route)
}
