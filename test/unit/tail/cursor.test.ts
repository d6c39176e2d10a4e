import fc from 'fast-check'
import t from 'tap'
import { createOtherCursors, parseCompoundCursor, parseCursor } from '../../../src/tail/cursor.js'

t.test('the greater of both counts, and none means from the start', async (t) => {
  t.equal(parseCursor(undefined, undefined), undefined)
  t.equal(parseCursor(undefined, ''), undefined)
  t.equal(parseCursor('5', undefined), 5)
  t.equal(parseCursor('5', '3'), 5)
  t.equal(parseCursor('5', '7'), 7)
  t.equal(parseCursor(undefined, '0'), 0)
})

t.test('what is not a whole number from 0 is refused, whatever it is', async () => {
  fc.assert(
    fc.property(fc.string(), (text) => {
      if (/^\d{1,15}$/.test(text)) return parseCursor(text, undefined) === Number(text)
      try {
        parseCursor(text, undefined)
        return false
      } catch (error) {
        return error instanceof Error && 'code' in error && error.code === 'CURSOR_INVALID'
      }
    }),
  )
})

t.test('a compound cursor has a place in each run; of two the greater counts', async (t) => {
  t.same(
    [...parseCompoundCursor(['a', 'b-2.x'], 'a:1,b-2.x:30', 'a:4')],
    [
      ['a', 4],
      ['b-2.x', 30],
    ],
  )
  t.equal(parseCompoundCursor(['a'], undefined, '').size, 0)
  for (const bad of ['a', ':1', 'a:', 'a:1,', 'a:1;b:2', 'a:-1']) t.throws(() => parseCompoundCursor(['a'], bad, undefined), { code: 'CURSOR_INVALID' }, bad)
})

t.test('an id has the place in each run, however many they are, and fits into a header', async () => {
  const runId = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$/)
  const run = fc.record({ runId, seq: fc.nat({ max: Number.MAX_SAFE_INTEGER }) })
  fc.assert(
    fc.property(fc.uniqueArray(run, { minLength: 1, maxLength: 100, selector: (one) => one.runId }), fc.nat(), (runs, place) => {
      const runIds = runs.map((one) => one.runId)
      const cursors = runs.map(({ seq }) => seq)
      const own = place % runs.length
      const id = `${runIds[own]}:${cursors[own]}${createOtherCursors(runIds)(own, cursors)}`
      const told = parseCompoundCursor(runIds, undefined, id)
      return id.length < 2000 && runs.every((one) => (told.get(one.runId) ?? 0) === one.seq)
    }),
  )
})

t.test('an id that does not name all runs is of these runs in this order', async (t) => {
  const runIds = Array.from({ length: 100 }, (_, index) => `run-${index}`)
  const id = `run-1:7${createOtherCursors(runIds)(
    1,
    runIds.map((_, index) => index),
  )}`
  t.equal(parseCompoundCursor(runIds, undefined, id).get('run-99'), 99)
  t.equal(parseCompoundCursor(runIds, 'run-99:100', id).get('run-99'), 100, 'beside a list of names the greater counts')
  for (const others of [runIds.toReversed(), runIds.slice(1), [...runIds, 'one-more']])
    t.throws(() => parseCompoundCursor(others, undefined, id), { code: 'CURSOR_INVALID', message: /same runs in the same order/ })
  t.throws(() => parseCompoundCursor(runIds, undefined, `${id}.1`), { code: 'CURSOR_INVALID' })
  t.throws(() => parseCompoundCursor(runIds, undefined, `${id}x`), { code: 'CURSOR_INVALID' })
})
