/**
 * Who spoke to whom, with the stages of a macp session (start, proposal, decision, outcome) as nodes of their own.
 * A message to all is kept as one edge; the edges to the participants that it reached are derived on reading.
 */
import type { EventOf } from '../../domain/canonical-event.js'
import { clip, idOf, keep, MAX_LABEL_BYTES } from '../bounds.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'
import { lastActiveOf, type ParticipantsFold, statusOf } from './participants.js'
import type { RunFold } from './run.js'

const MAX_EDGES = 200
const MAX_SHOWN_EDGES = 300
/** Of one message: how many recipients get an edge. */
const MAX_RECIPIENTS = 100

interface Edge {
  from: string
  to: string
  kind: string
  ts: string
  seq: number
}

export interface GraphFold {
  edges: Map<string, Edge>
  /** Stage to status, in the order of their appearance. */
  stages: Map<string, string>
  dropped: number
  truncated: number
}

const START = '__start'
const PROPOSAL = '__proposal'
const DECISION = '__decision'
const OUTCOME = '__outcome'
const STAGE_KINDS: Readonly<Record<string, string>> = { [START]: 'start', [PROPOSAL]: 'proposal', [DECISION]: 'decision', [OUTCOME]: 'output' }

/** What a message to all says on its edges to the participants. */
const BROADCASTS: ReadonlyMap<string, string> = new Map([
  ['session.bound', 'fanout'],
  ['proposes', 'review'],
])

function connect(state: GraphFold, event: EventOf<'message.sent' | 'message.received'>, from: string, to: string, kind: string): void {
  if (from === '' || to === '' || from === to) return
  const edge = { from, to, kind: clip(state, kind, MAX_LABEL_BYTES), ts: event.ts, seq: event.seq }
  if (keep(state.edges, `${from}\n${to}\n${edge.kind}`, edge, MAX_EDGES)) state.dropped += 1
}

function address(state: GraphFold, event: EventOf<'message.sent' | 'message.received'>, from: string): void {
  const recipients = event.data.recipients ?? []
  const kind = event.type === 'message.received' ? event.data.messageType || event.type : event.type
  for (const recipient of recipients.slice(0, MAX_RECIPIENTS)) connect(state, event, from, idOf(recipient), kind)
  state.dropped += Math.max(0, recipients.length - MAX_RECIPIENTS)
}

export const graph = defineSection({
  name: 'graph',
  initial: (): GraphFold => ({ edges: new Map(), stages: new Map(), dropped: 0, truncated: 0 }),
  on: {
    'message.sent'(state, event) {
      address(state, event, idOf(senderOf(event) ?? ''))
    },
    'message.received'(state, event) {
      const sender = idOf(senderOf(event) ?? '')
      const { messageType } = event.data
      if (messageType !== undefined) state.stages.set(START, 'completed')
      switch (messageType) {
        case 'SessionStart':
          connect(state, event, START, sender, 'session.bound')
          break
        case 'Proposal':
          state.stages.set(PROPOSAL, 'completed')
          connect(state, event, sender, PROPOSAL, 'proposes')
          break
        case 'Vote':
        case 'Evaluation':
        case 'Objection':
          if (!state.stages.has(DECISION)) state.stages.set(DECISION, 'active')
          connect(state, event, sender, DECISION, messageType.toLowerCase())
          break
        case 'Commitment':
          state.stages.set(DECISION, 'completed')
          state.stages.set(OUTCOME, 'completed')
          connect(state, event, DECISION, OUTCOME, 'commits')
          break
        default:
      }
      address(state, event, sender)
    },
  },
  view(state, folds: Readonly<{ run: RunFold; participants: ParticipantsFold }>) {
    const people = [...folds.participants.participants.values()]
    const lastActive = lastActiveOf(folds.participants)
    const nodes = people.map((participant) => ({
      id: participant.participantId,
      kind: 'participant',
      status: statusOf(folds.participants, participant, folds.run, lastActive) as string,
    }))
    for (const [id, status] of state.stages) nodes.push({ id, kind: STAGE_KINDS[id] ?? 'stage', status })
    const edges = [...state.edges.values()].map(({ from, to, kind, ts }) => ({ from, to, kind, ts }))
    let hidden = 0
    for (const edge of state.edges.values()) {
      const kind = BROADCASTS.get(edge.kind)
      if (kind === undefined) continue
      const [from, by] = edge.kind === 'proposes' ? [PROPOSAL, edge.from] : [edge.to, edge.to]
      for (const { participantId, joinedSeq } of people) {
        if (joinedSeq > edge.seq || participantId === by) continue
        if (edges.length < MAX_SHOWN_EDGES) edges.push({ from, to: participantId, kind, ts: edge.ts })
        else hidden += 1
      }
    }
    const { total, unnamed, dropped, truncated } = folds.participants
    return {
      nodes,
      edges,
      participants: total + unnamed,
      dropped: state.dropped + hidden + dropped + unnamed,
      truncated: state.truncated + truncated,
    }
  },
})
