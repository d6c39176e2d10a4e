/**
 * Secrets in what is not an event: bodies of commands, and headers that are stored. They are masked before anything reads them.
 * What has to stay as it is to be of use (headers of sources and callbacks, the addresses of webhooks) is kept.
 */
import type { FastifyInstance } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { RunplaneError } from '../../errors.js'
import type { Mask } from '../../ingest/mask.js'

/** Addresses that are called as they are, and bundles, which are checked to the byte and not stored. */
const AS_SENT = /^\/(?:webhooks|runs\/compare)\b/
const STORED_HEADERS = ['idempotency-key', 'producer-id', 'x-worker-id']
/** Members of a body that are called, and have their secrets in their headers. */
const CALLED = ['source', 'cancelCallback']

const isKept = ([first, second]: readonly string[]) => CALLED.includes(first ?? '') && second === 'headers'

export const maskingPlugin = fastifyPlugin(
  async (app: FastifyInstance, { mask }: { mask: Mask }) => {
    if (mask.isOff) return
    app.addHook('onRequest', async ({ headers }) => {
      for (const name of STORED_HEADERS) {
        const value = headers[name]
        if (typeof value === 'string') headers[name] = mask.text(value)
      }
    })
    app.addHook('preValidation', async (request) => {
      const { body } = request
      if (typeof body !== 'object' || body === null || Buffer.isBuffer(body) || 'pipe' in body || AS_SENT.test(request.routeOptions.url ?? '')) return
      for (const name of CALLED) assertUnmasked(name, Reflect.get(body, name))
      request.body = mask.value(body, isKept)
    })

    function assertUnmasked(name: string, called: unknown): void {
      const url: unknown = typeof called === 'object' && called !== null ? Reflect.get(called, 'url') : undefined
      if (typeof url !== 'string' || mask.text(url) === url) return
      throw new RunplaneError(
        'VALIDATION_ERROR',
        `${name}.url holds what MASK_PATTERNS masks, and could not be called. Put the secret into ${name}.headers, which are kept to be sent and never shown.`,
      )
    }
  },
  { name: 'masking' },
)
