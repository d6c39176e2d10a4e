/** A receiver of webhooks: a real HTTP server that verifies what it gets with the public library, and answers as a test wants it to. */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { Webhook } from 'standardwebhooks'
import type { CanonicalEvent } from './http.js'
import { eventually } from './http.js'
import type { Teardown } from './service.js'

export interface Received {
  id: string
  signatures: string[]
  type: string
  timestamp: string
  data: CanonicalEvent
  /** The body, as it came. */
  text: string
  path: string
  headers: IncomingMessage['headers']
  /** By standardwebhooks with the receiver's secret. */
  verified: boolean
  /** What was answered; undefined while it is not. */
  status?: number
}

export interface Answer {
  status: number
  headers?: Record<string, string>
  body?: string
}

/** What to do with a request: an answer, or something of its own with the response. */
export type Behaviour = (received: Received, response: ServerResponse, request: IncomingMessage) => Answer | undefined | Promise<Answer | undefined>

export interface Receiver {
  readonly url: string
  readonly port: number
  /** All that came, in the order of arrival. */
  readonly received: Received[]
  /** That were answered 2xx, in the order of the answers. */
  readonly accepted: Received[]
  behave: Behaviour
  /** Known once the endpoint is made; null: nothing is verified. */
  secret: string | null
  /** The most requests that were open at once. */
  readonly mostAtOnce: number
  until(what: string, fits: (received: Received[]) => boolean, timeoutMs?: number): Promise<void>
  /** Refuses connections until `open` is called. */
  shut(): Promise<void>
  open(): Promise<void>
}

export const OK: Answer = { status: 204 }

export async function startReceiver(t: Teardown, behave: Behaviour = () => OK): Promise<Receiver> {
  const received: Received[] = []
  const accepted: Received[] = []
  const sockets = new Set<Socket>()
  let atOnce = 0
  let mostAtOnce = 0
  let port = 0

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    mostAtOnce = Math.max(mostAtOnce, ++atOnce)
    response.once('close', () => atOnce--)
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    const text = Buffer.concat(chunks).toString('utf8')
    const { type, timestamp, data } = JSON.parse(text)
    const one: Received = {
      id: String(request.headers['webhook-id']),
      signatures: String(request.headers['webhook-signature']).split(' '),
      type,
      timestamp,
      data,
      text,
      path: String(request.url),
      headers: request.headers,
      verified: receiver.secret !== null && verifies(receiver.secret, text, request.headers),
    }
    received.push(one)
    const answer = await receiver.behave(one, response, request)
    if (!answer) return
    one.status = answer.status
    if (answer.status < 300) accepted.push(one)
    response.writeHead(answer.status, answer.headers).end(answer.body)
  }

  const server = createServer((request, response) => {
    handle(request, response).catch(() => response.destroy())
  })
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  const shut = async () => {
    const closed = new Promise((resolve) => server.close(resolve))
    for (const socket of sockets) socket.destroy()
    await closed
  }
  const open = async () => {
    await once(server.listen(port, '127.0.0.1'), 'listening')
    const address = server.address()
    if (address === null || typeof address === 'string') throw new Error('no port')
    port = address.port
  }
  const receiver: Receiver = {
    get url() {
      return `http://127.0.0.1:${port}/hook`
    },
    get port() {
      return port
    },
    received,
    accepted,
    behave,
    secret: null,
    get mostAtOnce() {
      return mostAtOnce
    },
    until: async (what, fits, timeoutMs = 20_000) => {
      await eventually(what, () => (fits(received) ? true : undefined), timeoutMs)
    },
    shut,
    open,
  }
  await open()
  t.teardown(async () => {
    if (server.listening) await shut()
  })
  return receiver
}

export function verifies(secret: string, text: string, headers: IncomingMessage['headers']): boolean {
  try {
    new Webhook(secret).verify(text, {
      'webhook-id': String(headers['webhook-id']),
      'webhook-timestamp': String(headers['webhook-timestamp']),
      'webhook-signature': String(headers['webhook-signature']),
    })
    return true
  } catch {
    return false
  }
}

/** The seqs that came of each run, repeats left out: in the order of the first time that each was accepted. */
export function seqsByRun(accepted: readonly Received[]): Map<string, number[]> {
  const byRun = new Map<string, number[]>()
  for (const { data } of accepted) {
    const seqs = byRun.get(data.runId) ?? []
    if (!seqs.includes(data.seq)) seqs.push(data.seq)
    byRun.set(data.runId, seqs)
  }
  return byRun
}
