/** What the statements of the webhooks read: with a thousand endpoints and many deliveries, none goes through the table. */
import t from 'tap'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../../src/domain/ids.js'
import { createDeliveries } from '../../src/webhooks/deliveries.js'
import { createOutbox } from '../../src/webhooks/outbox.js'
import { testDatabase } from '../support/database.js'
import { logInstance, output, request } from '../support/log.js'

const ENDPOINTS = 1000
const DELIVERIES = 40_000
const HOUR_MS = 3_600_000

for (const analyzed of [false, true]) {
  t.test(`no statement reads the deliveries from end to end, ${analyzed ? 'with' : 'without'} statistics`, { timeout: 120_000 }, async (t) => {
    // One connection, so that its counters are those of everything.
    const database = await testDatabase(t, { poolMax: 1 })
    const { sql } = database
    const other = uuidv7()
    await sql`insert into workspaces (id, name) values (${other}, 'other')`
    await sql`insert into webhook_endpoints (id, workspace_id, url, types, secrets)
      select gen_random_uuid(), ${other}::text::uuid, 'https://example.com/', '{*}', '[]' from generate_series(1, ${ENDPOINTS}::int)`
    const endpointId = uuidv7()
    await sql`insert into webhook_endpoints (id, workspace_id, url, types, secrets) values (${endpointId}, ${DEFAULT_WORKSPACE_ID}, 'https://example.com/', '{*}', '[]')`
    await sql`
      insert into webhook_deliveries (id, endpoint_id, workspace_id, run_key, run_id, seq, type, status, next_at, created_at, ended_at)
      select gen_random_uuid(), e.id, e.workspace_id, gen_random_uuid(), 'r', n, 'run.started', s.status, now() - interval '1 hour', now() - interval '1 hour',
        case when s.status <> 'pending' then now() end
      from (select id, workspace_id, row_number() over () as k from webhook_endpoints) e
      join generate_series(1, ${DELIVERIES}::int) n on e.k = n % ${ENDPOINTS + 1} + 1
      cross join lateral (select (array['delivered', 'delivered', 'delivered', 'dead', 'pending'])[n / 1000 % 5 + 1] as status) s`
    if (analyzed) await sql`analyze webhook_deliveries, webhook_endpoints`
    const instance = logInstance(database)
    t.teardown(() => instance.log.close())
    const run = await instance.createRun()
    await instance.log.append(
      request(
        run.key,
        Array.from({ length: 50 }, (_, n) => output(`${n}`)),
      ),
    )
    const [written] = await sql<{ count: number }[]>`select count(*) from webhook_deliveries where run_key = ${run.key}`
    t.equal(written?.count, 51, 'one for each event, for the endpoint of the workspace')

    const rowsRead = async () => {
      await sql`select pg_stat_force_next_flush()`
      const [row] = await sql<{ rows: number }[]>`select seq_tup_read as rows from pg_stat_user_tables where relname = 'webhook_deliveries'`
      return row?.rows ?? 0
    }
    const outbox = createOutbox({ sql, lockMs: HOUR_MS, retryForMs: 24 * HOUR_MS })
    const deliveries = createDeliveries({ sql, retryForMs: 24 * HOUR_MS, onDue: () => {} })
    await sql`select count(*) from webhook_deliveries where type = 'run.ended'`
    const before = await rowsRead()
    t.ok(before >= DELIVERIES, 'where one does, it is noted')
    // Several times each: from the sixth on a prepared statement may have a plan for any parameters.
    for (let round = 0; round < 8; round++) {
      const { claimed } = await outbox.claim(endpointId, 4)
      for (const one of claimed) {
        const attempt = { made: true, lastStatus: 204, lastError: null, lastAnswer: null }
        if (round % 2 === 0) await outbox.end(one, 'delivered', attempt, false)
        else await outbox.putOff(one, attempt, 0)
      }
      await deliveries.list(DEFAULT_WORKSPACE_ID, endpointId, { limit: 20 })
      await deliveries.list(DEFAULT_WORKSPACE_ID, endpointId, { status: 'dead', limit: 20, cursor: uuidv7() })
      await deliveries.resendDead(DEFAULT_WORKSPACE_ID, endpointId)
    }
    await deliveries.sweep({ keepDeliveredMs: HOUR_MS * 2, keepDeadMs: HOUR_MS * 2 })
    t.equal((await rowsRead()) - before, 0, 'rows read in sequence')
  })
}
