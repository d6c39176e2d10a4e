/**
 * native: one object in the shape of a canonical event. An event as it was exported is accepted too: what the log gives
 * (runId, seq, receivedAt, attempt, ...) is ignored. Fields that are not named here stay in the raw event only.
 * Whatever the event says, it comes from an agent: nobody can post as the control plane.
 */
import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { DraftEvent } from '../../domain/canonical-event.js'
import { toUtc } from '../../domain/time.js'
import { EVENT_ID, type Format, MAX_ID_CHARS, MAX_SOURCE_CHARS, type Rejected } from '../format.js'

/** Many serializers write what is absent as null. */
const optional = <T extends TSchema>(schema: T, description?: string) =>
  Type.Optional(Type.Union([schema, Type.Null()], description === undefined ? {} : { description }))

const Name = Type.String({ minLength: 1, maxLength: MAX_SOURCE_CHARS })
const TraceId = Type.String({ minLength: 1, maxLength: MAX_ID_CHARS })
/** Not a Record, whose check would run a regular expression for each name. */
const AnyObject = Type.Unsafe<Record<string, unknown>>(Type.Object({}, { additionalProperties: true }))
const Pointer = Type.Object({ kind: Type.String(), id: Type.String() })
const POINTER = 'an object {kind, id} of two texts'

export const NativeEvent = Type.Object(
  {
    id: optional(
      Type.Union([
        Type.String({ minLength: 1, maxLength: MAX_ID_CHARS }),
        Type.Integer({ minimum: Number.MIN_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER }),
      ]),
      EVENT_ID,
    ),
    source: optional(
      Type.Union([Name, Type.Object({ name: optional(Name), eventId: optional(Type.String({ minLength: 1, maxLength: MAX_ID_CHARS })) })]),
      `a name of 1 to ${MAX_SOURCE_CHARS} characters, or {name}`,
    ),
    type: Type.String({ description: 'a text, such as step.output' }),
    ts: optional(Type.String(), 'a time as in RFC 3339, such as 2026-11-21T08:30:00.000Z'),
    subject: optional(Pointer, POINTER),
    parent: optional(Pointer, POINTER),
    stepId: optional(Type.String(), 'a text'),
    actor: optional(Pointer, POINTER),
    trace: optional(
      Type.Object({ traceId: TraceId, spanId: optional(TraceId), parentSpanId: optional(TraceId) }),
      'an object {traceId, spanId?, parentSpanId?} of texts that are not empty',
    ),
    data: optional(AnyObject, 'an object'),
  },
  { additionalProperties: true },
)
type NativeEvent = Static<typeof NativeEvent>

const check = TypeCompiler.Compile(NativeEvent)

function rejected(detail: string): Rejected {
  return { ok: false, code: 'VALIDATION_ERROR', detail }
}

/** Names the first field that is wrong, and what it should be. */
function mistakeIn(value: unknown): Rejected {
  const path = check.Errors(value).First()?.path ?? ''
  const name = path.split('/')[1] ?? ''
  const wanted = Object.entries(NativeEvent.properties).find(([field]) => field === name)?.[1].description ?? 'an event'
  return rejected(`/${name}: expected ${wanted}`)
}

function referenceOf(reference: { kind: string; id: string } | null | undefined) {
  return reference ? { kind: reference.kind, id: reference.id } : undefined
}

function sourceOf(source: NativeEvent['source']): { name?: string | null; eventId?: string | null } {
  return typeof source === 'string' ? { name: source } : (source ?? {})
}

export const native: Format = {
  name: 'native',
  version: 1,
  misfits: 'reject',
  normalize(value, context) {
    if (!check.Check(value)) return mistakeIn(value)
    const { type, trace } = value
    let ts: string | undefined
    if (typeof value.ts === 'string') {
      ts = toUtc(value.ts)
      if (ts === undefined) return rejected(`/ts: expected ${NativeEvent.properties.ts.description}`)
    }
    const source = sourceOf(value.source)
    const draft: DraftEvent = { type, data: value.data ?? {} }
    if (ts !== undefined) draft.ts = ts
    if (value.subject) draft.subject = referenceOf(value.subject)
    if (value.parent) draft.parent = referenceOf(value.parent)
    if (typeof value.stepId === 'string') draft.stepId = value.stepId
    if (value.actor) draft.actor = referenceOf(value.actor)
    if (trace)
      draft.trace = { traceId: trace.traceId, ...(trace.spanId && { spanId: trace.spanId }), ...(trace.parentSpanId && { parentSpanId: trace.parentSpanId }) }
    const id = value.id ?? source.eventId ?? undefined
    return {
      ok: true,
      ...(id !== undefined && { eventId: String(id) }),
      sourceKind: 'agent',
      sourceName: source.name ?? context.defaultSource,
      rawType: type,
      events: [draft],
    }
  },
}
