/** Who did it: the participant that an event names as its sender or its actor. */
import type { CanonicalEvent } from '../domain/canonical-event.js'

export function senderOf(event: CanonicalEvent): string | undefined {
  const { sender }: Readonly<Record<string, unknown>> = event.data
  if (typeof sender === 'string' && sender !== '') return sender
  const kind = event.actor?.kind
  return kind === 'participant' || kind === 'agent' ? event.actor?.id : undefined
}
