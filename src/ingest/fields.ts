/**
 * Reading the fields of foreign payloads, which come in several spellings and with numbers as texts.
 * Only own properties count, so that a payload cannot reach what every object inherits.
 */

/** A foreign JSON object. */
export type Fields = Readonly<Record<string, unknown>>

export function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

const snakeNames = new Map<string, string>()

/** `toolCallId` as `tool_call_id`. Called with the names of our own tables only, so the cache is bounded. */
function snakeCase(name: string): string {
  let snake = snakeNames.get(name)
  if (snake === undefined) {
    snake = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
    snakeNames.set(name, snake)
  }
  return snake
}

/** @returns the first of the named fields that is there and not null; each name is tried in camelCase and snake_case. */
export function read(fields: Fields, ...names: string[]): unknown {
  for (const name of names) {
    if (Object.hasOwn(fields, name) && fields[name] !== null) return fields[name]
    const snake = snakeCase(name)
    if (snake !== name && Object.hasOwn(fields, snake) && fields[snake] !== null) return fields[snake]
  }
  return undefined
}

/** @returns a text that is not empty; a number as its digits. */
export function asText(value: unknown): string | undefined {
  if (typeof value === 'string') return value === '' ? undefined : value
  return typeof value === 'number' ? String(value) : undefined
}

/** @returns a finite number, which JSON of protobuf may hold as a text. */
export function asNumber(value: unknown): number | undefined {
  const number = typeof value === 'string' && value.trim() !== '' ? Number(value) : value
  return typeof number === 'number' && Number.isFinite(number) ? number : undefined
}

export function asFields(value: unknown): Fields | undefined {
  return isFields(value) ? value : undefined
}

export function readText(fields: Fields, ...names: string[]): string | undefined {
  return asText(read(fields, ...names))
}

export function readNumber(fields: Fields, ...names: string[]): number | undefined {
  return asNumber(read(fields, ...names))
}

/** What a payload tells beside the fields that are named: it passes through. */
export function others(payload: Fields, named: Fields): Fields {
  return Object.fromEntries(Object.entries(payload).filter(([name]) => !Object.hasOwn(named, name)))
}
