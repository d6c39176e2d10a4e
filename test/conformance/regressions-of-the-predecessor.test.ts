/**
 * What the system that Runplane replaces got wrong, as measured (design.md, section 8): each is a test here.
 */
import t from 'tap'
import { type CanonicalEvent, createClient, eventually, type Page, type RunRecord, seqsUpTo } from '../support/http.js'
import { startService } from '../support/service.js'
import { type EventStream, openStream } from '../support/sse-client.js'
import { target } from './target.js'

const { client, url, headers: access, service } = await target(t, { DB_POOL_MAX: '4', STREAM_STALL_MS: '1500' })

const tail = (runId: string, query = '', headers: Record<string, string> = {}) =>
  openStream(`${url}/runs/${runId}/stream${query}`, { headers: { ...access, ...headers } })
const seqsOf = (stream: EventStream) => stream.frames.filter((frame) => frame.event === 'canonical_event').map((frame) => Number(frame.id))
const event = (name: string) => ({ type: 'custom.emitted', data: { name } })

t.test('with 8 writers on one run its projection, a live reader and a polling reader miss nothing', { timeout: 60_000 }, async (t) => {
  const { runId } = await client.createRun()
  const live = await tail(runId)
  let isOver = false
  const polled: number[] = []
  const polling = (async () => {
    for (;;) {
      const wasOver = isOver
      const { data } = (await client.get<Page<CanonicalEvent>>(`/runs/${runId}/events?afterSeq=${polled.at(-1) ?? 0}&limit=200`)).body
      polled.push(...data.map((one) => one.seq))
      if (wasOver && data.length === 0) return
    }
  })()
  // A failure is seen where it is awaited, below.
  polling.catch(() => {})
  const each = 60
  await Promise.all(
    Array.from({ length: 8 }, async (_, writer) => {
      for (let index = 0; index < each; index++)
        await client.append(runId, {
          type: 'llm.call.completed',
          subject: { kind: 'llm_call', id: `${writer}-${index}` },
          data: { model: 'm', inputTokens: 1, outputTokens: 2 },
        })
    }),
  )
  await client.append(runId, { type: 'run.completed' })
  isOver = true
  await polling
  await live.until((frame) => frame.event === 'end')
  const { version, state } = await client.state(runId)
  t.equal((await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq, version)
  t.same(seqsOf(live), seqsUpTo(version), 'the live reader')
  t.same(polled, seqsUpTo(version), 'the polling reader')
  t.match(JSON.stringify(state.llm), new RegExp(`\\b${8 * each}\\b`), 'the projection has counted each call')
})

t.test('40 writers at once do not deadlock a pool of 4', { timeout: 60_000 }, async (t) => {
  const runs = await Promise.all(Array.from({ length: 40 }, () => client.createRun()))
  const answers = await Promise.all(
    runs.flatMap((run, index) => [
      client.append(run.runId, [event('own'), event('own')]),
      client.append(runs[(index + 7) % 40]?.runId ?? '', event('other')),
      client.get(`/runs/${run.runId}/state`),
      client.get(`/runs/${run.runId}/events`),
    ]),
  )
  t.same([...new Set(answers.map((answer) => answer.status))], [200])
  for (const run of runs.slice(0, 5)) t.same((await client.events(run.runId, '&type=custom.emitted')).length, 3)
})

t.test('afterSeq=0 gives the history', async (t) => {
  const { runId } = await client.createRun()
  await client.append(runId, [event('a'), event('b')])
  const stream = await tail(runId, '?afterSeq=0')
  await stream.until((frame) => frame.event === 'caught_up')
  stream.close()
  t.same(seqsOf(stream), seqsUpTo((await client.state(runId)).version))
})

t.test('a run that ends while a reader is in its backfill ends the stream after everything is delivered', { timeout: 60_000 }, async (t) => {
  const { runId } = await client.createRun()
  for (let batch = 0; batch < 20; batch++)
    await client.append(
      runId,
      Array.from({ length: 1000 }, (_, index) => ({
        type: 'step.output',
        subject: { kind: 'step', id: 'a' },
        data: { text: `${batch}/${index} ${'x'.repeat(200)}` },
      })),
    )
  const stream = await tail(runId)
  await stream.until((frame) => frame.id === '10')
  stream.pause()
  await client.append(runId, { type: 'run.completed' })
  stream.resume()
  await stream.until((frame) => frame.event === 'end', 30_000)
  t.same(seqsOf(stream), seqsUpTo((await client.state(runId)).version))
})

t.test('a stream that is opened on a finished run ends', async (t) => {
  const { runId } = await client.createRun()
  await client.append(runId, [event('a'), { type: 'run.completed' }])
  const stream = await tail(runId)
  t.equal(await stream.closed(5000), true)
  t.equal(stream.frames.at(-1)?.event, 'end')
})

t.test('heartbeats and snapshots do not move the cursor', async (t) => {
  const { runId } = await client.createRun()
  await client.append(runId, [event('a'), event('b')])
  const stream = await tail(runId, '?includeSnapshot=true&heartbeatMs=1000&afterSeq=1')
  await stream.until((frame) => frame.event === 'heartbeat', 4000)
  stream.close()
  const others = stream.frames.filter((frame) => frame.event !== 'canonical_event' && frame.id !== undefined)
  t.same(others, [], 'only an event has an id')
})

t.test('a reconnect with both a query cursor and Last-Event-ID goes on from the greater', async (t) => {
  const { runId } = await client.createRun()
  await client.append(
    runId,
    Array.from({ length: 10 }, (_, index) => event(`${index}`)),
  )
  for (const [query, header] of [
    ['2', '7'],
    ['7', '2'],
  ]) {
    const stream = await tail(runId, `?afterSeq=${query}`, { 'last-event-id': header ?? '' })
    await stream.until((frame) => frame.event === 'caught_up')
    stream.close()
    t.equal(seqsOf(stream)[0], 8)
  }
})

t.test('the same message twice is one event', async (t) => {
  const { runId } = await client.createRun()
  const envelope = {
    macpVersion: '1.0',
    mode: 'm',
    messageType: 'Proposal',
    messageId: 'm1',
    sessionId: 's',
    sender: 'alice',
    timestampUnixMs: 1_767_225_600_000,
    payload: { proposalId: 'p' },
  }
  for (let times = 0; times < 3; times++) t.equal((await client.send('POST', `/runs/${runId}/events?format=macp`, { body: envelope })).status, 200)
  const types = (await client.events(runId)).map((one) => one.type)
  t.equal(types.filter((type) => type === 'message.received').length, 1)
  t.equal(types.filter((type) => type === 'proposal.created').length, 1)
})

t.test('totals of language models are kept over all calls, however many, and survive a restart', { timeout: 60_000 }, async (t) => {
  const { runId } = await client.createRun()
  await client.append(
    runId,
    Array.from({ length: 300 }, (_, index) => ({
      type: 'llm.call.completed',
      subject: { kind: 'llm_call', id: `c${index}` },
      data: { model: index % 2 ? 'a' : 'b', inputTokens: 101, outputTokens: 7, costUsd: 0.5 },
    })),
  )
  const before = await client.state(runId)
  for (const total of [300 * 101, 300 * 7, 150]) t.match(JSON.stringify(before.state.llm), new RegExp(`\\b${total}\\b`))
  if (service) {
    await service.kill('SIGKILL')
    await service.restart()
    t.same(await client.state(runId), before)
  }
})

t.test('a rebuild leaves what was there', async (t) => {
  const { runId } = await client.createRun({ name: 'rebuilt' })
  await client.append(runId, [{ type: 'run.started' }, event('a'), { type: 'step.started', subject: { kind: 'step', id: 'a' }, data: { name: 'x' } }])
  const before = await client.state(runId)
  const record = (await client.get<RunRecord>(`/runs/${runId}`)).body
  t.ok((await client.post(`/runs/${runId}/projection/rebuild`)).status < 300)
  t.same(await client.state(runId), before)
  await client.append(runId, { type: 'run.completed' })
  const after = await client.state(runId)
  t.equal(after.version, before.version + 1)
  t.equal(after.state.run?.status, 'completed')
  t.same({ ...(await client.get<RunRecord>(`/runs/${runId}`)).body, status: '' }.runId, record.runId)
})

t.test('an export is whole, however long the run, and knows the type of every event', { timeout: 60_000 }, async (t) => {
  const { runId } = await client.createRun()
  const lines = Array.from({ length: 12_000 }, (_, index) => JSON.stringify(event(`${index}`))).join('\n')
  t.match(await client.send('POST', `/runs/${runId}/events`, { body: lines, contentType: 'application/x-ndjson', timeoutMs: 50_000 }), { status: 200 })
  const { lastSeq } = (await client.get<RunRecord>(`/runs/${runId}`)).body
  t.ok(lastSeq >= 12_000)
  const answer = await client.send('GET', `/runs/${runId}/export?format=jsonl`, { timeoutMs: 50_000 })
  const records: { kind: string; event?: CanonicalEvent }[] = answer.text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
  const events = records.flatMap((record) => (record.kind === 'canonical_event' && record.event ? [record.event] : []))
  t.same(
    events.map(({ seq }) => seq),
    seqsUpTo(lastSeq),
  )
  t.notOk(events.some(({ type }) => !type))
  t.match(records.at(-1), { kind: 'manifest' })
  const { canonicalEvents } = (await client.send<{ canonicalEvents: CanonicalEvent[] }>('GET', `/runs/${runId}/export`, { timeoutMs: 50_000 })).body
  t.equal(canonicalEvents.length, lastSeq, 'by default too')
})

t.test('a reader gets an event, not the state with every event', async (t) => {
  const { runId } = await client.createRun()
  await client.append(
    runId,
    Array.from({ length: 200 }, (_, index) => ({ type: 'step.started', subject: { kind: 'step', id: `s${index}` }, data: { name: `step ${index}` } })),
  )
  const stream = await tail(runId, '?includeSnapshot=true')
  await stream.until((frame) => frame.event === 'caught_up')
  const before = stream.frames.length
  await client.append(runId, event('small'))
  await stream.until((frame) => (frame.data ?? '').includes('small'))
  stream.close()
  const bytes = stream.frames.slice(before).reduce((sum, frame) => sum + (frame.data?.length ?? 0), 0)
  t.ok(bytes < 1500, `${bytes} bytes went to the reader for one event`)
})

t.test(
  'readers that stall do not grow the server, are disconnected, and go on by their cursor',
  { timeout: 90_000, skip: !service && 'the memory of a service that is given is not known' },
  async (t) => {
    const READERS = 40
    const own = await startService(t, { database: 'embedded', env: { STREAM_STALL_MS: '1500' } })
    const writer = createClient(own.url)
    const { runId } = await writer.createRun()
    const write = async (batches: number) => {
      for (let batch = 0; batch < batches; batch++)
        await writer.append(
          runId,
          Array.from({ length: 1000 }, () => ({ type: 'step.output', subject: { kind: 'step', id: 'a' }, data: { text: 'x'.repeat(600) } })),
        )
    }
    await write(10)
    const stalled = await Promise.all(Array.from({ length: READERS }, () => openStream(`${own.url}/runs/${runId}/stream`)))
    for (const reader of stalled) {
      await reader.until((frame) => frame.event === 'canonical_event')
      reader.pause()
    }
    const before = own.residentBytes()
    // 30 MB more for each of them, 1.2 GB in all, if it were kept for them.
    await write(20)
    const grown = (own.residentBytes() - before) / 1_048_576
    t.ok(grown < 250, `it has grown by ${grown.toFixed(0)} MiB`)
    await eventually('the server lets them go', async () => (/^runplane_streams_open 0$/m.test((await writer.get('/metrics')).text) ? true : undefined), 15_000)
    const [first] = stalled
    first?.resume()
    await first?.closed(10_000).catch(() => {})
    const got = first ? seqsOf(first) : []
    t.same(got, seqsUpTo(got.length), 'what came before the stall is whole')
    t.ok(got.length < (await writer.state(runId)).version, 'and it was disconnected')
    const resumed = await openStream(`${own.url}/runs/${runId}/stream`, { headers: { 'last-event-id': String(got.at(-1)) } })
    await resumed.until((frame) => frame.event === 'caught_up', 30_000)
    t.same([...got, ...seqsOf(resumed)], seqsUpTo((await writer.state(runId)).version), 'it resumes by its cursor')
    resumed.close()
    for (const reader of stalled) reader.close()
    t.equal((await writer.get('/healthz')).status, 200)
  },
)
