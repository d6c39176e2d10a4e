import fc from 'fast-check'
import t from 'tap'
import { controlFrame, eventFrame, frameEnd, frameSeq, skipFrames } from '../../../src/tail/frame.js'

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

t.test('skipping frames leaves the rest', async () => {
  fc.assert(
    fc.property(jsonTexts, fc.nat(40), (jsons, count) => {
      const skipped = Math.min(count, jsons.length)
      return skipFrames(frames(jsons), skipped).equals(frames(jsons.slice(skipped), skipped + 1))
    }),
  )
})

t.test('a walk from frame to frame finds the seq of each, whatever the text', async () => {
  fc.assert(
    fc.property(jsonTexts, fc.integer({ min: 1, max: 99_999 }), (jsons, first) => {
      const whole = frames(jsons, first)
      let seq = first
      for (let start = 0; start < whole.length; start = frameEnd(whole, start)) if (frameSeq(whole, start) !== seq++) return false
      return seq === first + jsons.length
    }),
  )
})
