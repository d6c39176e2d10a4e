/**
 * A section of a run's state. Its reducers see their own section and one event, and never throw for an event that fits
 * the vocabulary; what needs another section is derived in `view`, after the fold.
 *
 * A section's fold state is a plain object whose fields are JSON values or, at the top level only, a `Map` from string to
 * JSON values (the codec in fold.ts turns those into entries for a snapshot). Reducers change it in place: the caller owns
 * the state, and drops it when the transaction that it was folded in fails. Every collection is bounded, and what is cut is counted.
 */
import type { CanonicalEvent, EventOf, EventType } from '../domain/canonical-event.js'

export type Reducers<S> = { [T in EventType]?: (state: S, event: EventOf<T>) => void }

export interface Section<Name extends string, S extends object, V> {
  readonly name: Name
  initial(): S
  readonly on: Reducers<S>
  /** Runs for every event, of unknown types too, before the reducer of its type. */
  readonly onEvery?: (state: S, event: CanonicalEvent) => void
  /** Types that this section could be expected to handle and leaves alone on purpose. */
  /** The section as a client sees it: JSON. `folds` gives read access to the other sections' fold states. */
  view(state: S, folds: Readonly<Record<string, object>>): V
}

export function defineSection<Name extends string, S extends object, V>(section: Section<Name, S, V>): Section<Name, S, V> {
  return section
}
