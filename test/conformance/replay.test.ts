/** Replays as the contract has them: the same frames as the tail, once, in order, and an end. */
import t from 'tap'
import { type CanonicalEvent, eventually, type Problem, type StateAnswer, seqsUpTo } from '../support/http.js'
import { type EventStream, type Frame, openStream } from '../support/sse-client.js'
import { newId, target } from './target.js'

const { client, url, headers: access } = await target(t)
const opened: EventStream[] = []
t.teardown(() => {
  for (const stream of opened) stream.close()
})

interface Descriptor {
  runId: string
  mode: string
  speed: number
  toSeq: number
  streamUrl: string
  stateUrl: string
}

async function open(path: string, headers: Record<string, string> = {}): Promise<EventStream> {
  const stream = await openStream(url + path, { headers: { ...access, ...headers } })
  opened.push(stream)
  return stream
}

const isEvent = (frame: Frame) => frame.event === 'canonical_event'
const seqsOf = (stream: EventStream) => stream.frames.filter(isEvent).map((frame) => Number(frame.id))
const lastOf = (stream: EventStream) => {
  const { event, data, id } = stream.frames.at(-1) ?? {}
  return { event, id, data: JSON.parse(data ?? 'null') }
}
const range = (from: number, to: number) => seqsUpTo(to).slice(from - 1)

/** A run with one event for each of these times (milliseconds), after the control plane's own, which is seq 1. */
async function runWith(timesMs: number[]): Promise<string> {
  const { runId } = await client.createRun({ id: newId('replay') })
  const events = timesMs.map((ms, index) => ({
    type: 'step.output',
    ts: new Date(Date.UTC(2026, 0, 1) + ms).toISOString(),
    subject: { kind: 'step', id: 'a' },
    data: { text: `line ${index}` },
  }))
  for (let at = 0; at < events.length; at += 1000) await client.append(runId, events.slice(at, at + 1000))
  return runId
}

t.test('a replay at once is the log, frame by frame as the tail has it, and ends where a tail would wait', async (t) => {
  const runId = await runWith(seqsUpTo(2500))
  const stream = await open(`/runs/${runId}/replay/stream`)
  t.match(stream.headers, { 'content-type': /^text\/event-stream/, 'cache-control': 'no-cache, no-transform', 'x-accel-buffering': 'no' })
  t.equal(await stream.closed(), true, 'in an orderly way')
  t.same(stream.frames[0], { retry: 3000 })
  t.same(seqsOf(stream), seqsUpTo(2501))
  t.match(lastOf(stream), { event: 'end', id: undefined, data: { status: 'running', headSeq: 2501, toSeq: 2501 } })
  const tail = await open(`/runs/${runId}/stream`)
  await tail.until((frame) => frame.event === 'caught_up')
  t.same(stream.frames.filter(isEvent), tail.frames.filter(isEvent))
  tail.close()
})

t.test('a part of a run, and the greatest of fromSeq, afterSeq and Last-Event-ID', async (t) => {
  const runId = await runWith(seqsUpTo(20))
  const path = `/runs/${runId}/replay/stream`
  const seqs = async (query: string, headers: Record<string, string> = {}) => {
    const stream = await open(`${path}?${query}`, headers)
    if (stream.status !== 200) return stream.status
    await stream.closed()
    return seqsOf(stream)
  }
  t.same(await seqs('fromSeq=5&toSeq=9'), range(5, 9))
  t.same(await seqs('fromSeq=5&toSeq=9&afterSeq=6'), range(7, 9))
  t.same(await seqs('fromSeq=5&toSeq=9&afterSeq=6', { 'last-event-id': '8' }), [9])
  t.same(await seqs('fromSeq=5&toSeq=9&afterSeq=1', { 'last-event-id': '2' }), range(5, 9))
  t.equal(await seqs('toSeq=9', { 'last-event-id': '9' }), 204, 'a browser that has all of it stops')
  t.equal(await seqs('', { 'last-event-id': '21' }), 204)
  t.equal(await seqs('fromSeq=22'), 204)
})

t.test('step by step: a connection gives as many events as it asks for, and says what is left', async (t) => {
  const runId = await runWith(seqsUpTo(5))
  let lastId: string | undefined
  const seen: number[] = []
  for (let turn = 1; turn <= 3; turn++) {
    const stream = await open(`/runs/${runId}/replay/stream?mode=step&count=2&toSeq=6`, lastId === undefined ? {} : { 'last-event-id': lastId })
    await stream.closed()
    t.same(seqsOf(stream), [turn * 2 - 1, turn * 2])
    seen.push(...seqsOf(stream))
    lastId = String(seen.at(-1))
    if (turn < 3) t.match(lastOf(stream), { event: 'paused', id: undefined, data: { seq: turn * 2, toSeq: 6, remaining: 6 - turn * 2 } })
    else t.match(lastOf(stream), { event: 'end' })
  }
  const one = await open(`/runs/${runId}/replay/stream?mode=step`)
  await one.closed()
  t.same(seqsOf(one), [1], 'one, if nothing is said')
})

t.test('timed: pauses are those of the run, divided by the speed and cut to the longest, and clocks that run back make none', async (t) => {
  // Seq 1 is of now: the events that follow are years before it.
  const runId = await runWith([0, 1000, 3_600_000, 0, 0])
  const paced = async (query: string) => {
    const startedAt = Date.now()
    const stream = await open(`/runs/${runId}/replay/stream?mode=timed&${query}`)
    await stream.closed()
    t.same(seqsOf(stream), seqsUpTo(6))
    return Date.now() - startedAt
  }
  // Pauses of 1 s and of an hour.
  t.ok((await paced('speed=10&maxPauseMs=200')) >= 290, '0.1 s and 0.2 s')
  t.ok((await paced('speed=2&maxPauseMs=600')) >= 1090, '0.5 s and 0.6 s')
  await paced('maxPauseMs=0')
})

t.test('a timed replay gives signs of life while it pauses, and the reader may leave', async (t) => {
  const runId = await runWith([0, 3_600_000])
  const stream = await open(`/runs/${runId}/replay/stream?mode=timed&maxPauseMs=3600000&heartbeatMs=1000`)
  const heartbeat = await stream.until((frame) => frame.event === 'heartbeat')
  t.equal(heartbeat.id, undefined)
  t.match(JSON.parse(heartbeat.data ?? ''), { ts: String, headSeq: 3 })
  t.same(seqsOf(stream), [1, 2])
  stream.close()
})

t.test('what comes while a replay runs is not part of it', async (t) => {
  const runId = await runWith([0, 500, 500])
  const stream = await open(`/runs/${runId}/replay/stream?mode=timed`)
  await stream.until((frame) => frame.id === '2')
  await client.append(runId, { type: 'run.completed' })
  await stream.closed()
  t.same(seqsOf(stream), seqsUpTo(4))
  t.match(lastOf(stream).data, { toSeq: 4 })
})

t.test('the descriptor says where the stream and the states are', async (t) => {
  const runId = await runWith(seqsUpTo(10))
  const described = await client.post<Descriptor>(`/runs/${runId}/replay`, { mode: 'timed', speed: 1000, fromSeq: 2, toSeq: 8 })
  t.equal(described.status, 200)
  t.match(described.body, { runId, mode: 'timed', speed: 1000, fromSeq: 2, toSeq: 8, status: 'running', headSeq: 11 })
  const stream = await open(described.body.streamUrl)
  await stream.closed()
  t.same(seqsOf(stream), range(2, 8))
  const state = await client.get<StateAnswer>(`${described.body.stateUrl}?seq=4`)
  t.match(state.body, { runId, version: 4 })
  t.same(state.body, await client.state(runId, '?seq=4'))
  const again = await client.get(`${described.body.stateUrl}?seq=4`, { 'if-none-match': state.headers.get('etag') ?? '' })
  t.equal(again.status, 304)
  const plain = await client.post<Descriptor>(`/runs/${runId}/replay`)
  t.match(plain.body, { mode: 'instant', speed: 1, fromSeq: 1, toSeq: 11 }, 'without a body: all of it, at once')
})

t.test('the state before the first event says whose it is', async (t) => {
  const runId = await runWith(seqsUpTo(3))
  for (const path of ['state', 'replay/state']) {
    const { body } = await client.get<StateAnswer>(`/runs/${runId}/${path}?seq=0`)
    t.match(body, { runId, version: 0, state: { run: { runId, status: 'queued' }, timeline: { totalEvents: 0 } } }, `${path}, before the first event`)
  }
  t.match((await client.get(`/runs/${runId}/metrics?seq=0`)).body, { runId, version: 0 })
})

t.test('what makes no sense is refused before a stream begins', async (t) => {
  const runId = await runWith(seqsUpTo(3))
  const refused = async (query: string, code: string, id = runId) => {
    const answer = await client.get<Problem>(`/runs/${id}/replay/stream?${query}`)
    t.equal(answer.body.code, code, query)
  }
  await refused('fromSeq=4&toSeq=2', 'VALIDATION_ERROR')
  await refused('fromSeq=4&toSeq=3', 'VALIDATION_ERROR')
  await refused('fromSeq=0', 'VALIDATION_ERROR')
  await refused('speed=0', 'VALIDATION_ERROR')
  await refused('mode=backwards', 'VALIDATION_ERROR')
  await refused('toSeq=5', 'CURSOR_INVALID')
  await refused('afterSeq=5', 'CURSOR_INVALID')
  await refused('afterSeq=one', 'CURSOR_INVALID')
  await refused('', 'RUN_NOT_FOUND', newId('nobody'))
  t.match((await client.post<Problem>(`/runs/${runId}/replay`, { mode: 'instant', rate: 2 })).body, { code: 'VALIDATION_ERROR' })
  t.match((await client.get<Problem>(`/runs/${runId}/replay/state?seq=5`)).body, { code: 'CURSOR_INVALID' })
})

t.test('a run that is deleted while it is replayed ends the replay with an error', async (t) => {
  const runId = await runWith(Array.from({ length: 500 }, (_, index) => (index < 250 ? 0 : 60_000)))
  await client.append(runId, { type: 'run.completed' })
  const stream = await open(`/runs/${runId}/replay/stream?mode=timed&maxPauseMs=1500`)
  await stream.until((frame) => frame.id === '200')
  t.equal((await client.send('DELETE', `/runs/${runId}`)).status < 300, true)
  await eventually('the run is gone', async () => ((await client.get(`/runs/${runId}`)).status === 404 ? true : undefined))
  await stream.closed()
  const { event, data } = lastOf(stream)
  t.same([event, data.code, data.retryable], ['error', 'RUN_NOT_FOUND', false])
  t.same(
    (stream.frames.filter(isEvent).map(({ data }) => JSON.parse(data ?? '')) as CanonicalEvent[]).map(({ seq }) => seq),
    seqsOf(stream),
  )
})
