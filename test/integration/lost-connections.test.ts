/** Connections that are cut under writers, again and again: every append is answered, once, and the process goes on. */
import type { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { test } from 'tap'
import { dedicate } from '../../src/db/dedicated.js'
import { steadySockets } from '../../src/db/steady-socket.js'
import { testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
import { logInstance, output, receiptOf, request, storedLog, upTo } from '../support/log.js'

test('appends go on while all connections are cut again and again, and nothing is stored twice or lost', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const instance = logInstance(database)
  const runs = await Promise.all(upTo(6).map(() => instance.createRun()))
  const killer = database.connect({ max: 1, connection: { application_name: 'killer' } })
  const deadline = Date.now() + 90_000
  let stopped = false
  let cuts = 0

  const cut = async () => {
    while (!stopped) {
      await delay(20 + Math.random() * 60)
      await killer`select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`
      cuts++
    }
  }
  const write = async (key: string, acknowledged: string[]) => {
    for (let count = 0; !stopped; count++) {
      const id = `e${count}`
      for (;;) {
        try {
          receiptOf(await instance.log.append(request(key, [output(id)])))
          acknowledged.push(id)
          break
        } catch (error) {
          // A client would send it again.
          if (Date.now() > deadline) throw error
        }
      }
    }
  }
  const acknowledged = runs.map((): string[] => [])
  const working = Promise.all([cut(), ...runs.map(({ key }, index) => write(key, acknowledged[index] ?? []))])
  // A failure is seen where it is awaited, below.
  working.catch(() => {})
  try {
    await eventually('all go on', () => (cuts >= 50 && acknowledged.every(({ length }) => length > 5)) || undefined, 60_000)
  } finally {
    stopped = true
    await working
    await killer.end()
  }

  for (const [index, { key }] of runs.entries()) {
    const stored = await storedLog(sql, key)
    t.same(stored.eventIds, acknowledged[index])
    t.same(stored.seqs, upTo(stored.head.last_seq))
  }
  await instance.log.close()
})

const outcomeOf = (query: Promise<unknown>): Promise<string> =>
  query.then(
    () => 'answered',
    ({ code }) => code,
  )

test('whoever asks next is not told of the loss before, nor of a start that was refused', async (t) => {
  const database = await testDatabase(t)
  const client = database.connect({ max: 1 })
  // Connections to a database are forbidden from another one only.
  const other = await testDatabase(t)
  t.teardown(() => client.end({ timeout: 1 }))
  const [name] = await client<{ quoted: string }[]>`select quote_ident(current_database()) as quoted`
  const allowConnections = (are: boolean) => other.sql.unsafe(`alter database ${name?.quoted} allow_connections ${are}`)
  const loseUnderway = async () => {
    const [row] = await client<{ pid: number }[]>`select pg_backend_pid() as pid`
    const underway = outcomeOf(client`select pg_sleep(60)`)
    await database.sql`select pg_terminate_backend(${row?.pid ?? 0})`
    t.equal(await underway, '57P01', 'what was under way is told why')
    // What is asked before the driver knows of the loss is lost as well.
    await delay(50)
  }
  await loseUnderway()
  t.same(await client`select 1 as one`, [{ one: 1 }])

  await loseUnderway()
  await allowConnections(false)
  t.equal(await outcomeOf(client`select 1 as one`), '55000', 'refused at once')
  await allowConnections(true)
  t.same(await client`select 1 as one`, [{ one: 1 }])
})

test('a query of the moment in which a connection is lost is answered, and so are those after it', async (t) => {
  const database = await testDatabase(t)
  const sockets = steadySockets()
  for (const chars of [10, 800, 2000]) {
    let socket: Duplex | undefined
    // An option that the driver's types do not have.
    const options = {
      max: 1,
      socket: (target: Parameters<typeof sockets>[0]) => {
        socket = sockets(target)
        return socket
      },
    }
    const client = database.connect(options)
    const [row] = await client<{ pid: number }[]>`select pg_backend_pid() as pid`
    let late: Promise<string> | undefined
    const asked = new Promise<void>((resolve) => {
      // In the turn after the loss: what is gathered then is not written any more when the driver hears of it.
      socket?.prependListener('error', () =>
        process.nextTick(() =>
          setImmediate(() => {
            late = outcomeOf(client`select ${'y'.repeat(chars)}::text as text`)
            resolve()
          }),
        ),
      )
    })
    await database.sql`select pg_terminate_backend(${row?.pid ?? 0})`
    await asked
    t.match(await late, /^(answered|CONNECTION_CLOSED|57P01)$/)
    t.same(await client`select 1 as one`, [{ one: 1 }], 'no time runs out')
    await client.end({ timeout: 1 })
  }
})

test('a connection that was lost with a query under way ends at once', async (t) => {
  const database = await testDatabase(t)
  const connection = dedicate(database.connect)
  const [row] = await connection.sql<{ pid: number }[]>`select pg_backend_pid() as pid`
  // Awaited from the start: the loss may be told before the answer of the query that causes it.
  const lost = t.rejects(connection.sql`select pg_sleep(60)`)
  await database.sql`select pg_terminate_backend(${row?.pid ?? 0})`
  await lost
  await delay(100)
  const ended = await Promise.race([connection.end().then(() => 'ended'), delay(4000).then(() => 'still ending')])
  t.equal(ended, 'ended')
})
