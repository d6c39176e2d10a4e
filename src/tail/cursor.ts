/** Cursors as clients send them: a seq for one run, `runId:seq,runId:seq` for several. The greater of the query's and `Last-Event-ID` counts. */
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

/** The cursor of a reader of one run; undefined: from the start. An empty `Last-Event-ID` is none (a browser that has no id sends none). */
export function parseCursor(afterSeq: string | undefined, lastEventId: string | undefined): number | undefined {
  const asked = afterSeq === undefined ? undefined : parseSeq('afterSeq', afterSeq)
  const last = lastEventId === undefined || lastEventId === '' ? undefined : parseSeq('Last-Event-ID', lastEventId)
  return asked === undefined ? last : Math.max(asked, last ?? 0)
}

/** The cursor of a reader of several runs. A run that neither names starts from 0. */
export function parseCompoundCursor(cursor: string | undefined, lastEventId: string | undefined): Map<string, number> {
  const positions = new Map<string, number>()
  for (const [name, text] of [
    ['cursor', cursor],
    ['Last-Event-ID', lastEventId],
  ] as const) {
    if (text === undefined || text === '') continue
    for (const entry of text.split(',')) {
      const colon = entry.indexOf(':')
      if (colon < 1) throw new RunplaneError('CURSOR_INVALID', `${name} must be a list like runId:seq,runId:seq, as the ids of the frames are.`)
      const runId = entry.slice(0, colon)
      positions.set(runId, Math.max(positions.get(runId) ?? 0, parseSeq(`${name} of run ${runId.slice(0, 128)}`, entry.slice(colon + 1))))
    }
  }
  return positions
}

/** A cursor that the log has not reached is of another log: to wait there would lose events. */
export function cursorBeyondHead(runId: string, cursor: number, headSeq: number): RunplaneError {
  return new RunplaneError(
    'CURSOR_INVALID',
    `The cursor ${cursor} is beyond the head of run '${runId}', which is ${headSeq}. Start from a cursor between 0 and ${headSeq}.`,
  )
}
