/** A queue that is full answers 503 with Retry-After at once, and loses nothing of what it acknowledged. */
import t from 'tap'
import { createClient, type Problem, seqsUpTo } from '../support/http.js'
import { startService } from '../support/service.js'

const AT_ONCE = 400

t.test('a full queue answers 503 OVERLOADED with Retry-After, and what was acknowledged is there once', { timeout: 180_000 }, async (t) => {
  const service = await startService(t, { database: 'embedded', env: { MAX_QUEUED_EVENTS: '20', COMMITTERS: '1' } })
  const client = createClient(service.url)
  const { runId } = await client.createRun({ id: 'busy' })
  const acknowledged = new Map<string, number>()
  let refused = 0
  const write = async (name: string) => {
    const answer = await client.send<Problem & { lastSeq: number }>('POST', `/runs/${runId}/events`, {
      body: { id: name, type: 'custom.emitted', data: { name } },
    })
    if (answer.status === 200) acknowledged.set(name, answer.body.lastSeq)
    else if (answer.status === 503 && answer.body.code === 'OVERLOADED') {
      refused++
      if (!/^[1-9]\d*$/.test(answer.headers.get('retry-after') ?? '')) t.fail(`Retry-After is ${answer.headers.get('retry-after')}`)
      if (!answer.headers.get('content-type')?.startsWith('application/problem+json')) t.fail(`no problem: ${answer.headers.get('content-type')}`)
    } else t.fail(`${answer.status} ${answer.text}`)
  }
  const names = Array.from({ length: AT_ONCE }, (_, index) => `event-${index}`)
  for (let round = 0; round < 20 && refused === 0; round++) await Promise.all(names.map((name) => write(`${round}-${name}`)))
  t.ok(refused > 0, `${refused} requests were refused, ${acknowledged.size} acknowledged`)
  t.ok(acknowledged.size > 0, 'the queue goes on meanwhile')

  const stored = await client.events(runId)
  t.same(
    stored.map((event) => event.seq),
    seqsUpTo(stored.length),
  )
  const seqOf = new Map(stored.filter((event) => event.type === 'custom.emitted').map((event) => [event.data.name, event.seq]))
  t.equal(seqOf.size, acknowledged.size, 'what was refused was not stored, what was acknowledged was')
  t.same(
    [...acknowledged].filter(([name, seq]) => seqOf.get(name) !== seq),
    [],
  )
  t.equal((await client.append(runId, { type: 'run.completed' })).status, 200, 'afterwards it takes events again')

  await t.test('long NDJSON bodies wait for room instead of being refused half way', async (t) => {
    const runs = await Promise.all(Array.from({ length: 8 }, () => client.createRun()))
    const lines = Array.from({ length: 2500 }, (_, index) => JSON.stringify({ id: `${index}`, type: 'custom.emitted', data: { name: `${index}` } })).join('\n')
    const answers = await Promise.all(
      runs.map((run) =>
        client.send<{ accepted: number }>('POST', `/runs/${run.runId}/events`, { body: lines, contentType: 'application/x-ndjson', timeoutMs: 120_000 }),
      ),
    )
    for (const answer of answers) t.equal(answer.status === 200 ? answer.body.accepted : answer.text, 2500)
  })

  await t.test('a batch larger than the whole queue is not refused for ever', async (t) => {
    const batch = await client.createRun({ id: 'large' })
    const answer = await client.append(
      batch.runId,
      Array.from({ length: 100 }, (_, index) => ({ type: 'custom.emitted', data: { name: String(index) } })),
    )
    t.ok(answer.status === 200 || answer.status === 413, `${answer.status}: it is taken, or its limit is named`)
  })
})
