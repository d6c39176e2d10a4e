/**
 * A stop: from its first moment nothing new is begun, and what has been begun is answered on a connection that then closes.
 * Without that, a connection that was busy when the server closed would keep it waiting for its keep-alive time-out (72 s).
 * A client that is not through with its own request by half the grace is cut off: the rest is for the last commits and the database.
 */
import type { FastifyInstance } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import type { Config } from '../../config.js'
import { RunplaneError } from '../../errors.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** Whether the service is stopping: readiness fails, and only what has begun is finished. */
    isClosing(): boolean
  }
}

/** Streams end without a reply of Fastify's, so that their connections are found by looking. */
const LOOK_EVERY_MS = 25

export const closingPlugin = fastifyPlugin(
  async (app: FastifyInstance, { config }: { config: Pick<Config, 'SHUTDOWN_GRACE_MS'> }) => {
    let closing = false
    app.decorate('isClosing', () => closing)

    app.addHook('preClose', async () => {
      closing = true
      if (!app.server.listening) return
      const timer = setInterval(() => app.server.closeIdleConnections(), LOOK_EVERY_MS)
      const cut = setTimeout(() => app.server.closeAllConnections(), config.SHUTDOWN_GRACE_MS / 2)
      app.server.once('close', () => {
        clearInterval(timer)
        clearTimeout(cut)
      })
    })

    app.addHook('onRequest', (request, _reply, done) => {
      // The next attempt goes to another instance. Health answers to the end.
      const refused = closing && !request.routeOptions.config?.public
      done(refused ? new RunplaneError('OVERLOADED', 'The service is stopping. Try again.', { headers: { 'retry-after': '1' } }) : undefined)
    })

    app.addHook('onSend', (_request, reply, _payload, done) => {
      if (closing) reply.header('connection', 'close')
      done()
    })
  },
  { name: 'closing', dependencies: ['errors'] },
)
