import fc from 'fast-check'
import t from 'tap'
import { controlFrame, cutFrames, eventFrame, frameEnd, frameSeq, skipFrames } from '../../../src/tail/frame.js'

const frames = (jsons: string[], first = 1) => Buffer.from(jsons.map((json, index) => eventFrame(first + index, json)).join(''))
const jsonTexts = fc.array(
  fc.oneof(fc.string({ unit: 'binary' }), fc.constant('\n\nid: 9\n'), fc.string({ minLength: 50, maxLength: 300 })).map((text) => JSON.stringify(text)),
  { minLength: 1, maxLength: 40 },
)

t.test('an event is three lines and a blank one', async (t) => {
  t.equal(eventFrame(7, '{"a":1}'), 'id: 7\nevent: canonical_event\ndata: {"a":1}\n\n')
})

t.test('a control frame has an id only where it moves the cursor', async (t) => {
  t.equal(controlFrame('caught_up', '{}'), 'event: caught_up\ndata: {}\n\n')
  t.equal(controlFrame('cursor', '{}', 3), 'id: 3\nevent: cursor\ndata: {}\n\n')
})

t.test('any frames are cut between frames, into pieces that give the same bytes and know their last seq', async () => {
  fc.assert(
    fc.property(jsonTexts, fc.integer({ min: 2, max: 500 }), fc.integer({ min: 1, max: 99_999 }), (jsons, limit, first) => {
      const whole = frames(jsons, first)
      const pieces = cutFrames(whole, limit)
      let seq = first - 1
      for (const { bytes, lastSeq } of pieces) {
        let count = 0
        for (let start = 0; start < bytes.length; start = frameEnd(bytes, start), count++) {
          if (frameSeq(bytes, start) !== ++seq) return false
        }
        if (lastSeq !== seq || (bytes.length > limit && count > 1)) return false
      }
      return Buffer.concat(pieces.map((piece) => piece.bytes)).equals(whole) && seq === first + jsons.length - 1
    }),
  )
})

t.test('a piece shares nothing with the page', async (t) => {
  const whole = frames(['"a"', '"b"'])
  const [piece] = cutFrames(whole)
  whole.fill(0)
  t.equal(piece?.bytes.toString(), frames(['"a"', '"b"']).toString())
})

t.test('skipping frames leaves the rest', async () => {
  fc.assert(
    fc.property(jsonTexts, fc.nat(40), (jsons, count) => {
      const skipped = Math.min(count, jsons.length)
      return skipFrames(frames(jsons), skipped).equals(frames(jsons.slice(skipped), skipped + 1))
    }),
  )
})
