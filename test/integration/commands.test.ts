/** Commands over HTTP on a service of its own: what they do, whom they refuse, and what remains when runs are deleted. */
import t from 'tap'
import { type Answer, createClient, eventually, type Problem, type RunRecord } from '../support/http.js'
import { startService } from '../support/service.js'
import { openStream } from '../support/sse-client.js'

const service = await startService(t, { database: 'embedded', env: { CANCEL_GRACE_MS: '300' } })
const client = createClient(service.url)
let counter = 0
const newId = () => `run-${++counter}`
const command = <Body = RunRecord>(runId: string, name: string, body?: unknown): Promise<Answer<Body>> => client.post<Body>(`/runs/${runId}/${name}`, body)
const typesOf = async (runId: string) => (await client.events(runId)).map((event) => event.type)
const lastOf = async (runId: string) => (await client.events(runId)).at(-1)
const finished = async (type = 'run.completed') => {
  const { runId } = await client.createRun({ id: newId() })
  await client.append(runId, { type, data: type === 'run.failed' ? { error: { message: 'no' } } : {} })
  return runId
}

t.test('a queued run is cancelled at once, and once', async (t) => {
  const { runId } = await client.createRun({ id: newId(), queue: 'build' })
  t.match(await command(runId, 'cancel', { reason: 'not needed', by: 'ann' }), { status: 200, body: { runId, status: 'cancelled' } })
  t.match(await command(runId, 'cancel'), { status: 200, body: { status: 'cancelled' } }, 'said again')
  t.same(await typesOf(runId), ['run.created', 'run.queued', 'run.cancelled'])
  t.match(await lastOf(runId), { source: { kind: 'control-plane' }, data: { reason: 'not needed', by: 'ann' } })
})

t.test('whoever is at work is told first, and the run is cancelled all the same when the grace is over', async (t) => {
  const { runId } = await client.createRun({ id: newId() })
  await client.append(runId, { type: 'run.started' })
  const reader = await openStream(`${service.url}/runs/${runId}/stream`)
  t.match(await command(runId, 'cancel', { reason: 'enough' }), { status: 200, body: { status: 'running' } })
  t.match(await command(runId, 'cancel'), { status: 200 })
  await reader.until((frame) => frame.data?.includes('"run.cancel_requested"') === true)
  await reader.until((frame) => frame.event === 'end')
  t.same(await typesOf(runId), ['run.created', 'run.started', 'run.cancel_requested', 'run.cancelled'])
  t.match(await lastOf(runId), { data: { reason: 'enough', by: 'anonymous', forced: true } })
})

t.test('an agent that ends its run within the grace has the last word', async (t) => {
  const { runId } = await client.createRun({ id: newId() })
  await client.append(runId, { type: 'run.started' })
  await command(runId, 'cancel')
  await client.append(runId, { type: 'run.completed' })
  t.match((await client.get<RunRecord>(`/runs/${runId}`)).body, { status: 'completed' })
  t.match(await command<Problem>(runId, 'cancel'), {
    status: 409,
    body: { code: 'INVALID_STATE_TRANSITION', detail: /completed; cancel works from queued, starting/ },
  })
})

t.test('a run stands still while it is suspended, and goes on when it is resumed', async (t) => {
  const { runId } = await client.createRun({ id: newId() })
  t.match(await command<Problem>(runId, 'suspend'), { status: 409, body: { detail: /is queued; suspend works from running/ } })
  await client.append(runId, { type: 'run.started' })
  t.match(await command<Problem>(runId, 'resume'), { status: 409, body: { detail: /is running; resume works from suspended/ } })
  t.match(await command(runId, 'suspend', { reason: 'lunch' }), { status: 200, body: { status: 'suspended' } })
  t.match(await command(runId, 'suspend'), { status: 200 })
  t.match(await command(runId, 'resume'), { status: 200, body: { status: 'running' } })
  t.match(await command(runId, 'resume'), { status: 200 })
  t.same(await typesOf(runId), ['run.created', 'run.started', 'run.suspended', 'run.resumed'])
  t.same((await lastOf(runId))?.data, { by: 'anonymous' }, 'a run without a session time has none after it either')
})

t.test('what is left of a lease and of a session is kept while a run stands still, and runs on', async (t) => {
  // As a RunDescriptor tells it.
  const created = await client.post<RunRecord>('/runs', { mode: 'm', session: { modeName: 'm', participants: [{ id: 'a' }], ttlMs: 600_000 } })
  const { runId: plain } = created.body
  const { runId } = await client.createRun({ id: newId(), queue: newId(), session: { ttlMs: 600_000 } })
  const told = async (id: string, type: string) => {
    const event = await lastOf(id)
    if (event?.type !== type) throw new Error(`${id} has ${event?.type} last, not ${type}`)
    return event
  }
  type Held = RunRecord & { queue: string; lease: { workerId: string; leaseExpiresAt: string | null } | null }
  const record = async () => (await client.get<Held>(`/runs/${runId}`)).body
  await client.post('/runs/claim', { queue: (await record()).queue, workerId: 'w', leaseMs: 300_000 })
  for (const id of [plain, runId]) {
    await client.append(id, { type: 'run.started' })
    t.equal((await command(id, 'suspend')).status, 200)
    const { ts: suspendedAt, data: banked } = await told(id, 'run.suspended')
    const isHeld = id === runId
    t.match(banked, { ttlRemainingMs: Number, leaseRemainingMs: isHeld ? Number : undefined })
    t.ok(Number(banked.ttlRemainingMs) <= 600_000 && Number(banked.ttlRemainingMs) > 500_000)
    if (isHeld) {
      t.ok(Number(banked.leaseRemainingMs) <= 300_000 && Number(banked.leaseRemainingMs) > 200_000)
      t.match((await record()).lease, { workerId: 'w', leaseExpiresAt: null })
      t.match(await client.post(`/runs/${id}/heartbeat`, { workerId: 'w', leaseMs: 1000 }), {
        status: 200,
        body: { leaseExpiresAt: null, status: 'suspended' },
      })
    }
    // However long it stands still.
    await eventually('a moment has passed', () => (Date.now() > Date.parse(suspendedAt) + 20 ? true : undefined))
    t.equal((await command(id, 'resume')).status, 200)
    const { ts, data } = await told(id, 'run.resumed')
    t.equal(Date.parse(String(data.ttlExpiresAt)) - Date.parse(ts), banked.ttlRemainingMs)
    if (isHeld) {
      t.equal(Date.parse(String(data.leaseExpiresAt)) - Date.parse(ts), banked.leaseRemainingMs)
      t.equal((await record()).lease?.leaseExpiresAt, data.leaseExpiresAt)
    }
  }
})

t.test('a failed run is retried under its id, in its queue', async (t) => {
  const { runId } = await client.createRun({ id: newId(), queue: 'build', priority: 3 })
  t.match(await command<Problem>(runId, 'retry'), { status: 409, body: { detail: /is queued; retry works from failed, cancelled/ } })
  await client.append(runId, { type: 'run.failed', data: { error: { message: 'no' } } })
  t.match(await command(runId, 'retry', { delayMs: 3_600_000 }), {
    status: 200,
    body: { status: 'queued', attempt: 2, queue: 'build', priority: 3, error: null, endedAt: null },
  })
  t.same((await typesOf(runId)).slice(-2), ['run.retry_scheduled', 'run.queued'])
  const { availableAt } = (await client.get<RunRecord & { availableAt: string }>(`/runs/${runId}`)).body
  t.ok(Date.parse(availableAt) > Date.now() + 3_000_000)
  t.match(await command<Problem>(runId, 'retry', { id: 'x' }), { status: 400 })
})

t.test('a run that has ended is retried as a new one, linked both ways, and one only for one key', async (t) => {
  const old = await finished()
  t.match(await command<Problem>(old, 'retry'), { status: 409, body: { detail: /as a new run/ } })
  const { runId: queued } = await client.createRun({ id: newId() })
  t.match(await command<Problem>(queued, 'retry', { as: 'new' }), {
    status: 409,
    body: { code: 'INVALID_STATE_TRANSITION', detail: /is queued; retry as new works from completed, failed, cancelled/ },
  })
  for (const body of [{ as: 'other' }, { as: null }, { delayMs: -1 }, { delayMs: 31_536_000_001 }, { as: 'new', id: 'a/b' }, { priority: 1 }])
    t.match(await command<Problem>(old, 'retry', body), { status: 400, body: { code: 'VALIDATION_ERROR' } }, JSON.stringify(body))
  const [first, second] = await Promise.all(
    [1, 2].map(() => client.post<RunRecord>(`/runs/${old}/retry`, { as: 'new', reason: 'again' }, { 'idempotency-key': `retry-${old}` })),
  )
  t.same([first?.status, second?.status].sort(), [200, 201])
  const child = first?.body.runId
  t.equal(second?.body.runId, child)
  t.match(first?.body, { parentRunId: old, status: 'queued' })
  t.equal(first?.headers.get('location'), `/runs/${child}`)
  t.same(
    (await client.events(old)).filter((event) => event.type === 'run.linked').map((event) => event.data),
    [{ childRunId: child, relation: 'retry', reason: 'again', by: 'anonymous' }],
  )
  t.match((await client.get<RunRecord>(`/runs/${old}`)).body, { status: 'completed' })
})

t.test('a new run that is delayed is one only for one key, or one id', async (t) => {
  const { runId } = await client.createRun({ id: newId(), queue: 'later' })
  await command(runId, 'cancel')
  const again = (id?: string) =>
    client.post<RunRecord>(`/runs/${runId}/retry`, { as: 'new', delayMs: 3_600_000, ...(id && { id }) }, id ? {} : { 'idempotency-key': `later-${runId}` })
  const first = await again()
  t.equal(first.status, 201)
  t.match(await again(), { status: 200, body: { runId: first.body.runId } })
  const id = newId()
  t.same([(await again(id)).status, (await again(id)).status], [201, 200])
})

t.test('a clone is what the original was asked to be, but for what is said', async (t) => {
  const body = {
    name: 'n',
    kind: 'k',
    tags: ['a'],
    input: { deep: [1, null] },
    metadata: { m: 1 },
    session: { sessionId: 's1', ttlMs: 5000 },
    participants: [{ id: 'p', role: 'r' }],
  }
  const { runId } = await client.createRun({ id: newId(), ...body })
  const id = newId()
  const clone = await command(runId, 'clone', { id, tags: ['b'], priority: 7 })
  t.equal(clone.status, 201)
  t.match(clone.body, { runId: id, ...body, tags: ['b'], priority: 7, session: { ttlMs: 5000 }, parentRunId: null })
  t.notOk((clone.body as { session?: { sessionId?: string } }).session?.sessionId, 'a session of its own')
  t.match(await command(runId, 'clone', { id, tags: ['b'], priority: 7 }), { status: 200 }, 'the same again')
  t.match(await command<Problem>(runId, 'clone', { id }), { status: 409, body: { code: 'IDEMPOTENCY_CONFLICT' } })
  t.match(await command<Problem>(runId, 'clone', { mode: 'x' }), { status: 400 })
})

t.test('an archived run is left out of the lists until it is brought back', async (t) => {
  const runId = await finished()
  const listed = async (query = '') => (await client.get<{ data: RunRecord[] }>(`/runs?search=${runId}${query}`)).body.data.length
  t.match(await command(runId, 'archive'), { status: 200, body: { archivedAt: /Z$/ } })
  t.equal(await listed(), 0)
  t.equal(await listed('&includeArchived=true'), 1)
  t.match(await command(runId, 'unarchive'), { status: 200, body: { archivedAt: null } })
  t.equal(await listed(), 1)
})

t.test('only a run that has ended is deleted, and then all of it', async (t) => {
  const { runId } = await client.createRun({ id: newId() })
  await client.append(runId, { id: 'e1', type: 'run.started' })
  t.match(await client.send<Problem>('DELETE', `/runs/${runId}`), {
    status: 409,
    body: { detail: /is running; delete works from completed, failed, cancelled. Cancel it first/ },
  })
  await client.append(runId, { type: 'run.completed' })
  const reader = await openStream(`${service.url}/runs/${runId}/stream?follow=true`)
  await reader.until((frame) => frame.event === 'caught_up')
  t.equal((await client.send('DELETE', `/runs/${runId}`)).status, 204)
  await reader.until((frame) => frame.event === 'error' && frame.data?.includes('RUN_NOT_FOUND') === true)
  t.ok(await reader.closed(), 'an open stream ends in an orderly way')
  for (const path of ['', '/state', '/events', '/raw', '/stream']) t.equal((await client.get(`/runs/${runId}${path}`)).status, 404, path)
  t.equal((await client.append(runId, { type: 'run.started' })).status, 404)
  t.equal((await client.send('DELETE', `/runs/${runId}`)).status, 404)

  await client.createRun({ id: runId })
  t.match(
    await client.append(runId, { id: 'e1', type: 'run.started' }),
    { status: 200, body: { accepted: 1, duplicates: 0, headSeq: 2 } },
    'another run under the same id',
  )
  t.equal((await client.state(runId)).version, 2)
})

t.test('a session that has had its time fails its run, and stands still while it is suspended', async (t) => {
  // Long enough for a busy machine to suspend the one before it is over.
  const ttlMs = 3000
  const { runId } = await client.createRun({ id: newId(), session: { ttlMs } })
  const { runId: paused } = await client.createRun({ id: newId(), session: { ttlMs } })
  const { runId: waiting } = await client.createRun({ id: newId(), session: { ttlMs: 1 } })
  const { runId: odd } = await client.createRun({ id: newId(), session: { ttlMs: 'soon' } })
  await client.append(paused, { type: 'run.started' })
  t.equal((await command(paused, 'suspend')).status, 200)
  t.type((await lastOf(paused))?.data.ttlRemainingMs, 'number')
  await client.append(odd, { type: 'run.started' })
  await client.append(runId, { type: 'run.started' })
  await eventually('the session runs out', async () => ((await client.get<RunRecord>(`/runs/${runId}`)).body.status === 'failed' ? true : undefined))
  t.match(await lastOf(runId), { type: 'run.failed', data: { error: { code: 'SESSION_EXPIRED' } } })
  t.match((await client.get<RunRecord>(`/runs/${paused}`)).body, { status: 'suspended' })
  t.match((await client.get<RunRecord>(`/runs/${waiting}`)).body, { status: 'queued' }, 'its time has not begun')
  t.match((await client.get<RunRecord>(`/runs/${odd}`)).body, { status: 'running' })
  await command(paused, 'resume')
  await eventually('the other session runs out', async () => ((await client.get<RunRecord>(`/runs/${paused}`)).body.status === 'failed' ? true : undefined))
  await command(paused, 'retry')
  await client.append(paused, { type: 'run.started' })
  await eventually('and runs out as well', async () => ((await client.get<RunRecord>(`/runs/${paused}`)).body.status === 'failed' ? true : undefined))
  const [begun, over] = (await client.events(paused)).slice(-2)
  t.match(begun, { type: 'run.started', attempt: 2 })
  t.match(over, { type: 'run.failed', attempt: 2, data: { error: { code: 'SESSION_EXPIRED' } } })
  t.ok(Date.parse(over?.receivedAt ?? '') - Date.parse(begun?.receivedAt ?? '') >= ttlMs, 'another attempt has a time of its own')
})

t.test('an agent that suspends its run itself stops the clock as well', async (t) => {
  const { runId } = await client.createRun({ id: newId(), session: { ttlMs: 3000 } })
  await client.append(runId, { type: 'run.started' })
  await client.append(runId, { type: 'run.suspended' })
  const other = (await client.createRun({ id: newId(), session: { ttlMs: 3300 } })).runId
  await client.append(other, { type: 'run.started' })
  await eventually('a longer one is over', async () => ((await client.get<RunRecord>(`/runs/${other}`)).body.status === 'failed' ? true : undefined))
  t.match((await client.get<RunRecord>(`/runs/${runId}`)).body, { status: 'suspended' })
})

t.test('a run that its agent has suspended keeps its lease, until an operator suspends it as well', async (t) => {
  const { runId } = await client.createRun({ id: newId(), queue: newId() })
  type Held = RunRecord & { queue: string; lease: { leaseExpiresAt: string | null } }
  const record = async () => (await client.get<Held>(`/runs/${runId}`)).body
  await client.post('/runs/claim', { queue: (await record()).queue, workerId: 'w', leaseMs: 60_000 })
  await client.append(runId, { type: 'run.suspended' }, { 'x-worker-id': 'w' })
  t.match(await record(), { status: 'suspended', lease: { leaseExpiresAt: String } }, 'its worker is still there')
  t.equal((await client.send('POST', `/runs/${runId}/suspend`, { body: { reason: 'stop', by: 'ops' } })).status, 200)
  t.match(await lastOf(runId), { type: 'run.suspended', data: { reason: 'stop', by: 'ops', leaseRemainingMs: Number } })
  t.equal((await record()).lease.leaseExpiresAt, null)
  const { lastSeq } = await record()
  t.equal((await command(runId, 'suspend')).status, 200)
  t.equal((await record()).lastSeq, lastSeq, 'once')
  t.equal((await command(runId, 'resume')).status, 200)
  t.match(await record(), { status: 'running', lease: { leaseExpiresAt: String } })
})

t.test('a command whose body says nothing may have none, whatever its type', async (t) => {
  const { runId } = await client.createRun({ id: newId() })
  const headers = { 'content-type': 'application/json' }
  t.equal((await client.send('POST', `/runs/${runId}/cancel`, { body: '', headers })).status, 200)
  t.equal((await client.send('DELETE', `/runs/${runId}`, { body: '', headers })).status, 204)
})

interface BatchAnswer {
  done: number
  refused: number
  failed: number
  results: { runId: string; outcome: string; code?: string }[]
  nextCursor?: string
}

t.test('a batch by ids has a result for each, and one that is refused holds up no other', async (t) => {
  const ended = await finished()
  const { runId } = await client.createRun({ id: newId(), queue: 'q' })
  const answer = await client.post<BatchAnswer>('/runs/batch/cancel', { runIds: [ended, 'not-there', runId, runId], reason: 'tidy' })
  t.match(answer, { status: 200, body: { done: 1, refused: 2, failed: 0 } })
  t.same(
    answer.body.results.map(({ runId, outcome, code }) => ({ runId, outcome, code })),
    [
      { runId: ended, outcome: 'refused', code: 'INVALID_STATE_TRANSITION' },
      { runId: 'not-there', outcome: 'refused', code: 'RUN_NOT_FOUND' },
      { runId, outcome: 'done', code: undefined },
    ],
  )
  for (const body of [
    {},
    { runIds: [] },
    { filter: {} },
    { runIds: [runId], filter: { kind: 'x' } },
    { runIds: [runId], limit: 1 },
    { runIds: [runId], force: true },
  ])
    t.equal((await client.post('/runs/batch/delete', body)).status, 400, JSON.stringify(body))
})

t.test('a batch by a filter takes what the command works on, so many at a time', async (t) => {
  const kind = newId()
  const ids = await Promise.all(Array.from({ length: 25 }, async () => (await client.createRun({ id: newId(), kind })).runId))
  const [first] = ids
  await client.append(first ?? '', { type: 'run.completed' })
  let answer = await client.post<BatchAnswer>('/runs/batch/cancel', { filter: { kind }, limit: 20 })
  t.match(answer.body, { done: 20, refused: 0 })
  answer = await client.post<BatchAnswer>('/runs/batch/cancel', { filter: { kind }, limit: 20, cursor: answer.body.nextCursor })
  t.match(answer.body, { done: 4, refused: 0, nextCursor: undefined })
  t.match((await client.post<BatchAnswer>('/runs/batch/archive', { filter: { kind, status: ['completed'] } })).body, { done: 1 })
  t.match((await client.post<BatchAnswer>('/runs/batch/delete', { filter: { kind, includeArchived: true } })).body, { done: 25, refused: 0 })
  t.equal((await client.get<{ total: number }>(`/runs?kind=${kind}&includeArchived=true&count=true`)).body.total, 0)
})

t.test('a batch takes each filter of the list, and a run that no filter names stays', async (t) => {
  const parent = await finished()
  const queue = newId()
  const one = async (body: object) => (await client.createRun({ id: newId(), ...body })).runId
  const before = await one({ queue, tags: ['x', 'y'], name: 'some nightly job', parentRunId: parent })
  const made = Date.now()
  await eventually('another time', () => (Date.now() > made + 1 ? true : undefined))
  const after = await one({ queue, tags: ['x'], name: 'other', kind: queue })
  const { createdAt } = (await client.get<RunRecord>(`/runs/${after}`)).body
  for (const [filter, expected] of [
    [{ queue, tags: ['x', 'y'] }, [before]],
    [{ queue, search: 'NIGHTLY' }, [before]],
    [{ queue, parentRunId: parent }, [before]],
    [{ queue, createdBefore: createdAt }, [before]],
    [{ queue, createdAfter: new Date(Date.parse(createdAt) - 1).toISOString() }, [after]],
    [{ queue, kind: queue }, [after]],
    [{ queue, tags: ['x'] }, [before, after]],
    [{ queue, status: ['running'] }, []],
    [{ queue: `${queue}x` }, []],
  ] as [object, string[]][]) {
    const { status, body } = await client.post<BatchAnswer>('/runs/batch/archive', { filter: { ...filter, includeArchived: true } })
    t.equal(status, 200)
    t.same(
      body.results.map(({ runId }) => runId),
      expected,
      JSON.stringify(filter),
    )
  }
  t.match((await client.post<BatchAnswer>('/runs/batch/archive', { filter: { queue } })).body, { results: [] }, 'archived ones are none without a word')
  for (const filter of [{ name: 'x' }, { status: 'running' }, { status: [] }, { status: ['lost'] }, { createdAfter: 'soon' }, { sort: 'createdAt' }])
    t.equal((await client.post('/runs/batch/cancel', { filter })).status, 400, JSON.stringify(filter))
  // Such as a script sends whose variable is empty.
  for (const filter of [{ search: '' }, { tags: [] }, { kind: '' }, { includeArchived: true }])
    t.equal((await client.post('/runs/batch/archive', { filter })).status, 400, `${JSON.stringify(filter)} does not mean every run`)
})

t.test('texts that the database does not hold do no harm', async (t) => {
  const { runId } = await client.createRun({ id: newId(), queue: 'q' })
  t.match(await command(runId, 'cancel', { reason: 'a\0b\ud800', by: '\0' }), { status: 200, body: { status: 'cancelled' } })
  t.match(await lastOf(runId), { data: { reason: 'a\ufffdb\ufffd', by: '\ufffd' } })
  for (const text of ['\0', '\ud800'])
    for (const filter of [{ kind: text }, { tags: [text] }, { search: text }, { parentRunId: text }])
      t.equal((await client.post('/runs/batch/cancel', { filter })).status, 400)
  t.equal((await client.post(`/runs/${runId}/clone`, `{"input":${'['.repeat(100_000)}${']'.repeat(100_000)}}`)).status, 400)
  t.match(await client.post(`/runs/${runId}/clone`, { input: 'a\0b', metadata: { '\0': 1 } }), { status: 201, body: { input: 'a\ufffdb' } })
  t.equal((await client.post('/runs/batch/cancel', `{"filter":${'{"a":'.repeat(50_000)}1${'}'.repeat(50_000)}}`)).status, 400)
})
