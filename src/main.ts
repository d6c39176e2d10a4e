/** The process: settings, database, service; one line when it is ready, and an orderly end. */
import { setFlagsFromString } from 'node:v8'
import closeWithGrace from 'close-with-grace'
import type { FastifyInstance } from 'fastify'
import { createKeys } from './access/keys.js'
import { assertExposable } from './access/loopback.js'
import { buildApp } from './app.js'
import { type Config, ConfigError, httpUrl, loadConfig } from './config.js'
import { DatabaseUnavailableError, openDatabase } from './db/client.js'
import { EmbeddedDatabaseError } from './db/embedded.js'
import { DatabaseNewerError, migrate } from './db/migrate.js'
import { createLogger } from './ops/logging.js'
import { VERSION } from './ops/version.js'

// What outlives one request is taken for what lasts, and keeps the garbage of the next ones alive; and five threads that collect a little of it
// wait for each other, and take PostgreSQL's cores: docs/adr/0012.
setFlagsFromString('--no-allocation-site-pretenuring')
setFlagsFromString('--no-parallel-scavenge')

/** Errors that a person can mend: told in a line, without a stack. */
const TOLD = [ConfigError, DatabaseUnavailableError, EmbeddedDatabaseError, DatabaseNewerError]

async function start(): Promise<void> {
  const config = loadConfig()
  const logger = createLogger(config)
  const database = await openDatabase({ databaseUrl: config.DATABASE_URL, dataDir: config.DATA_DIR, poolMax: config.DB_POOL_MAX, logger })
  try {
    await migrate(database)
    const keys = createKeys(database, { adminApiKey: config.ADMIN_API_KEY })
    assertExposable(config, await keys.exist())
    const app = await buildApp({ config, database, logger, keys })
    const grace = closeWithGrace({ delay: config.SHUTDOWN_GRACE_MS, logger: false }, async ({ err, signal }) => {
      if (err) logger.fatal({ err }, 'an error that nobody caught: shutting down')
      else logger.info({ signal }, 'shutting down')
      await app.close()
      await database.close()
    })
    try {
      await listen(app, config)
      logger.info(`Runplane ${VERSION} is ready at ${urlOf(app)} on ${database.describe}`)
    } catch (error) {
      // What runs in the background would keep the process, without its database; and an end without a signal would be taken for a good one.
      grace.uninstall()
      await app.close()
      throw listenFault(error, config)
    }
  } catch (error) {
    await database.close()
    throw error
  }
}

/** Fastify's own lines, one for each address of the machine where all are listened on, say nothing of the database. */
async function listen(app: FastifyInstance, { PORT, HOST }: Config): Promise<void> {
  const quiet: Pick<FastifyInstance, 'listen'> = Object.create(app, { log: { value: { info() {} } } })
  await quiet.listen({ port: PORT, host: HOST })
}

function urlOf({ server }: FastifyInstance): string {
  const bound = server.address()
  if (bound === null || typeof bound === 'string') throw new Error('the service listens on a port')
  return httpUrl(bound.address, bound.port)
}

/** What an operator can mend; anything else is as it was. */
function listenFault(error: unknown, { HOST, PORT }: Config): unknown {
  switch (error instanceof Error && 'code' in error && error.code) {
    case 'EADDRINUSE':
      return new ConfigError(`PORT: ${PORT} is taken: another process listens on ${HOST}. Stop that one, or set another PORT.`)
    case 'EACCES':
      return new ConfigError(`PORT: this user may not listen on ${PORT}. Set a PORT above 1023.`)
    case 'EADDRNOTAVAIL':
      return new ConfigError(`HOST: '${HOST}' is no address of this machine. Set one of its own, or 0.0.0.0 for all of them.`)
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return new ConfigError(`HOST: '${HOST}' is no address, and no name that can be looked up.`)
    default:
      return error
  }
}

try {
  await start()
} catch (error) {
  const told = TOLD.some((kind) => error instanceof kind)
  console.error(told && error instanceof Error ? `runplane: ${error.message}` : error)
  process.exitCode = 1
}
