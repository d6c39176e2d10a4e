/** The logger of a request, made when it first writes: most requests write nothing, and a child of pino's with its redaction costs each 10 µs. */
import type { FastifyBaseLogger } from 'fastify'

export class RequestLogger implements FastifyBaseLogger {
  private made: FastifyBaseLogger | undefined

  constructor(
    private readonly parent: FastifyBaseLogger,
    private readonly bindings: Parameters<FastifyBaseLogger['child']>[0],
    private readonly options: Parameters<FastifyBaseLogger['child']>[1],
  ) {}

  private get own(): FastifyBaseLogger {
    this.made ??= this.parent.child(this.bindings, this.options)
    return this.made
  }

  get level() {
    return this.own.level
  }
  set level(level) {
    this.own.level = level
  }
  child(...how: Parameters<FastifyBaseLogger['child']>) {
    return this.own.child(...how)
  }
  fatal(...line: unknown[]) {
    Reflect.apply(this.own.fatal, this.own, line)
  }
  error(...line: unknown[]) {
    Reflect.apply(this.own.error, this.own, line)
  }
  warn(...line: unknown[]) {
    Reflect.apply(this.own.warn, this.own, line)
  }
  info(...line: unknown[]) {
    Reflect.apply(this.own.info, this.own, line)
  }
  debug(...line: unknown[]) {
    Reflect.apply(this.own.debug, this.own, line)
  }
  trace(...line: unknown[]) {
    Reflect.apply(this.own.trace, this.own, line)
  }
  silent() {}
}
