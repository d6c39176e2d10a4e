/**
 * `npm run demo`: records something real. This project's own type check and unit tests become a run: each stage a step, each line of output an
 * event, progress as it goes, and the end as it was. A client of the public API and nothing else, so that it can be read as an example of one.
 *
 * RUNPLANE_URL (http://127.0.0.1:3000) and RUNPLANE_API_KEY say where it goes. If RUNPLANE_URL is not set and no service answers, the demo
 * starts one on the embedded database, and stops it at its end (in a terminal: on Ctrl-C, so that one can look around).
 * Ctrl-C during the run cancels it, and the log says so. Exit code: 0 completed, 1 failed, 130 cancelled.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { RunState } from '../projections/fold.js'
import { createOutbox, type OutgoingEvent } from './outbox.js'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const DEFAULT_URL = 'http://127.0.0.1:3000'
const START_PATIENCE_MS = 30_000
/** Longer lines become several events: far below what the service takes as one. */
const MAX_LINE_CHARS = 16_000

const url = (process.env.RUNPLANE_URL ?? DEFAULT_URL).replace(/\/+$/, '')
const apiKey = process.env.RUNPLANE_API_KEY
const headers: Record<string, string> = apiKey ? { Authorization: `Bearer ${apiKey}` } : {}

interface Stage {
  id: string
  name: string
  command: string
  args: string[]
  /** How much of the whole it is, in parts. */
  parts: number
  /** A line of output that says that one part is done. */
  partDone?: RegExp
}

const testFiles = readdirSync(`${ROOT}/test/unit`, { recursive: true }).filter((file) => String(file).endsWith('.test.ts')).length
const STAGES: Stage[] = [
  { id: 'typecheck', name: 'Type check', command: 'npm', args: ['run', '--silent', 'typecheck'], parts: 1 },
  // Raw TAP: a line at the left margin for each file that is through.
  { id: 'unit-tests', name: 'Unit tests', command: 'npx', args: ['tap', '--reporter=tap', 'test/unit'], parts: testFiles, partDone: /^(not )?ok \d+ - / },
]

const cancelled = new AbortController()
let interruptedAt = 0
process.on('SIGINT', () => {
  // What runs the demo passes the terminal's signal on, so that one Ctrl-C comes two or three times.
  if (cancelled.signal.aborted && Date.now() - interruptedAt > 1000) process.exit(130)
  interruptedAt ||= Date.now()
  cancelled.abort()
})

const service = await findService()
try {
  process.exitCode = await record()
} catch (error) {
  console.error(`demo: ${error instanceof Error ? error.message : String(error)}`)
  process.exitCode = 1
}
if (service) await leave(service)

/** @returns the service if it is one of ours. */
async function findService(): Promise<ChildProcess | undefined> {
  if (await answers()) return undefined
  if (process.env.RUNPLANE_URL) {
    console.error(`demo: no service answers at ${url}. Start one with \`npm start\`, or unset RUNPLANE_URL and the demo starts its own.`)
    process.exit(1)
  }
  console.log(`No service answers at ${url}: starting one on the embedded database.`)
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
  const tell = (type: string, data: Record<string, unknown>, step?: string) => {
    const event: OutgoingEvent = { id: `demo-${++events}`, type, ts: new Date().toISOString(), data }
    return outbox.push(step === undefined ? event : { ...event, subject: { kind: 'step', id: step } })
  }

  const exitCode = await perform(tell)
  await outbox.drain()
  await summarise(runId)
  return exitCode
}

type Tell = (type: string, data: Record<string, unknown>, step?: string) => Promise<void>

async function perform(tell: Tell): Promise<number> {
  await tell('run.started', {})
  let done = 0
  const total = STAGES.reduce((sum, { parts }) => sum + parts, 0)
  const progress = async (parts: number) => {
    done += parts
    await tell('progress.reported', { percentage: Math.floor((100 * done) / total), current: done, total, unit: 'parts' })
  }
  const failures: string[] = []
  await progress(0)
  for (const [ordinal, stage] of STAGES.entries()) {
    if (cancelled.signal.aborted) {
      await tell('step.skipped', { name: stage.name, reason: 'cancelled' }, stage.id)
      continue
    }
    console.log(`${stage.name} ...`)
    await tell('step.started', { name: stage.name, kind: 'command', phase: 'validation', ordinal, input: [stage.command, ...stage.args].join(' ') }, stage.id)
    const startedAt = performance.now()
    const fault = await run(stage, tell, progress)
    const durationMs = Math.round(performance.now() - startedAt)
    if (fault === undefined) await tell('step.completed', { durationMs }, stage.id)
    else {
      failures.push(`${stage.name}: ${fault}`)
      await tell('step.failed', { durationMs, error: { code: 'STAGE_FAILED', message: fault } }, stage.id)
    }
    console.log(`${stage.name}: ${fault ?? 'passed'} (${(durationMs / 1000).toFixed(1)} s)`)
  }
  if (cancelled.signal.aborted) {
    await tell('run.cancelled', { reason: 'interrupted at the keyboard', by: 'demo' })
    return 130
  }
  if (failures.length > 0) {
    await tell('run.failed', { error: { code: 'STAGE_FAILED', message: failures.join('; ') }, retryable: false })
    return 1
  }
  await tell('run.completed', { output: { stages: STAGES.length, parts: done } })
  return 0
}

/** Runs one command, telling each line of its output. @returns what went wrong. */
async function run(stage: Stage, tell: Tell, progress: (parts: number) => Promise<void>): Promise<string | undefined> {
  // A group of its own, so that Ctrl-C ends the command and what it started through us, once.
  const child = spawn(stage.command, stage.args, { cwd: ROOT, detached: true, env: { ...process.env, NO_COLOR: '1' }, stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = new Promise<string | undefined>((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('exit', (code, signal) => resolve(code === 0 ? undefined : `ended with ${signal ?? `exit code ${code}`}`))
  })
  const interrupt = () => {
    if (child.pid !== undefined && child.exitCode === null) process.kill(-child.pid, 'SIGTERM')
  }
  cancelled.signal.addEventListener('abort', interrupt)
  let partsDone = 0
  // Reading line by line waits for `tell`, and the command for its reader: nothing piles up here.
  const read = async (stream: 'stdout' | 'stderr', readable: Readable) => {
    for await (const line of createInterface({ input: readable, crlfDelay: Number.POSITIVE_INFINITY })) {
      for (let from = 0; from === 0 || from < line.length; from += MAX_LINE_CHARS) {
        await tell('step.output', { stream, text: line.slice(from, from + MAX_LINE_CHARS) }, stage.id)
      }
      if (stage.partDone?.test(line) && partsDone < stage.parts) {
        partsDone++
        await tell(
          'progress.reported',
          { percentage: Math.floor((100 * partsDone) / stage.parts), current: partsDone, total: stage.parts, unit: 'files' },
          stage.id,
        )
        await progress(1)
      }
    }
  }
  try {
    await Promise.all([read('stdout', child.stdout), read('stderr', child.stderr)])
  } catch (error) {
    interrupt()
    throw error
  }
  const fault = await ended
  cancelled.signal.removeEventListener('abort', interrupt)
  if (fault === undefined && partsDone < stage.parts) await progress(stage.parts - partsDone)
  return cancelled.signal.aborted ? 'cancelled' : fault
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
