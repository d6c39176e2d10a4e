/** A source that the service reads itself: what may be named as one, and the request that reads it from a cursor on. */
import type { RunPlan } from '../domain/run-request.js'
import { type ProblemField, RunplaneError } from '../errors.js'
import { formatFor, NDJSON_TYPES } from '../ingest/normalize.js'
import type { Outbound } from '../ops/outbound.js'
import { VERSION } from '../ops/version.js'

export type SourceConfig = NonNullable<RunPlan['source']>

/** In the query of a source's URL, where its cursor goes. */
const CURSOR_PLACEHOLDER = '{cursor}'
/** Where the URL has no such place. */
const CURSOR_PARAMETER = 'lastEventId'
/** They are the connection's own (RFC 9110, section 7.6.1), or undici refuses them. */
const OWN_HEADERS = new Set([
  'connection',
  'content-length',
  'expect',
  'host',
  'http2-settings',
  'keep-alive',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'accept-encoding',
])
const HEADER_NAME = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}$/
const HEADER_VALUE = /^[\t\x20-\x7e\x80-\xff]{0,8192}$/
const MAX_HEADERS = 50

/**
 * Looks at what a run names for the service to call: its source and its cancelCallback.
 * @throws VALIDATION_ERROR with all that is wrong
 */
export function assertCallable({ source, cancelCallback, cancelCallbackPath = 'body/cancelCallback' }: RunPlan, outbound: Pick<Outbound, 'assertUrl'>): void {
  const errors: ProblemField[] = []
  const look = (path: string, check: () => unknown) => {
    try {
      check()
    } catch (error) {
      if (!(error instanceof RunplaneError)) throw error
      errors.push({ path, message: error.message })
    }
  }
  if (source) {
    look('body/source/url', () => outbound.assertUrl(source.url))
    look('body/source/format', () => formatFor(undefined, source.format))
    look('body/source/headers', () => assertHeaders(source.headers))
  }
  if (cancelCallback) {
    look(`${cancelCallbackPath}/url`, () => outbound.assertUrl(cancelCallback.url))
    look(`${cancelCallbackPath}/headers`, () => assertHeaders(cancelCallback.headers))
  }
  const [first] = errors
  if (first) throw new RunplaneError('VALIDATION_ERROR', `The run cannot be created: ${first.path}: ${first.message}`, { errors })
}

function assertHeaders(headers: Record<string, string> = {}): void {
  const entries = Object.entries(headers)
  if (entries.length > MAX_HEADERS) throw new RunplaneError('VALIDATION_ERROR', `At most ${MAX_HEADERS} headers are sent.`)
  for (const [name, value] of entries) {
    if (!HEADER_NAME.test(name) || !HEADER_VALUE.test(value)) {
      throw new RunplaneError('VALIDATION_ERROR', `'${name.slice(0, 64)}' is not a header that can be sent, or its value is not.`)
    }
    if (OWN_HEADERS.has(name.toLowerCase())) throw new RunplaneError('VALIDATION_ERROR', `The header '${name}' is the connection's own. Leave it out.`)
  }
}

/** The source without its secrets, for the log and for what is told of it. */
export function nameOf(config: SourceConfig | null): string {
  return config && URL.canParse(config.url) ? new URL(config.url).host.slice(0, 200) : 'source'
}

/**
 * The request that reads what comes after the cursor. No compression is asked for, so that no answer is larger than what crosses the wire.
 * @param cursor null: from where the source begins
 */
export function sourceRequest(config: SourceConfig, cursor: string | null): { url: URL; headers: Record<string, string> } {
  const url = new URL(config.url)
  const headers: Record<string, string> = {
    accept: ['text/event-stream', ...NDJSON_TYPES].join(', '),
    'accept-encoding': 'identity',
    'cache-control': 'no-cache',
    'user-agent': `runplane/${VERSION}`,
  }
  for (const [name, value] of Object.entries(config.headers ?? {})) headers[name.toLowerCase()] = value
  let placed = false
  for (const [name, value] of [...url.searchParams]) {
    if (!value.includes(CURSOR_PLACEHOLDER)) continue
    placed = true
    if (cursor === null) url.searchParams.delete(name)
    else url.searchParams.set(name, value.replaceAll(CURSOR_PLACEHOLDER, cursor))
  }
  if (cursor === null) return { url, headers }
  if (config.resume === 'query') {
    if (!placed) url.searchParams.set(CURSOR_PARAMETER, cursor)
  } else {
    // A header holds bytes; an id is UTF-8 (WHATWG HTML, section 9.2.3).
    headers['last-event-id'] = Buffer.from(cursor, 'utf8').toString('latin1')
  }
  return { url, headers }
}
