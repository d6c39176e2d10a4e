/**
 * Secrets in what is not an event: bodies of commands, headers that are stored, and names of queues in a path. They are masked before anything
 * reads them. What has to stay as it is to be of use (headers of sources and callbacks, the addresses of webhooks) is kept.
 */
import type { FastifyInstance } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { RunplaneError } from '../../errors.js'
import type { Mask } from '../../ingest/mask.js'

/** Bundles are checked to the byte, and not stored. */
const AS_SENT = '/runs/compare'
const STORED_HEADERS = ['idempotency-key', 'producer-id', 'x-worker-id']
/** Members of a body that are called, by their paths, and where each of them has its secrets. */
const CALLED = [
  { path: ['source'], secrets: 'headers' },
  { path: ['cancelCallback'], secrets: 'headers' },
  { path: ['session', 'metadata', 'cancelCallback'], secrets: 'bearer' },
]

const isKept = (path: readonly string[]) =>
  CALLED.some((called) => path.length === called.path.length + 1 && path.at(-1) === called.secrets && called.path.every((name, at) => path[at] === name))
/** The address is called as it is, and what signs is shown once. */
const isKeptOfWebhook = ([first]: readonly string[]) => first === 'url' || first === 'secret'

export const maskingPlugin = fastifyPlugin(
  async (app: FastifyInstance, { mask }: { mask: Mask }) => {
    if (mask.isOff) return
    app.addHook('onRequest', async ({ headers, params }) => {
      if (typeof params === 'object' && params !== null && 'name' in params && typeof params.name === 'string') params.name = mask.text(params.name)
      for (const name of STORED_HEADERS) {
        const value = headers[name]
        if (typeof value === 'string') headers[name] = mask.text(value)
      }
    })
    app.addHook('preValidation', async (request) => {
      const { body } = request
      const { url = '' } = request.routeOptions
      if (typeof body !== 'object' || body === null || Buffer.isBuffer(body) || 'pipe' in body || url === AS_SENT) return
      for (const { path, secrets } of CALLED) assertUnmasked(path.join('.'), secrets, memberAt(body, [...path, 'url']))
      request.body = mask.value(body, url.startsWith('/webhooks') ? isKeptOfWebhook : isKept)
    })

    function assertUnmasked(path: string, secrets: string, url: unknown): void {
      if (typeof url !== 'string' || mask.text(url) === url) return
      throw new RunplaneError(
        'VALIDATION_ERROR',
        `${path}.url holds what MASK_PATTERNS masks, and could not be called. Put the secret into ${path}.${secrets}, which is kept to be sent and never shown.`,
      )
    }
  },
  { name: 'masking' },
)

function memberAt(body: object, path: readonly string[]): unknown {
  let value: unknown = body
  for (const name of path) value = typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined
  return value
}
