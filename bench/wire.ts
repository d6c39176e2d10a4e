/**
 * HTTP/1.1 by hand over net sockets: the load generator shares two cores with what it measures, so requests are prebuilt bytes and
 * answers are read no further than their status and length. One request at a time on a connection.
 */
import { connect, type Socket } from 'node:net'

export interface Reply {
  status: number
  body: string
}

export interface Connection {
  send(request: Buffer): Promise<Reply>
  close(): void
}

export function request(port: number, method: string, path: string, body?: string, headers: Record<string, string> = {}): Buffer {
  const lines = [`${method} ${path} HTTP/1.1`, `Host: 127.0.0.1:${port}`, ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`)]
  if (body !== undefined) lines.push('Content-Type: application/json', `Content-Length: ${Buffer.byteLength(body)}`)
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n${body ?? ''}`)
}

const END_OF_HEAD = Buffer.from('\r\n\r\n')

export function openConnection(port: number): Promise<Connection> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    let waiting: { resolve(reply: Reply): void; reject(error: Error): void } | undefined
    let received: Buffer | undefined
    const fail = (error: Error) => {
      reject(error)
      waiting?.reject(error)
      waiting = undefined
    }
    socket.on('error', fail)
    socket.on('close', () => fail(new Error('the service closed the connection')))
    socket.on('data', (chunk) => {
      received = received === undefined ? chunk : Buffer.concat([received, chunk])
      const headEnd = received.indexOf(END_OF_HEAD)
      if (headEnd < 0) return
      const head = received.toString('latin1', 0, headEnd)
      const length = /\r\ncontent-length: *(\d+)/i.exec(head)
      if (!length && !/^HTTP\/1.1 (204|304)/.test(head)) return fail(new Error(`an answer without a length: ${head}`))
      const end = headEnd + 4 + Number(length?.[1] ?? 0)
      if (received.length < end) return
      const reply = { status: Number(head.slice(9, 12)), body: received.toString('utf8', headEnd + 4, end) }
      received = undefined
      const { resolve: answer } = waiting ?? { resolve: () => undefined }
      waiting = undefined
      answer(reply)
    })
    socket.on('connect', () =>
      resolve({
        send: (bytes) =>
          new Promise((resolve, reject) => {
            waiting = { resolve, reject }
            socket.write(bytes)
          }),
        close: () => {
          socket.removeAllListeners('close')
          socket.destroy()
        },
      }),
    )
  })
}

export function openConnections(port: number, count: number): Promise<Connection[]> {
  return Promise.all(Array.from({ length: count }, () => openConnection(port)))
}

/** Sends and insists on a 2xx. */
export async function must(connection: Connection, bytes: Buffer): Promise<string> {
  const reply = await connection.send(bytes)
  if (reply.status < 200 || reply.status > 299)
    throw new Error(`${bytes.toString('utf8', 0, bytes.indexOf('\r\n'))}: ${reply.status} ${reply.body.slice(0, 300)}`)
  return reply.body
}

/** All streams read into one buffer, one after another: 1,000 readers cost no memory of their own. */
const shared = Buffer.allocUnsafeSlow(65_536)

/** A GET whose answer streams. `onBytes` sees a buffer that is overwritten afterwards; false from it stops the reading. */
export function openStream(port: number, path: string, onBytes: (chunk: Buffer) => boolean): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1', onread: { buffer: shared, callback: (size) => onBytes(shared.subarray(0, size)) } })
    socket.on('error', reject)
    socket.on('connect', () => {
      socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nAccept: text/event-stream\r\n\r\n`)
      resolve(socket)
    })
  })
}
const ID = Buffer.from('\nid:')

/**
 * Counts the frames with an id in the bytes of an event stream, however they are cut, and insists that the ids have no hole.
 * @param after the id before the first one expected.
 */
export function frameCounter(after: number): { push(chunk: Buffer): number; readonly last: number } {
  let last = after
  let rest: Buffer = Buffer.alloc(0)
  return {
    get last() {
      return last
    },
    push(chunk) {
      const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
      let from = 0
      for (;;) {
        const at = bytes.indexOf(ID, from)
        if (at < 0) {
          from = Math.max(from, bytes.length - ID.length + 1)
          break
        }
        let end = at + ID.length
        if (bytes[end] === 0x20) end++
        let id = 0
        for (; end < bytes.length; end++) {
          const digit = (bytes[end] ?? 0) - 0x30
          if (digit < 0 || digit > 9) break
          id = id * 10 + digit
        }
        if (end === bytes.length) {
          from = at
          break
        }
        if (id !== last + 1) throw new Error(`frame ${id} came after frame ${last}`)
        last = id
        from = end
      }
      rest = Buffer.from(bytes.subarray(from))
      return last
    },
  }
}
