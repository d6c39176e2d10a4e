/** The append against a real database: what it promises when all goes well, when it repeats, and when the database fails it. */
import { mkdtempSync } from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import postgres from 'postgres'
import { test } from 'tap'
import type { Database, Sql } from '../../src/db/client.js'
import { RunplaneError } from '../../src/errors.js'
import { catchUp } from '../../src/log/states.js'
import { createState, encodeState, fold, viewState } from '../../src/projections/fold.js'
import { saveSnapshot } from '../../src/runs/snapshots.js'
import { testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
import { item, type LogInstance, logInstance, newKey, output, receiptOf, request, storedLog, upTo } from '../support/log.js'

test('append', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const instance = logInstance(database)
  const { log, createRun } = instance

  await t.test('numbers raw and canonical events from 1 without holes, with writers at once', async (t) => {
    const run = await createRun()
    await Promise.all(
      upTo(20).map((writer) =>
        log.append(
          request(
            run.key,
            upTo(5).map((count) => output(`w${writer}-${count}`)),
          ),
        ),
      ),
    )
    const stored = await storedLog(sql, run.key)
    t.same(stored.seqs, upTo(101), 'run.created and 100 events')
    t.same(stored.rawSeqs, upTo(100))
    t.equal(new Set(stored.eventIds).size, 100)
    t.equal(stored.head.last_seq, 101)
    t.equal(stored.head.status, 'running', "an agent's first event implies that the run has started")
  })

  await t.test('keeps the items of a request next to each other and in order', async (t) => {
    const run = await createRun()
    const receipts = await Promise.all(
      upTo(10).map((writer) =>
        log.append(
          request(
            run.key,
            upTo(7).map((count) => output(`w${writer}-${count}`)),
          ),
        ),
      ),
    )
    for (const outcome of receipts) {
      const seqs = receiptOf(outcome).results.flatMap((result) => result.seqs)
      t.same(
        seqs,
        upTo(7).map((offset) => (seqs[0] ?? 0) + offset - 1),
      )
    }
  })

  await t.test('stores an event id once, whoever repeats it and wherever', async (t) => {
    const run = await createRun()
    const other = logInstance(database)
    const outcomes = await Promise.all([
      log.append(request(run.key, [output('a'), output('a')])),
      other.log.append(request(run.key, [output('a')])),
      log.append(request(run.key, [output('a'), output('b')])),
    ])
    const results = outcomes.flatMap((outcome) => receiptOf(outcome).results)
    t.equal(results.filter((result) => result.status === 'stored').length, 2)
    t.equal(results.filter((result) => result.status === 'duplicate').length, 3)
    t.same((await storedLog(sql, run.key)).eventIds.sort(), ['a', 'b'])
    const [conflict] = receiptOf(await log.append(request(run.key, [output('a', 'something else')]))).results
    t.match(conflict, { status: 'rejected', code: 'IDEMPOTENCY_CONFLICT' })
  })

  await t.test('takes a repeat with other white space and order of keys for the same', async (t) => {
    const run = await createRun()
    const first = item({ id: 'a', type: 'step.output', data: { text: 'x', n: 1 } })
    const second = {
      ...item({ id: 'a', data: { n: 1, text: 'x' }, type: 'step.output' }),
      text: '{ "id":"a", "data": {"n": 1,"text":"x"}, "type":"step.output"}',
    }
    receiptOf(await log.append(request(run.key, [first])))
    t.match(receiptOf(await log.append(request(run.key, [second]))).results, [{ status: 'duplicate' }])
  })

  await t.test('takes an event whose number differs past what a double holds for another one', async (t) => {
    const run = await createRun()
    const counted = (value: string) => ({
      ...item({ id: 'a', type: 'custom.emitted', data: { name: 'n' } }),
      text: `{"id":"a","type":"custom.emitted","data":{"name":"n","value":${value}}}`,
    })
    receiptOf(await log.append(request(run.key, [counted('12345678901234567890')])))
    const again = [counted(' 12345678901234567890'), counted('12345678901234567891')]
    t.match(receiptOf(await log.append(request(run.key, again))).results, [{ status: 'duplicate' }, { status: 'rejected', code: 'IDEMPOTENCY_CONFLICT' }])
  })

  await t.test('answers a repeated producer seq with the original seqs, and refuses a gap and a zombie', async (t) => {
    const run = await createRun()
    const post = (epoch: number, seq: number, id: string) =>
      log.append(request(run.key, [output(id)], { producer: { id: 'p', epoch, seq }, requestKey: { key: `p:${epoch}:${seq}:0`, hash: '00' } }))
    const first = receiptOf(await post(1, 0, 'a'))
    t.match(await post(1, 2, 'c'), { kind: 'refused', error: { code: 'PRODUCER_GAP', headers: { 'producer-expected-seq': '1' } } })
    receiptOf(await post(1, 1, 'b'))
    const repeat = receiptOf(await post(1, 0, 'a'))
    t.same(
      repeat.results,
      first.results.map((result) => ({ ...result, status: 'duplicate' })),
    )
    t.match(await post(2, 1, 'x'), { kind: 'refused', error: { code: 'PRODUCER_GAP', headers: { 'producer-expected-seq': '0' } } })
    receiptOf(await post(2, 0, 'd'))
    t.match(await post(1, 2, 'z'), { kind: 'refused', error: { code: 'PRODUCER_FENCED', status: 403 } })
    t.same((await storedLog(sql, run.key)).eventIds, ['a', 'b', 'd'])
  })

  await t.test('an If-Match that does not hold stores nothing, and one of two rivals wins', async (t) => {
    const run = await createRun()
    const outcomes = await Promise.all(['a', 'b'].map((id) => log.append(request(run.key, [output(id)], { ifMatch: 1 }))))
    t.equal(outcomes.filter((outcome) => outcome.kind === 'done').length, 1)
    t.match(
      outcomes.find((outcome) => outcome.kind === 'refused'),
      { error: { code: 'PRECONDITION_FAILED' } },
    )
    t.equal((await storedLog(sql, run.key)).head.last_seq, 2)
  })

  await t.test('records what comes after the end and marks it late', async (t) => {
    const run = await createRun()
    receiptOf(await log.append(request(run.key, [item({ type: 'run.cancelled' }), item({ type: 'run.completed' }), output('x')])))
    const stored = await storedLog(sql, run.key)
    t.same(
      stored.events.map(({ json }) => JSON.parse(json).late ?? false),
      [false, false, true, true],
    )
    t.equal(stored.head.status, 'cancelled')
  })

  await t.test('a run that is not there is missing, and holds up nobody in its group', async (t) => {
    const run = await createRun()
    const [missing, done] = await Promise.all([log.append(request(newKey(), [output('a')])), log.append(request(run.key, [output('a')]))])
    t.equal(missing.kind, 'missing')
    t.equal(done.kind, 'done')
  })

  await t.test('an event that the database refuses is rejected alone: its request and its group are stored', async (t) => {
    const run = await createRun()
    const other = await createRun()
    const poison = output('poison')
    // What no normaliser lets through: a NUL, which `text` cannot hold.
    if (poison.normalized.ok) poison.normalized.rawType = 'step.\0output'
    const [poisoned, healthy] = await Promise.all([
      log.append(request(run.key, [output('a'), poison, output('b')])),
      log.append(request(other.key, [output('a')])),
    ])
    t.match(receiptOf(poisoned).results, [{ status: 'stored' }, { status: 'rejected', code: 'VALIDATION_ERROR' }, { status: 'stored' }])
    t.match(receiptOf(healthy).results, [{ status: 'stored' }])
    const stored = await storedLog(sql, run.key)
    t.same(stored.seqs, upTo(3))
    t.same(stored.eventIds, ['a', 'b'])
  })

  await t.test('a fault of the database that is not about the events refuses the request, and leaves nothing that a repeat would meet', async (t) => {
    const run = await createRun()
    await sql.unsafe(`create function full_disk() returns trigger language plpgsql as $$ begin raise exception 'full' using errcode = '53100'; end $$`)
    await sql.unsafe(`create trigger full_disk before insert on run_events_raw for each row execute function full_disk()`)
    const post = () =>
      log.append(request(run.key, [output('a'), output('b')], { producer: { id: 'p', epoch: 0, seq: 0 }, requestKey: { key: 'p:0:0:0', hash: '00' } }))
    await t.rejects(post(), { code: '53100' })
    await sql.unsafe('drop function full_disk() cascade')
    t.match(receiptOf(await post()).results, [{ status: 'stored' }, { status: 'stored' }])
  })

  await t.test('a damaged page of the database refuses the run that it belongs to, and no other of the group', async (t) => {
    const damaged = await createRun()
    const healthy = await createRun()
    await sql.unsafe(`create function bad_page() returns trigger language plpgsql as $$ begin
      if new.run_key = '${damaged.key}' then raise exception 'invalid page in block 7' using errcode = 'XX001'; end if; return new; end $$`)
    await sql.unsafe(`create trigger bad_page before insert on run_events_raw for each row execute function bad_page()`)
    const [refused, stored] = await Promise.allSettled([
      log.append(request(damaged.key, [output('a'), output('b')])),
      log.append(request(healthy.key, [output('a')])),
    ])
    await sql.unsafe('drop function bad_page() cascade')
    t.match(refused, { status: 'rejected', reason: { code: 'XX001' } })
    t.equal(stored.status === 'fulfilled' && stored.value.kind, 'done')
    t.match(receiptOf(await log.append(request(damaged.key, [output('a'), output('b')]))).results, [{ status: 'stored' }, { status: 'stored' }])
  })

  await t.test('a full queue refuses with OVERLOADED, and what it took is stored', async (t) => {
    const run = await createRun()
    const small = logInstance(database, { maxQueuedEvents: 10 })
    const outcomes = await Promise.allSettled(
      upTo(10).map((writer) =>
        small.log.append(
          request(
            run.key,
            upTo(4).map((count) => output(`w${writer}-${count}`)),
          ),
        ),
      ),
    )
    const refused = outcomes.filter((outcome) => outcome.status === 'rejected')
    t.ok(refused.length > 0 && refused.length < 10)
    for (const { reason } of refused) t.match(reason, { code: 'OVERLOADED', headers: { 'retry-after': '1' } })
    t.equal((await storedLog(sql, run.key)).rawSeqs.length, 4 * (10 - refused.length))
    await small.log.close()
    await t.rejects(small.log.append(request(run.key, [output('late')])), RunplaneError)
  })

  await t.test('the state in memory, from a snapshot and folded at once from the log are the same, with another writer between', async (t) => {
    const run = await createRun()
    const other = logInstance(database)
    for (const [index, { log }] of [instance, other, instance, other, instance].entries()) {
      receiptOf(
        await log.append(
          request(run.key, [item({ type: 'step.started', subject: { kind: 'step', id: `s${index}` }, data: { name: 'n' } }), output(`o${index}`)]),
        ),
      )
      await instance.states.hold(run.key, (hot) => saveSnapshot(sql, hot))
    }
    const stored = await storedLog(sql, run.key)
    const atOnce = fold(
      createState(),
      stored.events.map(({ json }) => JSON.parse(json)),
    )
    const hot = await instance.states.hold(run.key, async (one) => encodeState(await catchUp(sql, one, stored.head.last_seq)))
    t.equal(hot, encodeState(atOnce))
    const cold = logInstance(database)
    const fromSnapshot = await cold.states.hold(run.key, async (one) => viewState(await catchUp(sql, one, stored.head.last_seq)))
    t.same(fromSnapshot, viewState(atOnce))
  })

  await t.test('states are dropped from memory beyond the limit and read again', async (t) => {
    const small = logInstance(database, { maxRuns: 2 })
    const runs = await Promise.all(upTo(6).map(() => small.createRun()))
    for (let round = 0; round < 3; round++) await Promise.all(runs.map((run) => small.log.append(request(run.key, [output(`r${round}`)]))))
    t.ok(small.states.size <= 2)
    for (const run of runs) t.same((await storedLog(sql, run.key)).seqs, upTo(4))
  })

  await t.test('hot statements use an index', async (t) => {
    const run = await createRun()
    await log.append(
      request(
        run.key,
        upTo(500).map((count) => output(`e${count}`)),
      ),
    )
    await sql`analyze run_events_raw, run_events_canonical, runs`
    const plan = async (query: ReturnType<Sql['unsafe']>) => (await query).map((row) => String(Object.values(row)[0])).join('\n')
    const wanted = JSON.stringify([{ k: run.key, s: 'tester', i: 'e7' }])
    const dedup = await plan(
      sql.unsafe(
        `explain select r.* from json_to_recordset($1::text::json) as q(k uuid, s text, i text) cross join lateral (
           select body from run_events_raw where run_key = q.k and source = q.s and event_id = q.i and event_id is not null limit 1) r`,
        [wanted],
      ),
    )
    t.match(dedup, /Index Scan using run_events_raw_event_id/)
    const page = await plan(sql.unsafe(`explain select event from run_events_canonical where run_key = $1 and seq > 100 order by seq limit 10`, [run.key]))
    t.match(page, /Index Scan using run_events_canonical/)
    t.notMatch(page, /Sort/)
  })

  await t.test('two instances that write to one run in turns and at once keep one numbering, and both go on', async (t) => {
    const run = await createRun()
    const instances = [logInstance(database), logInstance(database)]
    t.teardown(() => Promise.all(instances.map(({ log }) => log.close())))
    const seqs: number[] = []
    const write = async (turn: number, text: string) => {
      const { results } = receiptOf(
        (await instances[turn % 2]?.log.append(request(run.key, [item({ type: 'custom.emitted', data: { name: text } })]))) ?? { kind: 'missing' },
      )
      seqs.push(...results.flatMap((result) => result.seqs))
    }
    for (let turn = 0; turn < 6; turn++) await write(turn >> 1, `turn ${turn}`)
    await Promise.all(upTo(20).map((turn) => write(turn, `at once ${turn}`)))
    t.same(
      seqs.sort((left, right) => left - right),
      upTo(26).map((seq) => seq + 1),
    )
    t.same((await storedLog(sql, run.key)).seqs, upTo(27))
  })

  await t.test('an event id that another instance has stored is a duplicate, also for a writer that knows the run', async (t) => {
    const run = await createRun()
    const other = logInstance(database)
    t.teardown(() => other.log.close())
    receiptOf(await other.log.append(request(run.key, [output('first')])))
    receiptOf(await other.log.append(request(run.key, [output('second')])))
    const again = receiptOf(await other.log.append(request(run.key, [output('first'), output('third')])))
    t.same(
      again.results.map(({ status, seqs }) => ({ status, seqs })),
      [
        { status: 'duplicate', seqs: [2] },
        { status: 'stored', seqs: [4] },
      ],
    )
    t.same((await storedLog(sql, run.key)).seqs, upTo(4))
  })

  await t.test('a connection that is lost at its commit is asked about, not guessed: nothing is stored twice', async (t) => {
    const run = await createRun()
    const proxy = await cuttingProxy(t, sql.options.path ?? `${sql.options.host[0]}:${sql.options.port[0]}`)
    const { user, database: name, types } = { ...sql.options, types: { int8: { to: 20, from: [20], parse: Number, serialize: String } } }
    const connect: Database['connect'] = (options) => postgres({ ...options, user, database: String(name), path: proxy.path, types })
    const cut = connect({ max: 3 })
    const fragile = logInstance({ sql: cut, connect })
    t.teardown(async () => {
      await fragile.log.close()
      await cut.end({ timeout: 0 })
    })
    // The first goes the long way, as does each that follows a loss which was found not to be stored; the others are one statement.
    for (let round = 0; round < 12; round++) {
      proxy.cutAtNextCommit(round % 4 < 2 ? 'after' : 'before')
      // No event ids: only knowing what the commit did keeps this exact.
      const receipt = receiptOf(await fragile.log.append(request(run.key, [item({ type: 'custom.emitted', data: { name: `round ${round}` } })])))
      t.equal(receipt.headSeq, round + 2)
    }
    t.equal(proxy.cuts, 12)
    t.ok(proxy.cutsOfOne > 2, 'statements without a transaction around them were cut as well')
    t.same((await storedLog(sql, run.key)).seqs, upTo(13))
  })
})

test('writers that collide store what each has sent, and a statement of each fails of it, once', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const [one, other] = [logInstance(database), logInstance(database)]
  const run = await one.createRun()
  const write = async ({ log }: LogInstance, text: string) => receiptOf(await log.append(request(run.key, [output(text)]))).headSeq
  const seqs: number[] = []
  for (const text of ['a', 'b', 'c', 'd', 'e', 'f', 'g']) seqs.push(await write(seqs.length % 2 === 0 ? one : other, text))
  t.same(seqs, upTo(8).slice(1))
  await Promise.all([one.log.close(), other.log.close()])
  // What a connection did is counted when it is closed.
  await eventually('the connections are closed', async () => {
    const others =
      await sql`select from pg_stat_activity where datname = current_database() and query like '%run_events_canonical%' and pid <> pg_backend_pid()`
    return others.length === 0 ? true : undefined
  })
  const [counts] = await sql<{ failed: number }[]>`select xact_rollback as failed from pg_stat_database where datname = current_database()`
  t.equal(counts?.failed, 2)
})

/** Between a client and Postgres: cuts the connection at a COMMIT, or at a statement that commits by itself, before it is passed on or after it is done. */
async function cuttingProxy(t: { teardown(handler: () => void): unknown }, target: string) {
  let armed: 'before' | 'after' | undefined
  const state = { cuts: 0, cutsOfOne: 0, begun: false, sent: false }
  const server: Server = createServer((client) => {
    const upstream = target.startsWith('/') ? connect(target) : connect(Number(target.split(':')[1]), target.split(':')[0])
    const cut = () => {
      state.cuts++
      if (!state.begun) state.cutsOfOne++
      armed = undefined
      client.destroy()
      upstream.destroy()
    }
    // The events and the COMMIT are sent together.
    client.on('data', (chunk) => {
      state.sent ||= chunk.includes('"custom.emitted"')
      if (armed === 'before' && state.sent) cut()
      else upstream.write(chunk)
    })
    upstream.on('data', (chunk) => {
      state.begun ||= chunk.includes('BEGIN\0')
      if (armed === 'after' && state.sent && chunk.includes(state.begun ? 'COMMIT\0' : 'SELECT 1\0')) cut()
      else client.write(chunk)
    })
    for (const socket of [client, upstream]) {
      socket.on('error', () => {})
      socket.on('close', () => {
        client.destroy()
        upstream.destroy()
      })
    }
  })
  const path = join(mkdtempSync(join(tmpdir(), 'rp-proxy-')), '.s.PGSQL.5432')
  await new Promise<void>((resolve) => server.listen(path, resolve))
  t.teardown(() => server.close())
  return {
    path,
    cutAtNextCommit: (when: 'before' | 'after') => {
      armed = when
      state.begun = false
      state.sent = false
    },
    get cutsOfOne() {
      return state.cutsOfOne
    },
    get cuts() {
      return state.cuts
    },
  }
}
