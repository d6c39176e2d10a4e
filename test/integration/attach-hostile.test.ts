/** Sources that stall, drop, repeat, reorder, flood and lie: nothing lost, nothing doubled, nothing grown without bound. */
import { createHook } from 'node:async_hooks'
import type { ServerResponse } from 'node:http'
import { type AddressInfo, createServer as createTcpServer, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
import { attachedInstance, attachedRuns, COMPLETED, frame, ndjson, sourceServer, sse } from '../support/source-server.js'

const MIB = 1024 * 1024
const database = await testDatabase(t)
const runs = attachedRuns(database)
const one = attachedInstance(t, database)
let counter = 0
const newId = () => `hostile-${counter++}`
const upTo = (count: number, from = 1) => Array.from({ length: count }, (_, index) => String(from + index))
const frames = (ids: string[]) => ids.map((id) => frame(id, id)).join('')
/** The same numbers for the same seed, from 0 to 1. */
const randomOf = (seed: number) => () => {
  seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31
  return seed / 2 ** 31
}

/** Until the reader has taken what was written, or has left. */
function room(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off('drain', done).off('close', done)
      resolve()
    }
    response.on('drain', done).on('close', done)
  })
}

/** A server that writes bytes as they are, HTTP or not. */
async function rawServer(t: Test, onConnection: (socket: Socket, count: number) => void): Promise<{ url: string; connections: () => number }> {
  let count = 0
  const sockets = new Set<Socket>()
  const server = createTcpServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => sockets.delete(socket))
    socket.once('data', () => onConnection(socket, count++))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, connections: () => count }
}

t.test('a source that breaks anywhere and begins anew each time is stored once, in order', async (t) => {
  const random = randomOf(7)
  const ids = upTo(400)
  for (const newline of ['\n', '\r\n']) {
    const whole = Buffer.from(`\ufeff${frames(ids)}${COMPLETED}`.replaceAll('\n', newline))
    const source = await sourceServer(t, async (_request, response, count) => {
      sse(response)
      // It gets further each time, and is cut within a frame, a character or a CRLF.
      const end = Math.min(whole.length, Math.floor((count + random()) * whole.length * 0.15))
      for (let at = 0; at < end; ) {
        const next = Math.min(end, at + 1 + Math.floor(random() * 997))
        response.write(whole.subarray(at, next))
        if (random() < 0.2) await new Promise(setImmediate)
        at = next
      }
      if (random() < 0.5) response.end()
      else response.destroy()
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    await runs.ended(id, 60_000)
    t.same(await runs.texts(id), ids)
    t.ok(source.requests.length > 5)
  }
})

t.test('a source that goes on after the cursor, and breaks, is stored once, in order', async (t) => {
  const random = randomOf(11)
  const ids = upTo(300)
  for (const format of ['sse', 'ndjson'] as const) {
    const line = (id: string) => `${JSON.stringify({ id, type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: id } })}\n`
    const source = await sourceServer(t, (request, response) => {
      const after = Number(request.headers['last-event-id'] ?? 0)
      const rest = ids.slice(after)
      const [head, body] = format === 'sse' ? [sse, frames(rest) + COMPLETED] : [ndjson, `${rest.map(line).join('')}{"id":"end","type":"run.completed"}\n`]
      head(response).write(body.slice(0, Math.floor(random() * 5000)), () => response.destroy())
    })
    const id = newId()
    await one.create({ id, source: { url: source.url } })
    await runs.ended(id, 60_000)
    t.same(await runs.texts(id), ids, format)
  }
})

t.test('ids may be out of order, and one id may stand for several frames', async (t) => {
  const order = [3, 1, 2, 9, 9, 4, 1]
  const body = order.map((id, index) => frame(id, `${id}-${index}`))
  const source = await sourceServer(t, (_request, response, count) => {
    // The second connection repeats what the first brought.
    sse(response).end(count === 0 ? body.slice(0, 5).join('') : body.join('') + COMPLETED)
  })
  const id = newId()
  await one.create({ id, source: { url: source.url } })
  await runs.ended(id)
  t.same(
    await runs.texts(id),
    order.map((of, index) => `${of}-${index}`),
  )
})

t.test('a source that stalls is asked again after its idle time, and no timer is left', async (t) => {
  const source = await sourceServer(t, (request, response) => {
    const after = Number(request.headers['last-event-id'] ?? 0)
    sse(response).write(after === 3 ? COMPLETED : frames([String(after + 1)]))
  })
  // The reader's own: of those of the process, many belong to pools and clients, and may stay for long.
  const timers = new Set<number>()
  let made = 0
  const hook = createHook({
    init(asyncId, type) {
      if (type !== 'Timeout' || !/attach-reader/.test(new Error().stack ?? '')) return
      timers.add(asyncId)
      made++
    },
    destroy: (asyncId) => timers.delete(asyncId),
  }).enable()
  t.teardown(() => hook.disable())
  const id = newId()
  await one.create({ id, source: { url: source.url, idleTimeoutMs: 1000 } })
  await runs.ended(id)
  t.same(await runs.texts(id), upTo(3))
  t.equal(source.requests.length, 4)
  // Those of an hour would be left long after.
  const patient = newId()
  const ready = await sourceServer(t, (_request, response) => sse(response).end(COMPLETED))
  await one.create({ id: patient, source: { url: ready.url, idleTimeoutMs: 3_600_000 } })
  await runs.ended(patient)
  t.ok(made >= 5, 'each request has one')
  await eventually('the timers are gone', () => (timers.size === 0 ? true : undefined))
  await eventually('the connections are gone', () => (source.connections() === 0 ? true : undefined))
})

t.test('headers that never end are not waited for, and those without number not taken', async (t) => {
  const drip = await rawServer(t, (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nx: ')
    const timer = setInterval(() => socket.write('a'), 10)
    socket.once('close', () => clearInterval(timer))
  })
  const flood = await rawServer(t, (socket) => {
    socket.write('HTTP/1.1 200 OK\r\n')
    const more = () => {
      while (!socket.destroyed && socket.write(`x: ${'a'.repeat(1000)}\r\n`));
    }
    socket.on('drain', more)
    more()
  })
  const garbage = await rawServer(t, (socket) => socket.end('SSH-2.0-OpenSSH_9.6\r\n'))
  for (const [server, reason] of [
    [drip, /IDLE/],
    [flood, /HEADERS_OVERFLOW/],
    [garbage, /HTTPParserError/],
  ] as const) {
    const id = newId()
    await one.create({ id, source: { url: server.url, idleTimeoutMs: 200 } })
    await eventually('more tries', async () => ((await runs.source(id)).failures > 1 ? true : undefined))
    t.match(await runs.source(id), { status: 'waiting', error: reason })
    t.ok(server.connections() > 1)
    t.same(await runs.types(id), ['run.created', 'session.bound'])
    await cancel(id)
  }
})

t.test('a gigabyte without a newline is not held, and what comes after it is stored', { timeout: 120_000 }, async (t) => {
  const chunk = Buffer.alloc(MIB, 'x')
  for (const kind of ['sse', 'ndjson'] as const) {
    const source = await sourceServer(t, async (_request, response) => {
      if (kind === 'sse') sse(response).write(`${frame(1, 'before')}data: `)
      else ndjson(response).write('{"id":"a","type":"step.output","subject":{"kind":"step","id":"s"},"data":{"text":"before"}}\n')
      for (let sent = 0; sent < 1024 && !response.destroyed; sent++) {
        if (!response.write(chunk)) await room(response)
      }
      if (kind === 'sse') response.write(`\n\n${frame(3, 'after')}${COMPLETED}`)
      else response.write('\n{"id":"b","type":"step.output","subject":{"kind":"step","id":"s"},"data":{"text":"after"}}\n{"type":"run.completed"}\n')
    })
    const id = newId()
    const before = process.memoryUsage.rss()
    let highest = before
    const watch = setInterval(() => {
      highest = Math.max(highest, process.memoryUsage.rss())
    }, 20)
    await one.create({ id, source: { url: source.url } })
    await runs.ended(id, 60_000)
    clearInterval(watch)
    t.same(await runs.texts(id), ['before', 'after'])
    const told = (await runs.events(id)).filter((event) => event.type === 'raw.received')
    t.match(told, [{ source: { kind: 'control-plane' }, data: { reason: /1073741824 bytes is over the limit/ } }])
    t.ok(highest - before < 200 * MIB, `grew by ${Math.round((highest - before) / MIB)} MiB`)
    t.equal(source.requests.length, 1)
  }
})

t.test('what is not an event is told in the log, and the events around it are stored', async (t) => {
  const source = await sourceServer(t, (_request, response) => {
    sse(response).write(
      [
        frame(1, '1'),
        'id: 2\ndata: not JSON\n\n',
        'id: 3\ndata: {"type":"nodot"}\n\n',
        'id: 4\ndata: {"type":"progress.reported","data":{"percentage":"many"}}\n\n',
        'event: heartbeat\ndata: {"ts":"now","headSeq":7}\n\n',
        'event: caught_up\ndata: x\n\n',
        ': comment\n\ndata\n\ndata: [DONE]\n\n',
        `id: 5\ndata: [${['a', 'b'].map((text) => JSON.stringify({ type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text } })).join()}]\n\n`,
        frame(6, '\0\ud800'),
        COMPLETED,
        frame(7, 'after the end'),
      ].join(''),
    )
  })
  const id = newId()
  await one.create({ id, source: { url: source.url } })
  await runs.ended(id)
  t.same(await runs.texts(id), ['1', 'a', 'b', '\ufffd\ufffd', 'after the end'])
  const events = await runs.events(id)
  t.match(
    events.filter((event) => event.type === 'raw.received'),
    [{ data: { reason: /^3 things of the source could not be stored. .*JSON/ } }],
  )
  t.equal(events.find((event) => event.data.text === 'after the end')?.late, true, 'what had been sent with the end is kept')
})

t.test('an event id that is used again for something else is told in the log', async (t) => {
  const event = (text: string) => `data: ${JSON.stringify({ id: 'same', type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text } })}\n\n`
  const source = await sourceServer(t, (_request, response) => sse(response).write(event('1') + event('1') + event('2') + COMPLETED))
  const id = newId()
  await one.create({ id, source: { url: source.url } })
  await runs.ended(id)
  t.same(await runs.texts(id), ['1'])
  t.match(
    (await runs.events(id)).filter((one) => one.type === 'raw.received'),
    [{ data: { reason: /used for other content/ } }],
  )
})

t.test('a source that sends something else altogether is given up', async (t) => {
  const source = await sourceServer(t, async (_request, response) => {
    sse(response)
    let line = 0
    const page = () => Array.from({ length: 100 }, () => `id: ${++line}\ndata: <html>\n\n`).join('')
    while (!response.destroyed) if (!response.write(page())) await room(response)
  })
  const id = newId()
  await one.create({ id, source: { url: source.url } })
  t.match(await runs.ended(id), { status: 'failed', error: { code: 'SOURCE_FAILED', message: /no events of the format 'native'/ } })
  t.equal(source.requests.length, 1)
  t.ok(Number((await runs.source(id)).cursor) > 1000, 'its cursor is where it stopped')
})

t.test('a source that cannot be reached for long is given up', async (t) => {
  const two = attachedInstance(t, database, { SOURCE_MAX_FAILURES: '5' })
  await one.close()
  const source = await sourceServer(t, (_request, response) => response.writeHead(503).end())
  const id = newId()
  await two.create({ id, source: { url: source.url } })
  t.match(await runs.ended(id), { status: 'failed', error: { code: 'SOURCE_FAILED', message: /503.*5 times/ } })
  t.equal(source.requests.length, 5)
  await two.close()
})

t.test('a source is read no faster than the log takes it', { timeout: 120_000 }, async (t) => {
  const two = attachedInstance(t, database)
  const { sql } = database
  const id = newId()
  let sent = 0
  const text = 'x'.repeat(10_000)
  const source = await sourceServer(t, async (_request, response) => {
    sse(response)
    for (; sent < 5000 && !response.destroyed; sent++) {
      if (!response.write(frame(sent + 1, text))) await room(response)
    }
    response.write(COMPLETED)
  })
  const held = await sql.reserve()
  await two.create({ id, queue: 'held-back', source: { url: source.url } })
  const { key } = await runs.run(id)
  const leaseExpiresAt = new Date(Date.now() + 600_000).toISOString()
  const control = (type: string, data = {}) => two.log.append({ runKey: key, receivedAt: new Date().toISOString(), items: [], decide: () => [{ type, data }] })
  await control('run.claimed', { workerId: 'w', leaseExpiresAt })
  await runs.status(id, 'running')
  // From now on nothing of the run can be stored.
  await held`begin`
  await held`select 1 from runs where key = ${key} for update`
  let last = -1
  await eventually(
    'the source has to wait',
    async () => {
      const before = last
      last = sent
      await new Promise((resolve) => setTimeout(resolve, 200))
      return sent === before ? true : undefined
    },
    60_000,
  )
  t.ok(sent < 2500, `${sent} of 5000 events left the source`)
  await held`commit`
  held.release()
  await runs.ended(id, 60_000)
  t.equal((await runs.texts(id)).length, 5000)
  t.equal(source.requests.length, 1)
})

async function cancel(id: string): Promise<void> {
  const { key } = await runs.run(id)
  await one.log.append({ runKey: key, receivedAt: new Date().toISOString(), items: [], decide: () => [{ type: 'run.cancelled', data: {} }] })
  await runs.ended(id)
}
