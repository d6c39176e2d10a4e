import fc from 'fast-check'
import t from 'tap'
import { createMessageReads } from '../../src/db/message-reads.js'

const SIZE = 64

/** What the driver does with data: it joins what is not whole, and keeps pieces of a message by reference until all of them are there. */
function createDriver() {
  const messages: string[] = []
  let incoming = Buffer.alloc(0)
  let pieces: Buffer[] = []
  let missing = 0
  return {
    messages,
    waits: () => incoming.length > 0 || pieces.length > 0,
    data(bytes: Buffer) {
      if (pieces.length > 0) {
        pieces.push(bytes)
        missing -= bytes.length
        if (missing > 0) return
        incoming = Buffer.concat(pieces)
        pieces = []
      } else incoming = Buffer.concat([incoming, bytes])
      while (incoming.length > 4) {
        const length = incoming.readUInt32BE(1)
        if (length >= incoming.length) {
          missing = length + 1 - incoming.length
          // By reference, as it came.
          pieces = [bytes.subarray(bytes.length - incoming.length)]
          incoming = Buffer.alloc(0)
          return
        }
        messages.push(incoming.toString('latin1', 0, length + 1))
        incoming = incoming.subarray(length + 1)
      }
    },
  }
}

const message = (type: string, body: string) => {
  const bytes = Buffer.alloc(5 + body.length)
  bytes.write(type)
  bytes.writeUInt32BE(4 + body.length, 1)
  bytes.write(body, 5, 'latin1')
  return bytes
}

t.test('messages come through whole and in order, however they were cut', async (t) => {
  const body = fc.oneof(
    { weight: 5, arbitrary: fc.string({ maxLength: 30, unit: 'binary-ascii' }) },
    fc.string({ minLength: SIZE - 8, maxLength: SIZE * 5, unit: 'binary-ascii' }),
  )
  fc.assert(
    fc.property(fc.array(body, { maxLength: 30 }), fc.array(fc.integer({ min: 1, max: SIZE }), { minLength: 1 }), (bodies, cuts) => {
      const sent = bodies.map((text, index) => message('DTCZ'[index % 4] ?? 'D', text))
      const wire = Buffer.concat(sent)
      const driver = createDriver()
      const handed: number[] = []
      const reads = createMessageReads(
        (bytes) => {
          handed.push(bytes.length)
          driver.data(bytes)
        },
        undefined,
        SIZE,
      )
      for (let at = 0, turn = 0; at < wire.length; turn++) {
        const room = reads.room()
        if (room.length === 0) throw new Error('there is no room for more')
        const bytes = Math.min(cuts[turn % cuts.length] ?? 1, room.length, wire.length - at)
        wire.copy(room, 0, at, at + bytes)
        reads.arrived(bytes)
        at += bytes
      }
      return !driver.waits() && driver.messages.join('|') === sent.map((bytes) => bytes.toString('latin1')).join('|') && handed.every((bytes) => bytes > 0)
    }),
    { numRuns: 2000 },
  )
  t.pass()
})

t.test('what fits is handed on as whole messages', async (t) => {
  const handed: string[] = []
  const reads = createMessageReads((bytes) => handed.push(bytes.toString('latin1')), undefined, SIZE)
  const [one, two] = [message('D', 'one'), message('D', 'two')]
  const wire = Buffer.concat([one, two])
  for (const [start, end] of [
    [0, 3],
    [3, 10],
    [10, wire.length],
  ] as const) {
    wire.copy(reads.room(), 0, start, end)
    reads.arrived(end - start)
  }
  t.same(handed, [one.toString('latin1'), two.toString('latin1')])
})

t.test('an error that ends the session is told as one, and other errors are handed on', async (t) => {
  const said = (severity: string) => message('E', `S${severity}\0V${severity}\0C57P01\0Mgone\0\0`)
  for (const severity of ['FATAL', 'PANIC']) {
    const handed: string[] = []
    const lost: unknown[] = []
    const reads = createMessageReads(
      (bytes) => handed.push(bytes.toString('latin1')),
      (error) => lost.push(error),
      SIZE,
    )
    const before = [message('D', 'VFATAL\0C57P01'), said('ERROR'), message('Z', 'I')]
    reads.read(Buffer.concat([...before, said(severity)]))
    t.equal(handed.join(''), Buffer.concat(before).toString('latin1'))
    t.match(lost, [{ name: 'PostgresError', message: 'gone', code: '57P01', severity }])
    t.equal(lost.length, 1)
  }
})
