/**
 * A TCP proxy that cuts connections at random: after some number of bytes in either direction, in the middle of a chunk,
 * by an end or by a reset. The same seed makes the same decisions in the same order.
 */
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import type { Teardown } from './service.js'

export interface CuttingProxy {
  readonly url: string
  readonly port: number
  /** Connections that were cut so far. */
  readonly cuts: number
  /** False lets everything through from now on, connections that are open included. */
  cutting: boolean
}

/** A generator of numbers in [0, 1) that a seed fixes (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

/** @param options.bytes the least and the greatest number of bytes, both ways together, that a connection carries before it is cut */
export async function startProxy(
  t: Teardown,
  options: { target: string; seed: number; bytes: readonly [number, number]; cutting?: boolean },
): Promise<CuttingProxy> {
  const random = seededRandom(options.seed)
  const target = new URL(options.target)
  const sockets = new Set<Socket>()
  const state = { cutting: options.cutting ?? true, cuts: 0 }

  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname)
    const [least, greatest] = options.bytes
    let budget = Math.floor(least + random() * (greatest - least))
    let isCut = false
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        sockets.delete(socket)
        client.destroy()
        upstream.destroy()
      })
    }
    const cut = () => {
      isCut = true
      state.cuts++
      upstream.destroy()
      if (random() < 0.5) client.resetAndDestroy()
      else client.end(() => client.destroy())
    }
    const relay = (from: Socket, to: Socket) => {
      from.on('data', (chunk: Buffer) => {
        if (isCut) return
        if (state.cutting && chunk.length > budget) {
          const head = chunk.subarray(0, budget)
          budget = 0
          to.write(head, cut)
          return
        }
        if (state.cutting) budget -= chunk.length
        if (!to.write(chunk)) {
          from.pause()
          to.once('drain', () => from.resume())
        }
      })
      from.on('end', () => to.end())
    }
    relay(client, upstream)
    relay(upstream, client)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('the proxy has no port')
  return {
    url: `http://127.0.0.1:${address.port}`,
    port: address.port,
    get cuts() {
      return state.cuts
    },
    get cutting() {
      return state.cutting
    },
    set cutting(cutting: boolean) {
      state.cutting = cutting
    },
  }
}
