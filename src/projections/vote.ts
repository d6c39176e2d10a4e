/** What a contribution to a proposal votes, and what the action of a decision means for its outcome (macp-control-plane, docs/API.md). */
import { field, textOf } from './bounds.js'

const ALLOW = new Set(['APPROVE', 'APPROVED', 'ACCEPT', 'ACCEPTED', 'ALLOW', 'YES'])
const DENY = new Set(['REJECT', 'REJECTED', 'DENY', 'BLOCK', 'NO'])
const ALLOWING_TYPES = new Set(['Accept', 'Approve', 'TaskAccept', 'HandoffAccept'])
const DENYING_TYPES = new Set(['Reject', 'TaskReject', 'HandoffDecline'])

export type Vote = 'allow' | 'deny' | 'abstain'

/** @returns null where the contribution is no vote. */
export function voteOf(data: { vote?: string; messageType?: string }): Vote | null {
  const word = (data.vote ?? textOf(field(data, 'recommendation')) ?? '').toUpperCase()
  if (ALLOW.has(word)) return 'allow'
  if (DENY.has(word)) return 'deny'
  const type = data.messageType ?? ''
  if (word === 'ABSTAIN' || type === 'Abstain') return 'abstain'
  if (ALLOWING_TYPES.has(type)) return 'allow'
  return DENYING_TYPES.has(type) ? 'deny' : null
}

const POSITIVE = new Set(['approve', 'approved', 'accept', 'accepted', 'selected', 'completed'])
const NEGATIVE = new Set(['reject', 'rejected', 'decline', 'declined', 'failed'])

/** As told, else inferred from the action; null: decided, but nobody can tell how. */
export function outcomeOf(data: { outcomePositive?: boolean | null; action?: string }): boolean | null {
  if (data.outcomePositive !== undefined) return data.outcomePositive
  const action = (data.action ?? '').toLowerCase()
  if (POSITIVE.has(action)) return true
  return NEGATIVE.has(action) ? false : null
}
