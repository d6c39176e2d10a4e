/** What leaves with a redacted bundle: nothing that was said, all that tells what happened. */
import { Value } from '@sinclair/typebox/value'
import fc from 'fast-check'
import t from 'tap'
import { type CanonicalEvent, EVENT_TYPES, isEventType } from '../../src/domain/canonical-event.js'
import { digestsOf } from '../../src/domain/digest.js'
import { createRedactor } from '../../src/insight/redact.js'
import { createState, fold, viewState } from '../../src/projections/fold.js'
import { arbitraryEvents } from '../support/arbitrary-events.js'

const KEY = Buffer.alloc(32, 7)
const PROFILES = ['no-content', 'hashed'] as const

function event(type: string, data: Record<string, unknown>, more: Partial<CanonicalEvent> = {}): CanonicalEvent {
  return {
    runId: 'r1',
    seq: 1,
    ts: '2026-11-21T08:00:00.000Z',
    receivedAt: '2026-11-21T08:00:00.000Z',
    type,
    schemaVersion: 1,
    attempt: 1,
    subject: { kind: 'step', id: 's1' },
    source: { kind: 'agent', name: 'tester', format: 'native', rawType: type, rawSeq: 1 },
    ...more,
    data,
  } as CanonicalEvent
}

t.test('full leaves everything as it is', async (t) => {
  const one = event('step.output', { text: 'hello' })
  t.equal(createRedactor('full', KEY).event(one), one)
})

t.test('a redacted event fits its type, keeps its shape, and folds', async () => {
  await fc.assert(
    fc.asyncProperty(arbitraryEvents({ maxLength: 30 }), async (events) => {
      for (const profile of PROFILES) {
        const redactor = createRedactor(profile, KEY)
        const redacted = events.map((one) => redactor.event(one))
        redacted.forEach((one, index) => {
          const original = events[index] as CanonicalEvent
          if (isEventType(one.type) && !Value.Check(EVENT_TYPES[one.type].data, one.data)) {
            throw new Error(`${profile} ${JSON.stringify(original)} became ${JSON.stringify(one)}`)
          }
          if (digestsOf(one).shape !== digestsOf(original).shape) throw new Error(`another shape: ${JSON.stringify(original)} became ${JSON.stringify(one)}`)
        })
        viewState(fold(createState(), redacted))
      }
    }),
    { numRuns: 60 },
  )
})

t.test('two equal runs are equal after hashing under one key, and under another they are not the same text', async (t) => {
  const said = (id: string) => event('tool.completed', { name: 'search', result: { requestId: id, rows: [{ name: 'Alice', uid: crypto.randomUUID() }] } })
  const hashed = createRedactor('hashed', KEY)
  const [left, right] = [hashed.event(said('a')), hashed.event(said('b'))]
  t.equal(digestsOf(left).content, digestsOf(right).content)
  const other = event('tool.completed', { name: 'search', result: { requestId: 'a', rows: [{ name: 'Bob' }] } })
  t.not(digestsOf(hashed.event(other)).content, digestsOf(left).content, 'what differs still differs')
  t.notSame(createRedactor('hashed', Buffer.alloc(32, 8)).event(said('a')).data, left.data)
})

t.test('nothing that was said is left, wherever it stood', async (t) => {
  const SECRET = 'tell nobody'
  const events = [
    event('run.created', { name: 'nightly', kind: 'demo', input: { q: SECRET }, tags: [SECRET], metadata: { [SECRET]: 1 }, session: { goal: SECRET } }),
    event('step.output', { stream: 'stdout', text: SECRET }),
    event('step.failed', { name: 'build', error: SECRET }),
    event('step.failed', { name: 'build', error: { code: 'E1', message: SECRET, stack: SECRET, more: SECRET }, reason: SECRET }),
    event('message.delta', { text: SECRET, channel: 'reasoning' }),
    event('message.completed', { role: 'assistant', content: [{ text: SECRET }] }),
    event('tool.called', { name: 'search', arguments: { [SECRET]: [SECRET] } }),
    event('state.snapshot', { state: { [SECRET]: SECRET } }),
    event('state.snapshot', { state: SECRET }),
    event('state.patched', {
      patch: [
        { op: 'move', from: `/${SECRET}`, path: `/a/${SECRET}/0` },
        { op: 'add', path: '', value: SECRET },
        { op: SECRET, path: '' },
      ],
    }),
    event('llm.call.completed', { model: 'large', inputTokens: 5, prompt: SECRET, response: [SECRET], [SECRET]: 5 }),
    event('signal.emitted', { name: 'risk', payload: SECRET, [`${SECRET} Id`]: 'x' }),
    event('some.thing', { code: SECRET, version: SECRET, decision: SECRET, unit: SECRET, finishReasons: [SECRET], dataVersion: SECRET, mediaType: SECRET }),
    event('some.thing', { free: SECRET, list: [SECRET], deep: { a: { b: SECRET } } }),
    event('participant.seen', { participantId: SECRET }, { subject: { kind: 'participant', id: SECRET }, actor: { kind: 'participant', id: SECRET } }),
  ]
  for (const profile of PROFILES) {
    const redactor = createRedactor(profile, KEY)
    for (const one of events) t.notMatch(JSON.stringify(redactor.event(one)), SECRET, `${profile} ${one.type}`)
    t.notMatch(JSON.stringify(redactor.record(viewState(fold(createState(), events)))), SECRET, `the state, ${profile}`)
  }
})

t.test('ids, times, types, names, counts, tokens and costs stay', async (t) => {
  const call = event('llm.call.completed', {
    model: 'large',
    provider: 'acme',
    inputTokens: 5,
    outputTokens: 7,
    costUsd: 0.01,
    latencyMs: 20,
    finishReasons: ['stop'],
  })
  const step = event('step.completed', { name: 'build it', kind: 'task', durationMs: 5, usage: { model: 'large', inputTokens: 3 }, output: 'gone' })
  const coded = event('some.thing', {
    code: 'E_NO-ENT:2',
    configurationVersion: 'v1.2/b',
    severity: 'high',
    mediaType: 'text/plain; charset=utf-8',
    kind: 'a kind',
  })
  for (const profile of PROFILES) {
    const redactor = createRedactor(profile, KEY)
    t.same(redactor.event(call), call, profile)
    t.same(redactor.event(coded), coded, profile)
    t.match(redactor.event(step), {
      seq: 1,
      ts: step.ts,
      subject: step.subject,
      data: { name: 'build it', kind: 'task', durationMs: 5, usage: { model: 'large', inputTokens: 3 } },
    })
  }
  t.notOk('output' in createRedactor('no-content', KEY).event(step).data)
  t.match(Reflect.get(createRedactor('hashed', KEY).event(step).data, 'output'), /^h:[0-9a-f]{32}$/)
})

t.test('a record keeps its members, so that whoever reads it finds them', async (t) => {
  const record = {
    runId: 'r1',
    status: 'failed',
    name: 'nightly',
    error: { message: 'no', code: 'E' },
    input: 'x',
    tags: ['a'],
    metadata: { a: 1 },
    attempt: 2,
    createdAt: '2026-11-21T08:00:00.000Z',
  }
  t.same(createRedactor('no-content', KEY).record(record), {
    ...record,
    error: { message: null, code: 'E' },
    input: null,
    tags: [],
    metadata: {},
  })
})

t.test('an id that is a sentence or an address is hashed, and what refers to it still does', async (t) => {
  const redactor = createRedactor('no-content', KEY)
  const asked = redactor.event(event('participant.seen', { participantId: 'ann@example.com' }, { subject: { kind: 'participant', id: 'ann@example.com' } }))
  t.match(asked.subject.id, /^h:/)
  t.match(asked.data, { participantId: asked.subject.id })
})
