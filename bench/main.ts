/**
 * `npm run bench`: measures the built service as a black box, on the server at DATABASE_URL and on the embedded database, each figure with its
 * baseline in the same run, and writes docs/BENCHMARKS.md and docs/benchmarks.json. Takes some twenty minutes.
 *
 *   --only append,fan-out   these scenarios; the rows of the others stay in the files, with the time when they were measured
 *   --database embedded     or server, or both (the default)
 *   --quick                 a fraction of the work, only printed: shows that it runs
 *   --profile               prints where the CPU time of the service went, scenario by scenario (slows it by some percent; only printed)
 *
 * Exits with 0 whether targets are met or not: the table says so. Databases that it makes are its own, and are removed.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { performance } from 'node:perf_hooks'
import { parseArgs } from 'node:util'
import { append, batch, longRun } from './append.js'
import { backfill } from './backfill.js'
import { claims } from './claims.js'
import { compare } from './compare.js'
import { type BenchDatabase, embeddedDatabase, serverDatabase } from './database.js'
import { exportLines, exportZip } from './export.js'
import { fanOut, latency } from './fan-out.js'
import { importBundle } from './import.js'
import type { Row } from './measure.js'
import { live, stalled } from './memory.js'
import { overview } from './overview.js'
import { startService, stopAll } from './process.js'
import { replayState } from './replay.js'
import { markdown, plain, type Report } from './report.js'
import type { Context, Scenario } from './scenario.js'
import { start } from './start.js'
import { fold, state } from './state.js'
import { openConnection } from './wire.js'
import { createRun, fill } from './workload.js'

const SCENARIOS: Record<string, Scenario> = {
  append,
  batch,
  'long-run': longRun,
  backfill,
  'replay-state': replayState,
  overview,
  'fan-out': fanOut,
  latency,
  live,
  stalled,
  state,
  fold,
  start,
  export: exportLines,
  'export-zip': exportZip,
  import: importBundle,
  compare,
  claims,
}

const { values: options } = parseArgs({
  options: {
    only: { type: 'string' },
    database: { type: 'string', default: 'both' },
    quick: { type: 'boolean', default: false },
    profile: { type: 'boolean', default: false },
  },
})
const names = options.only?.split(',') ?? Object.keys(SCENARIOS)
const unknown = names.find((name) => !Object.hasOwn(SCENARIOS, name))
if (unknown !== undefined || !['embedded', 'server', 'both'].includes(options.database)) {
  console.error(unknown === undefined ? '--database is embedded, server or both' : `no scenario '${unknown}'; there are ${Object.keys(SCENARIOS).join(', ')}`)
  process.exit(2)
}

const databases: (() => Promise<BenchDatabase>)[] = []
const url = process.env.DATABASE_URL
if (options.database !== 'embedded') {
  if (url) databases.push(() => serverDatabase(url))
  else console.log('DATABASE_URL is not set: only the embedded database is measured.')
}
if (options.database !== 'server') databases.push(embeddedDatabase)

execFileSync('npm', ['run', 'build', '--silent'], { stdio: 'inherit' })

const report: Report = {
  measuredAt: new Date().toISOString(),
  machine: {
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    platform: `${process.platform}-${process.arch}`,
    node: process.versions.node,
    postgres: {},
  },
  quick: options.quick,
  rows: [],
}

const startedAt = performance.now()
for (const make of databases) {
  const database = await make()
  const interrupted = async () => {
    await stopAll()
    await database.remove()
    process.exit(130)
  }
  process.once('SIGINT', interrupted)
  try {
    report.machine.postgres[database.kind] = await postgresVersion(database)
    await measure(database)
  } finally {
    process.off('SIGINT', interrupted)
    await database.remove()
  }
}
console.log(`\n${markdown(report)}\ntook ${((performance.now() - startedAt) / 60_000).toFixed(1)} minutes`)
if (!options.quick && !options.profile) {
  // What was measured now takes the place of what was measured before, row by row.
  const file = new URL('../docs/benchmarks.json', import.meta.url)
  const before: Report = JSON.parse(readFileSync(file, 'utf8'))
  const isNew = (row: Row) => !report.rows.some((other) => other.what === row.what && other.database === row.database)
  const kept = before.rows.filter(isNew).map((row) => ({ ...row, measuredAt: row.measuredAt ?? before.measuredAt }))
  const merged = {
    ...report,
    machine: { ...report.machine, postgres: { ...before.machine.postgres, ...report.machine.postgres } },
    rows: [...report.rows, ...kept],
  }
  writeFileSync(new URL('../docs/BENCHMARKS.md', import.meta.url), markdown(merged))
  writeFileSync(file, `${JSON.stringify(merged, null, 2)}\n`)
}

async function measure(database: BenchDatabase): Promise<void> {
  let longRunMade: { id: string; events: number } | undefined
  for (const name of names) {
    const scenario = SCENARIOS[name]
    if (scenario === undefined) continue
    const context: Context = {
      database,
      quick: options.quick,
      say: (text) => console.log(`${name} [${database.kind}]: ${text}`),
      startService: (env = {}) => startService({ ...database.env, ...env }, options.profile ? `${name} [${database.kind}]` : undefined),
      longRun: async ({ port }) => {
        if (longRunMade) return longRunMade
        const connection = await openConnection(port)
        const made = { id: await createRun(connection, port, 'hundred-thousand'), events: options.quick ? 10_000 : 100_000 }
        await fill(connection, port, made.id, made.events)
        connection.close()
        longRunMade = made
        return made
      },
    }
    try {
      for (const row of await scenario(context)) {
        report.rows.push(row)
        console.log(plain(row))
      }
    } catch (error) {
      // The others are measured all the same, and the table lacks this one: the last line says so by the exit code.
      console.error(`${name} [${database.kind}] failed:`, error)
      process.exitCode = 1
      await stopAll()
    }
  }
}

async function postgresVersion(database: BenchDatabase): Promise<string> {
  const service = await startService(database.env)
  const sql = await database.connect(1)
  const [row] = await sql<{ version: string }[]>`select split_part(current_setting('server_version'), ' ', 1) as version`
  await sql.end()
  await service.stop()
  return row?.version ?? 'unknown'
}
