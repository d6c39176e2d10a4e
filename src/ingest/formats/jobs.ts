/**
 * jobs: events of jobs, steps, AI calls and gates: `{ id, jobId, stepId?, type, timestamp, actor?, payload }`.
 * The payload's other fields pass through, so that nothing which the vocabulary does not name is lost to readers.
 */
import type { DraftEvent, Reference } from '../../domain/canonical-event.js'
import { withoutUndefined } from '../../domain/known.js'
import { percentageOf } from '../../domain/percentage.js'
import { fromEpochMs, toUtc } from '../../domain/time.js'
import { asText, type Fields, isFields, read, readNumber, readText } from '../fields.js'
import { asEventId, EVENT_ID, type Format, unmapped } from '../format.js'

interface JobEvent {
  eventId: string | undefined
  jobId: string | undefined
  stepId: string | undefined
  payload: Fields
}

type Draft = Pick<DraftEvent, 'type' | 'subject' | 'data'>

/** @param canonical fields under their names in the vocabulary; those that are undefined leave the payload's own as they are. */
function passThrough(payload: Fields, canonical: Fields): Record<string, unknown> {
  return { ...payload, ...withoutUndefined(canonical) }
}

/** The error as an object, wherever the payload tells it. */
function errorOf(payload: Fields): Fields | undefined {
  const error = read(payload, 'error')
  if (isFields(error)) return error
  const message = asText(error) ?? readText(payload, 'message', 'errorMessage', 'reason')
  return message === undefined ? undefined : withoutUndefined({ code: read(payload, 'code', 'errorCode'), message, stack: read(payload, 'stack') })
}

function progressOf(payload: Fields): Fields {
  const percentage = readNumber(payload, 'percentage', 'progress', 'percent')
  return { percentage: percentageOf({ percentage, current: readNumber(payload, 'current'), total: readNumber(payload, 'total') }) }
}

/** The subject of something that is one of its kind: by its own id, else by the event's. */
function one(kind: string, event: JobEvent, ...names: string[]): Reference | undefined {
  const id = readText(event.payload, ...names) ?? event.eventId
  return id === undefined ? undefined : { kind, id }
}

function run(type: string, canonical: (payload: Fields) => Fields = () => ({})) {
  return ({ payload, jobId }: JobEvent): Draft => ({ type, data: passThrough(payload, { jobId, ...canonical(payload) }) })
}

function step(type: string, canonical: (payload: Fields) => Fields = () => ({})) {
  return ({ payload }: JobEvent): Draft => ({ type, data: passThrough(payload, canonical(payload)) })
}

const output = (payload: Fields) => ({ output: read(payload, 'output', 'result') })

/** What is added up is a call each, told apart by the event's id; a running total is of its call, else of its step or the run. */
function tokensUsed(event: JobEvent): Draft {
  const mode = read(event.payload, 'mode') ?? 'delta'
  const total: JobEvent = mode === 'cumulative' ? { ...event, eventId: undefined } : event
  return { type: 'usage.reported', subject: one('llm_call', total, 'callId', 'llmCallId'), data: passThrough(event.payload, { mode }) }
}

const EVENTS: ReadonlyMap<string, (event: JobEvent) => Draft> = new Map<string, (event: JobEvent) => Draft>([
  ['job.created', run('run.created')],
  ['job.queued', run('run.queued')],
  ['job.started', run('run.started')],
  ['job.completed', run('run.completed', output)],
  ['job.failed', run('run.failed', (payload) => ({ error: errorOf(payload) }))],
  ['job.cancelled', run('run.cancelled')],
  ['step.started', step('step.started')],
  ['step.progress', step('progress.reported', progressOf)],
  ['step.output', step('step.output', (payload) => ({ text: read(payload, 'text', 'output', 'chunk', 'line', 'message') }))],
  ['step.completed', step('step.completed', output)],
  ['step.failed', step('step.failed', (payload) => ({ error: errorOf(payload) }))],
  [
    'ai.tool_called',
    (event) => ({
      type: 'tool.called',
      subject: one('tool', event, 'toolCallId', 'callId'),
      data: passThrough(event.payload, {
        name: read(event.payload, 'name', 'toolName', 'tool'),
        arguments: read(event.payload, 'arguments', 'args', 'input', 'parameters'),
      }),
    }),
  ],
  ['ai.tokens_used', tokensUsed],
  [
    'ai.artifact_created',
    (event) => ({
      type: 'artifact.created',
      subject: one('artifact', event, 'artifactId'),
      data: passThrough(event.payload, {
        kind: read(event.payload, 'kind', 'type'),
        label: read(event.payload, 'label', 'name', 'title'),
        uri: read(event.payload, 'uri', 'url'),
        inline: read(event.payload, 'inline', 'content'),
        bytes: read(event.payload, 'bytes', 'size'),
      }),
    }),
  ],
])

function gate(type: string, event: JobEvent): Draft {
  return { type, subject: one('gate', event, 'gateId', 'name'), data: { ...event.payload } }
}

function actorOf(actor: unknown): Reference | undefined {
  if (isFields(actor)) {
    const id = readText(actor, 'id', 'name')
    return id === undefined ? undefined : { kind: readText(actor, 'kind', 'type') ?? 'agent', id }
  }
  const id = asText(actor)
  return id === undefined ? undefined : { kind: 'agent', id }
}

function draftOf(type: string | undefined, value: Fields, eventId: string | undefined): DraftEvent {
  const timestamp = read(value, 'timestamp')
  const ts = typeof timestamp === 'number' ? fromEpochMs(timestamp) : typeof timestamp === 'string' ? toUtc(timestamp) : undefined
  if (type === undefined) return unmapped('/type: expected a text, such as step.output', ts)
  if (eventId === undefined && readText(value, 'id') !== undefined) return unmapped(`/id: expected ${EVENT_ID}`, ts)
  if (timestamp !== undefined && ts === undefined) return unmapped('/timestamp: expected a time as in RFC 3339, or milliseconds since the Unix epoch')
  const payload = read(value, 'payload') ?? {}
  if (!isFields(payload)) return unmapped('/payload: expected an object', ts)
  const map = EVENTS.get(type) ?? (type.startsWith('gate.') ? (event: JobEvent) => gate(type, event) : undefined)
  if (map === undefined) return unmapped(`The jobs format has no type ${JSON.stringify(type.slice(0, 128))}.`, ts)
  const event: JobEvent = { eventId, jobId: readText(value, 'jobId'), stepId: readText(value, 'stepId') ?? readText(payload, 'stepId'), payload }
  const { subject, data, type: canonicalType } = map(event)
  const actor = actorOf(read(value, 'actor'))
  return {
    type: canonicalType,
    ...(ts !== undefined && { ts }),
    ...(subject !== undefined && { subject }),
    ...(event.stepId !== undefined && { stepId: event.stepId }),
    ...(actor !== undefined && { actor }),
    data,
  }
}

export const jobs: Format = {
  name: 'jobs',
  version: 1,
  misfits: 'keep-raw',
  normalize(value, context) {
    const type = asText(read(value, 'type'))
    const eventId = asEventId(read(value, 'id'))
    return {
      ok: true,
      ...(eventId !== undefined && { eventId }),
      sourceKind: 'agent',
      sourceName: context.defaultSource,
      rawType: type ?? 'unknown',
      events: [draftOf(type, value, eventId)],
    }
  },
}
