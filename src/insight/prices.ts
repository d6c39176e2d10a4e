/**
 * What models cost: a table that is data, with its date and its source, and what a count of tokens comes to by it.
 * A model that the table does not have has no price: nothing is guessed.
 */
import { readFileSync } from 'node:fs'
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { ConfigError } from '../config.js'
import builtIn from './model-prices.json' with { type: 'json' }

const price = Type.Number({ minimum: 0, maximum: 1_000_000 })
const closed = { additionalProperties: false } as const

/** US dollars for a million tokens. */
const ModelPrice = Type.Object(
  { model: Type.String({ minLength: 1, maxLength: 200 }), input: price, output: price, cacheRead: Type.Optional(price), cacheWrite: Type.Optional(price) },
  closed,
)
const PriceFile = Type.Object({ asOf: Type.String({ maxLength: 40 }), source: Type.String({ maxLength: 1000 }), models: Type.Array(ModelPrice) }, closed)

type Price = Omit<Static<typeof ModelPrice>, 'model'>

export interface PriceTable {
  /** A date. */
  asOf: string
  source: string
  /** Undefined: not in the table. */
  priceOf(model: string): Price | undefined
}

export interface TokenCounts {
  inputTokens: number
  outputTokens: number
  cacheReadTokens: number
  cacheWriteTokens: number
}

/** What may follow a model's name in the name of one of its versions: a date or a tag; a shorter number names another model. */
const VERSION = /^[-@:](?:\d{3,}[\d-]*(?:-v\d+(?::\d+)?)?|v\d+(?::\d+)?|latest|preview.*|exp.*)$/

/** The table of MODEL_PRICES_FILE, or the built-in one. @throws ConfigError that names the file. */
export function loadPrices(path: string | undefined): PriceTable {
  if (path === undefined) return createPrices()
  try {
    return createPrices(JSON.parse(readFileSync(path, 'utf8')))
  } catch (error) {
    throw new ConfigError(
      `MODEL_PRICES_FILE: ${path} cannot be used: ${error instanceof Error ? error.message : String(error)}. Allowed: a table as in docs/METRICS.md.`,
    )
  }
}

/** @throws Error that says what is wrong with the table. */
export function createPrices(file: unknown = builtIn): PriceTable {
  const [problem] = [...Value.Errors(PriceFile, file)]
  if (problem || !Value.Check(PriceFile, file)) throw new Error(`${problem?.path || 'the table'}: ${problem?.message}`)
  const { asOf, source, models } = file
  const byName = new Map(models.map(({ model, ...price }) => [model.toLowerCase(), price]))
  // The longest first: gpt-4o-mini-2024-07-18 is a gpt-4o-mini.
  const names = [...byName.keys()].sort((left, right) => right.length - left.length)

  function find(model: string): Price | undefined {
    const name = names.find((known) => model.startsWith(known) && VERSION.test(model.slice(known.length)))
    return byName.get(model) ?? (name === undefined ? undefined : byName.get(name))
  }

  return {
    asOf,
    source,
    priceOf(model) {
      const name = model.toLowerCase()
      // As routers and clouds write it: openai/gpt-4o, models/gemini-2.5-pro, us.anthropic.claude-3-haiku-20240307-v1:0.
      return find(name) ?? find(name.slice(name.lastIndexOf('/') + 1)) ?? find(name.slice(name.lastIndexOf('anthropic.') + 'anthropic.'.length))
    },
  }
}

/**
 * US dollars. Input counts hold those of the cache, as OpenTelemetry has them; a price of its own for the cache that is not known is that of input.
 */
export function costOf(price: Price, { inputTokens, outputTokens, cacheReadTokens, cacheWriteTokens }: TokenCounts): number {
  const fresh = Math.max(0, inputTokens - cacheReadTokens - cacheWriteTokens)
  const { input, output, cacheRead = input, cacheWrite = input } = price
  return rounded((fresh * input + cacheReadTokens * cacheRead + cacheWriteTokens * cacheWrite + outputTokens * output) / 1_000_000)
}

/** US dollars, for what was used of the models that the table has. */
export function costOfModels(prices: PriceTable, uses: readonly (TokenCounts & { model: string })[]): number {
  return rounded(
    uses.reduce((sum, use) => {
      const price = prices.priceOf(use.model)
      return price ? sum + costOf(price, use) : sum
    }, 0),
  )
}

/** To a billionth of a dollar: sums of fractions drift. */
export function rounded(usd: number): number {
  return Number(usd.toFixed(9))
}
