/** What the state of a macp session means: participants, graph, decision, votes and policy, as macp-control-plane documents it. */
import t from 'tap'
import { createLog } from '../../support/event-log.js'

type Log = ReturnType<typeof createLog>

/** An envelope as the macp format tells it: received, and what more it means. */
function envelope(log: Log, sender: string, messageType: string, payload: Record<string, unknown> = {}, more?: [string, string, Record<string, unknown>]) {
  const actor = { kind: 'participant', id: sender }
  const messageId = `m${log.events.length}`
  log.about(`message/${messageId}`, 'message.received', { messageType, messageId, sender, payload }, { actor, sourceKind: 'runtime' })
  if (more) log.about(more[0], more[1], { messageType, messageId, sender, ...more[2] }, { actor, sourceKind: 'runtime' })
}

function startSession(log: Log, participants: Record<string, string> = { ann: 'initiator', bob: 'voter', cid: 'voter' }) {
  log.control('run.created')
  log.add('session.bound', { sessionId: 's1', modeName: 'decision', sender: 'ann' }, { sourceKind: 'runtime' })
  for (const [id, role] of Object.entries(participants)) log.control('participant.seen', { participantId: id, role })
}

const statuses = (log: Log) => Object.fromEntries(log.view().participants.map(({ participantId, status }) => [participantId, status]))

t.test('participants are idle, then active, or waiting for a message that was sent to them', async (t) => {
  const log = createLog()
  startSession(log)
  t.strictSame(statuses(log), { ann: 'active', bob: 'idle', cid: 'idle' })
  log.about('message/1', 'message.received', { messageType: 'TaskRequest', sender: 'ann', recipients: ['bob', 'ann'] })
  t.strictSame(statuses(log), { ann: 'active', bob: 'waiting', cid: 'idle' })
  envelope(log, 'bob', 'TaskAccept')
  t.strictSame(statuses(log), { ann: 'active', bob: 'active', cid: 'idle' })
  envelope(log, 'ann', 'Proposal')
  t.strictSame(statuses(log), { ann: 'active', bob: 'waiting', cid: 'waiting' })
  t.match(log.view().participants[1], { participantId: 'bob', role: 'voter', latestSummary: 'TaskAccept' })
})

t.test('participants are swept at the end: who never told anything was skipped', async (t) => {
  for (const end of ['run.completed', 'run.cancelled']) {
    const log = createLog()
    startSession(log)
    envelope(log, 'bob', 'Vote')
    envelope(log, 'ann', 'Proposal')
    log.add(end, {}, { sourceKind: 'runtime' })
    t.strictSame(statuses(log), { ann: 'completed', bob: 'completed', cid: 'skipped' }, end)
  }
})

t.test('of a failed run the participant that was active last has failed, and what comes late changes that no more', async (t) => {
  const log = createLog()
  startSession(log)
  envelope(log, 'ann', 'Proposal')
  envelope(log, 'bob', 'Vote')
  log.add('run.failed', { error: 'expired' }, { sourceKind: 'runtime' })
  log.about('message/late', 'message.received', { messageType: 'Vote', sender: 'cid' }, { late: true })
  t.strictSame(statuses(log), { ann: 'completed', bob: 'failed', cid: 'skipped' })
  t.match(log.view().participants[2], { latestSummary: 'Vote' })
  log.control('run.retry_scheduled')
  t.equal(log.view().run.status, 'queued')
  t.equal(statuses(log).bob, 'active')
})

t.test('the graph shows the stages of the session and who reviews the proposal', async (t) => {
  const log = createLog()
  startSession(log)
  envelope(log, 'ann', 'SessionStart', { participants: ['ann', 'bob', { id: 'cid' }] })
  envelope(log, 'ann', 'Proposal')
  envelope(log, 'bob', 'Vote')
  const { nodes, edges } = log.view().graph
  t.strictSame(
    nodes.map(({ id, kind, status }) => `${id} ${kind} ${status}`),
    [
      'ann participant active',
      'bob participant active',
      'cid participant waiting',
      '__start start completed',
      '__proposal proposal completed',
      '__decision decision active',
    ],
  )
  t.strictSame(edges.map(({ from, to, kind }) => `${from} ${kind} ${to}`).sort(), [
    '__proposal review bob',
    '__proposal review cid',
    '__start session.bound ann',
    'ann fanout bob',
    'ann fanout cid',
    'ann proposes __proposal',
    'bob vote __decision',
  ])
  envelope(log, 'ann', 'Commitment')
  t.match(log.view().graph.nodes.slice(-2), [
    { id: '__decision', status: 'completed' },
    { id: '__outcome', kind: 'output' },
  ])
})

t.test('a kind of message that is named as what every object has is a kind as any', async (t) => {
  for (const messageType of ['constructor', '__proto__', 'toString']) {
    const log = createLog()
    startSession(log)
    log.about('message/1', 'message.received', { messageType, sender: 'ann', recipients: ['bob'] })
    t.strictSame(
      log.view().graph.edges.map(({ from, to, kind }) => `${from} ${kind} ${to}`),
      [`ann ${messageType} bob`],
    )
  }
})

function vote(log: Log, voter: string, word: string, proposalId = 'p1') {
  envelope(log, voter, 'Vote', {}, [`proposal/${proposalId}`, 'proposal.updated', { proposalId, vote: word, action: word, reasons: [`${voter} says ${word}`] }])
}

t.test('a decision grows out of a proposal and its votes', async (t) => {
  const log = createLog()
  startSession(log)
  t.notOk('current' in log.view().decision)
  const proposal = { proposalId: 'p1', action: 'ship', prompt: 'Shall we ship?', confidence: 0.9, reasons: ['green'] }
  envelope(log, 'ann', 'Proposal', {}, ['proposal/p1', 'proposal.created', proposal])
  t.match(log.view().decision.current, { action: 'ship', proposalId: 'p1', finalized: false, confidence: 0.9, prompt: 'Shall we ship?' })
  t.notOk('outcomePositive' in (log.view().decision.current ?? {}), 'nothing is decided yet')
  vote(log, 'bob', 'allow')
  vote(log, 'cid', 'deny')
  t.match(log.view().decision.current, { action: 'ship', finalized: false, confidence: 0.5 })
  t.match(log.view().decision.current?.proposals, [
    { participantId: 'ann', action: 'ship', confidence: 0.9, messageType: 'Proposal' },
    { participantId: 'bob', action: 'allow', vote: 'allow', confidence: 1 },
    { participantId: 'cid', action: 'deny', vote: 'deny', reasons: ['cid says deny'] },
  ])
})

t.test('a finalized decision stays as it was committed, whatever is replayed after it', async (t) => {
  const log = createLog()
  startSession(log)
  envelope(log, 'ann', 'Proposal', {}, ['proposal/p1', 'proposal.created', { proposalId: 'p1', action: 'ship' }])
  vote(log, 'bob', 'APPROVE')
  envelope(log, 'ann', 'Commitment', {}, [
    'decision/c1',
    'decision.finalized',
    { commitmentId: 'c1', proposalId: 'p1', action: 'approve', reasons: ['agreed'] },
  ])
  const resolvedAt = log.events.at(-1)?.ts
  vote(log, 'cid', 'deny')
  const { current, contributions } = log.view().decision
  t.match(current, { action: 'approve', finalized: true, proposalId: 'p1', commitmentId: 'c1', outcomePositive: true, resolvedAt, resolvedBy: 'ann' })
  t.equal(current?.proposals.length, 3)
  t.equal(contributions, 3)
})

t.test('the outcome is as told, else inferred from the action, else null', async (t) => {
  const outcome = (data: Record<string, unknown>) => {
    const log = createLog()
    log.about('decision/d', 'decision.finalized', data)
    return log.view().decision.current?.outcomePositive
  }
  for (const action of ['approve', 'accept', 'selected', 'completed', 'Approve']) t.equal(outcome({ action }), true, action)
  for (const action of ['reject', 'declined', 'decline', 'failed']) t.equal(outcome({ action }), false, action)
  t.equal(outcome({ action: 'step_up' }), null)
  t.equal(outcome({}), null)
  t.equal(outcome({ action: 'approve', outcomePositive: false }), false)
})

t.test('the 50 most recent contributions are kept, and all are counted', async (t) => {
  const log = createLog()
  for (let index = 0; index < 80; index++) log.about('proposal/p', 'proposal.updated', { proposalId: 'p', sender: `v${index}`, vote: 'allow' })
  const { current, contributions, dropped } = log.view().decision
  t.equal(current?.proposals.length, 50)
  t.equal(current?.proposals.at(-1)?.participantId, 'v79')
  t.match({ contributions, dropped }, { contributions: 80, dropped: 30 })
  t.match(log.view().policy.voteTally, [{ allow: 80, deny: 0 }])
})

t.test('what is proposed is known of the last 50 proposals, and counted for those before them', async (t) => {
  const log = createLog()
  for (let index = 0; index < 60; index++) log.about(`proposal/p${index}`, 'proposal.created', { action: `do-${index}` })
  t.match(log.view().decision, { contributions: 60, dropped: 10, truncated: 10 })
  const currentAfter = (proposal: string) => {
    log.about(`proposal/${proposal}`, 'proposal.updated', { vote: 'allow' })
    return log.view().decision.current?.action
  }
  t.equal(currentAfter('p10'), 'do-10')
  t.equal(currentAfter('p9'), 'p9')
})

t.test('votes are tallied one a participant, against the voters or else all participants', async (t) => {
  const log = createLog()
  startSession(log)
  vote(log, 'bob', 'APPROVE')
  t.match(log.view().policy.voteTally, [{ commitmentId: 'p1', proposalId: 'p1', allow: 1, deny: 0, threshold: 1, quorum: { required: 2, cast: 1 } }])
  vote(log, 'bob', 'REJECT')
  vote(log, 'cid', 'APPROVE')
  t.match(log.view().policy.voteTally, [{ allow: 1, deny: 1, quorum: { cast: 2 } }])
  vote(log, 'cid', 'ABSTAIN')
  t.match(log.view().policy.voteTally, [{ allow: 0, deny: 1, quorum: { cast: 1 } }])
  envelope(log, 'ann', 'Approve', {}, ['proposal/p2', 'proposal.updated', { proposalId: 'p2' }])
  t.match(log.view().policy.voteTally[1], { commitmentId: 'p2', allow: 1 })
  const plain = createLog()
  startSession(plain, { ann: 'x', bob: 'x', cid: 'x' })
  vote(plain, 'bob', 'allow')
  t.match(plain.view().policy.voteTally, [{ threshold: 2, quorum: { required: 3, cast: 1 } }])
})

t.test('quorum is pending, then reached by an evaluation that allows, or failed at the end of the run', async (t) => {
  const open = () => {
    const log = createLog()
    startSession(log)
    log.about('policy/majority', 'policy.resolved', { policyVersion: 'majority', description: 'Majority', expectedCommitments: [{ id: 'c1' }] })
    return log
  }
  const reached = open()
  t.match(reached.view().policy, { policyVersion: 'majority', policyDescription: 'Majority', quorumStatus: 'pending', expectedCommitments: [{ id: 'c1' }] })
  reached.about('policy/c1', 'policy.commitment.evaluated', { commitmentId: 'c1', decision: 'deny', reasons: ['early'] })
  t.equal(reached.view().policy.quorumStatus, 'pending')
  reached.about('policy/c1', 'policy.commitment.evaluated', { commitmentId: 'c1', decision: 'allow' })
  reached.add('run.failed')
  t.match(reached.view().policy, { quorumStatus: 'reached', allowed: 1, denied: 1 })
  t.match(reached.view().policy.commitmentEvaluations, [{ commitmentId: 'c1', decision: 'deny', reasons: ['early'] }, { decision: 'allow' }])
  for (const end of ['run.failed', 'run.cancelled']) {
    const log = open()
    log.add(end)
    t.equal(log.view().policy.quorumStatus, 'failed', end)
  }
  const without = createLog()
  without.add('run.failed')
  t.notOk('quorumStatus' in without.view().policy, 'a run without policies has no quorum')
})

t.test('a commitment tells the outcome to the policy, and its id to the tally', async (t) => {
  const log = createLog()
  startSession(log)
  vote(log, 'bob', 'allow')
  log.about('decision/c1', 'decision.finalized', { commitmentId: 'c1', proposalId: 'p1', action: 'approve' })
  t.match(log.view().policy, { outcomePositive: true, quorumStatus: 'reached', voteTally: [{ commitmentId: 'c1', proposalId: 'p1' }] })
  log.about('policy/c1', 'policy.denied', { reasons: ['outside policy'], errorCode: 'POLICY_DENIED' })
  t.match(log.view().policy.denials, [{ commitmentId: 'c1', errorCode: 'POLICY_DENIED', reasons: ['outside policy'] }])
  t.match(log.view().errors.recent, [{ type: 'policy.denied', code: 'POLICY_DENIED', message: 'outside policy' }])
})

t.test('a signal is annotated in place by its acknowledgement', async (t) => {
  const log = createLog()
  log.about('signal/s1', 'signal.emitted', { name: 'risk', severity: 'high', confidence: 0.7, payload: { score: 9 }, sender: 'ann' })
  log.about('signal/s2', 'signal.emitted', { name: 'other' })
  log.about('signal/s1', 'signal.acknowledged', { by: 'bob' })
  log.about('signal/none', 'signal.acknowledged', {})
  const { signals } = log.view()
  t.match(signals.signals[0], { id: 's1', name: 'risk', severity: 'high', sourceParticipantId: 'ann', payload: { score: 9 }, acknowledgedBy: 'bob' })
  t.equal(signals.signals[0]?.acknowledgedAt, log.events[2]?.ts)
  t.notOk('acknowledgedAt' in (signals.signals[1] ?? {}))
  t.match(signals, { emitted: 2, acknowledged: 2, unmatched: 1 })
})

t.test('participants beyond the list are counted once, however often they are told, and vote', async (t) => {
  for (const role of [undefined, 'voter']) {
    const log = createLog()
    const ids = Array.from({ length: 700 }, (_, index) => `agent-${index}`)
    log.control('run.created', { participants: ids })
    for (const participantId of ids) log.control('participant.seen', { participantId, ...(role && { role }) })
    if (role) log.control('participant.seen', { participantId: 'guest' })
    envelope(log, 'agent-0', 'Vote', {}, ['proposal/p', 'proposal.updated', { proposalId: 'p', vote: 'allow' }])
    const { participants, graph, policy } = log.view()
    t.equal(participants.length, 300)
    t.match(
      participants.find(({ participantId }) => participantId === 'agent-0'),
      { role },
    )
    t.match(graph, role ? { participants: 701, dropped: 401 } : { participants: 700, dropped: 400 })
    t.match(policy.voteTally, [{ threshold: 350, quorum: { required: 700, cast: 1 } }])
  }
})

t.test('participants that one event names beyond those that are looked at are counted once, and vote', async (t) => {
  const log = createLog()
  const ids = Array.from({ length: 1500 }, (_, index) => `agent-${index}`)
  log.control('run.created', { participants: ids })
  log.control('session.bound', { participants: ids })
  log.about('message/m', 'message.received', { messageType: 'Vote', sender: 'agent-0', recipients: ids.slice(0, 1200) })
  log.about('proposal/p', 'proposal.updated', { sender: 'agent-0', vote: 'allow' })
  const { participants, graph, policy } = log.view()
  t.equal(participants.length, 300)
  // The participants that are not shown, and the recipients beyond the 100 that get an edge.
  t.match(graph, { participants: 1500, dropped: 1200 + 1100 })
  t.match(policy.voteTally, [{ threshold: 750, quorum: { required: 1500 } }])
})

t.test('edges that are not shown are counted, and so are roles that are cut', async (t) => {
  const log = createLog()
  const ids = Array.from({ length: 250 }, (_, index) => `agent-${index}`)
  log.control('run.created', { participants: ids.map((id) => ({ id, role: 'r'.repeat(id === 'agent-7' ? 500 : 5) })) })
  envelope(log, 'agent-0', 'SessionStart')
  envelope(log, 'agent-1', 'Proposal')
  const { graph } = log.view()
  // Two of the stages, and twice one to each other participant.
  t.equal(graph.edges.length, 300)
  t.match(graph, { participants: 250, dropped: 2 + 2 * 249 - 300, truncated: 1 })
})
