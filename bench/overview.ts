/**
 * The dashboards over 100,000 runs of the last 29 days.
 *
 *   overview   GET /dashboard/overview and GET /dashboard/agents/metrics, over 30 days (all the runs) and over 24 hours. Printed.
 * Knobs: RUNS, ROUNDS. The runs are rows made by SQL, as the append would have folded them: two models each, two participants.
 */
import type { Sql } from 'postgres'
import { type Row, repeat, seconds, spread } from './measure.js'
import type { Scenario } from './scenario.js'
import { must, openConnection, request } from './wire.js'
import { createRun } from './workload.js'

const RUNS = 100_000
const ROUNDS = 7
const DAYS = 29

export const overview: Scenario = async ({ database, quick, startService }) => {
  const runs = quick ? 10_000 : RUNS
  const service = await startService()
  const connection = await openConnection(service.port)
  await createRun(connection, service.port, 'overview')
  const sql = await database.connect(1)
  await insertRuns(sql, runs)
  const rows: Row[] = []
  for (const path of ['/dashboard/overview', '/dashboard/agents/metrics']) {
    for (const window of ['30d', '24h']) {
      const bytes = request(service.port, 'GET', `${path}?window=${window}`)
      await must(connection, bytes)
      const times = await repeat(quick ? 2 : ROUNDS, async () => (await seconds(() => must(connection, bytes))) * 1000)
      rows.push({ what: `GET ${path} over ${window}, of ${runs.toLocaleString('en')} runs`, database: database.kind, unit: 'ms', ours: spread(times) })
    }
  }
  connection.close()
  await sql`delete from runs where id like 'overview%'`
  await sql.end()
  await service.stop()
  return rows
}

async function insertRuns(sql: Sql, count: number): Promise<void> {
  const model = (name: string, input: number, output: number) => ({ model: name, calls: 2, failed: 0, inputTokens: input, outputTokens: output })
  const models = JSON.stringify([model('gpt-4o', 900, 150), model('claude-3-haiku', 100, 50)])
  const agents = JSON.stringify(['planner', 'critic'].map((id) => ({ id, messages: 4, signals: 1, confidences: 2, confidence: 1.5 })))
  await sql`
    insert into runs (key, workspace_id, id, kind, scenario, environment, status, last_seq, created_at, updated_at, started_at, ended_at, input_tokens, output_tokens,
      cost_usd, llm_calls, tool_calls, error_count, model_usage, signals, decisions, decision_outcome, agents, error)
    select md5('overview' || n)::uuid, workspace_id, 'overview-' || n, 'agent', 'scenario-' || n % 25, case when n % 2 = 0 then 'prod' end,
      case when n % 20 = 0 then 'failed' when n % 33 = 0 then 'cancelled' else 'completed' end, 20, at, at, at + interval '1 second',
      at + interval '1 second' + (n % 1000) * interval '0.1 second', 1000, 200, case when n % 3 = 0 then 0.01 else 0 end, 4, 5, n % 7 / 5, ${models}::json,
      n % 4, 1, (n % 3)::int - 1, ${agents}::json, case when n % 20 = 0 then '{"code":"TIMEOUT","message":"too late"}'::json end
    from (select n, workspace_id, now() - n * interval '1 second' * (86400.0 * ${DAYS}::int / ${count}::int) as at
      from generate_series(1, ${count}::int) n, (select workspace_id from runs where id = 'overview') one) rows`
  await sql`analyze runs`
}
