/** What an instance looks for on its timers: what is due is found, and what is not is not read for it, however much of it there is. */
import t from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import { DEFAULT_WORKSPACE_ID } from '../../src/domain/ids.js'
import { createRunKeys } from '../../src/log/run-keys.js'
import { createStates } from '../../src/log/states.js'
import { createDeletions } from '../../src/runs/deletions.js'
import { silent, testDatabase } from '../support/database.js'
import { createClient, eventually } from '../support/http.js'

const NOT_DUE = 10_000

t.test('what is not due is not read', { timeout: 120_000 }, async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  // Runs that wait for their time, whose lease has long to go, and whose session has.
  await sql`
    insert into runs (key, workspace_id, id, queue, status, created_at, updated_at, available_at, lease_expires_at, ttl_expires_at)
    select gen_random_uuid(), ${DEFAULT_WORKSPACE_ID}::text::uuid, kind || n, kind, case kind when 'delayed' then 'queued' else 'running' end, now(), now(),
      case kind when 'delayed' then later end, case kind when 'leased' then later end, case kind when 'session' then later end
    from unnest('{delayed,leased,session}'::text[]) kind, generate_series(1, ${NOT_DUE}::int) n, (select now() + interval '1 hour' as later) l`
  await sql`analyze runs`

  const rowsRead = async () => {
    // A connection that is busy tells its counts every second: it would have told of many rounds by the end.
    const [row] = await sql<{ rows: number }[]>`select seq_tup_read + idx_tup_fetch as rows from pg_stat_user_tables where relname = 'runs'`
    return row?.rows ?? 0
  }
  const before = await rowsRead()
  await sql`select count(*) from runs where metadata is not null`
  await eventually('where all are read, it is noted', async () => ((await rowsRead()) - before >= 3 * NOT_DUE ? true : undefined))

  const start = await rowsRead()
  const settings = { LEASE_CHECK_MS: '50', RECOVERY_INTERVAL_MS: '100', RETRY_BASE_MS: '0' }
  const app = await buildApp({ config: loadConfig(settings, { envFile: '/nonexistent' }), database, logger: silent })
  t.teardown(() => app.close())
  const client = createClient(await app.listen({ port: 0, host: '127.0.0.1' }))
  const run = async (id: string) => (await client.get<{ status: string; attempt: number; availableAt: string | null }>(`/runs/${id}`)).body
  await client.createRun({ id: 'later', queue: 'due', availableAt: new Date(Date.now() + 1500).toISOString() })
  await client.createRun({ id: 'left', queue: 'left' })
  await client.post('/runs/claim', { queue: 'left', workerId: 'dead', leaseMs: 1000 })
  await client.createRun({ id: 'timed', session: { ttlMs: 1000 } })
  await client.append('timed', { type: 'run.started' })
  await eventually('its time has come', async () => ((await run('later')).availableAt === null ? true : undefined))
  await eventually('its lease has run out', async () => ((await run('left')).attempt === 2 ? true : undefined))
  await eventually('its session has had its time', async () => ((await run('timed')).status === 'failed' ? true : undefined))
  t.ok((await rowsRead()) - start < NOT_DUE, `${(await rowsRead()) - start} rows were read`)
})

t.test('what is left of deleted runs is found without going through the runs that there are', async (t) => {
  // One connection, so that its counters are those of everything.
  const database = await testDatabase(t, { poolMax: 1 })
  const { sql } = database
  await sql`
    insert into runs (key, workspace_id, id, status, created_at, updated_at)
    select gen_random_uuid(), ${DEFAULT_WORKSPACE_ID}::text::uuid, 'kept' || n, 'completed', now(), now() from generate_series(1, ${NOT_DUE}::int) n`
  await sql`
    insert into run_deletions (run_key, workspace_id, run_id)
    select gen_random_uuid(), ${DEFAULT_WORKSPACE_ID}::text::uuid, 'deleted' || n from generate_series(1, 2000) n`
  await sql`analyze runs, run_deletions`
  const rowsRead = async () => {
    await sql`select pg_stat_force_next_flush()`
    const [row] = await sql<{ rows: number }[]>`select seq_tup_read + idx_tup_fetch as rows from pg_stat_user_tables where relname = 'runs'`
    return row?.rows ?? 0
  }
  await sql`select count(*) from runs where metadata is not null`
  const before = await rowsRead()
  t.ok(before >= NOT_DUE, 'where all are read, it is noted')
  const deletions = createDeletions({ sql, runKeys: createRunKeys(sql), states: createStates({ maxRuns: 1 }), onDeleted() {}, log: silent })
  t.teardown(() => deletions.close())
  await deletions.sweep()
  t.same(await sql`select * from run_deletions`, [])
  t.equal((await rowsRead()) - before, 0, 'rows of runs that were read')
})
