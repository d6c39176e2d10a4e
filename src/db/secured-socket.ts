/**
 * A connection with TLS for the driver, which by itself loses what it has gathered when such a connection closes (see steady-socket.ts). The server is asked
 * for TLS (SSLRequest: PostgreSQL 18, section 54.2.11), and what the driver writes waits until both are agreed. To the driver this is a plain connection.
 *
 *   asking --('S')--> agreeing --(the certificate is accepted)--> open --(either side ends)--> destroyed
 *   asking --('N', and TLS is only preferred)--> open, without TLS
 *   any --(a fault)--> destroyed
 */
import { isIP, type Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { type ConnectionOptions, connect } from 'node:tls'
import { createMessageReads } from './message-reads.js'

/** What `sslmode` (or `ssl`) and `sslnegotiation` of the URL say, as the driver understands them. */
export interface TlsMode {
  /** `require`, `allow` and `prefer` take any certificate; everything else wants one of a known authority with the name of the host. */
  mode: unknown
  /** TLS from the first byte on (PostgreSQL 17 and newer). */
  direct: boolean
}

const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47])

export class SecuredSocket extends Duplex {
  readonly #raw: Socket
  #inner: Socket | undefined
  #waiting: (() => void) | undefined

  /** @param raw is on its way to be connected, and belongs to this socket from now on. @param isOnly see steadySockets */
  constructor(
    raw: Socket,
    readonly host: string,
    readonly port: number,
    { mode, direct }: TlsMode,
    readonly isOnly: boolean,
  ) {
    super({ allowHalfOpen: false })
    this.#raw = raw
    raw.on('error', (error) => this.destroy(error))
    raw.on('close', () => this.destroy())
    if (direct) this.#secure(mode, ['postgresql'])
    else {
      raw.once('connect', () => raw.write(SSL_REQUEST))
      raw.once('data', (answer) => {
        // More than one byte would be somebody's who is in between, taken later for the server's.
        if (answer.length === 1 && answer[0] === 0x53) this.#secure(mode)
        else if (answer.length === 1 && mode === 'prefer') this.#open(raw)
        else this.destroy(Object.assign(new Error('The server does not take connections with TLS'), { code: 'NO_TLS' }))
      })
    }
  }

  #secure(mode: unknown, protocols?: string[]): void {
    const isAnyTaken = mode === 'require' || mode === 'allow' || mode === 'prefer'
    const options: ConnectionOptions = { socket: this.#raw, host: this.host, rejectUnauthorized: !isAnyTaken }
    if (!isIP(this.host)) options.servername = this.host
    if (protocols) options.ALPNProtocols = protocols
    // From here on the fault is told by what is around it.
    this.#raw.removeAllListeners('close')
    const secured = connect(options)
    secured.on('error', (error) => this.destroy(error))
    secured.on('close', () => this.destroy())
    secured.once('secureConnect', () => this.#open(secured))
  }

  #open(inner: Socket): void {
    this.#inner = inner
    const take = (bytes: Buffer) => this.push(Buffer.from(bytes)) || inner.pause()
    const reads = createMessageReads(take, this.isOnly ? (error) => this.destroy(error) : undefined)
    inner.on('data', (bytes: Buffer) => reads.read(bytes))
    inner.on('end', () => this.destroy())
    this.#waiting?.()
  }

  /** For the driver, which says goodbye on an open connection only, and waits for one that is not closed. */
  get readyState(): 'opening' | 'open' | 'closed' {
    return this.destroyed ? 'closed' : this.#inner ? 'open' : 'opening'
  }

  setKeepAlive(enable: boolean, initialDelayMs: number): this {
    this.#raw.setKeepAlive(enable, initialDelayMs)
    return this
  }

  #whenOpen(work: (inner: Socket) => void): void {
    if (this.#inner) work(this.#inner)
    else this.#waiting = () => this.#inner && work(this.#inner)
  }

  override _read(): void {
    this.#inner?.resume()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#whenOpen((inner) => inner.write(chunk, done))
  }

  /** What was written meanwhile goes out as one. */
  override _writev(chunks: { chunk: Buffer }[], done: (error?: Error | null) => void): void {
    this._write(Buffer.concat(chunks.map(({ chunk }) => chunk)), 'binary', done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#whenOpen((inner) => inner.end(() => done()))
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#inner?.destroy()
    this.#raw.destroy()
    done(error)
  }
}
