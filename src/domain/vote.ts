/** What a contribution to a proposal votes, and what the action of a decision means for its outcome (macp-control-plane, docs/API.md). */

const ALLOW = new Set(['APPROVE', 'APPROVED', 'ACCEPT', 'ACCEPTED', 'ALLOW', 'YES'])
const DENY = new Set(['REJECT', 'REJECTED', 'DENY', 'BLOCK', 'NO'])
const ALLOWING_TYPES = new Set(['Accept', 'Approve', 'TaskAccept', 'HandoffAccept'])
const DENYING_TYPES = new Set(['Reject', 'TaskReject', 'HandoffDecline'])

export type Vote = 'allow' | 'deny' | 'abstain'

/** A vote by its word, else by the type of the message; an abstention is neither for nor against. Undefined where it is no vote. */
export function voteOf(word: string | null | undefined, messageType = ''): Vote | undefined {
  const upper = word?.toUpperCase() ?? ''
  if (ALLOW.has(upper)) return 'allow'
  if (DENY.has(upper)) return 'deny'
  if (upper === 'ABSTAIN' || messageType === 'Abstain') return 'abstain'
  if (ALLOWING_TYPES.has(messageType)) return 'allow'
  return DENYING_TYPES.has(messageType) ? 'deny' : undefined
}

const POSITIVE = new Set(['approve', 'approved', 'accept', 'accepted', 'selected', 'completed'])
const NEGATIVE = new Set(['reject', 'rejected', 'decline', 'declined', 'failed'])

/** As told, else inferred from the action; null: decided, and nothing tells whether for or against. */
export function outcomeOf(told: boolean | null | undefined, action = ''): boolean | null {
  if (told !== undefined) return told
  const word = action.toLowerCase()
  if (POSITIVE.has(word)) return true
  return NEGATIVE.has(word) ? false : null
}
