/**
 * Commands as the steps of a run: each line of output an event, progress as they go, and the end as it was.
 * Once it is cancelled nothing counts as done any more: a test runner that is stopped still has a line for each file that it did not get to.
 */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'

/** Longer lines become several events: far below what the service takes as one. */
const MAX_LINE_CHARS = 16_000

export interface Stage {
  id: string
  name: string
  command: string
  args: string[]
  /** How much of the whole it is, in parts. */
  parts: number
  /** A line of output that says that one part is done. */
  partDone?: RegExp
}

/** Tells an event of the run, or of one of its steps. */
export type Tell = (type: string, data: Record<string, unknown>, step?: string) => Promise<void>

export interface PerformOptions {
  cwd: string
  tell: Tell
  cancelled: AbortSignal
}

/** Performs the stages one after another. @returns the exit code: 0 completed, 1 failed, 130 cancelled */
export async function perform(stages: Stage[], options: PerformOptions): Promise<number> {
  const { tell, cancelled } = options
  await tell('run.started', {})
  let done = 0
  const total = stages.reduce((sum, { parts }) => sum + parts, 0)
  const progress = async (parts: number) => {
    done += parts
    await tell('progress.reported', { percentage: Math.floor((100 * done) / total), current: done, total, unit: 'parts' })
  }
  const failures: string[] = []
  await progress(0)
  for (const [ordinal, stage] of stages.entries()) {
    if (cancelled.aborted) {
      await tell('step.skipped', { name: stage.name, reason: 'cancelled' }, stage.id)
      continue
    }
    console.log(`${stage.name} ...`)
    await tell('step.started', { name: stage.name, kind: 'command', phase: 'validation', ordinal, input: [stage.command, ...stage.args].join(' ') }, stage.id)
    const startedAt = performance.now()
    const fault = await run(stage, options, progress)
    const durationMs = Math.round(performance.now() - startedAt)
    if (fault === undefined) await tell('step.completed', { durationMs }, stage.id)
    else {
      failures.push(`${stage.name}: ${fault}`)
      await tell('step.failed', { durationMs, error: { code: 'STAGE_FAILED', message: fault } }, stage.id)
    }
    console.log(`${stage.name}: ${fault ?? 'passed'} (${(durationMs / 1000).toFixed(1)} s)`)
  }
  if (cancelled.aborted) {
    await tell('run.cancelled', { reason: 'interrupted', by: 'demo' })
    return 130
  }
  if (failures.length > 0) {
    await tell('run.failed', { error: { code: 'STAGE_FAILED', message: failures.join('; ') }, retryable: false })
    return 1
  }
  await tell('run.completed', { output: { stages: stages.length, parts: done } })
  return 0
}

/** Runs one command, telling each line of its output. @returns what went wrong. */
async function run(stage: Stage, { cwd, tell, cancelled }: PerformOptions, progress: (parts: number) => Promise<void>): Promise<string | undefined> {
  // A group of its own, so that Ctrl-C ends the command and what it started through us, once.
  const child = spawn(stage.command, stage.args, { cwd, detached: true, env: { ...process.env, NO_COLOR: '1' }, stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = new Promise<string | undefined>((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('exit', (code, signal) => resolve(code === 0 ? undefined : `ended with ${signal ?? `exit code ${code}`}`))
  })
  const interrupt = () => {
    if (child.pid !== undefined && child.exitCode === null) process.kill(-child.pid, 'SIGTERM')
  }
  cancelled.addEventListener('abort', interrupt)
  // It may have come while the step's start was told.
  if (cancelled.aborted) interrupt()
  let partsDone = 0
  // Reading line by line waits for `tell`, and the command for its reader: nothing piles up here.
  const read = async (stream: 'stdout' | 'stderr', readable: Readable) => {
    for await (const line of createInterface({ input: readable, crlfDelay: Number.POSITIVE_INFINITY })) {
      for (let from = 0; from === 0 || from < line.length; from += MAX_LINE_CHARS) {
        await tell('step.output', { stream, text: line.slice(from, from + MAX_LINE_CHARS) }, stage.id)
      }
      if (!cancelled.aborted && stage.partDone?.test(line) && partsDone < stage.parts) {
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
  cancelled.removeEventListener('abort', interrupt)
  if (cancelled.aborted) return 'cancelled'
  if (fault === undefined && partsDone < stage.parts) await progress(stage.parts - partsDone)
  return fault
}
