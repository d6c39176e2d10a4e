/** The description of the API: for programs at /openapi.json, for people at /docs. Nothing of it is loaded from elsewhere. */
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'

const PAGE_POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; frame-ancestors 'none'"

export function docsRoutes(): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.addHook('onRoute', (route) => {
      route.config = { ...route.config, public: true }
    })

    app.get(
      '/openapi.json',
      {
        schema: {
          operationId: 'openapi',
          summary: 'This document (OpenAPI 3.1)',
          tags: ['operation'],
          security: [],
          response: { 200: Type.Object({}, { additionalProperties: true, description: 'OpenAPI 3.1' }) },
        },
      },
      async () => app.swagger(),
    )

    await app.register(swaggerUi, {
      routePrefix: '/docs',
      staticCSP: PAGE_POLICY,
      theme: { title: 'Runplane API' },
      // Without this the page asks validator.swagger.io.
      uiConfig: { validatorUrl: null, docExpansion: 'list', tryItOutEnabled: true, persistAuthorization: false },
    })
  }
}
