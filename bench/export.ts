/**
 * Taking runs away, and what it costs the service in memory: the most that was resident during the export, less what was before it.
 *
 *   export       NDJSON of 100,000 canonical events and the raw events that they came of. Baseline: the same rows read by keyset, 1,000 a page, through
 *                `postgres`, to nowhere. Target: at least 0.7 x its events/s, and at most 48 MiB; the same limit for a run of 1,000,000; and for a
 *                reader that stops reading, at most 16 MiB.
 *   export-zip   the same with Parquet tables in a zip. Baseline: the NDJSON. Target: at least 0.25 x, at most 160 MiB.
 * Knobs: ROUNDS, MILLION, WARM_UP. Memory is measured in a service of its own, which has exported a smaller run before: code is compiled, pools and the
 * young generation of the heap are grown, as they are in any service that has been in use (without that, 20 to 70 MiB more, once).
 */
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { Sql } from 'postgres'
import { uuidv7 } from '../src/domain/ids.js'
import { compared, inTurns, type Row, seconds, spread } from './measure.js'
import { settled } from './memory.js'
import type { Service } from './process.js'
import type { Context, Scenario } from './scenario.js'
import { must, openConnection, request } from './wire.js'
import { createRun, fill } from './workload.js'

const ROUNDS = 5
const MILLION = 1_000_000
const WARM_UP = 20_000
const MIB = 1024 * 1024

const shared = Buffer.allocUnsafeSlow(262_144)

/** Reads an answer to its end, to nowhere. @param stopAfter bytes after which nothing is read any more; then the socket stays open */
export function fetchAll(port: number, path: string, stopAfter = Number.POSITIVE_INFINITY): Promise<{ bytes: number; tail: string; close(): void }> {
  return new Promise((resolve, reject) => {
    let bytes = 0
    let tail = ''
    const socket = connect({
      port,
      host: '127.0.0.1',
      onread: {
        buffer: shared,
        callback: (size) => {
          bytes += size
          tail = (tail + shared.toString('latin1', Math.max(0, size - 400), size)).slice(-400)
          if (bytes < stopAfter) return true
          resolve({ bytes, tail, close: () => socket.destroy() })
          return false
        },
      },
    })
    socket.on('error', reject)
    socket.on('close', () => resolve({ bytes, tail, close: () => {} }))
    socket.on('connect', () => socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nConnection: close\r\n\r\n`))
  })
}

const ndjson = (id: string) => `/runs/${id}/export?format=ndjson&include=canonical,raw`
const zip = (id: string) => `/runs/${id}/export?format=zip&include=canonical,raw`

async function exported(port: number, path: string): Promise<number> {
  const { bytes, tail } = await fetchAll(port, path)
  // The end of a chunked answer, behind a manifest or the seal of a zip.
  if (!/("\}\r?\n|sha256:[0-9a-f]{64})\r\n0\r\n\r\n$/.test(tail)) throw new Error(`the export did not end well: ${tail.slice(-200)}`)
  return bytes
}

/** MiB at the peak above what was before. */
async function peakOf(context: Context, id: string, path: string, work: (service: Service) => Promise<void>): Promise<number> {
  const service = await context.startService()
  const connection = await openConnection(service.port)
  const warm = await createRun(connection, service.port, `warm-${uuidv7()}`)
  await fill(connection, service.port, warm, context.quick ? 3000 : WARM_UP)
  for (let round = 0; round < 3; round++) await exported(service.port, path.replace(id, warm))
  await must(connection, request(service.port, 'GET', `/runs/${id}`))
  await fetchAll(service.port, `/runs/${id}/state`)
  connection.close()
  await service.memory()
  const { rss } = await service.memory()
  let peak = rss
  let isDone = false
  const watch = (async () => {
    while (!isDone) {
      peak = Math.max(peak, (await service.resident()).now)
      await delay(10)
    }
  })()
  try {
    await work(service)
  } finally {
    isDone = true
    await watch
  }
  await service.stop()
  return (peak - rss) / MIB
}

const memoryRow = (what: string, database: string, values: number[], limit: number): Row => {
  const ours = spread(values)
  return { what, database, unit: 'MiB', ours, target: `at most ${limit} MiB`, met: ours.median <= limit }
}

/** A run of so many events whose rows are copies of another's: numbers of their own, the same content. */
async function seeded(sql: Sql, from: string, id: string, events: number): Promise<void> {
  const key = uuidv7()
  const [source] = await sql<{ key: string; last_seq: string; last_raw_seq: string }[]>`select key, last_seq, last_raw_seq from runs where id = ${from}`
  if (!source) throw new Error('there is nothing to copy')
  const step = Number(source.last_seq)
  let rawOffset = 0
  for (let offset = 0; offset < events; offset += step, rawOffset += Number(source.last_raw_seq)) {
    await sql`
      insert into run_events_canonical (run_key, seq, ts, type, subject, event, shape, content)
      select ${key}, seq + ${offset}::bigint, ts, type, subject,
        replace(replace(event::text, '"seq":' || seq || ',', '"seq":' || seq + ${offset}::bigint || ','), ${`"runId":"${from}"`}, ${`"runId":"${id}"`})::json, shape, content
      from run_events_canonical where run_key = ${source.key} and seq + ${offset}::bigint <= ${events}`
    await sql`
      insert into run_events_raw (run_key, raw_seq, received_at, first_seq, seq_count, format, raw_type, source, event_id, body)
      select ${key}, raw_seq + ${rawOffset}::bigint, received_at, first_seq + ${offset}::bigint, seq_count, format, raw_type, source, null, body
      from run_events_raw where run_key = ${source.key} and first_seq + ${offset}::bigint <= ${events}`
  }
  await sql`
    insert into runs (key, workspace_id, id, status, last_seq, last_raw_seq, created_at, updated_at)
    select ${key}, workspace_id, ${id}, status, ${events}, (select max(raw_seq) from run_events_raw where run_key = ${key}), created_at, updated_at
    from runs where key = ${source.key}`
  await sql`analyze run_events_canonical, run_events_raw`
}

export const exportLines: Scenario = async (context) => {
  const { database, quick, startService, longRun, say } = context
  const service = await startService()
  const { id, events } = await longRun(service)
  const sql = await database.connect(1)
  const [run] = await sql<{ key: string }[]>`select key from runs where id = ${id}`
  if (run === undefined) throw new Error('the run is not in the database')
  await sql`analyze run_events_canonical, run_events_raw`
  const rows = 2 * events - 1
  const baseline = async () => {
    let read = 0
    const took = await seconds(async () => {
      for (let seq = 0; ; ) {
        const page = await sql<{ seq: string }[]>`
          select seq, event from run_events_canonical where run_key = ${run.key} and seq > ${seq} order by seq limit 1000`
        read += page.length
        seq = Number(page.at(-1)?.seq)
        if (page.length < 1000) break
      }
      for (let seq = 0; ; ) {
        const page = await sql<{ raw_seq: string }[]>`
          select raw_seq, received_at, first_seq, seq_count, format, raw_type, source, event_id, body from run_events_raw
          where run_key = ${run.key} and raw_seq > ${seq} order by raw_seq limit 1000`
        read += page.length
        seq = Number(page.at(-1)?.raw_seq)
        if (page.length < 1000) break
      }
    })
    if (read !== rows) throw new Error(`the baseline read ${read} of ${rows}`)
    return rows / took
  }
  const bytes = await exported(service.port, ndjson(id))
  const ours = async () => rows / (await seconds(() => exported(service.port, ndjson(id))))
  await baseline()
  const pairs = await inTurns(quick ? 2 : ROUNDS, ours, baseline)
  await service.stop()
  const what = `NDJSON export of ${events.toLocaleString('en')} canonical events and their raw events`
  const note = `${(bytes / MIB).toFixed(0)} MiB`
  const rowsOut = [compared({ what, database: database.kind, unit: 'events/s', note }, pairs, { atLeast: 0.7 })]

  const whole = (path: string) => async (service: Service) => void (await exported(service.port, path))
  const rounds = quick ? 1 : 3
  const repeatPeak = async (run: string, path: string, work: (service: Service) => Promise<void>) => {
    const values: number[] = []
    for (let round = 0; round < rounds; round++) values.push(await peakOf(context, run, path, work))
    return values
  }
  rowsOut.push(memoryRow('Memory of that export, at its peak', database.kind, await repeatPeak(id, ndjson(id), whole(ndjson(id))), 48))
  const stalled = await repeatPeak(id, ndjson(id), async (service) => {
    const reader = await fetchAll(service.port, ndjson(id), MIB)
    await settled(service)
    reader.close()
  })
  rowsOut.push(memoryRow('Memory of that export when its reader stalls, at its peak', database.kind, stalled, 16))

  const million = quick ? 20_000 : MILLION
  say(`seeding a run of ${million} events`)
  const holder = await startService()
  const admin = await database.connect(1)
  await seeded(admin, id, 'million', million)
  await admin.end()
  await fetchAll(holder.port, '/runs/million/state')
  await holder.stop()
  rowsOut.push(
    memoryRow(
      `Memory of an NDJSON export of ${million.toLocaleString('en')} events and their raw events`,
      database.kind,
      [await peakOf(context, 'million', ndjson('million'), whole(ndjson('million')))],
      48,
    ),
  )
  await sql.end()
  return rowsOut
}

export const exportZip: Scenario = async (context) => {
  const { database, quick, startService, longRun } = context
  const service = await startService()
  const { id, events } = await longRun(service)
  const packed = await exported(service.port, zip(id))
  const rate = (path: string) => async () => (2 * events - 1) / (await seconds(() => exported(service.port, path)))
  await rate(ndjson(id))()
  const pairs = await inTurns(quick ? 1 : 3, rate(zip(id)), rate(ndjson(id)))
  await service.stop()
  const what = `Zip with Parquet of ${events.toLocaleString('en')} events (baseline: NDJSON)`
  const values: number[] = []
  for (let round = 0; round < (quick ? 1 : 3); round++) {
    values.push(await peakOf(context, id, zip(id), async (service) => void (await exported(service.port, zip(id)))))
  }
  return [
    compared({ what, database: database.kind, unit: 'events/s', note: `${(packed / MIB).toFixed(0)} MiB` }, pairs, { atLeast: 0.25 }),
    memoryRow('Memory of the zip export, at its peak', database.kind, values, 160),
  ]
}
