/** The invariants of the fold (docs/ARCHITECTURE.md): any batches give the same state, nothing throws, and a state stays small. */
import fc from 'fast-check'
import t from 'tap'
import { isTerminal } from '../../src/domain/run.js'
import { createState, decodeState, encodeState, fold, foldEvent, summary, viewState } from '../../src/projections/fold.js'
import { arbitraryEvents, largestEvents, manyEvents } from '../support/arbitrary-events.js'

/** What docs/STATE.md promises. */
const MAX_STATE_BYTES = 1_250_000
const shown = (state: ReturnType<typeof createState>) => JSON.stringify(viewState(state))

t.test('folding at once, in any batches, and with a snapshot after each batch gives the same state', async () => {
  fc.assert(
    fc.property(arbitraryEvents({ maxLength: 60 }), fc.array(fc.integer({ min: 1, max: 10 }), { minLength: 1 }), (events, sizes) => {
      const atOnce = fold(createState(), events)
      const batched = createState()
      let restored = createState()
      for (let from = 0, batch = 0; from < events.length; batch++) {
        const size = sizes[batch % sizes.length] ?? 1
        fold(batched, events.slice(from, from + size))
        restored = fold(decodeState(encodeState(restored)), events.slice(from, from + size))
        from += size
      }
      for (const other of [batched, restored, decodeState(encodeState(atOnce))]) {
        if (shown(other) !== shown(atOnce)) throw new Error(`${shown(other)}\n${shown(atOnce)}`)
        if (encodeState(other) !== encodeState(atOnce)) throw new Error(`${encodeState(other)}\n${encodeState(atOnce)}`)
      }
    }),
    { numRuns: 150 },
  )
})

t.test('a view changes nothing, and the events are left as they were', async () => {
  fc.assert(
    fc.property(arbitraryEvents({ maxLength: 30 }), (events) => {
      const before = JSON.stringify(events)
      const state = createState()
      for (const event of events) {
        foldEvent(state, event)
        const encoded = encodeState(state)
        viewState(state)
        summary(state)
        if (encodeState(state) !== encoded) throw new Error('the view changed the state')
      }
      if (JSON.stringify(events) !== before) throw new Error('the fold changed an event')
    }),
    { numRuns: 60 },
  )
})

t.test('progress is null or an integer from 0 to 100, and the version is the seq, after every event', async () => {
  fc.assert(
    fc.property(arbitraryEvents({ maxLength: 60 }), (events) => {
      const state = createState()
      for (const event of events) {
        foldEvent(state, event)
        const { progress, attempt } = summary(state)
        if (progress !== null && !(Number.isInteger(progress) && progress >= 0 && progress <= 100)) throw new Error(`progress ${progress}`)
        if (!(Number.isInteger(attempt) && attempt >= 1)) throw new Error(`attempt ${attempt}`)
        if (state.version !== event.seq) throw new Error(`version ${state.version} after ${event.seq}`)
      }
    }),
    { numRuns: 100 },
  )
})

t.test('an attempt is active exactly while the run is neither in its queue nor over, and is the last one', async () => {
  fc.assert(
    fc.property(arbitraryEvents({ maxLength: 60 }), (events) => {
      const state = createState()
      for (const event of events) {
        foldEvent(state, event)
        const { status, attempt, attempts } = viewState(state).run
        const active = attempts.filter((one) => one.status === 'active')
        const expected = status === 'queued' || isTerminal(status) ? [] : attempts.slice(-1)
        if (JSON.stringify(active) !== JSON.stringify(expected)) throw new Error(`${status} after ${event.type}: ${JSON.stringify(attempts)}`)
        if (active.some((one) => one.attempt !== attempt)) throw new Error(`attempt ${attempt}: ${JSON.stringify(active)}`)
      }
    }),
    { numRuns: 300 },
  )
})

t.test('20,000 hostile events leave a small state that still counts all of them', async (t) => {
  const events = manyEvents(20_000, 20_260_101)
  const state = fold(createState(), events)
  const view = viewState(state)
  t.equal(view.timeline.totalEvents, events.length)
  t.ok(Buffer.byteLength(shown(state)) < MAX_STATE_BYTES, `view of ${Buffer.byteLength(shown(state))} bytes`)
  t.ok(Buffer.byteLength(encodeState(state)) < MAX_STATE_BYTES, `snapshot of ${Buffer.byteLength(encodeState(state))} bytes`)
  t.equal(({} as { polluted?: unknown }).polluted, undefined)
})

t.test('a state whose every collection is full of the largest entries stays small', async (t) => {
  const state = fold(createState(), largestEvents(520, '語'))
  const view = viewState(state)
  t.ok(Buffer.byteLength(JSON.stringify(view)) < MAX_STATE_BYTES, `view of ${Buffer.byteLength(JSON.stringify(view))} bytes`)
  t.ok(Buffer.byteLength(encodeState(state)) < MAX_STATE_BYTES, `snapshot of ${Buffer.byteLength(encodeState(state))} bytes`)
  for (const [name, section] of Object.entries(view)) {
    if (Object.hasOwn(section, 'dropped')) t.ok((section as { dropped: number }).dropped > 0, `what ${name} dropped is counted`)
    if (Object.hasOwn(section, 'truncated')) t.ok((section as { truncated: number }).truncated > 0, `what ${name} cut is counted`)
  }
})
