/**
 * One run, many live readers.
 *
 *   fan-out      1,000 readers, events posted 100 a request as fast as they are taken: frames delivered per second, from the first post until the
 *                last reader has the last. Baseline: a bare node:http server (bare-server.mjs) that writes a ready frame of the same size, one
 *                frame a write, to as many connections. Target: at least 1.5 x, because frames that come together go out together.
 *   latency      200 readers, 20 events/s: from the post's first byte to the frame at each reader. Target: p99 at most 15 ms.
 * Knobs: READERS, FRAMES (events a round), ROUNDS, LATENCY_MS. Ten readers count every frame; the others wait for the last one, which is marked.
 */

import type { Socket } from 'node:net'
import { performance } from 'node:perf_hooks'
import { setTimeout as delay } from 'node:timers/promises'
import { compared, inTurns, quantile, seconds, spread, until } from './measure.js'
import { startBareServer } from './process.js'
import type { Scenario } from './scenario.js'
import { frameCounter, must, openConnection, openStream, request } from './wire.js'
import { createRun, post } from './workload.js'

const READERS = 1000
const FRAMES = 500
const ROUNDS = 5
const LATENCY_MS = 20_000
const CHECKED = 10
const STRAGGLER_MS = 50
const CAUGHT_UP = Buffer.from('caught_up')
/** Repeated, so that however the frame is cut, one of them is whole in the last bytes that come. */
const MARK = 'end-of-round '

interface Audience {
  /** Resolves when every reader has seen the marked frame. */
  seen(): Promise<void>
  close(): void
  bytes(): number
}

/** @param ready what a reader gets when it has joined. @param check whether ids can be counted. */
async function gather(port: number, path: string, readers: number, ready: Buffer, check: boolean): Promise<Audience> {
  const mark = Buffer.from(MARK)
  let joined = 0
  let missing = new Set(Array.from({ length: readers }, (_, index) => index))
  let allSeen: () => void = () => undefined
  let bytes = 0
  const sockets: Socket[] = []
  for (let index = 0; index < readers; index++) {
    const frames = check && index < CHECKED ? frameCounter(0) : undefined
    let isReady = false
    sockets.push(
      await openStream(port, path, (chunk) => {
        bytes += chunk.length
        frames?.push(chunk)
        if (!isReady && chunk.includes(ready)) {
          isReady = true
          joined++
        }
        if (chunk.subarray(Math.max(0, chunk.length - 1024)).includes(mark) && missing.delete(index) && missing.size === 0) allSeen()
        return true
      }),
    )
  }
  await until(() => joined === readers, 'all readers have joined')
  await delay(200)
  return {
    seen: () =>
      new Promise((resolve, reject) => {
        const timeout = setTimeout(() => reject(new Error(`${missing.size} of ${readers} readers did not get the last frame`)), 120_000)
        allSeen = () => {
          clearTimeout(timeout)
          // The rest of the last frame may still be on its way to a reader: the next round starts when it has come.
          setTimeout(() => {
            missing = new Set(Array.from({ length: readers }, (_, index) => index))
            resolve()
          }, STRAGGLER_MS)
        }
        if (missing.size === 0) allSeen()
      }),
    close: () => {
      for (const socket of sockets) socket.destroy()
    },
    bytes: () => bytes,
  }
}

export const fanOut: Scenario = async ({ database, quick, startService }) => {
  const readers = quick ? 100 : READERS
  const frames = quick ? 200 : FRAMES
  const perRound = frames + 1
  const service = await startService()
  const writer = await openConnection(service.port)
  const run = await createRun(writer, service.port, 'fan-out')
  const audience = await gather(service.port, `/runs/${run}/stream`, readers, CAUGHT_UP, true)
  const hundred = post(service.port, run, 100)
  const last = request(
    service.port,
    'POST',
    `/runs/${run}/events`,
    JSON.stringify({ type: 'step.output', subject: { kind: 'step', id: 'last' }, data: { stream: 'log', text: MARK.repeat(25) } }),
  )
  const ours = async () => {
    const took = await seconds(async () => {
      for (let sent = 0; sent < frames; sent += 100) await must(writer, hundred)
      await must(writer, last)
      await audience.seen()
    })
    return (readers * perRound) / (took - STRAGGLER_MS / 1000)
  }

  const bare = await startBareServer()
  const trigger = await openConnection(bare.port)
  const bareAudience = await gather(bare.port, '/stream', readers, Buffer.from(': ready'), false)
  await ours()
  const bytesBefore = audience.bytes()
  await ours()
  const frameBytes = Math.round((audience.bytes() - bytesBefore) / readers / perRound)
  const frame = (text: string) => `id: 100000\nevent: canonical_event\ndata: ${text.padStart(frameBytes - 44, '.')}\n\n`
  const write = (count: number, text: string) => request(bare.port, 'POST', `/write?frames=${count}`, frame(text))
  const baseline = async () => {
    const took = await seconds(async () => {
      await must(trigger, write(frames, ''))
      await must(trigger, write(1, MARK.repeat(25)))
      await bareAudience.seen()
    })
    return (readers * perRound) / (took - STRAGGLER_MS / 1000)
  }
  await baseline()
  const pairs = await inTurns(quick ? 2 : ROUNDS, ours, baseline)
  audience.close()
  bareAudience.close()
  writer.close()
  trigger.close()
  await service.stop()
  await bare.stop()
  const what = `Fan-out to ${readers.toLocaleString('en')} readers of one run`
  return [compared({ what, database: database.kind, unit: 'frames/s', note: `${frameBytes} bytes a frame` }, pairs, { atLeast: 1.5 })]
}

export const latency: Scenario = async ({ database, quick, startService }) => {
  const service = await startService()
  const writer = await openConnection(service.port)
  const run = await createRun(writer, service.port, 'latency')
  const readers = quick ? 20 : 200
  const sentAt: number[] = []
  const frameMs: number[] = []
  const ackMs: number[] = []
  const mark = Buffer.from('sent-')
  const sockets: Socket[] = []
  let joined = 0
  for (let index = 0; index < readers; index++) {
    let isReady = false
    sockets.push(
      await openStream(service.port, `/runs/${run}/stream`, (chunk) => {
        const now = performance.now()
        if (!isReady && chunk.includes(CAUGHT_UP)) {
          isReady = true
          joined++
        }
        for (let at = chunk.indexOf(mark); at >= 0; at = chunk.indexOf(mark, at + 10)) {
          const sent = sentAt[Number(chunk.toString('latin1', at + 5, at + 11))]
          if (sent !== undefined) frameMs.push(now - sent)
        }
        return true
      }),
    )
  }
  await until(() => joined === readers, 'all readers have joined')
  const events = (quick ? 2000 : LATENCY_MS) / 50
  const start = performance.now()
  for (let n = 0; n < events; n++) {
    await delay(Math.max(0, start + n * 50 - performance.now()))
    const text = `sent-${String(n).padStart(6, '0')} ${'.'.repeat(250)}`
    const bytes = request(
      service.port,
      'POST',
      `/runs/${run}/events`,
      JSON.stringify({ type: 'step.output', subject: { kind: 'step', id: 'step-1' }, data: { stream: 'stdout', text } }),
    )
    const sent = performance.now()
    sentAt[n] = sent
    await must(writer, bytes)
    ackMs.push(performance.now() - sent)
  }
  await until(() => frameMs.length >= readers * events, 'all readers have all frames')
  for (const socket of sockets) socket.destroy()
  writer.close()
  await service.stop()
  const p99 = quantile(frameMs, 0.99)
  const milliseconds = (value: number) => `${value.toFixed(1)} ms`
  const note = `p50 ${milliseconds(quantile(frameMs, 0.5))}, most ${milliseconds(spread(frameMs).max)}; answer of the post p50 ${milliseconds(quantile(ackMs, 0.5))}, p99 ${milliseconds(quantile(ackMs, 0.99))}`
  const value = { median: p99, min: p99, max: p99 }
  return [
    {
      what: `Post to frame, p99, ${readers} readers, 20 events/s`,
      database: database.kind,
      unit: 'ms',
      ours: value,
      target: 'at most 15 ms',
      met: p99 <= 15,
      note,
    },
  ]
}
