/** Redacted bundles of real runs: they say nothing, and still compare. */
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import { silent, testDatabase } from '../support/database.js'

const SAID = 'only between us'

t.test('redacted bundles', async (t) => {
  const database = await testDatabase(t)
  const config = loadConfig({ DATA_DIR: mkdtempSync(join(tmpdir(), 'redaction-')) }, { envFile: '/nonexistent' })
  const app = await buildApp({ config, database, logger: silent })
  t.teardown(() => app.close())
  const post = async (url: string, payload: object) => {
    const answer = await app.inject({ method: 'POST', url, payload })
    t.ok(answer.statusCode < 300, `${url} ${answer.statusCode} ${answer.statusCode < 300 ? '' : answer.body}`)
    return answer.json()
  }
  const bundle = async (id: string, profile: string, format = 'json') =>
    (await app.inject({ method: 'GET', url: `/runs/${id}/export?format=${format}&profile=${profile}&includeRaw=true` })).body

  /** The same work, done twice: other ids, other times. */
  async function work(id: string, answer = 'forty-two') {
    await post('/runs', { id, name: 'nightly', kind: 'demo', input: { question: SAID }, metadata: { owner: SAID } })
    await post(`/runs/${id}/events`, [
      { type: 'run.started', data: { model: 'large' } },
      { type: 'step.started', subject: { kind: 'step', id: `${id}-1` }, data: { name: 'plan', input: { prompt: SAID, requestId: id } } },
      {
        type: 'llm.call.completed',
        subject: { kind: 'llm_call', id: `${id}-c` },
        data: { model: 'large', inputTokens: 10, outputTokens: 5, costUsd: 0.01, prompt: SAID, response: [{ text: answer }] },
      },
      { type: 'tool.called', subject: { kind: 'tool', id: `${id}-t` }, data: { name: 'search', arguments: { [SAID]: SAID, limit: 10 } } },
      {
        type: 'tool.completed',
        subject: { kind: 'tool', id: `${id}-t` },
        data: { name: 'search', result: [answer, crypto.randomUUID(), new Date().toISOString()] },
      },
      { type: 'participant.seen', subject: { kind: 'participant', id: 'the reviewer' }, data: { participantId: 'the reviewer', role: 'voter' } },
      { type: 'message.delta', subject: { kind: 'message', id: `${id}-m` }, data: { text: SAID } },
      { type: 'state.snapshot', data: { state: { plan: SAID, requestId: id } } },
      { type: 'step.completed', subject: { kind: 'step', id: `${id}-1` }, data: { name: 'plan', output: SAID } },
      { type: 'run.completed', data: { output: SAID } },
    ])
  }
  await work('first')
  await work('second')
  await work('third', 'forty-three')

  await t.test('hold nothing of what was said, and name what was left out', async (t) => {
    for (const profile of ['no-content', 'hashed']) {
      for (const format of ['json', 'ndjson']) {
        const text = await bundle('first', profile, format)
        t.notMatch(text, SAID, `${profile} ${format}`)
        t.notMatch(text, /forty-two/)
        t.match(text, /raw/, 'the manifest tells of the raw events')
      }
      const { manifest } = JSON.parse(await bundle('first', profile))
      t.match(manifest, { profile: profile })
    }
  })

  interface Comparison {
    firstDivergence: { shape?: unknown; content?: unknown } | null
    steps: { items: { status: string }[] }
    events: { leftOnly: number; rightOnly: number; moved: number }
    metrics: Record<string, { delta: number | null }>
  }
  const compare = (left: unknown, right: unknown): Promise<Comparison> => post('/runs/compare', { left, right })

  await t.test('that are hashed align with their original, event by event', async (t) => {
    const found = await compare('first', { bundle: await bundle('first', 'hashed') })
    t.match(found.events, { leftOnly: 0, rightOnly: 0, moved: 0 })
    t.notOk(found.firstDivergence?.shape, JSON.stringify(found.firstDivergence))
    t.same(
      found.steps.items.filter((step) => /only|moved/.test(JSON.stringify(step))),
      [],
    )
    t.notOk((await compare('first', { bundle: await bundle('first', 'no-content') })).firstDivergence?.shape)
  })

  await t.test('that are hashed, of equal runs, are equal, and of others are not', async (t) => {
    const [first, second, third] = await Promise.all(['first', 'second', 'third'].map(async (id) => ({ bundle: await bundle(id, 'hashed') })))
    const equal = await compare(first, second)
    t.notOk(equal.firstDivergence?.shape || equal.firstDivergence?.content, JSON.stringify(equal.firstDivergence))
    const other = await compare(first, third)
    t.notOk(other.firstDivergence?.shape)
    t.ok(other.firstDivergence?.content, 'an answer was another')
  })

  await t.test('are imported as runs of their own', async (t) => {
    const answer = await app.inject({
      method: 'POST',
      url: '/runs/import?as=taken-away',
      payload: await bundle('first', 'hashed', 'ndjson'),
      headers: { 'content-type': 'application/x-ndjson' },
    })
    t.match(answer.json(), { runId: 'taken-away', imported: true, events: { canonical: 11, raw: 0 } })
    const copy = await app.inject({ method: 'POST', url: '/runs/import?as=copy', payload: await bundle('first', 'full', 'ndjson') })
    t.match(copy.json(), { imported: true, events: { canonical: 11 } })
    for (const one of ['taken-away', { bundle: await bundle('copy', 'hashed', 'ndjson') }, { bundle: await bundle('taken-away', 'hashed') }]) {
      const { events, firstDivergence } = await compare('first', one)
      t.match(events, { leftOnly: 0, rightOnly: 0, moved: 0 })
      t.notOk(firstDivergence?.shape, JSON.stringify(firstDivergence))
    }
  })
})
