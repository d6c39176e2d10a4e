/** The start of the process: one that listens says where, one that cannot says why, and ends with all that it has begun. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import t from 'tap'
import { startService } from '../support/service.js'

t.test('a service that cannot start ends with an error that names the setting', { timeout: 120_000 }, async (t) => {
  const first = await startService(t, { database: 'embedded' })
  const second = async (settings: Record<string, string>) => {
    const child = spawn(process.execPath, ['--import', 'tsx', 'src/main.ts'], {
      env: { PATH: process.env.PATH, HOME: process.env.HOME, DATA_DIR: join(first.dataDir, '..', 'other'), LOG_LEVEL: 'warn', ...settings },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    t.teardown(() => child.kill('SIGKILL'))
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk))
    const [code] = await once(child, 'exit')
    t.equal(code, 1)
    return output
  }
  t.equal(
    await second({ PORT: String(first.port), HOST: '127.0.0.1' }),
    `runplane: PORT: ${first.port} is taken: another process listens on 127.0.0.1. Stop that one, or set another PORT.\n`,
  )
  t.equal(await second({ PORT: '70000' }), "runplane: PORT: '70000' is not allowed. Allowed: a whole number from 0 to 65535 (TCP port; 0 takes a free one).\n")
  t.match(
    await second({ PORT: '0', HOST: 'no-such-host.invalid', ADMIN_API_KEY: 'k'.repeat(32) }),
    /^runplane: HOST: 'no-such-host.invalid' is no address, and no name that can be looked up.\n$/,
  )
})

t.test('a service on all addresses tells in one line where it is, and on which database', { timeout: 120_000 }, async (t) => {
  const service = await startService(t, { database: 'embedded', env: { HOST: '0.0.0.0', ADMIN_API_KEY: 'k'.repeat(32), LOG_LEVEL: 'info' } })
  await service.stop()
  const told = service
    .logs()
    .split('\n')
    .filter((line) => line.includes(`:${service.port}`))
  t.equal(told.length, 1, told.join('\n'))
  t.match(JSON.parse(told[0] ?? '{}'), {
    level: 'info',
    msg: new RegExp(`^Runplane \\S+ is ready at http://0\\.0\\.0\\.0:${service.port} on .*${service.dataDir}`),
  })
})
