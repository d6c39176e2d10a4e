/**
 * Generates events of every type of the vocabulary from the schemas themselves, with fields missing, texts and ids that
 * are meant to break something, numbers at their limits, and foreign payloads that are large or deep. What it makes fits the
 * schema of its type, as everything in the log does.
 */
import { Kind, OptionalKind, type TSchema } from '@sinclair/typebox'
import fc from 'fast-check'
import { type CanonicalEvent, EVENT_TYPES, type EventType, SOURCE_KINDS } from '../../src/domain/canonical-event.js'

const PROTOTYPE_NAMES = ['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty', 'valueOf']

export const hostileText: fc.Arbitrary<string> = fc.oneof(
  { weight: 4, arbitrary: fc.string({ maxLength: 20 }) },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 40 }) },
  { weight: 2, arbitrary: fc.constantFrom(...PROTOTYPE_NAMES, '', ' ', '\n', '\u0001\u001f', '"\\', '\ufffd', '\u2028', '👩‍👩‍👧', 'NaN', 'null', '-1') },
  { weight: 1, arbitrary: fc.constantFrom('x', '"', '\u0001', '語', '👍').map((unit) => unit.repeat(3_000)) },
)

/** Few ids, so that events meet in one subject, and some that are hostile. */
const id: fc.Arbitrary<string> = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom('a', 'b', 'c', 'd', 'e') },
  { weight: 1, arbitrary: fc.constantFrom(...PROTOTYPE_NAMES, `${'long'.repeat(100)}1`, `${'long'.repeat(100)}2`) },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', minLength: 1, maxLength: 20 }) },
)

function nested(depth: number): unknown {
  let value: unknown = 'deep'
  for (let level = 0; level < depth; level++) value = level % 2 === 0 ? [value] : { value }
  return value
}

const foreign: fc.Arbitrary<unknown> = fc.oneof(
  { weight: 4, arbitrary: fc.jsonValue({ maxDepth: 3 }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom(nested(500), JSON.parse('{"__proto__": {"polluted": true}, "constructor": 1}'), new Array(5_000).fill(1), 'x'.repeat(20_000)),
  },
)

/** Words that a reducer tells apart: without them most of its branches would never be taken. */
const WORDS: Readonly<Record<string, readonly string[]>> = {
  messageType: ['SessionStart', 'Proposal', 'Vote', 'Evaluation', 'Objection', 'Commitment', 'Abstain', 'Accept', 'Reject'],
  vote: ['allow', 'deny', 'APPROVE', 'ABSTAIN'],
  channel: ['text', 'reasoning'],
  state: ['SESSION_STATE_OPEN', 'SESSION_STATE_SUSPENDED'],
  action: ['approve', 'reject', 'step_up'],
  role: ['voter', 'assistant'],
  model: ['small', 'large'],
  sender: ['a', 'b', 'c'],
  proposalId: ['p1', 'p2'],
}

function fromSchema(schema: TSchema, name: string): fc.Arbitrary<unknown> {
  switch (schema[Kind]) {
    case 'String': {
      const words = WORDS[name]
      return words === undefined ? hostileText : fc.oneof({ weight: 3, arbitrary: fc.constantFrom(...words) }, { weight: 1, arbitrary: hostileText })
    }
    case 'Number':
    case 'Integer': {
      const min = typeof schema.minimum === 'number' ? schema.minimum : -Number.MAX_VALUE
      const max = typeof schema.maximum === 'number' ? schema.maximum : Number.MAX_VALUE
      if (schema[Kind] === 'Integer') return fc.integer({ min: Math.max(min, 0), max: Math.min(max, 2 ** 31 - 1) })
      return fc.oneof(fc.integer({ min: Math.max(min, -10), max: Math.min(max, 200) }), fc.double({ min, max, noNaN: true }))
    }
    case 'Boolean':
      return fc.boolean()
    case 'Null':
      return fc.constant(null)
    case 'Literal':
      return fc.constant(schema.const)
    case 'Union':
      return fc.oneof(...(schema.anyOf as TSchema[]).map((member) => fromSchema(member, name)))
    case 'Array':
      return fc.array(fromSchema(schema.items, name), { maxLength: 6 })
    case 'Record':
      return fc.dictionary(hostileText, foreign, { maxKeys: 4 })
    case 'Unknown':
    case 'Any':
      return foreign
    case 'Object':
      return fromObject(schema.properties)
    default:
      throw new Error(`The generator does not know schemas of kind ${String(schema[Kind])}: teach it.`)
  }
}

function fromObject(properties: Record<string, TSchema>): fc.Arbitrary<Record<string, unknown>> {
  const required = Object.entries(properties).filter(([, schema]) => schema[OptionalKind] === undefined)
  const fields = Object.fromEntries(Object.entries(properties).map(([name, schema]) => [name, fromSchema(schema, name)]))
  // Fields that the vocabulary does not name, with any value under names that readers might look for.
  const strangeNames = ['sender', 'messageType', 'participants', 'recommendation', 'message', 'ok', 'x'].filter((name) => !Object.hasOwn(properties, name))
  const extra = fc.dictionary(fc.constantFrom(...strangeNames), foreign, { maxKeys: 2 })
  const named = fc.record(fields, { requiredKeys: required.map(([name]) => name) })
  return fc.tuple(fc.boolean(), extra, named).map(([mixed, strange, told]) => (mixed ? { ...strange, ...told } : told))
}

const reference = (kind: fc.Arbitrary<string>) => fc.record({ kind, id })
const KINDS = ['run', 'step', 'participant', 'message', 'llm_call', 'tool', 'agent']

function ofType(type: string, kind: string, data: fc.Arbitrary<Record<string, unknown>>): fc.Arbitrary<Draft> {
  const anyKind = fc.oneof({ weight: 3, arbitrary: fc.constant(kind) }, { weight: 1, arbitrary: fc.constantFrom(...KINDS, ...PROTOTYPE_NAMES) })
  return fc.record(
    {
      ts: fc.integer({ min: 0, max: 4_000_000_000 }).map((second) => new Date(second * 1000).toISOString()),
      type: fc.constant(type),
      attempt: fc.integer({ min: 1, max: 3 }),
      subject: reference(anyKind),
      parent: reference(anyKind),
      stepId: id,
      actor: reference(fc.constantFrom('participant', 'agent', 'user')),
      source: fc.record({
        kind: fc.constantFrom(...SOURCE_KINDS),
        name: hostileText,
        format: fc.constant('native'),
        rawType: hostileText,
        rawSeq: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
      }),
      trace: fc.record({ traceId: id, spanId: id }, { requiredKeys: ['traceId'] }),
      late: fc.constant(true),
      data,
    },
    { requiredKeys: ['ts', 'type', 'attempt', 'subject', 'source', 'data'] },
  )
}

interface Draft {
  ts: string
  type: string
  data: Record<string, unknown>
}

const unknownType = fc.constantFrom('vendor.thing', 'constructor.prototype', 'x.y', `${'very-'.repeat(30)}long.type`)

function knownEvent(type: EventType): fc.Arbitrary<Draft> {
  return ofType(type, EVENT_TYPES[type].subject, fromObject(EVENT_TYPES[type].data.properties))
}

const draft: fc.Arbitrary<Draft> = fc.oneof(...Object.keys(EVENT_TYPES).map((type) => ({ weight: 1, arbitrary: knownEvent(type as EventType) })), {
  weight: 3,
  arbitrary: unknownType.chain((type) => ofType(type, 'run', fc.dictionary(hostileText, foreign, { maxKeys: 3 }))),
})

/** Numbers drafts as the events of one run, as they come back from the log: through JSON. */
function number(drafts: readonly Draft[]): CanonicalEvent[] {
  return drafts.map((one, index) => JSON.parse(JSON.stringify({ runId: 'run-1', seq: index + 1, receivedAt: one.ts, schemaVersion: 1, ...one })))
}

/** The events of one run, numbered from 1. */
export function arbitraryEvents(options: { minLength?: number; maxLength: number }): fc.Arbitrary<CanonicalEvent[]> {
  return fc.array(draft, { size: 'max', ...options }).map(number)
}

/**
 * As many events as asked for, the same for the same seed: for tests that need a long log rather than a small counterexample.
 * A sample of events is told again and again, about a subject of its own each time.
 */
export function manyEvents(count: number, seed: number): CanonicalEvent[] {
  const sample = number(fc.sample(draft, { numRuns: 1_000, seed }))
  return Array.from({ length: count }, (_, index) => {
    const event = sample[index % sample.length] as CanonicalEvent
    const round = Math.floor(index / sample.length)
    return { ...event, seq: index + 1, subject: { ...event.subject, id: `${event.subject.id}${round}` } }
  })
}

/** A value with every field there and every text as long as it may be in an event: what a bound must hold against. */
function largest(schema: TSchema, text: string, payloadText: string): unknown {
  switch (schema[Kind]) {
    case 'String':
      return text
    case 'Number':
    case 'Integer':
      return typeof schema.maximum === 'number' ? 33.333333333333336 : 1.234567890123456e300
    case 'Boolean':
      return false
    case 'Literal':
      return schema.const
    case 'Union':
      return largest((schema.anyOf as TSchema[]).at(-1) ?? schema, text, payloadText)
    case 'Array':
      return Array.from({ length: 10 }, (_, index) => largest(schema.items, `${index}-${text}`, payloadText))
    case 'Object':
      return Object.fromEntries(Object.entries(schema.properties as Record<string, TSchema>).map(([name, field]) => [name, largest(field, text, payloadText)]))
    case 'Null':
      return null
    default:
      return payloadText
  }
}

/**
 * Events that fill every collection of a state with entries as large as they get: `rounds` of each type, each about a
 * subject of its own, told by an actor of its own, with all texts made of `unit`.
 */
export function largestEvents(rounds: number, unit: string): CanonicalEvent[] {
  const types = Object.entries(EVENT_TYPES).filter(([type]) => !type.startsWith('run.') || type === 'run.created' || type === 'run.linked')
  // A long text without spaces is cut; this payload is just small enough to be kept.
  const payloadText = 'p'.repeat(230)
  return number(
    Array.from({ length: rounds }, (_, round) =>
      types.flatMap(([type, { subject, data }]) => {
        const long = `${round}-${unit.repeat(500 / Buffer.byteLength(unit))}`
        const fields = largest(data, long, payloadText) as Record<string, unknown>
        const messageType =
          Object.hasOwn(fields, 'messageType') && round % 3 === 0 ? { messageType: ['Proposal', 'Vote', 'SessionStart'][(round % 9) / 3] } : {}
        return {
          ts: '2026-01-01T00:00:00.123456Z',
          type,
          attempt: 1,
          subject: { kind: type === 'progress.reported' && round % 2 === 0 ? 'participant' : subject, id: long },
          parent: { kind: 'step', id: long },
          stepId: long,
          actor: { kind: 'participant', id: long },
          source: { kind: 'runtime' as const, name: long, format: 'native', rawType: type, rawSeq: 1 },
          trace: { traceId: long, spanId: long },
          data: { ...fields, ...messageType, ...(Object.hasOwn(fields, 'vote') && { vote: 'allow' }) },
        }
      }),
    ).flat(),
  )
}
