/** What an answer of a source means, how long a reader waits, and what its bytes become. */
import t from 'tap'
import { RunplaneError } from '../../src/errors.js'
import { createMask } from '../../src/ingest/mask.js'
import { formatFor } from '../../src/ingest/normalize.js'
import { AddressRefused } from '../../src/ops/outbound.js'
import { createSourceItems } from '../../src/runs/attach-items.js'
import { sourceRequest } from '../../src/runs/attach-source.js'
import { backoffMs, verdictOnAnswer, verdictOnError } from '../../src/runs/attach-verdict.js'

const NOW_MS = Date.UTC(2026, 10, 21)
const verdict = (statusCode: number, headers: Record<string, string> = {}, bound = true) => verdictOnAnswer({ statusCode, headers }, { bound, nowMs: NOW_MS })

t.test('answers are told apart into those worth another try and those not', async (t) => {
  for (const status of [408, 425, 429, 500, 502, 503, 504, 599]) t.equal(verdict(status).kind, 'again', String(status))
  for (const status of [201, 206, 301, 302, 307, 308, 400, 401, 403, 404, 405, 410, 422]) t.equal(verdict(status).kind, 'never', String(status))
  t.equal(verdict(404, {}, false).kind, 'again', 'a source that has never been there may start later')
  t.equal(verdict(204).kind, 'ended')
  for (const [type, kind] of Object.entries({
    'text/event-stream': 'sse',
    'Text/Event-Stream; charset=utf-8': 'sse',
    'application/x-ndjson': 'ndjson',
    'application/jsonl;x=1': 'ndjson',
  })) {
    t.match(verdict(200, { 'content-type': type }), { kind: 'read', as: kind }, type)
  }
  for (const type of ['', 'application/json', 'text/html', 'text/plain']) t.equal(verdict(200, { 'content-type': type }).kind, 'never', type)
  t.equal(verdict(200, { 'content-type': 'text/event-stream', 'content-encoding': 'br' }).kind, 'never')
  t.equal(verdict(200, { 'content-type': 'text/event-stream', 'content-encoding': 'identity' }).kind, 'read')
})

t.test('Retry-After is seconds or a date, within bounds', async (t) => {
  const wait = (value: string) => {
    const found = verdict(429, { 'retry-after': value })
    return found.kind === 'again' ? found.retryAfterMs : 'another verdict'
  }
  t.equal(wait('7'), 7000)
  t.equal(wait(new Date(NOW_MS + 5000).toUTCString()), 5000)
  t.equal(wait(new Date(NOW_MS - 5000).toUTCString()), 0)
  t.equal(wait('999999999'), 3_600_000)
  t.equal(wait('soon'), undefined)
})

t.test('errors tell their reason, and nothing of the request', async (t) => {
  t.match(verdictOnError(Object.assign(new Error('connect ECONNREFUSED 10.0.0.1 Bearer s3cret'), { code: 'ECONNREFUSED' })), {
    kind: 'again',
    reason: 'The source cannot be reached: ECONNREFUSED.',
  })
  t.match(verdictOnError(Object.assign(new TypeError('invalid authorization header: Bearer s3cret'), { code: 'UND_ERR_INVALID_ARG' })), {
    kind: 'never',
    reason: 'The source cannot be asked: UND_ERR_INVALID_ARG.',
  })
  t.equal(verdictOnError(new AddressRefused('no')).kind, 'never')
  t.equal(verdictOnError(new RunplaneError('VALIDATION_ERROR', 'no')).kind, 'never')
  t.equal(verdictOnError(new RunplaneError('OVERLOADED', 'later')).kind, 'again')
  t.equal(verdictOnError('thrown').kind, 'again')
})

t.test('pauses double up to a bound, with jitter, and are no shorter than what is asked for', async (t) => {
  const pause = (count: number, random: number, atLeastMs = 0) => backoffMs({ count, baseMs: 1000, maxMs: 30_000, atLeastMs, random })
  t.same(
    [1, 2, 3, 5, 6, 1000].map((count) => pause(count, 1)),
    [1000, 2000, 4000, 16_000, 30_000, 30_000],
  )
  t.equal(pause(1, 0), 500)
  t.equal(pause(1, 1, 5000), 5000)
  t.equal(pause(1, 1, 1e12), 3_600_000)
})

t.test('a request goes on after the cursor', async (t) => {
  const url = 'https://example.com/a?afterSeq={cursor}&b=1'
  t.equal(sourceRequest({ url }, null).url.href, 'https://example.com/a?b=1')
  t.equal(sourceRequest({ url, resume: 'query' }, 'ü&1').url.href, 'https://example.com/a?afterSeq=%C3%BC%261&b=1')
  t.match(sourceRequest({ url: 'https://example.com/', headers: { 'Last-Event-ID': '3', ACCEPT: 'x' } }, null).headers, { 'last-event-id': '3', accept: 'x' })
  t.equal(
    Buffer.from(sourceRequest({ url: 'https://example.com/', headers: { 'Last-Event-ID': '3' } }, 'ü').headers['last-event-id'] ?? '', 'latin1').toString(),
    'ü',
  )
})

t.test('events are masked as posted ones are, their frames’ ids too, but the cursor stays as it is sent', async (t) => {
  const items = createSourceItems({
    as: 'sse',
    format: formatFor(undefined, undefined),
    limits: { maxEventBytes: 10_000, maxEvents: 2 },
    defaultSource: 'example.com',
    cursor: null,
    mask: createMask(['sk-[a-z]{8}']),
  })
  const frame = 'id: sk-abcdefgh\ndata: {"type":"step.output","data":{"text":"my sk-abcdefgh"}}\n\n'
  const [slice] = items.feed(Buffer.from(frame))
  t.notMatch(JSON.stringify(slice?.items), /abcdefgh/)
  t.match(slice, { cursor: 'sk-abcdefgh', items: [{ normalized: { eventId: /^\[masked\]#/ } }], rejected: [] })
})

t.test('slices are cut by their number of events, each with the cursor after its last one', async (t) => {
  const of = (as: 'sse' | 'ndjson') =>
    createSourceItems({ as, format: formatFor(undefined, undefined), limits: { maxEventBytes: 10_000, maxEvents: 2 }, defaultSource: 'x', cursor: '0' })
  const ids = ['1', '2', '3', '4', '5']
  const sse = of('sse').feed(Buffer.from(`${ids.map((id) => `id: ${id}\ndata: {"type":"a.b"}\n\n`).join('')}id: 6\n\n`))
  t.same(
    sse.map(({ items, cursor }) => [items.length, cursor]),
    [
      [2, '2'],
      [2, '4'],
      [1, '6'],
    ],
  )
  const ndjson = of('ndjson')
  t.same(
    ndjson.feed(Buffer.from(ids.map((id) => `{"id":"${id}","type":"a.b"}\n`).join(''))).map(({ items, cursor }) => [items.length, cursor]),
    [
      [2, '2'],
      [2, '4'],
      [1, '5'],
    ],
  )
  t.same(ndjson.feed(Buffer.from('{"id":"6","type":"a.b"')), [])
  t.same(ndjson.end(), [], 'half a line')
})
