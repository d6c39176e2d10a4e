/** The client: what goes in and comes out, and what is said when there is no way in. */
import { once } from 'node:events'
import { createServer } from 'node:net'
import { test } from 'tap'
import { openDatabase } from '../../src/db/client.js'
import { serverUrl, silent, type Teardown, testDatabase } from '../support/database.js'

test('int8 is a number, times and json are text on the way in, on the pool and on an extra client', async (t) => {
  const database = await testDatabase(t)
  const extra = database.connect({ max: 1 })
  t.teardown(() => extra.end())
  for (const sql of [database.sql, extra]) {
    t.same(await sql`select count(*) as n, ${9007199254740991}::int8 as most, array[1::int8, 2]::text as list from workspaces`, [
      { n: 1, most: 9007199254740991, list: '{1,2}' },
    ])
    const [settings] = await sql`select current_setting('application_name') as name, current_setting('statement_timeout') as timeout`
    t.same(settings, { name: 'runplane', timeout: '1min' })
  }
  const json = '{"b":1, "a":1.10}'
  const [row] = await database.sql`select ${json}::json::text as json, '2026-01-02T03:04:05.678901Z'::timestamptz at time zone 'UTC' as time`
  t.same(row, { json, time: '2026-01-02 03:04:05.678901' })
})

/** A server that says one thing to whoever comes: PostgreSQL protocol 3.0, ErrorResponse. */
async function refusing(t: Teardown, code: string, message: string): Promise<number> {
  const fields = `SFATAL\0VFATAL\0C${code}\0M${message}\0\0`
  const head = Buffer.alloc(5)
  head.write('E')
  head.writeInt32BE(4 + Buffer.byteLength(fields), 1)
  const server = createServer((socket) => socket.once('data', () => socket.end(Buffer.concat([head, Buffer.from(fields)]))))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const address = server.address()
  return typeof address === 'object' && address ? address.port : 0
}

test('says in one line, without the password, why a server cannot be used', async (t) => {
  const open = (databaseUrl: string) => openDatabase({ databaseUrl, dataDir: '', poolMax: 2, logger: silent })
  const says = async (databaseUrl: string, message: RegExp) => {
    const error = await open(databaseUrl).then(
      () => new Error('it was opened'),
      (error: Error) => error,
    )
    t.match(error.message, message)
    t.notMatch(error.message, /s3cret|\n/)
  }
  for (const password of ['s3cret/', 's3cret#', '%s3cret'])
    await says(`postgres://user:${password}@127.0.0.1/runs`, /^DATABASE_URL: its value is not a URL\. Allowed: postgres:.* are percent-encoded/)
  await says('postgres://user:s3cret@127.0.0.1:1/runs', /^DATABASE_URL: PostgreSQL at 127\.0\.0\.1:1\/runs cannot be used: nothing listens there/)
  await says(
    'postgres://user:s3cret@no-such-host.invalid/runs',
    /at no-such-host\.invalid:5432\/runs cannot be used: (there is no such host|the name of the host)/,
  )
  const wrong = await refusing(t, '28P01', 'password authentication failed for user "user"')
  await says(`postgres://user:s3cret@127.0.0.1:${wrong}/runs`, /the user or the password is wrong/)
  const full = await refusing(t, '53300', 'sorry, too many clients already')
  await says(`postgres://user:s3cret@127.0.0.1:${full}/runs`, /it has no connection free/)
})

test('says that there is no such database', { skip: serverUrl ? false : 'needs TEST_DATABASE_URL' }, async (t) => {
  const url = Object.assign(new URL(serverUrl ?? ''), { pathname: '/rp_no_such_database' }).href
  await t.rejects(openDatabase({ databaseUrl: url, dataDir: '', poolMax: 2, logger: silent }), {
    message: /rp_no_such_database cannot be used: there is no such database/,
  })
})
