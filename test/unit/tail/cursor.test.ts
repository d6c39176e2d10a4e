import fc from 'fast-check'
import t from 'tap'
import { parseCompoundCursor, parseCursor } from '../../../src/tail/cursor.js'

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
    [...parseCompoundCursor('a:1,b-2.x:30', 'a:4')],
    [
      ['a', 4],
      ['b-2.x', 30],
    ],
  )
  t.equal(parseCompoundCursor(undefined, '').size, 0)
  for (const bad of ['a', ':1', 'a:', 'a:1,', 'a:1;b:2', 'a:-1']) t.throws(() => parseCompoundCursor(bad, undefined), { code: 'CURSOR_INVALID' }, bad)
})
