/**
 * How bodies may arrive: none is text of no known format, and one that is read whole has to arrive in time, so that a client that
 * sends half of it does not hold a connection for ever. NDJSON is read as it comes, and may take as long as its agent runs.
 */
import type { FastifyInstance, FastifyReply, RequestPayload } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import type { Config } from '../../config.js'
import { RunplaneError } from '../../errors.js'
import { routeOf } from '../route.js'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Its body is read as it comes, whatever its type, and the route sees to its pauses. */
    streamed?: true
    /** It takes a gzipped body, and unpacks it itself. */
    gzip?: true
  }
}

const STREAMED = /ndjson|jsonl|event-stream|zip/i

export const bodiesPlugin = fastifyPlugin(
  async (app: FastifyInstance, { config }: { config: Pick<Config, 'BODY_TIMEOUT_MS'> }) => {
    app.removeContentTypeParser('text/plain')

    // Many clients say that they send JSON with every request. Whether a body is needed is for the schema of the route.
    const parseJson = app.getDefaultJsonParser('error', 'error')
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser<string>('application/json', { parseAs: 'string' }, (request, body, done) => {
      if (body === '') done(null)
      else parseJson(request, body, done)
    })

    app.addHook('preParsing', (request, reply, payload, done) => {
      const { 'content-encoding': encoding, 'content-type': type, 'content-length': bytes = '0', 'transfer-encoding': transfer } = request.headers
      const { gzip, streamed } = routeOf(request).config
      if (encoding !== undefined && encoding.toLowerCase() !== 'identity' && !(gzip && encoding.toLowerCase() === 'gzip')) {
        // RFC 9110, section 15.5.16.
        done(
          new RunplaneError('UNSUPPORTED_FORMAT', `Content-Encoding '${encoding.slice(0, 100)}' is not known here. Send the body as it is.`, {
            headers: { 'accept-encoding': 'identity' },
          }),
        )
        return
      }
      const isNone = bytes === '0' && transfer === undefined
      if (!isNone && !streamed && (type === undefined || !STREAMED.test(type))) {
        if (begun.length === 0) setImmediate(watchOver)
        begun.push({ payload, reply })
      }
      done()
    })

    /** Most bodies come with their heads, and are there when the turn of the event loop is over: a timer for each would cost it a microsecond or two. */
    let begun: { payload: RequestPayload; reply: FastifyReply }[] = []

    function watchOver(): void {
      for (const { payload, reply } of begun) {
        if (reply.request.raw.complete || reply.request.raw.destroyed) continue
        const timer = setTimeout(giveUp, config.BODY_TIMEOUT_MS, payload, reply)
        // Comes after its end as well.
        payload.once('close', () => clearTimeout(timer))
      }
      begun = []
    }

    function giveUp(payload: RequestPayload, reply: FastifyReply): void {
      // Only where Fastify still reads: an error without a listener would end the process.
      if (payload.listenerCount('error') === 0) return
      reply.header('connection', 'close')
      // Not destroy(), which would take the socket with it, and the answer.
      payload.emit(
        'error',
        new RunplaneError('REQUEST_TIMEOUT', `The body did not arrive within ${config.BODY_TIMEOUT_MS} ms (BODY_TIMEOUT_MS). Send it again.`),
      )
    }
  },
  { name: 'bodies' },
)
