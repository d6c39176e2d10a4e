/** The log: JSON lines on stdout, one a request. Neither payloads nor secrets are in it. */
import { type DestinationStream, type Logger, pino, stdTimeFunctions } from 'pino'
import { type Config, maskPatterns } from '../config.js'
import { createMask } from '../ingest/mask.js'

/** @param destination where the lines go; none: stdout. */
export function createLogger(config: Pick<Config, 'LOG_LEVEL' | 'MASK_PATTERNS'>, destination?: DestinationStream): Logger {
  const options = {
    level: config.LOG_LEVEL,
    base: null,
    timestamp: stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    serializers: { err: loggableError },
    redact: ['authorization', 'key', 'password', 'secret', 'token', '*.authorization', '*.key', '*.password', '*.secret', '*.token'],
  }
  const mask = createMask(maskPatterns(config))
  if (mask.isOff) return destination ? pino(options, destination) : pino(options)
  const out = destination ?? pino.destination(1)
  return pino(options, { write: (line) => out.write(mask.json(line)) })
}

const SECRET_NAME = /token|key|secret|password|signature/i

/** The target of a request for the log: the values of parameters that may be secret are left out. */
export function loggableUrl(url: string): string {
  const start = url.indexOf('?')
  if (start < 0) return url
  const query = url.slice(start + 1).split('&')
  return `${url.slice(0, start)}?${query.map((pair) => (SECRET_NAME.test(pair.split('=', 1)[0] ?? '') ? `${pair.split('=', 1)[0]}=***` : pair)).join('&')}`
}

interface LoggableError {
  type: string
  code?: string
  message: string
  stack?: string
  cause?: LoggableError
}

/** An error without the values of a query: they are payloads, and drizzle puts them into its message. */
export function loggableError(error: unknown, depth = 0): LoggableError {
  if (!(error instanceof Error)) return { type: typeof error, message: String(error).slice(0, 1000) }
  return {
    type: error.name,
    ...('code' in error && { code: String(error.code) }),
    message: (error.message.split('\nparams:', 1)[0] ?? '').slice(0, 1000),
    stack: error.stack
      ?.split('\n')
      .filter((line) => line.startsWith('    at '))
      .join('\n'),
    ...(error.cause !== undefined && depth < 5 && { cause: loggableError(error.cause, depth + 1) }),
  }
}
