/**
 * Who takes part. What is kept is when each was last active and last waited for; the status is derived on reading:
 * idle, active or waiting while the run goes on; at its end completed, skipped (never told anything during the run),
 * or failed (of a failed run, the participant that was active last, by seq).
 */
import type { CanonicalEvent, EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { isTerminal } from '../../domain/run.js'
import { clip, clipped, field, fingerprint, idOf, keep, MAX_LABEL_BYTES, textOf } from '../bounds.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'
import type { ProgressFold } from './progress.js'
import type { RunFold } from './run.js'

const MAX_PARTICIPANTS = 300
/** Those that the list has dropped and that are known again: a run may be created with 1,000, and tell each of them several times. */
const MAX_GONE = 700
const MAX_SUMMARY_BYTES = 64
/** Of one event: how many that it declares or addresses are looked at. */
const MAX_NAMED = 1000
/** Whose votes make a quorum. */
const VOTER = 'voter'
/** Participants whose words are counted. */
const MAX_TALLIES = 50

interface Participant {
  participantId: string
  role: string | null
  latestSummary: string | null
  latestActivityAt: string | null
  joinedSeq: number
  /** The last event that it told before the end of the run; 0 for none. */
  activeSeq: number
  /** The last message that waits for it. */
  waitingSeq: number
  events: number
}

/** What a participant told: messages, signals, and how sure it was of what it signalled and proposed. */
export interface Tally {
  messages: number
  signals: number
  /** How often it said how sure it is, and the sum of that. */
  confidences: number
  confidence: number
}

export interface ParticipantsFold {
  participants: Map<string, Participant>
  /** Who was dropped, by a hash of its id, and whether it votes (1). */
  gone: Map<string, 0 | 1>
  tallies: Map<string, Tally>
  total: number
  /** Of one event that names more than are looked at: the most. */
  unnamed: number
  /** The last message to all, and who sent it. */
  broadcastSeq: number
  broadcastBy: string
  dropped: number
  truncated: number
}

export type ParticipantStatus = 'idle' | 'active' | 'waiting' | 'completed' | 'failed' | 'skipped'

function join(state: ParticipantsFold, id: string, seq: number): Participant {
  const participantId = idOf(id)
  const known = state.participants.get(participantId)
  if (known !== undefined) return known
  const trace = fingerprint(participantId)
  const participant: Participant = {
    participantId,
    role: state.gone.get(trace) === 1 ? VOTER : null,
    latestSummary: null,
    latestActivityAt: null,
    joinedSeq: seq,
    activeSeq: 0,
    waitingSeq: 0,
    events: 0,
  }
  if (state.gone.delete(trace)) state.dropped -= 1
  else state.total += 1
  const gone = keep(state.participants, participantId, participant, MAX_PARTICIPANTS)
  if (gone !== undefined) {
    state.dropped += 1
    keep(state.gone, fingerprint(gone.participantId), gone.role === VOTER ? 1 : 0, MAX_GONE)
  }
  return participant
}

function touch(state: ParticipantsFold, id: string, event: CanonicalEvent): void {
  const participant = join(state, id, event.seq)
  participant.events += 1
  participant.latestActivityAt = event.ts
  if (event.late !== true) participant.activeSeq = event.seq
  const { messageType }: Readonly<Record<string, unknown>> = event.data
  if (typeof messageType === 'string') participant.latestSummary = clip(state, messageType, MAX_SUMMARY_BYTES)
}

function tally(state: ParticipantsFold, event: CanonicalEvent, what: 'messages' | 'signals' | null, confidence?: number): void {
  const sender = senderOf(event)
  if (sender === undefined) return
  const id = idOf(sender)
  let known = state.tallies.get(id)
  if (known === undefined) {
    if (state.tallies.size >= MAX_TALLIES) return
    known = { messages: 0, signals: 0, confidences: 0, confidence: 0 }
    state.tallies.set(id, known)
  }
  if (what !== null) known[what] += 1
  // A confidence is a share; what is none would spoil the sum.
  if (confidence === undefined || !(confidence >= 0 && confidence <= 1)) return
  known.confidences += 1
  known.confidence += confidence
}

/** As many of those that one event names as are looked at; the others are counted, once for all events. */
function named<T>(state: ParticipantsFold, all: readonly T[]): readonly T[] {
  if (all.length <= MAX_NAMED) return all
  state.unnamed = Math.max(state.unnamed, all.length - MAX_NAMED)
  return all.slice(0, MAX_NAMED)
}

/** Participants that are declared: ids, or objects with an id and a role. */
function declare(state: ParticipantsFold, seq: number, declared: unknown): void {
  if (!Array.isArray(declared)) return
  for (const one of named<unknown>(state, declared)) {
    const id = textOf(one) ?? textOf(field(one, 'participantId')) ?? textOf(field(one, 'id'))
    if (id === null || id === '') continue
    const participant = join(state, id, seq)
    participant.role ??= clipped(state, textOf(field(one, 'role')), MAX_LABEL_BYTES)
  }
}

function address(state: ParticipantsFold, event: EventOf<'message.sent' | 'message.received'>): void {
  const { seq, data } = event
  const sender = senderOf(event)
  if (data.messageType === 'SessionStart') declare(state, seq, field(data.payload, 'participants'))
  if (event.late === true) return
  if (data.recipients !== undefined && data.recipients.length > 0) {
    for (const recipient of named(state, data.recipients)) if (recipient !== '' && recipient !== sender) join(state, recipient, seq).waitingSeq = seq
  } else if (event.type === 'message.received' && (data.messageType === 'SessionStart' || data.messageType === 'Proposal')) {
    state.broadcastSeq = seq
    state.broadcastBy = sender === undefined ? '' : idOf(sender)
  }
}

export const participants = defineSection({
  name: 'participants',
  initial: (): ParticipantsFold => ({
    participants: new Map(),
    gone: new Map(),
    tallies: new Map(),
    total: 0,
    unnamed: 0,
    broadcastSeq: 0,
    broadcastBy: '',
    dropped: 0,
    truncated: 0,
  }),
  onEvery(state, event) {
    const sender = senderOf(event)
    if (sender !== undefined) touch(state, sender, event)
  },
  on: {
    'run.created'(state, { seq, data }) {
      declare(state, seq, field(data, 'participants'))
    },
    'session.bound'(state, { seq, data }) {
      declare(state, seq, field(data, 'participants'))
    },
    'participant.seen'(state, { seq, subject, data }) {
      const participant = join(state, data.participantId ?? subject.id, seq)
      participant.role = clipped(state, data.role, MAX_LABEL_BYTES) ?? participant.role
    },
    'progress.reported'(state, event) {
      if (event.subject.kind === 'participant' && senderOf(event) === undefined) touch(state, event.subject.id, event)
    },
    'message.sent'(state, event) {
      tally(state, event, 'messages')
      address(state, event)
    },
    'message.received'(state, event) {
      tally(state, event, 'messages')
      address(state, event)
    },
    'message.started'(state, event) {
      tally(state, event, 'messages')
    },
    'signal.emitted'(state, event) {
      tally(state, event, 'signals', event.data.confidence)
    },
    'proposal.created'(state, event) {
      tally(state, event, null, event.data.confidence)
    },
    'proposal.updated'(state, event) {
      tally(state, event, null, event.data.confidence)
    },
  },
  // An array, as macp dashboards read it; what was dropped is in the counts of the graph, which shows the same participants.
  view(state, folds: Readonly<{ run: RunFold; progress: ProgressFold }>) {
    const lastActive = lastActiveOf(state)
    return [...state.participants.values()].map((participant) => {
      const { joinedSeq, activeSeq, waitingSeq, ...known } = participant
      const progress = folds.progress.entries.get(participant.participantId)?.percentage ?? null
      return { ...withoutNull({ ...known, progress }), status: statusOf(state, participant, folds.run, lastActive) }
    })
  },
})

export function lastActiveOf(state: ParticipantsFold): Participant | undefined {
  let last: Participant | undefined
  for (const participant of state.participants.values()) if (participant.activeSeq > (last?.activeSeq ?? 0)) last = participant
  return last
}

export function statusOf(state: ParticipantsFold, participant: Participant, run: RunFold, lastActive: Participant | undefined): ParticipantStatus {
  if (isTerminal(run.status)) {
    if (participant.activeSeq === 0) return 'skipped'
    return run.status === 'failed' && participant === lastActive ? 'failed' : 'completed'
  }
  const { broadcastSeq, broadcastBy } = state
  const addressed = participant.joinedSeq <= broadcastSeq && participant.participantId !== broadcastBy
  if (Math.max(participant.waitingSeq, addressed ? broadcastSeq : 0) > participant.activeSeq) return 'waiting'
  return participant.activeSeq > 0 ? 'active' : 'idle'
}

/** How many votes make a quorum: the voters, or, where no one has that role, all participants. */
export function electorate(state: ParticipantsFold): number {
  let voters = 0
  for (const participant of state.participants.values()) if (participant.role === VOTER) voters += 1
  for (const votes of state.gone.values()) voters += votes
  return voters > 0 ? voters : state.total + state.unnamed
}
