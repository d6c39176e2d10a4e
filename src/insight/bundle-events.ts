/**
 * Lines of events as an export writes them, checked one by one: each is what the log may hold, and what an export of it would write again,
 * to the byte.
 */

import { isUtf8 } from 'node:buffer'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import { type CanonicalEvent, CanonicalEventSchema } from '../domain/canonical-event.js'
import { toUtc } from '../domain/time.js'
import { fitDraft } from '../ingest/fit.js'
import { MAX_EVENT_DEPTH } from '../ingest/json-items.js'
import { endOfValue, JsonFault } from '../ingest/json-scan.js'
import type { ImportedRaw } from '../log/import.js'
import { BundleError, CANONICAL_FILE, RAW_FILE } from './bundle.js'

export interface CheckedEvent {
  text: string
  event: CanonicalEvent
}

/** What the log adds around what was sent, and what the normalisers may wrap it in. */
const MAX_DEPTH = MAX_EVENT_DEPTH + 16
/** Bounds of what the log indexes, in bytes: a row of an index of Postgres has 2,704. */
const MAX_KEY_BYTES = 2500
const MAX_SEQS = 32_767
/** Of which an export writes none within an event: one would end its line, or its line in a frame of a stream. */
const LINE_BREAK = /[\n\r]/
const UNSTORABLE = 'a text has a NUL or half a surrogate pair in it'

const canonicalCheck = TypeCompiler.Compile(CanonicalEventSchema)

function parse(file: string, seq: number, line: Buffer): { text: string; value: unknown } {
  if (!isUtf8(line)) throw new BundleError(file, 'the line is not UTF-8', seq)
  const text = line.toString('utf8')
  try {
    if (endOfValue(line, 0, line.length, MAX_DEPTH, { suspicious: false }) !== line.length) throw new BundleError(file, 'the line is not one JSON object', seq)
    return { text, value: JSON.parse(text) }
  } catch (error) {
    if (error instanceof BundleError) throw error
    throw new BundleError(file, `the line is not JSON that an event may be: ${error instanceof JsonFault ? error.message : 'it cannot be parsed'}`, seq)
  }
}

/** Of run.json, state.json and metrics.json, which hold what events hold, some levels further down. */
const MAX_RECORD_DEPTH = MAX_DEPTH + 64

/** False for what is no value of JSON, or so deep that reading it would take more stack than there is. */
export function isShallow(line: Buffer): boolean {
  try {
    return endOfValue(line, 0, line.length, MAX_RECORD_DEPTH, { suspicious: false }) === line.length
  } catch (error) {
    if (error instanceof JsonFault) return false
    throw error
  }
}

const NUMBER = /\{(?:"runId":"[^"]*","seq"|"rawSeq"):(\d{1,16}),/
const NUMBER_BYTES = 400

/** The seq or rawSeq of a line, by its beginning; undefined where it does not tell it. Nothing of the line is checked. */
export function seqOfLine(line: Buffer): number | undefined {
  const told = NUMBER.exec(line.toString('latin1', 0, NUMBER_BYTES))?.[1]
  return told === undefined ? undefined : Number(told)
}

/** A canonical event of the run, with this seq. */
export function checkCanonical(line: Buffer, seq: number, runId: string): CheckedEvent {
  const misfit = (what: string) => new BundleError(CANONICAL_FILE, what, seq)
  const { text, value } = parse(CANONICAL_FILE, seq, line)
  if (LINE_BREAK.test(text)) throw misfit('it has a line break in it')
  // Only an escape can hold what the database cannot.
  if (text.includes('\\u') && !isStorable(value)) throw misfit(UNSTORABLE)
  if (!canonicalCheck.Check(value)) {
    const fault = canonicalCheck.Errors(value).First()
    throw misfit(`it is no canonical event: ${fault?.path ?? ''} ${fault?.message ?? ''}`)
  }
  if (value.runId !== runId) throw misfit(`it is an event of run '${value.runId.slice(0, 128)}', not of '${runId}'`)
  if (value.seq !== seq) throw misfit(`its seq is ${value.seq}`)
  const { ts, receivedAt, type, subject, parent, stepId, actor, data } = value
  if (toUtc(ts) === undefined || toUtc(receivedAt) === undefined) throw misfit('its ts and receivedAt are not RFC 3339 times')
  // The export reads the type where the append puts it.
  const start = JSON.stringify({ runId, seq, ts, receivedAt, type })
  if (!text.startsWith(`${start.slice(0, -1)},`)) throw misfit('its members do not begin with runId, seq, ts, receivedAt, type')
  const fault = fitDraft({ type, subject, parent, stepId, actor, data })
  if (fault !== undefined) throw misfit(`it does not fit its type: ${fault}`)
  // The schema of the envelope and, just now, that of its type hold.
  return { text, event: value as CanonicalEvent }
}

const BODY = Buffer.from(',"body":')

/** A raw event as it is stored, with this rawSeq. */
export function checkRaw(line: Buffer, rawSeq: number): ImportedRaw {
  const misfit = (what: string) => new BundleError(RAW_FILE, what, rawSeq)
  const { text, value } = parse(RAW_FILE, rawSeq, line)
  if (!isObject(value)) throw misfit('it is no raw event')
  const { receivedAt, format, rawType, source, eventId, seqs, bodyText } = value
  if (value.rawSeq !== rawSeq) throw misfit(`its rawSeq is ${String(value.rawSeq).slice(0, 20)}`)
  if (typeof receivedAt !== 'string' || toUtc(receivedAt) === undefined) throw misfit('its receivedAt is not an RFC 3339 time')
  if (typeof format !== 'string' || typeof rawType !== 'string' || typeof source !== 'string') throw misfit('format, rawType and source are not texts')
  if (eventId !== undefined && typeof eventId !== 'string') throw misfit('its eventId is not a text')
  if (Buffer.byteLength(source) + Buffer.byteLength(eventId ?? '') > MAX_KEY_BYTES) throw misfit('its source and eventId are too long')
  // The body is kept as it was sent, escapes and all.
  if (text.includes('\\u') && !isStorable([format, rawType, source, eventId])) throw misfit(UNSTORABLE)
  if (!isRangeOfSeqs(seqs)) throw misfit('its seqs do not follow each other')
  let body: string
  let rest: string
  if (bodyText === undefined) {
    // Within a text this would have its quotes escaped: it is the member, and the last one.
    const at = line.indexOf(BODY)
    if (at === -1) throw misfit('it has no body')
    body = line.toString('utf8', at + BODY.length, line.length - 1)
    if (LINE_BREAK.test(body)) throw misfit('its body has a line break in it, and is no bodyText')
    rest = `,"body":${body}}`
  } else {
    if (typeof bodyText !== 'string' || !LINE_BREAK.test(bodyText)) throw misfit('its bodyText is not a text of several lines')
    parse(RAW_FILE, rawSeq, Buffer.from(bodyText.trim()))
    body = bodyText
    rest = `,"bodyText":${JSON.stringify(bodyText)}}`
  }
  const head = JSON.stringify({ rawSeq, receivedAt, format, rawType, source, ...(eventId !== undefined && { eventId }), seqs })
  if (text !== `${head.slice(0, -1)}${rest}`) throw misfit('its members are not those of a raw event, or not in their order')
  return { rawSeq, receivedAt, format, rawType, source, eventId, seqs, body }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isRangeOfSeqs(value: unknown): value is number[] {
  if (!Array.isArray(value) || value.length > MAX_SEQS) return false
  return value.every((seq, index) => Number.isSafeInteger(seq) && seq > 0 && (index === 0 || seq === value[index - 1] + 1))
}

/** Texts of Postgres hold neither NUL nor half a surrogate pair. */
export function isStorable(value: unknown): boolean {
  if (typeof value === 'string') return value.isWellFormed() && !value.includes('\0')
  if (Array.isArray(value)) return value.every(isStorable)
  if (isObject(value)) return Object.entries(value).every(([name, member]) => isStorable(name) && isStorable(member))
  return true
}
