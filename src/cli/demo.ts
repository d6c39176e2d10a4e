/**
 * `npm run demo`: records something real. This project's own type check and unit tests become a run: each stage a step, each line of output an
 * event, progress as it goes, and the end as it was. A client of the public API and nothing else, so that it can be read as an example of one.
 *
 * It goes to the service that the settings (environment and `.env`) tell of; if none answers there, the demo starts it, and stops it at its end
 * (in a terminal: on Ctrl-C, so that one can look around). RUNPLANE_URL names another service, RUNPLANE_API_KEY a key.
 * Ctrl-C or SIGTERM during the run cancels it, and the log says so. Exit code: 0 completed, 1 failed, 130 cancelled.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { loadConfig, localUrl } from '../config.js'
import type { RunState } from '../projections/fold.js'
import { createOutbox, type OutgoingEvent } from './outbox.js'
import { perform, type Stage, type Tell } from './stages.js'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const START_PATIENCE_MS = 30_000
const { url: givenUrl } = new Command('npm run demo --')
  .description("Record something real: this project's own type check and unit tests, as a run that you can watch.")
  .option('--url <url>', 'a service that runs; none: that of the settings, which is started if it does not answer', process.env.RUNPLANE_URL || undefined)
  .addHelpText(
    'after',
    '\nThe settings (PORT, HOST and the rest) come from the environment and from .env: see .env.example. RUNPLANE_URL is the same as --url;' +
      '\nthe key of the service is in RUNPLANE_API_KEY. Ctrl-C cancels the run. Exit code: 0 completed, 1 failed, 130 cancelled.',
  )
  .parse()
  .opts<{ url?: string }>()
const url = (givenUrl ?? urlOfSettings()).replace(/\/+$/, '')
const apiKey = process.env.RUNPLANE_API_KEY
const headers: Record<string, string> = apiKey ? { Authorization: `Bearer ${apiKey}` } : {}

const testFiles = readdirSync(`${ROOT}/test/unit`, { recursive: true }).filter((file) => String(file).endsWith('.test.ts')).length
const STAGES: Stage[] = [
  { id: 'typecheck', name: 'Type check', command: 'npm', args: ['run', '--silent', 'typecheck'], parts: 1 },
  // Raw TAP: a line at the left margin for each file that is through.
  { id: 'unit-tests', name: 'Unit tests', command: 'npx', args: ['tap', '--reporter=tap', 'test/unit'], parts: testFiles, partDone: /^(not )?ok \d+ - / },
]

const cancelled = new AbortController()
let interruptedAt = 0
const interrupt = () => {
  // What runs the demo passes the terminal's signal on, so that one Ctrl-C comes two or three times.
  if (cancelled.signal.aborted && Date.now() - interruptedAt > 1000) process.exit(130)
  interruptedAt ||= Date.now()
  cancelled.abort()
}
process.on('SIGINT', interrupt)
process.on('SIGTERM', interrupt)

const service = await findService()
try {
  process.exitCode = await record()
} catch (error) {
  console.error(`demo: ${error instanceof Error ? error.message : String(error)}`)
  process.exitCode = 1
}
if (service) await leave(service)

/** Where the service is, or would be: the process that is started below reads the same settings. */
function urlOfSettings(): string {
  try {
    const config = loadConfig(process.env, { envFile: `${ROOT}/.env` })
    if (config.PORT !== 0) return localUrl(config)
    console.error('demo: PORT: 0 takes any port that is free, and the demo has to know it. Set another one.')
  } catch (error) {
    console.error(`demo: ${error instanceof Error ? error.message : String(error)}`)
  }
  process.exit(1)
}

/** @returns the service if it is one of ours. */
async function findService(): Promise<ChildProcess | undefined> {
  if (await answers()) return undefined
  if (givenUrl !== undefined) {
    console.error(`demo: no service answers at ${url}. Start one with \`npm start\`, or name none (--url, RUNPLANE_URL) and the demo starts its own.`)
    process.exit(1)
  }
  console.log(`No service answers at ${url}: starting one.`)
  // In a process group of its own: Ctrl-C in the terminal must reach the demo first, which has a cancellation to post.
  const child = spawn(process.execPath, ['--import', 'tsx', 'src/main.ts'], {
    cwd: ROOT,
    detached: true,
    env: { ...process.env, LOG_LEVEL: 'warn' },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  process.on('exit', () => child.kill())
  for (const giveUpAt = Date.now() + START_PATIENCE_MS; !(await answers()); await delay(50)) {
    if (child.exitCode !== null || cancelled.signal.aborted || Date.now() > giveUpAt) {
      console.error('demo: the service did not start.')
      process.exit(1)
    }
  }
  return child
}

async function answers(): Promise<boolean> {
  return await fetch(`${url}/readyz`).then(
    async (response) => {
      await response.arrayBuffer()
      return response.ok
    },
    () => false,
  )
}

async function leave(child: ChildProcess): Promise<void> {
  if (process.stdin.isTTY && !cancelled.signal.aborted) {
    console.log(`\nThe service stays at ${url} (the API is described at ${url}/docs). Ctrl-C stops it.`)
    await once(cancelled.signal, 'abort')
  }
  child.kill('SIGTERM')
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
}

/** Everything from the run's creation to the summary of its state. @returns the exit code. */
async function record(): Promise<number> {
  const runId = `demo-${new Date().toISOString().replace(/\D/g, '').slice(0, 17)}`
  await ask('POST', '/runs', {
    id: runId,
    name: 'Type check and unit tests of Runplane',
    kind: 'demo',
    tags: ['demo'],
    input: { commands: STAGES.map(({ command, args }) => [command, ...args].join(' ')) },
  })
  console.log(
    `Recording run ${runId}. See it live, in another terminal:\n\n  curl -N ${apiKey ? '-H "Authorization: Bearer $RUNPLANE_API_KEY" ' : ''}${url}/runs/${runId}/stream\n`,
  )

  const outbox = createOutbox({ url: `${url}/runs/${runId}/events`, headers })
  let events = 0
  const tell: Tell = (type, data, step) => {
    const event: OutgoingEvent = { id: `demo-${++events}`, type, ts: new Date().toISOString(), data }
    return outbox.push(step === undefined ? event : { ...event, subject: { kind: 'step', id: step } })
  }

  const exitCode = await perform(STAGES, { cwd: ROOT, tell, cancelled: cancelled.signal })
  await outbox.drain()
  await summarise(runId)
  return exitCode
}

async function summarise(runId: string): Promise<void> {
  // The projection of the service that the demo belongs to: its type is the one that this build knows.
  const { version, state }: { version: number; state: RunState } = JSON.parse(await ask('GET', `/runs/${runId}/state`))
  const steps = state.steps.steps.map(
    (step) =>
      `  ${step.name ?? step.id}: ${step.status}, ${step.outputs} lines${step.durationMs === undefined ? '' : `, ${(step.durationMs / 1000).toFixed(1)} s`}`,
  )
  console.log(`\nThe state of the run, folded from its ${version} events (${url}/runs/${runId}/state):\n`)
  console.log(`  status ${state.run.status}, progress ${state.progress.percentage ?? 0} %`)
  console.log(steps.join('\n'))
}

async function ask(method: string, path: string, body?: unknown): Promise<string> {
  const response = await fetch(`${url}${path}`, {
    method,
    headers: body === undefined ? headers : { ...headers, 'Content-Type': 'application/json' },
    body: body === undefined ? null : JSON.stringify(body),
  })
  const text = await response.text()
  if (response.ok) return text
  const hint = response.status === 401 ? ' RUNPLANE_API_KEY must hold a key of this service.' : ''
  throw new Error(`${method} ${path} was answered with ${response.status}: ${text}${hint}`)
}
