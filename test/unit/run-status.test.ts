/** The transition table of a run's status: each row given, when, then; and that no other fact moves it. */
import t from 'tap'
import { EVENT_TYPES } from '../../src/domain/canonical-event.js'
import { isTerminal, nextAttempt, nextStatus, RUN_STATUSES, type RunStatus, type StatusFact, TERMINAL_STATUSES } from '../../src/domain/run.js'

const fact = (type: string, kind = 'agent', data: Record<string, unknown> = {}): StatusFact => ({ type, source: { kind }, data })
const TYPES = [...Object.keys(EVENT_TYPES), 'vendor.thing']
const KINDS = ['agent', 'runtime', 'control-plane', 'import', 'replay']

t.test('the stages go forward, step by step or skipping some', async (t) => {
  const rows: [RunStatus, string, RunStatus][] = [
    ['queued', 'run.claimed', 'starting'],
    ['queued', 'session.bound', 'binding_session'],
    ['queued', 'run.started', 'running'],
    ['queued', 'session.stream.opened', 'running'],
    ['queued', 'run.suspended', 'suspended'],
    ['queued', 'run.completed', 'completed'],
    ['starting', 'session.bound', 'binding_session'],
    ['starting', 'run.started', 'running'],
    ['starting', 'run.completed', 'completed'],
    ['binding_session', 'session.stream.opened', 'running'],
    ['binding_session', 'run.started', 'running'],
    ['binding_session', 'run.suspended', 'suspended'],
    ['running', 'run.suspended', 'suspended'],
    ['running', 'run.completed', 'completed'],
    ['suspended', 'run.resumed', 'running'],
    ['suspended', 'run.started', 'running'],
    ['suspended', 'run.completed', 'completed'],
  ]
  for (const [from, type, to] of rows) t.equal(nextStatus(from, fact(type, 'control-plane')), to, `${from} -- ${type} -> ${to}`)
})

t.test('a stage is not left backward', async (t) => {
  const rows: [RunStatus, string][] = [
    ['starting', 'run.claimed'],
    ['binding_session', 'run.claimed'],
    ['running', 'run.claimed'],
    ['running', 'session.bound'],
    ['running', 'run.started'],
    ['running', 'run.resumed'],
    ['suspended', 'session.bound'],
    ['suspended', 'session.stream.opened'],
    ['suspended', 'run.suspended'],
  ]
  for (const [from, type] of rows) t.equal(nextStatus(from, fact(type, 'control-plane')), from, `${from} -- ${type}`)
})

t.test('every status that is not terminal may go to failed or cancelled, whoever tells it', async (t) => {
  for (const from of RUN_STATUSES.filter((status) => !isTerminal(status))) {
    for (const kind of KINDS) {
      t.equal(nextStatus(from, fact('run.failed', kind)), 'failed')
      t.equal(nextStatus(from, fact('run.cancelled', kind)), 'cancelled')
    }
  }
})

t.test('nothing that an agent tells leaves a terminal status', async (t) => {
  for (const from of TERMINAL_STATUSES) {
    for (const type of TYPES) {
      for (const kind of KINDS) {
        const retried = kind === 'control-plane' && type === 'run.retry_scheduled'
        t.equal(nextStatus(from, fact(type, kind)), retried ? 'queued' : from, `${from} -- ${type} by ${kind}`)
      }
    }
  }
})

t.test("an agent's first event implies that the run has started", async (t) => {
  for (const from of ['queued', 'starting', 'binding_session'] as const) {
    for (const kind of ['agent', 'runtime', 'import', 'replay']) {
      for (const type of ['step.started', 'message.delta', 'session.bound', 'session.state.changed', 'raw.received', 'custom.emitted', 'vendor.thing'])
        t.equal(nextStatus(from, fact(type, kind)), 'running', `${from} -- ${type} by ${kind}`)
    }
  }
})

t.test('what is said about the queue, or by the control plane, does not imply that it has', async (t) => {
  for (const type of ['run.created', 'run.queued', 'run.released', 'run.cancel_requested', 'run.retry_scheduled', 'run.linked', 'run.recovered'])
    t.equal(nextStatus('queued', fact(type, 'agent')), 'queued', type)
  for (const type of ['participant.seen', 'run.created', 'run.queued', 'artifact.created', 'vendor.thing', 'session.state.changed'])
    t.equal(nextStatus('queued', fact(type, 'control-plane')), 'queued', type)
  t.equal(nextStatus('starting', fact('run.claimed', 'agent')), 'starting')
})

t.test('a suspended run goes on when it is told so, not because an agent says something more', async (t) => {
  for (const type of ['step.started', 'message.delta', 'session.stream.opened', 'vendor.thing']) t.equal(nextStatus('suspended', fact(type)), 'suspended', type)
  t.equal(nextStatus('suspended', fact('run.resumed')), 'running')
  t.equal(nextStatus('suspended', fact('session.state.changed', 'runtime', { state: 'SESSION_STATE_OPEN' })), 'running')
  t.equal(nextStatus('suspended', fact('session.state.changed', 'runtime', { state: 'SESSION_STATE_SUSPENDED' })), 'suspended')
})

t.test('only the control plane takes a run back to the queue', async (t) => {
  for (const from of RUN_STATUSES) t.equal(nextStatus(from, fact('run.retry_scheduled', 'control-plane')), 'queued', from)
  for (const from of ['starting', 'binding_session', 'running', 'suspended'] as const) {
    t.equal(nextStatus(from, fact('run.released', 'control-plane')), 'queued', from)
    t.equal(nextStatus(from, fact('run.released', 'agent')), from, from)
  }
  t.equal(nextStatus('running', fact('run.retry_scheduled', 'agent')), 'running')
  t.equal(nextStatus('completed', fact('run.released', 'control-plane')), 'completed')
})

t.test('a retry begins the next attempt, and a start may tell a later one', async (t) => {
  t.equal(nextAttempt(1, fact('run.retry_scheduled', 'control-plane')), 2)
  t.equal(nextAttempt(1, fact('run.retry_scheduled', 'control-plane', { attempt: 4 })), 4)
  t.equal(nextAttempt(3, fact('run.retry_scheduled', 'control-plane', { attempt: 2 })), 4)
  t.equal(nextAttempt(1, fact('run.retry_scheduled', 'agent', { attempt: 2 })), 1)
  t.equal(nextAttempt(1, fact('run.started', 'agent', { attempt: 2 })), 2)
  t.equal(nextAttempt(2, fact('run.started', 'agent', { attempt: 1 })), 2)
  t.equal(nextAttempt(1, { ...fact('run.started', 'agent', { attempt: 2 }), late: true }), 1)
  for (const attempt of [1.5, 1e300, Number.NaN, '2', null, 2 ** 31]) t.equal(nextAttempt(1, fact('run.started', 'agent', { attempt })), 1, String(attempt))
})
