/** The demo: the service of the settings, what it says of itself, and what an interrupted one leaves in the log. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { perform, type Stage } from '../../src/cli/stages.js'

const demo = (args: string[], env: Record<string, string>) =>
  spawn(process.execPath, ['--import', 'tsx', 'src/cli/demo.ts', ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })

t.test('--help says what it is and does nothing', async (t) => {
  const child = demo(['--help'], { PORT: '1' })
  const [output, [code]] = await Promise.all([child.stdout.setEncoding('utf8').toArray(), once(child, 'exit')])
  t.equal(code, 0)
  t.match(output.join(''), /^Usage: npm run demo -- \[options\]\n\nRecord something real.*--url <url>.*RUNPLANE_API_KEY/s)
})

t.test('it starts the service at the port of the settings, and ends both when it is interrupted', { timeout: 120_000 }, async (t) => {
  const dataDir = await mkdtemp(join(tmpdir(), 'demo-'))
  t.teardown(() => rm(dataDir, { recursive: true, force: true }))
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const port = typeof address === 'object' ? String(address?.port) : ''
  server.close()
  await once(server, 'close')
  const url = `http://127.0.0.1:${port}`
  const child = demo([], { PORT: port, HOST: '127.0.0.1', DATA_DIR: join(dataDir, 'data') })
  t.teardown(() => child.kill())
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text
    // While the first command is at work.
    if (text.includes('Type check ...')) child.kill('SIGTERM')
  })
  const [code] = await once(child, 'close')
  t.equal(code, 130, output)
  t.ok(output.startsWith(`No service answers at ${url}: starting one.\n`), output)
  t.match(output, new RegExp(`curl -N ${url}/runs/demo-\\d+/stream`))
  t.match(output, /status cancelled, progress 0 %\n {2}Type check: failed, .*\n {2}Unit tests: skipped/)
  await t.rejects(fetch(`${url}/healthz`), 'the service is gone')
})

t.test('what a command says once it is cancelled does not count as done', async (t) => {
  const script = `
    console.log('ok 1 - a')
    process.once('SIGTERM', () => { console.log('not ok 2 - b'); console.log('not ok 3 - c'); clearInterval(timer) })
    const timer = setInterval(() => {}, 1000)`
  const stage: Stage = { id: 'tests', name: 'Tests', command: process.execPath, args: ['-e', script], parts: 4, partDone: /^(not )?ok \d+ - / }
  const cancelled = new AbortController()
  const told: { type: string; data: Record<string, unknown> }[] = []
  const code = await perform([stage, { ...stage, id: 'more' }], {
    cwd: '.',
    cancelled: cancelled.signal,
    tell: async (type, data, step) => {
      told.push({ type, data })
      if (type === 'progress.reported' && step === undefined && data.current === 1) cancelled.abort()
    },
  })
  t.equal(code, 130)
  t.same(
    told.filter(({ type }) => type === 'step.output').map(({ data }) => data.text),
    ['ok 1 - a', 'not ok 2 - b', 'not ok 3 - c'],
    'its output is kept',
  )
  const progress = told.filter(({ type }) => type === 'progress.reported').map(({ data }) => data.percentage)
  t.same(progress, [0, 25, 12], 'of the run none, of the stage a quarter, of the run an eighth')
  t.same(
    told.slice(-3).map(({ type }) => type),
    ['step.failed', 'step.skipped', 'run.cancelled'],
  )
})
