/** The OpenAPI document and the page that shows it. */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { baseApp } from '../support/base-app.js'
import { testDatabase } from '../support/database.js'

const { app } = await baseApp(t, await testDatabase(t))
const document = (await app.inject('/openapi.json')).json()

t.test('the linter finds nothing in the document', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'openapi-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const file = join(folder, 'openapi.json')
  await writeFile(file, JSON.stringify(document))
  const linted = await promisify(execFile)('node_modules/.bin/redocly', ['lint', file, '--format', 'json'], {
    env: { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true', CI: 'true' },
  }).catch((error: { stdout: string }) => error)
  t.match(JSON.parse(linted.stdout.slice(linted.stdout.indexOf('{'))), { totals: { errors: 0, warnings: 0 } }, linted.stdout)
})
