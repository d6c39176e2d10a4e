/**
 * A socket for the driver that is lost in an orderly way. postgres 3.4.9 keeps what it has gathered for the next turn of the event loop
 * when its connection closes: it then writes to a socket that is gone (an uncaught TypeError), or sends the leftover ahead of the next
 * connection's start; and what is sent between a socket's `error` and its `close` is never answered.
 *
 * So an error comes at once, which rejects what is unanswered: what follows it, as the rollback of a transaction, is then still written (to nobody), and not
 * to a socket that is gone. `close` comes two turns later, when what was gathered is written, and says that there was no error before, upon which the driver
 * rejects whatever is unanswered by then. With TLS too: the driver is told that there is none, and secured-socket.ts agrees it.
 */
import { type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net'
import type { Duplex } from 'node:stream'
import { createMessageReads } from './message-reads.js'
import { SecuredSocket, type TlsMode } from './secured-socket.js'

class SteadySocket extends Socket {
  /** `data` comes as whole messages, in memory that is used again: see message-reads.ts. @param isOnly see steadySockets */
  constructor(isOnly: boolean) {
    const reads = createMessageReads((bytes) => this.emit('data', bytes), isOnly ? (error) => this.destroy(error) : undefined)
    const callback = (bytes: number) => {
      reads.arrived(bytes)
      return true
    }
    const options: SocketConstructorOpts & { onread: OnReadOpts } = { onread: { buffer: reads.room, callback } }
    super(options)
  }
}

/** Lets the socket close as it is said above. */
function closingInOrder<Kind extends Duplex>(socket: Kind): Kind {
  const emit = socket.emit.bind(socket)
  let closing = false
  let answered = false
  socket.emit = (event: string | symbol, ...values: unknown[]): boolean => {
    answered ||= event === 'data'
    // The driver lets go of a socket before its last error has come.
    if (event === 'error' && socket.listenerCount('error') === 0) return false
    if (event !== 'close') return emit(event, ...values)
    if (!closing) {
      closing = true
      // Before the first answer the driver connects again by itself.
      if (answered) socket.emit('error', Object.assign(new Error('The connection was closed'), { code: 'CONNECTION_CLOSED' }))
      setImmediate(() => setImmediate(() => writingOut(() => emit('close', false))))
    }
    return true
  }
  return socket
}

/**
 * At `close` the driver clears the immediate that would write what it has gathered, and keeps that: it goes out ahead of the next connection's start, or, where both
 * are short, neither goes out before the connection's time is over. So the immediate runs at that moment, and writes to nobody.
 */
function writingOut(close: () => void): void {
  const { clearImmediate } = globalThis
  globalThis.clearImmediate = (immediate) => {
    globalThis.clearImmediate = clearImmediate
    const write = pendingOf(immediate)
    clearImmediate(immediate)
    write?.()
  }
  try {
    close()
  } finally {
    globalThis.clearImmediate = clearImmediate
  }
}

/** What an immediate is to do. Node keeps it in a member of the object, which has no other name. */
function pendingOf(immediate: unknown): (() => void) | undefined {
  if (typeof immediate !== 'object' || immediate === null || !('_onImmediate' in immediate)) return undefined
  const { _onImmediate: pending } = immediate
  return typeof pending === 'function' ? () => Reflect.apply(pending, immediate, []) : undefined
}

interface Target {
  path?: string | (() => string) | undefined
  host: string[]
  port: number[]
}

/**
 * For the driver's option `socket`. Of several hosts the next one is tried each time; writes wait in the socket until it is connected.
 * An error that ends the session is the socket's, unless there are several hosts: after such an error the driver tries the next, for ever where all refuse.
 * @param tls undefined: without. The driver's own option `ssl` has to be false.
 */
export function steadySockets(tls?: TlsMode): (target: Target) => Duplex {
  let attempts = 0
  return ({ path, host: hosts, port: ports }) => {
    const socketPath = typeof path === 'function' ? path() : path
    const turn = attempts++ % Math.max(1, hosts.length)
    const host = hosts[turn] ?? 'localhost'
    const port = ports[turn] ?? 5432
    const isOnly = hosts.length <= 1
    const socket = tls ? new Socket() : closingInOrder(new SteadySocket(isOnly))
    socket.setNoDelay(true)
    if (socketPath) socket.connect(socketPath)
    else socket.connect(port, host)
    return tls ? closingInOrder(new SecuredSocket(socket, host, port, tls, isOnly)) : socket
  }
}
