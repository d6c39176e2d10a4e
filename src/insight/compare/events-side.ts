/** A side made of events that are read one after another: those of a bundle. They are read again for the few whose payloads are shown. */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import { digestsOf, digestsUnder } from '../../domain/digest.js'
import type { Rules } from '../../domain/volatile.js'
import { RunplaneError } from '../../errors.js'
import { createState, type FoldState, foldEvent } from '../../projections/fold.js'
import type { Pauses } from './pauses.js'
import { type Columns, createColumns, type Side } from './side.js'

export interface EventsSource {
  runId: string
  kind: Side['kind']
  /** The last event of the run: the source may end before it. */
  headSeq?: number | undefined
  /** As it is called in messages. */
  name: string
  /** From the first event, in order; may be called more than once. */
  events(): AsyncIterable<CanonicalEvent> | Iterable<CanonicalEvent>
}

/** Texts that are kept, so that a bundle of some size is read once. */
const KEPT_BYTES = 100_000_000

/** Reads all events once. @throws VALIDATION_ERROR where seqs are missing, PAYLOAD_TOO_LARGE. */
export async function openEventsSide(source: EventsSource, maxEvents: number, rules: Rules, pauses: Pauses): Promise<Side> {
  const digests: typeof digestsOf = rules.rules.length === 0 ? digestsOf : (event) => digestsUnder(rules, event)
  const state: FoldState = createState()
  const subjects = new Map<string, number>()
  let room = createColumns(1024, 1)
  let firstSeq = 1
  let count = 0
  let texts: string[] | undefined = []
  let bytes = 0
  for await (const event of source.events()) {
    if (count === 0) firstSeq = event.seq
    if (event.seq !== firstSeq + count) {
      throw new RunplaneError('VALIDATION_ERROR', `${source.name}: after event ${firstSeq + count - 1} comes ${event.seq}.`)
    }
    if (count === maxEvents) {
      throw new RunplaneError('PAYLOAD_TOO_LARGE', `${source.name} has more than ${maxEvents} events, which can be compared (COMPARE_MAX_EVENTS).`)
    }
    if (count === room.columns.length) room = grown(room.columns)
    const { columns } = room
    const { shape, content } = digests(event)
    columns.shape[count] = shape
    columns.content[count] = content
    columns.subject[count] = numberOf(subjects, `${event.subject.kind}/${event.subject.id}`)
    columns.tsMs[count] = Date.parse(event.ts)
    columns.type[count] = room.type(event.type)
    foldEvent(state, event)
    if (texts) {
      const text = JSON.stringify(event)
      bytes += text.length
      if (bytes > KEPT_BYTES) texts = undefined
      else texts.push(text)
    }
    count++
    if (pauses.due()) await pauses.take()
  }
  const columns = cut(room.columns, count, firstSeq)
  return {
    runId: source.runId,
    seq: firstSeq + count - 1,
    headSeq: source.headSeq,
    firstSeq,
    kind: source.kind,
    columns: async () => columns,
    state: async () => state,
    async events(seqs) {
      const found = new Map<number, CanonicalEvent>()
      if (texts) {
        for (const seq of seqs) {
          const text = texts[seq - firstSeq]
          if (text !== undefined) found.set(seq, JSON.parse(text))
        }
        return found
      }
      const wanted = new Set(seqs)
      if (wanted.size === 0) return found
      for await (const event of source.events()) {
        if (wanted.has(event.seq)) found.set(event.seq, event)
        if (found.size === wanted.size) break
        if (pauses.due()) await pauses.take()
      }
      return found
    },
  }
}

function numberOf(numbers: Map<string, number>, name: string): number {
  const known = numbers.get(name)
  if (known !== undefined) return known
  numbers.set(name, numbers.size)
  return numbers.size - 1
}

function grown(columns: Columns) {
  const larger = createColumns(columns.length * 2, columns.firstSeq)
  for (const name of columns.types) larger.type(name)
  for (const name of ['shape', 'content', 'subject', 'tsMs', 'type'] as const) larger.columns[name].set(columns[name])
  return larger
}

function cut(columns: Columns, length: number, firstSeq: number): Columns {
  const { shape, content, subject, tsMs, type, types } = columns
  return {
    length,
    firstSeq,
    shape: shape.slice(0, length),
    content: content.slice(0, length),
    subject: subject.slice(0, length),
    tsMs: tsMs.slice(0, length),
    type: type.slice(0, length),
    types,
  }
}
