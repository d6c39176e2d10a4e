/** Prices of models: found by the names that providers, routers and clouds give them, never guessed. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'tap'
import { metricsOf } from '../../src/insight/metrics.js'
import { costOf, createPrices, loadPrices } from '../../src/insight/prices.js'
import { createState, fold } from '../../src/projections/fold.js'
import { createLog } from '../support/event-log.js'

const table = {
  asOf: '2026-01-01',
  source: 'a test',
  models: [
    { model: 'alpha', input: 2, output: 10, cacheRead: 1, cacheWrite: 4 },
    { model: 'alpha-mini', input: 1, output: 5 },
    { model: 'beta-4', input: 8, output: 8 },
  ],
}
const prices = createPrices(table)

test('a model is found by its name, a version of it, and the name that a router or a cloud gives it', async (t) => {
  const input = (model: string) => prices.priceOf(model)?.input
  for (const model of [
    'alpha',
    'ALPHA',
    'alpha-2026-01-31',
    'alpha-20260131',
    'alpha@20260131',
    'alpha-latest',
    'alpha-preview-05-06',
    'router/alpha',
    'a/b/alpha-0613',
  ])
    t.equal(input(model), 2, model)
  t.equal(input('alpha-mini-2026-01-31'), 1, 'the longest name that fits')
  t.equal(input('us.anthropic.beta-4-20260131-v1:0'), 8)
})

test('another model whose name begins alike has no price', async (t) => {
  for (const model of ['', 'alph', 'alphabet', 'alpha-max', 'alpha-2', 'beta-4-5', 'beta-45', 'beta', '/', 'constructor', '__proto__'])
    t.equal(prices.priceOf(model), undefined, model)
})

test('the cache has prices of its own, and is part of the input', async (t) => {
  const counts = { inputTokens: 1_000_000, outputTokens: 100_000, cacheReadTokens: 500_000, cacheWriteTokens: 100_000 }
  const cost = (model: string, some: Partial<typeof counts> = {}) => costOf(prices.priceOf(model) ?? { input: 0, output: 0 }, { ...counts, ...some })
  t.equal(cost('alpha'), 0.4 * 2 + 0.5 * 1 + 0.1 * 4 + 0.1 * 10)
  t.equal(cost('alpha-mini'), 1 + 0.5, 'or that of the input')
  t.equal(cost('alpha', { inputTokens: 0 }), 0.5 + 0.4 + 1, 'never less than nothing')
})

test('the built-in table says of when it is and where it is from, and has each model once', async (t) => {
  const built = createPrices()
  t.match(built.asOf, /^\d{4}-\d\d-\d\d$/)
  t.ok(built.source.length > 20)
  t.same(built.priceOf('gpt-4o-mini-2024-07-18'), { input: 0.15, output: 0.6, cacheRead: 0.075 })
})

test('a file replaces the table; one that cannot be used is named, with what is wrong', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'runplane-prices-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const file = (content: string) => {
    const path = join(folder, 'prices.json')
    writeFileSync(path, content)
    return path
  }
  t.equal(loadPrices(file(JSON.stringify(table))).priceOf('alpha')?.output, 10)
  t.throws(() => loadPrices(join(folder, 'none.json')), /MODEL_PRICES_FILE: .*none\.json cannot be used/)
  t.throws(() => loadPrices(file('{')), /MODEL_PRICES_FILE: .*prices\.json/)
  t.throws(() => loadPrices(file(JSON.stringify({ ...table, models: [{ model: 'alpha', input: -1, output: 1 }] }))), /\/models\/0\/input/)
  t.throws(() => loadPrices(file(JSON.stringify({ ...table, currency: 'EUR' }))), /\/currency/)
})

test('metrics of a state count all of a run, and share nothing with it', async (t) => {
  const log = createLog()
  log.control('run.created', {})
  log.add('run.started')
  log.about('llm_call/1', 'llm.call.completed', { model: 'alpha', inputTokens: 1_000_000, outputTokens: 0, costUsd: 0.5 })
  log.about('llm_call/2', 'llm.call.failed', { model: 'beta-4', inputTokens: 1_000_000 })
  for (let n = 0; n < 200; n++) log.about(`tool/${n}`, 'tool.called', { name: n % 2 === 0 ? 'shell' : 'search' })
  log.add('run.failed', { error: 'no' })
  const state = fold(createState(), log.events)
  const metrics = metricsOf(state, prices)
  t.match(metrics, {
    version: log.events.length,
    eventCount: log.events.length,
    status: 'failed',
    llmCallCount: 2,
    llmFailureCount: 1,
    toolCallCount: 200,
    costUsd: 0.5,
    costBasis: 'reported',
    models: [
      { model: 'alpha', reportedCostUsd: 0.5, pricedCostUsd: 2 },
      { model: 'beta-4', reportedCostUsd: 0, pricedCostUsd: 8 },
    ],
    tools: [
      { name: 'shell', called: 100 },
      { name: 'search', called: 100 },
    ],
    durationMs: 203_000,
    queuedMs: 1000,
  })
  const before = JSON.stringify(metrics)
  fold(state, [{ ...log.add('tool.called', { name: 'shell' }) }])
  t.equal(JSON.stringify(metrics), before)
})
