/**
 * A stand-in for the service, to be killed: opens the database of DATA_DIR, says so on a line, and closes it on SIGTERM or SIGINT.
 * With BUSY set, a backend computes meanwhile without looking up.
 */
import { pino } from 'pino'
import { openDatabase } from '../../src/db/client.js'

try {
  const database = await openDatabase({ dataDir: process.env.DATA_DIR ?? '', poolMax: 4, logger: pino({ level: 'silent' }) })
  const close = async () => {
    // The database still serves while we shut down.
    await database.sql`select 1`
    await database.close()
    console.log('closed')
    process.exit(0)
  }
  process.on('SIGTERM', close)
  process.on('SIGINT', close)
  setInterval(() => {}, 1000)
  if (process.env.BUSY) void database.sql`select count(*) from generate_series(1, 30000000)`.catch(() => {})
  console.log('ready')
} catch (error) {
  console.log(`failed: ${error instanceof Error ? error.message : error}`)
  process.exit(1)
}
