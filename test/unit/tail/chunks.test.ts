import fc from 'fast-check'
import t from 'tap'
import { type Chunk, createChunkCache } from '../../../src/tail/chunks.js'
import { eventFrame } from '../../../src/tail/frame.js'

const framesOf = (afterSeq: number, lastSeq: number) =>
  Array.from({ length: lastSeq - afterSeq }, (_, index) => eventFrame(afterSeq + 1 + index, '{}')).join('')
const chunk = (afterSeq: number, count: number): Chunk => ({ afterSeq, lastSeq: afterSeq + count, bytes: Buffer.from(framesOf(afterSeq, afterSeq + count)) })

t.test('whatever chunks come in whatever order, what is found is what follows the cursor', async () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(60), fc.integer({ min: 1, max: 15 })), { maxLength: 40 }),
      fc.integer({ min: 300, max: 20_000 }),
      (ranges, maxBytes) => {
        const cache = createChunkCache(maxBytes)
        const runs = [cache.forRun(), cache.forRun()]
        for (const [index, [afterSeq, count]] of ranges.entries()) {
          const run = runs[index % 2]
          run?.add(chunk(afterSeq, count))
          if (cache.bytes > maxBytes) return false
          for (let cursor = 0; cursor < 80; cursor++) {
            const found = run?.after(cursor)
            if (found && (found.afterSeq !== cursor || found.bytes.toString() !== framesOf(cursor, found.lastSeq))) return false
          }
        }
        for (const run of runs) run.clear()
        return cache.bytes === 0
      },
    ),
  )
})

t.test('a commit that follows another is found, until newer ones of any run have taken its place', async (t) => {
  const cache = createChunkCache(1000)
  const [one, other] = [cache.forRun(), cache.forRun()]
  one.add(chunk(0, 3))
  one.add(chunk(3, 2))
  t.match(one.after(0), { lastSeq: 3 })
  t.match(one.after(3), { lastSeq: 5 })
  t.match(one.after(4), { afterSeq: 4, lastSeq: 5 })
  t.equal(one.after(5), undefined)
  for (let seq = 0; seq < 10; seq++) other.add(chunk(seq, 1))
  t.equal(one.after(0), undefined)
  t.match(other.after(9), { lastSeq: 10 })
})
