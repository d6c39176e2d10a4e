/**
 * The queue: how many runs a second 32 workers claim and complete.
 *
 *   claims    each worker claims a run and posts its `run.completed` with X-Worker-Id, on a connection of its own. With a short queue (a few
 *             thousand runs) at least 1,500 cycles a second; with 100,000 runs waiting, at least 0.5 x of that.
 * Runs are put into the database as the service writes them, by SQL, so that none of them is in the service's memory when it is claimed.
 * The note says what a cycle costs in CPU time of the service and of its connections' Postgres processes: unlike the rate, that is the same
 * on a machine that others use too. Knobs: ROUNDS, ROUND_MS, WORKERS, BACKLOG.
 */
import { readFile } from 'node:fs/promises'
import type { Sql } from 'postgres'
import { type Row, rateOf, spread } from './measure.js'
import type { Service } from './process.js'
import type { Scenario } from './scenario.js'
import { type Connection, must, openConnections, request } from './wire.js'

const WORKERS = 32
const ROUNDS = 5
const ROUND_MS = 3000
const WARM_UP_MS = 1500
const BACKLOG = 100_000
/** More than the workers can do in a round. */
const ROUND_RUNS = 15_000
const QUEUE = 'bench'

/** Runs as `POST /runs` leaves them, with their two events. Keys are UUIDv7 in the order of their making. */
async function seed(sql: Sql, count: number): Promise<void> {
  await sql`
    with ids as (
      select gen_random_uuid()::text as r, n, (extract(epoch from clock_timestamp()) * 1000)::bigint as ms from generate_series(1, ${count}) n
    ), keys as (
      select (lpad(to_hex(ms), 12, '0') || '7' || lpad(to_hex(n / 64), 3, '0') || '8' || substr(r, 1, 3) || lpad(to_hex(n), 12, '0'))::uuid as key from ids
    ), made as (
      insert into runs (key, workspace_id, id, queue, priority, status, last_seq, input, request_hash, created_at, updated_at)
      select key, '00000000-0000-7000-8000-000000000001', key::text, ${QUEUE}, 0, 'queued', 2, '{"task":"measure the queue"}', sha256(key::text::bytea),
        clock_timestamp(), clock_timestamp() from keys returning key, id
    )
    insert into run_events_canonical (run_key, seq, ts, type, subject, event)
    select key, seq, now(), type, 'run/' || id, json_build_object('runId', id, 'seq', seq, 'ts', '2026-11-21T08:00:00.000Z', 'receivedAt', '2026-11-21T08:00:00.000Z',
      'type', type, 'schemaVersion', 1, 'attempt', 1, 'subject', json_build_object('kind', 'run', 'id', id),
      'source', json_build_object('kind', 'control-plane', 'name', 'runplane', 'format', 'native', 'rawType', type, 'rawSeq', 0), 'data', data::json)
    from made, (values (1, 'run.created', '{"input":{"task":"measure the queue"},"tags":[]}'), (2, 'run.queued', ${`{"queue":"${QUEUE}","priority":0}`})) e(seq, type, data)`
  await sql`analyze runs`
}

/** CPU time (ms) of the Postgres processes of our database, its service's and our own. */
async function postgresCpuMs(sql: Sql): Promise<number> {
  const rows = await sql<{ pid: number }[]>`select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`
  let ticks = 0
  for (const { pid } of rows) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    ticks += Number(fields[11] ?? 0) + Number(fields[12] ?? 0)
  }
  return 10 * ticks
}

function workerOn(connection: Connection, port: number, index: number) {
  const workerId = `worker-${index}`
  const claim = request(port, 'POST', '/runs/claim', JSON.stringify({ queue: QUEUE, workerId, waitMs: 1000 }))
  const completed = '{"type":"run.completed","data":{"output":"done"}}'
  return async () => {
    const run = await must(connection, claim)
    if (run === '') return 0
    const { runId } = JSON.parse(run)
    await must(connection, request(port, 'POST', `/runs/${runId}/events`, completed, { 'x-worker-id': workerId }))
    return 1
  }
}

export const claims: Scenario = async ({ database, quick, startService, say }) => {
  const service = await startService()
  const sql = await database.connect(1)
  const connections = await openConnections(service.port, WORKERS)
  const workers = connections.map((connection, index) => workerOn(connection, service.port, index))
  await seed(sql, ROUND_RUNS)
  await rateOf(workers, WARM_UP_MS)

  const measure = async (): Promise<{ rates: number[]; note: string }> => {
    const rates: number[] = []
    let cycles = 0
    let serviceMs = 0
    let postgresMs = 0
    for (let round = 0; round < (quick ? 2 : ROUNDS); round++) {
      await seed(sql, quick ? 3000 : ROUND_RUNS)
      const before = [await service.cpuMs(), await postgresCpuMs(sql)] as const
      const startedAt = performance.now()
      const rate = await rateOf(workers, quick ? 500 : ROUND_MS)
      cycles += (rate * (performance.now() - startedAt)) / 1000
      serviceMs += (await service.cpuMs()) - before[0]
      postgresMs += (await postgresCpuMs(sql)) - before[1]
      rates.push(rate)
    }
    return {
      rates,
      note: `CPU a cycle: ${((1000 * serviceMs) / cycles).toFixed(0)} µs of the service, ${((1000 * postgresMs) / cycles).toFixed(0)} µs of Postgres`,
    }
  }

  const short = await measure()
  const backlog = quick ? 10_000 : BACKLOG
  say(`${backlog} runs are put into the queue`)
  await seed(sql, backlog)
  const long = await measure()
  await end(service, sql, connections)

  const row = (what: string, { rates, note }: { rates: number[]; note: string }, target: number): Row => {
    const ours = spread(rates)
    return { what, database: database.kind, unit: 'cycles/s', ours, target: `at least ${target.toFixed(0)} cycles/s`, met: ours.median >= target, note }
  }
  return [
    row(`Claim and complete, ${WORKERS} workers`, short, 1500),
    row(`The same with ${backlog.toLocaleString('en')} runs waiting`, long, Math.max(750, spread(short.rates).median / 2)),
  ]
}

async function end(service: Service, sql: Sql, connections: readonly Connection[]): Promise<void> {
  for (const connection of connections) connection.close()
  await sql.end()
  await service.stop()
}
