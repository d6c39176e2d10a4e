/** Deleted runs on two instances: nobody finds one, reads on in it or writes to it, and one that is made anew under its id has nothing of it. */
import postgres from 'postgres'
import t from 'tap'
import { createClient, eventually, type RunRecord } from '../support/http.js'
import { NO_SERVER, startService, TEST_DATABASE_URL } from '../support/service.js'
import { openStream } from '../support/sse-client.js'

t.setTimeout(180_000)
const database = TEST_DATABASE_URL === undefined ? 'embedded' : 'postgres'
const one = await startService(t, { database, env: { STREAM_POLL_MS: '300' } })
const two = await startService(t, { database, sharing: one, env: { STREAM_POLL_MS: '300' } })
const [first, second] = [createClient(one.url), createClient(two.url)]

t.test('what the other instance remembers of a run does not outlive it', async (t) => {
  for (let round = 0; round < 5; round++) {
    const id = 'same'
    await first.createRun({ id, name: `round ${round}` })
    await Promise.all([first, second].map((client) => client.append(id, { id: `from-${client.url}`, type: 'custom.emitted', data: { name: 'x' } })))
    t.equal((await second.state(id)).version, 3)
    const readers = await Promise.all([one, two].map(({ url }) => openStream(`${url}/runs/${id}/stream?follow=true`)))
    await Promise.all(readers.map((reader) => reader.until((frame) => frame.event === 'caught_up')))
    await first.append(id, { type: 'run.completed' })
    t.equal((await first.send('DELETE', `/runs/${id}`)).status, 204)
    if (round % 2 === 0) {
      t.equal((await second.append(id, { type: 'run.started' })).status, 404)
      t.equal((await second.get(`/runs/${id}/state`)).status, 404)
    }
    for (const reader of readers) {
      await reader.until((frame) => frame.event === 'error' && frame.data?.includes('RUN_NOT_FOUND') === true)
      t.ok(await reader.closed())
    }
    const again = await first.createRun({ id, name: 'again' })
    t.equal(again.lastSeq, 1)
    t.match((await second.get(`/runs/${id}/state`)).body, { version: 1, state: { run: { name: 'again' } } }, 'not found under a key of before')
    t.match((await second.append(id, { id: `from-${second.url}`, type: 'custom.emitted', data: { name: 'x' } })).body, {
      accepted: 1,
      duplicates: 0,
      firstSeq: 2,
    })
    t.match((await second.post(`/runs/${id}/cancel`)).status, 200)
    await first.append(id, { type: 'run.completed' })
    t.equal((await second.send('DELETE', `/runs/${id}`)).status, 204)
  }
})

t.test('writers, commands and deletions at once leave each run whole or gone', async (t) => {
  const ids = Array.from({ length: 12 }, (_, index) => `race-${index}`)
  await Promise.all(ids.map((id) => first.createRun({ id })))
  const until = Date.now() + 4000
  const pick = () => ids[Math.floor(Math.random() * ids.length)] ?? ''
  const statuses = new Map<number, number>()
  const note = ({ status }: { status: number }) => statuses.set(status, (statuses.get(status) ?? 0) + 1)
  const client = () => (Math.random() < 0.5 ? first : second)
  await Promise.all(
    Array.from({ length: 10 }, async (_, worker) => {
      for (let count = 0; Date.now() < until; count++) {
        const id = pick()
        const what = Math.floor(Math.random() * 8)
        if (what < 3) note(await client().append(id, { id: `${worker}-${count}`, type: 'custom.emitted', data: { name: 'x' } }))
        else if (what === 3) note(await client().post(`/runs/${id}/cancel`))
        else if (what === 4) note(await client().send('DELETE', `/runs/${id}`))
        else if (what === 5) note(await client().get(`/runs/${id}/state`))
        else if (what === 6) note(await client().post(`/runs/${id}/retry`))
        else note(await client().post('/runs', { id }))
      }
    }),
  )
  t.same(
    [...statuses.keys()].filter((status) => ![200, 201, 204, 404, 409].includes(status)),
    [],
    JSON.stringify([...statuses]),
  )
  for (const id of ids) {
    const record = await first.get<RunRecord>(`/runs/${id}`)
    if (record.status === 404) continue
    const events = await second.events(id)
    t.same(
      events.map(({ seq }) => seq),
      Array.from({ length: record.body.lastSeq }, (_, index) => index + 1),
    )
    t.equal(events[0]?.type, 'run.created')
    t.equal((await second.state(id)).version, record.body.lastSeq)
  }
})

t.test('the rows of deleted runs go, whatever is killed meanwhile', { skip: TEST_DATABASE_URL === undefined && NO_SERVER }, async (t) => {
  const sql = postgres(one.databaseUrl ?? '', { max: 1, onnotice: () => {} })
  t.teardown(() => sql.end())
  const { runId } = await first.createRun()
  for (let batch = 0; batch < 30; batch++)
    await first.append(
      runId,
      Array.from({ length: 1000 }, (_, index) => ({ id: `${batch}-${index}`, type: 'custom.emitted', data: { name: 'x' } })),
    )
  await first.append(runId, { type: 'run.completed' })
  const [run] = await sql`select key from runs where id = ${runId}`
  t.equal((await first.send('DELETE', `/runs/${runId}`)).status, 204)
  await eventually('a part is gone', async () => {
    const [left] = await sql`select count(*)::int as rows from run_events_canonical where run_key = ${run?.key}`
    return left?.rows < 30_000 ? true : undefined
  })
  await one.kill('SIGKILL')
  await eventually(
    'the other instance goes on',
    async () => {
      const [left] = await sql`select (select count(*)::int from run_events_canonical where run_key = ${run?.key}) as events,
      (select count(*)::int from run_events_raw where run_key = ${run?.key}) as raw, (select count(*)::int from run_deletions) as deletions`
      return left?.events === 0 && left?.raw === 0 && left?.deletions === 0 ? true : undefined
    },
    20_000,
  )
})
