/** The demo: the service of the settings, what it says of itself, and what an interrupted one leaves in the log. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { createOutbox } from '../../src/cli/outbox.js'
import { perform, type Stage } from '../../src/cli/stages.js'
import { testDatabase } from '../support/database.js'
import { startProxy } from '../support/proxy.js'
import { served } from '../support/served.js'

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

t.test('what it records is the run, each line once, though connections are cut', async (t) => {
  const { client, port } = await served(t, await testDatabase(t))
  const proxy = await startProxy(t, { target: `http://127.0.0.1:${port}`, seed: 7, bytes: [2_000, 60_000] })
  const script = (end: number) => `for (let n = 1; n <= 400; n++) console.log('ok ' + n + ' - part'); process.exitCode = ${end}`
  const stage = (id: string, end: number): Stage => ({ id, name: id, command: process.execPath, args: ['-e', script(end)], parts: 400, partDone: /^ok / })
  for (const [end, expected] of [
    [0, { code: 0, status: 'completed', step: 'completed' }],
    [3, { code: 1, status: 'failed', step: 'failed' }],
  ] as const) {
    const runId = `recorded-${end}`
    await client.createRun({ id: runId })
    const outbox = createOutbox({ url: `${proxy.url}/runs/${runId}/events`, headers: {}, maxBatch: 50, lingerMs: 1 })
    let events = 0
    const code = await perform([stage('first', 0), stage('second', end)], {
      cwd: '.',
      cancelled: new AbortController().signal,
      tell: (type, data, step) =>
        outbox.push({ id: `${++events}`, type, ts: new Date().toISOString(), data, ...(step && { subject: { kind: 'step', id: step } }) }),
    })
    await outbox.drain()
    t.equal(code, expected.code)
    const { state, version } = await client.state(runId)
    t.equal(version, events + 1, 'run.created, and each event once')
    t.match(state, {
      run: { status: expected.status },
      progress: { percentage: 100 },
      steps: {
        outputs: 800,
        steps: [
          { id: 'first', status: 'completed', progress: 100 },
          { id: 'second', status: expected.step, progress: 100 },
        ],
      },
    })
  }
  t.ok(proxy.cuts > 0, 'some were cut')
})
