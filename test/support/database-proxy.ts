/** A proxy in front of a database, with TLS or without, whose connections can be cut. */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { TLSSocket } from 'node:tls'
import type { Database } from '../../src/db/client.js'
import { selfSigned } from './certificate.js'
import type { Teardown } from './database.js'

const certificate = selfSigned('localhost')
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47])

export interface DatabaseProxy {
  /** Of the database through the proxy; without `sslmode`. */
  url: string
  /** Connections that were secured so far. */
  readonly secured: number
  /** Ends all connections without a word, as a server does that is killed. */
  cut(): void
}

/** @param answer to the request for TLS: 'S' is a yes. */
export async function databaseProxy(t: Teardown, { url, sql }: Database, answer = 'S'): Promise<DatabaseProxy> {
  const target = new URL(url.replace('@/', '@localhost/'))
  const folder = target.searchParams.get('host')
  const open = new Set<Socket>()
  let secured = 0

  const server = createServer((client) => {
    open.add(client)
    client.on('error', () => {})
    client.on('close', () => open.delete(client))
    // A listener rather than a promise: a connection may be cut before its first byte.
    client.once('data', (first: Buffer) => {
      if (!SSL_REQUEST.equals(first)) return forward(client, first)
      client.write(answer)
      if (answer !== 'S') return forward(client)
      secured++
      forward(new TLSSocket(client, { isServer: true, ...certificate }))
    })
  })
  function forward(client: Duplex, first?: Buffer): void {
    const upstream = folder ? connect(`${folder}/.s.PGSQL.5432`) : connect(Number(target.port || 5432), target.hostname)
    upstream.on('error', () => client.destroy())
    client.on('error', () => upstream.destroy())
    client.on('close', () => upstream.destroy())
    if (first) upstream.write(first)
    client.pipe(upstream).pipe(client)
  }
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const cut = () => {
    for (const socket of open) socket.destroy()
  }
  t.teardown(() => {
    cut()
    server.close()
  })
  const [{ name }] = await sql<[{ name: string }]>`select current_database() as name`
  const credentials = target.password ? `${target.username}:${target.password}` : target.username
  const { port } = server.address() as AddressInfo
  return {
    url: `postgres://${credentials}@localhost:${port}/${name}`,
    cut,
    get secured() {
      return secured
    },
  }
}
