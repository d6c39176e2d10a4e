/**
 * A section of a run's state. Its reducers see their own section and one event, and never throw for an event that fits
 * the vocabulary; what needs another section is derived in `view`, after the fold.
 *
 * A section's fold state is a plain object whose fields are JSON values or, at the top level only, a `Map` from string to
 * JSON values (the codec in fold.ts turns those into entries for a snapshot). What is not known is null, never left out:
 * then a record has its keys in the same order before and after a snapshot, and two folds can be compared as texts.
 * Reducers change the state in place: the caller owns it, and drops it when the transaction that it was folded in fails.
 * Every collection is bounded, and what is cut is counted: entries as `dropped`, texts and payloads as `truncated`.
 */
import type { CanonicalEvent, EventOf, EventType } from '../domain/canonical-event.js'

/** Declared as a method, so that a section of some state is a section of any: fold.ts gives each reducer the state that its `initial` made. */
type Reducer<S, T extends EventType> = { reduce(state: S, event: EventOf<T>): void }['reduce']
export type Reducers<S> = { readonly [T in EventType]?: Reducer<S, T> }

/** `Needs` are the fold states of the other sections that the view reads. */
export interface Section<Name extends string, S extends object, V, Needs extends object = object> {
  readonly name: Name
  initial(): S
  readonly on: Reducers<S>
  /** Runs for every event, of unknown types too, before the reducer of its type. The hot path: no allocation, no walk. */
  onEvery?(state: S, event: CanonicalEvent): void
  /** The section as a client sees it: JSON. @param masked takes secrets out of a text that is put together here */
  view(state: S, folds: Readonly<Needs>, masked: (text: string) => string): V
}

export function defineSection<Name extends string, S extends object, V, Needs extends object = object>(
  section: Section<Name, S, V, Needs>,
): Section<Name, S, V, Needs> {
  return section
}
