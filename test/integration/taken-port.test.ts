/** A service that cannot listen says why, and ends with all that it has begun. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import t from 'tap'
import { startService } from '../support/service.js'

t.test('a service whose port is taken ends with an error', { timeout: 60_000 }, async (t) => {
  const first = await startService(t, { database: 'embedded' })
  const settings = { PORT: String(first.port), HOST: '127.0.0.1', DATA_DIR: join(first.dataDir, '..', 'other'), LOG_LEVEL: 'warn' }
  const second = spawn(process.execPath, ['--import', 'tsx', 'src/main.ts'], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...settings },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.teardown(() => second.kill('SIGKILL'))
  let output = ''
  for (const stream of [second.stdout, second.stderr]) stream.on('data', (chunk) => (output += chunk))
  const [code] = await once(second, 'exit')
  t.equal(code, 1)
  t.match(output, /^runplane: listen EADDRINUSE.*\n$/)
})
