/** Gates: the checks that a run has to pass, and how each went last. */
import type { EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { clipped, idOf, keep, MAX_LINE_BYTES, MAX_NAME_BYTES, payload } from '../bounds.js'
import { defineSection } from '../section.js'

const MAX_GATES = 60
const MAX_CHECKS_BYTES = 250

type GateStatus = 'running' | 'passed' | 'failed'

interface Gate {
  id: string
  name: string | null
  status: GateStatus
  reason: string | null
  checks: unknown
  stepId: string | null
  startedAt: string | null
  endedAt: string | null
}

export interface GatesFold {
  gates: Map<string, Gate>
  started: number
  passed: number
  failed: number
  dropped: number
  truncated: number
}

function move(state: GatesFold, event: EventOf<'gate.started' | 'gate.passed' | 'gate.failed'>, status: GateStatus): void {
  const { data, ts } = event
  const id = idOf(event.subject.id)
  const known = state.gates.get(id)
  const gate: Gate = known ?? { id, name: null, status, reason: null, checks: null, stepId: null, startedAt: null, endedAt: null }
  if (known === undefined && keep(state.gates, id, gate, MAX_GATES, (other) => other.status !== 'running')) state.dropped += 1
  gate.status = status
  gate.name = clipped(state, data.name, MAX_NAME_BYTES) ?? gate.name
  gate.reason = clipped(state, data.reason, MAX_LINE_BYTES)
  gate.checks = payload(state, data.checks, MAX_CHECKS_BYTES) ?? gate.checks
  gate.stepId = event.stepId === undefined ? gate.stepId : idOf(event.stepId)
  if (status === 'running') gate.startedAt = ts
  gate.endedAt = status === 'running' ? null : ts
}

export const gates = defineSection({
  name: 'gates',
  initial: (): GatesFold => ({ gates: new Map(), started: 0, passed: 0, failed: 0, dropped: 0, truncated: 0 }),
  on: {
    'gate.started'(state, event) {
      state.started += 1
      move(state, event, 'running')
    },
    'gate.passed'(state, event) {
      state.passed += 1
      move(state, event, 'passed')
    },
    'gate.failed'(state, event) {
      state.failed += 1
      move(state, event, 'failed')
    },
  },
  view(state) {
    return { ...state, gates: [...state.gates.values()].map(withoutNull) }
  },
})
