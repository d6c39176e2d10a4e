/** Who may do what: keys, roles, workspaces, and the open mode. */
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { FastifyInstance, InjectOptions } from 'fastify'
import t from 'tap'
import { createExpiringCache } from '../../src/access/expiring-cache.js'
import { createKeys } from '../../src/access/keys.js'
import { assertExposable, isLoopbackHost, isLoopbackOrigin } from '../../src/access/loopback.js'
import { loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { baseApp } from '../support/base-app.js'
import { listening } from '../support/bundles.js'
import { testDatabase } from '../support/database.js'
import { openStream } from '../support/sse-client.js'

const bearer = (key: string) => ({ authorization: `Bearer ${key}` })

const database = await testDatabase(t)

/** The one database of this file, as it is before the first key. */
async function withoutKeys(): Promise<Database> {
  await database.sql`truncate api_keys`
  return database
}

async function call(app: FastifyInstance, options: InjectOptions) {
  const response = await app.inject({ ...options, headers: { host: 'localhost:3000', ...options.headers } })
  return { status: response.statusCode, headers: response.headers, body: response.body === '' ? undefined : response.json() }
}

t.test('without a key, a caller on this machine is admin of the default workspace', async (t) => {
  const { app } = await baseApp(t, await withoutKeys())
  for (const host of ['localhost', 'localhost:3000', 'app.localhost:80', '127.0.0.1:3000', '127.8.9.1', '[::1]:3000']) {
    t.match(await call(app, { url: '/admin', headers: { host } }), { status: 200, body: { role: 'admin', keyName: 'anonymous' } }, host)
  }
})

t.test('without a key, a page of the web does not reach the service', async (t) => {
  const { app } = await baseApp(t, await withoutKeys(), { env: { CORS_ORIGINS: 'https://ours.example' } })
  const refused = { status: 403, body: { code: 'FORBIDDEN', detail: /keys create|API key/ } }
  for (const host of [
    'evil.example',
    '192.168.1.4:3000',
    '0.0.0.0:3000',
    'localhost.evil.example',
    '127.0.0.1.evil.example',
    '[::2]',
    'localhost:3000@evil.example',
  ]) {
    t.match(await call(app, { url: '/guest', headers: { host } }), refused, `Host: ${host}`)
  }
  for (const origin of ['https://evil.example', 'null', 'http://localhost.evil.example', 'file://']) {
    t.match(await call(app, { url: '/guest', method: 'GET', headers: { origin } }), refused, `Origin: ${origin}`)
  }
  for (const origin of ['http://localhost:5173', 'http://127.0.0.1:3000', 'https://ours.example']) {
    t.match(await call(app, { url: '/guest', headers: { origin } }), { status: 200 }, `Origin: ${origin}`)
  }
  t.match(await call(app, { url: '/guest', headers: { 'x-forwarded-for': '203.0.113.9' } }), refused, 'nor does a proxy let others in')
  t.match(await call(app, { url: '/guest', headers: { forwarded: 'for=203.0.113.9' } }), refused)
  t.match(await call(app, { url: '/guest', headers: { 'x-forwarded-host': 'evil.example' } }), refused)
  t.match(await call(app, { url: '/healthz', headers: { host: 'evil.example' } }), refused, 'not even to public routes')
})

t.test('without a key, the service does not start on an address that others reach', async (t) => {
  for (const HOST of ['0.0.0.0', '::', '192.168.1.4', 'example.com']) {
    t.throws(() => assertExposable({ HOST }, false), { name: 'ConfigError', message: /^HOST: '.*keys create/ }, HOST)
    assertExposable({ HOST }, true)
  }
  for (const HOST of ['127.0.0.1', '::1', 'localhost', '127.0.0.2']) assertExposable({ HOST }, false)
})

t.test('without a key, a service that listens to others answers nobody', async (t) => {
  const { app } = await baseApp(t, await withoutKeys(), { env: { HOST: '0.0.0.0' } })
  t.match(await call(app, { url: '/guest' }), { status: 403, body: { code: 'FORBIDDEN' } })
})

t.test('names of the loopback are told from names that only look like it', async (t) => {
  for (const host of [undefined, '', ':3000', '[]']) t.notOk(isLoopbackHost(host))
  t.notOk(isLoopbackHost('::1'), 'an IPv6 address in a Host has brackets')
  t.ok(isLoopbackHost('LOCALHOST.'))
  t.notOk(isLoopbackOrigin('not an origin'))
  t.notOk(isLoopbackOrigin('ftp://localhost'))
})

t.test('once there is a key, every request needs one', async (t) => {
  const { app, keys } = await baseApp(t, await withoutKeys())
  t.match(await call(app, { url: '/guest' }), { status: 200 })
  const made = await call(app, { url: '/keys', method: 'POST', payload: { name: 'root', role: 'admin' } })
  t.match(made, {
    status: 201,
    body: { name: 'root', role: 'admin', workspace: 'default', key: /^rp_[A-Za-z0-9_-]{43}$/ },
    headers: { 'cache-control': 'no-store' },
  })

  const missing = await call(app, { url: '/guest' })
  t.match(missing, { status: 401, body: { code: 'UNAUTHENTICATED' } }, 'at once, on the loopback too')
  t.equal(missing.headers['www-authenticate'], 'Bearer realm="runplane"')
  for (const authorization of [
    `Bearer ${made.body.key}x`,
    'Bearer',
    'Bearer rp_',
    `Basic ${made.body.key}`,
    `Bearer ${'x'.repeat(5000)}`,
    `Bearer ${made.body.key} ${made.body.key}`,
  ]) {
    t.match(await call(app, { url: '/guest', headers: { authorization } }), { status: 401, headers: { 'www-authenticate': /invalid_token/ } })
  }
  t.match(await call(app, { url: '/admin', headers: { authorization: `bearer  ${made.body.key}` } }), {
    status: 200,
    body: { keyName: 'root', keyId: made.body.id },
  })
  t.match(
    await call(app, { url: '/admin', headers: { ...bearer(made.body.key), host: 'runplane.example', origin: 'https://any.example' } }),
    { status: 200 },
    'from anywhere',
  )
  t.match(await call(app, { url: '/healthz' }), { status: 200 }, 'health needs none')
  t.match(await call(app, { url: '/openapi.json' }), { status: 200 })
  t.match(await call(app, { url: '/nowhere' }), { status: 404 })
  t.equal(await keys.exist(), true)
})

t.test('a role may do what the ones before it may, and no more', async (t) => {
  const { app, keys } = await baseApp(t, await withoutKeys())
  const made = []
  for (const role of ['admin', 'member', 'guest'] as const) made.push(await keys.create({ name: role, role }))
  for (const { key, role } of made) {
    for (const needed of ['guest', 'member', 'admin'] as const) {
      const allowed = ['guest', 'member', 'admin'].indexOf(role) >= ['guest', 'member', 'admin'].indexOf(needed)
      const answer = await call(app, { url: `/${needed}`, headers: bearer(key) })
      t.match(
        answer,
        allowed
          ? { status: 200 }
          : { status: 403, body: { code: 'FORBIDDEN', detail: `This needs a key with the role ${needed}; '${role}' has the role ${role}.` } },
      )
    }
  }
})

t.test('a key is stored as its hash only', async (t) => {
  await withoutKeys()
  const { key } = await createKeys(database).create({ name: 'root', role: 'admin' })
  const rows = await database.sql`select * from api_keys`
  t.equal(rows.length, 1)
  t.notMatch(JSON.stringify(rows), key.slice(3, 20))
  t.equal(rows[0]?.hash.length, 32)
})

t.test('keys are listed without the key, and a revoked one is refused at once', async (t) => {
  const { app, keys } = await baseApp(t, await withoutKeys())
  const root = await keys.create({ name: 'root', role: 'admin' })
  const other = await keys.create({ name: 'ci', role: 'member' })
  t.match(await call(app, { url: '/member', headers: bearer(other.key) }), { status: 200 })
  const listed = await call(app, { url: '/keys', headers: bearer(root.key) })
  t.match(listed.body, {
    data: [
      { id: root.id, name: 'root' },
      { id: other.id, name: 'ci', role: 'member', workspace: 'default' },
    ],
  })
  t.notMatch(JSON.stringify(listed.body), /rp_|hash/)

  t.match(await call(app, { url: `/keys/${other.id}`, method: 'DELETE', headers: bearer(root.key) }), { status: 204, body: undefined })
  t.match(await call(app, { url: '/member', headers: bearer(other.key) }), { status: 401 })
  t.match(await call(app, { url: `/keys/${other.id}`, method: 'DELETE', headers: bearer(root.key) }), { status: 404, body: { code: 'NOT_FOUND' } })
  t.match(await call(app, { url: `/keys/${randomUUID()}`, method: 'DELETE', headers: bearer(root.key) }), { status: 404 })
  t.match(await call(app, { url: '/keys/1', method: 'DELETE', headers: bearer(root.key) }), {
    status: 400,
    body: { code: 'VALIDATION_ERROR', errors: [{ path: 'params/id' }] },
  })
})

t.test('the last admin key stays, and the first key is one: a service with keys never opens again', async (t) => {
  const { app, keys } = await baseApp(t, await withoutKeys())
  t.match(await call(app, { url: '/keys', method: 'POST', payload: { name: 'x', role: 'guest' } }), {
    status: 409,
    body: { code: 'INVALID_STATE_TRANSITION', detail: /first key must/ },
  })
  const admins = await Promise.all([keys.create({ name: 'a', role: 'admin' }), keys.create({ name: 'b', role: 'admin' })])
  const results = await Promise.allSettled(admins.map(({ id }) => keys.revoke(id)))
  t.same(results.map((result) => result.status).sort(), ['fulfilled', 'rejected'], 'also when both are revoked at the same time')
  t.match(
    results.find((result) => result.status === 'rejected'),
    { reason: { code: 'INVALID_STATE_TRANSITION', message: /last admin key/ } },
  )
  t.equal(await keys.exist(), true)
})

t.test('the default workspace keeps an admin key, whoever else has one', async (t) => {
  const { app, keys } = await baseApp(t, await withoutKeys())
  t.match(
    await call(app, { url: '/keys', method: 'POST', payload: { name: 'x', role: 'admin', workspace: 'team-c' } }),
    { status: 409, body: { code: 'INVALID_STATE_TRANSITION', detail: /first key must/ } },
    'one of another workspace would lock out the default one',
  )
  const root = await keys.create({ name: 'root', role: 'admin' })
  const theirs = await keys.create({ name: 'theirs', role: 'admin', workspace: 'team-c' })
  const refused = await call(app, { url: `/keys/${root.id}`, method: 'DELETE', headers: bearer(root.key) })
  t.match(refused, { status: 409, body: { code: 'INVALID_STATE_TRANSITION', detail: /last admin key of the default workspace.*POST \/keys/ } })
  t.match(await call(app, { url: '/admin', headers: bearer(root.key) }), { status: 200 }, 'it stays')
  const heir = await keys.create({ name: 'heir', role: 'admin' })
  t.match(await call(app, { url: `/keys/${root.id}`, method: 'DELETE', headers: bearer(root.key) }), { status: 204 })
  t.match(
    await call(app, { url: `/keys/${theirs.id}`, method: 'DELETE', headers: bearer(heir.key) }),
    { status: 204 },
    'one of another workspace may be the last of it',
  )
})

t.test('a key belongs to one workspace, and manages the keys of that one only', async (t) => {
  const { app, keys } = await baseApp(t, await withoutKeys())
  const root = await keys.create({ name: 'root', role: 'admin' })
  const made = await call(app, { url: '/keys', method: 'POST', headers: bearer(root.key), payload: { name: 'theirs', role: 'admin', workspace: 'team-b' } })
  t.match(made, { status: 201, body: { workspace: 'team-b' } })
  const theirs = bearer(made.body.key)
  t.match(await call(app, { url: '/admin', headers: theirs }), { body: { workspaceId: made.body.workspaceId } })
  t.not(made.body.workspaceId, root.workspaceId)

  t.match(await call(app, { url: '/keys', method: 'POST', headers: theirs, payload: { name: 'x', role: 'member' } }), {
    status: 201,
    body: { workspace: 'team-b' },
  })
  t.match(await call(app, { url: '/keys', method: 'POST', headers: theirs, payload: { name: 'y', role: 'member', workspace: 'team-b' } }), { status: 201 })
  t.match(await call(app, { url: '/keys', method: 'POST', headers: theirs, payload: { name: 'z', role: 'admin', workspace: 'default' } }), {
    status: 403,
    body: { code: 'FORBIDDEN' },
  })
  t.match(await call(app, { url: `/keys/${root.id}`, method: 'DELETE', headers: theirs }), { status: 404 })
  t.same(
    (await call(app, { url: '/keys', headers: theirs })).body.data.map((key: { name: string }) => key.name),
    ['theirs', 'x', 'y'],
  )
  t.equal((await call(app, { url: '/keys', headers: bearer(root.key) })).body.data.length, 4, 'the default workspace sees all')
})

t.test('an open stream ends with the key that it was opened with, and no other does', async (t) => {
  const keys = createKeys(await withoutKeys())
  const root = await keys.create({ name: 'root', role: 'admin' })
  const leaving = await keys.create({ name: 'leaving', role: 'guest' })
  const { url } = await listening(t, database)
  const post = (path: string, body: unknown) =>
    fetch(`${url}${path}`, { method: 'POST', headers: { ...bearer(root.key), 'content-type': 'application/json' }, body: JSON.stringify(body) })
  await post('/runs', { id: 'watched' })
  await post('/runs/watched/events', [
    { type: 'step.started', ts: '2026-11-21T08:00:00Z', subject: { kind: 'step', id: 's' }, data: {} },
    { type: 'step.completed', ts: '2026-11-21T09:00:00Z', subject: { kind: 'step', id: 's' }, data: {} },
  ])
  const paths = ['/runs/watched/stream?', '/stream?runs=watched&', '/runs/watched/replay/stream?mode=timed&maxPauseMs=60000&']
  const open = (key: string) => Promise.all(paths.map((path) => openStream(`${url}${path}heartbeatMs=1000`, { headers: bearer(key) })))
  const [left, stay] = [await open(leaving.key), await open(root.key)]
  for (const stream of [...left, ...stay]) await stream.until(({ event }) => event === 'heartbeat')
  await keys.revoke(leaving.id)
  for (const stream of left) {
    t.match(JSON.parse((await stream.until(({ event }) => event === 'error')).data ?? ''), { code: 'UNAUTHENTICATED', retryable: false })
    t.equal(await stream.closed(), true)
  }
  for (const stream of stay) {
    const beats = stream.frames.filter(({ event }) => event === 'heartbeat').length
    await stream.until(() => stream.frames.filter(({ event }) => event === 'heartbeat').length > beats)
    t.notOk(stream.frames.some(({ event }) => event === 'error'))
    stream.close()
  }
})

t.test('a key that another process made or revoked counts within a second', async (t) => {
  await withoutKeys()
  let nowMs = Date.now()
  const here = createKeys(database, { now: () => nowMs })
  const elsewhere = createKeys(database)
  t.equal(await here.exist(), false)
  const root = await elsewhere.create({ name: 'root', role: 'admin' })
  const other = await elsewhere.create({ name: 'other', role: 'member' })
  nowMs += 1001
  t.equal(await here.exist(), true)
  t.match(await here.authenticate(other.key), { keyName: 'other' })
  await elsewhere.revoke(other.id)
  nowMs += 1001
  t.equal(await here.authenticate(other.key), undefined)
  t.match(await here.authenticate(root.key), { role: 'admin' })
})

t.test('a cached answer is asked for once, expires, is bounded, and is not kept where it failed', async (t) => {
  let nowMs = 0
  let asked = 0
  const cache = createExpiringCache<number>({ ttlMs: 10, maxEntries: 2, now: () => nowMs })
  const ask = (name: string) => cache.get(name, async () => ++asked)
  t.same(await Promise.all([ask('a'), ask('a')]), [1, 1])
  nowMs = 10
  t.equal(await ask('a'), 2, 'it has expired')
  await ask('b')
  await ask('a')
  await ask('c')
  t.equal(await ask('a'), 2, 'it was used last')
  t.equal(await ask('b'), 5, 'it was not, and made room')
  await t.rejects(async () => cache.get('d', () => Promise.reject(new Error('down'))))
  t.equal(await ask('d'), 6)
  nowMs = 20
  await t.rejects(async () => cache.get('d', () => Promise.reject(new Error('down'))))
  t.equal(cache.last('d'), 6, 'what was known before is known still')
  t.equal(await ask('d'), 7, 'but asked for again')
  cache.clear()
  t.equal(cache.last('d'), undefined)
  t.equal(await ask('d'), 8)
})

t.test('without the database, metrics are for those who had them before, and nothing else is for anyone', async (t) => {
  for (const isOpen of [true, false]) {
    const gone = await testDatabase(t)
    let nowMs = 0
    const { app, keys } = await baseApp(t, gone, { now: () => nowMs })
    const admin = isOpen ? undefined : bearer((await keys.create({ name: 'admin', role: 'admin' })).key)
    const later = isOpen ? undefined : bearer((await keys.create({ name: 'later', role: 'guest' })).key)
    const statuses = (headers?: Record<string, string>) =>
      Promise.all(['/metrics', '/guest'].map(async (url) => (await app.inject({ url, headers: { host: 'localhost', ...headers } })).statusCode))
    t.same(await statuses(admin), [200, 200])
    await gone.sql.end()
    nowMs = 60_000
    for (const _ of [1, 2]) t.same(await statuses(admin), [200, 503], isOpen ? 'open' : 'with a key')
    if (!isOpen) {
      t.same(await statuses(), [401, 503], 'without a key')
      t.same(await statuses(later), [503, 503], 'with a key that was not used yet')
    }
  }
})

t.test('ADMIN_API_KEY is an admin key that is not in the database', async (t) => {
  const adminKey = 'k'.repeat(32)
  await withoutKeys()
  const { app } = await baseApp(t, database, { env: { HOST: '0.0.0.0', ADMIN_API_KEY: adminKey } })
  t.match(await call(app, { url: '/guest', headers: { host: 'runplane.example' } }), { status: 401 })
  t.match(await call(app, { url: '/admin', headers: bearer(adminKey) }), { status: 200, body: { role: 'admin', keyName: 'ADMIN_API_KEY' } })
  t.match(await call(app, { url: '/keys', method: 'POST', headers: bearer(adminKey), payload: { name: 'ci', role: 'guest' } }), { status: 201 })
  t.equal((await database.sql`select 1 from api_keys`).length, 1)
})

t.test('a command with an unknown field, a wrong type or a bad name is refused', async (t) => {
  const { app, keys } = await baseApp(t, await withoutKeys())
  for (const payload of [
    { name: 'x', role: 'admin', extra: 1 },
    { name: 5, role: 'admin' },
    { name: '', role: 'admin' },
    { name: 'a\u0000b', role: 'admin' },
    { name: 'x', role: 'root' },
    { name: 'x', role: 'admin', workspace: 'Not A Name' },
    { role: 'admin' },
    [],
    null,
  ]) {
    t.match(
      await call(app, { url: '/keys', method: 'POST', payload: JSON.stringify(payload), headers: { 'content-type': 'application/json' } }),
      { status: 400, body: { code: 'VALIDATION_ERROR', errors: [{ path: /^body/ }] } },
      JSON.stringify(payload),
    )
  }
  t.same(await keys.list(), [])
})

t.test('a route that does not say who may call it fails the boot', async (t) => {
  await withoutKeys()
  await t.rejects(baseApp(t, database, { routes: (app) => app.get('/forgotten', async () => 'x') }), {
    message: /do not say who may call them.*GET \/forgotten/,
  })
})

t.test('CORS is off until origins are named, and then shows what a page needs', async (t) => {
  await withoutKeys()
  const preflight = { url: '/admin', method: 'OPTIONS' as const, headers: { origin: 'https://ours.example', 'access-control-request-method': 'POST' } }
  const { app: closed } = await baseApp(t, database)
  t.notOk((await call(closed, { url: '/guest' })).headers['access-control-allow-origin'])
  t.notOk((await closed.inject(preflight)).headers['access-control-allow-origin'])
  const { app: open, keys } = await baseApp(t, database, { env: { CORS_ORIGINS: 'https://ours.example' } })
  const { key } = await keys.create({ name: 'root', role: 'admin' })
  t.match(
    await open.inject(preflight),
    { statusCode: 204, headers: { 'access-control-allow-origin': 'https://ours.example', 'access-control-allow-methods': /DELETE/ } },
    'a preflight has no key',
  )
  t.match(await open.inject({ ...preflight, headers: {} }), { statusCode: 204, body: '' }, 'and an OPTIONS that is none is not answered with a text')
  const answer = await call(open, { url: '/guest', headers: { ...bearer(key), origin: 'https://ours.example' } })
  t.same(
    String(answer.headers['access-control-expose-headers']).split(', ').sort(),
    [
      'Accept-Encoding',
      'Allow',
      'Content-Disposition',
      'ETag',
      'Location',
      'Producer-Epoch',
      'Producer-Expected-Seq',
      'Producer-Received-Seq',
      'Producer-Seq',
      'Retry-After',
      'WWW-Authenticate',
      'x-request-id',
    ],
    'and every header of an answer that a client may need',
  )
  t.notOk((await call(open, { url: '/guest', headers: { ...bearer(key), origin: 'https://evil.example' } })).headers['access-control-allow-origin'])
})

t.test('the command line makes, lists and revokes keys without a service', async (t) => {
  const dataDir = await mkdtemp(join(tmpdir(), 'keys-cli-'))
  t.teardown(() => rm(dataDir, { recursive: true, force: true }))
  const runplane = (...args: string[]) =>
    promisify(execFile)(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', ...args], { env: { PATH: process.env.PATH, DATA_DIR: dataDir } }).then(
      (done) => ({ code: 0, ...done }),
      (failed: { code: number; stdout: string; stderr: string }) => failed,
    )
  const made = await runplane('keys', 'create', '--name', 'root', '--role', 'admin')
  t.match(made, { code: 0, stdout: /^rp_[A-Za-z0-9_-]{43}\n$/, stderr: /shown this once/ })
  const listed = await runplane('keys', 'list')
  t.match(listed, { code: 0, stdout: /^[0-9a-f-]{36} {2}admin .* default {2}root\n$/ })
  t.match(await runplane('keys', 'revoke', listed.stdout.slice(0, 36)), { code: 1, stderr: /^runplane: This is the last admin key.*\n$/ })
  t.match(await runplane('keys', 'lst'), { code: 1, stderr: /Did you mean list/ })
  t.equal(loadConfig({}, { envFile: '/nonexistent' }).ADMIN_API_KEY, undefined)
})
