/** The tail over HTTP: cursor rules, frames, filters, ends, slow readers, and the order of events under any interleaving. */
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import type { Database } from '../../src/db/client.js'
import { uuidv7 } from '../../src/domain/ids.js'
import { subscribe } from '../../src/tail/subscription.js'
import { testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
import { append, insertRun, readingApp, type TestEvent, type TestRun } from '../support/log-fixture.js'
import { type EventStream, openStream } from '../support/sse-client.js'

const events = (count: number, event: TestEvent = {}): TestEvent[] => Array.from({ length: count }, () => event)
const seqs = (stream: EventStream) => stream.frames.filter((frame) => frame.event === 'canonical_event').map((frame) => Number(frame.id))
const upTo = (last: number, first = 1) => Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index)
const named = (stream: EventStream) => stream.frames.map((frame) => frame.event ?? 'retry')
const dataOf = (stream: EventStream, event: string) => stream.frames.filter((frame) => frame.event === event).map((frame) => JSON.parse(frame.data ?? 'null'))
const ends = (stream: EventStream) => stream.until((frame) => frame.event === 'end')
const caughtUp = (stream: EventStream) => stream.until((frame) => frame.event === 'caught_up')
const isAt = (seq: number) => (frame: { id?: string }) => frame.id === String(seq)

let runs = 0
async function runWith(database: Database, count: number, status: 'running' | 'completed' = 'running'): Promise<TestRun> {
  const run = await insertRun(database, `run-${++runs}`)
  if (count > 0) await append(database, run, events(count), status)
  return run
}

t.test('the tail of one run', async (t) => {
  const database = await testDatabase(t)
  const { url, hub, app } = await readingApp(t, database)
  const open = (run: TestRun, query = '', headers: Record<string, string> = {}) => openStream(`${url}/runs/${run.id}/stream${query}`, { headers })
  const refusal = async (run: TestRun, query: string, headers: Record<string, string> = {}) => {
    const response = await fetch(`${url}/runs/${run.id}/stream${query}`, { headers })
    const problem = (await response.json()) as { code: string; detail: string }
    return { status: response.status, ...problem }
  }

  await t.test('begins with retry, gives history, says that it is through, goes on live and ends', async (t) => {
    const run = await runWith(database, 3)
    const stream = await open(run)
    t.equal(stream.headers['content-type'], 'text/event-stream; charset=utf-8')
    t.equal(stream.headers['cache-control'], 'no-cache, no-transform')
    t.equal(stream.headers['x-accel-buffering'], 'no')
    await caughtUp(stream)
    hub.committed(await append(database, run, events(2)))
    hub.committed(await append(database, run, events(1), 'completed'))
    await ends(stream)
    t.equal(await stream.closed(), true, 'in an orderly way')
    t.same(seqs(stream), upTo(6))
    t.same(
      named(stream).filter((name) => name !== 'canonical_event'),
      ['retry', 'caught_up', 'end'],
    )
    t.equal(stream.frames[0]?.retry, 3000)
    t.same(dataOf(stream, 'caught_up'), [{ headSeq: 3 }])
    t.same(dataOf(stream, 'end'), [{ status: 'completed', headSeq: 6 }])
    t.notOk(
      stream.frames.some((frame) => frame.event !== 'canonical_event' && frame.id !== undefined),
      'only events have an id',
    )
    t.equal(JSON.parse(stream.frames[1]?.data ?? '').seq, 1)
  })

  await t.test('gives a finished run to its end', async (t) => {
    const stream = await open(await runWith(database, 2500, 'completed'))
    await ends(stream)
    t.same(seqs(stream), upTo(2500))
    t.same(named(stream).slice(-2), ['caught_up', 'end'])
  })

  await t.test('takes the greater of afterSeq and Last-Event-ID', async (t) => {
    const run = await runWith(database, 10, 'completed')
    for (const [query, id, first] of [
      ['?afterSeq=4', undefined, 5],
      ['', '6', 7],
      ['?afterSeq=4', '8', 9],
      ['?afterSeq=8', '4', 9],
      ['?afterSeq=3', '', 4],
      ['?afterSeq=0', undefined, 1],
    ] as const) {
      const stream = await open(run, query, id === undefined ? {} : { 'last-event-id': id })
      await ends(stream)
      t.same(seqs(stream), upTo(10, first), `${query} and ${id}`)
    }
  })

  await t.test('refuses cursors that are not one, and those beyond the head', async (t) => {
    const run = await runWith(database, 3)
    for (const bad of ['-1', '1.5', 'x', '', ' 1', '1e3', '0x1']) {
      t.match(await refusal(run, `?afterSeq=${encodeURIComponent(bad)}`), { status: 400, code: 'CURSOR_INVALID' }, `'${bad}'`)
    }
    t.match(await refusal(run, '', { 'last-event-id': 'abc' }), { status: 400, code: 'CURSOR_INVALID' })
    for (const beyond of ['4', '9007199254740992', '99999999999999999999', '9'.repeat(400)]) {
      t.match(await refusal(run, `?afterSeq=${beyond}`), { status: 400, code: 'CURSOR_INVALID', detail: /head.* 3/ }, beyond)
    }
  })

  await t.test('refuses parameters that are wrong', async (t) => {
    const run = await runWith(database, 1)
    for (const bad of ['heartbeatMs=999', 'heartbeatMs=x', 'heartbeatMs=1000.5', 'follow=1', 'includeSnapshot=yes', 'subject=step', 'types=']) {
      t.match(await refusal(run, `?${bad}`), { status: 400, code: 'VALIDATION_ERROR' }, bad)
    }
  })

  await t.test("knows no run that is not there, nor another workspace's", async (t) => {
    const [workspace] = await database.sql`insert into workspaces (id, name) values (${uuidv7()}, 'other') returning id`
    const foreign = await insertRun(database, 'foreign', String(workspace?.id))
    t.match(await refusal(foreign, ''), { status: 404, code: 'RUN_NOT_FOUND' })
    t.match(await refusal({ ...foreign, id: 'nowhere' }, ''), { status: 404, code: 'RUN_NOT_FOUND' })
  })

  await t.test('answers 204 to a reader that has everything of a finished run, unless it follows', async (t) => {
    const run = await runWith(database, 4, 'completed')
    const nothing = await open(run, '?afterSeq=4')
    t.equal(nothing.status, 204)
    t.match(nothing.headers['cache-control'], /no-cache/, 'a retry brings more')
    t.equal((await open(run, '', { 'last-event-id': '4' })).status, 204)
    const following = await open(run, '?afterSeq=4&follow=true')
    await caughtUp(following)
    hub.committed(await append(database, run, events(1), 'completed'))
    await following.until(isAt(5))
    t.notOk(named(following).includes('end'))
    following.close()
  })

  await t.test('answers HEAD with the headers only', async (t) => {
    const response = await fetch(`${url}/runs/${(await runWith(database, 1)).id}/stream`, { method: 'HEAD' })
    t.equal(response.status, 200)
    t.match(response.headers.get('content-type'), 'text/event-stream')
  })

  await t.test('begins with the state if asked, and goes on after it, or after the cursor', async (t) => {
    const run = await runWith(database, 5)
    const fresh = await open(run, '?includeSnapshot=true')
    await caughtUp(fresh)
    hub.committed(await append(database, run, events(1)))
    await fresh.until(isAt(6))
    t.same(named(fresh), ['retry', 'snapshot', 'caught_up', 'canonical_event'])
    t.same(dataOf(fresh, 'snapshot'), [{ version: 5, schemaVersion: 1, state: { run: {} } }])
    t.equal(fresh.frames[1]?.id, undefined)
    const resumed = await open(run, '?includeSnapshot=true&afterSeq=2')
    await caughtUp(resumed)
    t.same(seqs(resumed), upTo(6, 3))
    fresh.close()
    resumed.close()
  })

  await t.test('tells whoever has all of a finished run from its state where that is, so that a browser stops', async (t) => {
    const run = await runWith(database, 5, 'completed')
    const stream = await open(run, '?includeSnapshot=true')
    await ends(stream)
    t.same(named(stream), ['retry', 'snapshot', 'cursor', 'caught_up', 'end'])
    const { id } = stream.frames[2] ?? {}
    t.equal(id, '5')
    t.equal((await open(run, '?includeSnapshot=true', { 'last-event-id': String(id) })).status, 204)
  })

  await t.test('beats with the head, and leaves the cursor alone', async (t) => {
    const run = await runWith(database, 2)
    const stream = await open(run, '?heartbeatMs=1000')
    const beat = await stream.until((frame) => frame.event === 'heartbeat')
    t.equal(beat.id, undefined)
    t.match(JSON.parse(beat.data ?? ''), { headSeq: 2, ts: /^\d{4}-.*Z$/ })
    stream.close()
  })

  await t.test('filters by type and by subject, in history and live, and moves the cursor past the rest', async (t) => {
    const run = await insertRun(database, 'filtered')
    const step = { type: 'step.started', subject: 'step/build' }
    await append(database, run, [...events(6000), step, ...events(3)])
    const stream = await open(run, '?types=step.started,step.failed&subject=step/build&heartbeatMs=1000')
    await caughtUp(stream)
    t.same(named(stream).slice(1), ['canonical_event', 'cursor', 'caught_up'])
    t.same([stream.frames[1]?.id, stream.frames[2]?.id, stream.frames[2]?.data], ['6001', '6004', '{"seq":6004}'])
    hub.committed(await append(database, run, [...events(2), { ...step, subject: 'step/other' }, step, ...events(1)]))
    await stream.until(isAt(6008))
    await stream.until((frame) => frame.event === 'cursor' && frame.id === '6009')
    await append(database, run, [...events(2), { ...step, type: 'step.failed' }])
    hub.wake(run.key)
    await stream.until(isAt(6012))
    hub.committed(await append(database, run, events(1), 'completed'))
    await ends(stream)
    t.same(seqs(stream), [6001, 6008, 6012])
    t.same(named(stream).slice(-2), ['cursor', 'end'], 'all that was left out is behind the cursor before the end')
    t.equal((await open(run, '?types=step.started&afterSeq=6013')).status, 204)
  })

  await t.test('moves the cursor now and then through a long history of which nothing fits', async (t) => {
    const run = await runWith(database, 45_000, 'completed')
    const stream = await open(run, '?types=no.such')
    await ends(stream)
    t.same(
      stream.frames.filter((frame) => frame.event === 'cursor').map((frame) => frame.id),
      ['20000', '40000', '45000'],
    )
  })

  await t.test('tells the gap that retention has left, and goes on', async (t) => {
    const run = await runWith(database, 10, 'completed')
    await database.sql`delete from run_events_canonical where run_key = ${run.key} and seq < 6`
    await database.sql`update runs set first_seq = 6 where key = ${run.key}`
    for (const [query, from] of [
      ['', 1],
      ['?afterSeq=2', 3],
      ['?types=custom.emitted', 1],
    ] as const) {
      const stream = await open(run, query)
      await ends(stream)
      t.same(dataOf(stream, 'gap'), [{ fromSeq: from, toSeq: 5 }])
      t.same(named(stream)[1], 'gap')
      t.same(seqs(stream), upTo(10, 6))
    }
    const within = await open(run, '?afterSeq=5')
    await ends(within)
    t.same(dataOf(within, 'gap'), [])
  })

  await t.test('tells a gap though nothing is left', async (t) => {
    const run = await runWith(database, 4, 'completed')
    await database.sql`delete from run_events_canonical where run_key = ${run.key}`
    await database.sql`update runs set first_seq = 5 where key = ${run.key}`
    const stream = await open(run)
    await ends(stream)
    t.same(named(stream), ['retry', 'gap', 'caught_up', 'end'])
    t.same(dataOf(stream, 'gap'), [{ fromSeq: 1, toSeq: 4 }])
  })

  await t.test('gives late facts to those who follow, and goes on when a run is retried', async (t) => {
    const run = await runWith(database, 2)
    const following = await open(run, '?follow=true')
    await caughtUp(following)
    hub.committed(await append(database, run, events(1), 'completed'))
    hub.committed(await append(database, run, events(1), 'completed'))
    hub.committed(await append(database, run, events(1), 'queued'))
    await following.until(isAt(5))
    t.notOk(named(following).includes('end'))
    following.close()
  })

  await t.test('does not end before what another instance wrote after the end', async (t) => {
    const run = await runWith(database, 2)
    const stream = await open(run)
    await caughtUp(stream)
    const last = await append(database, run, events(1), 'completed')
    await append(database, run, events(2), 'completed')
    hub.committed(last)
    await ends(stream)
    t.same(seqs(stream), upTo(5))
    t.same(dataOf(stream, 'end'), [{ status: 'completed', headSeq: 5 }])
  })

  await t.test('gives a run that ends during the history in full', async (t) => {
    const run = await runWith(database, 20_000)
    const stream = await open(run)
    hub.committed(await append(database, run, events(5), 'completed'))
    await ends(stream)
    t.same(seqs(stream), upTo(20_005))
  })

  await t.test('tells that a run was deleted, and closes', async (t) => {
    const run = await runWith(database, 2)
    const stream = await open(run)
    await caughtUp(stream)
    await database.sql`delete from runs where key = ${run.key}`
    hub.wake(run.key)
    await stream.until((frame) => frame.event === 'error')
    t.match(dataOf(stream, 'error'), [{ code: 'RUN_NOT_FOUND', retryable: false }])
    t.equal(await stream.closed(), true)
  })

  await t.test('holds nothing of a reader that has left', async (t) => {
    const run = await runWith(database, 2)
    const stream = await open(run)
    await caughtUp(stream)
    t.equal(hub.watched().get(run.key), 2)
    stream.close()
    await eventually('the hub lets go of the run', () => !hub.watched().has(run.key) || undefined)
    t.notOk(hub.watched().has(run.key))
    hub.committed(await append(database, run, events(1)))
  })

  await t.test('gives one commit after another in as few writes as can be, in order, to many readers', async (t) => {
    const run = await runWith(database, 1)
    const streams = await Promise.all(upTo(20).map(() => open(run)))
    await Promise.all(streams.map(caughtUp))
    const batches = []
    for (let count = 1; count <= 10; count++) batches.push(await append(database, run, events(count)))
    // Two committers may report out of order.
    for (const batch of batches.reverse()) hub.committed(batch)
    await Promise.all(streams.map((stream) => stream.until(isAt(56))))
    for (const stream of streams) {
      t.same(seqs(stream), upTo(56))
      stream.close()
    }
  })

  await t.test('carries any text on one line', async (t) => {
    const run = await insertRun(database, 'texts')
    const value = 'line\nbreak\r\n\u2028 "id: 7\n\nevent: x" 😀 \u0001'
    await append(database, run, [{ data: { name: value } }])
    const stream = await open(run)
    await caughtUp(stream)
    hub.committed(await append(database, run, [{ data: { name: value } }], 'completed'))
    await ends(stream)
    t.same(
      dataOf(stream, 'canonical_event').map((event) => event.data.name),
      [value, value],
    )
  })

  await t.test('ends in an orderly way when the service does, and takes no new readers', async (t) => {
    const run = await runWith(database, 2)
    const stream = await open(run)
    await caughtUp(stream)
    await app.close()
    t.equal(await stream.closed(), true)
    t.notOk(named(stream).includes('end'))
    t.same(hub.stats(), { streams: 0, readers: 0, runs: 0, cachedBytes: 0 })
    t.throws(() => hub.assertOpen(), { code: 'OVERLOADED' })
  })
})

t.test('a database that is away', async (t) => {
  const database = await testDatabase(t)
  const { url, hub, log } = await readingApp(t, database, { hub: { retryDelaysMs: [5, 10] } })
  const run = await runWith(database, 2)
  const stream = await openStream(`${url}/runs/${run.id}/stream`)
  await caughtUp(stream)
  const { pageOfFrames } = log
  let failures = 2
  log.pageOfFrames = async (request) => {
    if (failures-- > 0) throw new Error('the database is away')
    return pageOfFrames(request)
  }
  await append(database, run, events(1))
  hub.wake(run.key)
  await stream.until(isAt(3))
  t.pass('for a moment goes unnoticed')
  failures = Number.POSITIVE_INFINITY
  hub.wake(run.key)
  await stream.until((frame) => frame.event === 'error')
  t.match(dataOf(stream, 'error'), [{ code: 'INTERNAL', retryable: true }], 'for long is told')
  t.equal(await stream.closed(), true)
})

t.test('a log that has lost its end in a failover is not searched for it without pause, and goes on', async (t) => {
  const database = await testDatabase(t)
  const { url, hub, log } = await readingApp(t, database)
  const run = await runWith(database, 5)
  const stream = await openStream(`${url}/runs/${run.id}/stream?afterSeq=3`)
  await caughtUp(stream)
  const lost = await append(database, run, events(3))
  await database.sql`delete from run_events_canonical where run_key = ${run.key} and seq > 5`
  await database.sql`update runs set last_seq = 5 where key = ${run.key}`
  const { pageOfFrames } = log
  let reads = 0
  log.pageOfFrames = (request) => {
    reads++
    return pageOfFrames(request)
  }
  hub.committed({ ...lost, events: [] })
  const late = await openStream(`${url}/runs/${run.id}/stream`)
  await caughtUp(late)
  await delay(200)
  t.ok(reads < 10, `${reads} reads`)
  hub.committed(await append(database, run, events(1), 'completed'))
  await Promise.all([ends(stream), ends(late)])
  t.same(seqs(stream), upTo(6, 4))
  t.same(seqs(late), upTo(6))
})

t.test('several runs on one stream', async (t) => {
  const database = await testDatabase(t)
  const { url, hub } = await readingApp(t, database)
  const a = await insertRun(database, 'a')
  const b = await insertRun(database, 'b.2')
  await append(database, a, events(3))
  await append(database, b, events(2))
  const of = (stream: EventStream, run: TestRun) => dataOf(stream, 'canonical_event').flatMap((event) => (event.runId === run.id ? [event.seq] : []))
  const first = await openStream(`${url}/stream?runs=a,b.2`)
  await first.until(() => dataOf(first, 'caught_up').length === 2)
  t.same(
    dataOf(first, 'caught_up').sort((x, y) => x.runId.localeCompare(y.runId)),
    [
      { runId: 'a', headSeq: 3 },
      { runId: 'b.2', headSeq: 2 },
    ],
  )
  t.same(of(first, a), [1, 2, 3])
  t.same(of(first, b), [1, 2])

  await t.test('go on from any frame by its id alone', async (t) => {
    const frames = first.frames.filter((frame) => frame.id !== undefined)
    for (const [index, frame] of frames.entries()) {
      const { runId, seq } = JSON.parse(frame.data ?? '')
      t.ok(frame.id?.startsWith(`${runId}:${seq}`), 'the id begins with the event itself')
      const resumed = await openStream(`${url}/stream?runs=a,b.2`, { headers: { 'last-event-id': frame.id ?? '' } })
      await resumed.until(() => dataOf(resumed, 'caught_up').length === 2)
      const keys = (stream: EventStream) => dataOf(stream, 'canonical_event').map((event) => `${event.runId}:${event.seq}`)
      t.same([...keys(first).slice(0, index + 1), ...keys(resumed)].sort(), keys(first).sort(), `from ${frame.id}`)
      resumed.close()
    }
  })

  await t.test('may be a hundred with the longest names, and go on from any frame', async (t) => {
    const many = await Promise.all(upTo(100).map((index) => insertRun(database, `${'r'.repeat(125)}${index + 100}`)))
    for (const run of many) await append(database, run, events(2))
    const path = `${url}/stream?runs=${many.map(({ id }) => id).join()}`
    const whole = await openStream(path)
    await whole.until(() => dataOf(whole, 'caught_up').length === 100)
    whole.close()
    const keys = (frames: EventStream['frames']) =>
      frames.filter(({ event }) => event === 'canonical_event').map(({ data = '' }) => `${JSON.parse(data).runId}:${JSON.parse(data).seq}`)
    const cut = whole.frames.slice(
      0,
      whole.frames.findIndex(({ event, id }) => event === 'canonical_event' && keys(whole.frames).indexOf(id?.split(',')[0] ?? '') === 120) + 1,
    )
    const lastId = cut.at(-1)?.id ?? ''
    t.ok(lastId.length < 1000, `${lastId.length} characters`)
    const byName = many.map(({ id }) => `${id}:${keys(cut).filter((key) => key.startsWith(id)).length}`).join()
    for (const resumed of [
      await openStream(path, { headers: { 'last-event-id': lastId } }),
      await openStream(`${path}&cursor=${lastId}`),
      await openStream(`${path}&cursor=${byName}`),
    ]) {
      await resumed.until(() => dataOf(resumed, 'caught_up').length === 100)
      t.same([...keys(cut), ...keys(resumed.frames)].sort(), keys(whole.frames).sort())
      resumed.close()
    }
  })

  await t.test('tell with a heartbeat where the reader is in each, with one id for all', async (t) => {
    const quiet = await openStream(`${url}/stream?runs=a,b.2&types=step.started&heartbeatMs=1000`)
    await quiet.until(() => dataOf(quiet, 'caught_up').length === 2)
    const before = quiet.frames.length
    for (const run of [a, b]) hub.committed(await append(database, run, events(1)))
    await quiet.until(() => dataOf(quiet, 'heartbeat').length > 0 && dataOf(quiet, 'cursor').some(({ runId, seq }) => runId === 'b.2' && seq === 3))
    t.same(
      quiet.frames.slice(before).flatMap(({ event, id, data = '' }) => (event === 'cursor' ? [{ id, ...JSON.parse(data) }] : [])),
      [
        { id: undefined, runId: 'a', seq: 4 },
        { id: 'b.2:3,a:4', runId: 'b.2', seq: 3 },
      ],
    )
    quiet.close()
  })

  await t.test('end one after the other, and the stream with the last', async (t) => {
    hub.committed(await append(database, a, events(1), 'completed'))
    await first.until(() => dataOf(first, 'end').length === 1)
    hub.committed(await append(database, b, events(1), 'failed'))
    t.equal(await first.closed(), true)
    t.same(dataOf(first, 'end'), [
      { runId: 'a', status: 'completed', headSeq: 5 },
      { runId: 'b.2', status: 'failed', headSeq: 4 },
    ])
    const id = first.frames.findLast((frame) => frame.id !== undefined)?.id ?? ''
    t.equal(id, 'b.2:4,a:5')
    t.equal((await openStream(`${url}/stream?runs=a,b.2`, { headers: { 'last-event-id': id } })).status, 204)
    t.equal((await openStream(`${url}/stream?runs=a,b.2&cursor=${id}`)).status, 204)
    const more = await openStream(`${url}/stream?runs=a,b.2&cursor=a:5`)
    t.equal(await more.closed(), true)
    t.same(of(more, b), [1, 2, 3, 4])
  })

  await t.test('are refused where a run or the cursor is wrong', async (t) => {
    const code = async (query: string) => ((await (await fetch(`${url}/stream${query}`)).json()) as { code: string }).code
    t.equal(await code(''), 'VALIDATION_ERROR')
    t.equal(await code('?runs=a,,b'), 'VALIDATION_ERROR')
    t.equal(await code(`?runs=${upTo(101).join()}`), 'VALIDATION_ERROR')
    t.equal(await code('?runs=a,nowhere'), 'RUN_NOT_FOUND')
    t.equal(await code('?runs=a&cursor=12'), 'CURSOR_INVALID')
    t.equal(await code('?runs=a&cursor=a:x'), 'CURSOR_INVALID')
    t.equal(await code('?runs=a&cursor=a:6'), 'CURSOR_INVALID')
  })
})

t.test('slow readers', async (t) => {
  const database = await testDatabase(t)
  const { url, hub } = await readingApp(t, database, { stallMs: 300, hub: { cacheBytes: 1_048_576 } })
  const run = await insertRun(database, 'large')
  for (let count = 0; count < 10; count++) await append(database, run, events(2000, { data: { name: 'x'.repeat(1000) } }))
  await append(database, run, events(1), 'completed')

  await t.test('are disconnected when they stall, and go on by their cursor', async (t) => {
    const stream = await openStream(`${url}/runs/large/stream`)
    stream.pause()
    await eventually('it is disconnected', () => hub.stats().streams === 0 || undefined)
    t.same(hub.stats(), { streams: 0, readers: 0, runs: 0, cachedBytes: 0 }, 'and hold nothing')
    stream.resume()
    t.equal(await stream.closed(), false, 'cut off')
    const received = seqs(stream)
    t.ok(received.length > 0 && received.length < 20_001, `${received.length} events came before`)
    t.same(received, upTo(received.length))
    const resumed = await openStream(`${url}/runs/large/stream?afterSeq=${received.length}`)
    await ends(resumed)
    t.same(seqs(resumed), upTo(20_001, received.length + 1))
  })

  await t.test('that leave while they stall leave nothing behind', async (t) => {
    const { port } = new URL(url)
    for (let count = 0; count < 5; count++) {
      const socket = connect(Number(port), '127.0.0.1')
      socket.write('GET /runs/large/stream HTTP/1.1\r\nHost: localhost\r\n\r\n')
      socket.pause()
      await eventually('the stream', () => hub.stats().streams > 0 || undefined)
      await delay(20)
      socket.destroy()
      await eventually('it is gone', () => hub.stats().streams === 0 || undefined)
    }
    t.same(hub.stats(), { streams: 0, readers: 0, runs: 0, cachedBytes: 0 })
  })

  await t.test('that read on and off get everything, though the cache holds far less', async (t) => {
    const stream = await openStream(`${url}/runs/large/stream`)
    const stutter = setInterval(() => {
      stream.pause()
      setImmediate(() => stream.resume())
    }, 3)
    await ends(stream)
    clearInterval(stutter)
    t.same(seqs(stream), upTo(20_001))
  })

  await t.test("and others who come and go beside one another get whole events, in whoever's memory they were", async (t) => {
    const stay = await openStream(`${url}/runs/large/stream`)
    const stutter = setInterval(() => {
      stay.pause()
      setImmediate(() => stay.resume())
    }, 3)
    for (const after of [0, 5000, 12_000]) {
      const visitor = await openStream(`${url}/runs/large/stream?afterSeq=${after}`)
      await visitor.until(isAt(after + 3000))
      visitor.close()
      await visitor.closed()
      t.same(seqs(visitor).slice(0, 3000), upTo(after + 3000, after + 1))
    }
    const last = await openStream(`${url}/runs/large/stream`)
    await Promise.all([ends(stay), ends(last)])
    clearInterval(stutter)
    for (const stream of [stay, last]) {
      t.same(seqs(stream), upTo(20_001))
      t.same(
        dataOf(stream, 'canonical_event').map((event) => event.seq),
        upTo(20_001),
      )
    }
  })
})

t.test('a reader that is let go of', async (t) => {
  const database = await testDatabase(t)
  const { hub, log } = await readingApp(t, database, { hub: { cacheBytes: 0, pageRows: 7 } })

  async function reader(run: TestRun) {
    const head = await log.findRun(run.workspaceId, run.id)
    if (!head) throw new Error(`${run.id} is not there`)
    let isReady = false
    const onReady = () => {
      isReady = true
    }
    const subscription = subscribe({ hub, run: head, afterSeq: 0, follow: false, onReady })
    const received: number[] = []
    return {
      subscription,
      received,
      /** What comes without waiting. */
      next() {
        isReady = false
        const delivery = subscription.next()
        if (delivery?.kind === 'frames') for (const [, id] of delivery.bytes.toString().matchAll(/^id: (\d+)$/gm)) received.push(Number(id))
        return delivery
      },
      async ready() {
        while (!isReady) await new Promise((resolve) => setImmediate(resolve))
      },
    }
  }

  await t.test('while it reads holds nothing of what comes, and reads it again when it goes on', async (t) => {
    const run = await runWith(database, 20)
    const { subscription, received, next, ready } = await reader(run)
    t.equal(next(), undefined, 'it reads')
    subscription.release()
    await ready()
    t.equal(next(), undefined, 'it reads again')
    await ready()
    t.match(next(), { kind: 'frames' })
    t.same(received, upTo(7))
    subscription.close()
  })

  await t.test('at any moment misses and repeats nothing', async () => {
    const step = fc.constantFrom('next', 'next', 'next', 'release', 'wait', 'append')
    const property = fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const run = await runWith(database, 20)
      let head = 20
      const { subscription, received, next, ready } = await reader(run)
      for (const action of steps) {
        if (action === 'next') next()
        else if (action === 'release') subscription.release()
        else if (action === 'wait') await delay(2)
        else {
          hub.committed(await append(database, run, events(3)))
          head += 3
        }
      }
      hub.committed(await append(database, run, events(1), 'completed'))
      for (let delivery = next(); delivery?.kind !== 'end'; delivery = next()) if (!delivery) await ready()
      subscription.close()
      if (String(received) !== String(upTo(head + 1))) throw new Error(`${received} instead of 1 to ${head + 1}`)
    })
    await fc.assert(property, { numRuns: 60, interruptAfterTimeLimit: 60_000, markInterruptAsFailure: true })
  })
})

t.test(
  'any interleaving of writers here and elsewhere, wake-ups, cuts and slow readers gives each reader every event once, in order',
  { timeout: 200_000 },
  async (t) => {
    const database = await testDatabase(t)
    const { url, hub } = await readingApp(t, database, { hub: { cacheBytes: 20_000, pageRows: 7, pageBytes: 2000 } })
    const step = fc.oneof(
      { weight: 6, arbitrary: fc.record({ kind: fc.constant('here' as const), count: fc.integer({ min: 1, max: 12 }) }) },
      { weight: 3, arbitrary: fc.record({ kind: fc.constant('elsewhere' as const), count: fc.integer({ min: 1, max: 12 }), wakes: fc.boolean() }) },
      { weight: 3, arbitrary: fc.record({ kind: fc.constant('join' as const), at: fc.double({ min: 0, max: 1, noNaN: true }), filtered: fc.boolean() }) },
      { weight: 2, arbitrary: fc.record({ kind: fc.constant('cut' as const), reader: fc.nat(20) }) },
      { weight: 2, arbitrary: fc.record({ kind: fc.constant('stutter' as const), reader: fc.nat(20) }) },
      { weight: 2, arbitrary: fc.record({ kind: fc.constant('turn' as const), turns: fc.integer({ min: 1, max: 5 }) }) },
    )
    const property = fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), fc.boolean(), async (steps, reordered) => {
      const run = await insertRun(database, `property-${++runs}`)
      let head = 0
      const held: Awaited<ReturnType<typeof append>>[] = []
      const readers: { start: number; filtered: boolean; received: number[]; stream: EventStream; settled: boolean }[] = []
      const typed = (count: number) => Array.from({ length: count }, (_, index) => ({ type: (head + index + 1) % 3 === 0 ? 'step.started' : 'custom.emitted' }))
      const path = (filtered: boolean, cursor: number) =>
        `${url}/runs/${run.id}/stream?afterSeq=${cursor}&heartbeatMs=1000${filtered ? '&types=step.started' : ''}`
      const collect = (reader: (typeof readers)[number]) => reader.received.push(...seqs(reader.stream))
      for (const action of steps) {
        if (action.kind === 'here') {
          held.push(await append(database, run, typed(action.count)))
          head += action.count
          if (!reordered || held.length > 1) for (const batch of held.splice(0).reverse()) hub.committed(batch)
        } else if (action.kind === 'elsewhere') {
          await append(database, run, typed(action.count))
          head += action.count
          if (action.wakes) hub.wake(run.key)
        } else if (action.kind === 'join') {
          const start = Math.floor(action.at * head)
          readers.push({ start, filtered: action.filtered, received: [], stream: await openStream(path(action.filtered, start)), settled: false })
        } else if (action.kind === 'turn') {
          for (let turn = 0; turn < action.turns; turn++) await new Promise((resolve) => setImmediate(resolve))
        } else {
          const reader = readers[action.reader % Math.max(1, readers.length)]
          if (!reader) continue
          if (action.kind === 'stutter') {
            reader.stream.pause()
            setTimeout(() => reader.stream.resume(), 3)
          } else {
            reader.stream.resume()
            reader.stream.close()
            await reader.stream.closed()
            collect(reader)
            const cursor = Math.max(reader.start, ...reader.stream.frames.map((frame) => Number(frame.id ?? 0)), ...reader.received)
            reader.stream = await openStream(path(reader.filtered, cursor))
          }
        }
      }
      for (const batch of held) hub.committed(batch)
      hub.committed(await append(database, run, [{ type: 'run.completed' }], 'completed'))
      head += 1
      await Promise.all(
        readers.map(async (reader) => {
          await ends(reader.stream)
          collect(reader)
          const expected = upTo(head, reader.start + 1).filter((seq) => !reader.filtered || (seq % 3 === 0 && seq !== head))
          if (JSON.stringify(reader.received) !== JSON.stringify(expected)) throw new Error(`from ${reader.start}: ${reader.received} instead of ${expected}`)
        }),
      )
    })
    await fc.assert(property, { numRuns: 40, interruptAfterTimeLimit: 120_000, markInterruptAsFailure: true })
    t.pass('40 interleavings')
  },
)
