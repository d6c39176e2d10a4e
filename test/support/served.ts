/** The whole service within the test's own process, on a free port of the loopback. */
import { mkdtempSync, rmSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { silent, type Teardown } from './database.js'
import { type Client, createClient } from './http.js'

export async function served(t: Teardown, database: Database, env: Record<string, string> = {}): Promise<{ client: Client; port: number }> {
  const dataDir = mkdtempSync(join(tmpdir(), 'served-'))
  const config = loadConfig({ DATA_DIR: dataDir, ...env }, { envFile: '/nonexistent' })
  const app = await buildApp({ config, database, logger: silent })
  t.teardown(async () => {
    await app.close()
    rmSync(dataDir, { recursive: true })
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  return { client: createClient(`http://127.0.0.1:${port}`), port }
}
