/**
 * Two runs of 100,000 events side by side, over HTTP.
 *
 *   edited    5% of the events edited: 3% say something else, 1% are not there, 1% are new. Targets: the first divergence in under 1 s, the whole
 *             comparison in under 2 s, and each planted edit at its exact seq.
 *   reworded  every text is another, and 2% of the events are not there or new. Target: at least 97% of the true pairs are aligned.
 * Knobs: ROUNDS. The texts of a run are all different; the names, the order and the sizes of its events are those of workload.ts.
 */
import type { Comparison } from '../src/insight/compare/answer.js'
import { type Row, repeat, seconds, spread } from './measure.js'
import type { Scenario } from './scenario.js'
import { type Connection, must, openConnection, request } from './wire.js'
import { createRun, eventText } from './workload.js'

const ROUNDS = 5
const EVENTS = 100_000
const BATCH = 1000
const TEXT_FIELDS = ['input', 'message', 'arguments', 'result', 'response', 'content', 'output', 'text']

/** An event with a text of its own. @param tag what texts that are meant to differ differ in */
function eventOf(n: number, tag: string): string {
  const event = JSON.parse(eventText(n))
  const field = TEXT_FIELDS.find((name) => Object.hasOwn(event.data, name)) ?? 'text'
  event.data[field] = `${tag}${n} ${event.data[field]}`.slice(0, event.data[field].length)
  return JSON.stringify(event)
}

/** An event of a run: `origin` is its number in the run that both were made from; without one it is new. */
interface Planned {
  text: string
  origin?: number
  edited?: boolean
}

/** The same for the same seed (mulberry32). */
function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

function plan(events: number, tag: string, shares: { changed: number; removed: number; added: number }): Planned[] {
  const next = random(7)
  let wasEdited = false
  return Array.from({ length: events }, (_, n) => n).flatMap((n): Planned[] => {
    const drawn = next()
    // Where one of two neighbours is not there and the other says something else, nobody can tell which is which.
    const at = wasEdited ? 1 : drawn
    wasEdited = at < shares.changed + shares.removed + shares.added
    if (at < shares.changed) return [{ text: eventOf(n, 'edited '), origin: n, edited: true }]
    if (at < shares.changed + shares.removed) return []
    const kept = { text: eventOf(n, tag), origin: n }
    return at < shares.changed + shares.removed + shares.added ? [{ text: eventOf(n, 'new ') }, kept] : [kept]
  })
}

async function fill(connection: Connection, port: number, id: string, planned: readonly Planned[]): Promise<void> {
  await createRun(connection, port, id)
  for (let from = 0; from < planned.length; from += BATCH) {
    const body = planned
      .slice(from, from + BATCH)
      .map(({ text }) => text)
      .join(',')
    await must(connection, request(port, 'POST', `/runs/${id}/events`, `[${body}]`))
  }
}

export const compare: Scenario = async ({ database, quick, startService, say }) => {
  const events = quick ? EVENTS / 10 : EVENTS
  const none = { changed: 0, removed: 0, added: 0 }
  const original = plan(events, 'a', none)
  const edited = plan(events, 'a', { changed: 0.03, removed: 0.01, added: 0.01 })
  const reworded = plan(events, 'b', { changed: 0, removed: 0.01, added: 0.01 })
  const service = await startService()
  const connection = await openConnection(service.port)
  await fill(connection, service.port, 'compare-original', original)
  await fill(connection, service.port, 'compare-edited', edited)
  await fill(connection, service.port, 'compare-reworded', reworded)
  const ask = async (right: string, query: string): Promise<Comparison> =>
    JSON.parse(await must(connection, request(service.port, 'GET', `/runs/compare?left=compare-original&right=${right}${query}`)))
  const timed = (query: string) => repeat(quick ? 2 : ROUNDS, async () => 1000 * (await seconds(() => ask('compare-edited', query))))
  const first = await timed('&sections=firstDivergence')
  const all = await timed('')
  const wrong = wrongEdits(original, edited, await ask('compare-edited', '&sections=events&limit=10000'))
  const pairs = pairsOf(await ask('compare-reworded', '&sections=events&limit=10000'))
  const aligned = (100 * truePairs(original, reworded, pairs).found) / truePairs(original, reworded, pairs).all
  connection.close()
  await service.stop()
  say(`${wrong} of the planted edits are not where they were planted`)
  const row = (what: string, unit: string, values: number[], target: string, met: boolean, note?: string): Row => ({
    what,
    database: database.kind,
    unit,
    ours: spread(values),
    target,
    met,
    note,
  })
  const size = `2 x ${events.toLocaleString('en')} events`
  return [
    row(`First divergence of ${size}, 5% edited`, 'ms', first, 'under 1,000 ms', spread(first).median < 1000),
    row(
      `Comparison of ${size}, 5% edited`,
      'ms',
      all,
      'under 2,000 ms and all edits at their seqs',
      spread(all).median < 2000 && wrong === 0,
      `${wrong} edits misplaced`,
    ),
    row(`True pairs aligned of ${size}, every text another`, '%', [aligned], 'at least 97%', aligned >= 97, '2% not there or new'),
  ]
}

/** How many of the edits that were planted the comparison does not tell, or tells elsewhere. Seq 1 is run.created. */
function wrongEdits(left: readonly Planned[], right: readonly Planned[], { events }: Comparison): number {
  const expected = new Set<string>()
  const there = new Map(right.map(({ origin, edited }, index) => [origin, { index, edited }]))
  left.forEach((_, index) => {
    const counterpart = there.get(index)
    if (counterpart === undefined) expected.add(`left_only ${index + 2}`)
    else if (counterpart.edited) expected.add(`changed ${index + 2} ${counterpart.index + 2}`)
  })
  right.forEach(({ origin }, index) => {
    if (origin === undefined) expected.add(`right_only ${index + 2}`)
  })
  const told = new Set<string>()
  for (const { op, count, left: one, right: other } of events?.hunks ?? []) {
    for (let at = 0; at < count; at++) told.add([op, one && one.fromSeq + at, other && other.fromSeq + at].filter((part) => part !== undefined).join(' '))
  }
  return [...expected].filter((edit) => !told.has(edit)).length + [...told].filter((edit) => !expected.has(edit)).length
}

/** From left seq to right seq. */
function pairsOf({ left, events }: Comparison): Map<number, number> {
  if (!events || events.moreHunks > 0) throw new Error('the answer does not hold all hunks')
  const pairs = new Map<number, number>()
  const taken = { left: new Set<number>(), right: new Set<number>() }
  for (const { op, count, left: one, right: other } of events.hunks) {
    for (let at = 0; at < count; at++) {
      if (op === 'changed' && one && other) pairs.set(one.fromSeq + at, other.fromSeq + at)
      else {
        if (one) taken.left.add(one.fromSeq + at)
        if (other) taken.right.add(other.fromSeq + at)
      }
    }
  }
  // What no hunk tells of is equal: the pairs between go on in lockstep.
  let right = 0
  for (let seq = 1; seq <= left.seq; seq++) {
    if (taken.left.has(seq)) continue
    do right++
    while (taken.right.has(right))
    if (!pairs.has(seq)) pairs.set(seq, right)
  }
  return pairs
}

function truePairs(left: readonly Planned[], right: readonly Planned[], pairs: Map<number, number>): { found: number; all: number } {
  const there = new Map(right.map(({ origin }, index) => [origin, index]))
  let all = 0
  let found = 0
  left.forEach((_, index) => {
    const counterpart = there.get(index)
    if (counterpart === undefined) return
    all++
    if (pairs.get(index + 2) === counterpart + 2) found++
  })
  return { found, all }
}
