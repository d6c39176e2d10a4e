/**
 * Cursors as clients send them, and as the ids of frames tell them: a seq for one run, `runId:seq,runId:seq` for several. The greater of the query's
 * and `Last-Event-ID` counts.
 *
 * Each id of a stream of several runs has the places in all of them, for it alone comes back. Where they are many, names would be most of the stream,
 * and more than a header holds: such an id names the frame's own run only, and has the other places in the order in which the request names the runs,
 * with a check of that order: `runId:seq,*check:seq.seq.seq`. Cursors that name every run are taken too.
 */
import { createHash } from 'node:crypto'
import { RunplaneError } from '../errors.js'

function invalid(name: string, value: string): RunplaneError {
  const shown = value.length > 64 ? `${value.slice(0, 64)}...` : value
  return new RunplaneError('CURSOR_INVALID', `${name} is '${shown}', but must be a whole number from 0: the seq of the last event that you have.`)
}

/** @throws RunplaneError CURSOR_INVALID */
export function parseSeq(name: string, value: string): number {
  const seq = /^\d{1,16}$/.test(value) ? Number(value) : Number.NaN
  if (!Number.isSafeInteger(seq)) throw invalid(name, value)
  return seq
}

/** Where a reader is. A number that no seq can be is beyond the head, as any other that is too great: the answer to that says the head. */
function parsePlace(name: string, value: string): number {
  return /^\d{16,}$/.test(value) ? Math.min(Number(value), Number.MAX_SAFE_INTEGER) : parseSeq(name, value)
}

/** The cursor of a reader of one run; undefined: from the start. An empty `Last-Event-ID` is none (a browser that has no id sends none). */
export function parseCursor(afterSeq: string | undefined, lastEventId: string | undefined): number | undefined {
  const asked = afterSeq === undefined ? undefined : parsePlace('afterSeq', afterSeq)
  const last = lastEventId === undefined || lastEventId === '' ? undefined : parsePlace('Last-Event-ID', lastEventId)
  return asked === undefined ? last : Math.max(asked, last ?? 0)
}

/** Ids name the runs up to so many of them. */
const MAX_NAMED_RUNS = 10
const CHECK_CHARS = 8

const checkOf = (runIds: readonly string[]) => createHash('sha256').update(runIds.join()).digest('base64url').slice(0, CHECK_CHARS)

/** What follows `runId:seq` in the ids of one run's frames. @param own the run's place in the list */
export type OtherCursors = (own: number, cursors: readonly number[]) => string

/** @param runIds as the request names them */
export function createOtherCursors(runIds: readonly string[]): OtherCursors {
  if (runIds.length <= MAX_NAMED_RUNS) {
    return (own, cursors) => runIds.map((runId, place) => (place === own || !cursors[place] ? '' : `,${runId}:${cursors[place]}`)).join('')
  }
  const check = checkOf(runIds)
  return (own, cursors) => `,*${check}:${cursors.map((cursor, place) => (place === own || cursor === 0 ? '' : cursor)).join('.')}`
}

/** The cursor of a reader of several runs. A run that neither names starts from 0. @param runIds as the request names them */
export function parseCompoundCursor(runIds: readonly string[], cursor: string | undefined, lastEventId: string | undefined): Map<string, number> {
  const positions = new Map<string, number>()
  const reach = (name: string, runId: string, seq: string) =>
    positions.set(runId, Math.max(positions.get(runId) ?? 0, parseSeq(`${name} of run ${runId.slice(0, 128)}`, seq)))
  for (const [name, text] of [
    ['cursor', cursor],
    ['Last-Event-ID', lastEventId],
  ] as const) {
    if (text === undefined || text === '') continue
    for (const entry of text.split(',')) {
      const colon = entry.indexOf(':')
      if (colon < 1) throw new RunplaneError('CURSOR_INVALID', `${name} must be a list like runId:seq,runId:seq, as the ids of the frames are.`)
      const runId = entry.slice(0, colon)
      const places = entry.slice(colon + 1)
      if (runId.startsWith('*')) for (const [run, seq] of byPlace(name, runIds, runId, places)) reach(name, run, seq)
      else reach(name, runId, places)
    }
  }
  return positions
}

/** Those that are not at their start. */
function byPlace(name: string, runIds: readonly string[], check: string, places: string): [runId: string, seq: string][] {
  const seqs = places.split('.')
  if (check !== `*${checkOf(runIds)}` || seqs.length !== runIds.length) {
    throw new RunplaneError(
      'CURSOR_INVALID',
      `${name} is an id of a stream of other runs, or of these in another order. Name the same runs in the same order, or send a list runId:seq,runId:seq of the events that you have.`,
    )
  }
  return runIds.flatMap((runId, place): [string, string][] => (seqs[place] ? [[runId, seqs[place]]] : []))
}

/** A cursor that the log has not reached is of another log: to wait there would lose events. */
export function cursorBeyondHead(runId: string, cursor: number, headSeq: number): RunplaneError {
  return new RunplaneError(
    'CURSOR_INVALID',
    `The cursor ${cursor} is beyond the head of run '${runId}', which is ${headSeq}. Start from a cursor between 0 and ${headSeq}.`,
  )
}
