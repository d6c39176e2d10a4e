/** Retention: what goes, and that all that stays is right, states and comparisons above all: from the first event that is kept on, nothing has changed. */
import { randomUUID } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import postgres from 'postgres'
import t, { type Test } from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { foldFromLog } from '../../src/log/states.js'
import { createState } from '../../src/projections/fold.js'
import { parsePolicies, type RetentionPolicy } from '../../src/runs/retention-policy.js'
import { trimRun } from '../../src/runs/trim.js'
import { serverDatabase, silent, testDatabase } from '../support/database.js'
import { createClient, eventually, type RunRecord } from '../support/http.js'
import { NO_SERVER, startService, TEST_DATABASE_URL } from '../support/service.js'
import { openStream } from '../support/sse-client.js'

t.setTimeout(180_000)

type Kept = RunRecord & { firstSeq: number; archivedAt: string | null }

/** A service in this process whose retention runs every second. */
async function service(t: Test, database: Database, policies: Partial<RetentionPolicy>[], env: Record<string, string> = {}) {
  const dataDir = await mkdtemp(join(tmpdir(), 'retention-'))
  t.teardown(() => rm(dataDir, { recursive: true, force: true }))
  const named = policies.map((policy, index) => ({ name: `p${index}`, afterDays: 0, ...policy }))
  const config = loadConfig(
    { RETENTION_POLICIES: JSON.stringify(named), RETENTION_INTERVAL_MS: '1000', DATA_DIR: dataDir, ...env },
    { envFile: '/nonexistent' },
  )
  const app = await buildApp({ config, database, logger: silent })
  t.teardown(() => app.close())
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  return { client: createClient(url), url, dataDir }
}

/** A run whose state is in every section, with `count` events after its first two. */
async function fill(client: ReturnType<typeof createClient>, runId: string, count: number) {
  await client.append(runId, { type: 'run.started' })
  const events = Array.from({ length: count }, (_, index) => {
    const id = `s${Math.floor(index / 4)}`
    const subject = { kind: 'step', id }
    return [
      { id: `e${index}`, type: 'step.started', subject, data: { name: id } },
      { id: `e${index}`, type: 'llm.call.completed', subject: { kind: 'llm_call', id: `c${index}` }, data: { model: 'm', inputTokens: 3, outputTokens: 1 } },
      { id: `e${index}`, type: 'progress.reported', data: { percentage: (index * 100) / count } },
      { id: `e${index}`, type: 'step.completed', subject, data: { name: id } },
    ][index % 4]
  })
  for (let at = 0; at < count; at += 500) await client.append(runId, events.slice(at, at + 500))
}

const recordOf = async (client: ReturnType<typeof createClient>, runId: string) => (await client.get<Kept>(`/runs/${runId}`)).body

t.test('a trimmed run has the states, the stream and the numbers that it had, from its first kept event on', async (t) => {
  const databases: (Database | undefined)[] = [await testDatabase(t), await serverDatabase(t)]
  for (const database of databases) {
    if (!database) continue
    const { client, url } = await service(t, database, [{ action: 'trim', keepEvents: 100, kind: 'long' }])
    const { runId } = await client.createRun({ kind: 'long' })
    await fill(client, runId, 6000)
    const last = (await recordOf(client, runId)).lastSeq
    const seqs = [last - 100, last - 50, last - 1, last]
    const before = new Map<number, unknown>()
    for (const seq of seqs) before.set(seq, (await client.state(runId, `?seq=${seq}`)).state)
    const kept = (await client.events(runId)).filter((event) => event.seq > last + 1 - 100)
    // Its end is one event more, so the cut is one further.
    await client.append(runId, { type: 'run.completed' })
    const ended = await client.state(runId)
    const trimmed = await eventually(
      'the run is trimmed',
      async () => {
        const record = await recordOf(client, runId)
        return record.firstSeq === record.lastSeq - 99 ? record : undefined
      },
      20_000,
    )
    t.equal(trimmed.lastSeq, last + 1)
    t.match(await client.state(runId), ended)
    for (const seq of seqs.slice(1)) t.same((await client.state(runId, `?seq=${seq}`)).state, before.get(seq), `the state at ${seq}`)
    t.match(await client.send('GET', `/runs/${runId}/state?seq=10`), { status: 400, body: { code: 'CURSOR_INVALID', detail: /retention/ } })
    t.same((await client.events(runId)).slice(0, -1), kept)
    t.match((await client.get(`/runs/${runId}/events?afterSeq=3&limit=1`)).body, { firstSeq: trimmed.firstSeq })

    t.match((await client.get(`/runs/${runId}/raw?limit=1`)).body, { firstRawSeq: Number, data: [{ rawSeq: Number }] })

    // Caches may go at any time.
    await database.sql`delete from run_checkpoints`
    await database.sql`delete from run_projections`
    t.match((await client.post(`/runs/${runId}/projection/rebuild`)).body, { state: ended.state }, 'rebuilt from what is kept')
    t.same((await client.state(runId, `?seq=${last - 50}`)).state, before.get(last - 50))

    const bundle = await (await fetch(`${url}/runs/${runId}/export?format=ndjson&include=canonical,raw`)).text()
    const imported = await fetch(`${url}/runs/import?as=part`, { method: 'POST', body: bundle })
    t.match(await imported.json(), {
      code: 'VALIDATION_ERROR',
      detail: new RegExp(
        `it holds the events ${trimmed.firstSeq} to ${last + 1} of 1 to ${last + 1} \\(no longer kept\\)\\. Retention has deleted .* Import a bundle from before`,
      ),
    })
    const compared = await client.post('/runs/compare', { left: { bundle }, right: runId })
    t.match(
      compared,
      { status: 200, body: { firstDivergence: {}, approximate: [{ left: { fromSeq: 1, toSeq: trimmed.firstSeq - 1 } }] } },
      'it can be compared',
    )

    const reader = await openStream(`${url}/runs/${runId}/stream`)
    await reader.until((frame) => frame.event === 'end')
    t.match(
      reader.frames.find((frame) => frame.event === 'gap'),
      { id: String(trimmed.firstSeq - 1), data: JSON.stringify({ fromSeq: 1, toSeq: trimmed.firstSeq - 1 }) },
    )
    t.equal(reader.frames.filter((frame) => frame.event === 'canonical_event').length, 100)

    await client.append(runId, { type: 'custom.emitted', data: { name: 'late' } })
    t.equal((await client.state(runId)).version, last + 2, 'it is written to as before')
    const [rows] = await database.sql`select count(*) as raw from run_events_raw r where run_key = (select key from runs where id = ${runId})`
    t.ok(rows?.raw <= 102, 'raw events go with those that they gave')
    t.match((await client.get<{ data: unknown[] }>(`/audit?run=${runId}&action=run.trim`)).body.data, [
      { actor: 'retention', outcome: 'done', detail: { policy: 'p0', events: trimmed.firstSeq - 1 } },
    ])
  }
})

t.test('another instance with an old state in memory goes on from what is kept', async (t) => {
  const database = await testDatabase(t)
  const [one, two] = [await service(t, database, [], { STREAM_POLL_MS: '50' }), await service(t, database, [])]
  const { runId } = await one.client.createRun()
  await fill(one.client, runId, 40)
  t.equal((await two.client.state(runId)).version, 42, 'the other one has it in memory')
  await fill(one.client, runId, 0)
  await one.client.append(
    runId,
    Array.from({ length: 900 }, (_, index) => ({ type: 'custom.emitted', data: { name: `n${index}` } })),
  )
  const whole = await one.client.state(runId)
  const [row] = await database.sql`select key from runs where id = ${runId}`
  const run = { key: String(row?.key), id: runId }
  const stateAt = async (_run: unknown, seq: number) => {
    const state = createState()
    await foldFromLog(database.sql, run.key, state, seq)
    return state
  }
  await database.sql`delete from run_projections`
  t.match(await trimRun(database.sql, run, { cut: 900, rawOnly: false, stateAt }), { events: 900 })
  t.same(await trimRun(database.sql, run, { cut: 900, rawOnly: false, stateAt }), { events: 0, rawEvents: 0 }, 'once')
  t.same((await two.client.state(runId)).state, whole.state)
  t.equal((await two.client.append(runId, { type: 'run.completed' })).status, 200)
  t.match((await one.client.state(runId)).state, { run: { status: 'completed' } })
  t.match(await trimRun(database.sql, run, { cut: 944, rawOnly: false, stateAt }), { events: 44 }, 'all of it')
  await database.sql`delete from run_projections`
  t.match((await (await service(t, database, [])).client.state(runId)).state, { run: { status: 'completed' }, timeline: { totalEvents: 944 } })
})

t.test('a trim that was cut off leaves nothing wrong, and is completed', async (t) => {
  const database = await testDatabase(t)
  const { client } = await service(t, database, [])
  const { runId } = await client.createRun()
  await fill(client, runId, 100)
  const before = await client.state(runId)
  const at = (await client.state(runId, '?seq=90')).state
  const [row] = await database.sql`select key from runs where id = ${runId}`
  const run = { key: String(row?.key), id: runId }
  const stateAt = async (_run: unknown, seq: number) => {
    const state = createState()
    await foldFromLog(database.sql, run.key, state, seq)
    return state
  }
  // As if it had ended after the base was stored, and after a first batch.
  await t.rejects(trimRun(database.sql, run, { cut: 80, rawOnly: false, stateAt: () => Promise.reject(new Error('cut off')) }))
  t.match(await recordOf(client, runId), { firstSeq: 1 })
  await trimRun(database.sql, run, { cut: 60, rawOnly: false, stateAt })
  await database.sql`delete from run_projections`
  t.same((await client.state(runId)).state, before.state)
  t.same((await client.state(runId, '?seq=90')).state, at)
  await trimRun(database.sql, run, { cut: 80, rawOnly: false, stateAt })
  t.match(await recordOf(client, runId), { firstSeq: 81 })
  t.same((await client.state(runId, '?seq=90')).state, at)
})

t.test(
  'an instance that is killed while it trims leaves a run that reads right, and another one completes it',
  { skip: TEST_DATABASE_URL === undefined && NO_SERVER },
  async (t) => {
    const reading = await startService(t, { database: 'postgres' })
    const client = createClient(reading.url)
    const { runId } = await client.createRun({ kind: 'long' })
    await fill(client, runId, 40_000)
    await client.append(runId, { type: 'run.completed' })
    const before = await client.state(runId)
    const policies = JSON.stringify([{ name: 'trim', action: 'trim', afterDays: 0, kind: 'long', keepEvents: 50 }])
    const trimming = await startService(t, { database: 'postgres', sharing: reading, env: { RETENTION_POLICIES: policies, RETENTION_INTERVAL_MS: '1000' } })
    let seen = 1
    await eventually(
      'it trims',
      async () => {
        seen = (await recordOf(client, runId)).firstSeq
        return seen > 1 ? true : undefined
      },
      60_000,
    )
    await trimming.kill('SIGKILL')
    const cut = await recordOf(client, runId)
    t.comment(`killed at ${cut.firstSeq} of ${cut.lastSeq}`)
    const sql = postgres(reading.databaseUrl ?? '', { max: 1, onnotice: () => {} })
    t.teardown(() => sql.end())
    await sql`delete from run_projections`
    await sql`delete from run_checkpoints`
    t.same((await client.post<typeof before>(`/runs/${runId}/projection/rebuild`)).body.state, before.state)
    const kept = await client.events(runId)
    t.same(
      kept.map(({ seq }) => seq),
      Array.from({ length: cut.lastSeq - cut.firstSeq + 1 }, (_, index) => cut.firstSeq + index),
      'exactly what firstSeq says is there',
    )
    await trimming.restart()
    await eventually('it is completed', async () => ((await recordOf(client, runId)).firstSeq === cut.lastSeq - 49 ? true : undefined), 60_000)
    t.equal((await client.events(runId)).length, 50)
    t.same((await client.post<typeof before>(`/runs/${runId}/projection/rebuild`)).body.state, before.state)
  },
)

t.test('a base that an older version stored is read as far as it is understood', async (t) => {
  const database = await testDatabase(t)
  const { client } = await service(t, database, [])
  const { runId } = await client.createRun({ name: 'old' })
  await fill(client, runId, 100)
  const [row] = await database.sql`select key from runs where id = ${runId}`
  const run = { key: String(row?.key), id: runId }
  const stateAt = async () => {
    const state = createState()
    await foldFromLog(database.sql, run.key, state, 50)
    return state
  }
  await trimRun(database.sql, run, { cut: 50, rawOnly: false, stateAt })
  const [base] = await database.sql<{ state: { folds: Record<string, Record<string, unknown>> } }[]>`select state from run_bases`
  const folds = { ...base?.state.folds, run: { ...base?.state.folds.run, tags: 'another kind', unheard: 1 }, gone: {} }
  delete (folds as Record<string, unknown>).llm
  await database.sql`update run_bases set schema_version = 0, state = ${JSON.stringify({ ...base?.state, folds })}::text::json`
  await database.sql`delete from run_projections`
  const fresh = await service(t, database, [])
  const { version, state } = await fresh.client.state(runId)
  t.equal(version, 102)
  t.match(state, { run: { name: 'old', status: 'running', tags: [] }, timeline: { totalEvents: 102 } })
})

t.test('runs are archived and deleted by age, status, kind, tags and size, and exported before', async (t) => {
  const database = await testDatabase(t)
  const { client, url, dataDir } = await service(t, database, [
    { action: 'archive', kind: 'a', status: ['failed'] },
    { action: 'delete', kind: 'd', tags: ['x'], minEvents: 5, export: true },
    { action: 'delete', kind: 'old', afterDays: 7 },
    { action: 'trim', kind: 'raw', only: 'raw' },
  ])
  const made = async (kind: string, type: string | undefined, more: object = {}, events = 0) => {
    const { runId } = await client.createRun({ id: `${kind}-${randomUUID()}`, kind, ...more })
    if (events > 0) await fill(client, runId, events)
    if (type) await client.append(runId, { type, data: type === 'run.failed' ? { error: { message: 'no' } } : {} })
    return runId
  }
  const stays = [
    await made('a', 'run.completed'),
    await made('a', undefined),
    await made('d', 'run.completed', { tags: ['x'] }),
    await made('d', 'run.completed', {}, 10),
    await made('d', undefined, { tags: ['x'] }, 10),
    await made('old', 'run.completed'),
  ]
  const old = await made('old', 'run.completed')
  await database.sql`update runs set ended_at = now() - interval '8 days' where id = ${old}`
  const [failed, deleted, raw] = [
    await made('a', 'run.failed'),
    await made('d', 'run.completed', { tags: ['x', 'y'] }, 10),
    await made('raw', 'run.completed', {}, 10),
  ]
  const events = await client.events(raw)
  const rounds = async (): Promise<true | undefined> => {
    const gone = [(await client.get(`/runs/${deleted}`)).status, (await client.get(`/runs/${old}`)).status]
    const trimmed = (await client.get<{ data: unknown[] }>(`/runs/${raw}/raw`)).body.data.length === 0
    return gone.every((status) => status === 404) && trimmed && (await recordOf(client, failed)).archivedAt !== null ? true : undefined
  }
  await eventually('retention has been at work', rounds, 20_000)
  for (const runId of stays) t.match(await recordOf(client, runId), { archivedAt: null, firstSeq: 1 }, runId)
  t.same(await client.events(raw), events, 'the canonical events stay where only raw ones go')
  await eventually('the rows are swept', async () => {
    const [left] =
      await database.sql`select (select count(*) from run_deletions) as runs, (select count(*) from run_events_canonical c where not exists (select from runs where key = c.run_key)) as events`
    return left?.runs === 0 && left?.events === 0 ? true : undefined
  })
  const { data } = (await client.get<{ data: { detail: { export: string } }[] }>(`/audit?run=${deleted}&action=run.delete`)).body
  t.match(data, [{ actor: 'retention', outcome: 'done', detail: { policy: 'p1', export: /^retention\// } }])
  const bundle = await readFile(join(dataDir, 'blobs', data[0]?.detail.export ?? ''), 'utf8')
  t.match(bundle.trimEnd().split('\n').at(-1), /^\{"kind":"manifest"/)
  t.equal(bundle.split('\n').filter((line) => line.startsWith('{"kind":"canonical_event"')).length, 13)
  const back = await fetch(`${url}/runs/import?as=back`, { method: 'POST', body: bundle })
  t.match(await back.json(), { runId: 'back', imported: true, lastSeq: 13 }, 'what was exported before can be imported')
  t.equal((await readdir(join(dataDir, 'blobs', 'retention'), { recursive: true })).filter((file) => file.endsWith('.ndjson')).length, 1)
})

t.test('a policy is of its workspace, and of archived runs or of others', async (t) => {
  const database = await testDatabase(t)
  const ADMIN = 'an-admin-key-of-more-than-32-characters'
  const { client, url } = await service(
    t,
    database,
    [
      { action: 'delete', workspace: 'other', archived: true },
      { action: 'archive', workspace: 'nowhere' },
      { action: 'trim', archived: false, status: ['running'], minEvents: 20, keepEvents: 5 },
    ],
    { ADMIN_API_KEY: ADMIN },
  )
  const admin = { authorization: `Bearer ${ADMIN}` }
  const { key } = (await client.post<{ key: string }>('/keys', { name: 'o', role: 'admin', workspace: 'other' }, admin)).body
  const [here, there] = [createClient(url, admin), createClient(url, { authorization: `Bearer ${key}` })]
  const made = async (of: typeof here, id: string, isArchived: boolean, last: string, count = 1) => {
    await of.createRun({ id })
    if (isArchived) await of.post(`/runs/${id}/archive`)
    // At once: what has not all of its events yet may be trimmed already.
    await of.append(id, [
      ...Array.from({ length: count }, (_, n) => ({ type: 'custom.emitted', data: { name: `${n}` } })),
      { type: last, data: { name: 'last' } },
    ])
  }
  for (const of of [here, there]) {
    await made(of, 'archived', true, 'run.completed')
    await made(of, 'plain', false, 'run.completed')
    await made(of, 'archived-long', true, 'custom.emitted', 30)
    await made(of, 'short', false, 'custom.emitted', 10)
  }
  await made(here, 'long', false, 'custom.emitted', 30)
  await eventually('that of the other workspace is gone', async () => ((await there.get('/runs/archived')).status === 404 ? true : undefined))
  await eventually('the long one is cut', async () => ((await recordOf(here, 'long')).firstSeq === 28 ? true : undefined))
  // A round that began after all of it was there has gone through all policies.
  await made(there, 'next', true, 'run.completed')
  await eventually('another round', async () => ((await there.get('/runs/next')).status === 404 ? true : undefined))
  for (const of of [here, there]) {
    for (const id of ['plain', 'archived-long', 'short'])
      t.match(await recordOf(of, id), { firstSeq: 1, archivedAt: id.startsWith('archived') ? String : null }, id)
  }
  t.equal((await here.get('/runs/archived')).status, 200)
  const lines = (await here.get<{ data: { actor: string; action: string; target: object; detail: object }[] }>('/audit?actor=retention')).body.data
  t.match(lines, [{ action: 'run.trim', target: { kind: 'run', id: 'long' }, detail: { policy: 'p2', events: 27 } }])
  t.equal(lines.length, 1)
})

t.test('the bundle that was made before a trim is not replaced by one of what the trim has left', async (t) => {
  const database = await testDatabase(t)
  const { client, url, dataDir } = await service(t, database, [
    { action: 'trim', only: 'raw', export: true },
    { action: 'trim', keepEvents: 5, export: true },
    { action: 'delete', export: true },
  ])
  const { runId } = await client.createRun({})
  await client.append(runId, [...Array.from({ length: 20 }, (_, n) => ({ type: 'custom.emitted', data: { name: `${n}` } })), { type: 'run.completed' }])
  await eventually('the run is deleted', async () => ((await client.get(`/runs/${runId}`)).status === 404 ? true : undefined))
  const lines = await eventually('all lines are completed', async () => {
    const { data } = (await client.get<{ data: { outcome: string; detail: { export: string } }[] }>(`/audit?run=${runId}&actor=retention`)).body
    return data.length === 3 && data.every((line) => line.outcome === 'done') ? data : undefined
  })
  t.equal(new Set(lines.map((line) => line.detail.export)).size, 1)
  const bundle = await readFile(join(dataDir, 'blobs', lines[0]?.detail.export ?? ''), 'utf8')
  const back = await fetch(`${url}/runs/import?as=back`, { method: 'POST', body: bundle })
  t.match(await back.json(), { runId: 'back', imported: true, lastSeq: 22 })
  t.equal(bundle.split('\n').filter((line) => line.startsWith('{"kind":"raw_event"')).length, 21)
})

t.test('nothing goes before the audit log says so, whenever the service may be killed', async (t) => {
  const database = await testDatabase(t)
  await database.sql.unsafe(`
    create function refuse_untold() returns trigger language plpgsql as $$ begin
      if exists (select from runs r where r.key::text in (to_jsonb(old)->>'key', to_jsonb(old)->>'run_key')
        and not exists (select from audit_log a where a.target_id = r.id and a.actor = 'retention' and a.detail->>'unfinished' = 'true'))
      then raise exception 'nobody was told'; end if;
      return old;
    end $$;
    create trigger untold before delete on runs for each row execute function refuse_untold();
    create trigger untold before delete on run_events_raw for each row execute function refuse_untold()`)
  const { client } = await service(t, database, [
    { action: 'delete', kind: 'gone' },
    { action: 'trim', only: 'raw', kind: 'cut' },
  ])
  const ended = async (kind: string) => {
    const { runId } = await client.createRun({ kind })
    await client.append(runId, { type: 'run.completed' })
    return runId
  }
  const [gone, cut] = [await ended('gone'), await ended('cut')]
  await eventually('both have gone', async () => {
    const isGone = (await client.get(`/runs/${gone}`)).status === 404
    return isGone && (await client.get<{ data: unknown[] }>(`/runs/${cut}/raw`)).body.data.length === 0 ? true : undefined
  })
  for (const run of [gone, cut])
    await eventually('the line is completed', async () => {
      const [line] = (await client.get<{ data: { outcome: string; detail: object }[] }>(`/audit?run=${run}&actor=retention`)).body.data
      return line?.outcome === 'done' && !('unfinished' in line.detail) ? true : undefined
    })
})

t.test('policies that cannot be meant are refused, and say why', async (t) => {
  const policy = (fields: object) => JSON.stringify([{ name: 'p', action: 'delete', afterDays: 1, ...fields }])
  t.same(parsePolicies(undefined), [])
  t.match(parsePolicies(policy({ status: ['failed'] })), [{ name: 'p' }])
  for (const [text, message] of [
    ['{"name"', /^RETENTION_POLICIES: '\{"name"' is not JSON\. Allowed: /],
    ['{}', /array/i],
    [policy({ afterDays: undefined }), /afterDays/],
    [policy({ afterDays: -1 }), /afterDays/],
    [policy({ action: 'burn' }), /action/],
    [policy({ keep: 1 }), /keep/],
    [policy({ status: ['running'] }), /status can only be/],
    [policy({ only: 'raw' }), /go with the action trim/],
  ] as const)
    t.throws(() => parsePolicies(text), { message }, text)
})

t.test('lines of the audit log are kept as long as is set', async (t) => {
  const database = await testDatabase(t)
  const { client } = await service(t, database, [], { AUDIT_KEEP_DAYS: '30' })
  await database.sql`insert into audit_log (id, workspace_id, at, actor, action, target_kind, outcome)
    values ('01800000-0000-7000-8000-000000000001', '00000000-0000-7000-8000-000000000001', '2022-03-31', 'x', 'key.create', 'key', 'done')`
  await client.createRun({ id: 'new' })
  const gone = await eventually('the old line is gone', async () => {
    const { data } = (await client.get<{ data: { actor: string }[] }>('/audit')).body
    return data.length === 1 && data[0]?.actor === 'anonymous' ? true : undefined
  })
  t.ok(gone)
})
