/**
 * The baseline of fan-out and of a reader's memory: node:http and nothing else. One process, started with an IPC channel.
 *
 *   GET /stream              holds the connection open, and writes one ready comment
 *   POST /write?frames=n     writes the body, a ready frame, n times to every open connection, one frame a write, then answers
 *
 * A connection that is full is waited for, as any server must that does not want to buffer without bound.
 */
import { once } from 'node:events'
import { createServer } from 'node:http'

const readers = new Set()

const server = createServer(async (request, response) => {
  const url = new URL(request.url, 'http://bare')
  if (url.pathname === '/stream') {
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache, no-transform' })
    response.write(': ready\n\n')
    readers.add(response)
    response.on('close', () => readers.delete(response))
    return
  }
  const parts = []
  for await (const part of request) parts.push(part)
  const frame = Buffer.concat(parts)
  for (let left = Number(url.searchParams.get('frames')); left > 0; left--) {
    for (const reader of readers) {
      if (reader.writableNeedDrain) await once(reader, 'drain')
      reader.write(frame)
    }
    await new Promise((resolve) => setImmediate(resolve))
  }
  response.setHeader('Content-Length', 0)
  response.end()
})
server.listen(0, '127.0.0.1', () => process.send?.({ port: server.address().port }))
