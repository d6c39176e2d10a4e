/** The log: JSON lines on stdout, one a request. Neither payloads nor secrets are in it. */
import { type DestinationStream, type Logger, pino, stdTimeFunctions } from 'pino'
import type { Config } from '../config.js'

/** @param destination where the lines go; none: stdout. */
export function createLogger(config: Pick<Config, 'LOG_LEVEL'>, destination?: DestinationStream): Logger {
  const options = {
    level: config.LOG_LEVEL,
    base: null,
    timestamp: stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    redact: [
      'authorization',
      'key',
      'password',
      'secret',
      'token',
      '*.authorization',
      '*.key',
      '*.password',
      '*.secret',
      '*.token',
      '*.parameters',
      '*.params',
    ],
  }
  return destination ? pino(options, destination) : pino(options)
}

const SECRET_NAME = /token|key|secret|password|signature/i

/** The target of a request for the log: the values of parameters that may be secret are left out. */
export function loggableUrl(url: string): string {
  const start = url.indexOf('?')
  if (start < 0) return url
  const query = url.slice(start + 1).split('&')
  return `${url.slice(0, start)}?${query.map((pair) => (SECRET_NAME.test(pair.split('=', 1)[0] ?? '') ? `${pair.split('=', 1)[0]}=***` : pair)).join('&')}`
}
