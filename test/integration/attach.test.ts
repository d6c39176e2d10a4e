/** Runs whose events the service reads itself, from sources that behave and sources that do not. */

import type { AddressInfo } from 'node:net'
import { createServer } from 'node:net'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { DEFAULT_WORKSPACE_ID } from '../../src/domain/ids.js'
import type { RunPlan } from '../../src/domain/run-request.js'
import { testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
import { logInstance } from '../support/log.js'
import { attachedInstance, attachedRuns, COMPLETED, frame, ndjson, sourceServer, sse } from '../support/source-server.js'

const database = await testDatabase(t)
const runs = attachedRuns(database)
let counter = 0
const FAILED = 'id: 2\ndata: {"type":"run.failed","data":{"error":{"code":"X","message":"x"}}}\n\n'
const newId = () => `attached-${counter++}`
const upTo = (count: number, from = 1) => Array.from({ length: count }, (_, index) => String(from + index))
const frames = (ids: string[]) => ids.map((id) => frame(id, id)).join('')

t.test('a source', async (t) => {
  const one = attachedInstance(t, database)

  await t.test('is read until the run ends, and its events are the run’s', async (t) => {
    const source = await sourceServer(t, (_request, response) => {
      sse(response).write(frames(upTo(5)) + COMPLETED)
    })
    const id = newId()
    await one.create({ id, source: { url: source.url, format: 'native' } })
    t.equal((await runs.ended(id)).status, 'completed')
    t.same(await runs.types(id), ['run.created', 'session.bound', 'session.stream.opened', ...upTo(5).map(() => 'step.output'), 'run.completed'])
    t.same(await runs.texts(id), upTo(5))
    t.match(await runs.source(id), { status: 'ended', cursor: 'end', error: null, owner_id: null })
    await eventually('the connection is closed', () => (source.connections() === 0 ? true : undefined))
    t.equal(source.requests.length, 1)
    t.match(source.requests[0]?.headers, { 'accept-encoding': 'identity', 'last-event-id': undefined })
  })

  await t.test('is asked again from its cursor whenever it closes, and what it repeats is stored once', async (t) => {
    // Each connection brings two new events, after one that it brought before.
    const source = await sourceServer(t, (request, response, count) => {
      sse(response)
      const after = Number(request.headers['last-event-id'] ?? 0)
      response.end(count === 4 ? COMPLETED : frames(upTo(3, Math.max(1, after)).map(String)))
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    await runs.ended(id)
    t.same(await runs.texts(id), upTo(9))
    t.same(
      source.requests.map((request) => request.headers['last-event-id']),
      [undefined, '3', '5', '7', '9'],
    )
  })

  await t.test('that starts later is waited for', async (t) => {
    const source = await sourceServer(t, (_request, response) => response.writeHead(404).end())
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    await runs.status(id, 'binding_session')
    await eventually('more tries', () => (source.requests.length > 3 ? true : undefined))
    t.same(await runs.types(id), ['run.created', 'session.bound'])
    source.answer = (_request, response) => sse(response).write(frame(1, 'there'))
    await runs.status(id, 'running')
    source.answer = (_request, response) => sse(response).end(COMPLETED)
    await eventually('its event', async () => ((await runs.texts(id)).length === 1 ? true : undefined))
    t.match(await runs.source(id), { status: 'reading' })
    await one.log.append({
      runKey: (await runs.run(id)).key,
      receivedAt: new Date().toISOString(),
      items: [],
      decide: () => [{ type: 'run.cancelled', data: {} }],
    })
    t.equal((await runs.ended(id)).status, 'cancelled', 'a run that ends otherwise ends its source')
    await eventually('the connection is closed', () => (source.connections() === 0 ? true : undefined))
    t.same(await runs.texts(id), ['there'])
  })

  await t.test('can be on a port that is not open yet', async (t) => {
    const probe = createServer().listen(0, '127.0.0.1')
    await new Promise((resolve) => probe.once('listening', resolve))
    const { port } = probe.address() as AddressInfo
    await new Promise((resolve) => probe.close(resolve))
    const id = newId()
    await one.create({ id, source: { url: `http://127.0.0.1:${port}/` } })
    await eventually('failures', async () => ((await runs.source(id)).failures > 2 ? true : undefined))
    t.match(await runs.source(id), { error: /ECONNREFUSED/ })
    const late = await sourceServer(t, (_request, response) => sse(response).end(COMPLETED), port)
    await runs.ended(id)
    t.equal(late.requests.length, 1)
    t.match(await runs.source(id), { failures: 0, error: null })
  })

  await t.test('may be NDJSON, in any format', async (t) => {
    const line = (type: string, id: string, payload = {}) => `${JSON.stringify({ id, jobId: 'j', type, timestamp: '2026-11-21T10:00:00Z', payload })}\n`
    const source = await sourceServer(t, (request, response, count) => {
      ndjson(response)
      if (count === 0) response.end(line('job.started', 'a') + line('step.started', 'b', { name: 'build' }).slice(0, 20))
      else response.end(line('job.started', 'a') + line('step.started', 'b', { name: 'build' }) + line('job.completed', 'c').trimEnd())
      if (count === 1) t.equal(request.headers['last-event-id'], 'a')
    })
    const id = newId()
    await one.create({ id, source: { url: source.url, format: 'jobs' } })
    await runs.ended(id)
    t.same((await runs.types(id)).slice(3), ['run.started', 'step.started', 'run.completed'], 'half a line is none')
    t.ok(one.stored.some(({ format }) => format === 'jobs'))
  })

  await t.test('may want its cursor in the query', async (t) => {
    for (const [path, expected] of [
      ['?x=1', ['/events?x=1', '/events?x=1&lastEventId=a+b']],
      ['?afterSeq={cursor}&x=1', ['/events?x=1', '/events?afterSeq=a+b&x=1']],
    ] as const) {
      const source = await sourceServer(t, (_request, response, count) => {
        sse(response).end(count === 0 ? frame('a b', '1') : COMPLETED)
      })
      const id = newId()
      await one.create({ id, source: { url: source.url + path, resume: 'query' } })
      await runs.ended(id)
      t.same(
        source.requests.map((request) => request.url),
        expected,
      )
      t.equal(source.requests[1]?.headers['last-event-id'], undefined)
    }
  })

  await t.test('gets its headers, which nobody else sees', async (t) => {
    const source = await sourceServer(t, (_request, response) => response.writeHead(401).end())
    const id = newId()
    await one.create({ id, source: { url: source.url, headers: { Authorization: 'Bearer s3cret', 'X-Other': 'ü' } } })
    t.match(await runs.ended(id), { status: 'failed', error: { code: 'SOURCE_FAILED', message: 'The source answered 401.' } })
    t.match(source.requests[0]?.headers, { authorization: 'Bearer s3cret' })
    t.notMatch(JSON.stringify([await runs.events(id), one.warnings]), /s3cret/)
  })

  await t.test('that has no more says 204', async (t) => {
    const source = await sourceServer(t, (_request, response, count) => {
      if (count === 0) sse(response).end(frame(1, '1'))
      else response.writeHead(204).end()
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    await eventually('the end of the source', async () => ((await runs.source(id)).status === 'drained' ? true : undefined))
    t.equal((await runs.run(id)).status, 'running', 'others may have more')
    t.match((await runs.events(id)).at(-1), { type: 'session.state.changed', data: { status: 'ended' } })
    t.equal(source.requests.length, 2)
  })

  await t.test('of lines without ids is read once, if it ends as it should', async (t) => {
    const line = (text: string) => `${JSON.stringify({ type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text } })}\n`
    const source = await sourceServer(t, (_request, response, count) => {
      const answer = ndjson(response)
      answer.write(line('1'))
      // The first time it breaks: what came is stored again.
      if (count === 0) setTimeout(() => response.destroy(), 50)
      else answer.end(line('2') + line('3'))
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    await eventually('the end of the source', async () => ((await runs.source(id)).status === 'drained' ? true : undefined))
    const texts = (await runs.events(id)).filter(({ type }) => type === 'step.output').map(({ data }) => data.text)
    t.same(texts, ['1', '1', '2', '3'])
    t.match((await runs.events(id)).at(-1), { type: 'session.state.changed', data: { status: 'ended' } })
    t.equal((await runs.run(id)).status, 'running')
    t.equal(source.requests.length, 2)
  })

  await t.test('is not asked again where that cannot help, and fails its run with the reason', async (t) => {
    const answers: [number, Record<string, string>, RegExp][] = [
      [400, {}, /answered 400/],
      [403, {}, /answered 403/],
      [410, {}, /answered 410/],
      [302, { location: 'http://127.0.0.1:1/' }, /Redirects are not followed/],
      [200, { 'content-type': 'text/html' }, /text\/html/],
      [200, {}, /neither/],
      [200, { 'content-type': 'text/event-stream', 'content-encoding': 'gzip' }, /encoding 'gzip'/],
      [204, {}, /204/],
    ]
    for (const [code, headers, reason] of answers) {
      const source = await sourceServer(t, (_request, response) => response.writeHead(code, headers).end(gzipSync(Buffer.alloc(1000))))
      const id = newId()
      await one.create({ id, source: { url: source.url } })
      t.match(await runs.ended(id), { status: 'failed', error: { code: 'SOURCE_FAILED', message: reason } }, `${code} ${JSON.stringify(headers)}`)
      t.equal(source.requests.length, 1)
      t.match(await runs.source(id), { status: 'failed', error: reason })
    }
  })

  await t.test('is asked again after 429 and 5xx, no sooner than it says', async (t) => {
    const at: number[] = []
    const source = await sourceServer(t, (_request, response, count) => {
      at.push(performance.now())
      if (count === 0) response.writeHead(429, { 'retry-after': '1' }).end()
      else if (count < 4) response.writeHead(500 + count).end()
      else sse(response).end(COMPLETED)
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    await runs.ended(id)
    t.equal(source.requests.length, 5)
    t.ok((at[1] ?? 0) - (at[0] ?? 0) >= 990, 'it waited for a second')
  })

  await t.test('of a queued run is read once the run is claimed', async (t) => {
    const source = await sourceServer(t, (_request, response) => sse(response).end(COMPLETED))
    const id = newId()
    await one.create({ id, queue: 'attached', source: { url: source.url } })
    const other = newId()
    await one.create({ id: other, source: { url: source.url } })
    await runs.ended(other)
    t.equal(source.requests.length, 1, 'that of the other run')
    const leaseExpiresAt = new Date(Date.now() + 60_000).toISOString()
    await one.log.append({
      runKey: (await runs.run(id)).key,
      receivedAt: new Date().toISOString(),
      items: [],
      decide: () => [{ type: 'run.claimed', data: { workerId: 'w', leaseExpiresAt } }],
    })
    t.equal((await runs.ended(id)).status, 'completed')
  })

  await t.test('of a run that is given back is left until the run is claimed again', async (t) => {
    const source = await sourceServer(t, (_request, response) => sse(response).write(frame(1, 'before')))
    const id = newId()
    await one.create({ id, queue: 'attached', source: { url: source.url } })
    const tell = async (type: string, data: Record<string, unknown>) =>
      one.log.append({ runKey: (await runs.run(id)).key, receivedAt: new Date().toISOString(), items: [], decide: () => [{ type, data }] })
    const claim = () => tell('run.claimed', { workerId: 'w', leaseExpiresAt: new Date(Date.now() + 60_000).toISOString() })
    await claim()
    await runs.status(id, 'running')
    await eventually('its event', async () => ((await runs.texts(id)).length === 1 ? true : undefined))
    source.answer = (_request, response) => sse(response).end(COMPLETED)
    await tell('run.released', { workerId: 'w' })
    await eventually('the connection is closed', () => (source.connections() === 0 ? true : undefined))
    const other = newId()
    await one.create({ id: other, source: { url: source.url } })
    await runs.ended(other)
    t.match(await runs.source(id), { owner_id: null })
    t.equal(source.requests.length, 2, 'its own before, and that of the other run')
    await claim()
    t.equal((await runs.ended(id)).status, 'completed')
  })

  const retry = async (id: string, { append } = one.log) =>
    append({
      runKey: (await runs.run(id)).key,
      receivedAt: new Date().toISOString(),
      items: [],
      decide: () => [{ type: 'run.retry_scheduled', data: { delayMs: 0, attempt: 2 } }],
    })

  await t.test('goes on where it was when its run is retried', async (t) => {
    const source = await sourceServer(t, (request, response) => {
      sse(response)
      if (request.headers['last-event-id'] === undefined) response.write(frame('1', 'first') + FAILED)
      else response.write(frame('3', 'second') + COMPLETED)
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    t.equal((await runs.ended(id)).status, 'failed')
    await retry(id)
    await runs.status(id, 'completed')
    t.same(await runs.texts(id), ['first', 'second'])
    t.match(await runs.run(id), { attempt: 2 })
  })

  await t.test('goes on for a retried run though whoever retried it died the moment after', async (t) => {
    const source = await sourceServer(t, (request, response) => {
      sse(response).write(request.headers['last-event-id'] === undefined ? frame('1', 'first') + FAILED : frame('3', 'second') + COMPLETED)
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    t.equal((await runs.ended(id)).status, 'failed')
    await eventually('the end of the source', async () => ((await runs.source(id)).status === 'ended' ? true : undefined))
    // The log of an instance that does nothing after the commit.
    const other = logInstance(database)
    t.teardown(() => other.log.close())
    await retry(id, other.log)
    await runs.status(id, 'completed')
    t.same(await runs.texts(id), ['first', 'second'])
  })

  await t.test('that has nothing more for a retried run has not failed', async (t) => {
    const source = await sourceServer(t, (request, response) => {
      if (request.headers['last-event-id'] !== undefined) response.writeHead(204).end()
      else sse(response).write(`id: 1\ndata: {"type":"run.failed","data":{"error":{"code":"X","message":"x"}}}\n\n`)
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    t.equal((await runs.ended(id)).status, 'failed')
    await retry(id)
    await eventually('the end of the source', async () => ((await runs.source(id)).status === 'drained' ? true : undefined))
    t.match(await runs.run(id), { attempt: 2, status: 'binding_session' })
  })

  await t.test('is refused when its run is created where it cannot be', async (t) => {
    const strict = attachedInstance(t, database, { OUTBOUND_ALLOW_PRIVATE: 'false' })
    const refused: RunPlan['source'][] = [
      { url: 'http://127.0.0.1/' },
      { url: 'http://[::ffff:127.0.0.1]/' },
      { url: 'http://2130706433/' },
      { url: 'file:///etc/passwd' },
      { url: 'https://user:pass@example.com/' },
      { url: 'https://example.com/', format: 'unheard-of' },
      { url: 'https://example.com/', headers: { 'bad name': 'x' } },
      { url: 'https://example.com/', headers: { ok: 'a\r\nb: c' } },
      { url: 'https://example.com/', headers: { Host: 'other' } },
    ]
    for (const source of refused) await t.rejects(strict.create({ source }), { code: 'VALIDATION_ERROR' }, JSON.stringify(source))
    await t.rejects(strict.create({ cancelCallback: { url: 'http://169.254.169.254/' } }), { code: 'VALIDATION_ERROR' })
  })

  await t.test('whose name leads to a private address is refused when it is called', async (t) => {
    const strict = attachedInstance(t, database, { OUTBOUND_ALLOW_PRIVATE: 'false' })
    const source = await sourceServer(t, (_request, response) => sse(response).end(COMPLETED))
    const id = newId()
    // As if the setting had been another when the run was created.
    await strict.close()
    await one.create({ id, source: { url: source.url }, queue: 'held' })
    await one.close()
    const later = attachedInstance(t, database, { OUTBOUND_ALLOW_PRIVATE: 'false' })
    const leaseExpiresAt = new Date(Date.now() + 60_000).toISOString()
    await later.log.append({
      runKey: (await runs.run(id)).key,
      receivedAt: new Date().toISOString(),
      items: [],
      decide: () => [{ type: 'run.claimed', data: { workerId: 'w', leaseExpiresAt } }],
    })
    t.match(await runs.ended(id), { status: 'failed', error: { message: /not a public address/ } })
    t.equal(source.requests.length, 0)
    t.equal(await later.lifecycle.create(DEFAULT_WORKSPACE_ID, { id: newId() }).then(({ created }) => created), true)
  })
})
