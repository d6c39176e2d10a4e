/** The service without runs: what access, errors and operation can be tested on, with a route for each role. */
import Fastify, { type FastifyInstance } from 'fastify'
import { createKeys, type Keys } from '../../src/access/keys.js'
import { type Config, loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { accessPlugin } from '../../src/http/plugins/access.js'
import { bodiesPlugin } from '../../src/http/plugins/bodies.js'
import { closingPlugin } from '../../src/http/plugins/closing.js'
import { corsPlugin } from '../../src/http/plugins/cors.js'
import { docsPlugin } from '../../src/http/plugins/docs.js'
import { errorsPlugin } from '../../src/http/plugins/errors.js'
import { requestsPlugin } from '../../src/http/plugins/requests.js'
import { docsRoutes } from '../../src/http/routes/docs.js'
import { healthRoutes } from '../../src/http/routes/health.js'
import { keysRoutes } from '../../src/http/routes/keys.js'
import { serverOptions } from '../../src/http/server-options.js'
import { NO_MASK } from '../../src/ingest/mask.js'
import type { HealthCheck } from '../../src/ops/health.js'
import { createLogger } from '../../src/ops/logging.js'
import { createMetrics } from '../../src/ops/metrics.js'
import type { Teardown } from './database.js'

export interface BaseApp {
  app: FastifyInstance
  keys: Keys
  /** The lines of the log so far. */
  log: Record<string, unknown>[]
}

/** @param routes more routes, registered last. */
export async function baseApp(
  t: Teardown,
  database: Database,
  options: { env?: Record<string, string>; checks?: Record<string, HealthCheck>; now?: () => number; routes?: (app: FastifyInstance) => void } = {},
): Promise<BaseApp> {
  const config: Config = loadConfig(options.env ?? {}, { envFile: '/nonexistent' })
  const log: Record<string, unknown>[] = []
  const logger = createLogger(config, { write: (line) => log.push(JSON.parse(line)) })
  const keys = createKeys(database, { adminApiKey: config.ADMIN_API_KEY, now: options.now })
  const metrics = createMetrics({ queuedEvents: () => 0, openStreams: () => 0 })
  const app = Fastify(serverOptions(config, logger, NO_MASK))
  t.teardown(() => app.close())
  await app.register(requestsPlugin, { metrics })
  await app.register(errorsPlugin)
  await app.register(closingPlugin, { config })
  await app.register(corsPlugin, { config })
  await app.register(accessPlugin, { keys, config })
  await app.register(bodiesPlugin, { config })
  await app.register(docsPlugin)
  await app.register(keysRoutes({ keys }))
  await app.register(healthRoutes({ checks: options.checks ?? { database: () => database.sql`select 1` }, metrics }))
  await app.register(docsRoutes())
  for (const role of ['guest', 'member', 'admin'] as const) app.get(`/${role}`, { config: { role }, schema: { hide: true } }, async (request) => request.access)
  app.post(
    '/bodies',
    { config: { role: 'member' }, schema: { hide: true, body: { type: 'object', properties: { count: { type: 'integer' } }, additionalProperties: false } } },
    async (request) => request.body,
  )
  options.routes?.(app)
  await app.ready()
  return { app, keys, log }
}
