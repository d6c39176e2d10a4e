/** A run whose log cannot be folded fails with the reason, whoever meets it, once; it holds up no other, and nothing of its log is changed. */
import t from 'tap'
import type { Database } from '../../src/db/client.js'
import { exportOf, listening, scanned, temporaryFolder } from '../support/bundles.js'
import { serverUrl, testDatabase } from '../support/database.js'
import { eventually, type Problem, type RunRecord } from '../support/http.js'
import { logInstance, output, receiptOf, request } from '../support/log.js'
import { frame, sourceServer, sse } from '../support/source-server.js'
import { openStream } from '../support/sse-client.js'

t.setTimeout(120_000)

const ENV = { LEASE_CHECK_MS: '50', RECOVERY_INTERVAL_MS: '100', SOURCE_LEASE_MS: '1000', CANCEL_GRACE_MS: '0', OUTBOUND_ALLOW_PRIVATE: 'true' }
type Failed = RunRecord & { error: { code: string; message: string; seq: number } | null; lease: object | null; cancelRequestedAt: string | null }

/** What no cache can make good. */
async function corrupt({ sql }: Database, id: string, seq: number, event: string | null): Promise<void> {
  const run = sql`(select key from runs where id = ${id})`
  if (event === null) await sql`delete from run_events_canonical where run_key = ${run} and seq = ${seq}`
  else await sql`update run_events_canonical set event = ${event}::text::json where run_key = ${run} and seq = ${seq}`
  await sql`delete from run_projections where run_key = ${run}`
  await sql`delete from run_checkpoints where run_key = ${run}`
}

async function logOf({ sql }: Database, id: string): Promise<object[]> {
  return [...(await sql`select seq, event::text as event from run_events_canonical where run_key = (select key from runs where id = ${id}) order by seq`)]
}

for (const kind of ['embedded', 'server']) {
  const server = kind === 'server'
  t.test(`a log that cannot be folded, ${kind}`, { skip: server && !serverUrl && 'needs TEST_DATABASE_URL' }, async (t) => {
    const database = await testDatabase(t, { server })
    const { sql } = database

    await t.test('fails its run, whichever loop meets it', async (t) => {
      const source = await sourceServer(t, (_request, response) => sse(response).write(frame(1, '1')))
      const before = await listening(t, database, ENV)
      const claimed = async (id: string) => {
        await before.client.createRun({ id, queue: id })
        await before.client.post('/runs/claim', { queue: id, workerId: 'w', leaseMs: 600_000 })
      }
      for (const id of ['leased', 'leased-good', 'cancelling', 'starting', 'starting-good']) await claimed(id)
      for (const id of ['waiting', 'waiting-good']) await before.client.createRun({ id, queue: 'waiting' })
      await before.client.createRun({ id: 'expired', session: { ttlMs: 600_000 } })
      await before.client.append('expired', { type: 'run.started' })
      await before.client.createRun({ id: 'attached', source: { url: source.url } })
      await eventually('the source is read', async () => ((await before.client.get<RunRecord>('/runs/attached')).body.lastSeq >= 4 ? true : undefined))
      await before.app.close()

      const bad: Record<string, { seq: number; event: string | null; message: RegExp }> = {
        leased: { seq: 2, event: '[]', message: /event 2 is not the one that its row says/ },
        cancelling: { seq: 1, event: null, message: /event 1 is missing/ },
        starting: { seq: 3, event: '{"seq":3,"type":"run.claimed","source":{"kind":"control-plane"}}', message: /event 3 cannot be folded/ },
        waiting: { seq: 2, event: 'null', message: /event 2 cannot be folded/ },
        expired: { seq: 2, event: '{"seq":1}', message: /event 2 is not the one/ },
        attached: { seq: 2, event: '"text"', message: /event 2 is not the one/ },
      }
      for (const [id, { seq, event }] of Object.entries(bad)) await corrupt(database, id, seq, event)
      await sql`update runs set lease_expires_at = clock_timestamp() - interval '1 s' where id like 'leased%'`
      await sql`update runs set cancel_requested_at = clock_timestamp() - interval '1 s' where id = 'cancelling'`
      await sql`update runs set ttl_expires_at = clock_timestamp() - interval '1 s' where id = 'expired'`
      await sql`update runs set worker_id = null, lease_expires_at = null, updated_at = clock_timestamp() - interval '1 day' where id like 'starting%'`
      const logs = new Map(await Promise.all(Object.keys(bad).map(async (id) => [id, await logOf(database, id)] as const)))

      const { client, url, app } = await listening(t, database, ENV)
      const run = async (id: string) => (await client.get<Failed>(`/runs/${id}`)).body
      t.equal(
        (await client.post<RunRecord>('/runs/claim', { queue: 'waiting', workerId: 'w', waitMs: 5000 })).body.runId,
        'waiting-good',
        'a claim gets another',
      )
      const seen = new Map<string, Failed>()
      for (const [id, { seq, message }] of Object.entries(bad)) {
        const failed = await eventually(`${id} has failed`, async () => ((await run(id)).status === 'failed' ? run(id) : undefined))
        t.match(failed, { error: { code: 'LOG_CORRUPT', message, seq }, lease: null, cancelRequestedAt: null, endedAt: String }, id)
        seen.set(id, failed)
      }
      await eventually('the others are recovered', async () =>
        (await run('leased-good')).status === 'queued' && (await run('starting-good')).status === 'failed' ? true : undefined,
      )
      t.match(await run('starting-good'), { error: { code: 'STARTING_TIMEOUT' } })
      const listed = await client.get<{ data: RunRecord[] }>('/runs?status=failed')
      t.same(listed.body.data.map(({ runId }) => runId).sort(), [...Object.keys(bad), 'starting-good'].sort())
      t.match(await sql`select status, owner_id from run_sources`, [{ status: 'failed', owner_id: null }], 'its source is read no more')
      t.same(
        await sql`select id from runs where reserved_until is not null or ttl_expires_at is not null`,
        [],
        'nothing is left to be found by the next rounds',
      )

      await t.test('and takes nothing more, with a reason', async (t) => {
        for (const answer of [
          await client.append('leased', { type: 'run.started' }),
          await client.get('/runs/leased/state'),
          await client.post('/runs/leased/retry', {}),
          await client.post('/runs/leased/projection/rebuild'),
        ]) {
          t.match(JSON.parse(answer.text) as Problem, { status: 409, code: 'INVALID_STATE_TRANSITION', detail: /event 2 is not the one.*rebuild/ })
        }
        t.same(await run('leased'), seen.get('leased'), 'which changes nothing')
      })

      await t.test('and what is there can be read', async (t) => {
        t.same(
          (await client.events('cancelling')).map(({ seq }) => seq),
          [2, 3],
        )
        const stream = await openStream(`${url}/runs/cancelling/stream`)
        t.ok(await stream.closed())
        t.same(
          stream.frames.flatMap(({ event = [] }) => event),
          ['canonical_event', 'canonical_event', 'caught_up', 'end'],
        )
        t.match((await client.get<object>('/runs/attached/raw')).body, { data: [{ rawSeq: 1 }] })
        const parts = await scanned(await temporaryFolder(t), await exportOf(url, 'starting', '?format=ndjson'))
        t.match(
          Array.isArray(parts) && parts.find((part) => part.kind === 'manifest'),
          {
            manifest: {
              complete: false,
              headSeq: 3,
              ranges: { canonical: { fromSeq: 1, toSeq: 2 } },
              omissions: [{ reason: 'the log is corrupt', fromSeq: 3, toSeq: 3 }],
            },
          },
          'an export ends before the fault, and can be verified',
        )
      })

      await t.test('and it can be made anew, or deleted', async (t) => {
        const anew = await client.post<RunRecord>('/runs/cancelling/retry', { as: 'new' })
        t.match(anew.body, { parentRunId: 'cancelling', status: 'queued' }, anew.text)
        t.equal((await client.send('DELETE', '/runs/cancelling')).status, 204)
        t.equal((await client.get('/runs/cancelling')).status, 404)
      })
      for (const [id, log] of logs) if (id !== 'cancelling') t.same(await logOf(database, id), log, `the log of ${id} is as it was`)

      await t.test('and goes on once the log has been repaired', async (t) => {
        const whole = (await logOf(database, 'leased-good'))[1] as { event: string }
        await corrupt(database, 'leased', 2, whole.event.replaceAll('leased-good', 'leased'))
        t.match((await client.post('/runs/leased/projection/rebuild')).body, { version: 3, state: { run: { status: 'starting' } } })
        await eventually('its lease is found to be lost', async () => ((await run('leased')).status === 'queued' ? true : undefined))
        t.match(await run('leased'), { error: null, attempt: 2, lastSeq: 4, endedAt: null })
        await corrupt(database, 'attached', 2, (await sql`select event::text from run_events_canonical where seq = 1`)[0]?.event.replace('"seq":1', '"seq":2'))
        t.equal((await client.post('/runs/attached/projection/rebuild')).status, 200)
        await eventually('its source is read again', async () => ((await run('attached')).lastSeq > 4 ? true : undefined))
      })
      await app.close()
    })

    await t.test('holds up no other of its group, nor comes back by an instance that has it in memory', async (t) => {
      const first = logInstance(database)
      const runs = [await first.createRun(), await first.createRun(), await first.createRun()]
      for (const { key } of runs) await first.log.append(request(key, [output('1')]))
      const [good, bad, other] = runs as [(typeof runs)[0], (typeof runs)[0], (typeof runs)[0]]
      await corrupt(database, bad.id, 1, '[]')
      const second = logInstance(database)
      const group = await Promise.all([good, bad, bad, other].map(({ key }) => second.log.append(request(key, [output('2')]))))
      t.match(
        group.map((outcome) => outcome.kind),
        ['done', 'refused', 'refused', 'done'],
      )
      t.match(
        second.committed.map(({ runId, status, events }) => ({ runId, status, events: events.length })),
        [
          { runId: good.id, events: 1 },
          { runId: other.id, events: 1 },
          { runId: bad.id, status: 'failed', events: 0 },
        ],
      )
      t.match(await first.log.append(request(bad.key, [output('3')])), { kind: 'refused' })
      t.equal((await logOf(database, bad.id)).length, 2)
      t.equal(receiptOf(await first.log.append(request(good.key, [output('3')]))).headSeq, 4)
      for (const { log } of [first, second]) await log.close()
    })

    await t.test('ends the streams of its run, on every instance', async (t) => {
      const [reads, meets] = [await listening(t, database, ENV), await listening(t, database, ENV)]
      const { runId } = await reads.client.createRun()
      const streams = [await openStream(`${reads.url}/runs/${runId}/stream`), await openStream(`${meets.url}/runs/${runId}/stream`)]
      for (const stream of streams) await stream.until(({ event }) => event === 'caught_up')
      await corrupt(database, runId, 1, '[]')
      t.equal((await meets.client.append(runId, { type: 'run.started' })).status, 409)
      for (const stream of streams) t.match((await stream.until(({ event }) => event === 'end')).data, /"status":"failed"/)
      for (const { app } of [reads, meets]) await app.close()
    })

    await t.test('is left as it has ended', async (t) => {
      const first = logInstance(database)
      const { key, id } = await first.createRun()
      await first.log.decide(key, () => [{ type: 'run.completed', data: {} }])
      await first.log.close()
      await corrupt(database, id, 1, '[]')
      const second = logInstance(database)
      t.match(await second.log.append(request(key, [output('late')])), { kind: 'refused' })
      t.match(await sql`select status, error from runs where key = ${key}`, [{ status: 'completed', error: null }])
      await second.log.close()
    })

    await t.test('is told from a snapshot that cannot be read', async (t) => {
      const { client, app } = await listening(t, database, ENV)
      const { runId } = await client.createRun()
      await client.append(runId, { type: 'run.started' })
      const { state } = await client.state(runId)
      await app.close()
      const [saved] = await sql<
        { state: string }[]
      >`select state::text as state from run_projections where run_key = (select key from runs where id = ${runId})`
      const emptied = JSON.parse(saved?.state ?? '')
      for (const name of Object.keys(emptied.folds)) emptied.folds[name] = {}
      const bad = ['null', '{"version":2}', saved?.state.replace('"version":2', '"version":"2"'), JSON.stringify(emptied)]
      for (const [index, text] of bad.entries()) {
        await sql`update run_projections set state = ${text ?? ''}::text::json where run_key = (select key from runs where id = ${runId})`
        const again = await listening(t, database, ENV)
        t.equal((await again.client.append(runId, { type: 'custom.emitted', data: { name: 'n' } })).body.headSeq, 3 + index)
        const after = await again.client.state(runId)
        t.match(after.state, { run: { status: 'running', startedAt: state.run?.startedAt } })
        await again.app.close()
        const [healed] = await sql<{ version: number }[]>`
          select (state->>'version')::int as version from run_projections where run_key = (select key from runs where id = ${runId})`
        t.equal(healed?.version, 3 + index)
      }
    })
  })
}
