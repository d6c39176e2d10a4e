/**
 * What is being decided, and who contributed what. A finalized decision stays as it was committed: what comes after it
 * (a vote that was late or is replayed) is listed among the contributions and changes nothing else; another commitment does.
 */
import type { DataOf, EventOf } from '../../domain/canonical-event.js'
import { type WithoutNull, withoutNull } from '../../domain/known.js'
import { outcomeOf } from '../../domain/vote.js'
import { clipped, field, idOf, keep, keepRecent, MAX_LABEL_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES, numberOf, payload, textOf } from '../bounds.js'
import { linesOf } from '../lines.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'
import { type PolicyFold, tallyOf, voteIn } from './policy.js'

const MAX_PROPOSALS = 50
const MAX_ACTIONS = 50
const MAX_SUPERSEDES_BYTES = 500

interface Contribution {
  participantId: string
  proposalId: string
  action: string
  confidence: number | null
  reasons: string[]
  ts: string
  vote: 'allow' | 'deny' | null
  messageType: string | null
}

interface Current {
  action: string
  confidence: number | null
  reasons: string[]
  finalized: boolean
  proposalId: string | null
  commitmentId: string | null
  outcomePositive: boolean | null
  resolvedAt: string | null
  resolvedBy: string | null
  supersedes: unknown
}

export interface DecisionFold {
  current: Current | null
  prompt: string | null
  proposals: Contribution[]
  /** What each proposal proposes. */
  actions: Map<string, string>
  contributions: number
  decisions: number
  dropped: number
  truncated: number
}

const OPEN: Omit<Current, 'action' | 'proposalId'> = {
  confidence: null,
  reasons: [],
  finalized: false,
  commitmentId: null,
  outcomePositive: null,
  resolvedAt: null,
  resolvedBy: null,
  supersedes: null,
}

function contribute(state: DecisionFold, event: EventOf<'proposal.created' | 'proposal.updated'>): void {
  const { data, subject, ts } = event
  const proposalId = idOf(data.proposalId ?? subject.id)
  const vote = voteIn(data)
  const contribution: Contribution = {
    participantId: idOf(senderOf(event) ?? ''),
    proposalId,
    action: clipped(state, data.action ?? data.vote ?? textOf(field(data, 'recommendation')) ?? data.messageType ?? 'contribution', MAX_NAME_BYTES) ?? '',
    // A vote is a confident decision by itself.
    confidence: numberOf(data.confidence) ?? (data.messageType === 'Vote' ? 1 : null),
    reasons: linesOf(state, data.reasons),
    ts,
    vote: vote === undefined || vote === 'abstain' ? null : vote,
    messageType: clipped(state, data.messageType, MAX_LABEL_BYTES),
  }
  state.contributions += 1
  state.dropped += keepRecent(state.proposals, contribution, MAX_PROPOSALS)
  // A message without an option of its own is named after its type: that says nothing of what is proposed.
  if (event.type === 'proposal.created' && data.action !== undefined && data.action !== data.messageType) {
    if (keep(state.actions, proposalId, contribution.action, MAX_ACTIONS) !== undefined) state.truncated += 1
  }
  if (state.current?.finalized) return
  state.current = {
    ...OPEN,
    action: state.actions.get(proposalId) ?? proposalId,
    proposalId,
    confidence: numberOf(data.confidence) ?? state.current?.confidence ?? null,
    reasons: contribution.reasons,
  }
}

/** What an event about a decision tells, as far as it is the same for a proposed and a final one. */
function decided(state: DecisionFold, data: DataOf<'decision.finalized'>, action: string): Current {
  return {
    ...OPEN,
    action: clipped(state, data.action, MAX_NAME_BYTES) ?? action,
    confidence: numberOf(data.confidence),
    reasons: linesOf(state, data.reasons),
    proposalId: data.proposalId === undefined ? (state.current?.proposalId ?? null) : idOf(data.proposalId),
    commitmentId: data.commitmentId === undefined ? null : idOf(data.commitmentId),
  }
}

export const decision = defineSection({
  name: 'decision',
  initial: (): DecisionFold => ({
    current: null,
    prompt: null,
    proposals: [],
    actions: new Map(),
    contributions: 0,
    decisions: 0,
    dropped: 0,
    truncated: 0,
  }),
  on: {
    'proposal.created'(state, event) {
      state.prompt ??= clipped(state, event.data.prompt, MAX_TEXT_BYTES)
      contribute(state, event)
    },
    'proposal.updated': contribute,
    'decision.proposed'(state, { data }) {
      if (!state.current?.finalized) state.current = decided(state, data, state.current?.action ?? 'proposed')
    },
    'decision.finalized'(state, event) {
      const { data, ts } = event
      state.decisions += 1
      state.current = {
        ...decided(state, data, 'resolved'),
        finalized: true,
        outcomePositive: outcomeOf(data.outcomePositive, data.action),
        resolvedAt: ts,
        resolvedBy: clipped(state, senderOf(event), MAX_NAME_BYTES),
        supersedes: payload(state, data.supersedes, MAX_SUPERSEDES_BYTES),
      }
    },
  },
  view(state, folds: Readonly<{ policy: PolicyFold }>) {
    const { contributions, decisions, dropped, truncated } = state
    const current = state.current && shown(state, state.current, folds.policy)
    return { ...(current && { current }), contributions, decisions, dropped, truncated }
  },
})

type Shown = WithoutNull<Omit<Current, 'outcomePositive'>> & { outcomePositive?: boolean | null; prompt?: string; proposals: WithoutNull<Contribution>[] }

function shown(state: DecisionFold, current: Current, policy: PolicyFold): Shown {
  const { outcomePositive, ...known } = current
  const { allow, deny } = tallyOf(policy, current.proposalId)
  const ratio = allow + deny > 0 ? allow / (allow + deny) : null
  // Votes tell more of an open proposal than what one contributor says of itself; a commitment knows better than both.
  const confidence = current.finalized ? (current.confidence ?? ratio) : (ratio ?? current.confidence)
  return {
    ...withoutNull({ ...known, confidence }),
    ...(current.finalized && { outcomePositive }),
    ...(state.prompt !== null && { prompt: state.prompt }),
    proposals: state.proposals.map(withoutNull),
  }
}
