/**
 * The steps of a run, and the counts from which its progress is derived. The counts are those of the current attempt and
 * count every step, also those that the list has dropped; a step that is told of again in a later attempt begins anew.
 */
import type { DataOf, EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { percentageOf } from '../../domain/percentage.js'
import { isTerminal, nextAttempt } from '../../domain/run.js'
import { clip, clipped, idOf, keep, MAX_LABEL_BYTES, MAX_NAME_BYTES, numberOf } from '../bounds.js'
import { progressOfSteps } from '../derive.js'
import { failureOf } from '../failure.js'
import { defineSection } from '../section.js'
import type { RunFold } from './run.js'

const MAX_STEPS = 500
/** Steps whose texts are kept: the last that told any. */
const MAX_NOTES = 100
const MAX_NOTE_BYTES = 128

type StepStatus = 'running' | 'completed' | 'failed' | 'skipped'

interface Step {
  id: string
  name: string | null
  kind: string | null
  phase: string | null
  ordinal: number | null
  parentId: string | null
  status: StepStatus
  attempt: number
  /** Percentage from 0 to 100. */
  progress: number | null
  startedAt: string | null
  endedAt: string | null
  durationMs: number | null
  outputs: number
}

interface Note {
  message: string | null
  /** Why it failed or was skipped. */
  reason: string | null
  lastOutput: string | null
}

export interface StepsFold {
  attempt: number
  steps: Map<string, Step>
  notes: Map<string, Note>
  total: number
  running: number
  completed: number
  failed: number
  skipped: number
  /** The sum of the running steps' percentages, in whole percents: those add up exactly. */
  partial: number
  /** Running steps that the list has dropped: an end of a step that it does not know is taken to be one of theirs. */
  droppedRunning: number
  /** What the steps came to at the end of the run, once something late was told of one: the progress of the run stays. */
  final: { progress: number | null } | null
  outputs: number
  dropped: number
  truncated: number
}

type StepEvent = EventOf<'step.started' | 'step.output' | 'step.completed' | 'step.failed' | 'step.skipped' | 'progress.reported'>

function partOf(step: Step): number {
  return Math.round(step.progress ?? 0)
}

/** The step of an event as one of this attempt. */
function enter(state: StepsFold, event: StepEvent): Step {
  if (event.late === true) state.final ??= { progress: progressOfSteps(state) }
  const id = idOf(event.subject.id)
  const known = state.steps.get(id)
  if (known !== undefined && known.attempt === state.attempt) return known
  const step: Step = {
    id,
    name: null,
    kind: null,
    phase: null,
    ordinal: null,
    parentId: event.parent === undefined ? null : idOf(event.parent.id),
    status: 'running',
    attempt: state.attempt,
    progress: null,
    startedAt: null,
    endedAt: null,
    durationMs: null,
    outputs: 0,
  }
  state.notes.delete(id)
  const ends = event.type !== 'step.started'
  if (ends && state.droppedRunning > 0) state.droppedRunning -= 1
  else {
    state.total += 1
    state.running += 1
  }
  const gone = keep(state.steps, id, step, MAX_STEPS, (other) => other.status !== 'running' || other.attempt !== state.attempt)
  if (gone !== undefined) {
    state.dropped += 1
    state.notes.delete(gone.id)
    if (gone.status === 'running' && gone.attempt === state.attempt) {
      state.droppedRunning += 1
      state.partial -= partOf(gone)
    }
  }
  return step
}

function note(state: StepsFold, step: Step): Note {
  const known = state.notes.get(step.id)
  if (known !== undefined) return known
  const fresh: Note = { message: null, reason: null, lastOutput: null }
  const gone = keep(state.notes, step.id, fresh, MAX_NOTES)
  if (gone !== undefined) for (const text of [gone.message, gone.reason, gone.lastOutput]) if (text !== null) state.truncated += 1
  return fresh
}

function move(state: StepsFold, step: Step, status: StepStatus): void {
  if (step.status === status) return
  if (step.status === 'running') state.partial -= partOf(step)
  state[step.status] -= 1
  state[status] += 1
  step.status = status
}

function describe(state: StepsFold, step: Step, data: DataOf<'step.started' | 'step.completed'>): void {
  step.name = clipped(state, data.name, MAX_NAME_BYTES) ?? step.name
  step.kind = clipped(state, data.kind, MAX_LABEL_BYTES) ?? step.kind
  step.phase = clipped(state, data.phase, MAX_LABEL_BYTES) ?? step.phase
  step.ordinal = numberOf(data.ordinal) ?? step.ordinal
}

function end(state: StepsFold, event: EventOf<'step.completed' | 'step.failed' | 'step.skipped'>, status: StepStatus): void {
  const step = enter(state, event)
  describe(state, step, event.data)
  move(state, step, status)
  if (status === 'completed') step.progress = 100
  step.endedAt = event.ts
  step.durationMs = numberOf(event.data.durationMs)
  const reason = failureOf(state, event.data.error, MAX_NOTE_BYTES)?.message ?? clipped(state, event.data.reason, MAX_NOTE_BYTES)
  if (reason !== null) note(state, step).reason = reason
}

function beginAttempt(state: StepsFold, event: EventOf<'run.started' | 'run.retry_scheduled'>): void {
  const attempt = nextAttempt(state.attempt, event)
  if (attempt === state.attempt) return
  state.attempt = attempt
  state.total = 0
  state.running = 0
  state.completed = 0
  state.failed = 0
  state.skipped = 0
  state.partial = 0
  state.droppedRunning = 0
  state.final = null
}

export const steps = defineSection({
  name: 'steps',
  initial: (): StepsFold => ({
    attempt: 1,
    steps: new Map(),
    notes: new Map(),
    total: 0,
    running: 0,
    completed: 0,
    failed: 0,
    skipped: 0,
    partial: 0,
    droppedRunning: 0,
    final: null,
    outputs: 0,
    dropped: 0,
    truncated: 0,
  }),
  on: {
    'run.started': beginAttempt,
    'run.retry_scheduled': beginAttempt,
    'step.started'(state, event) {
      const step = enter(state, event)
      if (step.status !== 'running') {
        move(state, step, 'running')
        step.endedAt = null
        step.durationMs = null
        step.progress = null
        state.notes.delete(step.id)
      }
      describe(state, step, event.data)
      step.startedAt = event.ts
      if (event.parent !== undefined) step.parentId = idOf(event.parent.id)
    },
    'step.output'(state, event) {
      const step = enter(state, event)
      state.outputs += 1
      step.outputs += 1
      note(state, step).lastOutput = clip(state, event.data.text, MAX_NOTE_BYTES)
    },
    'progress.reported'(state, event) {
      if (event.subject.kind !== 'step') return
      const step = enter(state, event)
      const percentage = percentageOf(event.data)
      if (percentage !== undefined) {
        if (step.status === 'running') state.partial -= partOf(step)
        step.progress = percentage
        if (step.status === 'running') state.partial += partOf(step)
      }
      if (event.data.message !== undefined) note(state, step).message = clip(state, event.data.message, MAX_NOTE_BYTES)
    },
    'step.completed'(state, event) {
      end(state, event, 'completed')
    },
    'step.failed'(state, event) {
      end(state, event, 'failed')
    },
    'step.skipped'(state, event) {
      end(state, event, 'skipped')
    },
  },
  view(state, folds: Readonly<{ run: RunFold }>) {
    const { attempt, total, running, completed, failed, skipped, outputs, dropped, truncated } = state
    const over = isTerminal(folds.run.status)
    const list = [...state.steps.values()].map((step) => {
      // Nobody told how it ended, and nobody will.
      const abandoned = step.status === 'running' && (over || step.attempt !== attempt)
      const said = state.notes.get(step.id)
      return { ...withoutNull(step), ...(said && withoutNull(said)), status: abandoned ? ('abandoned' as const) : step.status }
    })
    return { steps: list, attempt, total, running: over ? 0 : running, completed, failed, skipped, outputs, dropped, truncated }
  },
})
