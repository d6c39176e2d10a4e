/** Replays and readers that do not read: bounded, let go of, and nothing left behind; and a shutdown while one is played. */
import { test } from 'tap'
import { createClient, eventually } from '../support/http.js'
import { startService } from '../support/service.js'
import { openStream } from '../support/sse-client.js'

test('slow readers of replays', async (t) => {
  const service = await startService(t, { database: 'embedded', env: { STREAM_STALL_MS: '500' } })
  const client = createClient(service.url)
  const { runId } = await client.createRun()
  const text = 'x'.repeat(100_000)
  for (let batch = 0; batch < 8; batch++)
    await client.append(
      runId,
      Array.from({ length: 50 }, () => ({ type: 'step.output', subject: { kind: 'step', id: 'a' }, data: { text } })),
    )
  const path = `${service.url}/runs/${runId}/replay/stream`
  const openStreams = async () => Number(/^runplane_streams_open (\d+)$/m.exec((await client.get('/metrics')).text)?.[1])

  await t.test('one that stalls is disconnected, and goes on by its cursor', async (t) => {
    const stalled = await openStream(path)
    stalled.pause()
    await eventually('the stream is let go of', async () => ((await openStreams()) === 0 ? true : undefined))
    stalled.resume()
    t.equal(await stalled.closed(), false, 'cut off')
    const last = Number(stalled.frames.findLast(({ id }) => id !== undefined)?.id)
    t.ok(last < 401)
    const rest = await openStream(path, { headers: { 'last-event-id': String(last) } })
    t.equal(await rest.closed(20_000), true)
    const seqs = [...stalled.frames, ...rest.frames].flatMap(({ id }) => (id === undefined ? [] : [Number(id)]))
    t.same(
      seqs,
      Array.from({ length: 401 }, (_, index) => index + 1),
    )
  })

  await t.test('those that leave, stalled or paused, leave nothing behind', async (t) => {
    const readers = await Promise.all(
      Array.from({ length: 20 }, (_, index) => openStream(index % 2 === 0 ? path : `${path}?mode=timed&maxPauseMs=3600000&speed=0.01&fromSeq=2`)),
    )
    for (const reader of readers) reader.pause()
    t.ok((await openStreams()) > 0)
    for (const reader of readers) reader.close()
    await eventually('no stream is open', async () => ((await openStreams()) === 0 ? true : undefined))
  })

  await t.test('a shutdown ends a replay in its pause at once, in an orderly way', async (t) => {
    const { runId: slow } = await client.createRun()
    const line = (ts: string) => ({ type: 'step.output', ts, subject: { kind: 'step', id: 'a' }, data: { text: 'line' } })
    await client.append(slow, [line('2026-01-01T00:00:00Z'), line('2026-01-01T01:00:00Z')])
    const stream = await openStream(`${service.url}/runs/${slow}/replay/stream?mode=timed&maxPauseMs=3600000`)
    await stream.until(({ id }) => id === '2')
    t.equal(await service.stop(), 0)
    t.equal(await stream.closed(), true)
  })
})
