/** Writes the canonical events of one run, numbered as the log does it, for tests of what is folded from them. */
import type { CanonicalEvent, Reference } from '../../src/domain/canonical-event.js'
import { createState, fold, type RunState, viewState } from '../../src/projections/fold.js'

export const RUN_ID = 'run-1'
const EPOCH_MS = Date.UTC(2026, 0, 1)

export interface EventParts {
  subject?: Reference
  parent?: Reference
  stepId?: string
  actor?: Reference
  trace?: { traceId: string; spanId?: string }
  sourceKind?: 'agent' | 'runtime' | 'control-plane' | 'import' | 'replay'
  attempt?: number
  late?: boolean
}

/** The event at `seq`, one second of producer time after the one before it, as it comes back from the log. */
export function eventAt(seq: number, type: string, data: Record<string, unknown> = {}, parts: EventParts = {}): CanonicalEvent {
  const ts = new Date(EPOCH_MS + seq * 1000).toISOString()
  const { subject = { kind: 'run', id: RUN_ID }, sourceKind = 'agent', attempt = 1, ...rest } = parts
  const source = { kind: sourceKind, name: 'tester', format: 'native', rawType: type, rawSeq: seq }
  return JSON.parse(JSON.stringify({ runId: RUN_ID, seq, ts, receivedAt: ts, type, schemaVersion: 1, attempt, subject, ...rest, source, data }))
}

/** A log that numbers what is added to it. */
export function createLog() {
  const events: CanonicalEvent[] = []
  const add = (type: string, data?: Record<string, unknown>, parts?: EventParts) => {
    const event = eventAt(events.length + 1, type, data, parts)
    events.push(event)
    return event
  }
  return {
    events,
    /** An event of an agent about the run. */
    add,
    /** An event of an agent about something else: `kind/id`. */
    about(subject: string, type: string, data?: Record<string, unknown>, parts?: EventParts) {
      const slash = subject.indexOf('/')
      return add(type, data, { ...parts, subject: { kind: subject.slice(0, slash), id: subject.slice(slash + 1) } })
    },
    control(type: string, data?: Record<string, unknown>) {
      return add(type, data, { sourceKind: 'control-plane' })
    },
    view(): RunState {
      return viewState(fold(createState(), events))
    },
  }
}
