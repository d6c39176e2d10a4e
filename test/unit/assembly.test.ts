import fc from 'fast-check'
import t from 'tap'
import { createAssemble } from '../../src/log/assembly.js'

const SIZE = 16

t.test('pieces are the items one after another, none cut, each as full as it can be', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.array(fc.string({ maxLength: 9, unit: 'binary-ascii' }), { minLength: 1, maxLength: 4 })), (items) => {
      const assemble = createAssemble(SIZE)
      const pieces: { text: string; last: number }[] = []
      // Twice: the second time in memory that has been used.
      for (let round = 0; round < 2; round++) {
        pieces.length = 0
        const assembly = assemble((bytes, last) => pieces.push({ text: bytes.toString('latin1'), last }))
        for (const [index, parts] of items.entries())
          assembly.add(
            parts.map((part) => Buffer.from(part)),
            index,
          )
        assembly.end()
      }
      const texts = items.map((parts) => parts.join(''))
      let from = 0
      for (const { text, last } of pieces) {
        const expected = texts.slice(from, last + 1).join('')
        const next = texts.slice(last + 1).find((later) => later.length > 0) ?? ''
        if (text !== expected) return false
        if (text.length > SIZE && texts.slice(from, last + 1).filter(Boolean).length > 1) return false
        if (next && next.length <= SIZE && text.length + next.length <= SIZE) return false
        from = last + 1
      }
      return texts.slice(from).join('') === ''
    }),
  )
  t.pass()
})
