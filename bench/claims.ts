/**
 * The queue: how many runs a second 32 workers claim and complete.
 *
 *   claims    each worker claims a run and posts its `run.completed` with X-Worker-Id, on a connection of its own. With a short queue (a few
 *             thousand runs) at least 1,500 cycles a second; with 100,000 runs waiting, at least 0.5 x of that. Baseline, printed: the least that a
 *             queue on Postgres can do, on 16 connections: one statement to claim a run, one to complete it, which write the same rows.
 * Runs are put into the database as the service writes them, by SQL, so that none of them is in the service's memory when it is claimed.
 * The note says what a cycle costs in CPU time of the service and of its connections' Postgres processes: unlike the rate, that is the same
 * on a machine that others use too. Knobs: ROUNDS, ROUND_MS, WORKERS, BARE_CONNECTIONS, BACKLOG.
 */
import { readFile } from 'node:fs/promises'
import type { Sql } from 'postgres'
import { against, inTurns, type Pair, type Row, rateOf, until, WARM_UP_MS } from './measure.js'
import type { Service } from './process.js'
import type { Scenario } from './scenario.js'
import { type Connection, must, openConnections, request } from './wire.js'

const WORKERS = 32
const ROUNDS = 5
const ROUND_MS = 3000
const BACKLOG = 100_000
/** More than the workers can do in a round. */
const ROUND_RUNS = 15_000
const BARE_CONNECTIONS = 16
const QUEUE = 'bench'

interface Measured {
  pairs: Pair[]
  note: string
}

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

/** What the service wrote for one cycle. */
interface CycleRows {
  claimed: string
  completed: string
  body: string
}

async function cycleRows(sql: Sql): Promise<CycleRows> {
  const [rows] = await sql<CycleRows[]>`
    select claimed.event::text as claimed, completed.event::text as completed, raw.body
    from run_events_canonical claimed join run_events_canonical completed using (run_key) join run_events_raw raw using (run_key)
    where claimed.type = 'run.claimed' and completed.type = 'run.completed' limit 1`
  if (!rows) throw new Error('no run was completed in the warm-up')
  return rows
}

/** A worker of the baseline: no service, no log that is folded, no lease that is looked after. */
function bareWorker(sql: Sql, rows: CycleRows, index: number) {
  const workerId = `bare-${index}`
  return async () => {
    const [run] = await sql<{ run_key: string }[]>`
      with next as (
        select key from runs
        where workspace_id = '00000000-0000-7000-8000-000000000001' and queue = ${QUEUE} and status = 'queued' and available_at is null and reserved_until is null
        order by priority desc nulls last, key limit 1 for update skip locked
      ), claimed as (
        update runs set status = 'starting', worker_id = ${workerId}, lease_expires_at = clock_timestamp() + interval '30 s', lease_length_ms = 30000,
          last_seq = 3, updated_at = clock_timestamp() from next where runs.key = next.key returning runs.key, runs.id
      )
      insert into run_events_canonical (run_key, seq, ts, type, subject, shape, content, event)
      select key, 3, clock_timestamp(), 'run.claimed', 'run/' || id, 1, 1, ${rows.claimed} from claimed returning run_key`
    if (!run) return 0
    await sql`
      with completed as (
        update runs set status = 'completed', progress = 100, worker_id = null, lease_expires_at = null, lease_length_ms = null, last_seq = 4, last_raw_seq = 1,
          started_at = clock_timestamp(), ended_at = clock_timestamp(), updated_at = clock_timestamp() where key = ${run.run_key} returning key, id
      ), raw as (
        insert into run_events_raw (run_key, raw_seq, received_at, first_seq, seq_count, format, raw_type, source, body)
        select key, 1, clock_timestamp(), 4, 1, 'native', 'run.completed', 'anonymous', ${rows.body} from completed
      )
      insert into run_events_canonical (run_key, seq, ts, type, subject, shape, content, event)
      select key, 4, clock_timestamp(), 'run.completed', 'run/' || id, 1, 1, ${rows.completed} from completed`
    return 1
  }
}

export const claims: Scenario = async ({ database, quick, startService, say }) => {
  const service = await startService()
  const sql = await database.connect(1)
  const connections = await openConnections(service.port, WORKERS)
  const workers = connections.map((connection, index) => workerOn(connection, service.port, index))
  await seed(sql, ROUND_RUNS)
  // After other scenarios the disk may be busy for seconds.
  await until(async () => (await rateOf(workers, WARM_UP_MS)) > 0, 'a run that is claimed and completed')

  const bare = await database.connect(BARE_CONNECTIONS)
  const rows = await cycleRows(sql)
  const bareWorkers = Array.from({ length: BARE_CONNECTIONS }, (_, index) => bareWorker(bare, rows, index))
  const roundMs = quick ? 500 : ROUND_MS

  const measure = async (): Promise<Measured> => {
    let cycles = 0
    let serviceMs = 0
    let postgresMs = 0
    const ours = async () => {
      await seed(sql, quick ? 3000 : ROUND_RUNS)
      const before = [await service.cpuMs(), await postgresCpuMs(sql)] as const
      const startedAt = performance.now()
      const rate = await rateOf(workers, roundMs)
      cycles += (rate * (performance.now() - startedAt)) / 1000
      serviceMs += (await service.cpuMs()) - before[0]
      postgresMs += (await postgresCpuMs(sql)) - before[1]
      return rate
    }
    const pairs = await inTurns(quick ? 2 : ROUNDS, ours, async () => {
      await seed(sql, quick ? 3000 : ROUND_RUNS)
      return rateOf(bareWorkers, roundMs)
    })
    return {
      pairs,
      note: `CPU a cycle: ${((1000 * serviceMs) / cycles).toFixed(0)} µs of the service, ${((1000 * postgresMs) / cycles).toFixed(0)} µs of Postgres`,
    }
  }

  const short = await measure()
  const backlog = quick ? 10_000 : BACKLOG
  say(`${backlog} runs are put into the queue`)
  await seed(sql, backlog)
  const long = await measure()
  await bare.end()
  await end(service, sql, connections)

  const row = (what: string, { pairs, note }: Measured, target: number): Row => {
    const { ours, baseline, ratio } = against(pairs)
    const met = ours.median >= target
    return { what, database: database.kind, unit: 'cycles/s', ours, baseline, ratio, target: `at least ${target.toFixed(0)} cycles/s`, met, note }
  }
  return [
    row(`Claim and complete, ${WORKERS} workers`, short, 1500),
    row(`The same with ${backlog.toLocaleString('en')} runs waiting`, long, Math.max(750, against(short.pairs).ours.median / 2)),
  ]
}

async function end(service: Service, sql: Sql, connections: readonly Connection[]): Promise<void> {
  for (const connection of connections) connection.close()
  await sql.end()
  await service.stop()
}
