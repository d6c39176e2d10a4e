/** The wire's end of the append: bodies that are refused on their way, and bodies that are sent again in another way. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { request } from 'node:http'
import { connect } from 'node:net'
import { json } from 'node:stream/consumers'
import { test } from 'tap'
import { testDatabase } from '../support/database.js'
import { eventually, type Receipt, type RunRecord } from '../support/http.js'
import { served } from '../support/served.js'

test('a client that writes all of a refused NDJSON body before it reads gets its answer, and its next one on the same connection', async (t) => {
  const { client, port } = await served(t, await testDatabase(t))
  const { runId } = await client.createRun()
  const socket = connect(port, '127.0.0.1')
  t.teardown(() => socket.destroy())
  socket.on('error', () => {})
  const drained = async (text: string) => socket.write(text) || (await once(socket, 'drain'))
  socket.pause()
  await drained(
    `POST /runs/${runId}/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\nif-match: "77"\r\ntransfer-encoding: chunked\r\n\r\n`,
  )
  const lines = `${JSON.stringify({ type: 'custom.emitted', data: { name: 'x'.repeat(1000) } })}\n`.repeat(100)
  const chunk = `${lines.length.toString(16)}\r\n${lines}\r\n`
  // Far more than the buffers of both ends hold.
  for (let sent = 0; sent < 30_000_000; sent += chunk.length) await drained(chunk)
  await drained('0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n')
  const answers = (await socket.setEncoding('utf8').toArray()).join('')
  t.match(answers, /^HTTP\/1\.1 412 [\s\S]*}HTTP\/1\.1 200 /)
})

test('a keyed body that was cut off is stored to its end when it is sent again, however it is cut then', async (t) => {
  const database = await testDatabase(t)
  const { client, port } = await served(t, database)
  const other = await served(t, database, { MAX_BATCH_EVENTS: '400' })
  const ndjson = { 'content-type': 'application/x-ndjson', prefer: 'return=minimal' }
  const keys = { producer: { 'producer-id': 'p', 'producer-epoch': '0', 'producer-seq': '0' }, key: { 'idempotency-key': 'k' } }
  const event = (index: number, bytes = 0) => ({ type: 'custom.emitted', data: { name: `n${index}`, value: 'x'.repeat(bytes) } })
  const head = async (runId: string) => (await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq
  const names = async (runId: string) => (await client.events(runId, '&type=custom.emitted')).map((one) => one.data.name)
  const namesOf = (events: { data: { name: string } }[]) => events.map(({ data }) => data.name)

  /** A body that is sent bit by bit. */
  const upload = (runId: string, headers: Record<string, string>) => {
    const sending = request({ port, host: '127.0.0.1', method: 'POST', path: `/runs/${runId}/events`, headers: { ...ndjson, ...headers } })
    const answered = once(sending, 'response')
    answered.catch(() => {})
    const stored = (lastSeq: number) => eventually(`seq ${lastSeq}`, async () => (await head(runId)) >= lastSeq || undefined)
    return { sending, answered, stored, write: (events: object[]) => sending.write(events.map((one) => `${JSON.stringify(one)}\n`).join('')) }
  }
  const cutOff = async (runId: string, headers: Record<string, string>, events: object[]) => {
    const { sending, write, stored } = upload(runId, headers)
    const lastSeq = (await head(runId)) + events.length
    write(events)
    await stored(lastSeq)
    sending.destroy()
  }
  const lines = (events: object[]) => events.map((one) => JSON.stringify(one)).join('\n')

  for (const [name, headers] of Object.entries(keys)) {
    await t.test(`by its ${name}`, async (t) => {
      const events = Array.from({ length: 1500 }, (_, index) => event(index))
      const shorter = await client.createRun()
      await cutOff(shorter.runId, headers, events.slice(0, 1100))
      const again = await other.client.append(shorter.runId, lines(events), { ...ndjson, ...headers })
      t.match(again, { status: 200, body: { accepted: 400, duplicates: 1100 } }, 'as NDJSON, by an instance that makes smaller parts')
      t.same(await names(shorter.runId), namesOf(events))

      const few = Array.from({ length: 900 }, (_, index) => event(index, 2000))
      const asJson = await client.createRun()
      await cutOff(asJson.runId, headers, few.slice(0, 515))
      t.match(await client.append(asJson.runId, few, headers), { status: 200, body: { accepted: 385, duplicates: 515 } }, 'as JSON')
      t.match(await client.append(asJson.runId, lines(few), { ...ndjson, ...headers }), { status: 200, body: { accepted: 0, duplicates: 900 } })
      t.same(await names(asJson.runId), namesOf(few))

      const asLines = await client.createRun()
      t.match(await client.append(asLines.runId, few, headers), { status: 200, body: { accepted: 900 } })
      t.match(
        await client.append(asLines.runId, lines(few), { ...ndjson, ...headers }),
        { status: 200, body: { accepted: 0, duplicates: 900 } },
        'as NDJSON after JSON',
      )
      t.same(await names(asLines.runId), namesOf(few))
    })
  }

  await t.test('and is seen as it goes', async (t) => {
    const { runId } = await client.createRun()
    const { sending, answered, write, stored } = upload(runId, keys.key)
    write([event(0)])
    await stored(2)
    write([event(1), event(2)])
    await stored(4)
    sending.end()
    const [answer] = await answered
    t.match(await json(answer), { accepted: 3, duplicates: 0 })
    t.match(await client.append(runId, [event(0), event(1), event(2)], keys.key), { status: 200, body: { duplicates: 3 } })
  })

  await t.test('and ends where it ended: more or fewer events are another body, but for the seq of a producer', async (t) => {
    const three = [event(0), event(1), event(2)]
    const bodies = { shorter: three.slice(0, 2), longer: [...three, event(3)], other: [event(0), event(9), event(2)] }
    for (const first of ['json', 'ndjson', 'ndjson with a pause']) {
      const { runId } = await client.createRun()
      const seq = { ...keys.producer, 'producer-seq': '0' }
      for (const headers of [keys.key, seq]) {
        if (first === 'json') await client.append(runId, three, headers)
        else if (first === 'ndjson') await client.append(runId, lines(three), { ...ndjson, ...headers })
        else {
          const { sending, answered, write, stored } = upload(runId, headers)
          const lastSeq = (await head(runId)) + 3
          write(three)
          await stored(lastSeq)
          sending.end()
          ;(await answered)[0].resume()
        }
      }
      const before = await head(runId)
      for (const [name, body] of Object.entries(bodies)) {
        for (const [form, post] of Object.entries({
          json: (headers: Record<string, string>) => client.append(runId, body, headers),
          ndjson: (headers: Record<string, string>) => client.append(runId, lines(body), { ...ndjson, ...headers }),
        })) {
          const refused = await post(keys.key)
          t.match([refused.status, refused.text], [409, /IDEMPOTENCY_CONFLICT/], `${name} as ${form} after ${first}`)
          t.match(await post(seq), { status: 200, body: { accepted: 0, duplicates: 3 } }, `${name} as ${form} after ${first}, of a producer`)
        }
      }
      t.equal(await head(runId), before, 'nothing of it is stored')
    }
  })

  await t.test('and may be mended where nothing of it was taken', async (t) => {
    const { runId } = await client.createRun()
    for (const bad of ['5\n{"type":\n', '{"type":"nodot"}']) t.equal((await client.append(runId, bad, { ...ndjson, ...keys.key })).status, 422)
    t.match(await client.append(runId, [event(0), event(1)], keys.key), { status: 200, body: { accepted: 2 } })
  })

  await t.test('and was stored whole where its receipt is of a former version', async (t) => {
    const { runId } = await client.createRun()
    const three = [event(0), event(1), event(2)]
    await client.append(runId, three, keys.key)
    await client.append(runId, three, keys.producer)
    const former = createHash('sha256').update(JSON.stringify(three)).digest()
    await database.sql`update append_receipts set receipt = receipt->'results', body_hash = ${former}`
    t.match(await client.append(runId, three, keys.key), { status: 200, body: { duplicates: 3 } })
    t.match(await client.append(runId, [...three, event(3)], keys.producer), { status: 200, body: { duplicates: 3 } })
    t.equal((await client.append(runId, [...three, event(3)], keys.key)).status, 409)
  })
})

test('a request that would become too many canonical events is refused, and NDJSON is cut by what it becomes', async (t) => {
  const database = await testDatabase(t)
  const { client } = await served(t, database)
  const participants = Array.from({ length: 1000 }, (_, index) => `p${index}`)
  const starts = (count: number) =>
    Array.from({ length: count }, (_, index) => ({ messageType: 'SessionStart', messageId: `m${index}`, payload: { participants } }))
  const { runId } = await client.createRun()
  const post = (path: string, body: unknown, type = 'application/json') =>
    client.send<Receipt>('POST', `${path}?format=macp`, { body, contentType: type, headers: { prefer: 'return=minimal' } })
  for (const path of [`/runs/${runId}/events`, '/ingest/explain']) {
    const refused = await post(path, starts(10))
    t.match([refused.status, refused.text], [413, /PAYLOAD_TOO_LARGE.*10000 canonical events/], path)
  }
  const lines = starts(12).map((one) => JSON.stringify(one))
  t.equal((await post('/ingest/explain', lines.join('\n'), 'application/x-ndjson')).status, 413)
  t.equal((await client.get<RunRecord>(`/runs/${runId}`)).body.lastSeq, 1, 'nothing is stored')
  t.match(await post(`/runs/${runId}/events`, starts(9)), { status: 200, body: { accepted: 9, headSeq: 1 + 9 * 1002 } })

  const other = await client.createRun()
  const answer = await client.send('POST', `/runs/${other.runId}/events?format=macp`, {
    body: lines.join('\n'),
    headers: { 'content-type': 'application/x-ndjson', 'idempotency-key': 'k' },
  })
  t.match(answer, { status: 200, body: { accepted: 12, headSeq: 1 + 12 * 1002 } })
  const receipts = await database.sql<{ items: number }[]>`select json_array_length(receipt->'results') as items from append_receipts order by request_key`
  t.same(
    receipts.map(({ items }) => items),
    [10, 2],
  )
})

test('what is to be explained is bounded, as NDJSON too, and the client that has sent more gets its answer', async (t) => {
  const { client } = await served(t, await testDatabase(t), { MAX_BODY_BYTES: '1000000' })
  const line = JSON.stringify({ type: 'custom.emitted', data: { name: 'x', value: 'x'.repeat(200_000) } })
  const explain = (count: number) =>
    client.send('POST', '/ingest/explain', { body: Array.from({ length: count }, () => line).join('\n'), headers: { 'content-type': 'application/x-ndjson' } })
  t.match(await explain(4), { status: 200, body: { wouldStore: 4 } })
  const refused = await explain(100)
  t.match([refused.status, refused.text], [413, /1000000 bytes.*MAX_BODY_BYTES/])
})
