import t from 'tap'
import { PIECE_BYTES } from '../../../src/log/read.js'
import { createPiecePool } from '../../../src/tail/pieces.js'

t.test('memory is lent again only after it was given back', async (t) => {
  const pool = createPiecePool(PIECE_BYTES)
  const one = pool.lend(PIECE_BYTES)
  const two = pool.lend(PIECE_BYTES - 1)
  t.not(one.buffer, two.buffer)
  pool.giveBack(two)
  const three = pool.lend(50_000)
  t.equal(three.buffer, two.buffer)
  t.equal(three.length, 50_000)
  t.not(pool.lend(PIECE_BYTES).buffer, one.buffer)
})

t.test('small and large pieces have memory of their own size', async (t) => {
  const pool = createPiecePool(PIECE_BYTES)
  for (const bytes of [1, 1000, PIECE_BYTES + 1]) {
    const piece = pool.lend(bytes)
    t.equal(piece.buffer.byteLength, bytes)
    pool.giveBack(piece)
    t.not(pool.lend(bytes).buffer, piece.buffer)
  }
})
