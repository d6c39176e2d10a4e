/** Posting events as the contract has it: receipts, deduplication, atomicity, faithfulness, limits, and the formats end to end. */
import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { type Answer, type CanonicalEvent, eventually, type Page, type Problem, type RunRecord, seqsUpTo } from '../support/http.js'
import { newId, target } from './target.js'

const { client, url, headers: ownHeaders } = await target(t)

function isProblem(t: Test, answer: Answer<unknown>, status: number, code: string): void {
  t.equal(answer.status, status, answer.text.slice(0, 300))
  t.match(answer.headers.get('content-type'), /^application\/problem\+json/)
  t.match(JSON.parse(answer.text) as Problem, { status, code, detail: String, requestId: String })
}

const event = (name: string, fields: Record<string, unknown> = {}) => ({ type: 'custom.emitted', data: { name }, ...fields })
const newRun = async () => (await client.createRun()).runId
const names = async (runId: string) => (await client.events(runId, '&type=custom.emitted')).map((one) => one.data.name)
interface Raw {
  rawSeq: number
  body: unknown
  format: string
}
/** The answer of /raw as text: what was sent has to be in it as it was sent, as JSON or as the text of a JSON string. */
const rawText = async (runId: string) => (await client.get<Page<Raw>>(`/runs/${runId}/raw?afterRawSeq=0&limit=200`)).text

t.test('a receipt', async (t) => {
  await t.test('tells where each event is stored', async (t) => {
    const runId = await newRun()
    const head = (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
    const answer = await client.append(runId, [event('a'), event('b'), event('c')])
    t.equal(answer.status, 200)
    const { results = [], ...totals } = answer.body
    t.match(totals, { runId, accepted: 3, duplicates: 0, rejected: 0, firstSeq: head + 1, lastSeq: head + 3, headSeq: head + 3 })
    t.match(
      results,
      [0, 1, 2].map((index) => ({ index, status: 'stored', seqs: [head + 1 + index], rawSeq: Number })),
    )
    t.same(await names(runId), ['a', 'b', 'c'])
  })
  await t.test('is the same for one object, an array and {"events": []}', async (t) => {
    const runId = await newRun()
    for (const body of [event('one'), [event('two')], { events: [event('three')] }])
      t.match((await client.append(runId, body)).body, { accepted: 1, results: [{ index: 0, status: 'stored' }] })
    t.same(await names(runId), ['one', 'two', 'three'])
  })
  await t.test('is 207 when some items were rejected: the others are stored next to each other', async (t) => {
    const runId = await newRun()
    const answer = await client.append(runId, [event('a'), { type: 'progress.reported', data: { percentage: 'half' } }, event('b')])
    t.equal(answer.status, 207)
    t.match(answer.body, {
      accepted: 2,
      rejected: 1,
      results: [
        { index: 0, status: 'stored' },
        { index: 1, status: 'rejected', code: 'VALIDATION_ERROR', detail: String },
        { index: 2, status: 'stored' },
      ],
    })
    t.equal((answer.body.lastSeq ?? 0) - (answer.body.firstSeq ?? 0), 1)
  })
  await t.test('is 422 when all were rejected: nothing is stored', async (t) => {
    const runId = await newRun()
    const before = (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
    const answer = await client.append(runId, [{ type: 'step.output', data: {} }, { type: 'nodot' }])
    t.equal(answer.status, 422)
    t.match(answer.body, { accepted: 0, rejected: 2 })
    t.equal((await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq, before)
  })
  await t.test('leaves the results out when it is asked for little, all but the rejected ones', async (t) => {
    const runId = await newRun()
    const prefer = { prefer: 'return=minimal' }
    const all = (await client.append(runId, [event('a'), event('b')], prefer)).body
    t.match(all, { accepted: 2, headSeq: Number })
    t.same(all.results ?? [], [])
    const some = await client.append(runId, [event('c'), { type: 'nodot' }], prefer)
    t.equal(some.status, 207)
    t.match(some.body.results, [{ index: 1, status: 'rejected' }])
    t.equal(some.body.results?.length, 1)
  })
  await t.test('is not given for an empty body', async (t) => {
    const runId = await newRun()
    isProblem(t, await client.append(runId, '[]'), 400, 'VALIDATION_ERROR')
    isProblem(t, await client.append(runId, ''), 400, 'VALIDATION_ERROR')
    isProblem(t, await client.append(runId, '{"events":[]}'), 400, 'VALIDATION_ERROR')
  })
  await t.test('is 415 for a format that is not known', async (t) => {
    const runId = await newRun()
    isProblem(t, await client.append(runId, 'x', { 'content-type': 'text/plain' }), 415, 'UNSUPPORTED_FORMAT')
    isProblem(t, await client.send('POST', `/runs/${runId}/events?format=unheard-of`, { body: event('a') }), 415, 'UNSUPPORTED_FORMAT')
  })
})

t.test('deduplication by event id', async (t) => {
  await t.test('answers a repeat with the original seqs, and stores nothing', async (t) => {
    const runId = await newRun()
    const sent = [event('a', { id: '1', source: 'x' }), event('b', { id: '2', source: 'x' })]
    const first = (await client.append(runId, sent)).body
    const again = await client.append(runId, sent)
    t.equal(again.status, 200)
    t.match(again.body, { accepted: 0, duplicates: 2, rejected: 0, headSeq: first.headSeq })
    t.same(
      again.body.results?.map((result) => [result.status, result.seqs, result.rawSeq]),
      first.results?.map((result) => ['duplicate', result.seqs, result.rawSeq]),
    )
    t.same(await names(runId), ['a', 'b'])
  })
  await t.test('lets two agents both count from 1', async (t) => {
    const runId = await newRun()
    t.match((await client.append(runId, [event('a', { id: '1', source: 'x' }), event('b', { id: '1', source: 'y' })])).body, { accepted: 2 })
  })
  await t.test('rejects the same id with other content', async (t) => {
    const runId = await newRun()
    await client.append(runId, event('a', { id: '1' }))
    const answer = await client.append(runId, event('other', { id: '1' }))
    t.equal(answer.status, 422)
    t.match(answer.body.results, [{ status: 'rejected', code: 'IDEMPOTENCY_CONFLICT' }])
    t.same(await names(runId), ['a'])
  })
  await t.test('takes an id as a number and as a text for the same id, and the events for different content', async (t) => {
    const runId = await newRun()
    t.equal((await client.append(runId, event('a', { id: 12 }))).status, 200)
    t.match(await client.append(runId, event('a', { id: 12 })), { status: 200, body: { duplicates: 1 } })
    t.match(await client.append(runId, event('a', { id: '12' })), { status: 422, body: { results: [{ code: 'IDEMPOTENCY_CONFLICT' }] } })
    t.same(await names(runId), ['a'])
  })
  await t.test('counts twice in one batch as a repeat', async (t) => {
    const runId = await newRun()
    const answer = await client.append(runId, [event('a', { id: '1' }), event('a', { id: '1' })])
    t.match(answer.body, { accepted: 1, duplicates: 1 })
    t.same(answer.body.results?.[1]?.seqs, answer.body.results?.[0]?.seqs)
    t.same(await names(runId), ['a'])
  })
  await t.test('stores one of ten that are sent at once', async (t) => {
    const runId = await newRun()
    const answers = await Promise.all(Array.from({ length: 10 }, () => client.append(runId, event('a', { id: 'same' }))))
    t.same(answers.map((answer) => answer.body.results?.[0]?.status).sort(), [...Array(9).fill('duplicate'), 'stored'])
    t.same(await names(runId), ['a'])
  })
})

t.test('Idempotency-Key', async (t) => {
  await t.test('answers the same request with the same seqs', async (t) => {
    const runId = await newRun()
    const key = { 'idempotency-key': 'k1' }
    const first = await client.append(runId, [event('a'), event('b')], key)
    const again = await client.append(runId, [event('a'), event('b')], key)
    t.equal(again.status, 200)
    t.same(
      again.body.results?.map((result) => result.seqs),
      first.body.results?.map((result) => result.seqs),
    )
    t.same(await names(runId), ['a', 'b'])
  })
  await t.test('refuses another request', async (t) => {
    const runId = await newRun()
    await client.append(runId, event('a'), { 'idempotency-key': 'k1' })
    isProblem(t, await client.append(runId, event('b'), { 'idempotency-key': 'k1' }), 409, 'IDEMPOTENCY_CONFLICT')
    t.same(await names(runId), ['a'])
  })
  await t.test('stores one of ten that are sent at once', async (t) => {
    const runId = await newRun()
    const answers = await Promise.all(Array.from({ length: 10 }, () => client.append(runId, event('a'), { 'idempotency-key': 'k' })))
    t.same(new Set(answers.map((answer) => answer.status)), new Set([200]))
    t.same(await names(runId), ['a'])
  })
})

t.test('producer headers', async (t) => {
  const headers = (epoch: number, seq: number, id = 'agent') => ({ 'producer-id': id, 'producer-epoch': String(epoch), 'producer-seq': String(seq) })
  await t.test('answer a repeat with the original seqs', async (t) => {
    const runId = await newRun()
    const first = await client.append(runId, [event('a'), event('b')], headers(0, 0))
    t.equal(first.status, 200)
    t.equal((await client.append(runId, event('c'), headers(0, 1))).status, 200)
    const again = await client.append(runId, [event('a'), event('b')], headers(0, 0))
    t.equal(again.status, 200, again.text)
    t.same(
      again.body.results?.map((result) => result.seqs),
      first.body.results?.map((result) => result.seqs),
    )
    t.same(await names(runId), ['a', 'b', 'c'])
  })
  await t.test('tell a repeat by its seq alone', async (t) => {
    const runId = await newRun()
    await client.append(runId, event('a'), headers(0, 0))
    await client.append(runId, event('b'), headers(0, 1))
    for (const seq of [0, 1]) t.match(await client.append(runId, event('written anew'), headers(0, seq)), { status: 200, body: { accepted: 0, duplicates: 1 } })
    t.equal((await client.append(runId, event('c'), headers(0, 2))).status, 200, 'the producer goes on')
    t.same(await names(runId), ['a', 'b', 'c'])
  })
  await t.test('answer a gap with 409 and the seq that is expected', async (t) => {
    const runId = await newRun()
    await client.append(runId, event('a'), headers(0, 0))
    const answer = await client.append(runId, event('c'), headers(0, 2))
    isProblem(t, answer, 409, 'PRODUCER_GAP')
    t.equal(answer.headers.get('producer-expected-seq'), '1')
    t.same(await names(runId), ['a'])
  })
  await t.test('fence the zombie that a newer epoch replaced', async (t) => {
    const runId = await newRun()
    await client.append(runId, event('a'), headers(0, 0))
    t.equal((await client.append(runId, event('b'), headers(1, 0))).status, 200, 'a new epoch starts at 0')
    isProblem(t, await client.append(runId, event('zombie'), headers(0, 1)), 403, 'PRODUCER_FENCED')
    isProblem(t, await client.append(runId, event('x'), headers(2, 1)), 409, 'PRODUCER_GAP')
    t.same(await names(runId), ['a', 'b'])
  })
  await t.test('come all or none, as integers', async (t) => {
    const runId = await newRun()
    isProblem(t, await client.append(runId, event('a'), { 'producer-id': 'x' }), 400, 'VALIDATION_ERROR')
    isProblem(t, await client.append(runId, event('a'), { ...headers(0, 0), 'producer-seq': '1.0' }), 400, 'VALIDATION_ERROR')
    t.same(await names(runId), [])
  })
  await t.test('go with an Idempotency-Key, which is known to a producer that was restarted', async (t) => {
    const runId = await newRun()
    const post = (name: string, epoch: number, seq: number, key: string) =>
      client.append(runId, event(name), { ...headers(epoch, seq), 'idempotency-key': key })
    const first = await post('a', 0, 0, 'k1')
    const again = await post('a', 1, 0, 'k1')
    t.equal(again.status, 200, again.text)
    t.match(again.body, { accepted: 0, duplicates: 1 })
    t.same(again.body.results?.[0]?.seqs, first.body.results?.[0]?.seqs)
    t.same((await post('a', 1, 0, 'k1')).body, again.body, 'its own repeat as well')
    isProblem(t, await post('zombie', 0, 1, 'k2'), 403, 'PRODUCER_FENCED')
    isProblem(t, await post('other', 1, 1, 'k1'), 409, 'IDEMPOTENCY_CONFLICT')
    isProblem(t, await client.append(runId, event('other'), { 'idempotency-key': 'k1' }), 409, 'IDEMPOTENCY_CONFLICT')
    t.match((await client.append(runId, event('a'), { 'idempotency-key': 'k1' })).body, { duplicates: 1 })
    t.equal((await post('b', 1, 1, 'k2')).status, 200, 'the producer goes on')
    t.same(await names(runId), ['a', 'b'])
  })
  await t.test('are counted for each producer and each run', async (t) => {
    const [one, other] = [await newRun(), await newRun()]
    for (const [runId, id] of [
      [one, 'p'],
      [one, 'q'],
      [other, 'p'],
    ] as const)
      t.equal((await client.append(runId, event('a'), headers(0, 0, id))).status, 200)
  })
  await t.test('make a refused request no gap', async (t) => {
    const runId = await newRun()
    t.equal((await client.append(runId, { type: 'nodot' }, headers(0, 0))).status, 422)
    const next = await client.append(runId, event('a'), headers(0, 1))
    const repeated = next.status === 200 ? next : await client.append(runId, event('a'), headers(0, 0))
    t.equal(repeated.status, 200, 'the producer can go on, with the same seq or the next')
  })
})

t.test('If-Match appends only at that head', async (t) => {
  const runId = await newRun()
  const head = (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
  t.equal((await client.append(runId, event('a'), { 'if-match': `"${head}"` })).status, 200)
  isProblem(t, await client.append(runId, event('b'), { 'if-match': `"${head}"` }), 412, 'PRECONDITION_FAILED')
  const named = { ...event('a'), id: 'named' }
  const { headSeq } = (await client.append(runId, named, { 'if-match': `"${head + 1}"` })).body
  t.match(await client.append(runId, named, { 'if-match': `"${head + 1}"` }), { status: 200, body: { duplicates: 1, headSeq } }, 'what has been done is done')
  isProblem(t, await client.append(runId, { ...event('b'), id: 'named' }, { 'if-match': `"${head + 1}"` }), 412, 'PRECONDITION_FAILED')
  const answers = await Promise.all(Array.from({ length: 8 }, (_, index) => client.append(runId, event(`c${index}`), { 'if-match': `"${headSeq}"` })))
  t.same(answers.map((answer) => answer.status).sort(), [200, ...Array(7).fill(412)], 'of eight at once one wins')
})

t.test('the events of a request are next to each other, whoever else writes', async (t) => {
  const runId = await newRun()
  const writers = Array.from({ length: 8 }, (_, writer) =>
    (async () => {
      for (let batch = 0; batch < 6; batch++)
        await client.append(
          runId,
          Array.from({ length: 15 }, () => event(`${writer}/${batch}`)),
        )
    })(),
  )
  await Promise.all(writers)
  const events = await client.events(runId)
  t.same(
    events.map((one) => one.seq),
    seqsUpTo(events.length),
  )
  const batches = events.filter((one) => one.type === 'custom.emitted').map((one) => one.data.name)
  t.equal(batches.filter((name, index) => name !== batches[index - 1]).length, 8 * 6, 'each batch is one stretch')
})

t.test('NDJSON', async (t) => {
  const ndjson = { 'content-type': 'application/x-ndjson' }
  await t.test('is a line an event, with blank lines and without a last line break', async (t) => {
    const runId = await newRun()
    const answer = await client.append(runId, `${JSON.stringify(event('a'))}\n\n${JSON.stringify(event('b'))}\r\n${JSON.stringify(event('c'))}`, ndjson)
    t.equal(answer.status, 200, answer.text)
    t.same(await names(runId), ['a', 'b', 'c'])
  })
  await t.test('has no limit of length, and the answer counts all of it', async (t) => {
    const runId = await newRun()
    const lines = Array.from({ length: 12_000 }, (_, index) =>
      JSON.stringify(event(`n${index}`, { id: `n${index}`, data: { name: `n${index}`, value: 'x'.repeat(900) } })),
    ).join('\n')
    t.ok(lines.length > 8 * 1024 * 1024, 'past the limit of a JSON request, in bytes and in events')
    const answer = await client.send<{ accepted: number; headSeq: number }>('POST', `/runs/${runId}/events`, {
      body: lines,
      headers: { ...ndjson, prefer: 'return=minimal' },
      timeoutMs: 60_000,
    })
    t.equal(answer.status, 200, answer.text.slice(0, 300))
    t.equal(answer.body.accepted, 12_000)
    const stored = await client.events(runId, '&type=custom.emitted')
    t.same(
      stored.map((one) => one.data.name),
      Array.from({ length: 12_000 }, (_, index) => `n${index}`),
    )
    const again = await client.send<{ duplicates: number }>('POST', `/runs/${runId}/events`, {
      body: lines,
      headers: { ...ndjson, prefer: 'return=minimal' },
      timeoutMs: 60_000,
    })
    t.equal(again.body.duplicates, 12_000, 'all of it may be retried')
  })
  /** A body that is sent bit by bit. */
  const upload = (runId: string, headers: Record<string, string>) => {
    const sending = request(`${url}/runs/${runId}/events`, { method: 'POST', headers: { ...ownHeaders, ...ndjson, ...headers } })
    const answered = once(sending, 'response')
    // A failure is seen where the answer is awaited; what befalls the connection after it is nobody's affair.
    answered.catch(() => {})
    sending.on('error', () => {})
    const write = (...named: string[]) => sending.write(named.map((name) => `${JSON.stringify(event(name))}\n`).join(''))
    return {
      write,
      /** Resolves when the run has come so far. */
      writeUpTo: async (headSeq: number, ...named: string[]) => {
        write(...named)
        await eventually(`seq ${headSeq}`, async () => (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq >= headSeq || undefined)
      },
      end: async () => {
        sending.end()
        const [answer] = (await answered) as [IncomingMessage]
        const { statusCode: status = 0, headers } = answer
        const body = await text(answer)
        const problem = { status, headers: new Headers({ 'content-type': headers['content-type'] ?? '' }), text: body, body: undefined }
        return { problem, status, body: JSON.parse(body) }
      },
    }
  }
  await t.test('with If-Match is next to each other, or refused where somebody else came between, with what was stored before', async (t) => {
    const runId = await newRun()
    const head = (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
    const alone = upload(runId, { 'if-match': `"${head}"` })
    await alone.writeUpTo(head + 1, 'a')
    await alone.writeUpTo(head + 3, 'b', 'c')
    alone.write('d')
    t.match(await alone.end(), { status: 200, body: { accepted: 4, firstSeq: head + 1, lastSeq: head + 4, headSeq: head + 4 } })

    const disturbed = upload(runId, { 'if-match': `"${head + 4}"` })
    await disturbed.writeUpTo(head + 6, 'e', 'f')
    await client.append(runId, event('another'))
    disturbed.write('g')
    const { problem, body } = await disturbed.end()
    isProblem(t, problem, 412, 'PRECONDITION_FAILED')
    t.same(body.stored, { accepted: 2, duplicates: 0, rejected: 0, firstSeq: head + 5, lastSeq: head + 6, headSeq: head + 6 })
    t.match(body.detail, `up to seq ${head + 6}`)
    t.same(await names(runId), ['a', 'b', 'c', 'd', 'e', 'f', 'another'])

    const free = upload(runId, {})
    await free.writeUpTo(head + 8, 'h')
    await client.append(runId, event('another'))
    free.write('i')
    t.match(await free.end(), { status: 200, body: { accepted: 2 } }, 'without it others may come between')
  })
  await t.test('with If-Match and a key is done to its end when it is sent again', async (t) => {
    const runId = await newRun()
    const head = (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
    const lines = Array.from({ length: 1500 }, (_, index) => JSON.stringify(event(`n${index}`))).join('\n')
    const headers = { ...ndjson, 'if-match': `"${head}"`, 'idempotency-key': 'k', prefer: 'return=minimal' }
    t.match((await client.append(runId, lines, headers)).body, { accepted: 1500 })
    await client.append(runId, event('another'))
    const again = await client.append(runId, lines, headers)
    t.equal(again.status, 200, again.text)
    t.match(again.body, { accepted: 0, duplicates: 1500, lastSeq: head + 1500 })
  })
  await t.test('that is refused on its way says what of it is stored', async (t) => {
    const runId = await newRun()
    const head = (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
    const zombie = upload(runId, { 'producer-id': 'p', 'producer-epoch': '0', 'producer-seq': '0' })
    await zombie.writeUpTo(head + 1000, ...Array.from({ length: 1000 }, (_, index) => `n${index}`))
    t.equal((await client.append(runId, event('heir'), { 'producer-id': 'p', 'producer-epoch': '1', 'producer-seq': '0' })).status, 200)
    zombie.write('late')
    const { problem, body } = await zombie.end()
    isProblem(t, problem, 403, 'PRODUCER_FENCED')
    t.same(body.stored, { accepted: 1000, duplicates: 0, rejected: 0, firstSeq: head + 1, lastSeq: head + 1000, headSeq: head + 1000 })
    const first = await client.append(runId, `${JSON.stringify(event('late'))}\n`, { ...ndjson, 'if-match': '"0"' })
    isProblem(t, first, 412, 'PRECONDITION_FAILED')
    t.notOk('stored' in JSON.parse(first.text), 'nothing of it is')
  })
  await t.test('keeps what comes before and after a broken line, which is a rejected item', async (t) => {
    const runId = await newRun()
    const answer = await client.append(runId, `${JSON.stringify(event('a'))}\n{"type":\n${JSON.stringify(event('b'))}\n`, ndjson)
    t.equal(answer.status, 207)
    t.match(answer.body, { accepted: 2, rejected: 1 })
    t.match(
      answer.body.results?.find((result) => result.status === 'rejected'),
      { index: 1, code: 'VALIDATION_ERROR' },
    )
    t.same(await names(runId), ['a', 'b'])
  })
})

t.test('limits are named', async (t) => {
  const runId = await newRun()
  const large = await client.append(runId, event('large', { data: { name: 'x', value: 'x'.repeat(262_144) } }))
  t.ok(large.status === 413 || (large.status === 422 && large.body.results?.[0]?.code === 'PAYLOAD_TOO_LARGE'), `${large.status}`)
  t.match(large.text, /262.?144|256 KiB/)
  const many = await client.append(
    runId,
    Array.from({ length: 1001 }, () => event('x')),
  )
  isProblem(t, many, 413, 'PAYLOAD_TOO_LARGE')
  t.match(many.text, /1,?000/)
  const long = await client.append(
    runId,
    Array.from({ length: 90 }, () => event('x', { data: { name: 'x', value: 'x'.repeat(100_000) } })),
  )
  isProblem(t, long, 413, 'PAYLOAD_TOO_LARGE')
  t.match(long.text, /8.?388.?608|8 MiB/)
  t.equal(
    (
      await client.append(
        runId,
        Array.from({ length: 1000 }, () => event('x')),
      )
    ).status,
    200,
    '1,000 are not too many',
  )
  t.equal((await client.append(runId, event('x', { data: { name: 'x', value: 'x'.repeat(260_000) } }))).status, 200, '260,000 bytes are not too long')
})

t.test('what was sent comes back from the raw event as it was sent', async (t) => {
  for (const [name, value] of [
    ['a number past 2^53', '12345678901234567890'],
    ['a zero at the end', '1.10'],
    ['an exponent', '1E+400'],
    ['a negative zero', '-0'],
    ['an escaped NUL', '"\\u0000"'],
    ['a lone surrogate', '"\\ud800"'],
    ['an escape that need not be', '"\\u0041\\/"'],
    ['blanks', '[ 1 ,\t2 ]'],
    ['duplicate keys', '{"a":1,"a":2}'],
    ['keys in their order', '{"b":1,"2":1,"1":1}'],
  ] as const) {
    const runId = await newRun()
    const body = `{"type":"custom.emitted","data":{"name":"n","value":${value}}}`
    t.equal((await client.append(runId, body)).status, 200, name)
    const text = await rawText(runId)
    t.ok(text.includes(body) || text.includes(JSON.stringify(body).slice(1, -1)), `${name}: ${value}`)
  }
})

t.test('the canonical event holds what Postgres can: NUL and lone surrogates become U+FFFD', async (t) => {
  const runId = await newRun()
  await client.append(runId, '{"type":"custom.emitted","data":{"name":"a\\u0000b","value":["\\ud800","\\ude00x","\\ud83d\\ude00"],"\\u0000key":1}}')
  const [stored] = await client.events(runId, '&type=custom.emitted')
  t.same(stored?.data, { name: 'a\ufffdb', value: ['\ufffd', '\ufffdx', '😀'], '\ufffdkey': 1 })
})

t.test('native events', async (t) => {
  await t.test('keep the fields that the vocabulary does not name, and types with a dot that it does not know', async (t) => {
    const runId = await newRun()
    await client.append(runId, [event('a', { data: { name: 'a', mine: { deep: true } } }), { type: 'com.example.happened', data: { x: 1 } }])
    const events = await client.events(runId)
    t.match(events.at(-2)?.data, { mine: { deep: true } })
    t.match(events.at(-1), { type: 'com.example.happened', data: { x: 1 } })
  })
  await t.test('carry subject, parent, step, actor, trace and a time in any offset', async (t) => {
    const runId = await newRun()
    const sent = {
      subject: { kind: 'tool', id: 't1' },
      parent: { kind: 'step', id: 's1' },
      stepId: 's1',
      actor: { kind: 'agent', id: 'me' },
      trace: { traceId: 'a'.repeat(32), spanId: 'b'.repeat(16) },
    }
    await client.append(runId, { id: 'e1', source: 'worker', type: 'tool.called', ts: '2026-01-01T02:00:00.123456+02:00', ...sent, data: { name: 'grep' } })
    const last = (await client.events(runId)).at(-1)
    t.match(last, {
      ...sent,
      ts: '2026-01-01T00:00:00.123456Z',
      source: { kind: 'agent', name: 'worker', format: 'native', rawType: 'tool.called', eventId: 'e1' },
    })
  })
  await t.test('take the older names of token counts', async (t) => {
    const runId = await newRun()
    await client.append(runId, {
      type: 'llm.call.completed',
      subject: { kind: 'llm_call', id: '1' },
      data: { model: 'm', promptTokens: 3, completion_tokens: 4, estimatedCostUsd: 0.5 },
    })
    t.match((await client.events(runId)).at(-1)?.data, { inputTokens: 3, outputTokens: 4, costUsd: 0.5 })
  })
})

const typesOf = (events: CanonicalEvent[]) => events.filter((one) => one.source.kind !== 'control-plane').map((one) => one.type)

t.test('the format jobs, end to end', async (t) => {
  const runId = await newRun()
  let counter = 0
  const job = (type: string, payload: Record<string, unknown> = {}, fields: Record<string, unknown> = {}) => ({
    id: `j${counter++}`,
    jobId: 'job-1',
    type,
    timestamp: '2026-01-01T00:00:00Z',
    payload,
    ...fields,
  })
  const sent = [
    job('job.started'),
    job('step.started', { name: 'build' }, { stepId: 's1' }),
    job('step.progress', { percentage: 50 }, { stepId: 's1' }),
    job('step.output', { text: 'hello' }, { stepId: 's1' }),
    job('ai.tool_called', { name: 'grep', arguments: { q: 1 } }, { stepId: 's1' }),
    job('ai.tokens_used', { inputTokens: 10, outputTokens: 2, model: 'm' }, { stepId: 's1' }),
    job('ai.artifact_created', { kind: 'file', label: 'out', uri: 'file:///out' }, { stepId: 's1' }),
    job('gate.passed', { name: 'quality' }, { stepId: 's1' }),
    job('step.completed', {}, { stepId: 's1' }),
    job('job.completed', { output: 1 }),
  ]
  const post = () => client.send<{ accepted: number; duplicates: number; rejected: number }>('POST', `/runs/${runId}/events?format=jobs`, { body: sent })
  const answer = await post()
  t.equal(answer.status, 200, answer.text)
  const events = await client.events(runId)
  t.same(typesOf(events), [
    'run.started',
    'step.started',
    'progress.reported',
    'step.output',
    'tool.called',
    'usage.reported',
    'artifact.created',
    'gate.passed',
    'step.completed',
    'run.completed',
  ])
  t.match(
    events.find((one) => one.type === 'usage.reported'),
    { source: { format: 'jobs', rawType: 'ai.tokens_used', eventId: 'j5' }, data: { inputTokens: 10 } },
  )
  t.match(await post(), { status: 200, body: { accepted: 0, duplicates: 10 } }, 'a repeat is no news')
  t.equal((await client.get<RunRecord>(`/runs/${runId}`)).body.status, 'completed')
  const odd = await client.send('POST', `/runs/${runId}/events?format=jobs`, { body: job('job.dreamt') })
  t.equal(odd.status, 200)
  t.equal((await client.events(runId)).at(-1)?.type, 'raw.received', 'what cannot be mapped is kept')
})

t.test('the format macp, end to end', async (t) => {
  const runId = await newRun()
  let counter = 0
  const envelope = (messageType: string, payload: unknown, sender = 'alice', fields: Record<string, unknown> = {}) => ({
    macpVersion: '1.0',
    mode: 'macp.mode.decision.v1',
    messageType,
    messageId: `m${counter++}`,
    sessionId: 'sess',
    sender,
    timestampUnixMs: 1_767_225_600_000 + counter,
    payload,
    ...fields,
  })
  const sent = [
    envelope('SessionStart', { participants: ['alice', 'bob'] }),
    envelope('Proposal', { proposalId: 'p1', option: 'ship it', rationale: 'why not' }),
    envelope('Vote', { proposalId: 'p1', vote: 'approve', confidence: 0.9 }, 'bob'),
    envelope('Signal', { signalType: 'attention', confidence: 0.5 }, 'bob'),
    envelope('Progress', { progress: 0.25, message: 'a quarter' }, 'bob', { metadata: { tokenUsage: { promptTokens: 7, completionTokens: 3 } } }),
    envelope('Commitment', { commitmentId: 'c1', action: 'approved', reason: 'agreed' }),
    envelope('Gossip', { anything: 1 }),
  ]
  const answer = await client.send('POST', `/runs/${runId}/events?format=macp`, { body: sent })
  t.equal(answer.status, 200, answer.text)
  const events = await client.events(runId)
  const types = typesOf(events)
  t.equal(types.filter((type) => type === 'message.received').length, sent.length, 'every envelope is a message')
  for (const type of [
    'session.bound',
    'proposal.created',
    'proposal.updated',
    'signal.emitted',
    'progress.reported',
    'decision.finalized',
    'llm.call.completed',
  ])
    t.equal(types.filter((one) => one === type).length, 1, `${type} once`)
  t.match(events.find((one) => one.type === 'progress.reported')?.data, { percentage: 25 })
  t.match(events.find((one) => one.type === 'decision.finalized')?.data, { action: 'approved', outcomePositive: true })
  t.match(events.find((one) => one.type === 'llm.call.completed')?.data, { inputTokens: 7, outputTokens: 3 })
  t.equal(events.find((one) => one.type === 'session.bound')?.ts, new Date(1_767_225_600_001).toISOString())
  const again = await client.send<{ duplicates: number }>('POST', `/runs/${runId}/events?format=macp`, { body: sent })
  t.equal(again.body.duplicates, sent.length)
  const { state } = await client.state(runId)
  t.match(JSON.stringify(state.participants), 'bob')
  t.match(JSON.stringify(state.llm), '7')

  await t.test('takes snake_case and base64 payloads', async (t) => {
    const other = await newRun()
    const body = {
      macp_version: '1.0',
      mode: 'm',
      message_type: 'Commitment',
      message_id: 'x',
      session_id: 's',
      sender: 'alice',
      timestamp_unix_ms: 1_767_225_600_000,
      payload: Buffer.from(JSON.stringify({ commitment_id: 'c', action: 'reject', outcome_positive: false })).toString('base64'),
    }
    t.equal((await client.send('POST', `/runs/${other}/events?format=macp`, { body })).status, 200)
    t.match((await client.events(other)).find((one) => one.type === 'decision.finalized')?.data, { action: 'reject', outcomePositive: false })
  })
  await t.test('ends the run with its session', async (t) => {
    const ends: [string, string][] = [
      ['RESOLVED', 'completed'],
      ['EXPIRED', 'failed'],
      ['CANCELLED', 'cancelled'],
      ['SUSPENDED', 'suspended'],
    ]
    for (const [state, status] of ends) {
      const other = await newRun()
      await client.send('POST', `/runs/${other}/events?format=macp`, { body: envelope('SessionState', { state: `SESSION_STATE_${state}` }) })
      t.equal((await client.get<RunRecord>(`/runs/${other}`)).body.status, status, state)
    }
  })
})

t.test('POST /ingest/explain shows what a payload would become, and stores nothing', async (t) => {
  const runId = newId('explained')
  await client.createRun({ id: runId })
  const head = (await client.get<RunRecord>(`/runs/${runId}`)).body
  const native = await client.post('/ingest/explain', event('a'))
  t.equal(native.status, 200, native.text)
  t.match(native.text, 'custom.emitted')
  const jobs = await client.send('POST', '/ingest/explain?format=jobs', {
    body: { id: '1', jobId: runId, type: 'job.started', timestamp: '2026-01-01T00:00:00Z', payload: {} },
  })
  t.equal(jobs.status, 200, jobs.text)
  t.match(jobs.text, 'run.started')
  const rejected = await client.post('/ingest/explain', { type: 'progress.reported', data: { percentage: 'half' } })
  t.match(rejected.text, 'VALIDATION_ERROR')
  isProblem(t, await client.send('POST', '/ingest/explain?format=unheard-of', { body: {} }), 415, 'UNSUPPORTED_FORMAT')
  t.same((await client.get<RunRecord>(`/runs/${runId}`)).body, head)
})
