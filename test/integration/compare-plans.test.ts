/** What a comparison reads of a run that PostgreSQL's statistics do not know yet: the events that it shows, not all of them again and again. */
import t from 'tap'
import type { Database } from '../../src/db/client.js'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../../src/domain/ids.js'
import { createRules } from '../../src/domain/volatile.js'
import { createPauses } from '../../src/insight/compare/pauses.js'
import { openRunSide } from '../../src/insight/compare/run-side.js'
import { serverUrl, testDatabase } from '../support/database.js'

const EVENTS = 10_000
const SHOWN = 50

// One connection, so that its counters are those of everything.
const databases: [string, () => Promise<Database>][] = [['embedded', () => testDatabase(t, { poolMax: 1 })]]
if (serverUrl) databases.push(['server', () => testDatabase(t, { server: true, poolMax: 1 })])

for (const [name, open] of databases) {
  t.test(`the events that are shown are looked up one by one (${name})`, async (t) => {
    const { sql } = await open()
    await sql`alter table run_events_canonical set (autovacuum_enabled = false)`
    const made = async (id: string) => {
      const key = uuidv7()
      await sql`
        insert into runs (key, workspace_id, id, status, last_seq, created_at, updated_at) values (${key}, ${DEFAULT_WORKSPACE_ID}, ${id}, 'running', ${EVENTS}, now(), now())`
      await sql`
        insert into run_events_canonical (run_key, seq, ts, type, subject, shape, content, event)
        select ${key}::text::uuid, n, now(), 'step.output', 'step/s', 1, n, json_build_object('seq', n) from generate_series(1, ${EVENTS}::int) n`
    }
    await made('known')
    await sql`analyze run_events_canonical`
    await made('new')
    const rowsRead = async () => {
      await sql`select pg_stat_force_next_flush()`
      const [row] = await sql<{ rows: number }[]>`
        select t.seq_tup_read + sum(i.idx_tup_read) as rows from pg_stat_user_tables t join pg_stat_user_indexes i using (relid)
        where t.relname = 'run_events_canonical' group by t.seq_tup_read`
      return Number(row?.rows)
    }
    const unused = () => Promise.reject(new Error('no state is asked for'))
    const rules = createRules([])
    const side = await openRunSide(
      { sql, runStates: { fold: unused }, maxEvents: EVENTS },
      { workspaceId: DEFAULT_WORKSPACE_ID, runId: 'new' },
      rules,
      createPauses(),
    )
    await sql`select count(*) from run_events_canonical where event is not null`
    const before = await rowsRead()
    t.ok(before >= 2 * EVENTS, 'where all are read, it is noted')
    const seqs = Array.from({ length: SHOWN }, (_, n) => 1 + n * (EVENTS / SHOWN))
    // Several times: the first executions of a statement are planned each for itself.
    for (let round = 0; round < 8; round++) t.same([...(await side.events(seqs)).keys()], seqs)
    t.equal((await rowsRead()) - before, 8 * SHOWN, 'events that were read')
    t.equal((await side.events([EVENTS + 1])).size, 0, 'one that is not there')
  })
}
