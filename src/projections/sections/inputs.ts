/** What the run asks of people: the open requests are kept longest. */

import { withoutNull } from '../../domain/known.js'
import { clipped, idOf, keep, MAX_LINE_BYTES, MAX_NAME_BYTES, payload } from '../bounds.js'
import { defineSection } from '../section.js'

const MAX_INPUTS = 40
const MAX_SCHEMA_BYTES = 500
const MAX_RESPONSE_BYTES = 300

interface Input {
  id: string
  status: 'pending' | 'resolved'
  reason: string | null
  schema: unknown
  toolCallId: string | null
  requestedAt: string | null
  response: unknown
  by: string | null
  resolvedAt: string | null
}

export interface InputsFold {
  inputs: Map<string, Input>
  requested: number
  resolved: number
  pending: number
  /** Open requests that the list has dropped: an answer to one that it does not know is taken to be for one of them. */
  droppedPending: number
  dropped: number
  truncated: number
}

function put(state: InputsFold, input: Input): void {
  const gone = keep(state.inputs, input.id, input, MAX_INPUTS, (other) => other.status === 'resolved')
  if (gone === undefined) return
  state.dropped += 1
  if (gone.status === 'pending') state.droppedPending += 1
}

export const inputs = defineSection({
  name: 'inputs',
  initial: (): InputsFold => ({ inputs: new Map(), requested: 0, resolved: 0, pending: 0, droppedPending: 0, dropped: 0, truncated: 0 }),
  on: {
    'input.requested'(state, { subject, ts, data }) {
      const id = idOf(subject.id)
      if (state.inputs.get(id)?.status !== 'pending') state.pending += 1
      state.requested += 1
      put(state, {
        id,
        status: 'pending',
        reason: clipped(state, data.reason, MAX_LINE_BYTES),
        schema: payload(state, data.schema, MAX_SCHEMA_BYTES),
        toolCallId: data.toolCallId === undefined ? null : idOf(data.toolCallId),
        requestedAt: ts,
        response: null,
        by: null,
        resolvedAt: null,
      })
    },
    'input.resolved'(state, { subject, ts, data }) {
      const id = idOf(subject.id)
      const known = state.inputs.get(id)
      const input: Input = known ?? {
        id,
        status: 'pending',
        reason: null,
        schema: null,
        toolCallId: null,
        requestedAt: null,
        response: null,
        by: null,
        resolvedAt: null,
      }
      if (known?.status === 'pending') state.pending -= 1
      else if (known === undefined && state.droppedPending > 0) {
        state.droppedPending -= 1
        state.pending -= 1
      }
      state.resolved += 1
      input.status = 'resolved'
      input.response = payload(state, data.response, MAX_RESPONSE_BYTES)
      input.by = clipped(state, data.by, MAX_NAME_BYTES)
      input.resolvedAt = ts
      if (known === undefined) put(state, input)
    },
  },
  view(state) {
    const { requested, resolved, pending, dropped, truncated } = state
    return { inputs: [...state.inputs.values()].map(withoutNull), requested, resolved, pending, dropped, truncated }
  },
})
