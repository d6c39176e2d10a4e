/**
 * Who is asking. Each route says what it needs, `config: { role }` or `config: { public: true }`, or the boot fails;
 * here the request's key is looked up and compared with that before anything else of the request is read.
 * Without any key the service is open: see access/loopback.ts.
 */
import type { IncomingHttpHeaders } from 'node:http'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import type { Keys } from '../../access/keys.js'
import { isLoopbackAddress, isLoopbackHost, isLoopbackOrigin } from '../../access/loopback.js'
import { type Access, type Role, roleAllows } from '../../access/roles.js'
import { type Config, corsOrigins } from '../../config.js'
import { DEFAULT_WORKSPACE_ID } from '../../domain/ids.js'
import { RunplaneError } from '../../errors.js'
import { routeOf } from '../route.js'

const granted = Symbol('access')

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The least role that may call the route. */
    role?: Role
    /** Anyone may call it; `request.access` throws there. */
    public?: true
    /** It is needed most when the database is not there: then who asks is let in as before. */
    withoutDatabase?: true
  }
  interface FastifyRequest {
    readonly access: Access
    [granted]: Access | null
  }
}

const OPEN_ACCESS: Access = { workspaceId: DEFAULT_WORKSPACE_ID, role: 'admin', keyName: 'anonymous' }

/** Who asks, as far as it is known: null on public routes, for an unknown route, and where the key is not valid. It may have been refused by its role. */
export function knownAccess(request: FastifyRequest): Access | null {
  return request[granted]
}

export const accessPlugin = fastifyPlugin(
  async (app: FastifyInstance, { keys, config }: { keys: Keys; config: Pick<Config, 'HOST' | 'CORS_ORIGINS'> }) => {
    const allowedOrigins = new Set(corsOrigins(config))
    const listensOnLoopback = isLoopbackAddress(config.HOST)

    app.decorateRequest(granted, null)
    app.decorateRequest('access', {
      getter(this: FastifyRequest) {
        const access = this[granted]
        if (access === null) throw new Error(`${this.method} ${this.routeOptions.url} is public and has no access`)
        return access
      },
    })

    // Checked when all is registered: a plugin may set the config of its routes in an onRoute hook of its own.
    const routes: { url: string; method: string | string[]; config?: { role?: Role; public?: true } }[] = []
    app.addHook('onRoute', (route) => {
      routes.push(route)
    })
    app.addHook('onReady', async () => {
      const silent = routes.filter((route) => route.method !== 'OPTIONS' && !route.config?.role && !route.config?.public)
      if (silent.length > 0)
        throw new Error(
          `these routes do not say who may call them (config.role or config.public): ${silent.map((route) => `${route.method} ${route.url}`).join(', ')}`,
        )
    })

    let open = false
    app.addHook('onReady', async () => {
      open = !(await keys.exist())
    })

    // What is known needs no promise: two for each request would cost it 3 µs.
    app.addHook('onRequest', (request, _reply, done) => {
      try {
        const admitted = admit(request)
        if (admitted) return admitted
        done()
      } catch (error) {
        done(error instanceof Error ? error : new Error(String(error)))
      }
    })

    function admit(request: FastifyRequest): undefined | Promise<undefined> {
      const { role: needed, withoutDatabase = false } = routeOf(request).config ?? {}
      const exist = keys.exist()
      if (typeof exist === 'boolean') open = !exist
      else {
        const known = exist.then((some) => {
          open = !some
        })
        const settled = known.catch(() => {})
        // Public routes, health among them, must not wait for the database: for them what was known last is good enough.
        if (needed) return (withoutDatabase ? settled : known).then(() => enter(request, needed, withoutDatabase))
      }
      return enter(request, needed, withoutDatabase)
    }

    function enter(request: FastifyRequest, needed: Role | undefined, withoutDatabase: boolean): undefined | Promise<undefined> {
      if (open) assertLocal(request, listensOnLoopback, allowedOrigins)
      if (!needed) return undefined
      if (open) return grant(request, needed, OPEN_ACCESS)
      const key = presentedKey(request)
      if (key === undefined) return grant(request, needed, undefined)
      const access = keys.authenticate(key)
      if (!(access instanceof Promise)) return grant(request, needed, access)
      const holder = withoutDatabase ? access.catch((error) => keys.lastHolder(key) ?? Promise.reject(error)) : access
      return holder.then((known) => grant(request, needed, known))
    }
  },
  { name: 'access', dependencies: ['errors'] },
)

/** Whether a request with these headers would be let in now: for answers that last longer than what was known when they began. */
export async function isAdmitted(keys: Pick<Keys, 'exist' | 'authenticate'>, headers: IncomingHttpHeaders): Promise<boolean> {
  if (!(await keys.exist())) return true
  const key = presentedKey({ headers })
  return key !== undefined && (await keys.authenticate(key)) !== undefined
}

function presentedKey({ headers: { authorization } }: { headers: IncomingHttpHeaders }): string | undefined {
  // RFC 6750, section 2.1; the scheme's name is case-insensitive (RFC 9110, section 11.1).
  return authorization === undefined ? undefined : /^Bearer +(\S+) *$/i.exec(authorization)?.[1]
}

/** @throws UNAUTHENTICATED, FORBIDDEN */
function grant(request: FastifyRequest, needed: Role, access: Access | undefined): undefined {
  if (!access) {
    const isKeyless = request.headers.authorization === undefined
    // RFC 6750, section 3.1: no error code where nothing was presented.
    const challenge = isKeyless ? 'Bearer realm="runplane"' : 'Bearer realm="runplane", error="invalid_token"'
    const detail = isKeyless ? 'Send an API key: Authorization: Bearer <key>.' : 'The key is not valid, or was revoked. Send Authorization: Bearer <key>.'
    throw new RunplaneError('UNAUTHENTICATED', detail, { headers: { 'www-authenticate': challenge } })
  }
  // The log and the audit name who was refused as well.
  request[granted] = access
  if (!roleAllows(access.role, needed)) {
    throw new RunplaneError('FORBIDDEN', `This needs a key with the role ${needed}; '${access.keyName}' has the role ${access.role}.`)
  }
}

/** @throws FORBIDDEN for a request that does not come from this machine on purpose. */
function assertLocal({ headers }: FastifyRequest, listensOnLoopback: boolean, allowedOrigins: Set<string>): void {
  const makeKey = 'Make an API key (npx runplane keys create --name admin --role admin) and send it.'
  if (!listensOnLoopback) throw new RunplaneError('FORBIDDEN', `There is no API key, and the service listens on more than the loopback. ${makeKey}`)
  if (!isLoopbackHost(headers.host)) {
    throw new RunplaneError('FORBIDDEN', `Without an API key only requests to a loopback name are answered, such as localhost or 127.0.0.1. ${makeKey}`)
  }
  // A proxy on this machine would let in everyone; what it is asked for tells.
  const { 'x-forwarded-host': hosts, 'x-forwarded-for': clients } = headers
  const isForwarded =
    headers.forwarded !== undefined ||
    (hosts !== undefined && ![hosts].flat().every(isLoopbackHost)) ||
    (clients !== undefined && ![clients].flat().every((list) => list.split(',').every((client) => isLoopbackAddress(client.trim()))))
  if (isForwarded) {
    throw new RunplaneError('FORBIDDEN', `Without an API key requests from other machines are refused, also through a proxy. ${makeKey}`)
  }
  const origin = headers.origin
  if (origin !== undefined && !isLoopbackOrigin(origin) && !allowedOrigins.has(origin)) {
    throw new RunplaneError(
      'FORBIDDEN',
      `Pages of ${origin.slice(0, 200)} may not call this service. Add the origin to CORS_ORIGINS, or make an API key and send it.`,
    )
  }
}
