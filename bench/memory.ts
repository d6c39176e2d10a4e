/**
 * What a reader costs the service in memory: resident bytes after garbage was collected (memory-probe.mjs), with so many readers less without,
 * divided by their number.
 *
 *   live         1,000 readers that have caught up and were sent 20 events. Baseline: as many connections to a bare node:http server that was sent
 *                as many frames. Target: at most 2.0 x.
 *   stalled      100 readers that stop reading in a backfill of 100,000 events, so that their sockets are full. Target: at most 256 KiB each.
 * Knobs: LIVE, STALLED, ROUNDS. Every round has fresh processes, in which 100 readers came and went before (code is compiled, pools are grown).
 * What the kernel holds for a socket is not part of it: it is the same for any server.
 */
import type { Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { compared, inTurns, repeat, spread, until } from './measure.js'
import { type MeasuredProcess, startBareServer } from './process.js'
import type { Scenario } from './scenario.js'
import { must, openConnection, openStream, request } from './wire.js'
import { createRun, eventText } from './workload.js'

const LIVE = 1000
const STALLED = 100
const ROUNDS = 3
const WARM_UP = 100
const KIB = 1024

async function join(port: number, path: string, readers: number, ready: string): Promise<Socket[]> {
  const mark = Buffer.from(ready)
  let joined = 0
  const sockets: Socket[] = []
  for (let index = 0; index < readers; index++) {
    let isReady = false
    sockets.push(
      await openStream(port, path, (chunk) => {
        if (!isReady && chunk.includes(mark)) {
          isReady = true
          joined++
        }
        return true
      }),
    )
  }
  await until(() => joined === readers, 'all readers have joined')
  return sockets
}

/** Readers come, are written to, and are weighed. @returns KiB for each. */
async function weigh(server: MeasuredProcess, path: string, ready: string, readers: number, write: () => Promise<void>): Promise<number> {
  for (const socket of await join(server.port, path, WARM_UP, ready)) socket.destroy()
  await write()
  await delay(500)
  const before = await server.memory()
  const sockets = await join(server.port, path, readers, ready)
  await write()
  await delay(500)
  const after = await server.memory()
  for (const socket of sockets) socket.destroy()
  return (after.rss - before.rss) / readers / KIB
}

export const live: Scenario = async ({ database, quick, startService }) => {
  const readers = quick ? 200 : LIVE
  const ours = async () => {
    const service = await startService()
    const writer = await openConnection(service.port)
    const run = await createRun(writer, service.port, `live-${Date.now()}`)
    let sent = 0
    const each = await weigh(service, `/runs/${run}/stream`, 'caught_up', readers, async () => {
      for (let n = 0; n < 20; n++) await must(writer, request(service.port, 'POST', `/runs/${run}/events`, eventText(sent++)))
    })
    writer.close()
    await service.stop()
    return each
  }
  const baseline = async () => {
    const bare = await startBareServer()
    const writer = await openConnection(bare.port)
    const each = await weigh(bare, '/stream', ': ready', readers, async () => {
      await must(writer, request(bare.port, 'POST', '/write?frames=20', `data: ${'.'.repeat(800)}\n\n`))
    })
    writer.close()
    await bare.stop()
    return each
  }
  const pairs = await inTurns(quick ? 1 : ROUNDS, ours, baseline)
  return [compared({ what: `Memory of a live reader (${readers.toLocaleString('en')} of them)`, database: database.kind, unit: 'KiB' }, pairs, { atMost: 2 })]
}

export const stalled: Scenario = async ({ database, quick, startService, longRun }) => {
  const readers = quick ? 20 : STALLED
  const peaks: number[] = []
  const values = await repeat(quick ? 1 : ROUNDS, async () => {
    const service = await startService()
    const { id } = await longRun(service)
    const stop = async (count: number) => {
      const sockets: Socket[] = []
      // Reads once, and then never again.
      for (let index = 0; index < count; index++) sockets.push(await openStream(service.port, `/runs/${id}/stream`, () => false))
      await settled(service)
      return sockets
    }
    for (const socket of await stop(10)) socket.destroy()
    await settled(service)
    const before = await service.memory()
    const sockets = await stop(readers)
    peaks.push(((await service.resident()).peak - before.rss) / readers / KIB)
    const after = await service.memory()
    for (const socket of sockets) socket.destroy()
    await service.stop()
    return (after.rss - before.rss) / readers / KIB
  })
  const ours = spread(values)
  const what = `Memory of a reader stalled in a backfill (${readers} of them)`
  const note = `at the peak, before garbage was collected: ${spread(peaks).median.toFixed(0)} KiB`
  return [{ what, database: database.kind, unit: 'KiB', ours, target: 'at most 256 KiB', met: ours.median <= 256, note }]
}

/** Waits until the resident memory has not moved by more than 1 % for a second. */
export async function settled(server: MeasuredProcess): Promise<void> {
  let calm = 0
  let last = 0
  await until(async () => {
    const { now } = await server.resident()
    calm = Math.abs(now - last) < last / 100 ? calm + 1 : 0
    last = now
    await delay(90)
    return calm >= 10
  }, 'the memory of the service is steady')
}
