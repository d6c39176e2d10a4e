/** The registry of the sections of a run's state; the types of the state are derived from it. The order is that of the view. */
import { artifacts } from './sections/artifacts.js'
import { decision } from './sections/decision.js'
import { errors } from './sections/errors.js'
import { gates } from './sections/gates.js'
import { graph } from './sections/graph.js'
import { inputs } from './sections/inputs.js'
import { llm } from './sections/llm.js'
import { messages } from './sections/messages.js'
import { participants } from './sections/participants.js'
import { policy } from './sections/policy.js'
import { progress } from './sections/progress.js'
import { run } from './sections/run.js'
import { signals } from './sections/signals.js'
import { steps } from './sections/steps.js'
import { timeline } from './sections/timeline.js'
import { tools } from './sections/tools.js'
import { trace } from './sections/trace.js'

export const SECTIONS = {
  run,
  participants,
  graph,
  decision,
  signals,
  progress,
  timeline,
  trace,
  messages,
  policy,
  llm,
  steps,
  gates,
  tools,
  artifacts,
  inputs,
  errors,
}

export type SectionName = keyof typeof SECTIONS
/** The fold states of all sections. */
export type Folds = { [Name in SectionName]: ReturnType<(typeof SECTIONS)[Name]['initial']> }
/** The state of a run as a client sees it. */
export type RunState = { [Name in SectionName]: ReturnType<(typeof SECTIONS)[Name]['view']> }
