/** The state at any seq of a long run: checkpoints on the way, which are a cache. */
import { test } from 'tap'
import { NO_MASK } from '../../src/ingest/mask.js'
import { createStates, type States } from '../../src/log/states.js'
import { createState, encodeState, fold, PROJECTION_SCHEMA_VERSION } from '../../src/projections/fold.js'
import { createCheckpoints } from '../../src/runs/checkpoints.js'
import { saveSnapshot } from '../../src/runs/snapshots.js'
import { createRunStates } from '../../src/runs/state.js'
import { listening } from '../support/bundles.js'
import { serverUrl, silent, testDatabase } from '../support/database.js'
import { item, logInstance, output, request, storedLog, upTo } from '../support/log.js'

const EVERY = 10

for (const kind of ['embedded', 'server'] as const) {
  test(`states at a seq, ${kind}`, { skip: kind === 'server' && !serverUrl && 'needs TEST_DATABASE_URL' }, async (t) => {
    const database = await testDatabase(t, { server: kind === 'server' })
    const { sql } = database
    const instance = logInstance(database)
    t.teardown(() => instance.log.close())
    const { key, id } = await instance.createRun()
    const warnings: unknown[] = []
    const checkpoints = createCheckpoints({ sql, states: instance.states, everyEvents: EVERY, log: { warn: (details) => warnings.push(details) } })
    const runStates = createRunStates({ sql, states: instance.states, checkpoints, mask: NO_MASK })
    for (let n = 0; n < 12; n++) {
      await instance.log.append(
        request(key, [item({ type: 'step.started', subject: { kind: 'step', id: `s${n}` }, data: {} }), ...upTo(9).map((k) => output(`${n}.${k}`))]),
      )
    }
    const events = (await storedLog(sql, key)).events.map(({ json }) => JSON.parse(json))
    const headSeq = events.length
    const expected = (seq: number) => encodeState(fold(createState(), events.slice(0, seq)))
    const saved = async () => (await sql`select seq from run_checkpoints where run_key = ${key} order by seq`).map((row) => Number(row.seq))
    const at = async (seq: number) => encodeState(await runStates.fold({ key, id }, seq))

    await t.test('whoever folds past where checkpoints are missing leaves them, no denser than they should be', async (t) => {
      await sql`delete from run_projections`
      t.equal(await at(57), expected(57))
      t.same(await saved(), [10, 20, 30, 40, 50])
      t.equal(await at(33), expected(33))
      t.equal(await at(59), expected(59))
      t.same(await saved(), [10, 20, 30, 40, 50])
    })

    await t.test('every seq has the state that its fold has, with the checkpoints, without them, and asked for all at once', async (t) => {
      const all = upTo(headSeq)
      const wrong = async () => (await Promise.all(all.map(async (seq) => ((await at(seq)) === expected(seq) ? [] : [seq])))).flat()
      t.same(await wrong(), [])
      t.ok((await saved()).length >= Math.floor(headSeq / EVERY) - 1)
      await sql`delete from run_checkpoints`
      t.same(await wrong(), [])
    })

    await t.test('a snapshot that another instance saves after the head was read is the answer, and the log is not folded anew', async (t) => {
      const other = await instance.createRun()
      await instance.log.append(
        request(
          other.key,
          upTo(20).map((n) => output(`${n}`)),
        ),
      )
      const reader = createStates({ maxRuns: 1 })
      const hold: States['hold'] = async (runKey, work) => {
        await instance.log.append(request(other.key, [output('meanwhile')]))
        await instance.states.hold(other.key, (hot) => saveSnapshot(sql, hot))
        // To fold the log from its first event would fail now.
        await sql`delete from run_events_canonical where run_key = ${other.key} and seq < 20`
        return reader.hold(runKey, work)
      }
      const states = { ...reader, hold }
      const answer = await createRunStates({ sql, states, checkpoints: createCheckpoints({ sql, states, log: silent }), mask: NO_MASK }).read(other)
      t.equal(answer.version, 22)
    })

    await t.test('one of another schema version is not used, and is replaced; one that cannot be read is as good as none', async (t) => {
      await sql`update run_checkpoints set state = '{"version":1,"folds":{}}', schema_version = ${PROJECTION_SCHEMA_VERSION + 1}`
      t.equal(await at(77), expected(77))
      t.same(
        (await sql`select distinct schema_version from run_checkpoints where seq <= 70`).map((row) => row.schema_version),
        [PROJECTION_SCHEMA_VERSION],
      )
      await sql`update run_checkpoints set state = '"rubbish"', schema_version = ${PROJECTION_SCHEMA_VERSION}`
      t.equal(await at(77), expected(77))
      t.equal(await at(78), expected(78))
    })

    await t.test('a rebuild makes them anew', async (t) => {
      await sql`update run_checkpoints set state = (select state from run_checkpoints order by seq limit 1)`
      await runStates.rebuild({ key, id })
      t.equal(await at(77), expected(77))
      t.equal(await at(headSeq), expected(headSeq))
    })

    await t.test('they are written behind the commits, of what is committed', async (t) => {
      await sql`delete from run_checkpoints`
      const behind = createCheckpoints({ sql, states: instance.states, everyEvents: EVERY, log: { warn: (details) => warnings.push(details) } })
      instance.committed.length = 0
      for (let n = 0; n < 3; n++) {
        await instance.log.append(
          request(
            key,
            upTo(9).map((k) => output(`behind ${n}.${k}`)),
          ),
        )
        for (const batch of instance.committed.splice(0)) behind.committed(batch)
      }
      await behind.close()
      t.equal((await saved()).length, 1, '27 events, in batches of 9')
      const [seq = 0] = await saved()
      const now = (await storedLog(sql, key)).events.map(({ json }) => JSON.parse(json))
      const [row] = await sql<{ state: string }[]>`select state::text as state from run_checkpoints where run_key = ${key} and seq = ${seq}`
      t.equal(row?.state, encodeState(fold(createState(), now.slice(0, seq))))
    })

    t.same(warnings, [])
  })
}

test('a service that is stopped saves the states that it has in memory', async (t) => {
  const database = await testDatabase(t)
  const { client, app } = await listening(t, database)
  for (const id of ['one', 'two']) {
    await client.createRun({ id })
    await client.append(id, [{ type: 'run.started' }, { type: 'step.output', stepId: 's', data: { text: id } }])
  }
  const states = await Promise.all(['one', 'two'].map((id) => client.state(id)))
  await app.close()
  const saved = await database.sql`select id, version, last_seq from runs join run_projections on run_key = key order by id`
  t.same(
    saved.map(({ id, version, last_seq }) => [id, Number(version), Number(last_seq)]),
    states.map(({ runId, version }) => [runId, version, version]),
  )
  const again = await listening(t, database)
  t.same(await Promise.all(['one', 'two'].map((id) => again.client.state(id))), states)
})
