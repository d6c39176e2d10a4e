/**
 * What the policy says of the run's commitments, and the votes for each proposal: one a participant, its last.
 * Who must vote is derived from the participants on reading.
 */
import type { DataOf, EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { outcomeOf, type Vote, voteOf } from '../../domain/vote.js'
import { clipped, field, idOf, keep, keepRecent, MAX_LABEL_BYTES, MAX_LINE_BYTES, MAX_NAME_BYTES, payload, textOf } from '../bounds.js'
import { linesOf } from '../lines.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'
import { electorate, type ParticipantsFold } from './participants.js'
import type { RunFold } from './run.js'

const MAX_EVALUATIONS = 50
const MAX_DENIALS = 20
const MAX_EXPECTED = 20
const MAX_EXPECTED_BYTES = 300
const MAX_TALLIES = 50
const MAX_VOTES = 200

interface Tally {
  allow: number
  deny: number
}

export interface PolicyFold {
  policyVersion: string | null
  policyDescription: string | null
  resolvedAt: string | null
  decided: { proposalId: string | null; commitmentId: string | null; outcomePositive: boolean | null } | null
  evaluations: { commitmentId: string; decision: 'allow' | 'deny' | null; reasons: string[]; ts: string }[]
  allowed: number
  denied: number
  denials: { commitmentId: string; errorCode: string | null; reasons: string[]; ts: string }[]
  expected: unknown[] | null
  tallies: Map<string, Tally>
  /** Proposal and voter to vote. */
  votes: Map<string, 'allow' | 'deny'>
  dropped: number
  truncated: number
}

function expect(state: PolicyFold, commitments: unknown): void {
  if (!Array.isArray(commitments)) return
  state.expected = commitments.slice(0, MAX_EXPECTED).map((one) => payload(state, one, MAX_EXPECTED_BYTES))
  state.dropped += commitments.length - state.expected.length
}

/** What a contribution to a proposal votes. */
export function voteIn(data: DataOf<'proposal.updated'>): Vote | undefined {
  return voteOf(data.vote ?? textOf(field(data, 'recommendation')), data.messageType)
}

function castVote(state: PolicyFold, event: EventOf<'proposal.created' | 'proposal.updated'>): void {
  const vote = voteIn(event.data)
  if (vote === undefined) return
  const proposalId = idOf(event.data.proposalId ?? event.subject.id)
  // What comes when it has been decided, or when the run is over, decides no more.
  if (event.late === true || (state.decided !== null && state.decided.proposalId === proposalId)) return
  const tally = state.tallies.get(proposalId) ?? { allow: 0, deny: 0 }
  if (keep(state.tallies, proposalId, tally, MAX_TALLIES)) state.dropped += 1
  const sender = senderOf(event)
  if (sender !== undefined) {
    const voter = `${proposalId}\n${idOf(sender)}`
    const before = state.votes.get(voter)
    if (before !== undefined && tally[before] > 0) tally[before] -= 1
    if (vote === 'abstain') state.votes.delete(voter)
    else if (keep(state.votes, voter, vote, MAX_VOTES)) state.dropped += 1
  }
  if (vote !== 'abstain') tally[vote] += 1
}

export const policy = defineSection({
  name: 'policy',
  initial: (): PolicyFold => ({
    policyVersion: null,
    policyDescription: null,
    resolvedAt: null,
    decided: null,
    evaluations: [],
    allowed: 0,
    denied: 0,
    denials: [],
    expected: null,
    tallies: new Map(),
    votes: new Map(),
    dropped: 0,
    truncated: 0,
  }),
  on: {
    'session.bound'(state, { data }) {
      expect(state, field(data, 'expectedCommitments'))
    },
    'policy.resolved'(state, { ts, data }) {
      state.policyVersion = clipped(state, data.policyVersion, MAX_NAME_BYTES) ?? state.policyVersion
      state.policyDescription = clipped(state, data.description, MAX_LINE_BYTES) ?? state.policyDescription
      state.resolvedAt = ts
      expect(state, field(data, 'expectedCommitments'))
    },
    'policy.commitment.evaluated'(state, { ts, subject, data }) {
      const verdict = data.decision ?? null
      if (verdict === 'allow') state.allowed += 1
      if (verdict === 'deny') state.denied += 1
      const evaluation = { commitmentId: idOf(data.commitmentId ?? subject.id), decision: verdict, reasons: linesOf(state, data.reasons), ts }
      state.dropped += keepRecent(state.evaluations, evaluation, MAX_EVALUATIONS)
    },
    'policy.denied'(state, { ts, subject, data }) {
      const errorCode = clipped(state, data.errorCode, MAX_LABEL_BYTES)
      state.dropped += keepRecent(state.denials, { commitmentId: idOf(subject.id), errorCode, reasons: linesOf(state, data.reasons), ts }, MAX_DENIALS)
    },
    'proposal.created': castVote,
    'proposal.updated': castVote,
    'decision.finalized'(state, { ts, data }) {
      state.decided = {
        proposalId: data.proposalId === undefined ? null : idOf(data.proposalId),
        commitmentId: data.commitmentId === undefined ? null : idOf(data.commitmentId),
        outcomePositive: outcomeOf(data.outcomePositive, data.action),
      }
      state.resolvedAt ??= ts
    },
  },
  view(state, folds: Readonly<{ run: RunFold; participants: ParticipantsFold }>) {
    const { policyVersion, policyDescription, resolvedAt, decided, evaluations, allowed, denied, denials, expected, dropped, truncated } = state
    const required = electorate(folds.participants)
    const voteTally = [...state.tallies].map(([proposalId, { allow, deny }]) => ({
      commitmentId: decided?.proposalId === proposalId ? (decided.commitmentId ?? proposalId) : proposalId,
      proposalId,
      allow,
      deny,
      threshold: Math.ceil(required / 2),
      quorum: { required, cast: allow + deny },
    }))
    const quorumStatus = quorumOf(state, folds.run)
    return {
      // Until a policy is resolved it is the one that the session names.
      policyVersion: policyVersion ?? folds.run.policyVersion ?? '',
      ...withoutNull({ policyDescription, resolvedAt, quorumStatus }),
      ...(decided && { outcomePositive: decided.outcomePositive }),
      commitmentEvaluations: evaluations.map(withoutNull),
      expectedCommitments: expected ?? [],
      voteTally,
      denials: denials.map(withoutNull),
      allowed,
      denied,
      dropped,
      truncated,
    }
  },
})

/** Null where the run has nothing to do with policies and votes. */
function quorumOf(state: PolicyFold, run: RunFold): 'pending' | 'reached' | 'failed' | null {
  if (state.allowed > 0) return 'reached'
  // A runtime that evaluates a commitment without telling has let it pass when the decision is final.
  if (state.decided) return state.decided.outcomePositive === false ? 'failed' : 'reached'
  // A session has a mode, and with it the question.
  const concerned =
    run.modeName !== null || state.resolvedAt !== null || state.expected !== null || state.denied > 0 || state.denials.length > 0 || state.tallies.size > 0
  if (!concerned) return null
  return run.status === 'failed' || run.status === 'cancelled' ? 'failed' : 'pending'
}

/** The votes for a proposal; for none in particular, all of them. */
export function tallyOf(state: PolicyFold, proposalId: string | null): Tally {
  const own = proposalId === null ? undefined : state.tallies.get(proposalId)
  if (own !== undefined) return own
  const all = { allow: 0, deny: 0 }
  if (proposalId !== null) return all
  for (const { allow, deny } of state.tallies.values()) {
    all.allow += allow
    all.deny += deny
  }
  return all
}
