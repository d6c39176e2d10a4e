/**
 * 20 worker processes and two instances on one Postgres, all of them killed with -9 at random: each run ends exactly once, and whatever is in a
 * log of a worker came from the one that held the run at that moment.
 * QUEUE_TEST_RUNS: how many runs (2,000).
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import postgres from 'postgres'
import t from 'tap'
import { createClient } from '../support/http.js'
import { NO_SERVER, startService, TEST_DATABASE_URL } from '../support/service.js'

const RUNS = Number(process.env.QUEUE_TEST_RUNS ?? 2000)
const WORKERS = 20
const WORKER_DEATHS = 60
const INSTANCE_DEATHS = 5
const QUEUE = 'work'
// Few connections: a killed service leaves its own behind for a moment, and the server has some for other tests too.
const ENV = { DB_POOL_MAX: '4', COMMITTERS: '2', LEASE_CHECK_MS: '100', RETRY_BASE_MS: '10', RETRY_MAX_MS: '200', MAX_ATTEMPTS: '1000' }
const WORKER = fileURLToPath(new URL('../support/queue-worker.mjs', import.meta.url))

const living = new Set<ChildProcess>()
process.once('exit', () => {
  for (const child of living) child.kill('SIGKILL')
})

t.test('workers and instances that are killed at random', { skip: TEST_DATABASE_URL === undefined && NO_SERVER, timeout: 220_000 }, async (t) => {
  const first = await startService(t, { database: 'postgres', env: ENV })
  const second = await startService(t, { database: 'postgres', sharing: first, env: ENV })
  const services = [first, second]
  const sql = postgres(first.databaseUrl ?? '', { max: 1, onnotice: () => {} })
  t.teardown(() => sql.end())

  const client = createClient(first.url)
  for (let made = 0; made < RUNS; made += 50) {
    await Promise.all(Array.from({ length: Math.min(50, RUNS - made) }, (_, n) => client.createRun({ id: `work-${made + n}`, queue: QUEUE })))
  }

  let started = 0
  const workers: ChildProcess[] = []
  const hire = (place: number) => {
    const child = spawn(process.execPath, [WORKER, `worker-${started++}`, QUEUE, ...services.map((service) => service.url)], { stdio: 'inherit' })
    living.add(child)
    child.once('exit', () => living.delete(child))
    workers[place] = child
  }
  for (let place = 0; place < WORKERS; place++) hire(place)

  // As the work goes on, not as time does: on a slow machine too, there is work between the deaths.
  let killedWorkers = 0
  let killedInstances = 0
  let restarting: Promise<void> | undefined
  const ended = async () => Number((await sql`select count(*)::int as count from runs where status in ('completed', 'failed', 'cancelled')`)[0]?.count)
  for (let done = 0; done < RUNS; done = await ended()) {
    if (done >= (killedWorkers * RUNS) / WORKER_DEATHS) {
      const place = Math.floor(Math.random() * WORKERS)
      workers[place]?.kill('SIGKILL')
      killedWorkers++
      hire(place)
    }
    if (!restarting && done >= ((killedInstances + 0.5) * RUNS) / INSTANCE_DEATHS) {
      const service = services[Math.floor(Math.random() * services.length)]
      await service?.kill('SIGKILL')
      killedInstances++
      restarting = service?.restart().finally(() => {
        restarting = undefined
      })
    }
    await delay(20)
  }
  await restarting
  for (const child of living) child.kill('SIGKILL')

  t.comment(`${killedWorkers} workers and ${killedInstances} instances were killed, ${started} workers were started`)
  t.ok(killedWorkers > 10 && killedInstances > 0, 'some of each were killed')
  const statuses = await sql`select status, count(*)::int as count from runs group by status`
  t.same([...statuses], [{ status: 'completed', count: RUNS }], 'each run is completed')

  const wrong: string[] = []
  let attempts = 0
  for (let n = 0; n < RUNS; n++) {
    const rows = await sql<{ event: { type: string; late?: boolean; data: { workerId?: string; output?: string } } }[]>`
      select event from run_events_canonical e join runs r on r.key = e.run_key where r.id = ${`work-${n}`} order by seq`
    let holder: string | undefined
    let ends = 0
    for (const { event } of rows) {
      const { type, data } = event
      if (type === 'run.claimed') {
        if (holder !== undefined) wrong.push(`work-${n}: claimed by ${data.workerId} while ${holder} held it`)
        holder = data.workerId
        attempts++
      } else if (type === 'run.released' || type === 'run.retry_scheduled') holder = undefined
      else if (data.workerId !== undefined && data.workerId !== holder) wrong.push(`work-${n}: ${type} of ${data.workerId} while ${holder} held it`)
      if (type === 'run.completed') ends++
      if (event.late) wrong.push(`work-${n}: ${type} came after the end`)
    }
    if (ends !== 1) wrong.push(`work-${n}: ended ${ends} times`)
  }
  t.same(wrong, [], `the logs agree: ${attempts} claims for ${RUNS} runs`)
})
