/** Who did it: the participant that an event names as its sender or its actor. */
import type { CanonicalEvent } from '../domain/canonical-event.js'

export function senderOf(event: CanonicalEvent): string | undefined {
  const data: { readonly sender?: unknown } = event.data
  if (typeof data.sender === 'string' && data.sender !== '') return data.sender
  const kind = event.actor?.kind
  return kind === 'participant' || kind === 'agent' ? event.actor?.id : undefined
}
