/** The digests by which two runs are compared: what they are the same for, and what tells two events apart. */
import fc from 'fast-check'
import t from 'tap'
import { digestsOf, digestsUnder } from '../../src/domain/digest.js'
import { createRules, withoutVolatile } from '../../src/domain/volatile.js'
import { arbitraryEvents } from '../support/arbitrary-events.js'
import { type EventParts, eventAt } from '../support/event-log.js'

const digest = (type: string, data: Record<string, unknown> = {}, parts?: EventParts) => digestsOf(eventAt(1, type, data, parts))
const UUIDS = ['0190c6f0-93a1-7abc-8def-0123456789ab', '0190C6F0-93A1-7ABC-8DEF-FFFFFFFFFFFF']

t.test('an event is the same whatever its ids, times, durations and hosts', async (t) => {
  const call = (change: object) => digest('tool.called', { name: 'fetch', arguments: { query: 'x', ...change } })
  for (const member of ['id', 'requestId', 'order_id', 'userIds', 'startedAt', 'created_at', 'durationMs', 'timestamp', 'end_time', 'host', 'pid', 'elapsed']) {
    t.same(call({ [member]: 1 }), call({ [member]: 2 }), member)
    t.same(call({ [member]: 1 }), call({}), `without ${member}`)
  }
  t.same(call({ trace: UUIDS[0] }), call({ trace: UUIDS[1] }), 'a text that is a UUID')
  t.same(call({ when: '2026-11-21T08:00:00Z' }), call({ when: '2025-01-02T03:04:05.678901+02:00' }), 'a text that is a time')
  t.same(digest('artifact.created', { kind: 'report', uri: 'file:///a' }), digest('artifact.created', { kind: 'report', uri: 's3://b' }))
  t.same(digestsOf(eventAt(1, 'tool.output', { text: 'x' })), digestsOf({ ...eventAt(9, 'tool.output', { text: 'x' }), runId: 'other', attempt: 2 }))
})

t.test('what is said is content, whatever it is called', async (t) => {
  const call = (args: unknown) => digest('tool.called', { name: 'read', arguments: args })
  const different = [
    [{ path: 'a.ts' }, { path: 'b.ts' }],
    [{ url: 'https://a' }, { url: 'https://b' }],
    [{ valid: true }, { valid: false }],
    [{ a: 1 }, { a: '1' }],
    [{ a: null }, {}],
    [{ a: ['ab', 'c'] }, { a: ['a', 'bc'] }],
    [{ a: [['x'], 'y'] }, { a: [['x', 'y']] }],
    [{ a: {} }, { a: [] }],
    [{ a: { b: 1 }, c: 2 }, { a: { b: 1, c: 2 } }],
    [{ modelId: 'large' }, { modelId: 'small' }],
    ['xy', 'yx'],
  ]
  for (const [left, right] of different) {
    t.not(call(left).content, call(right).content, JSON.stringify([left, right]))
    t.equal(call(left).shape, call(right).shape)
  }
  t.equal(call({ a: 1, b: 2 }).content, call({ b: 2, a: 1 }).content, 'the order of members says nothing')
  t.not(digest('llm.call.completed', { model: 'a' }).content, digest('llm.call.completed', { model: 'b' }).content)
  t.equal(digest('llm.call.completed', { model: 'a' }).shape, digest('llm.call.completed', { model: 'b' }).shape, 'another model does the same step')
  const by = (id: string) => digest('proposal.updated', { vote: 'allow' }, { actor: { kind: 'participant', id } })
  t.not(by('reviewer').content, by('author').content, 'who says it, where that is a name')
  t.equal(by(UUIDS[0] ?? '').content, by(UUIDS[1] ?? '').content)
})

t.test('shape is the type and the names of what it is about', async (t) => {
  t.not(digest('step.started', { name: 'build' }).shape, digest('step.started', { name: 'test' }).shape)
  t.not(digest('step.started', { name: 'build' }).shape, digest('step.completed', { name: 'build' }).shape)
  t.not(digest('step.output', { stream: 'stdout', text: 'x' }).shape, digest('step.output', { stream: 'stderr', text: 'x' }).shape)
  t.not(digest('step.started', { name: 'x' }).shape, digest('step.started', { kind: 'x' }).shape)
  t.equal(digest('run.created', { name: 'monday' }).shape, digest('run.created', { name: 'tuesday' }).shape)
  t.not(digest('vendor.thing', { name: 'x' }).shape, digest('vendor.thing', { name: 'y' }).shape, 'of types that the vocabulary does not have, too')
})

t.test('one change of a long text is another content, wherever it is', async (t) => {
  const text = 'lorem ipsum '.repeat(40)
  const seen = new Set<number>()
  for (let at = 0; at < text.length; at++) seen.add(digest('step.output', { text: `${text.slice(0, at)}#${text.slice(at + 1)}` }).content)
  t.equal(seen.size, text.length)
  for (let n = 0; n < 200_000; n++) seen.add(digest('step.output', { text: `line ${n} of the output` }).content)
  t.equal(seen.size, text.length + 200_000, 'and 200,000 events share no digest')
})

t.test('without rules of its own a comparison has the digests of the log', async () => {
  const none = createRules([])
  fc.assert(
    fc.property(arbitraryEvents({ maxLength: 20 }), (events) => {
      for (const event of events) {
        const [stored, computed] = [digestsOf(event), digestsUnder(none, event)]
        if (stored.shape !== computed.shape || stored.content !== computed.content) throw new Error(JSON.stringify(event).slice(0, 2000))
        if (![stored.shape, stored.content].every(Number.isSafeInteger)) throw new Error('a digest is not a safe integer')
      }
    }),
    { numRuns: 60 },
  )
})

t.test('rules concern only events that have one of their needles', async () => {
  const rules = createRules(['name', '!/data/input/id', '/data/**/text', '!durationMs', '/data/we"ird'])
  fc.assert(
    fc.property(arbitraryEvents({ maxLength: 20 }), (events) => {
      for (const event of events) {
        const text = JSON.stringify(event)
        if (rules.needles?.some((needle) => text.includes(needle))) continue
        if (digestsOf(event).content !== digestsUnder(rules, event).content) throw new Error(text.slice(0, 2000))
      }
    }),
    { numRuns: 60 },
  )
})

t.test('paths are added and taken off', async (t) => {
  const value = { name: 'n', id: 1, durationMs: 5, arguments: { seed: 7, path: 'p', list: [{ etag: 'a', keep: 1 }, 2], deep: { seed: 8 } }, trace: UUIDS[0] }
  const rest = (...ignore: string[]) => withoutVolatile(value, createRules(ignore))
  const args = value.arguments
  t.same(rest(), { name: 'n', arguments: args, trace: '<uuid>' })
  t.same(rest('seed'), { name: 'n', arguments: { path: 'p', list: args.list, deep: {} }, trace: '<uuid>' })
  t.same(rest('/data/arguments/seed'), { name: 'n', arguments: { path: 'p', list: args.list, deep: { seed: 8 } }, trace: '<uuid>' })
  t.same(rest('/data/*/list/*/etag'), { name: 'n', arguments: { ...args, list: [{ keep: 1 }, 2] }, trace: '<uuid>' })
  t.same(rest('/data/arguments/list/1'), { name: 'n', arguments: { ...args, list: [args.list[0]] }, trace: '<uuid>' })
  t.same(rest('!durationMs', '!id'), { name: 'n', id: 1, durationMs: 5, arguments: args, trace: '<uuid>' })
  t.same(rest('/data/**', '!name'), { name: 'n' }, 'the last that matches counts')
  t.same(rest('!$uuid'), { name: 'n', arguments: args, trace: UUIDS[0] })
  t.same(withoutVolatile({ 'a/b': 1, 'c~d': 2 }, createRules(['/data/a~1b', '/data/c~0d'])), {})
  t.same(Object.keys(withoutVolatile(JSON.parse('{"__proto__":{"x":1}}')) as object), ['__proto__'])
})

t.test('a path that means nothing is refused', async (t) => {
  for (const path of ['', '!', '/type', '/data/**/a/**/b/**/c/**/d/**', 'x'.repeat(501)]) {
    t.throws(() => createRules([path]), { code: 'VALIDATION_ERROR' }, path.slice(0, 50))
  }
  t.throws(() => createRules(Array.from({ length: 101 }, () => 'x')), { code: 'VALIDATION_ERROR' })
})
