/** An instance of the whole service within the test's process that can be restarted: in an orderly way, or as if its process had been killed. */
import { mkdtempSync, rmSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { drizzle } from 'drizzle-orm/postgres-js'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import type { Database, Sql } from '../../src/db/client.js'
import * as schema from '../../src/db/schema.js'
import { silent, type Teardown } from './database.js'

export interface Instance {
  /** Its address, which a restart changes. Waits while it is down. */
  url(): Promise<string>
  /** Resolves when it is up again. One restart at a time. @param isKilled its connections to clients and to the database break at once */
  restart(isKilled: boolean): Promise<void>
}

/** The same database on connections of its own, which can be broken. */
function separately(database: Database): { database: Database; sever(): Promise<void> } {
  const clients: Sql[] = []
  const connect: Database['connect'] = (options) => {
    const client = database.connect(options)
    clients.push(client)
    return client
  }
  const sql = connect({ max: 5 })
  const sever = async () => {
    await Promise.all(clients.map((client) => client.end({ timeout: 0 })))
  }
  return { database: { ...database, sql, db: drizzle(sql, { schema }), connect, close: sever }, sever }
}

export async function startInstance(t: Teardown, shared: Database, env: Record<string, string> = {}): Promise<Instance> {
  const dataDir = mkdtempSync(join(tmpdir(), 'instance-'))
  const config = loadConfig({ DATA_DIR: dataDir, ...env }, { envFile: '/nonexistent' })

  async function start() {
    const { database, sever } = separately(shared)
    const app = await buildApp({ config, database, logger: silent })
    await app.listen({ port: 0, host: '127.0.0.1' })
    return { app, sever, url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` }
  }
  let running = start()
  t.teardown(async () => {
    const { app, sever } = await running
    await app.close()
    await sever()
    rmSync(dataDir, { recursive: true })
  })
  await running

  return {
    url: async () => (await running).url,
    async restart(isKilled) {
      running = running.then(async ({ app, sever }) => {
        if (isKilled) {
          app.server.close()
          app.server.closeAllConnections()
          await sever()
          // A killed process waits for nothing. What is left of this one has no connection to do anything with.
          app.server.closeAllConnections()
          app.close().catch(() => {})
        } else {
          await app.close()
          await sever()
        }
        return start()
      })
      await running
    },
  }
}
