/** The tail of a run as the contract has it, frame by frame. */
import t from 'tap'
import { type CanonicalEvent, eventually, type Problem, seqsUpTo } from '../support/http.js'
import { type EventStream, type Frame, openStream } from '../support/sse-client.js'
import { newId, target } from './target.js'

// A poll that is rarer than a test waits: what arrives is told, not found.
const { client, url, headers: access } = await target(t, { STREAM_POLL_MS: '60000' })

const output = (index: number, step = 'a') => ({ type: 'step.output', subject: { kind: 'step', id: step }, data: { text: `line ${index}` } })
const outputs = (count: number, step = 'a') => Array.from({ length: count }, (_, index) => output(index, step))
const opened: EventStream[] = []
t.teardown(() => {
  for (const stream of opened) stream.close()
})

async function tail(runId: string, query = '', headers: Record<string, string> = {}): Promise<EventStream> {
  const stream = await openStream(`${url}/runs/${runId}/stream${query}`, { headers: { ...access, ...headers } })
  opened.push(stream)
  return stream
}

const isEvent = (frame: Frame) => frame.event === 'canonical_event'
const seqsOf = (stream: EventStream) => stream.frames.filter(isEvent).map((frame) => Number(frame.id))
const named = (name: string) => (frame: Frame) => frame.event === name
const dataOf = <Data>(frame: Frame | undefined): Data => JSON.parse(frame?.data ?? 'null')
/** A run with that many events after those of the control plane. @returns its id and its head */
async function runWith(count: number, ended = false): Promise<{ runId: string; head: number }> {
  const { runId } = await client.createRun()
  for (let left = count; left > 0; left -= 1000) await client.append(runId, outputs(Math.min(left, 1000)))
  if (ended) await client.append(runId, { type: 'run.completed' })
  return { runId, head: (await client.state(runId)).version }
}
const range = (from: number, to: number) => seqsUpTo(to).slice(from - 1)

t.test('the headers let a stream through', async (t) => {
  const { runId } = await runWith(1)
  const stream = await tail(runId)
  t.equal(stream.status, 200)
  t.match(stream.headers, { 'content-type': /^text\/event-stream/, 'cache-control': 'no-cache, no-transform', 'x-accel-buffering': 'no' })
  stream.close()
})

t.test('history comes first, then caught_up, then what is new, over one connection', async (t) => {
  const { runId, head } = await runWith(2500)
  const stream = await tail(runId)
  const caughtUp = await stream.until(named('caught_up'))
  t.same(stream.frames[0], { retry: 3000 }, 'retry is first')
  t.same(seqsOf(stream), seqsUpTo(head))
  t.equal(caughtUp.id, undefined)
  t.match(dataOf(caughtUp), { headSeq: head })
  const first = dataOf<CanonicalEvent>(stream.frames.find(isEvent))
  t.same(first, (await client.events(runId, '', 1))[0], 'a frame shows the event as a page does')
  for (let index = 0; index < 5; index++) await client.append(runId, outputs(3))
  await stream.until((frame) => frame.id === String(head + 15))
  t.same(seqsOf(stream), seqsUpTo(head + 15))
  t.equal(stream.frames.filter(named('caught_up')).length, 1, 'once')
  stream.close()
})

t.test('the cursor', async (t) => {
  const { runId, head } = await runWith(20)
  const from = async (query: string, headers: Record<string, string> = {}) => {
    const stream = await tail(runId, query, headers)
    if (stream.status !== 200) throw new Error(`${stream.status}`)
    await stream.until(named('caught_up'))
    stream.close()
    return seqsOf(stream)
  }
  t.same(await from(''), seqsUpTo(head), 'none is the start')
  t.same(await from('?afterSeq=0'), seqsUpTo(head), '0 is the start')
  t.same(await from('?afterSeq=15'), range(16, head), 'afterSeq')
  t.same(await from('', { 'last-event-id': '17' }), range(18, head), 'Last-Event-ID')
  t.same(await from('?afterSeq=5', { 'last-event-id': '18' }), range(19, head), 'the header is greater')
  t.same(await from('?afterSeq=18', { 'last-event-id': '5' }), range(19, head), 'the query is greater')
  t.same(await from(`?afterSeq=${head}`), [], 'the head')
  for (const [query, headers] of [
    ['?afterSeq=-1', {}],
    ['?afterSeq=1.5', {}],
    ['?afterSeq=x', {}],
    ['?afterSeq=', {}],
    ['', { 'last-event-id': 'x' }],
    ['', { 'last-event-id': '-1' }],
    [`?afterSeq=${head + 1}`, {}],
    ['', { 'last-event-id': '99999999999999999999' }],
  ] as const) {
    const stream = await tail(runId, query, headers)
    await stream.closed()
    t.equal(stream.status, 400, `${query} ${JSON.stringify(headers)}`)
    t.match(JSON.parse(stream.text()) as Problem, { code: 'CURSOR_INVALID', status: 400 })
  }
  const beyond = await tail(runId, '?afterSeq=1000000')
  await beyond.closed()
  t.match(beyond.text(), new RegExp(`\\b${head}\\b`), 'a cursor beyond the head is told the head')
})

t.test('the end', async (t) => {
  await t.test('comes after all events, and the server closes', async (t) => {
    const { runId, head } = await runWith(50, true)
    const stream = await tail(runId)
    const end = await stream.until(named('end'))
    t.equal(end.id, undefined)
    t.match(dataOf(end), { status: 'completed', headSeq: head })
    t.same(seqsOf(stream), seqsUpTo(head))
    t.equal(await stream.closed(), true, 'in an orderly way')
    t.same(stream.frames.at(-1), end, 'nothing follows it')
  })
  await t.test('comes to a live reader', async (t) => {
    const { runId, head } = await runWith(1)
    const stream = await tail(runId)
    await stream.until(named('caught_up'))
    await client.append(runId, { type: 'run.failed', data: { error: { message: 'x' } } })
    t.match(dataOf(await stream.until(named('end'))), { status: 'failed', headSeq: head + 1 })
    await stream.closed()
    t.same(seqsOf(stream), seqsUpTo(head + 1))
  })
  await t.test('is 204 for a reader that has everything', async (t) => {
    const { runId, head } = await runWith(5, true)
    const stream = await tail(runId, '', { 'last-event-id': String(head) })
    t.equal(stream.status, 204)
    t.equal((await tail(runId, `?afterSeq=${head}`)).status, 204)
    t.equal((await tail(runId, `?afterSeq=${head - 1}`)).status, 200)
  })
  await t.test('is passed by follow=true, and late facts come', async (t) => {
    const { runId, head } = await runWith(3, true)
    const stream = await tail(runId, '?follow=true')
    await stream.until(named('caught_up'))
    await client.append(runId, output(1))
    const late = await stream.until((frame) => frame.id === String(head + 1))
    t.match(dataOf(late), { late: true })
    t.equal(stream.frames.some(named('end')), false)
    stream.close()
    const again = await tail(runId, `?follow=true&afterSeq=${head + 1}`)
    t.equal(again.status, 200, 'a reader that has everything may follow too')
    again.close()
  })
})

t.test('heartbeats tell the head and do not move the cursor', async (t) => {
  const { runId, head } = await runWith(2)
  const stream = await tail(runId, '?heartbeatMs=1000')
  const beat = await stream.until(named('heartbeat'), 4000)
  t.equal(beat.id, undefined)
  t.match(dataOf(beat), { ts: /Z$/, headSeq: head })
  stream.close()
  const refused = await tail(runId, '?heartbeatMs=999')
  t.equal(refused.status, 400)
})

t.test('a snapshot', async (t) => {
  const { runId, head } = await runWith(10)
  await t.test('comes first, and events start after it', async (t) => {
    const stream = await tail(runId, '?includeSnapshot=true')
    await stream.until(named('caught_up'))
    t.same(stream.frames[0], { retry: 3000 })
    t.equal(stream.frames[1]?.event, 'snapshot')
    t.same(dataOf(stream.frames[1]), (({ version, schemaVersion, state }) => ({ version, schemaVersion, state }))(await client.state(runId)))
    t.same(seqsOf(stream), [])
    await client.append(runId, output(1))
    await stream.until((frame) => frame.id === String(head + 1))
    stream.close()
  })
  await t.test('does not move a cursor that was given', async (t) => {
    const stream = await tail(runId, '?includeSnapshot=true&afterSeq=4')
    await stream.until(named('caught_up'))
    t.ok(stream.frames.some(named('snapshot')))
    t.equal(seqsOf(stream)[0], 5)
    t.equal(new Set(seqsOf(stream)).size, seqsOf(stream).length)
    stream.close()
  })
})

t.test('filters', async (t) => {
  const { runId } = await client.createRun()
  await client.append(runId, [
    ...outputs(30, 'a'),
    ...outputs(5, 'b'),
    { type: 'signal.emitted', subject: { kind: 'signal', id: 's' }, data: { name: 'x' } },
    ...outputs(30, 'a'),
  ])
  const head = (await client.state(runId)).version
  const all = await client.events(runId)
  await t.test('by types and by subject give what fits, with its seq', async (t) => {
    const byType = await tail(runId, '?types=signal.emitted,run.created')
    await byType.until(named('caught_up'))
    t.same(
      seqsOf(byType),
      all.filter((event) => ['signal.emitted', 'run.created'].includes(event.type)).map((event) => event.seq),
    )
    byType.close()
    const bySubject = await tail(runId, '?subject=step/b')
    await bySubject.until(named('caught_up'))
    t.same(
      seqsOf(bySubject),
      all.filter((event) => event.subject.id === 'b').map((event) => event.seq),
    )
    bySubject.close()
  })
  await t.test('move the reader past what they leave out, at least with each heartbeat', async (t) => {
    const stream = await tail(runId, '?types=signal.emitted&heartbeatMs=1000')
    const cursor = await stream.until((frame) => frame.event === 'cursor' && Number(frame.id) >= head, 5000)
    t.equal(cursor.id, String(head))
    await client.append(runId, output(1))
    await stream.until((frame) => frame.event === 'cursor' && frame.id === String(head + 1), 5000)
    stream.close()
    const ids = stream.frames.filter((frame) => frame.id !== undefined).map((frame) => Number(frame.id))
    t.same(
      ids,
      [...ids].sort((a, b) => a - b),
      'ids only rise',
    )
  })
  await t.test('still let the end come', async (t) => {
    const { runId: ended } = await runWith(5, true)
    const stream = await tail(ended, '?types=never.happens')
    await stream.until(named('end'))
    t.same(seqsOf(stream), [])
    t.equal(await stream.closed(), true)
  })
})

t.test('many readers and writers: each reader gets every event once, in order, however it comes and goes', { timeout: 60_000 }, async (t) => {
  const { runId } = await client.createRun()
  const EACH = 150
  let isOver = false
  const write = async (writer: string) => {
    for (let index = 0; index < EACH; index++) await client.append(runId, outputs(1 + (index % 4), writer))
  }
  /** Leaves after every few frames and comes back by its cursor. */
  const comeAndGo = async (stay: number): Promise<number[]> => {
    const seqs: number[] = []
    for (;;) {
      const stream = await tail(runId, '', seqs.length > 0 ? { 'last-event-id': String(seqs.at(-1)) } : {})
      if (stream.status === 204) return seqs
      const enough = new Promise<void>((resolve) => {
        const left = stay
        stream
          .until(() => seqsOf(stream).length >= left, 30_000)
          .then(
            () => resolve(),
            () => resolve(),
          )
      })
      await enough
      stream.close()
      seqs.push(...seqsOf(stream))
      if (isOver && stream.frames.some(named('end'))) return seqs
    }
  }
  const stayers = await Promise.all(Array.from({ length: 5 }, () => tail(runId)))
  const goers = Promise.all([3, 20, 100].map((stay) => comeAndGo(stay)))
  // A failure is seen where it is awaited, below.
  goers.catch(() => {})
  await Promise.all(['a', 'b', 'c', 'd'].map(write))
  await client.append(runId, { type: 'run.completed' })
  isOver = true
  const head = (await client.state(runId)).version
  for (const stayer of stayers) {
    await stayer.until(named('end'))
    t.same(seqsOf(stayer), seqsUpTo(head))
  }
  for (const seqs of await goers) t.same(seqs, seqsUpTo(head))
})

t.test('a text of any kind stays one frame', async (t) => {
  const { runId } = await client.createRun({ id: newId('framing') })
  const text = 'a\nb\r\nc\rdata: x\n\nid: 7\u2028\u2029\ufeff😀'
  await client.append(runId, { type: 'step.output', subject: { kind: 'step', id: 'a' }, data: { text } })
  const stream = await tail(runId)
  const frame = await stream.until((one) => (one.data ?? '').includes('step.output'))
  t.equal(dataOf<CanonicalEvent>(frame).data.text, text)
  stream.close()
})

t.test('what is acknowledged arrives before any poll', async (t) => {
  const { runId } = await client.createRun()
  const stream = await tail(runId)
  await stream.until(named('caught_up'))
  for (let index = 0; index < 20; index++) {
    const { lastSeq } = (await client.append(runId, output(index))).body
    await stream.until((frame) => frame.id === String(lastSeq))
  }
  t.equal(stream.frames.filter(isEvent).length, (await client.state(runId)).version)
  stream.close()
})

t.test('a HEAD of a stream does not hold a connection', async (t) => {
  const { runId } = await runWith(1)
  const answer = await client.send('HEAD', `/runs/${runId}/stream`, { timeoutMs: 3000 })
  t.ok(answer.status < 500, `${answer.status}`)
  await eventually('the service is there', async () => ((await client.get('/healthz')).status === 200 ? true : undefined))
})

t.test('several runs are tailed on one connection, and its ids are a cursor for all of them', async (t) => {
  const runs = await Promise.all([runWith(30), runWith(40)])
  const ids = runs.map((run) => run.runId)
  const open = async (headers: Record<string, string> = {}) => {
    const stream = await openStream(`${url}/stream?runs=${ids.join(',')}`, { headers: { ...access, ...headers } })
    opened.push(stream)
    return stream
  }
  const seqsByRun = (streams: EventStream[]) =>
    ids.map((runId) =>
      streams
        .flatMap((stream) => stream.frames.filter(isEvent))
        .map((frame) => dataOf<CanonicalEvent>(frame))
        .filter((event) => event.runId === runId)
        .map((event) => event.seq),
    )
  const first = await open()
  await first.until(() => seqsByRun([first]).flat().length >= 50)
  first.close()
  const lastId = first.frames.filter(isEvent).at(-1)?.id ?? ''
  const second = await open({ 'last-event-id': lastId })
  for (const runId of ids) await client.append(runId, [output(1), { type: 'run.completed' }])
  t.equal(await second.closed(), true, 'it ends with the last of them')
  const heads = await Promise.all(ids.map(async (runId) => (await client.state(runId)).version))
  t.same(seqsByRun([first, second]), heads.map(seqsUpTo), 'each event of each run once, in order')
  const again = await open({ 'last-event-id': second.frames.filter(isEvent).at(-1)?.id ?? '' })
  t.equal(again.status, 204)
})
