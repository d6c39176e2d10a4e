/**
 * Holds each draft against the schema of its type: what the log stores always fits the vocabulary, so that reducers may
 * rely on it. Lengths are bounded here as well, once for all formats: what becomes part of an index must fit a row of one.
 */

import type { TObject, TSchema } from '@sinclair/typebox'
import { type TypeCheck, TypeCompiler } from '@sinclair/typebox/compiler'
import { Value } from '@sinclair/typebox/value'
import { type DraftEvent, EVENT_TYPES, type EventType, isEventType, type Reference } from '../domain/canonical-event.js'
import { percentageOf } from '../domain/percentage.js'
import { isFields } from './fields.js'
import { MAX_ID_CHARS } from './format.js'
import { defaultSubject } from './subject.js'
import { withCanonicalCounts } from './token-counts.js'

const MAX_TYPE_CHARS = 128
const MAX_KIND_CHARS = 64

const TYPE_PATTERN = /^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+$/

const checks = new Map<EventType, TypeCheck<TObject>>()

function checkOf(type: EventType): TypeCheck<TObject> {
  let check = checks.get(type)
  if (check === undefined) {
    check = TypeCompiler.Compile<TObject>(EVENT_TYPES[type].data)
    checks.set(type, check)
  }
  return check
}

/** Types whose data may hold an error. */
const FAILING: ReadonlySet<string> = new Set(Object.entries(EVENT_TYPES).flatMap(([type, { data }]) => (Object.hasOwn(data.properties, 'error') ? [type] : [])))

/** What may be told in several ways has one in the log: an error is an object, and progress a percentage. */
function nameAlike(draft: DraftEvent): void {
  nameCounts(draft)
  const { data } = draft
  if (typeof data.error === 'string' && FAILING.has(draft.type)) draft.data = { ...data, error: { message: data.error } }
  if (draft.type === 'progress.reported' && data.percentage === undefined) {
    const { current, total } = data
    if (typeof current !== 'number' || typeof total !== 'number') return
    const percentage = percentageOf({ current, total })
    if (percentage !== undefined) draft.data = { ...data, percentage }
  }
}

/** Types whose data holds token counts itself, and types that hold them under `usage`. */
const COUNTING = new Set(['llm.call.started', 'llm.call.completed', 'llm.call.failed', 'usage.reported', 'run.completed'])
const WITH_USAGE = new Set(['run.completed', 'step.completed', 'step.failed', 'step.skipped'])

function nameCounts(draft: DraftEvent): void {
  if (COUNTING.has(draft.type)) draft.data = withCanonicalCounts(draft.data)
  if (WITH_USAGE.has(draft.type) && isFields(draft.data.usage)) {
    const usage = withCanonicalCounts(draft.data.usage)
    if (usage !== draft.data.usage) draft.data = { ...draft.data, usage }
  }
}

function referenceMisfit(name: string, reference: Reference | undefined): string | undefined {
  if (reference === undefined) return undefined
  const { kind, id } = reference
  if (kind.length < 1 || kind.length > MAX_KIND_CHARS) return `/${name}/kind: expected a text of 1 to ${MAX_KIND_CHARS} characters`
  if (id.length < 1 || id.length > MAX_ID_CHARS) return `/${name}/id: expected a text of 1 to ${MAX_ID_CHARS} characters`
  return undefined
}

function typeMisfit(type: string): string | undefined {
  if (type.length <= MAX_TYPE_CHARS && TYPE_PATTERN.test(type)) return undefined
  return `/type: expected a name with a dot, such as step.output, of letters, digits, _ and -, of at most ${MAX_TYPE_CHARS} characters`
}

/** Many serializers write what is absent as null. @returns the value without the members that may be absent, are null, and are of a type that null is not. */
function withoutNulls(schema: TSchema, value: unknown): unknown {
  if (!isFields(value)) return value
  const properties: Readonly<Record<string, TSchema>> | undefined = (schema.anyOf?.find((member: TSchema) => member.type === 'object') ?? schema).properties
  if (properties === undefined) return value
  const required: readonly string[] = schema.required ?? []
  return Object.fromEntries(
    Object.entries(value).flatMap(([name, member]) => {
      const known = Object.hasOwn(properties, name) ? properties[name] : undefined
      if (known === undefined) return [[name, member]]
      return member === null && !required.includes(name) && !Value.Check(known, null) ? [] : [[name, withoutNulls(known, member)]]
    }),
  )
}

function dataMisfit(draft: DraftEvent, type: EventType, nullIsAbsent: boolean): string | undefined {
  const check = checkOf(type)
  if (check.Check(draft.data)) return undefined
  const data = nullIsAbsent ? withoutNulls(EVENT_TYPES[type].data, draft.data) : draft.data
  if (isFields(data) && check.Check(data)) {
    draft.data = { ...data }
    return undefined
  }
  const error = check.Errors(data).First()
  if (error === undefined) return `/data: does not fit the type ${type}`
  const wanted =
    typeof error.schema.description === 'string' ? `expected ${error.schema.description}` : error.message.replace(/^Expected required property$/, 'is required')
  return `/data${error.path}: ${lowerFirst(wanted)} (type ${type})`
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1)
}

/**
 * Brings a draft into the form that the log stores: canonical names of counts, an error as an object, a percentage, and the default subject.
 * @param nullIsAbsent whether a field that the type names, and that is null against its type, is left out
 * @returns what does not fit, as `<JSON pointer>: <what was expected>`; undefined when all does.
 */
export function fitDraft(draft: DraftEvent, nullIsAbsent = false): string | undefined {
  nameAlike(draft)
  draft.subject ??= defaultSubject(draft)
  if (draft.stepId !== undefined && (draft.stepId.length < 1 || draft.stepId.length > MAX_ID_CHARS)) {
    return `/stepId: expected a text of 1 to ${MAX_ID_CHARS} characters`
  }
  return (
    (isEventType(draft.type) ? dataMisfit(draft, draft.type, nullIsAbsent) : typeMisfit(draft.type)) ??
    referenceMisfit('subject', draft.subject) ??
    referenceMisfit('parent', draft.parent) ??
    referenceMisfit('actor', draft.actor)
  )
}
