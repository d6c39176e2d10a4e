/**
 * Bringing a run back: a bundle of 100,000 canonical and raw events, as NDJSON. Baseline: posting the same events in batches of 1,000, one after
 * another on one connection. Target: at least 0.8 x its events/s. Knobs: ROUNDS.
 */
import { connect } from 'node:net'
import { compared, inTurns, seconds } from './measure.js'
import type { Scenario } from './scenario.js'
import { must, openConnection, request } from './wire.js'
import { createRun, fill } from './workload.js'

const ROUNDS = 3

export const importBundle: Scenario = async ({ database, quick, startService, longRun }) => {
  const service = await startService()
  const { id, events } = await longRun(service)
  const answer = await fetch(`http://127.0.0.1:${service.port}/runs/${id}/export?format=ndjson&include=canonical,raw`)
  const bundle = Buffer.from(await answer.arrayBuffer())
  let round = 0
  const connection = await openConnection(service.port)
  const ours = async () => {
    const as = `imported-${round++}`
    const took = await seconds(() => post(service.port, `/runs/import?as=${as}`, bundle))
    const run: { lastSeq: number } = JSON.parse(await must(connection, request(service.port, 'GET', `/runs/${as}`)))
    if (run.lastSeq !== events) throw new Error(`${run.lastSeq} of ${events} were imported`)
    return events / took
  }
  const baseline = async () => {
    const run = await createRun(connection, service.port, `posted-${round++}`)
    return events / (await seconds(() => fill(connection, service.port, run, events)))
  }
  await ours()
  const pairs = await inTurns(quick ? 1 : ROUNDS, ours, baseline)
  connection.close()
  await service.stop()
  const what = `Import of ${events.toLocaleString('en')} events and their raw events (baseline: posting them in batches of 1,000)`
  return [compared({ what, database: database.kind, unit: 'events/s' }, pairs, { atLeast: 0.8 })]
}

/** Sends a body as fast as it is taken. */
function post(port: number, path: string, body: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    let text = ''
    const socket = connect({ port, host: '127.0.0.1' }, () => {
      socket.write(
        `POST ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nConnection: close\r\nContent-Type: application/x-ndjson\r\nContent-Length: ${body.length}\r\n\r\n`,
      )
      socket.write(body)
    })
    socket.on('data', (chunk) => {
      text += chunk
    })
    socket.on('error', reject)
    socket.on('close', () => (text.startsWith('HTTP/1.1 201') ? resolve() : reject(new Error(text.slice(0, 2000)))))
  })
}
