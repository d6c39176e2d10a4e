/** Pages of other origins: off until CORS_ORIGINS names some. */
import cors from '@fastify/cors'
import type { FastifyInstance } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { type Config, corsOrigins } from '../../config.js'
import { RESPONSE_HEADERS } from '../schemas/response-headers.js'

const ONE_DAY_S = 86_400

export const corsPlugin = fastifyPlugin(
  async (app: FastifyInstance, { config }: { config: Pick<Config, 'CORS_ORIGINS'> }) => {
    const origin = corsOrigins(config)
    if (origin.length === 0) return
    await app.register(cors, {
      origin,
      methods: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
      exposedHeaders: Object.keys(RESPONSE_HEADERS),
      maxAge: ONE_DAY_S,
      // The answer to an OPTIONS that is no preflight would be a text.
      strictPreflight: false,
    })
  },
  { name: 'cors' },
)
