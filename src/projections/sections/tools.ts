/** Calls of tools: the recent ones, and counts over all of them and by tool. */
import type { EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { clip, clipped, idOf, keep, MAX_LINE_BYTES, MAX_NAME_BYTES, numberOf, payload } from '../bounds.js'
import { failureOf } from '../failure.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'

const MAX_CALLS = 50
const MAX_TOOLS = 40
const OTHER_TOOLS = '(other)'
const MAX_PAYLOAD_BYTES = 300

type ToolEvent = EventOf<'tool.called' | 'tool.output' | 'tool.completed' | 'tool.failed'>

interface ToolCall {
  id: string
  name: string | null
  server: string | null
  status: 'running' | 'completed' | 'failed'
  participantId: string | null
  stepId: string | null
  arguments: unknown
  result: unknown
  error: string | null
  outputs: number
  lastOutput: string | null
  startedAt: string
  endedAt: string | null
  durationMs: number | null
}

interface ToolUse {
  called: number
  completed: number
  failed: number
  durationMs: number
}

export interface ToolsFold {
  calls: Map<string, ToolCall>
  byName: Map<string, ToolUse>
  called: number
  completed: number
  failed: number
  dropped: number
  truncated: number
}

function callOf(state: ToolsFold, event: ToolEvent): ToolCall {
  const id = idOf(event.subject.id)
  const known = state.calls.get(id)
  const call: ToolCall = known ?? {
    id,
    name: null,
    server: null,
    status: 'running',
    participantId: null,
    stepId: null,
    arguments: null,
    result: null,
    error: null,
    outputs: 0,
    lastOutput: null,
    startedAt: event.ts,
    endedAt: null,
    durationMs: null,
  }
  if (known === undefined && keep(state.calls, id, call, MAX_CALLS, (other) => other.status !== 'running')) state.dropped += 1
  const sender = senderOf(event)
  if (sender !== undefined) call.participantId ??= idOf(sender)
  if (event.stepId !== undefined) call.stepId = idOf(event.stepId)
  return call
}

function useOf(state: ToolsFold, call: ToolCall): ToolUse {
  const name = call.name ?? ''
  const key = state.byName.has(name) || state.byName.size < MAX_TOOLS ? name : OTHER_TOOLS
  let use = state.byName.get(key)
  if (use === undefined) {
    use = { called: 0, completed: 0, failed: 0, durationMs: 0 }
    state.byName.set(key, use)
  }
  return use
}

function end(state: ToolsFold, event: EventOf<'tool.completed' | 'tool.failed'>, status: 'completed' | 'failed'): ToolCall {
  const call = callOf(state, event)
  call.name = clipped(state, event.data.name, MAX_NAME_BYTES) ?? call.name
  const durationMs = numberOf(event.data.durationMs)
  const use = useOf(state, call)
  state[status] += 1
  use[status] += 1
  use.durationMs += Math.min(Math.max(durationMs ?? 0, 0), Number.MAX_SAFE_INTEGER)
  call.status = status
  call.endedAt = event.ts
  call.durationMs = durationMs
  return call
}

export const tools = defineSection({
  name: 'tools',
  initial: (): ToolsFold => ({ calls: new Map(), byName: new Map(), called: 0, completed: 0, failed: 0, dropped: 0, truncated: 0 }),
  on: {
    'tool.called'(state, event) {
      const call = callOf(state, event)
      call.name = clip(state, event.data.name, MAX_NAME_BYTES)
      call.server = clipped(state, event.data.server, MAX_NAME_BYTES)
      call.arguments = payload(state, event.data.arguments, MAX_PAYLOAD_BYTES)
      call.startedAt = event.ts
      state.called += 1
      useOf(state, call).called += 1
    },
    'tool.output'(state, event) {
      const call = callOf(state, event)
      call.outputs += 1
      call.lastOutput = clipped(state, event.data.text, MAX_LINE_BYTES) ?? call.lastOutput
    },
    'tool.completed'(state, event) {
      end(state, event, 'completed').result = payload(state, event.data.result, MAX_PAYLOAD_BYTES)
    },
    'tool.failed'(state, event) {
      end(state, event, 'failed').error = failureOf(state, event.data.error, MAX_LINE_BYTES)?.message ?? null
    },
  },
  view(state) {
    const byName = [...state.byName].map(([name, use]) => ({ name, ...use }))
    return { ...state, calls: [...state.calls.values()].map(withoutNull), byName }
  },
})
