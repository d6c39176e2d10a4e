/** What the state of a run says: the run, its steps, progress, model and tool calls, and the rest that any agent may tell. */
import t from 'tap'
import { EVENT_TYPES } from '../../../src/domain/canonical-event.js'
import {
  createState,
  decodeOlderState,
  decodeState,
  encodeState,
  fold,
  foldEvent,
  PROJECTION_SCHEMA_VERSION,
  summary,
  viewState,
} from '../../../src/projections/fold.js'
import { SECTIONS } from '../../../src/projections/sections.js'
import { createLog, eventAt } from '../../support/event-log.js'

const CONTRACT_SECTIONS = 'run participants graph decision signals progress timeline trace messages policy llm steps gates tools artifacts inputs errors'.split(
  ' ',
)

t.test('the state has the sections of the contract, in its order', async (t) => {
  t.strictSame(Object.keys(viewState(createState())), CONTRACT_SECTIONS)
  t.strictSame(Object.keys(SECTIONS), CONTRACT_SECTIONS)
  for (const [name, section] of Object.entries(SECTIONS)) t.equal(section.name, name)
  t.type(PROJECTION_SCHEMA_VERSION, 'number')
})

t.test('every type of the vocabulary is read by some section, and no section reads another', async (t) => {
  const handled = new Set(Object.values(SECTIONS).flatMap((section) => Object.keys(section.on)))
  t.strictSame([...handled].sort(), Object.keys(EVENT_TYPES).sort())
})

t.test('a state without events says that nothing is known', async (t) => {
  t.strictSame(summary(createState()), {
    runId: '',
    status: 'queued',
    progress: null,
    attempt: 1,
    startedAt: null,
    endedAt: null,
    error: null,
    name: null,
    kind: null,
    tags: [],
  })
  t.equal(createState().version, 0)
})

t.test('run: the session that it was created with, until the session says otherwise', async (t) => {
  const declared = { sessionId: 's1', modeName: 'decision', modeVersion: '1.0', configurationVersion: 'c1', policyVersion: 'p1' }
  const log = createLog()
  log.control('run.created', { kind: 'macp', session: declared })
  t.match(log.view().run, { ...declared, runtimeSessionId: 's1' })
  t.match(log.view().policy, { policyVersion: 'p1', quorumStatus: 'pending' })
  log.add('run.created', { modeName: 'other', sessionId: 's9' })
  t.match(log.view().run, declared, 'what an agent tells later does not replace it')
  log.about('session/s2', 'session.bound', { sessionId: 's2', policyVersion: 'p2' }, { sourceKind: 'runtime' })
  t.match(log.view(), { run: { ...declared, sessionId: 's2', policyVersion: 'p2' }, policy: { policyVersion: 'p2' } })
  log.about('policy/p3', 'policy.resolved', { policyVersion: 'p3' })
  t.match(log.view(), { run: { policyVersion: 'p2' }, policy: { policyVersion: 'p3' } })

  const told = createLog()
  told.add('run.created', declared)
  t.match(told.view().run, declared, 'an agent tells it beside the rest')
  const odd = createLog()
  odd.control('run.created', { session: { modeName: 7, policyVersion: null } })
  t.notOk('modeName' in odd.view().run)
  t.match(odd.view().policy, { policyVersion: '', quorumStatus: undefined })
})

t.test('run: times, result and identity come from the events', async (t) => {
  const log = createLog()
  log.control('run.created', { name: 'nightly', kind: 'job', tags: ['a', 'b'], parentRunId: 'parent', agent: { name: 'builder', version: '2' } })
  log.control('run.queued', { queue: 'default', priority: 3 })
  log.control('run.claimed', { workerId: 'w1', leaseExpiresAt: '2026-01-01T00:01:00.000Z' })
  log.about('step/1', 'step.started', { name: 'build' })
  log.add('run.completed', { output: { ok: true }, costUsd: 0.5 })
  const { run } = log.view()
  t.match(run, { runId: 'run-1', status: 'completed', name: 'nightly', kind: 'job', tags: ['a', 'b'], parentRunId: 'parent', queue: 'default', workerId: 'w1' })
  t.match(run, { createdAt: '2026-01-01T00:00:01.000Z', startedAt: '2026-01-01T00:00:04.000Z', endedAt: '2026-01-01T00:00:05.000Z', output: { ok: true } })
  t.notOk('error' in run)
})

t.test('run: a run that is cancelled in the queue never started; one that an agent fails did', async (t) => {
  const cancelled = createLog()
  cancelled.control('run.created')
  cancelled.control('run.cancelled', { reason: 'not needed', by: 'ann' })
  t.match(cancelled.view().run, { status: 'cancelled', reason: 'not needed', by: 'ann' })
  t.notOk('startedAt' in cancelled.view().run)
  const failed = createLog()
  failed.control('run.created')
  failed.add('run.failed', { error: 'broke', retryable: true })
  t.match(failed.view().run, { status: 'failed', startedAt: '2026-01-01T00:00:02.000Z', error: { message: 'broke' }, retryable: true })
})

t.test('run: facts after the end are counted and change neither status nor result', async (t) => {
  const log = createLog()
  log.add('run.started')
  log.add('run.cancelled', { reason: 'enough' })
  log.add('run.completed', { output: 'too late' }, { late: true })
  log.add('run.failed', { error: 'too late' }, { late: true })
  const { run } = log.view()
  t.match(run, { status: 'cancelled', reason: 'enough', late: 2, endedAt: '2026-01-01T00:00:02.000Z' })
  t.notOk('output' in run)
  t.notOk('error' in run)
})

t.test('run: a retry clears the result and begins the next attempt', async (t) => {
  const log = createLog()
  log.add('run.started')
  log.add('progress.reported', { percentage: 80 })
  log.add('run.failed', { error: { code: 'E', message: 'broke' } })
  log.control('run.retry_scheduled', { delayMs: 1000, attempt: 2 })
  t.match(log.view().run, { status: 'queued', attempt: 2, startedAt: '2026-01-01T00:00:01.000Z' })
  t.notOk('endedAt' in log.view().run)
  t.notOk('error' in log.view().run)
  t.equal(log.view().progress.percentage, null)
  t.equal(log.view().errors.total, 1)
})

const at = (second: number) => `2026-01-01T00:00:${String(second).padStart(2, '0')}.000Z`

t.test('run: each attempt has its worker, its times and how it ended', async (t) => {
  const log = createLog()
  const claim = (workerId: string) => log.control('run.claimed', { workerId, leaseExpiresAt: at(59) })
  log.control('run.created')
  log.control('run.queued', { queue: 'q' })
  t.same(log.view().run.attempts, [], 'none before anybody is at work')
  claim('w1')
  log.control('run.released', { workerId: 'w1' })
  claim('w2')
  log.about('step/1', 'step.started')
  log.control('run.retry_scheduled', { delayMs: 1, attempt: 2, reason: 'LEASE_EXPIRED', workerId: 'w2' })
  log.about('step/1', 'step.completed')
  claim('w3')
  log.add('run.started')
  log.add('run.failed', { error: { message: 'no' } })
  log.add('run.completed', {}, { late: true })
  log.control('run.retry_scheduled', { delayMs: 0, attempt: 3 })
  claim('w4')
  t.match(log.view().run.attempts.at(-1), { attempt: 3, workerId: 'w4', status: 'active' })
  log.control('run.failed', { error: { code: 'LEASE_EXPIRED', message: 'gone' } })
  log.control('run.retry_scheduled', { delayMs: 0, attempt: 4 })
  log.control('run.cancelled')
  t.strictSame(log.view().run.attempts, [
    { attempt: 1, workerId: 'w1', claimedAt: at(3), endedAt: at(4), status: 'released' },
    { attempt: 1, workerId: 'w2', claimedAt: at(5), startedAt: at(6), endedAt: at(7), status: 'lease_expired' },
    { attempt: 2, workerId: 'w3', claimedAt: at(9), startedAt: at(10), endedAt: at(11), status: 'failed' },
    { attempt: 3, workerId: 'w4', claimedAt: at(14), endedAt: at(15), status: 'lease_expired' },
  ])
  t.equal(log.view().run.attempt, 4)
})

t.test('run: a run without a queue has attempts as well, and an agent may tell of its own', async (t) => {
  const log = createLog()
  log.control('run.created')
  log.add('run.started', { workerId: 'a', attempt: 2 })
  log.add('run.suspended')
  log.add('run.started', { attempt: 3 })
  log.add('run.completed')
  t.strictSame(log.view().run.attempts, [
    { attempt: 2, workerId: 'a', startedAt: at(2), endedAt: at(4), status: 'retried' },
    { attempt: 3, workerId: 'a', startedAt: at(4), endedAt: at(5), status: 'completed' },
  ])
  const cancelled = createLog()
  cancelled.control('run.created')
  cancelled.control('session.bound', { sessionId: 's' })
  cancelled.control('run.cancelled')
  t.strictSame(cancelled.view().run.attempts, [{ attempt: 1, endedAt: at(3), status: 'cancelled' }])
})

t.test('run: the last 50 attempts are kept, and those that were dropped are counted', async (t) => {
  const log = createLog()
  for (let n = 1; n <= 60; n++) {
    log.control('run.claimed', { workerId: `w${n}` })
    log.control('run.retry_scheduled', { delayMs: 0, attempt: n + 1, reason: 'LEASE_EXPIRED' })
  }
  const { attempts, dropped } = log.view().run
  t.match([attempts.length, attempts[0], attempts.at(-1), dropped], [50, { attempt: 11, workerId: 'w11' }, { attempt: 60 }, 10])
})

t.test('run: what began before the state that retention has kept is not made up', async (t) => {
  const log = createLog()
  log.add('run.started')
  const before = JSON.parse(encodeState(fold(createState(), log.events)))
  before.folds.run.attempts = undefined
  const base = decodeOlderState(JSON.stringify(before))
  log.events.length = 0
  log.add('run.completed')
  t.same(viewState(fold(base, log.events)).run.attempts, [])
})

t.test('run: what could not be mapped and types that are not known are counted', async (t) => {
  const log = createLog()
  log.add('raw.received', { reason: 'no such type' })
  log.add('vendor.thing', { a: 1 })
  log.add('constructor.prototype', {})
  t.match(log.view().run, { unmapped: 1, unknownTypes: 2 })
})

t.test('run: the latest checkpoint, links to other runs and custom values by name', async (t) => {
  const log = createLog()
  log.about('checkpoint/c1', 'checkpoint.created', { step: 4 })
  log.about('checkpoint/c2', 'checkpoint.created', { checkpointId: 'second' })
  log.add('run.linked', { childRunId: 'child', relation: 'retry' })
  log.add('custom.emitted', { name: '__proto__', value: 1 })
  log.add('custom.emitted', { name: '__proto__', value: 2 })
  log.about('state/s', 'state.snapshot', { state: {} })
  log.about('state/s', 'state.patched', { patch: [] })
  const { run } = log.view()
  t.match(run, { checkpoints: 2, checkpoint: { checkpointId: 'second', seq: 2 }, stateSnapshots: 1, statePatches: 1, stateSeq: 7 })
  t.match(run.links, [{ runId: 'child', relation: 'retry' }])
  t.match(run.custom, [{ name: '__proto__', value: 2, count: 2 }])
})

t.test('progress: derived from the steps, done ones and the parts of running ones', async (t) => {
  const log = createLog()
  for (const id of ['a', 'b', 'c', 'd']) log.about(`step/${id}`, 'step.started', { name: id })
  t.equal(log.view().progress.percentage, 0)
  log.about('step/a', 'step.completed')
  log.about('step/b', 'step.skipped', { reason: 'not today' })
  log.about('step/c', 'progress.reported', { current: 1, total: 2 })
  t.equal(log.view().progress.percentage, 62)
  t.match(log.view().steps.steps[2], { id: 'c', status: 'running', progress: 50 })
  t.match(log.view().steps, { total: 4, running: 2, completed: 1, skipped: 1, failed: 0 })
  log.about('step/c', 'step.failed', { error: { message: 'no' } })
  t.equal(log.view().progress.percentage, 75)
  t.equal(log.view().run.progress, 75)
  t.match(log.view().steps.steps[2], { status: 'failed', reason: 'no' })
})

t.test('progress: what is reported about the run wins over its steps, and may go down', async (t) => {
  const log = createLog()
  log.about('step/a', 'step.started')
  log.add('progress.reported', { percentage: 70 })
  t.equal(log.view().progress.percentage, 70)
  log.add('progress.reported', { current: 3, total: 8, unit: 'files', message: 'again' })
  t.equal(log.view().progress.percentage, 38)
  t.match(log.view().progress.reported, { percentage: 37.5, current: 3, total: 8, unit: 'files', message: 'again' })
  log.add('progress.reported', { message: 'still' })
  t.equal(log.view().progress.percentage, 38)
})

t.test('progress: a completed run is at 100, a failed one where it was', async (t) => {
  const failed = createLog()
  failed.add('progress.reported', { percentage: 40 })
  failed.add('run.failed')
  failed.add('progress.reported', { percentage: 90 }, { late: true })
  t.equal(failed.view().progress.percentage, 40)
  const completed = createLog()
  completed.add('run.completed')
  t.equal(completed.view().progress.percentage, 100)
  const silent = createLog()
  silent.add('run.started')
  t.equal(silent.view().progress.percentage, null)
})

t.test('progress: what is told late of the steps of a failed run moves it no more, and a next attempt begins anew', async (t) => {
  const log = createLog()
  for (const id of ['a', 'b']) log.about(`step/${id}`, 'step.started')
  log.about('step/a', 'progress.reported', { percentage: 50 })
  log.add('run.failed', { error: 'boom' })
  log.about('step/a', 'step.completed', {}, { late: true })
  log.about('step/c', 'step.started', {}, { late: true })
  const { run, progress, steps } = log.view()
  t.strictSame([run.progress, progress.percentage], [25, 25])
  t.match(steps, { total: 3, completed: 1 }, 'the steps themselves are told')
  log.control('run.retry_scheduled', { attempt: 2, delayMs: 0 })
  t.equal(log.view().run.progress, null)
  log.about('step/a', 'step.started', {}, { attempt: 2 })
  log.about('step/a', 'step.completed', {}, { attempt: 2 })
  t.equal(log.view().run.progress, 100)
  const unknown = createLog()
  unknown.add('run.cancelled')
  unknown.about('step/a', 'step.completed', {}, { late: true })
  t.equal(unknown.view().run.progress, null)
})

t.test('progress: reports about participants are kept by participant', async (t) => {
  const log = createLog()
  log.about('participant/ann', 'progress.reported', { percentage: 10, message: 'reading' })
  log.about('participant/bob', 'progress.reported', { percentage: 20 })
  log.about('message/m', 'progress.reported', { percentage: 30, sender: 'ann' })
  t.match(log.view().progress, {
    percentage: null,
    reports: 3,
    entries: [
      { participantId: 'bob', percentage: 20 },
      { participantId: 'ann', percentage: 30 },
    ],
  })
  t.match(log.view().participants, [
    { participantId: 'ann', progress: 30 },
    { participantId: 'bob', progress: 20 },
  ])
})

t.test('steps: a repeated end counts once, a new start begins anew, a later attempt counts its own', async (t) => {
  const log = createLog()
  log.about('step/a', 'step.started', { name: 'a', phase: 'setup' }, { parent: { kind: 'step', id: 'root' } })
  log.about('step/a', 'step.output', { text: 'one\n' })
  log.about('step/a', 'step.failed', { error: 'no' })
  log.about('step/a', 'step.failed', { error: 'no' })
  t.match(log.view().steps, { total: 1, failed: 1, outputs: 1, steps: [{ parentId: 'root', phase: 'setup', lastOutput: 'one\n', reason: 'no' }] })
  log.about('step/a', 'step.started')
  t.match(log.view().steps, { total: 1, failed: 0, running: 1 })
  t.notOk('reason' in (log.view().steps.steps[0] ?? {}))
  log.about('step/b', 'step.started')
  log.control('run.retry_scheduled', { attempt: 2 })
  log.about('step/a', 'step.completed', {}, { attempt: 2 })
  t.match(log.view().steps, { attempt: 2, total: 1, completed: 1 })
  t.strictSame(
    log.view().steps.steps.map(({ id, status, attempt }) => ({ id, status, attempt })),
    [
      { id: 'b', status: 'abandoned', attempt: 1 },
      { id: 'a', status: 'completed', attempt: 2 },
    ],
  )
})

t.test('steps: the counts are right for more steps than the list holds', async (t) => {
  const state = createState()
  let seq = 0
  const about = (id: number, type: string) => foldEvent(state, eventAt(++seq, type, {}, { subject: { kind: 'step', id: `s${id}` } }))
  for (let id = 0; id < 1200; id++) {
    about(id, 'step.started')
    if (id % 2 === 0) about(id, 'step.completed')
  }
  t.match(viewState(state).steps, { total: 1200, running: 600, completed: 600 })
  for (let id = 1; id < 1200; id += 2) about(id, 'step.completed')
  const { steps, progress } = viewState(state)
  t.match({ ...steps, steps: [] }, { total: 1200, running: 0, completed: 1200 })
  t.equal(steps.steps.length, 500)
  t.equal(progress.percentage, 100)
  t.ok(steps.dropped >= 700)
})

t.test('steps: the texts of the last 100 are kept, and those of the others are counted', async (t) => {
  const state = createState()
  let seq = 0
  const about = (id: number, type: string, data: Record<string, unknown>) =>
    foldEvent(state, eventAt(++seq, type, data, { subject: { kind: 'step', id: `s${id}` } }))
  for (let id = 0; id < 150; id++) {
    about(id, 'step.output', { text: 'out' })
    about(id, 'progress.reported', { message: 'half', percentage: 50 })
  }
  const { steps } = viewState(state)
  t.equal(steps.steps.filter((step) => step.lastOutput === 'out' && step.message === 'half').length, 100)
  t.match(steps, { total: 150, dropped: 0, truncated: 100 })
})

t.test('llm: calls, totals and models, under our names and those of macp dashboards', async (t) => {
  const log = createLog()
  log.about('llm_call/1', 'llm.call.started', { provider: 'p', model: 'small' })
  log.about('llm_call/1', 'llm.call.completed', { inputTokens: 10, outputTokens: 5, costUsd: 0.1, latencyMs: 20, sender: 'ann' })
  log.about('llm_call/2', 'llm.call.completed', { model: 'large', inputTokens: 100, outputTokens: 50, costUsd: 0.2 })
  log.about('llm_call/3', 'llm.call.failed', { model: 'large', error: { message: 'overloaded' } })
  const { llm, errors } = log.view()
  t.match(llm.totals, { callCount: 2, failed: 1, inputTokens: 110, outputTokens: 55, totalTokens: 165, promptTokens: 110, completionTokens: 55 })
  t.match(llm.totals, { costUsd: 0.3, estimatedCostUsd: 0.3, latencyMs: 20 })
  t.match(llm.calls[0], { id: '1', model: 'small', participantId: 'ann', promptTokens: 10, completionTokens: 5, totalTokens: 15, estimatedCostUsd: 0.1 })
  t.match(llm.byModel, [
    { model: 'small', calls: 1, inputTokens: 10 },
    { model: 'large', calls: 1, failed: 1, inputTokens: 100 },
  ])
  log.about('llm_call/4', 'llm.call.failed', { model: 'down' })
  log.about('llm_call/5', 'llm.call.failed', {})
  const { totals, byModel } = log.view().llm
  for (const [name, total] of [
    ['calls', totals.callCount],
    ['failed', totals.failed],
  ] as const) {
    t.equal(
      byModel.reduce((sum, use) => sum + use[name], 0),
      total,
      `${name} of all models are those of the run`,
    )
  }
  t.match(errors.recent, [{ type: 'llm.call.failed', message: 'overloaded' }])
})

t.test('llm: the same use told twice is counted once', async (t) => {
  const log = createLog()
  log.about('llm_call/1', 'usage.reported', { inputTokens: 4, outputTokens: 1 })
  log.about('llm_call/1', 'usage.reported', { inputTokens: 3, mode: 'delta' })
  t.equal(log.view().llm.totals.inputTokens, 7)
  log.about('llm_call/1', 'usage.reported', { inputTokens: 8, mode: 'cumulative' })
  t.match(log.view().llm.totals, { inputTokens: 8, outputTokens: 1 })
  log.about('llm_call/1', 'llm.call.completed', { model: 'm', inputTokens: 10, outputTokens: 5 })
  log.about('llm_call/1', 'usage.reported', { inputTokens: 10, outputTokens: 5 })
  log.about('llm_call/1', 'llm.call.completed', { model: 'm', inputTokens: 10, outputTokens: 6 })
  t.match(log.view().llm.totals, { inputTokens: 10, outputTokens: 6, callCount: 1 })
  t.match(log.view().llm.byModel, [{ model: 'm', inputTokens: 10, outputTokens: 6, calls: 1 }])
  log.add('usage.reported', { inputTokens: 10, outputTokens: 6, costUsd: 0.7, mode: 'cumulative' })
  log.add('run.completed', { usage: { inputTokens: 12 }, costUsd: 0.7 })
  t.match(log.view().llm.totals, { inputTokens: 12, outputTokens: 6, costUsd: 0.7 })
})

t.test('llm: what a run tells with no model is of none only where its models do not account for it', async (t) => {
  const log = createLog()
  log.about('llm_call/1', 'llm.call.completed', { model: 'm', inputTokens: 10, outputTokens: 5, costUsd: 0.1 })
  log.about('llm_call/2', 'llm.call.completed', { model: 'n', inputTokens: 1, outputTokens: 1, costUsd: 0.2 })
  log.add('usage.reported', { inputTokens: 11, outputTokens: 6, costUsd: 0.3, mode: 'cumulative' })
  t.match(log.view().llm.byModel, { length: 2 }, 'all of it is of a model')
  log.add('run.completed', { usage: { inputTokens: 15 }, costUsd: 0.7 })
  const { byModel, totals } = log.view().llm
  t.match(byModel[2], { model: '(unknown)', calls: 0, inputTokens: 4, outputTokens: 0, totalTokens: 4, costUsd: 0.4 })
  for (const name of ['inputTokens', 'outputTokens', 'totalTokens', 'costUsd'] as const) {
    t.equal(Number(byModel.reduce((sum, use) => sum + use[name], 0).toFixed(9)), totals[name], `${name} of all models is that of the run`)
  }
})

t.test('llm: a total that is told counts, where it is more than input and output', async (t) => {
  const log = createLog()
  log.about('llm_call/1', 'llm.call.completed', { model: 'm', totalTokens: 100 })
  log.about('llm_call/2', 'llm.call.completed', { model: 'n', inputTokens: 3, outputTokens: 2, totalTokens: 9 })
  log.about('llm_call/3', 'llm.call.completed', { model: 'n', inputTokens: 3, outputTokens: 2, totalTokens: 'many' })
  const { calls, totals, byModel } = log.view().llm
  t.match(
    calls.map((call) => call.totalTokens),
    [100, 9, 5],
  )
  t.match(totals, { inputTokens: 6, outputTokens: 4, totalTokens: 114 })
  t.match(byModel, [
    { model: 'm', inputTokens: 0, totalTokens: 100 },
    { model: 'n', inputTokens: 6, totalTokens: 14 },
  ])
  log.about('llm_call/2', 'llm.call.completed', { model: 'n', inputTokens: 5, outputTokens: 2 })
  t.equal(log.view().llm.totals.totalTokens, 114, 'parts that are told after their total are in it')
  log.add('run.completed', { usage: { inputTokens: 60, outputTokens: 54 } })
  t.match(log.view().llm.totals, { inputTokens: 60, outputTokens: 54, totalTokens: 114 }, 'and so are those that are told at another level')

  const reported = createLog()
  reported.add('usage.reported', { inputTokens: 3, outputTokens: 2 })
  reported.add('usage.reported', { totalTokens: 9 })
  reported.add('usage.reported', { inputTokens: 1, totalTokens: 4 })
  t.match(reported.view().llm.totals, { inputTokens: 4, outputTokens: 2, totalTokens: 18 })
  reported.add('usage.reported', { totalTokens: 20, mode: 'cumulative' })
  t.match(reported.view().llm.totals, { inputTokens: 4, outputTokens: 2, totalTokens: 20 })
  reported.add('usage.reported', { inputTokens: 3, outputTokens: 1, mode: 'cumulative', model: 'm' })
  t.match(reported.view().llm, { totals: { inputTokens: 3, outputTokens: 1, totalTokens: 18 }, byModel: [{ model: 'm', totalTokens: 18 }] })
})

t.test('llm: the sums of a snapshot of an older version are read as they were', async (t) => {
  const log = createLog()
  log.about('llm_call/1', 'llm.call.completed', { model: 'm', inputTokens: 3, outputTokens: 2 })
  log.about('step/1', 'step.completed', { usage: { inputTokens: 7 } })
  const snapshot = JSON.parse(encodeState(fold(createState(), log.events)), (name, value) => {
    if (name === 'sums') return value.slice(0, 18)
    return name === 'counts' && Array.isArray(value) ? value.slice(0, 6) : value
  })
  const state = decodeOlderState(JSON.stringify(snapshot))
  foldEvent(state, log.about('llm_call/2', 'llm.call.completed', { model: 'm', totalTokens: 4 }))
  t.match(viewState(state).llm.totals, { inputTokens: 7, outputTokens: 2, totalTokens: 9 })
  foldEvent(state, log.about('llm_call/3', 'llm.call.completed', { model: 'm', totalTokens: 4 }))
  t.match(viewState(state).llm, { totals: { totalTokens: 13 }, byModel: [{ model: 'm', totalTokens: 13 }, { model: '(unknown)' }] })
})

t.test('llm: totals are over all calls, the list holds the last 100', async (t) => {
  const log = createLog()
  for (let call = 0; call < 250; call++) log.about(`llm_call/${call}`, 'llm.call.completed', { model: `m${call % 40}`, inputTokens: 2, costUsd: 0.1 })
  const { llm } = log.view()
  t.equal(llm.calls.length, 100)
  t.equal(llm.dropped, 150)
  t.equal(llm.calls.at(-1)?.id, '249')
  t.match(llm.totals, { callCount: 250, inputTokens: 500, costUsd: 25 })
  t.equal(
    llm.byModel.reduce((sum, { calls }) => sum + calls, 0),
    250,
  )
})

t.test('tools: a call from its beginning to its end, and counts by tool', async (t) => {
  const log = createLog()
  log.about('tool/1', 'tool.called', { name: 'search', arguments: { q: 'x' }, server: 'web' }, { stepId: 's' })
  log.about('tool/1', 'tool.output', { text: 'half' })
  log.about('tool/1', 'tool.completed', { result: [1], durationMs: 7 })
  log.about('tool/2', 'tool.called', { name: 'search', arguments: { q: 'y'.repeat(5000) } })
  log.about('tool/2', 'tool.failed', { error: { code: 7, message: 'timeout' } })
  const { tools, errors } = log.view()
  t.match(tools.calls[0], { id: '1', name: 'search', server: 'web', stepId: 's', status: 'completed', result: [1], durationMs: 7, lastOutput: 'half' })
  t.match(tools.calls[1], { status: 'failed', error: 'timeout', arguments: { truncated: true } })
  t.match(tools, { called: 2, completed: 1, failed: 1, truncated: 1, byName: [{ name: 'search', called: 2, failed: 1, durationMs: 7 }] })
  t.match(errors.recent, [{ seq: 5, code: '7', message: 'timeout', source: { kind: 'agent', name: 'tester' } }])
})

t.test('messages: outgoing ones by how they fared, incoming ones by type, streams as they are written', async (t) => {
  const log = createLog()
  log.about('message/1', 'message.sent', { sender: 'ann' })
  log.about('message/2', 'message.sent', { ok: false })
  log.about('message/3', 'message.sent', { status: 'queued' })
  log.about('message/4', 'message.send_failed', { errorCode: 'X', errorMessage: 'no route' })
  log.about('message/5', 'message.received', { messageType: 'Vote', sender: 'bob' })
  log.about('message/6', 'message.started', { role: 'assistant' })
  log.about('message/6', 'message.delta', { text: 'Hel' })
  log.about('message/6', 'message.delta', { text: 'hm', channel: 'reasoning' })
  log.about('message/6', 'message.delta', { text: 'lo' })
  const { messages } = log.view()
  t.match(messages, { total: 4, accepted: 1, rejected: 2, queued: 1, received: 1, receivedByType: [{ messageType: 'Vote', count: 1 }], deltas: 3 })
  t.match(messages.streams, [{ messageId: '6', role: 'assistant', text: 'Hello', reasoning: 'hm', status: 'streaming' }])
  log.about('message/6', 'message.completed', { content: [{ type: 'text', text: 'Hello!' }], finishReason: 'stop' })
  t.match(log.view().messages, { completed: 1, streams: [{ text: 'Hello!', status: 'completed', finishReason: 'stop' }] })
  log.about('message/7', 'message.delta', { text: 'x'.repeat(3000) })
  log.about('message/7', 'message.delta', { text: 'y' })
  t.equal(log.view().messages.streams.at(-1)?.text, 'x'.repeat(1000))
  t.equal(log.view().messages.truncated, 2)
})

t.test('inputs: what is asked stays open until it is answered', async (t) => {
  const log = createLog()
  log.about('input/1', 'input.requested', { reason: 'deploy?', schema: { type: 'boolean' } })
  log.about('input/2', 'input.requested', { reason: 'which?' })
  log.about('input/1', 'input.resolved', { response: true, by: 'ann' })
  t.match(log.view().inputs, { requested: 2, resolved: 1, pending: 1 })
  t.match(log.view().inputs.inputs, [
    { id: '1', status: 'resolved', response: true, by: 'ann' },
    { id: '2', status: 'pending' },
  ])
  for (let id = 3; id <= 200; id++) log.about(`input/${id}`, 'input.requested')
  for (let id = 2; id <= 200; id++) log.about(`input/${id}`, 'input.resolved')
  t.match(log.view().inputs, { requested: 200, resolved: 200, pending: 0 })
})

t.test('gates, artifacts and the trace', async (t) => {
  const log = createLog()
  const trace = { traceId: 't', spanId: 's1' }
  log.about('gate/g', 'gate.started', { name: 'tests' }, { trace })
  log.about('gate/g', 'gate.failed', { reason: '3 failed' }, { trace })
  log.about('gate/g', 'gate.passed', {}, { trace: { traceId: 't', spanId: 's2' } })
  log.about('artifact/a1', 'artifact.created', { name: 'a.md', kind: 'file', label: 'report', uri: 'file:///x', bytes: 12 })
  const view = log.view()
  t.match(view.gates, { started: 1, failed: 1, passed: 1, gates: [{ id: 'g', name: 'tests', status: 'passed' }] })
  t.match(view.trace, { traceId: 't', lastSpanId: 's2', spanCount: 2, linkedArtifacts: ['a1'] })
  t.match(view.artifacts, { created: 1, bytes: 12, artifacts: [{ artifactId: 'a1', name: 'a.md', label: 'report', uri: 'file:///x', seq: 4 }] })
  t.match(view.errors, { total: 1, recent: [{ type: 'gate.failed', message: '3 failed' }] })
})

t.test('messages: pieces are joined where they are shown, and in no stored state', async (t) => {
  const state = fold(createState(), written())
  t.notMatch(encodeState(state), /secret/, 'a secret that came in pieces')
  const masked = (text: string) => text.replaceAll('secret', '*')
  t.match(viewState(state, masked).messages.streams, [
    { messageId: 'deltas', text: 'a * b', reasoning: '*' },
    { messageId: 'blocks', text: '*' },
  ])
  t.match(viewState(decodeState(encodeState(state))).messages.streams[0], { text: 'a secret b' })

  function written() {
    const log = createLog()
    for (const text of ['a sec', '', 'ret b']) log.about('message/deltas', 'message.delta', { text })
    for (const text of ['se', 'cret']) log.about('message/deltas', 'message.delta', { text, channel: 'reasoning' })
    log.about('message/blocks', 'message.completed', { content: [{ text: 'sec' }, { type: 'image' }, { text: 'ret' }] })
    return log.events
  }
})

t.test('messages: blocks of text are cut where all of them are too long', async (t) => {
  const log = createLog()
  const content = [...Array.from({ length: 5000 }, () => ({ text: '' })), { text: 'a'.repeat(600) }, { text: 'b'.repeat(600) }, { text: 'c' }]
  log.about('message/m', 'message.completed', { content })
  const { streams, truncated } = log.view().messages
  t.equal(streams[0]?.text, `${'a'.repeat(600)}${'b'.repeat(397)}…`)
  t.equal(truncated, 1)
  t.ok(encodeState(fold(createState(), log.events)).length < 10_000)
})

t.test('timeline: the last 50 in order, and counts over all', async (t) => {
  const log = createLog()
  for (let line = 1; line <= 123; line++) log.about('step/a', 'step.output', { text: `line ${line}` })
  const { timeline } = log.view()
  t.match({ ...timeline, recent: [] }, { latestSeq: 123, totalEvents: 123, dropped: 73, countsByType: [{ type: 'step.output', count: 123 }] })
  t.strictSame(
    timeline.recent.map(({ seq }) => seq),
    Array.from({ length: 50 }, (_, index) => 74 + index),
  )
  t.match(timeline.recent[0], { summary: 'line 74', subject: { kind: 'step', id: 'a' }, type: 'step.output' })
})

t.test('two long ids that begin alike stay two', async (t) => {
  const log = createLog()
  const long = 'x'.repeat(500)
  log.about(`step/${long}1`, 'step.started')
  log.about(`step/${long}2`, 'step.started')
  log.about(`step/${long}1`, 'step.completed')
  t.match(log.view().steps, { total: 2, completed: 1, running: 1 })
})

t.test('a text is not cut within a character', async (t) => {
  const log = createLog()
  log.about('step/a', 'step.output', { text: '👍'.repeat(500) })
  const text = log.view().steps.steps[0]?.lastOutput ?? ''
  t.match(text, /^(👍)+…$/u)
})

t.test('a snapshot holds all that is needed to fold on', async (t) => {
  const log = createLog()
  log.about('step/__proto__', 'step.started', { name: 'a' })
  log.add('custom.emitted', { name: 'x', value: { y: [1, null] } })
  const state = fold(createState(), log.events)
  const restored = decodeState(encodeState(state))
  t.equal(restored.version, 2)
  t.equal(encodeState(restored), encodeState(state))
  t.strictSame(viewState(restored), viewState(state))
  t.throws(() => decodeState('{"version":1,"folds":{}}'), TypeError)
})
