/**
 * Answers that become ready in one turn of the event loop, as those of a commit do, are written one right after another when the turn ends.
 * With the work for the next answer between them, each write would wake a client that has just gone to sleep again.
 */
import type { Socket } from 'node:net'
import type { FastifyInstance } from 'fastify'
import fastifyPlugin from 'fastify-plugin'

type Writev = NonNullable<Socket['_writev']>

export const gatheredWritesPlugin = fastifyPlugin(
  async (app: FastifyInstance) => {
    let ready: (() => void)[] = []
    const writeAll = () => {
      const writes = ready
      ready = []
      for (const write of writes) write()
    }
    app.server.on('connection', (socket: Socket) => {
      const writev = socket._writev?.bind(socket)
      if (!writev) return
      socket._writev = (...how: Parameters<Writev>) => {
        if (ready.push(() => writev(...how)) === 1) process.nextTick(writeAll)
      }
    })
  },
  { name: 'gathered-writes' },
)
