/**
 * Golden tests: test/fixtures/ingest/<format>/<name>.json is a body, <name>.expected.json what its items become.
 * After a change that is meant, `UPDATE_GOLDEN=1 npx tap test/unit/ingest/formats.test.ts` writes them anew: read the diff.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { EVENT_TYPES } from '../../../src/domain/canonical-event.js'
import { splitJsonBody } from '../../../src/ingest/json-items.js'
import { FORMATS, normalizeItem } from '../../../src/ingest/normalize.js'

const fixtures = new URL('../../fixtures/ingest/', import.meta.url)
const context = { defaultSource: 'ci-key' }
const limits = { maxEventBytes: 262_144, maxEvents: 1000 }

const goldens = FORMATS.flatMap((format) =>
  readdirSync(new URL(`${format.name}/`, fixtures))
    .filter((file) => !file.endsWith('.expected.json'))
    .map((file) => ({ format, name: `${format.name}/${file.replace('.json', '')}` })),
)

function actual({ format, name }: (typeof goldens)[number]): unknown {
  const items = splitJsonBody(readFileSync(new URL(`${name}.json`, fixtures)), limits)
  const results = items.map((item) => (item.ok ? normalizeItem(format, item.value, context) : item))
  return JSON.parse(JSON.stringify(results))
}

for (const golden of goldens) {
  t.test(`golden ${golden.name}`, async (t) => {
    const results = actual(golden)
    const expected = new URL(`${golden.name}.expected.json`, fixtures)
    if (process.env.UPDATE_GOLDEN) writeFileSync(expected, `${JSON.stringify(results, null, 2)}\n`)
    t.strictSame(results, JSON.parse(readFileSync(expected, 'utf8')))
  })
}

t.test('the goldens of native have every type of the vocabulary, accepted', async (t) => {
  const types = FORMATS.filter((format) => format.name === 'native').flatMap((format) => actual({ format, name: 'native/types' }))
  const seen = new Set(JSON.stringify(types).match(/"rawType":"[^"]+"/g))
  for (const type of Object.keys(EVENT_TYPES)) t.ok(seen.has(`"rawType":"${type}"`), type)
  t.notMatch(JSON.stringify(types), /"ok":false/)
})

/** JSON values that look like events now and then. */
const hostile = fc.letrec((tie) => ({
  value: fc.oneof({ depthSize: 'small' }, fc.jsonValue(), tie('event'), fc.array(tie('value'), { maxLength: 3 })),
  event: fc.dictionary(
    fc.constantFrom(
      ...[
        'id',
        'source',
        'type',
        'ts',
        'subject',
        'parent',
        'stepId',
        'actor',
        'trace',
        'data',
        'kind',
        'name',
        'text',
        'percentage',
        'usage',
        'error',
        'timestamp',
        'payload',
      ],
      ...[
        'messageType',
        'message_id',
        'sessionId',
        'sender',
        'timestampUnixMs',
        'metadata',
        'llmCall',
        'tokenUsage',
        'promptTokens',
        'participants',
        'progress',
        'total',
        'state',
        'vote',
      ],
      ...['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'supersedes', 'action', 'decision', 'reasons'],
    ),
    fc.oneof(
      tie('value'),
      fc.constantFrom(
        ...Object.keys(EVENT_TYPES),
        'job.failed',
        'step.progress',
        'ai.tool_called',
        'gate.x',
        'SessionStart',
        'Vote',
        'Commitment',
        'Progress',
        'TaskUpdate',
        'Signal',
      ),
      fc.constantFrom('SESSION_STATE_RESOLVED', 'constructor', '__proto__', '', 'eyJhIjoxfQ==', 1e308, -0),
    ),
    { maxKeys: 10 },
  ),
}))

t.test('any JSON value in any format: never throws, and what comes out survives JSON and fits again', async () => {
  fc.assert(
    fc.property(fc.constantFrom(...FORMATS), fc.oneof(hostile.event, hostile.value), (format, value) => {
      const text = JSON.stringify(value)
      const first = normalizeItem(format, JSON.parse(text), context)
      assert.deepEqual(JSON.stringify(normalizeItem(format, JSON.parse(text), context)), JSON.stringify(first), 'pure')
      if (!first.ok) {
        assert.ok(first.detail.length > 0)
        return
      }
      assert.ok(first.events.length > 0)
      const native = FORMATS.find((candidate) => candidate.name === 'native')
      assert.ok(native)
      for (const event of first.events) {
        const copy: unknown = JSON.parse(JSON.stringify(event))
        const again = normalizeItem(native, copy, context)
        assert.ok(again.ok, JSON.stringify(again))
        assert.deepEqual(JSON.parse(JSON.stringify(again.events)), [copy])
      }
    }),
    { numRuns: 4000 },
  )
})
