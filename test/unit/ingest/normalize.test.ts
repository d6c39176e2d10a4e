import assert from 'node:assert/strict'
import t from 'tap'
import { RunplaneError } from '../../../src/errors.js'
import { explain } from '../../../src/ingest/explain.js'
import { splitJsonBody } from '../../../src/ingest/json-items.js'
import { FORMATS, formatFor, normalizeItem } from '../../../src/ingest/normalize.js'

const context = { defaultSource: 'ci-key' }
const limits = { maxEventBytes: 65_536, maxEvents: 100 }

function refusal(contentType: string | undefined, format: string | undefined): RunplaneError {
  try {
    formatFor(contentType, format)
  } catch (error) {
    if (error instanceof RunplaneError) return error
  }
  throw new Error('was not refused')
}

t.test('the content type or ?format= names the format', async (t) => {
  t.equal(formatFor(undefined, undefined).name, 'native')
  t.equal(formatFor('application/json; charset=utf-8', undefined).name, 'native')
  t.equal(formatFor('Application/X-NDJSON', undefined).name, 'native')
  t.equal(formatFor('application/jsonl', 'macp').name, 'macp')
  t.equal(formatFor('application/json', 'jobs').name, 'jobs')
})

t.test('an unknown format is 415 and lists the known ones', async (t) => {
  t.match(refusal('application/json', 'nope'), { code: 'UNSUPPORTED_FORMAT', status: 415, message: /native, jobs, macp/ })
  t.match(refusal('application/json', '__proto__'), { code: 'UNSUPPORTED_FORMAT' })
  t.match(refusal('text/plain', undefined), { code: 'UNSUPPORTED_FORMAT', message: /application\/json.*curl/ })
  t.match(refusal('application/x-www-form-urlencoded', 'native'), { code: 'UNSUPPORTED_FORMAT' })
})

t.test('a value that is not an object is rejected by every format', async (t) => {
  for (const format of FORMATS) {
    for (const value of [null, 1, 'x', [], [{}], true, undefined]) t.match(normalizeItem(format, value, context), { ok: false, code: 'VALIDATION_ERROR' })
  }
})

t.test('nobody can post as the control plane', async (t) => {
  for (const format of FORMATS) {
    for (const kind of ['control-plane', 'import', 'replay']) {
      const result = normalizeItem(format, { type: 'run.retry_scheduled', messageType: 'Vote', sourceKind: kind, source: { kind, name: 'x' } }, context)
      assert.ok(result.ok)
      t.ok(['agent', 'runtime'].includes(result.sourceKind))
    }
  }
})

t.test('the longest ids that are accepted fit one row of a Postgres index', async (t) => {
  const [id, source] = ['\u6f22'.repeat(512), '\u6f22'.repeat(256)]
  t.match(normalizeItem(formatFor(undefined, undefined), { id, source, type: 'run.started' }, context), { ok: true, eventId: id, sourceName: source })
  t.ok(Buffer.byteLength(id + source) < 2600)
})

t.test('an error is an object and progress a percentage, however they are told', async (t) => {
  const dataOf = (event: Record<string, unknown>) => {
    const result = normalizeItem(formatFor(undefined, undefined), event, context)
    assert.ok(result.ok)
    return result.events[0]?.data
  }
  for (const type of ['run.failed', 'step.failed', 'llm.call.failed', 'tool.failed'])
    t.strictSame(dataOf({ type, stepId: 's', data: { error: 'boom', retryable: true } }), { error: { message: 'boom' }, retryable: true }, type)
  t.strictSame(dataOf({ type: 'run.failed', data: { error: { code: 7 } } }), { error: { code: 7 } })
  t.strictSame(dataOf({ type: 'gate.failed', data: { name: 'g', error: 'boom' } }), { name: 'g', error: 'boom' }, 'no error of the vocabulary')
  const progress = (data: Record<string, unknown>) => dataOf({ type: 'progress.reported', data })?.percentage
  t.equal(progress({ current: 3, total: 4 }), 75)
  t.equal(progress({ current: 5, total: 4 }), 100)
  t.equal(progress({ current: 3, total: 4, percentage: 10 }), 10, 'what is told counts')
  for (const data of [{ current: 3 }, { total: 4 }, { current: 3, total: 0 }, {}]) t.equal(progress(data), undefined)
})

t.test('explain shows each item with its defaults filled, and changes nothing of the others', async (t) => {
  const body = '[{"id":"a","source":"w","type":"run.started"},{"type":"tool.called","data":{"name":"bash"}},{"type":"step.output","data":{}},7]'
  t.strictSame(explain(formatFor(undefined, undefined), splitJsonBody(Buffer.from(body), limits), context), {
    format: 'native',
    version: 1,
    wouldStore: 2,
    rejected: 2,
    duplicates: 0,
    unmapped: 0,
    results: [
      {
        index: 0,
        status: 'would_store',
        rawType: 'run.started',
        eventId: 'a',
        source: { kind: 'agent', name: 'w' },
        events: [{ type: 'run.started', data: {}, subject: { kind: 'run', id: '<runId>' } }],
      },
      {
        index: 1,
        status: 'would_store',
        rawType: 'tool.called',
        source: { kind: 'agent', name: 'ci-key' },
        events: [{ type: 'tool.called', data: { name: 'bash' }, subject: { kind: 'tool', id: 'raw-<rawSeq>' } }],
      },
      { index: 2, status: 'rejected', code: 'VALIDATION_ERROR', detail: '/data/text: is required (type step.output)' },
      { index: 3, status: 'rejected', code: 'VALIDATION_ERROR', detail: 'An event is a JSON object, not a number.' },
    ],
  })
  const repeats = '[{"id":"1","type":"a.b"},{"id":"1", "type":"a.b"},{"id":"1","type":"a.c"},{"id":"1","source":"w","type":"a.c"}]'
  t.match(explain(formatFor(undefined, undefined), splitJsonBody(Buffer.from(repeats), limits), context), {
    wouldStore: 2,
    rejected: 1,
    duplicates: 1,
    results: [
      { status: 'would_store' },
      { status: 'duplicate', duplicateOf: 0 },
      { status: 'rejected', code: 'IDEMPOTENCY_CONFLICT' },
      { status: 'would_store' },
    ],
  })
  const jobs = explain(formatFor(undefined, 'jobs'), splitJsonBody(Buffer.from('{"type":"job.exploded"}'), limits), context)
  t.match(jobs, { format: 'jobs', wouldStore: 1, unmapped: 1, results: [{ events: [{ type: 'raw.received', subject: { kind: 'run' } }] }] })
})

t.test('a session with very many participants does not become as many events', async (t) => {
  const participants = Array.from({ length: 5000 }, (_, index) => `p${index}`)
  const result = normalizeItem(
    formatFor(undefined, 'macp'),
    { messageType: 'SessionStart', messageId: 'm', sessionId: 's', payload: { participants } },
    context,
  )
  assert.ok(result.ok)
  t.equal(result.events.length, 1002)
  t.strictSame(result.events.find((event) => event.type === 'session.bound')?.data.participants, participants)
})

t.test('a session id that would stand in a thousand facts is kept raw', async (t) => {
  const payload = { participants: ['a', 'b'] }
  for (const long of [{ sessionId: 's'.repeat(513) }, { sessionId: 's', mode: 'm'.repeat(513) }]) {
    const result = normalizeItem(formatFor(undefined, 'macp'), { messageType: 'SessionStart', messageId: 'm', ...long, payload }, context)
    assert.ok(result.ok)
    t.same(
      result.events.map((event) => event.type),
      ['raw.received'],
    )
  }
})

t.test('a payload in base64 that nests too deep is kept as base64', async (t) => {
  const payload = Buffer.from(`{"a":${'['.repeat(5000)}${']'.repeat(5000)}}`).toString('base64')
  const result = normalizeItem(formatFor(undefined, 'macp'), { messageType: 'X', messageId: 'm', payload }, context)
  assert.ok(result.ok)
  t.strictSame(result.events[0]?.data.payload, { base64: payload })
})

t.test('a known field that is null is as good as absent: of an event in native, and in the payload of the others, also within its objects', async (t) => {
  const native = formatFor(undefined, undefined)
  const told = { type: 'run.started', trace: { traceId: 't', spanId: null, parentSpanId: null }, source: { name: null, eventId: null } }
  const started = normalizeItem(native, told, context)
  t.match(started, { ok: true, sourceName: 'ci-key' })
  if (started.ok) t.strictSame([started.eventId, started.events[0]?.trace], [undefined, { traceId: 't' }])
  t.match(normalizeItem(native, { type: 'step.output', data: { text: 'x', stream: null } }, context), { ok: false, detail: /data\/stream/ }, 'data is strict')

  const job = (type: string, payload: object) => {
    const result = normalizeItem(formatFor(undefined, 'jobs'), { id: '1', type, stepId: 's', payload }, context)
    return result.ok ? [result.events[0]?.type, result.events[0]?.data] : result
  }
  const error = { code: 'X', message: 'm', stack: null }
  t.strictSame(job('job.failed', { error, retryable: null, other: null }), ['run.failed', { error: { code: 'X', message: 'm' }, other: null }])
  t.strictSame(
    job('step.completed', { output: null, durationMs: null, usage: { inputTokens: 3, costUsd: null } }),
    ['step.completed', { output: null, usage: { inputTokens: 3 } }],
    'null is a value where any is',
  )
  t.match(job('step.output', { text: null }), ['raw.received', { reason: /data\/text/ }])
  t.match(job('job.failed', { error: [], retryable: null }), ['raw.received', { reason: /data\/error/ }])
})
