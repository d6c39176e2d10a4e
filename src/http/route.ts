/** The route of a request, asked for once: Fastify puts an object of a dozen members together each time. */
import type { FastifyInstance, FastifyRequest } from 'fastify'

const known = Symbol('route')
declare module 'fastify' {
  interface FastifyRequest {
    [known]: FastifyRequest['routeOptions'] | null
  }
}

/** Before any route is added. */
export function rememberRoutes(app: FastifyInstance): void {
  app.decorateRequest(known, null)
}

export function routeOf(request: FastifyRequest): FastifyRequest['routeOptions'] {
  request[known] ??= request.routeOptions
  return request[known]
}
