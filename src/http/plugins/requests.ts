/**
 * What every request gets, streams included: an id, the security headers, one line in the log and its metrics.
 * A handler that hijacks the reply sends its headers as well (`reply.getHeaders()`).
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { loggableUrl } from '../../ops/logging.js'
import type { Metrics } from '../../ops/metrics.js'
import { routeOf } from '../route.js'
import { knownAccess } from './access.js'

const SECURITY_HEADERS = {
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  // For answers that are data. A route that serves a page sets its own.
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
}

/** nginx's, for a client that left before its answer began. */
const CLIENT_LEFT = 499

export const requestsPlugin = fastifyPlugin(
  async (app: FastifyInstance, { metrics }: { metrics: Pick<Metrics, 'httpRequestSeconds'> }) => {
    const logsRequests = ['info', 'debug', 'trace'].includes(app.log.level)
    // The hook waits for nothing: a promise would cost every request.
    app.addHook('onRequest', (request, reply, done) => {
      // Not on the bare response: then Node would go through all headers one by one (6 µs a request).
      reply.headers(SECURITY_HEADERS).header('x-request-id', request.id)
      // After its end as well as where the client did not wait for it, which is how most streams end: Fastify's onResponse knows nothing of that.
      reply.raw.on('close', () => tell(request, reply))
      done()
    })

    function tell(request: FastifyRequest, reply: FastifyReply): void {
      // The status on the wire: a hijacked reply does not know it.
      const status = reply.raw.headersSent ? reply.raw.statusCode : CLIENT_LEFT
      const route = routeOf(request).url ?? 'none'
      metrics.httpRequestSeconds.observe({ method: request.method, route, status: String(status) }, reply.elapsedTime / 1000)
      if (logsRequests)
        request.log.info({
          method: request.method,
          url: loggableUrl(request.url),
          route,
          status,
          ms: Math.round(reply.elapsedTime * 10) / 10,
          bytes: Number(reply.getHeader('content-length')) || undefined,
          ip: request.ip,
          keyName: knownAccess(request)?.keyName,
        })
    }
  },
  { name: 'requests' },
)
