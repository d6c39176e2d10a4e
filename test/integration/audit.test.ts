/** The audit log: a line for each command with who, what, and what came of it; none is lost, and no secret is in it. */
import t from 'tap'
import { createAudit } from '../../src/access/audit.js'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import { DEFAULT_WORKSPACE_ID } from '../../src/domain/ids.js'
import { auditOf } from '../../src/http/plugins/audit.js'
import { silent, testDatabase } from '../support/database.js'
import { createClient } from '../support/http.js'

interface Line {
  id: string
  at: string
  actor: string
  actorKeyId: string | null
  action: string
  target: { kind: string; id: string | null }
  requestId: string | null
  outcome: string
  detail: Record<string, unknown>
}

const ADMIN = 'an-admin-key-of-more-than-32-characters'
const database = await testDatabase(t)
const app = await buildApp({ config: loadConfig({ ADMIN_API_KEY: ADMIN }, { envFile: '/nonexistent' }), database, logger: silent })
t.teardown(() => app.close())
await app.ready()

async function call(method: 'GET' | 'POST' | 'DELETE', url: string, options: { body?: unknown; key?: string; headers?: Record<string, string> } = {}) {
  const answer = await app.inject({
    method,
    url,
    headers: { authorization: `Bearer ${options.key ?? ADMIN}`, ...options.headers },
    ...(options.body === undefined ? {} : { payload: options.body as object }),
  })
  return { status: answer.statusCode, headers: answer.headers, body: answer.body === '' ? undefined : answer.json() }
}
const lines = async (query = '') => (await call('GET', `/audit${query}`)).body.data as Line[]

t.test('a command has one line, complete when its answer is there', async (t) => {
  await call('POST', '/runs', { body: { id: 'a', name: 'first', metadata: { token: 'hidden' } }, headers: { 'x-request-id': 'req-1' } })
  t.match(await lines('?run=a'), [
    {
      actor: 'ADMIN_API_KEY',
      actorKeyId: null,
      action: 'run.create',
      target: { kind: 'run', id: 'a' },
      requestId: 'req-1',
      outcome: 'done',
      detail: { status: 201, name: 'first' },
    },
  ])
  await call('POST', '/runs/a/cancel', { body: { reason: 'enough' } })
  await call('POST', '/runs/a/suspend')
  await call('POST', '/runs/a/suspend', { body: { nonsense: 1 } })
  t.match(await lines('?run=a'), [
    { action: 'run.suspend', outcome: 'refused', detail: { status: 400, code: 'VALIDATION_ERROR' } },
    { action: 'run.suspend', outcome: 'refused', detail: { status: 409, code: 'INVALID_STATE_TRANSITION' } },
    { action: 'run.cancel', outcome: 'done', detail: { status: 200, reason: 'enough' } },
    { action: 'run.create' },
  ])
  t.equal((await lines('?run=a')).length, 4)
})

t.test('who was refused by the role is named, and no secret is told', async (t) => {
  const made = await call('POST', '/keys', { body: { name: 'reader', role: 'guest' } })
  t.equal((await call('POST', '/keys', { body: { name: 'x', role: 'admin' }, key: made.body.key })).status, 403)
  t.equal((await call('DELETE', `/keys/${made.body.id}`)).status, 204)
  t.match(await lines('?action=key.*'), [
    { action: 'key.revoke', outcome: 'done', target: { kind: 'key', id: made.body.id } },
    { action: 'key.create', outcome: 'refused', actor: 'reader', actorKeyId: made.body.id, detail: { code: 'FORBIDDEN' } },
    { action: 'key.create', outcome: 'done', target: { kind: 'key', id: made.body.id }, detail: { name: 'reader', role: 'guest' } },
  ])
  const all = JSON.stringify(await database.sql`select * from audit_log`)
  for (const secret of [made.body.key, ADMIN, 'hidden']) t.notOk(all.includes(secret))
})

t.test('what only reads, and what agents and workers tell, is no command', async (t) => {
  const before = (await lines()).length
  await call('POST', '/runs/validate', { body: {} })
  await call('GET', '/runs')
  await call('POST', '/runs', { body: { id: 'b' } })
  await call('POST', '/runs/b/events', { body: { type: 'run.started' } })
  t.equal((await lines()).length, before + 1)
})

t.test('each run of a batch has its line', async (t) => {
  await call('POST', '/runs', { body: { id: 'c', queue: 'q' } })
  await call('POST', '/runs/batch/cancel', { body: { runIds: ['c', 'not-there'] } })
  t.match(await lines('?run=c'), [{ action: 'run.cancel', outcome: 'done', detail: { batch: true } }, { action: 'run.create' }])
  t.match(await lines('?run=not-there'), [{ outcome: 'refused', detail: { code: 'RUN_NOT_FOUND' } }])
  t.match(await lines('?action=runs.cancel'), [{ outcome: 'done', detail: { runs: 2, runIds: ['c', 'not-there'] } }])
})

t.test('the list is filtered, and paged without a repeat', async (t) => {
  const all = await lines('?limit=200')
  const paged: Line[] = []
  for (let cursor = ''; ; ) {
    const { body } = await call('GET', `/audit?limit=2${cursor}`)
    paged.push(...body.data)
    if (body.nextCursor === undefined) break
    cursor = `&cursor=${body.nextCursor}`
  }
  t.same(
    paged.map(({ id }) => id),
    all.map(({ id }) => id),
  )
  const refused = await lines('?outcome=refused')
  t.ok(refused.length > 0 && refused.every((line) => line.outcome === 'refused'))
  t.same(await lines('?from=2100-01-01T00:00:00Z'), [])
  t.equal((await lines('?to=2100-01-01T00:00:00Z&limit=200')).length, all.length)
  t.ok((await lines('?actor=reader')).every((line) => line.actor === 'reader'))
  t.equal((await lines('?target=key/nobody')).length, 0)
  for (const [query, fits] of [
    ['action=run.cancel', (line) => line.action === 'run.cancel'],
    ['action=run.*', (line) => line.action.startsWith('run.')],
    ['target=run/a', (line) => line.target.kind === 'run' && line.target.id === 'a'],
    ['target=a', (line) => line.target.id === 'a'],
    ['run=a', (line) => line.target.kind === 'run' && line.target.id === 'a'],
    ['actor=ADMIN_API_KEY&action=run.suspend&outcome=refused', (line) => line.action === 'run.suspend'],
  ] as [string, (line: Line) => boolean][]) {
    const expected = all.filter(fits)
    t.ok(expected.length > 0 && expected.length < all.length, query)
    t.same(await lines(`?limit=200&${query}`), expected, query)
  }
  t.same(await lines('?action=run'), [], 'half a name is none')
  for (const { id, at } of all)
    t.ok(
      (await lines(`?limit=200&from=${at}&to=${at}`)).some((line) => line.id === id),
      'a line is within its own time',
    )
  for (const bad of ['cursor=x', 'from=yesterday', 'run=a&target=b', 'outcome=maybe']) t.equal((await call('GET', `/audit?${bad}`)).status, 400, bad)
  const member = (await call('POST', '/keys', { body: { name: 'm', role: 'member' } })).body.key
  t.equal((await call('GET', '/audit', { key: member })).status, 403)
  const elsewhere = (await call('POST', '/keys', { body: { name: 'e', role: 'admin', workspace: 'elsewhere' } })).body.key
  t.same((await call('GET', '/audit', { key: elsewhere })).body.data, [], 'another workspace sees nothing of it')
})

t.test('runs of another workspace are not there for any command', async (t) => {
  const key = (await call('POST', '/keys', { body: { name: 'f', role: 'member', workspace: 'foreign' } })).body.key
  await call('POST', '/runs', { body: { id: 'mine', queue: 'q', kind: 'mine' } })
  for (const command of ['cancel', 'suspend', 'resume', 'retry', 'clone', 'archive', 'unarchive'])
    t.equal((await call('POST', `/runs/mine/${command}`, { key })).status, 404, command)
  t.equal((await call('POST', '/runs/mine/retry', { key, body: { as: 'new' } })).status, 404)
  t.equal((await call('DELETE', '/runs/mine', { key })).status, 404)
  t.match((await call('POST', '/runs/batch/delete', { key, body: { runIds: ['mine'] } })).body, { refused: 1, results: [{ code: 'RUN_NOT_FOUND' }] })
  t.match((await call('POST', '/runs/batch/cancel', { key, body: { filter: { kind: 'mine' } } })).body, { results: [] })
  t.match((await call('GET', '/runs/mine')).body, { status: 'queued', archivedAt: null })

  // Nor for its workers: a queue is another one in another workspace.
  const claim = { queue: 'q', workerId: 'w' }
  const boss = (await call('POST', '/keys', { body: { name: 'b', role: 'admin', workspace: 'foreign' } })).body.key
  const pause = await app.inject({ method: 'PUT', url: '/queues/q', headers: { authorization: `Bearer ${boss}` }, payload: { paused: true } })
  t.match(pause.json(), { paused: true, depth: 0, running: 0 })
  t.equal((await call('POST', '/runs/claim', { key, body: claim })).status, 204)
  // Over a connection: one that is only injected is gone before its answer is written, and the run goes back.
  const claimed = await createClient(await app.listen({ port: 0, host: '127.0.0.1' }), { authorization: `Bearer ${ADMIN}` }).post('/runs/claim', claim)
  t.match(claimed.body, { runId: 'mine', lease: { workerId: 'w' } })
  for (const path of ['heartbeat', 'release']) t.equal((await call('POST', `/runs/mine/${path}`, { key, body: { workerId: 'w' } })).status, 404, path)
  const told = await call('POST', '/runs/mine/events', { key, body: { type: 'run.completed' }, headers: { 'x-worker-id': 'w' } })
  t.equal(told.status, 404)
  t.match((await call('GET', '/queues', { key })).body.data, [{ name: 'q', paused: true, running: 0 }])
  t.match((await call('GET', '/queues/q')).body, { paused: false, running: 1 })
  const guest = (await call('POST', '/keys', { body: { name: 'g', role: 'guest' } })).body.key
  for (const url of ['/runs/mine/cancel', '/runs/batch/cancel', '/runs/mine/archive', '/runs/claim', '/runs/mine/heartbeat', '/runs/mine/release'])
    t.equal((await call('POST', url, { key: guest })).status, 403, url)
})

t.test('a command that was begun and never ended has a line that says so', async (t) => {
  const audit = createAudit(database)
  await audit.begin({ workspaceId: DEFAULT_WORKSPACE_ID, actor: 'x', action: 'run.delete', targetKind: 'run', targetId: 'gone', detail: { reason: 'r' } })
  t.match(await lines('?run=gone'), [{ outcome: 'failed', detail: { unfinished: true, reason: 'r' } }])
})

t.test('a command is refused while its line cannot be written', async (t) => {
  await call('POST', '/runs', { body: { id: 'd', queue: 'q' } })
  await database.sql`alter table audit_log rename to audit_log_away`
  t.ok((await call('POST', '/runs/d/cancel')).status >= 500)
  await database.sql`alter table audit_log_away rename to audit_log`
  t.match((await call('GET', '/runs/d')).body, { status: 'queued' })
})

t.test('an action is named after its operation', async (t) => {
  const document = (await app.inject('/openapi.json')).json<{ paths: Record<string, Record<string, { operationId: string }>> }>()
  const operations = Object.values(document.paths).flatMap((methods) =>
    Object.entries(methods).map(([method, { operationId }]) => ({ method: method.toUpperCase(), operationId })),
  )
  const actions = operations.flatMap(({ method, operationId }) => auditOf({ method, config: { role: 'member' }, schema: { operationId } })?.action ?? [])
  for (const action of ['run.create', 'run.cancel', 'run.retry', 'run.delete', 'runs.archive', 'key.create', 'key.revoke'])
    t.ok(actions.includes(action), action)
  t.notOk(actions.some((action) => /claim|heartbeat|events/.test(action)))
})
