/** Sources and several instances: each has one reader, who dies, stops, or comes back too late. */
import postgres from 'postgres'
import t from 'tap'
import { uuidv7 } from '../../src/domain/ids.js'
import { testDatabase } from '../support/database.js'
import { createClient, eventually } from '../support/http.js'
import { type Service, startService, TEST_DATABASE_URL } from '../support/service.js'
import { attachedInstance, attachedRuns, COMPLETED, frame, sourceServer, sse } from '../support/source-server.js'

const upTo = (count: number, from = 1) => Array.from({ length: count }, (_, index) => String(from + index))
const frames = (ids: string[]) => ids.map((id) => frame(id, id)).join('')

t.test('instances on one database', async (t) => {
  const database = await testDatabase(t)
  const runs = attachedRuns(database)
  const { sql } = database
  const forgetAll = () => sql`update run_sources set status = 'ended'`

  await t.test('share the sources, and none is read twice', async (t) => {
    // Long enough for a busy machine.
    const instances = upTo(3).map(() => attachedInstance(t, database, { SOURCE_LEASE_MS: '30000' }))
    const source = await sourceServer(t, (_request, response) => sse(response).write(frames(upTo(10))))
    const ids = upTo(30).map((id) => `shared-${id}`)
    await Promise.all(ids.map((id, index) => instances[index % 3]?.create({ id, source: { url: `${source.url}/${id}` } })))
    for (const id of ids) await eventually(`the events of ${id}`, async () => ((await runs.texts(id)).length === 10 ? true : undefined))
    t.equal(source.requests.length, 30)
    t.equal(source.connections(), 30)
    t.equal(
      instances.reduce((sum, { attach }) => sum + attach.size, 0),
      30,
    )

    // Two of them stop: the last one takes up what they read, and says so.
    const others = 30 - (instances[2]?.attach.size ?? 0)
    await instances[0]?.close()
    await instances[1]?.close()
    await eventually('the last one has them all', () => (instances[2]?.attach.size === 30 ? true : undefined))
    const requested = (id: string) => source.requests.filter((request) => request.url?.endsWith(`/${id}`)).length
    await eventually('and reads them', () => (source.connections() === 30 ? true : undefined))
    for (const id of ids) {
      await eventually(`${id} says so`, async () => (requested(id) === 1 || (await runs.types(id)).includes('run.recovered') ? true : undefined))
      t.ok((await runs.types(id)).filter((type) => type === 'run.recovered').length <= requested(id) - 1, id)
    }
    t.ok(source.requests.length >= 30 + others)
    source.answer = (_request, response) => sse(response).end(COMPLETED)
    await instances[2]?.close()
    const last = attachedInstance(t, database)
    for (const id of ids) {
      await runs.ended(id)
      t.same(await runs.texts(id), upTo(10), id)
    }
    await last.close()
  })

  await t.test('take up a source whose reader died, after its lease, from the stored cursor', async (t) => {
    const source = await sourceServer(t, (request, response) => {
      const after = Number(request.headers['last-event-id'] ?? 0)
      sse(response).write(frames(upTo(3, after + 1)))
    })
    const first = attachedInstance(t, database)
    await first.create({ id: 'left', source: { url: source.url } })
    await eventually('its events', async () => ((await runs.texts('left')).length === 3 ? true : undefined))
    await first.close()
    // As a reader leaves it that is killed.
    const dead = uuidv7()
    const leftAt = performance.now()
    await sql`update run_sources set owner_id = ${dead}, owner_expires_at = clock_timestamp() + interval '1 second' where status = 'reading'`
    const next = attachedInstance(t, database)
    await eventually('more events', async () => ((await runs.texts('left')).length === 6 ? true : undefined))
    t.ok(performance.now() - leftAt >= 900, 'not before')
    t.same(await runs.texts('left'), upTo(6))
    t.same(
      source.requests.map((request) => request.headers['last-event-id']),
      [undefined, '3'],
    )
    const events = await runs.events('left')
    t.match(events.slice(6), [
      { type: 'run.recovered', data: { previousOwner: dead } },
      { type: 'session.stream.opened', data: { status: 'recovered' } },
    ])
    await next.close()
    await forgetAll()
  })

  await t.test('fence a reader that was given up on', async (t) => {
    let go = () => {}
    const source = await sourceServer(t, (_request, response, count) => {
      sse(response).write(frames(upTo(3)))
      if (count === 0) go = () => response.write(frames(upTo(3, 4)))
    })
    const zombie = attachedInstance(t, database, { SOURCE_LEASE_MS: '3600000' })
    await zombie.create({ id: 'fenced', source: { url: source.url } })
    await eventually('its events', async () => ((await runs.texts('fenced')).length === 3 ? true : undefined))
    // Its lease runs out while it sleeps, and another takes over.
    await sql`update run_sources set owner_expires_at = clock_timestamp() - interval '1 second' where status = 'reading'`
    const next = attachedInstance(t, database)
    await eventually('the other reads', () => (source.requests.length === 2 ? true : undefined))
    go()
    await eventually('the zombie stops', () => (zombie.attach.size === 0 ? true : undefined))
    t.same(await runs.texts('fenced'), upTo(3))
    t.equal(next.attach.size, 1)
    source.answer = (_request, response) => sse(response).end(frames(upTo(3, 4)) + COMPLETED)
    await next.close()
    const last = attachedInstance(t, database)
    await runs.ended('fenced')
    t.same(await runs.texts('fenced'), upTo(6))
    await last.close()
  })

  await t.test('leave alone what others left where recovery is off, and read what is new', async (t) => {
    const source = await sourceServer(t, (_request, response) => sse(response).write(frame(1, '1')))
    const first = attachedInstance(t, database)
    await first.create({ id: 'not-recovered', source: { url: source.url } })
    await runs.status('not-recovered', 'running')
    await first.close()
    const off = attachedInstance(t, database, { RUN_RECOVERY_ENABLED: 'false' })
    await off.create({ id: 'new', source: { url: source.url } })
    await runs.status('new', 'running')
    t.equal(off.attach.size, 1)
    await off.close()
    await forgetAll()
  })

  await t.test('are held up by no source that cannot be read', async (t) => {
    const instance = attachedInstance(t, database)
    const source = await sourceServer(t, (_request, response) => sse(response).end(COMPLETED))
    await instance.create({ id: 'good', queue: 'q', source: { url: source.url } })
    // As another version may have left them.
    const bad = { unknown: { url: source.url, format: 'gone' }, broken: { url: 'http://' }, empty: {}, text: 'x', none: null }
    for (const id of Object.keys(bad)) await instance.create({ id, queue: 'q', source: { url: source.url } })
    for (const [id, config] of Object.entries(bad)) {
      await sql`update run_sources s set config = ${JSON.stringify(config)}::text::json from runs r where r.key = s.run_key and r.id = ${id}`
    }
    await sql`update runs set status = 'starting' where id = any(string_to_array(${[...Object.keys(bad), 'good'].join()}, ','))`
    t.equal((await runs.ended('good')).status, 'completed')
    for (const id of Object.keys(bad)) t.match(await runs.ended(id), { status: 'failed', error: { code: 'SOURCE_FAILED' } }, id)
    await instance.close()
  })
})

t.test('services that are killed and paused lose and double nothing of a source', { skip: TEST_DATABASE_URL === undefined, timeout: 120_000 }, async (t) => {
  const env = { OUTBOUND_ALLOW_PRIVATE: 'true', SOURCE_LEASE_MS: '1000', RECOVERY_INTERVAL_MS: '200', SOURCE_RETRY_MS: '20' }
  let isLast = false
  // Events without end, until the test is through.
  const source = await sourceServer(t, (request, response) => {
    sse(response)
    let next = Number(request.headers['last-event-id'] ?? 0) + 1
    const timer = setInterval(() => {
      if (isLast) {
        clearInterval(timer)
        response.write(COMPLETED)
        return
      }
      response.write(frames(upTo(10, next)))
      next += 10
    }, 20)
    response.once('close', () => clearInterval(timer))
  })
  const first = await startService(t, { database: 'postgres', env })
  const one = createClient(first.url)
  await one.createRun({ id: 'killed', source: { url: source.url } })
  const headOf = async (service: Service) => (await createClient(service.url).get<{ lastSeq: number }>('/runs/killed')).body.lastSeq
  const grows = async (service: Service) => {
    const before = await headOf(service)
    await eventually('it goes on', async () => ((await headOf(service)) > before + 100 ? true : undefined), 20_000)
  }
  await grows(first)
  const second = await startService(t, { database: 'postgres', sharing: first, env })
  await first.kill('SIGKILL')
  await grows(second)
  await first.restart()
  // The other one is paused for longer than its lease, and wakes up when it is not the reader any more.
  await pauseOutsideTransaction(first.databaseUrl ?? '', second.pid)
  await grows(first)
  process.kill(second.pid, 'SIGCONT')
  await grows(first)
  await second.kill('SIGKILL')
  await grows(first)
  isLast = true
  await eventually('the end', async () => ((await one.get<{ status: string }>('/runs/killed')).body.status === 'completed' ? true : undefined), 60_000)
  const events = await one.events('killed')
  const texts = events.filter((event) => event.type === 'step.output').map((event) => event.data.text)
  t.same(texts, upTo(texts.length), `${texts.length} events, each once and in order`)
  t.ok(events.filter((event) => event.type === 'run.recovered').length >= 2)
})

/** A process that is paused within a transaction holds the rows that it has locked, until the database ends its session (a minute). */
async function pauseOutsideTransaction(databaseUrl: string, pid: number): Promise<void> {
  const admin = postgres(databaseUrl, { max: 1, onnotice: () => {} })
  await eventually('a moment without a transaction', async () => {
    process.kill(pid, 'SIGSTOP')
    const [row] =
      await admin`select count(*)::int as open from pg_stat_activity where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()`
    // The other instance has transactions too, but not for long.
    if (row?.open === 0) return true
    process.kill(pid, 'SIGCONT')
    return undefined
  })
  await admin.end()
}
