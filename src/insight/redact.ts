/**
 * What leaves with a bundle. Three profiles:
 * - `full`: everything.
 * - `no-content`: ids, times, types, names, counts, tokens and costs stay; texts and payloads go.
 * - `hashed`: they stay as keyed hashes, each value by itself, so that two bundles of equal runs are equal under the same key.
 *
 * What is kept is listed, by name; what is not listed is content. Under both profiles an event still fits the schema of its type, and keeps
 * its shape digest (domain/digest.ts), so that redacted runs align with each other and with their original. An id that does not look like
 * one (an address, a sentence) is hashed, always to the same text, so that what refers to it still does.
 */
import { createHmac } from 'node:crypto'
import { type TSchema, TypeGuard } from '@sinclair/typebox'
import { type CanonicalEvent, EVENT_TYPES, type Reference } from '../domain/canonical-event.js'
import { NAMING } from '../domain/digest.js'
import { toUtc } from '../domain/time.js'
import { isChosenId, isVolatileName, UUID_TEXT, volatileText } from '../domain/volatile.js'

export const PROFILES = ['full', 'no-content', 'hashed'] as const
export type Profile = (typeof PROFILES)[number]

export interface Redactor {
  event(event: CanonicalEvent): CanonicalEvent
  /** For run.json, state.json and the like: objects of ours, which hold foreign values under known names. */
  record(value: unknown): unknown
}

/** Under these names lies what agents and clients sent, whatever it is. */
const FOREIGN = words('input output metadata payload value content arguments result response prompt schema checks inline supersedes intent headers runtime')
/** Texts that say what kind of thing it is: names, which are part of the shape of an event (domain/digest.ts), or which people gave to models and queues, */
const NAMES = new Set([...NAMING, ...words('tools model provider modeName queue')])
/** and words from a list of somebody's, as far as they look like one. An event of any type may have such a member, and say anything in it. */
const CODES = words('type format rawType mode vote level severity unit relation code errorCode sha256 mediaType version op finishReason finishReasons decision')
const LOOKS_LIKE_CODE = /^[!-~]{1,200}$/
/** With parameters (RFC 9110, section 8.3.1). */
const MEDIA_TYPE = /^[\w.+-]{1,100}\/[!-~]{1,200}(?: [!-~]{1,200})?$/
const IDS = words('id sender recipients participants by actor from to previousOwner progressToken')
const ID_NAME = /(?:Id|Ids|_id|_ids)$/
const TIME_NAME = /(?:At|_at)$|^(?:ts|time|timestamp)$/
const VERSION_NAME = /Version$/
const MEASURE_NAME = /(?:Ms|Count|Tokens|Usd|Bytes|Seq|_ms)$|^ok$/
/** A name that a programmer gave. Another may say anything, and end in `Id`. */
const IDENTIFIER = /^[A-Za-z_][A-Za-z0-9_]{0,39}$/
/** Objects of the vocabulary; others in the data of an event are foreign. */
const OWN_OBJECTS = words('usage agent error session participants patch tools')
const LOOKS_LIKE_ID = /^[A-Za-z0-9._:~+/=#|-]{1,200}$/
/** 128 bits. */
const HASH_CHARS = 32
/** Hashes that are remembered: texts come again and again. */
const MAX_REMEMBERED = 10_000
const MAX_REMEMBERED_CHARS = 200

function words(text: string): Set<string> {
  return new Set(text.split(' '))
}

/** The names in the vocabulary, and which of them are numbers or booleans. */
const { names: VOCABULARY, measures: MEASURES } = namesOfVocabulary()

function namesOfVocabulary(): { names: Set<string>; measures: Set<string> } {
  const names = new Set<string>()
  const measures = new Set<string>()
  const visit = (schema: TSchema): void => {
    if (TypeGuard.IsArray(schema)) visit(schema.items)
    if (TypeGuard.IsUnion(schema)) for (const member of schema.anyOf) visit(member)
    if (!TypeGuard.IsObject(schema)) return
    for (const [name, member] of Object.entries(schema.properties)) {
      names.add(name)
      const kinds = TypeGuard.IsUnion(member) ? member.anyOf : [member]
      if (kinds.some((kind) => TypeGuard.IsNumber(kind) || TypeGuard.IsBoolean(kind))) measures.add(name)
      visit(member)
    }
  }
  for (const { data } of Object.values(EVENT_TYPES)) visit(data)
  return { names, measures }
}

const isId = (name: string) => IDS.has(name) || ID_NAME.test(name)
const isMeasure = (name: string) => MEASURES.has(name) || MEASURE_NAME.test(name)

function isLabel(name: string, text: string): boolean {
  if (NAMES.has(name)) return true
  if (CODES.has(name) || VERSION_NAME.test(name)) return isCode(text) || (name === 'mediaType' && MEDIA_TYPE.test(text))
  return TIME_NAME.test(name) && toUtc(text) !== undefined
}

/** What a word from a list may look like; anything else is said by somebody. */
export function isCode(text: string): boolean {
  return LOOKS_LIKE_CODE.test(text)
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** @param key of the hashes: whoever has it can tell whether a value that they know is in a bundle. */
export function createRedactor(profile: Profile, key: Buffer): Redactor {
  if (profile === 'full') return { event: (event) => event, record: (value) => value }
  const remembered = new Map<string, string>()

  function hashOf(text: string): string {
    const known = remembered.get(text)
    if (known !== undefined) return known
    const hash = createHmac('sha256', key).update(text).digest('hex').slice(0, HASH_CHARS)
    if (text.length <= MAX_REMEMBERED_CHARS) {
      if (remembered.size >= MAX_REMEMBERED) remembered.clear()
      remembered.set(text, hash)
    }
    return hash
  }

  /** An id that was chosen stays one that was, for a comparison (domain/volatile.ts), and one that was made up for the run one of those. */
  function idOf(id: string): string {
    if (LOOKS_LIKE_ID.test(id)) return id
    const hash = hashOf(id)
    return isChosenId(id) ? `h:${hash.replace(/\d/g, (digit) => 'ghijklmnop'.charAt(Number(digit)))}` : `h:${hash}`
  }

  /** A name in a foreign object: what the vocabulary has too says nothing. What is volatile for a comparison stays so. */
  function nameOf(name: string): string {
    if (VOCABULARY.has(name)) return name
    return `h_${hashOf(name)}${isVolatileName(name) ? '_id' : ''}`
  }

  function hashedText(text: string): string {
    const kind = volatileText(text)
    if (kind === undefined) return `h:${hashOf(text)}`
    return kind === UUID_TEXT ? hashOf(text).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-') : kind
  }

  /** A foreign value with its structure, each value in it hashed by itself. */
  function hashed(value: unknown): unknown {
    if (value === null || value === undefined) return value
    if (typeof value === 'string') return hashedText(value)
    if (Array.isArray(value)) return value.map(hashed)
    if (isObject(value)) return Object.fromEntries(Object.entries(value).map(([name, member]) => [nameOf(name), hashed(member)]))
    return `h:${hashOf(` ${String(value)}`)}`
  }

  /** Undefined: it goes. */
  const content = (value: unknown) => (profile === 'hashed' ? hashed(value) : undefined)

  /** A member of an object of ours. @param open the object may also hold what is not ours, as the data of an event may */
  function member(name: string, value: unknown, open: boolean): unknown {
    if (value === null || value === undefined) return value
    if (FOREIGN.has(name)) return content(value)
    if (typeof value === 'string') return isId(name) ? idOf(value) : isLabel(name, value) ? value : content(value)
    if (typeof value !== 'object') return !open || isMeasure(name) ? value : content(value)
    if (open && !OWN_OBJECTS.has(name) && !(Array.isArray(value) && VOCABULARY.has(name))) return content(value)
    if (!Array.isArray(value)) return fields(value, open || name === 'session')
    const items = value.map((item) => (name === 'patch' && isObject(item) ? operation(item) : isObject(item) ? fields(item, open) : member(name, item, open)))
    return items.filter((item) => item !== undefined)
  }

  function fields(value: object, open: boolean): Record<string, unknown> {
    const kept: [string, unknown][] = []
    for (const [name, one] of Object.entries(value)) {
      const redacted = member(name, one, open)
      const isOurs =
        !open ||
        VOCABULARY.has(name) ||
        NAMES.has(name) ||
        CODES.has(name) ||
        (IDENTIFIER.test(name) && (isId(name) || isMeasure(name) || VERSION_NAME.test(name)))
      if (redacted !== undefined) kept.push([isOurs ? name : nameOf(name), redacted])
      else if (!open) kept.push([name, Array.isArray(one) ? [] : isObject(one) ? {} : null])
    }
    return Object.fromEntries(kept)
  }

  /** Of a JSON Patch (RFC 6902): its paths are made of foreign names. */
  function operation({ op, path, from, value }: Record<string, unknown>): Record<string, unknown> {
    const pointer = (text: unknown) => {
      if (profile !== 'hashed' || typeof text !== 'string') return ''
      return text.replace(/[^/]+/g, (part) => (/^(?:\d+|-)$/.test(part) ? part : nameOf(part)))
    }
    const moved = content(value)
    return {
      op: typeof op === 'string' && isCode(op) ? op : '',
      path: pointer(path),
      ...(from !== undefined && { from: pointer(from) }),
      ...(moved !== undefined && { value: moved }),
    }
  }

  /** What the schema of the type, or the meaning of the event, cannot do without. */
  function required({ type, data }: { type: string; data: Readonly<Record<string, unknown>> }): Record<string, unknown> {
    if (type === 'state.snapshot') return { state: content(data.state) ?? null }
    if (profile === 'hashed') return {}
    if (type === 'step.output' || type === 'message.delta') return { text: '' }
    return typeof data.error === 'string' ? { error: {} } : {}
  }

  const reference = ({ kind, id }: Reference): Reference => ({ kind, id: idOf(id) })

  return {
    event(event) {
      const { subject, parent, stepId, actor, source, data } = event
      return {
        ...event,
        subject: reference(subject),
        ...(parent && { parent: reference(parent) }),
        ...(stepId !== undefined && { stepId: idOf(stepId) }),
        ...(actor && { actor: reference(actor) }),
        source: { ...source, ...(source.eventId !== undefined && { eventId: idOf(source.eventId) }) },
        data: { ...fields(data, true), ...required(event) },
        // Still one of its type: a test redacts events of every type and checks them.
      } as CanonicalEvent
    },
    record: (value) => (isObject(value) ? fields(value, false) : value),
  }
}
