/** The wire's end of the append: bodies that are refused on their way. */
import { once } from 'node:events'
import { connect } from 'node:net'
import { test } from 'tap'
import { testDatabase } from '../support/database.js'
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
