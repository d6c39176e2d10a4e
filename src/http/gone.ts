/** Clients that leave before they are answered. */
import type { FastifyReply } from 'fastify'
import { RunplaneError } from '../errors.js'

/** Aborts when the connection closes before the answer has been written: nobody waits for what is left to do. */
export function goneSignal({ raw }: FastifyReply): AbortSignal {
  const controller = new AbortController()
  raw.once('close', () => {
    if (!raw.writableFinished) controller.abort(new RunplaneError('REQUEST_TIMEOUT', 'The client has gone.'))
  })
  return controller.signal
}
