/** Runs as the contract has them: create, validate, get, list, status and state. */
import t, { type Test } from 'tap'
import { type Answer, type CanonicalEvent, type Page, type Problem, type RunRecord, type StateAnswer, seqsUpTo } from '../support/http.js'
import { newId, target } from './target.js'

const { client } = await target(t)
const UUID_V7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
const RFC3339_UTC = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$/

function isProblem(t: Test, answer: Answer<unknown>, status: number, code: string): void {
  t.equal(answer.status, status, answer.text.slice(0, 300))
  t.match(answer.headers.get('content-type'), /^application\/problem\+json/)
  const problem: Problem = JSON.parse(answer.text)
  t.match(problem, { type: String, title: String, status, code, detail: String, requestId: String })
}

t.test('creating a run', async (t) => {
  await t.test('answers 201 with the run and where it is', async (t) => {
    const asked = { name: 'nightly', kind: 'workflow', queue: 'slow', priority: 5, input: { a: [1] }, metadata: { team: 'x' }, tags: ['one', 'two'] }
    const answer = await client.post<RunRecord>('/runs', asked)
    t.equal(answer.status, 201)
    const run = answer.body
    t.match(run.runId, UUID_V7, 'an id of ours is a UUIDv7')
    t.match(answer.headers.get('location'), new RegExp(`/runs/${run.runId}$`))
    t.match(run, { name: 'nightly', kind: 'workflow', status: 'queued', progress: null, attempt: 1, tags: ['one', 'two'], metadata: { team: 'x' } })
    t.match(run.createdAt, RFC3339_UTC)
    const got = await client.get<RunRecord>(`/runs/${run.runId}`)
    t.equal(got.status, 200)
    t.same(got.body, run, 'GET answers the same')
  })
  await t.test('makes run.created the first event, by the control plane', async (t) => {
    const run = await client.createRun({ name: 'first', tags: ['x'], input: { q: 1 } })
    const [first] = await client.events(run.runId)
    t.match(first, {
      seq: 1,
      type: 'run.created',
      subject: { kind: 'run', id: run.runId },
      source: { kind: 'control-plane' },
      data: { name: 'first', tags: ['x'], input: { q: 1 } },
    })
    t.equal(run.lastSeq, (await client.events(run.runId)).length)
  })
  await t.test('takes an id of the client, and the same request again gives the same run', async (t) => {
    const id = newId('mine')
    const body = { id, name: 'n', tags: ['a'] }
    const first = await client.post<RunRecord>('/runs', body)
    const again = await client.post<RunRecord>('/runs', body)
    t.equal(first.status, 201)
    t.equal(again.status, 200)
    t.equal(again.body.runId, id)
    t.equal((await client.events(id)).filter((event) => event.type === 'run.created').length, 1)
    isProblem(t, await client.post('/runs', { id, name: 'another' }), 409, 'IDEMPOTENCY_CONFLICT')
    t.equal((await client.post('/runs', body, { 'idempotency-key': newId('key') })).status, 200, 'the key that comes with it is not of the body')
    const list = await client.createRun({ input: [['a', 1]] })
    isProblem(t, await client.post('/runs', { id: list.runId, input: { a: 1 } }), 409, 'IDEMPOTENCY_CONFLICT')
  })
  await t.test('takes an Idempotency-Key, and the same request again gives the same run', async (t) => {
    const headers = { 'idempotency-key': newId('key') }
    const first = await client.post<RunRecord>('/runs', { name: 'n' }, headers)
    const again = await client.post<RunRecord>('/runs', { name: 'n' }, headers)
    t.same([first.status, again.status], [201, 200])
    t.equal(again.body.runId, first.body.runId)
    isProblem(t, await client.post('/runs', { name: 'm' }, headers), 409, 'IDEMPOTENCY_CONFLICT')
  })
  await t.test('makes one run of eight requests at once with one id', async (t) => {
    const id = newId('race')
    const answers = await Promise.all(Array.from({ length: 8 }, () => client.post<RunRecord>('/runs', { id, name: 'n' })))
    t.same(answers.map((answer) => answer.status).sort(), [200, 200, 200, 200, 200, 200, 200, 201])
    t.equal((await client.events(id)).filter((event) => event.type === 'run.created').length, 1)
  })
  await t.test('takes an empty body', async (t) => {
    t.equal((await client.post('/runs', {})).status, 201)
  })
  await t.test('says in words what an id may be', async (t) => {
    const answer = await client.post<Problem>('/runs', { id: 'a b' })
    isProblem(t, answer, 400, 'VALIDATION_ERROR')
    t.match(answer.body.errors, [{ path: 'body/id', message: /^must be 1 to 128 letters, digits/ }])
  })
  await t.test('refuses a field that it does not know, and names it', async (t) => {
    const answer = await client.post<Problem>('/runs', { name: 'n', colour: 'red' })
    isProblem(t, answer, 400, 'VALIDATION_ERROR')
    t.match(JSON.stringify(answer.body), 'colour')
  })
  await t.test('says once of each field what is wrong with it', async (t) => {
    const answer = await client.post<Problem>('/runs', { source: { kind: 'x', ref: 'y' }, tags: [''], cancelCallback: {} })
    isProblem(t, answer, 400, 'VALIDATION_ERROR')
    const missing = 'is required'
    const unknown = 'is not a field of this command'
    t.same(
      new Map(answer.body.errors?.map(({ path, message }) => [path, message])),
      new Map([
        ['body/source/url', missing],
        ['body/source/kind', unknown],
        ['body/source/ref', unknown],
        ['body/tags/0', 'Expected string length greater or equal to 1'],
        ['body/cancelCallback/url', missing],
      ]),
    )
    t.equal(answer.body.errors?.length, 5)
  })
  await t.test('refuses an id that is a part of a path', async (t) => {
    for (const id of ['compare', 'batch']) isProblem(t, await client.post('/runs', { id }), 400, 'VALIDATION_ERROR')
    t.equal((await client.post('/runs', { id: newId('compare') })).status, 201)
  })
  await t.test('refuses one that is larger than an event may be, in either form', async (t) => {
    const large = 'x'.repeat(262_144)
    for (const body of [
      { input: large },
      { metadata: { large } },
      { runtime: { kind: 'rust', large }, session: { modeName: 'm', participants: [{ id: 'a' }] } },
    ]) {
      const answer = await client.post<Problem>('/runs', body)
      isProblem(t, answer, 413, 'PAYLOAD_TOO_LARGE')
      t.match(answer.body.detail, /262144 bytes.*MAX_EVENT_BYTES/)
      t.match(await client.post('/runs/validate', body), { status: 200, body: { valid: false, errors: [{ path: 'body', message: /MAX_EVENT_BYTES/ }] } })
    }
    t.equal((await client.post('/runs', { input: 'x'.repeat(262_000) })).status, 201)
  })
  await t.test('takes the body of a macp RunDescriptor', async (t) => {
    const answer = await client.post<RunRecord>('/runs', {
      mode: 'live',
      runtime: { kind: 'rust', version: '1.0' },
      session: {
        modeName: 'macp.mode.decision.v1',
        modeVersion: '1.0.0',
        configurationVersion: 'config.default',
        ttlMs: 60_000,
        participants: [{ id: 'alice', role: 'lead' }, { id: 'bob' }],
      },
      execution: { idempotencyKey: newId('macp'), tags: ['macp'], requester: { actorId: 'me', actorType: 'user' } },
    })
    t.equal(answer.status, 201, answer.text)
    t.same(answer.body.tags, ['macp'])
    const state = await client.state(answer.body.runId)
    t.match(JSON.stringify(state.state.participants), 'alice', 'its participants are known')
    t.match(state.state.run, { modeName: 'macp.mode.decision.v1', modeVersion: '1.0.0', configurationVersion: 'config.default' })
    t.match(state.state.policy, { quorumStatus: 'pending' })
  })
  await t.test('takes the key of a RunDescriptor from its body or a header, and not two of them', async (t) => {
    const [key, other] = [newId('key'), newId('key')]
    const body = { mode: 'live', session: { modeName: 'm', participants: [{ id: 'a' }] }, execution: { idempotencyKey: key } }
    const created = await client.post<RunRecord>('/runs', body, { 'idempotency-key': key })
    t.equal(created.status, 201, created.text)
    t.match(await client.post('/runs', body), { status: 200, body: { runId: created.body.runId } })
    const refused = await client.post<Problem>('/runs', body, { 'idempotency-key': other })
    isProblem(t, refused, 400, 'VALIDATION_ERROR')
    t.match(refused.body, { detail: /execution\.idempotencyKey.*Idempotency-Key/, errors: [{ path: 'body/execution/idempotencyKey' }] })
    const checked = await client.post('/runs/validate', body, { 'idempotency-key': other })
    t.match(checked.body, { valid: false, errors: [{ path: 'body/execution/idempotencyKey' }] })
  })
  await t.test('refuses a RunDescriptor without a session that can be, and says what it lacks', async (t) => {
    const session = { modeName: 'macp.mode.decision.v1', participants: [{ id: 'alice' }] }
    t.equal((await client.post('/runs', { mode: 'live', session, execution: {} })).status, 201)
    for (const [body, path, message] of [
      [{ mode: 'live' }, 'body/session', 'is required'],
      [{ mode: 'live', session: {} }, 'body/session/modeName', 'is required'],
      [{ mode: 'live', session: { ...session, modeName: '' } }, 'body/session/modeName', 'Expected string length greater or equal to 1'],
      [{ mode: 'live', session: { modeName: 'm' } }, 'body/session/participants', 'is required'],
      [{ mode: 'live', session: { ...session, participants: [] } }, 'body/session/participants', 'Expected array length to be greater or equal to 1'],
      [{ mode: 'live', session: { ...session, participants: ['alice'] } }, 'body/session/participants/0', 'Expected object'],
      [{ mode: 'live', session: { ...session, ttlMs: 0 } }, 'body/session/ttlMs', 'Expected integer to be greater or equal to 1'],
      [{ runtime: {}, session }, 'body/runtime/kind', 'is required'],
    ] as const) {
      const answer = await client.post<Problem>('/runs', body)
      isProblem(t, answer, 400, 'VALIDATION_ERROR')
      t.match((await client.post('/runs/validate', body)).body, { valid: false, errors: [{ path, message }] }, JSON.stringify(body))
    }
  })
})

t.test('POST /runs/validate only checks', async (t) => {
  const id = newId('checked')
  const answer = await client.post('/runs/validate', { id, name: 'n' })
  t.equal(answer.status, 200, answer.text)
  isProblem(t, await client.get(`/runs/${id}`), 404, 'RUN_NOT_FOUND')
  const called = { source: { url: 'https://user:password@example.com/' }, cancelCallback: { url: 'ftp://example.com/' } }
  const refused = await client.post<{ valid: boolean; errors: { path: string }[] }>('/runs/validate', called)
  t.match(refused.body, { valid: false, errors: [{ path: 'body/source/url' }, { path: 'body/cancelCallback/url' }] })
  isProblem(t, await client.post('/runs', called), 400, 'VALIDATION_ERROR')
  const url = 'https://example.com/events'
  for (const [called, path] of [
    [{ source: null }, 'body/source'],
    [{ source: url }, 'body/source'],
    [{ source: {} }, 'body/source/url'],
    [{ source: { url: '' } }, 'body/source/url'],
    [{ source: { url: '/events' } }, 'body/source/url'],
    [{ source: { url, format: 'xml' } }, 'body/source/format'],
    [{ source: { url, headers: { a: 1 } } }, 'body/source/headers'],
    [{ source: { url, headers: { 'a b': '1' } } }, 'body/source/headers'],
    [{ source: { url, resume: 'cursor' } }, 'body/source/resume'],
    [{ source: { url, idleTimeoutMs: 0 } }, 'body/source/idleTimeoutMs'],
    [{ source: { url, idleTimeoutMs: '5000' } }, 'body/source/idleTimeoutMs'],
    [{ source: { url, cursor: '7' } }, 'body/source/cursor'],
    [{ cancelCallback: { url, method: 'PUT' } }, 'body/cancelCallback/method'],
    [{ priority: 1_000_001 }, 'body/priority'],
    [{ priority: 1.5 }, 'body/priority'],
    [{ maxAttempts: 0 }, 'body/maxAttempts'],
    [{ leaseMs: 999 }, 'body/leaseMs'],
    [{ concurrencyKey: '' }, 'body/concurrencyKey'],
    [{ queue: '' }, 'body/queue'],
    [{ availableAt: 'tomorrow' }, 'body/availableAt'],
    [{ availableAt: '2026-11-21' }, 'body/availableAt'],
    [{ availableAt: '9999-12-31T23:59:59-23:59' }, 'body/availableAt'],
    [{ availableAt: 1_795_262_400_000 }, 'body/availableAt'],
  ] as [object, string][]) {
    const { body } = await client.post<{ valid: boolean; errors: { path: string }[] }>('/runs/validate', called)
    t.equal(body.valid, false, JSON.stringify(called))
    t.ok(body.errors?.[0]?.path.startsWith(path), `${JSON.stringify(called)}: ${body.errors?.[0]?.path}`)
    isProblem(t, await client.post('/runs', called), 400, 'VALIDATION_ERROR')
  }
  await client.createRun({ id })
  t.match((await client.post('/runs/validate', { id, name: 'n' })).body, { valid: false, errors: [{ path: 'body', message: /There is a run/ }] })
  t.match((await client.post('/runs/validate', { id })).body, { valid: true }, 'a repeat is answered with the run')
  const keyed = { 'Idempotency-Key': newId('key') }
  await client.post('/runs', { name: 'n' }, keyed)
  t.match((await client.post('/runs/validate', { name: 'n' }, keyed)).body, { valid: true })
  t.match((await client.post('/runs/validate', { name: 'other' }, keyed)).body, { valid: false, errors: [{ path: 'body', message: /Idempotency-Key/ }] })
  const bad = await client.post<{ valid?: boolean; errors?: unknown[] }>('/runs/validate', { id, name: 7 })
  t.ok(bad.status === 400 || (bad.status === 200 && bad.body.valid === false), `${bad.status} ${bad.text}`)
})

t.test('a run that is not there is 404 everywhere', async (t) => {
  const id = newId('nobody')
  for (const path of ['', '/state', '/events', '/raw', '/stream']) isProblem(t, await client.get(`/runs/${id}${path}`), 404, 'RUN_NOT_FOUND')
  isProblem(t, await client.append(id, { type: 'run.started' }), 404, 'RUN_NOT_FOUND')
})

t.test('listing runs', async (t) => {
  const tag = newId('list')
  const ids: string[] = []
  for (let index = 0; index < 7; index++)
    ids.push(
      (
        await client.createRun({
          name: `${tag} ${index % 2 ? 'odd' : 'even'}`,
          kind: index < 3 ? 'job' : 'workflow',
          tags: [tag],
          queue: index < 2 ? tag : 'default',
          ...(index === 6 ? { parentRunId: ids[0] } : {}),
        })
      ).runId,
    )
  await client.append(ids[4] ?? '', { type: 'run.completed' })
  const list = async (query: string) => {
    const answer = await client.get<Page<RunRecord>>(`/runs?tags=${tag}&${query}`)
    if (answer.status !== 200) throw new Error(answer.text)
    return answer.body
  }
  const pick = (...indexes: number[]) => indexes.map((index) => ids[index])
  const sorted = (page: Page<RunRecord>) => page.data.map((run) => ids.indexOf(run.runId)).sort((a, b) => a - b)

  await t.test('goes through pages by cursor and meets each run once', async (t) => {
    const seen: string[] = []
    let cursor: string | null | undefined
    do {
      const page: Page<RunRecord> = await list(`limit=3&sort=createdAt&order=asc${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ''}`)
      seen.push(...page.data.map((run) => run.runId))
      cursor = page.nextCursor
    } while (cursor)
    t.same(seen, ids)
  })
  await t.test('keeps its place while runs are added', async (t) => {
    const first = await list('limit=4&sort=createdAt&order=desc')
    const late = (await client.createRun({ tags: [tag], name: 'late' })).runId
    const rest = await list(`limit=10&sort=createdAt&order=desc&cursor=${encodeURIComponent(first.nextCursor ?? '')}`)
    t.same(
      [...first.data, ...rest.data].map((run) => run.runId),
      [...ids].reverse(),
    )
    await client.append(late, { type: 'run.cancelled' })
  })
  await t.test('filters by status, kind, queue, parent and text', async (t) => {
    t.same(
      (await list('status=completed')).data.map((run) => run.runId),
      pick(4),
    )
    t.same(sorted(await list('kind=job')), [0, 1, 2])
    t.same(sorted(await list(`queue=${tag}`)), [0, 1])
    t.same(sorted(await list(`parentRunId=${ids[0]}`)), [6])
    t.same(sorted(await list('search=odd')), [1, 3, 5])
    t.same(sorted(await list('search=%25')), [], 'a percent sign is text, no wildcard')
  })
  await t.test('filters by the time of creation', async (t) => {
    const third = (await client.get<RunRecord>(`/runs/${ids[3]}`)).body.createdAt
    const after = sorted(await list(`createdAfter=${encodeURIComponent(third)}&kind=workflow`))
    const before = sorted(await list(`createdBefore=${encodeURIComponent(third)}`))
    t.ok(after.includes(4) && !after.includes(2))
    t.ok(before.includes(2) && !before.includes(4))
  })
  await t.test('sorts by the last update', async (t) => {
    await client.append(ids[1] ?? '', { type: 'progress.reported', data: { percentage: 10 } })
    t.equal((await list('sort=updatedAt&order=desc&limit=1')).data[0]?.runId, ids[1])
  })
  await t.test('counts only when asked', async (t) => {
    t.equal((await list('limit=1&count=true')).total, 8)
    t.equal('total' in (await list('limit=1')), false)
  })
  await t.test('refuses a limit out of bounds and a cursor that is none', async (t) => {
    isProblem(t, await client.get('/runs?limit=0'), 400, 'VALIDATION_ERROR')
    isProblem(t, await client.get('/runs?limit=201'), 400, 'VALIDATION_ERROR')
    isProblem(t, await client.get('/runs?cursor=nonsense'), 400, 'CURSOR_INVALID')
    const forged = ['createdAt', 'desc', '2026-99-99 00:00:00+00', '00000000-0000-7000-8000-000000000001']
    isProblem(t, await client.get(`/runs?cursor=${Buffer.from(JSON.stringify(forged)).toString('base64url')}`), 400, 'CURSOR_INVALID')
    isProblem(t, await client.get('/runs?createdAfter=0000-01-01T00:00:00Z'), 400, 'VALIDATION_ERROR')
    t.equal((await client.get('/runs?limit=1&createdAfter=2026-01-01T00:00:00%2B23:00')).status, 200)
  })
})

t.test('the status is folded from the events', async (t) => {
  const statusAfter = async (...events: Record<string, unknown>[]) => {
    const { runId } = await client.createRun()
    const statuses: string[] = []
    for (const event of events) {
      await client.append(runId, event)
      statuses.push((await client.get<RunRecord>(`/runs/${runId}`)).body.status)
    }
    return statuses
  }
  t.same(await statusAfter({ type: 'run.started' }, { type: 'run.suspended' }, { type: 'run.resumed' }, { type: 'run.completed' }), [
    'running',
    'suspended',
    'running',
    'completed',
  ])
  t.same(
    await statusAfter({ type: 'step.started', subject: { kind: 'step', id: 'a' }, data: { name: 'a' } }),
    ['running'],
    "an agent's first event implies the start",
  )
  t.same(await statusAfter({ type: 'run.failed', data: { error: { message: 'no' } } }), ['failed'], 'a run may fail from the queue')
  t.same(
    await statusAfter({ type: 'run.completed' }, { type: 'run.failed' }, { type: 'run.started' }),
    ['completed', 'completed', 'completed'],
    'the end is the end',
  )

  await t.test('and what comes after the end is kept, marked late', async (t) => {
    const { runId } = await client.createRun()
    await client.append(runId, { type: 'run.cancelled' })
    await client.append(runId, { type: 'run.completed', data: { output: 1 } })
    const events = await client.events(runId)
    t.match(events.at(-1), { type: 'run.completed', late: true })
    t.equal(events.at(-2)?.late, undefined)
    t.equal((await client.get<RunRecord>(`/runs/${runId}`)).body.status, 'cancelled')
    t.equal((await client.state(runId)).state.run?.status, 'cancelled')
  })
  await t.test('and the error of a failure is in the record', async (t) => {
    const { runId } = await client.createRun()
    await client.append(runId, { type: 'run.failed', data: { error: { code: 'E1', message: 'it broke' } } })
    t.match(JSON.stringify((await client.get<RunRecord>(`/runs/${runId}`)).body.error), 'it broke')
  })
})

t.test('the progress of a run goes from 0 to 100', async (t) => {
  const { runId } = await client.createRun()
  await client.append(runId, { type: 'progress.reported', data: { percentage: 40 } })
  t.equal((await client.get<RunRecord>(`/runs/${runId}`)).body.progress, 40)
  const counted = await client.createRun()
  await client.append(counted.runId, { type: 'progress.reported', data: { current: 3, total: 4 } })
  t.equal((await client.get<RunRecord>(`/runs/${counted.runId}`)).body.progress, 75)
  const stepped = await client.createRun()
  for (const id of ['a', 'b']) await client.append(stepped.runId, { type: 'step.started', subject: { kind: 'step', id }, data: { name: id } })
  await client.append(stepped.runId, { type: 'step.completed', subject: { kind: 'step', id: 'a' } })
  t.equal((await client.get<RunRecord>(`/runs/${stepped.runId}`)).body.progress, 50, 'derived from the steps where it is not reported')
})

t.test('the state of a run', async (t) => {
  const { runId } = await client.createRun({ name: 'stateful' })
  await client.append(runId, [
    { type: 'run.started' },
    { type: 'step.started', subject: { kind: 'step', id: 'a' }, data: { name: 'compile', kind: 'command' } },
    { type: 'step.completed', subject: { kind: 'step', id: 'a' }, data: { output: 'ok' } },
    { type: 'llm.call.completed', subject: { kind: 'llm_call', id: '1' }, data: { model: 'm', inputTokens: 10, outputTokens: 5, costUsd: 0.25 } },
    { type: 'signal.emitted', subject: { kind: 'signal', id: 's' }, data: { name: 'alarm' } },
  ])
  const answer = await client.get<StateAnswer>(`/runs/${runId}/state`)

  await t.test('has every section of the contract, and folds what was acknowledged before', async (t) => {
    const head = (await client.events(runId)).length
    t.match(answer.body, { runId, version: head, schemaVersion: Number })
    const sections = [
      'run',
      'participants',
      'graph',
      'decision',
      'signals',
      'progress',
      'timeline',
      'trace',
      'messages',
      'policy',
      'llm',
      'steps',
      'gates',
      'tools',
      'artifacts',
      'inputs',
      'errors',
    ]
    t.same(
      sections.filter((section) => !(section in answer.body.state)),
      [],
    )
    t.match(JSON.stringify(answer.body.state.steps), 'compile')
  })
  await t.test('answers 304 to its own ETag until something is appended', async (t) => {
    const etag = answer.headers.get('etag') ?? ''
    t.equal(etag, `"${answer.body.version}"`)
    const same = await client.get(`/runs/${runId}/state`, { 'if-none-match': etag })
    t.equal(same.status, 304)
    t.equal(same.text, '')
    t.equal((await client.get(`/runs/${runId}/state`, { 'if-none-match': `W/${etag}, "x"` })).status, 304, 'weakly, and in a list')
    await client.append(runId, { type: 'custom.emitted', data: { name: 'more' } })
    t.equal((await client.get(`/runs/${runId}/state`, { 'if-none-match': etag })).status, 200)
  })
  await t.test('can be had as it was at each seq', async (t) => {
    const head = (await client.state(runId)).version
    for (const seq of seqsUpTo(head)) t.equal((await client.state(runId, `?seq=${seq}`)).version, seq)
    t.notMatch(JSON.stringify((await client.state(runId, '?seq=1')).state.steps), 'compile')
    t.same((await client.state(runId, `?seq=${answer.body.version}`)).state, answer.body.state)
  })
  await t.test('is never behind an acknowledgement', async (t) => {
    for (let round = 0; round < 20; round++) {
      const receipt = (await client.append(runId, { type: 'custom.emitted', data: { name: 'x' } })).body
      t.equal((await client.state(runId)).version, receipt.headSeq)
    }
  })
  await t.test('is the same after a rebuild', async (t) => {
    const before = await client.state(runId)
    const rebuilt = await client.post(`/runs/${runId}/projection/rebuild`)
    t.ok(rebuilt.status === 200 || rebuilt.status === 202, `${rebuilt.status} ${rebuilt.text}`)
    t.same(await client.state(runId), before)
  })
})

t.test('the pages of events', async (t) => {
  const { runId } = await client.createRun()
  await client.append(
    runId,
    Array.from({ length: 25 }, (_, index) => ({
      type: 'step.output',
      subject: { kind: 'step', id: index % 2 ? 'b' : 'a' },
      ts: `2026-01-01T00:00:${String(index).padStart(2, '0')}Z`,
      data: { text: `${index}` },
    })),
  )
  await client.append(runId, { type: 'signal.emitted', subject: { kind: 'signal', id: 's' }, ts: '2026-06-01T00:00:00Z', data: { name: 'x' } })
  const head = (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
  const page = async (query: string) => {
    const answer = await client.get<Page<CanonicalEvent>>(`/runs/${runId}/events?${query}`)
    if (answer.status !== 200) throw new Error(answer.text)
    return answer.body
  }

  await t.test('follow each other without a hole, and afterSeq=0 is the start', async (t) => {
    const first = await page('afterSeq=0&limit=10')
    t.same(
      first.data.map((event) => event.seq),
      seqsUpTo(10),
    )
    t.equal(first.nextAfterSeq, 10)
    t.equal(first.headSeq, head)
    t.same(
      (await client.events(runId, '', 7)).map((event) => event.seq),
      seqsUpTo(head),
    )
    const last = await page(`afterSeq=${head}`)
    t.same(last.data, [])
  })
  await t.test('have the envelope of the vocabulary', async (t) => {
    const event = (await page('afterSeq=0&limit=200&type=step.output')).data[3]
    t.match(event, {
      runId,
      seq: Number,
      ts: '2026-01-01T00:00:03.000Z',
      receivedAt: /Z$/,
      type: 'step.output',
      schemaVersion: 1,
      attempt: 1,
      subject: { kind: 'step', id: 'b' },
      source: { kind: 'agent', format: 'native', rawType: 'step.output', rawSeq: Number },
      data: { text: '3' },
    })
  })
  await t.test('filter by type, subject and time', async (t) => {
    t.equal((await page('type=signal.emitted')).data.length, 1)
    t.equal((await page('subject=step/a&limit=200')).data.length, 13)
    t.same(
      (await page('afterTs=2026-05-01T00:00:00Z&beforeTs=2026-06-02T00:00:00Z')).data.map((event) => event.type),
      ['signal.emitted'],
    )
    t.equal((await page('beforeTs=2026-01-01T00:00:05Z&type=step.output&limit=200')).data.length, 5)
  })
  await t.test('move on past what was filtered out', async (t) => {
    const all: number[] = []
    let afterSeq: number | null | undefined = 0
    for (let pages = 0; typeof afterSeq === 'number' && pages < 50; pages++) {
      const next: Page<CanonicalEvent> = await page(`type=signal.emitted&limit=1&afterSeq=${afterSeq}`)
      all.push(...next.data.map((event) => event.seq))
      if (next.data.length === 0 || next.nextAfterSeq === afterSeq) break
      afterSeq = next.nextAfterSeq
    }
    t.same(all, [head])
  })
  await t.test('refuse what is no cursor', async (t) => {
    for (const afterSeq of ['-1', 'x', '1.5']) {
      const answer = await client.get<Problem>(`/runs/${runId}/events?afterSeq=${afterSeq}`)
      t.equal(answer.status, 400)
      t.match(answer.body.code, /^(CURSOR_INVALID|VALIDATION_ERROR)$/)
    }
  })
  await t.test('of raw events have their own numbers without holes', async (t) => {
    const first = (await client.get<Page<{ rawSeq: number }>>(`/runs/${runId}/raw?afterRawSeq=0&limit=20`)).body
    t.same(
      first.data.map((raw) => raw.rawSeq),
      seqsUpTo(20),
    )
    const rest = (await client.get<Page<{ rawSeq: number }>>(`/runs/${runId}/raw?afterRawSeq=20&limit=200`)).body
    const record = (await client.get<RunRecord>(`/runs/${runId}`)).body
    t.equal(rest.data.at(-1)?.rawSeq, record.lastRawSeq)
  })
  await t.test('of all runs have each event of each run', async (t) => {
    const tag = newId('across')
    const runs = await Promise.all([1, 2, 3].map(() => client.createRun({ name: tag })))
    for (const run of runs) await client.append(run.runId, { type: `custom.${tag}`, data: {} })
    const answer = await client.get<Page<CanonicalEvent>>(`/events?type=custom.${tag}&limit=200`)
    t.equal(answer.status, 200, answer.text)
    t.same(answer.body.data.map((event) => event.runId).sort(), runs.map((run) => run.runId).sort())
  })
})
