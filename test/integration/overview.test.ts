/** The overview on the database: which statement it is, and that it reads no more of the runs than its window has. */
import { test } from 'tap'
import { DEFAULT_WORKSPACE_ID } from '../../src/domain/ids.js'
import { createOverview } from '../../src/insight/overview.js'
import { createPrices } from '../../src/insight/prices.js'
import { testDatabase } from '../support/database.js'

const NOW = Date.UTC(2026, 5, 15, 12)

test('the overview', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  // One run each ten minutes back from now, of one minute and a second each, over a month; the cost is told of every other.
  await sql`
    insert into runs (key, workspace_id, id, status, created_at, updated_at, started_at, ended_at, input_tokens, cost_usd, model_usage)
    select md5(n::text)::uuid, ${DEFAULT_WORKSPACE_ID}, 'run-' || n, 'completed', at, at, at, at + n * interval '1 second', 1000000, case when n % 2 = 0 then 1 else 0 end,
      '[{"model":"gpt-4o","inputTokens":1000000,"outputTokens":0}]'
    from (select n, to_timestamp(${NOW / 1000}::float8) - n * interval '10 minutes' as at from generate_series(1, 4320) n) runs`
  await sql`analyze runs`
  const statements: string[] = []
  const debug = (_: number, query: string, parameters: unknown[]) => statements.push(query.replace(/\$(\d+)/g, (_, place) => `'${parameters[place - 1]}'`))
  const client = database.connect({ max: 1, debug })
  t.teardown(() => client.end())
  const dashboard = createOverview({ sql: client, prices: createPrices(), now: () => NOW })

  await t.test('is one statement over the runs, and a window reads its part of them by the index', async (t) => {
    await dashboard.overview(DEFAULT_WORKSPACE_ID, { window: '1h' })
    const reading = statements.filter((text) => /from runs\b/.test(text))
    t.equal(reading.length, 1)
    const plan = await sql.unsafe(`explain ${reading[0]}`)
    const lines = plan.map((row) => String(row['QUERY PLAN'])).join('\n')
    t.match(lines, /(Index|Bitmap Index) Scan (Backward )?(using|on) runs_created/, lines)
    t.notMatch(lines, /Seq Scan on runs\b/)
  })

  await t.test('counts the runs of its window, each in its bucket, and prices those that told no cost', async (t) => {
    const { kpis, charts, window } = await dashboard.overview(DEFAULT_WORKSPACE_ID, { window: '6h' })
    t.same(window, { from: '2026-06-15T06:00:01.000Z', to: '2026-06-15T12:00:01.000Z', bucket: 'minute' })
    // The run of 06:00:00 was created before it; of the other 35 every other told a cost of 1, and the rest are 2.5 each. But that run ended
    // in the window: the durations are 1 to 36 s.
    t.match(kpis, { totalRuns: 35, completedRuns: 35, totalTokens: 35_000_000, reportedCostUsd: 17, totalCostUsd: 17 + 18 * 2.5, p50DurationMs: 18_500 })
    const filled = charts.runVolume.labels.filter((_, index) => charts.runVolume.data[index] === 1)
    t.equal(filled.length, 35)
    t.ok(filled.every((label) => /^2026-06-15T\d\d:\d0:00\.000Z$/.test(label)))
    const month = await dashboard.overview(DEFAULT_WORKSPACE_ID, { window: '30d' })
    t.equal(month.kpis.totalRuns, 4319)
    t.same(month.charts.runVolume.data.slice(1, -1), new Array(29).fill(144), '144 a day')
  })

  await t.test('of another workspace is empty', async (t) => {
    const { kpis, recentRuns } = await dashboard.overview('00000000-0000-7000-8000-00000000ffff', { window: '30d' })
    t.match(kpis, { totalRuns: 0, totalCostUsd: 0, successRate: null, p99DurationMs: null })
    t.same(recentRuns, [])
    t.same(await dashboard.agents('00000000-0000-7000-8000-00000000ffff', {}, 10), [])
  })
})
