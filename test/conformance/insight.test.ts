/** What runs did, used and cost: metrics, traces and messages of one, the overview of all. */
import t from 'tap'
import type { Answer, Page, Problem } from '../support/http.js'
import { newId, target } from './target.js'

const { client } = await target(t)

interface Metrics {
  runId: string
  version: number
  eventCount: number
  costUsd: number
  estimatedCostUsd: number
  costBasis: string
  models: { model: string; reportedCostUsd: number; pricedCostUsd: number | null }[]
  durationMs: number | null
  [name: string]: unknown
}
interface Message {
  seq: number
  direction: string
  status: string
  messageId: string
  text?: string
  truncated?: boolean
  [name: string]: unknown
}
interface Series {
  labels: string[]
  data: (number | null)[]
}
interface Overview {
  window: { from: string; to: string; bucket: string }
  kpis: Record<string, number | null | string[]>
  recentRuns: { runId: string; status: string; sourceRef?: string }[]
  charts: Record<string, Series>
}

const call = (id: string, data: Record<string, unknown>) => ({ type: 'llm.call.completed', subject: { kind: 'llm_call', id }, data })
const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()
const sum = ({ data }: Series) => data.reduce<number>((total, value) => total + (value ?? 0), 0)

t.test('metrics count what a run did, and price what it did not price itself', async (t) => {
  const { runId } = await client.createRun({ id: newId('metrics') })
  await client.append(runId, [
    { type: 'run.started', ts: at(10) },
    call('1', { model: 'gpt-4o-2024-08-06', inputTokens: 1_000_000, outputTokens: 100_000, cacheReadTokens: 400_000 }),
    call('2', { model: 'house-model', inputTokens: 1000, outputTokens: 100 }),
    { type: 'tool.called', subject: { kind: 'tool', id: 't' }, data: { name: 'shell' } },
    { type: 'tool.failed', subject: { kind: 'tool', id: 't' }, data: { name: 'shell', error: 'no', durationMs: 12 } },
    { type: 'signal.emitted', subject: { kind: 'signal', id: 's' }, data: { name: 'risk', sender: 'ann' } },
    { type: 'run.completed', ts: at(15) },
  ])
  const { status, body } = await client.get<Metrics>(`/runs/${runId}/metrics`)
  t.equal(status, 200)
  t.match(body, {
    runId,
    version: 8,
    status: 'completed',
    eventCount: 8,
    toolCallCount: 1,
    toolFailureCount: 1,
    llmCallCount: 2,
    signalCount: 1,
    errorCount: 1,
    inputTokens: 1_001_000,
    promptTokens: 1_001_000,
    completionTokens: 100_100,
    totalTokens: 1_101_100,
    // 600,000 at 2.50, 400,000 from the cache at 1.25 and 100,000 at 10 dollars a million.
    costUsd: 3,
    estimatedCostUsd: 3,
    costBasis: 'priced',
    unpricedModels: ['house-model'],
    prices: { asOf: /^\d{4}-\d\d-\d\d$/ },
    durationMs: 5000,
    startedAt: at(10),
    endedAt: at(15),
    tools: [{ name: 'shell', called: 1, completed: 0, failed: 1, durationMs: 12 }],
  })
  t.same(
    body.models.map(({ model, pricedCostUsd }) => [model, pricedCostUsd]),
    [
      ['gpt-4o-2024-08-06', 3],
      ['house-model', null],
    ],
  )
  t.match((await client.get<Metrics>(`/runs/${runId}/metrics?seq=2`)).body, { version: 2, eventCount: 2, costUsd: 0, costBasis: 'none', durationMs: 0 })
  t.match((await client.get<Problem>(`/runs/${runId}/metrics?seq=9`)).body, { code: 'CURSOR_INVALID' })
  t.match((await client.get<Problem>(`/runs/${newId('none')}/metrics`)).body, { code: 'RUN_NOT_FOUND' })
})

t.test('what a run tells of its cost is its cost', async (t) => {
  const { runId } = await client.createRun({ id: newId('cost') })
  await client.append(runId, [call('1', { model: 'gpt-4o', inputTokens: 1_000_000, costUsd: 0.5 }), { type: 'run.completed', data: { costUsd: 0.7 } }])
  t.match((await client.get<Metrics>(`/runs/${runId}/metrics`)).body, { costUsd: 0.7, costBasis: 'reported' })
})

t.test('the trace of a run', async (t) => {
  const { runId } = await client.createRun({ id: newId('trace'), metadata: { scenarioRef: 'fraud@1' } })
  await client.append(runId, [
    { type: 'step.started', subject: { kind: 'step', id: 'a' }, data: {}, trace: { traceId: 'trace-1', spanId: 'span-1' } },
    { type: 'artifact.created', subject: { kind: 'artifact', id: 'report' }, data: {}, trace: { traceId: 'trace-1', spanId: 'span-2' } },
  ])
  t.same((await client.get(`/runs/${runId}/traces`)).body, {
    runId,
    traceId: 'trace-1',
    spanCount: 2,
    lastSpanId: 'span-2',
    linkedArtifacts: ['report'],
    linked: 1,
    runStatus: 'running',
    scenarioRef: 'fraud@1',
  })
  const bare = await client.createRun()
  t.same((await client.get(`/runs/${bare.runId}/traces`)).body, { runId: bare.runId, spanCount: 0, linkedArtifacts: [], linked: 0, runStatus: 'queued' })
})

t.test('messages come from the log, page by page, with the text of those that were told piece by piece', async (t) => {
  const { runId } = await client.createRun({ id: newId('messages') })
  const message = { kind: 'message', id: 'chat' }
  const noise = Array.from({ length: 300 }, (_, index) => ({ type: 'step.output', subject: { kind: 'step', id: 'a' }, data: { text: `${index}` } }))
  await client.append(runId, [
    { type: 'message.sent', subject: { kind: 'message', id: 'm1' }, data: { messageType: 'Proposal', sender: 'ann', recipients: ['bob'], payload: { a: 1 } } },
    { type: 'message.started', subject: message, data: { role: 'assistant' } },
    { type: 'message.delta', subject: message, data: { text: 'Hello, ' } },
    { type: 'message.delta', subject: message, data: { text: 'Hm.', channel: 'reasoning' } },
    { type: 'message.delta', subject: message, data: { text: 'world' } },
    ...noise,
    { type: 'message.completed', subject: message, data: { role: 'assistant', finishReason: 'stop' } },
    { type: 'message.send_failed', subject: { kind: 'message', id: 'm2' }, data: { sender: 'ann', errorCode: 'DENIED', errorMessage: 'no' } },
    { type: 'message.received', subject: { kind: 'message', id: 'm3' }, data: { sender: 'bob', messageType: 'Vote' } },
    { type: 'message.completed', subject: { kind: 'message', id: 'whole' }, data: { role: 'user', content: [{ type: 'text', text: 'all of it' }] } },
  ])
  const all: Message[] = []
  let pages = 0
  for (let after: number | null | undefined = 0; typeof after === 'number'; pages++) {
    const { body }: Answer<Page<Message>> = await client.get(`/runs/${runId}/messages?limit=2&afterSeq=${after}`)
    all.push(...body.data)
    after = body.nextAfterSeq
  }
  t.ok(pages >= 3)
  t.match(all, [
    { seq: 2, direction: 'sent', status: 'accepted', messageId: 'm1', messageType: 'Proposal', sender: 'ann', recipients: ['bob'], payload: { a: 1 } },
    { direction: 'written', status: 'completed', messageId: 'chat', role: 'assistant', text: 'Hello, world', reasoning: 'Hm.' },
    { direction: 'sent', status: 'rejected', messageId: 'm2', error: { code: 'DENIED', message: 'no' } },
    { direction: 'received', status: 'received', messageId: 'm3', sender: 'bob' },
    { direction: 'written', messageId: 'whole', text: 'all of it', content: [{ type: 'text', text: 'all of it' }] },
  ])
  t.equal(all.length, 5)
  t.notOk(all.some((one) => 'truncated' in one))
  t.match((await client.get<Problem>(`/runs/${runId}/messages?afterSeq=x`)).body, { code: 'CURSOR_INVALID' })
})

t.test('a text that was told in many pieces is cut, and says so', async (t) => {
  const { runId } = await client.createRun({ id: newId('long-message') })
  const subject = { kind: 'message', id: 'long' }
  await client.append(runId, [
    ...Array.from({ length: 20 }, () => ({ type: 'message.delta', subject, data: { text: 'x'.repeat(10_000) } })),
    { type: 'message.completed', subject, data: {} },
  ])
  const [message] = (await client.get<Page<Message>>(`/runs/${runId}/messages`)).body.data
  t.equal(message?.text?.length, 65_536)
  t.equal(message?.truncated, true)
})

t.test('the overview counts the runs of a window, by status, time, cost, scenario and error', async (t) => {
  const scenario = newId('scenario')
  const create = async (id: string, environment: string) =>
    (await client.createRun({ id: newId(id), kind: 'agent', metadata: { scenarioRef: scenario, environment } })).runId
  const [done, failed, cancelled, queued, running] = [
    await create('done', 'prod'),
    await create('failed', 'prod'),
    await create('cancelled', 'prod'),
    await create('queued', 'prod'),
    await create('running', 'staging'),
  ]
  const now = Date.now()
  const iso = (ms: number) => new Date(ms).toISOString()
  await client.append(done, [
    { type: 'run.started', ts: iso(now - 4000) },
    call('1', { model: 'gpt-4o', inputTokens: 1_000_000 }),
    { type: 'signal.emitted', subject: { kind: 'signal', id: 's' }, data: { sender: 'ann', name: 'risk', confidence: 0.5 } },
    { type: 'message.received', subject: { kind: 'message', id: 'm' }, data: { sender: 'ann', messageType: 'Vote' } },
    { type: 'proposal.created', subject: { kind: 'proposal', id: 'p' }, data: { sender: 'ann', action: 'approve', confidence: 1 } },
    { type: 'decision.finalized', subject: { kind: 'decision', id: 'd' }, data: { action: 'approve', outcomePositive: true } },
    { type: 'run.completed', ts: iso(now - 1000) },
  ])
  await client.append(failed, [
    call('1', { model: 'gpt-4o', inputTokens: 10, costUsd: 0.25 }),
    { type: 'run.failed', data: { error: { code: 'E1', message: 'no' } } },
  ])
  t.equal((await client.post(`/runs/${cancelled}/cancel`)).status, 200)
  await client.append(running, { type: 'run.started' })
  const filter = `scenarioRef=${encodeURIComponent(scenario)}`

  for (const [window, bucket, least] of [
    ['1h', 'minute', 60],
    ['6h', 'minute', 360],
    ['24h', 'hour', 24],
    ['7d', 'day', 7],
    ['30d', 'day', 30],
  ] as const) {
    const { status, body } = await client.get<Overview>(`/dashboard/overview?window=${window}&${filter}`)
    t.equal(status, 200)
    t.match(body, {
      window: { bucket },
      kpis: {
        totalRuns: 5,
        activeRuns: 2,
        queuedRuns: 1,
        completedRuns: 1,
        failedRuns: 1,
        cancelledRuns: 1,
        successRate: 33.33,
        totalSignals: 1,
        totalDecisions: 1,
        totalErrors: 1,
        totalLlmCalls: 2,
        totalTokens: 1_000_010,
        totalCostUsd: 2.75,
        reportedCostUsd: 0.25,
        avgDurationMs: 3000,
        p50DurationMs: 3000,
        p95DurationMs: 3000,
        p99DurationMs: 3000,
      },
    })
    const { charts } = body
    const sums = Object.fromEntries(
      ['runVolume', 'throughput', 'queueDepth', 'signalVolume', 'decisionOutcome', 'cost'].map((name) => [name, sum(charts[name] as Series)]),
    )
    t.same(sums, { runVolume: 5, throughput: 1, queueDepth: 1, signalVolume: 1, decisionOutcome: 1, cost: 2.75 })
    for (const name of ['latency', 'latencyP50', 'latencyP95', 'latencyP99'])
      t.same(
        charts[name]?.data.filter((value) => value !== null),
        [3000],
        name,
      )
    t.same(charts.errorClasses, { labels: ['E1'], data: [1] })
    t.same(charts.perScenario, { labels: [scenario], data: [5] })
    for (const [name, series] of Object.entries(charts)) t.equal(series.labels.length, series.data.length, name)
    t.ok((charts.runVolume?.labels.length ?? 0) >= least)
    t.same(body.recentRuns.map(({ runId }) => runId).sort(), [done, failed, cancelled, queued, running].sort())
  }
  t.match((await client.get<Overview>(`/dashboard/overview?range=7d&${filter}&environment=staging`)).body, {
    window: { bucket: 'day' },
    kpis: { totalRuns: 1, activeRuns: 1 },
  })
  const part = encodeURIComponent(scenario.slice(0, -1))
  t.equal(((await client.get<Overview>(`/dashboard/overview?scenarioRef=${part}`)).body.kpis.totalRuns as number) >= 5, true, 'a part of its name finds it')
  const past = await client.get<Overview>(`/dashboard/overview?from=2001-01-01T00:00:00Z&to=2001-01-02T00:00:00Z&${filter}`)
  t.match(past.body, {
    window: { bucket: 'hour' },
    kpis: { totalRuns: 0, successRate: null, avgDurationMs: null },
    charts: { perScenario: { labels: [], data: [] } },
  })

  const agents = await client.get(`/dashboard/agents/metrics?window=1h&${filter}`)
  t.same(agents.body, [{ participantId: 'ann', runs: 1, messages: 1, signals: 1, averageConfidence: 0.75 }])
})

t.test('figures and series have the names that macp-control-plane documents', async (t) => {
  const words = (text: string) => text.split(' ')
  const { runId } = await client.createRun({ id: newId('macp'), metadata: { scenarioRef: 'fraud@1' } })
  await client.append(runId, { type: 'run.completed' })
  const { body } = await client.get<Overview & { runtimeHealth: object }>('/dashboard/overview')
  const lacks = (found: object | undefined, names: string[]) => names.filter((name) => !(name in (found ?? {})))
  t.same(lacks(body.kpis, words('totalRuns activeRuns completedRuns failedRuns cancelledRuns totalSignals totalTokens totalCostUsd avgDurationMs')), [])
  t.same(
    lacks(
      body.recentRuns.find((run) => run.runId === runId),
      words('id status runtimeKind sourceRef startedAt endedAt createdAt'),
    ),
    [],
  )
  t.same(lacks(body.runtimeHealth, words('ok runtimeKind')), [])
  t.same(
    lacks(
      body.charts,
      words('runVolume latency signalVolume errorClasses throughput queueDepth latencyP50 latencyP95 latencyP99 cost successRate decisionOutcome perScenario'),
    ),
    [],
  )
  const metrics = (await client.get<Metrics>(`/runs/${runId}/metrics`)).body
  t.same(
    lacks(
      metrics,
      words(
        'runId eventCount messageCount signalCount proposalCount toolCallCount decisionCount streamReconnectCount promptTokens completionTokens totalTokens estimatedCostUsd firstEventAt lastEventAt durationMs sessionState',
      ),
    ),
    [],
  )
  t.match((await client.get(`/runs/${runId}/traces`)).body, { spanCount: 0, linkedArtifacts: [], runStatus: 'completed', scenarioRef: 'fraud@1' })
})

t.test('what is no time is refused', async (t) => {
  for (const query of [
    'window=2h',
    'from=yesterday',
    'from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z',
    'from=1990-01-01T00:00:00Z',
    'scenarioRef=',
    'from=2026-01-01T00:00:00Z&to=',
  ])
    t.match((await client.get<Problem>(`/dashboard/overview?${query}`)).body, { status: 400, code: 'VALIDATION_ERROR' }, query)
  t.match((await client.get<Problem>('/dashboard/agents/metrics?limit=0')).body, { status: 400 })
})

t.test('a run counts as soon as it is there', async (t) => {
  const scenario = newId('at-once')
  await client.createRun({ metadata: { scenarioRef: scenario } })
  t.match((await client.get<Overview>(`/dashboard/overview?window=1h&scenarioRef=${scenario}`)).body, { kpis: { totalRuns: 1 } })
})
