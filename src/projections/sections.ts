/** The registry of the sections of a run's state; the types of the state are derived from it. The order is that of the view. */
import { progress } from './sections/progress.js'
import { run } from './sections/run.js'
import { steps } from './sections/steps.js'

export const SECTIONS = { run, progress, steps }

/** Types that no section reads: none of them changes what a state shows. */
export const IGNORED_TYPES: readonly string[] = []

export type SectionName = keyof typeof SECTIONS
/** The fold states of all sections. */
export type Folds = { [Name in SectionName]: ReturnType<(typeof SECTIONS)[Name]['initial']> }
/** The state of a run as a client sees it. */
export type RunState = { [Name in SectionName]: ReturnType<(typeof SECTIONS)[Name]['view']> }
