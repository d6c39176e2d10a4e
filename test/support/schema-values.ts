/**
 * Values for a JSON schema of the OpenAPI document: such as fit it, and such as fit but for something hostile in one place or another.
 * A schema does not say all: which ids there are, and what a text without a pattern has to be, is given by the name that it stands under.
 */
import fc from 'fast-check'

export interface Schema {
  $ref?: string
  type?: string | string[]
  enum?: unknown[]
  const?: unknown
  anyOf?: Schema[]
  oneOf?: Schema[]
  allOf?: Schema[]
  items?: Schema
  properties?: Record<string, Schema>
  required?: string[]
  additionalProperties?: boolean | Schema
  minimum?: number
  maximum?: number
  minLength?: number
  maxLength?: number
  minItems?: number
  maxItems?: number
  minProperties?: number
  pattern?: string
  format?: string
}

/** What a member or parameter of this name is, where it is a text or a number; `undefined`: it is left out, unless it is required. */
export type Known = Record<string, fc.Arbitrary<unknown> | undefined>

export interface ValuesOptions {
  known: Known
  /** Members that mean nothing without one another. */
  together: string[][]
  /** Members of which one is wanted, and two are refused. */
  either: string[][]
  resolve(name: string): Schema | undefined
}

const PROBES = [
  '',
  ' ',
  '0',
  '-1',
  '1.5',
  '1e3',
  '99999999999999999999',
  'null',
  'true',
  '%00',
  '\0',
  '\ud800',
  '../..',
  '__proto__',
  'constructor',
  "' or 1=1 --",
  '\u202e',
  'é',
  '😀',
  'a'.repeat(3000),
  '2026-11-21T00:00:00Z',
  '[]',
  '{}',
  '{"a":1}',
]

export const hostileText: fc.Arbitrary<string> = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(...PROBES) },
  { weight: 1, arbitrary: fc.string({ maxLength: 20 }) },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 20 }) },
)

const odd: fc.Arbitrary<unknown> = fc.oneof(
  hostileText,
  fc.constantFrom<unknown>(null, true, false, 0, -1, 1.5, 1e308, 2 ** 53, [], {}, [[]], [null], { a: { b: {} } }),
  fc.jsonValue({ maxDepth: 3 }),
)

export const textOf = (value: unknown) => (typeof value === 'string' ? value : (JSON.stringify(value) ?? ''))

export type SchemaValues = ReturnType<typeof schemaValues>

export function schemaValues({ known, together, either, resolve }: ValuesOptions) {
  /** Few of the optional names, for two that refuse each other are seldom among few; sometimes many. */
  function someOf(names: string[]): fc.Arbitrary<string[]> {
    const isThere = (name: string) => names.includes(name)
    const withOthers = (name: string) => together.find((group) => group.includes(name) && group.every(isThere)) ?? [name]
    const choice = either.find((members) => members.every(isThere)) ?? []
    const chosen =
      choice.length === 0
        ? fc.constant([])
        : fc.oneof({ weight: 9, arbitrary: fc.constantFrom(...choice.map(withOthers)) }, { weight: 1, arbitrary: fc.constant([]) })
    const rest = [...new Set(names.map(withOthers))].filter((group) => !group.some((name) => choice.flatMap(withOthers).includes(name)))
    const upTo = (maxLength: number) => fc.subarray(rest, { maxLength: Math.min(maxLength, rest.length) })
    const others = fc.oneof({ weight: 2, arbitrary: upTo(1) }, { weight: 2, arbitrary: upTo(3) }, { weight: 1, arbitrary: upTo(rest.length) })
    return fc.tuple(chosen, others).map(([one, more]) => [...one, ...more.flat()])
  }

  function text({ pattern, format, minLength = 0, maxLength = Number.POSITIVE_INFINITY }: Schema): fc.Arbitrary<string> {
    if (format === 'uuid') return fc.uuid()
    if (format === 'date-time') return fc.date({ min: new Date(0), max: new Date(4e12), noInvalidDate: true }).map((date) => date.toISOString())
    const fits = (value: string) => value.length >= minLength && value.length <= maxLength
    if (pattern === undefined)
      return fc
        .oneof(fc.constantFrom('a', 'step.started', 'custom.emitted'), fc.string({ unit: 'grapheme', minLength, maxLength: Math.min(maxLength, 20) }))
        .filter(fits)
    const expression = new RegExp(pattern)
    // A look-ahead is nothing that stringMatching can follow: it is filtered by.
    return fc
      .stringMatching(new RegExp(pattern.replace(/\(\?!(?:\([^)]*\)|[^()])*\)/g, '')), { size: '-1' })
      .filter((value) => fits(value) && expression.test(value))
  }

  function number({ type, minimum = -10, maximum = 1000 }: Schema): fc.Arbitrary<number> {
    if (type === 'number') return fc.double({ min: minimum, max: maximum, noNaN: true })
    const [min, max] = [Math.ceil(minimum), Math.floor(Math.min(maximum, 2 ** 53 - 1))]
    return fc.oneof(
      { weight: 3, arbitrary: fc.integer({ min, max: Math.min(max, min + 5) }) },
      { weight: 1, arbitrary: fc.maxSafeInteger().map((any) => min + (Math.abs(any) % (max - min + 1))) },
    )
  }

  /** @param name the member or parameter that it is @param isHostile whether something odd may be in the place of any part of it */
  function value(given: Schema | undefined, name: string, isHostile: boolean, depth = 0): fc.Arbitrary<unknown> {
    if (!given || depth > 6) return isHostile ? odd : fc.jsonValue({ maxDepth: 2 })
    const schema = given.$ref === undefined ? given : (resolve(given.$ref.split('/').at(-1) ?? '') ?? {})
    const fits = (): fc.Arbitrary<unknown> => {
      if (schema.const !== undefined) return fc.constant(schema.const)
      if (schema.enum) return fc.constantFrom(...schema.enum)
      const choices = schema.anyOf ?? schema.oneOf
      const those = choices && fc.oneof(...choices.map((choice) => value(choice, name, isHostile, depth + 1)))
      if (those) return known[name] ? fc.oneof({ weight: 2, arbitrary: known[name] }, { weight: 1, arbitrary: those }) : those
      if (schema.allOf) return value(schema.allOf[0], name, isHostile, depth + 1)
      switch (Array.isArray(schema.type) ? schema.type[0] : schema.type) {
        case 'integer':
        case 'number':
          return known[name] ?? number(schema)
        case 'boolean':
          return fc.boolean()
        case 'null':
          return fc.constant(null)
        case 'array': {
          const { minItems = 0, maxItems = 4 } = schema
          return fc.array(value(schema.items, name, isHostile, depth + 1), { minLength: minItems, maxLength: Math.max(minItems, Math.min(maxItems, 4)) })
        }
        case 'string':
          return isHostile ? fc.oneof(known[name] ?? text(schema), hostileText) : (known[name] ?? text(schema))
        case 'object':
          return object(schema, isHostile, depth)
        default:
          return isHostile ? odd : fc.jsonValue({ maxDepth: 2 })
      }
    }
    return isHostile ? fc.oneof({ weight: 9, arbitrary: fits() }, { weight: 1, arbitrary: odd }) : fits()
  }

  function object({ properties = {}, required = [], minProperties = 0 }: Schema, isHostile: boolean, depth: number): fc.Arbitrary<unknown> {
    const optional = Object.keys(properties).filter((name) => !required.includes(name) && !(name in known && known[name] === undefined))
    const named = (names: string[]) => fc.record(Object.fromEntries(names.map((name) => [name, value(properties[name], name, isHostile, depth + 1)])))
    return someOf(optional)
      .filter((some) => isHostile || required.length + some.length >= minProperties)
      .chain((some) => named([...required, ...some]))
  }

  return {
    someOf,
    fitting: (schema: Schema | undefined, name = '') => value(schema, name, false),
    /** Fits the schema in most parts, and is odd in some. */
    nearlyFitting: (schema: Schema | undefined, name = '') => value(schema, name, true),
    hostile: (schema: Schema | undefined, name = '') => fc.oneof(odd, value(schema, name, true)),
  }
}
