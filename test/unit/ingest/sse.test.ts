/** Server-sent events by their bytes: the same frames wherever the chunks end, and never more held than one event. */
import { createParser } from 'eventsource-parser'
import fc from 'fast-check'
import t from 'tap'
import { createSseSplitter, type SseFrame } from '../../../src/ingest/sse.js'

function framesOf(chunks: (string | Buffer)[], options: { maxEventBytes?: number; lastId?: string } = {}): SseFrame[] {
  const splitter = createSseSplitter({ maxEventBytes: 1024, ...options })
  // Each chunk is overwritten afterwards, as a reader may do with its buffer.
  return chunks.flatMap((chunk) => {
    const bytes = Buffer.from(chunk)
    const frames = splitter.feed(bytes)
    bytes.fill(0x21)
    return frames
  })
}

const texts = (frames: SseFrame[]) => frames.map(({ data }) => data?.toString())

t.test('a frame ends at a blank line, however lines end', async (t) => {
  for (const newline of ['\n', '\r\n', '\r']) {
    const frames = framesOf([['id: 1', 'data: {"a":1}', '', ': nothing', '', 'event:named', 'data:x', 'data', 'data:  y', '', ''].join(newline)])
    t.same(texts(frames), ['{"a":1}', 'x\n\n y'], JSON.stringify(newline))
    t.match(frames, [
      { id: '1', lastId: '1', name: '' },
      { id: undefined, lastId: '1', name: 'named' },
    ])
  }
})

t.test('a CRLF and a character may be cut between two chunks', async (t) => {
  const bytes = Buffer.from('\ufeffid: ä\r\ndata: {"x":"é😀"}\r\n\r\ndata: 2\r\r\n')
  const whole = texts(framesOf([bytes]))
  t.same(whole, ['{"x":"é😀"}', '2'])
  for (let cut = 1; cut < bytes.length; cut++) t.same(texts(framesOf([bytes.subarray(0, cut), bytes.subarray(cut)])), whole, `cut at ${cut}`)
  t.same(texts(framesOf(Array.from(bytes, (byte) => Buffer.of(byte)))), whole, 'a byte at a time')
})

t.test('half a frame is none', async (t) => {
  t.same(framesOf(['data: {"a":1}\n']), [])
  t.same(framesOf(['data: {"a":1}\n\nid: 7\ndata: {"b"']).length, 1)
})

t.test('ids move the cursor: those without data too, an empty one resets it, those that no header can hold do not', async (t) => {
  const ids = (text: string, lastId?: string) => framesOf([text], lastId === undefined ? {} : { lastId }).map((frame) => frame.lastId)
  t.same(ids('id: 5\n\n'), ['5'])
  t.same(ids('data: x\n\n', 'before'), ['before'])
  t.same(ids('id\ndata: x\n\n', 'before'), [''])
  t.same(ids('id: a\0b\ndata: x\n\n', 'before'), ['before'])
  t.same(ids('id: a\x01b\ndata: x\n\n', 'before'), ['before'])
  t.same(ids(`id: ${'9'.repeat(3000)}\ndata: x\n\n`, 'before'), ['before'])
})

t.test('what is over the limit is counted, and what is around it is not touched', async (t) => {
  const frames = framesOf([`id: 1\ndata: ${'x'.repeat(5000)}\n\ndata: 2\n\ndata: ${'y'.repeat(600)}\ndata: ${'z'.repeat(600)}\n\ndata: 4\n\n`])
  t.match(frames, [
    { data: undefined, oversizeBytes: 5000, id: '1' },
    { oversizeBytes: 0, lastId: '1' },
    { data: undefined, oversizeBytes: 1201 },
    { oversizeBytes: 0 },
  ])
  const whole = Buffer.from(`data: ${'x'.repeat(5000)}\n\n`)
  t.same(framesOf(Array.from(whole, (byte) => Buffer.of(byte)))[0]?.oversizeBytes, 5000, 'a byte at a time')
  t.same(texts(framesOf([`data: ${'x'.repeat(1024)}\n\n`])), ['x'.repeat(1024)], 'at the limit it fits')
})

t.test('lines without an end and lines without number are not held', async (t) => {
  const splitter = createSseSplitter({ maxEventBytes: 1024 })
  const chunk = Buffer.alloc(1024 * 1024, 'x')
  const before = process.memoryUsage.rss()
  for (let index = 0; index < 512; index++) splitter.feed(chunk)
  const empty = Buffer.from('data\n'.repeat(100_000))
  for (let index = 0; index < 50; index++) splitter.feed(empty)
  t.ok(process.memoryUsage.rss() - before < 100 * 1024 * 1024, 'half a gigabyte went through')
  t.match(splitter.feed(Buffer.from('\n\n')), [{ data: undefined }])
})

t.test('retry is a whole number', async (t) => {
  const splitter = createSseSplitter({ maxEventBytes: 1024 })
  splitter.feed(Buffer.from('retry: soon\n\n'))
  t.equal(splitter.retryMs, undefined)
  splitter.feed(Buffer.from('retry: 1500\n\n'))
  t.equal(splitter.retryMs, 1500)
})

t.test('reads what eventsource-parser reads, wherever the chunks end', async (t) => {
  const line = fc.oneof(
    {
      weight: 3,
      arbitrary: fc.constantFrom(
        '',
        '',
        'data',
        'data:',
        'data: x',
        'data:  {"a":"é"}',
        'id: 1',
        'id:',
        'id: ü',
        'event: e',
        ': c',
        'retry: 5',
        'dat',
        'datax: 1',
      ),
    },
    fc.string({ maxLength: 8 }).map((text) => text.replaceAll(/[\r\n\0]/g, '')),
  )
  const stream = fc
    .array(fc.tuple(line, fc.constantFrom('\n', '\r\n', '\n\n')), { maxLength: 40 })
    .map((lines) => lines.map(([text, newline]) => text + newline).join(''))
  fc.assert(
    fc.property(stream, fc.array(fc.nat(400), { maxLength: 8 }), (text, cuts) => {
      const expected: [string, string, string][] = []
      const parser = createParser({ onEvent: ({ data, event, id }) => expected.push([data, event ?? '', id ?? '']) })
      parser.feed(text)
      const bytes = Buffer.from(text)
      const at = [0, ...cuts.map((cut) => Math.min(cut, bytes.length)).sort((left, right) => left - right), bytes.length]
      const found = framesOf(at.slice(1).map((end, index) => bytes.subarray(at[index], end)))
        .filter(({ data }) => data !== undefined)
        .map(({ data, name, id }) => [data?.toString(), name, id ?? ''])
      // A frame without any text is no event here.
      t.same(
        found,
        expected.filter(([data]) => data !== ''),
      )
    }),
    { numRuns: 500 },
  )
})
