/** The measured processes: the built service and the bare server, each on a port of its own, with the memory probe in it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { fileURLToPath } from 'node:url'
import { hotSpots } from './hot-spots.js'

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))

export interface Memory {
  rss: number
  heapUsed: number
  external: number
  arrayBuffers: number
}

export interface MeasuredProcess {
  port: number
  /** Resident and heap bytes after garbage was collected. */
  memory(): Promise<Memory>
  /** Resident bytes as they are, and the most there ever were. */
  resident(): Promise<{ now: number; peak: number }>
  /** CPU time that it has used: unlike a rate, it is the same on a machine that others use too. */
  cpuMs(): Promise<number>
  /** Ends it as an operator would, and waits for its end. */
  stop(): Promise<void>
  kill(): Promise<void>
}

export interface Service extends MeasuredProcess {
  /** From the spawn to the first 200 of /readyz. */
  readyMs: number
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new Error('no TCP port')
  return address.port
}

function measured(child: ChildProcess, port: number): MeasuredProcess {
  const exited = once(child, 'exit')
  const signal = async (name: NodeJS.Signals) => {
    if (child.exitCode === null && child.signalCode === null) child.kill(name)
    await exited
  }
  return {
    port,
    memory: async () => {
      child.send('memory')
      const [memory] = await once(child, 'message')
      return memory
    },
    resident: async () => {
      const status = await readFile(`/proc/${child.pid}/status`, 'utf8')
      const bytes = (field: string) => Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(status)?.[1]) * 1024
      return { now: bytes('VmRSS'), peak: bytes('VmHWM') }
    },
    cpuMs: async () => {
      const stat = await readFile(`/proc/${child.pid}/stat`, 'utf8')
      // proc(5): utime and stime are fields 14 and 15, in ticks of 10 ms; the name in field 2 may hold spaces.
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      return 10 * (Number(fields[11]) + Number(fields[12]))
    },
    stop: () => signal('SIGTERM'),
    kill: () => signal('SIGKILL'),
  }
}

const living = new Set<ChildProcess>()

/** Ends what a scenario that failed left running. */
export async function stopAll(): Promise<void> {
  await Promise.all(
    [...living].map(async (child) => {
      const exited = once(child, 'exit')
      child.kill('SIGTERM')
      await exited
    }),
  )
}
process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL')
})

function start(args: string[], env: Record<string, string>): ChildProcess {
  const child = spawn(process.execPath, ['--expose-gc', '--import', here('./memory-probe.mjs'), ...args], {
    cwd: here('..'),
    env: { PATH: process.env.PATH, HOME: process.env.HOME, NODE_ENV: 'production', ...env },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  living.add(child)
  child.on('exit', () => living.delete(child))
  return child
}

/** @param env settings of the service; `profile` prints where its CPU time went when it stops. */
export async function startService(env: Record<string, string>, profile?: string): Promise<Service> {
  const port = await freePort()
  const folder = profile === undefined ? undefined : await mkdtemp(join(tmpdir(), 'runplane-profile-'))
  const startedAt = performance.now()
  const child = start(folder === undefined ? ['dist/main.js'] : ['--cpu-prof', `--cpu-prof-dir=${folder}`, 'dist/main.js'], {
    PORT: String(port),
    HOST: '127.0.0.1',
    LOG_LEVEL: 'warn',
    // No frame but those of the events: what is counted is what was posted.
    STREAM_HEARTBEAT_MS: '3600000',
    STREAM_STALL_MS: '3600000',
    ...env,
  })
  let said = ''
  child.stderr?.on('data', (chunk) => {
    said = (said + chunk).slice(-4000)
  })
  let ready = false
  while (!ready) {
    if (child.exitCode !== null || child.signalCode !== null) throw new Error(`the service ended at its start: ${said}`)
    if (performance.now() - startedAt > 60_000) throw new Error(`the service was not ready after 60 s: ${said}`)
    ready = await fetch(`http://127.0.0.1:${port}/readyz`).then(
      async (reply) => {
        await reply.arrayBuffer()
        return reply.ok
      },
      () => false,
    )
    if (!ready) await new Promise((resolve) => setTimeout(resolve, 4))
  }
  const readyMs = performance.now() - startedAt
  const service = measured(child, port)
  return {
    ...service,
    readyMs,
    stop: async () => {
      await service.stop()
      if (folder === undefined) return
      console.log(`\n${profile}: where the service's CPU time went\n${await hotSpots(folder)}`)
      await rm(folder, { recursive: true })
    },
  }
}

export async function startBareServer(): Promise<MeasuredProcess> {
  const child = start([here('./bare-server.mjs')], {})
  const [{ port }] = await once(child, 'message')
  return measured(child, port)
}
