/** How two values differ, field by field: small enough to be read, whatever the values hold. */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import { isChosenId, type Rules, withoutVolatile } from '../../domain/volatile.js'
import type { FieldChange } from './answer.js'

const MAX_FIELDS = 50
/** Characters of a value that are shown. */
const MAX_VALUE = 300
/** Of what comes before the first difference of two texts. */
const MAX_BEFORE = 60

export interface FieldDiff {
  fields: FieldChange[]
  /** Fields that differ and are not among `fields`. */
  more: number
}

/** Of two values without what is volatile. */
export function fieldDiff(left: unknown, right: unknown, path = ''): FieldDiff {
  const diff: FieldDiff = { fields: [], more: 0 }
  visit(left, right, path)
  return diff

  function visit(one: unknown, other: unknown, at: string): void {
    if (Object.is(one, other)) return
    if (isRecord(one) && isRecord(other)) {
      for (const name of new Set([...Object.keys(one), ...Object.keys(other)])) visit(own(one, name), own(other, name), `${at}/${escaped(name)}`)
    } else if (Array.isArray(one) && Array.isArray(other)) {
      for (let index = 0; index < Math.max(one.length, other.length); index++) visit(one[index], other[index], `${at}/${index}`)
    } else if (one !== other) {
      if (diff.fields.length < MAX_FIELDS) diff.fields.push(change(at, one, other))
      else diff.more++
    }
  }
}

/** What of two events of the same shape is compared, and how it differs. */
export function eventDiff(left: CanonicalEvent, right: CanonicalEvent, rules: Rules): FieldDiff {
  return fieldDiff(compared(left, rules), compared(right, rules))
}

function compared({ subject, actor, data }: CanonicalEvent, rules: Rules): Record<string, unknown> {
  return {
    ...(subject.kind === 'participant' && isChosenId(subject.id) && { subject: { id: subject.id } }),
    ...(actor && { actor: { kind: actor.kind, ...(isChosenId(actor.id) && { id: actor.id }) } }),
    data: withoutVolatile(data, rules),
  }
}

function change(path: string, left: unknown, right: unknown): FieldChange {
  const texts = typeof left === 'string' && typeof right === 'string'
  const from = texts ? Math.max(0, commonStart(left, right) - MAX_BEFORE) : 0
  const one = shown(left, from)
  const other = shown(right, from)
  return {
    path,
    ...(left !== undefined && { left: one.value }),
    ...(right !== undefined && { right: other.value }),
    ...((one.cut || other.cut) && { cut: true as const }),
  }
}

function commonStart(left: string, right: string): number {
  let index = 0
  while (index < left.length && left.charCodeAt(index) === right.charCodeAt(index)) index++
  return index
}

function shown(value: unknown, from: number): { value: unknown; cut: boolean } {
  if (typeof value === 'string') {
    if (from === 0 && value.length <= MAX_VALUE) return { value, cut: false }
    const part = value.slice(from, from + MAX_VALUE).toWellFormed?.() ?? value.slice(from, from + MAX_VALUE)
    return { value: `${from > 0 ? '…' : ''}${part}${from + MAX_VALUE < value.length ? '…' : ''}`, cut: true }
  }
  if (typeof value !== 'object' || value === null) return { value, cut: false }
  const text = JSON.stringify(value)
  return text.length <= MAX_VALUE ? { value, cut: false } : { value: `${text.slice(0, MAX_VALUE)}…`, cut: true }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function own(value: Record<string, unknown>, name: string): unknown {
  return Object.hasOwn(value, name) ? value[name] : undefined
}

/** RFC 6901, section 3. */
function escaped(name: string): string {
  return name.replaceAll('~', '~0').replaceAll('/', '~1')
}
