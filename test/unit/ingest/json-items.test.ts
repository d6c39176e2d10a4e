import assert from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import { RunplaneError } from '../../../src/errors.js'
import { createNdjsonSplitter, MAX_EVENT_DEPTH, type RawItem, splitJsonBody } from '../../../src/ingest/json-items.js'

const limits = { maxEventBytes: 1024, maxEvents: 5 }
const split = (body: string | Buffer) => splitJsonBody(Buffer.from(body), limits)

function refusal(body: string | Buffer): RunplaneError {
  try {
    split(body)
  } catch (error) {
    if (error instanceof RunplaneError) return error
    throw error
  }
  throw new Error(`was not refused: ${String(body).slice(0, 80)}`)
}

function texts(items: RawItem[]): string[] {
  return items.map((item) => (item.ok ? item.text : item.code))
}

function only(items: RawItem[]) {
  const [item] = items
  if (items.length !== 1 || item === undefined || !item.ok) throw new Error('not one parsed item')
  return item
}

t.test('takes one object, an array, and {"events":[...]}, and keeps the text of each item byte for byte', async (t) => {
  t.same(texts(split(' {"a": 1} ')), ['{"a": 1}'])
  t.same(texts(split('[{"a":1.10} , { "b" : 12345678901234567890 }\n]')), ['{"a":1.10}', '{ "b" : 12345678901234567890 }'])
  t.same(texts(split('{ "events" : [{"a":"\\u0000\\ud800","a":2},{"s":"]}\\"{[\\\\"}] }')), ['{"a":"\\u0000\\ud800","a":2}', '{"s":"]}\\"{[\\\\"}'])
  t.same(texts(split('[{"grüße":"日本\u{1f600}"}]')), ['{"grüße":"日本\u{1f600}"}'])
  t.same(texts(split('\uFEFF{"a":1}')), ['{"a":1}'], 'a byte order mark is skipped')
  t.same(texts(split('{"type":"x","events":[1]}')), ['{"type":"x","events":[1]}'], 'events after another member is a field of an event')
  t.same(texts(split('{"events":{"a":1}}')), ['{"events":{"a":1}}'])
})

t.test('an element that is not an object is a rejected item among the others', async (t) => {
  t.same(texts(split('[{"a":1},42,"x",[{}],null]')), ['{"a":1}', ...Array(4).fill('VALIDATION_ERROR')])
})

t.test('NUL and lone surrogates become U+FFFD in the value, in names as well', async (t) => {
  const item = only(split('{"k\\u0000":"a\\u0000b\\uD800c\\uDC00","pair":"\\ud83d\\ude00","in":[{"\\udfff":"\\u0041"}]}'))
  t.same(item.value, { 'k\uFFFD': 'a\uFFFDb\uFFFDc\uFFFD', pair: '\u{1f600}', in: [{ '\uFFFD': 'A' }] })
})

t.test('a number that overflows a double is null in the value', async (t) => {
  t.same(only(split('{"a":1e400,"b":[-1E999],"c":1e3}')).value, { a: null, b: [null], c: 1000 })
  t.same(only(split(`{"a":${'9'.repeat(400)}}`)).value, { a: null })
})

t.test('names such as __proto__ are plain own properties', async (t) => {
  const { value } = only(split('{"__proto__":{"admin":true},"constructor":{"prototype":{}},"x":"\\u0000"}'))
  t.ok(Object.hasOwn(value, '__proto__'))
  t.equal(Object.getPrototypeOf(value), Object.prototype)
  t.equal(Reflect.get({}, 'admin'), undefined)
})

t.test('says what is wrong with a body, and at which byte', async (t) => {
  for (const [body, offset] of [
    ['{"a":}', 5],
    ['{"a":1', 6],
    ['{"a":1}}', 7],
    ['[{"a":1},]', 9],
    ['[{"a":1} {"b":2}]', 9],
    ['[{"a":1}] x', 10],
    ['{"a":01}', 6],
    ['{"a":"\\x"}', 6],
    ['{"a":"\u0001"}', 6],
    ["{'a':1}", 1],
    ['{"ü":tru}', 6],
    ['{"a":[1}', 7],
    ['{"a":"b', 7],
    ['{"events":[{"a":1}', 18],
    ['nope', 0],
    ['{"a":1,}', 7],
    ['{"a":NaN}', 5],
    ['{"a":-}', 5],
    ['{"a":1.}', 6],
  ] as const) {
    const error = refusal(body)
    t.equal(error.code, 'VALIDATION_ERROR', body)
    t.match(error.message, new RegExp(`at byte ${offset},`), body)
  }
})

t.test('refuses a body without an event, and one that is not UTF-8', async (t) => {
  for (const body of ['', ' \n', '\uFEFF', '[]', ' [ ] ', '{"events":[]}']) t.equal(refusal(body).code, 'VALIDATION_ERROR', body)
  for (const body of ['42', '"x"', 'null', 'true']) t.match(refusal(body).message, /neither an object nor an array/)
  t.match(refusal('{"events":[{"a":1}],"more":1}').message, /no other member/)
  t.match(refusal(Buffer.concat([Buffer.from('{"a":"ü\uFFFD'), Buffer.from([0xc3, 0x28]), Buffer.from('"}')])).message, /UTF-8, from byte 11 on/)
})

t.test('limits: the events of a request, the bytes of an event, the levels of nesting', async (t) => {
  t.equal(split(JSON.stringify(Array(5).fill({}))).length, 5)
  t.match(refusal(JSON.stringify(Array(6).fill({}))), { code: 'PAYLOAD_TOO_LARGE', message: /MAX_BATCH_EVENTS/ })
  t.match(refusal(JSON.stringify([{ a: 'x'.repeat(1024) }])), { code: 'PAYLOAD_TOO_LARGE', message: /MAX_EVENT_BYTES/ })
  const nested = (levels: number) => `{"a":${'['.repeat(levels - 1)}${']'.repeat(levels - 1)}}`
  t.equal(split(nested(MAX_EVENT_DEPTH)).length, 1)
  t.match(refusal(nested(MAX_EVENT_DEPTH + 1)), { code: 'VALIDATION_ERROR', message: /128 levels/ })
  for (const deep of ['['.repeat(100_000), `{"events":${'['.repeat(10_000)}`, '{"a":'.repeat(100_000), `[{},${'['.repeat(100_000)}`]) {
    t.equal(refusal(deep).code, 'VALIDATION_ERROR')
  }
})

t.test('any array of JSON objects comes apart into its elements, whatever the white space', async () => {
  fc.assert(
    fc.property(
      fc.array(fc.dictionary(fc.string({ unit: 'binary' }), fc.jsonValue({ noUnicodeString: false })), { minLength: 1, maxLength: 5 }),
      fc.constantFrom('', ' ', '\n\t '),
      (values, space) => {
        const parts = values.map((value) => JSON.stringify(value, null, space.length > 1 ? 2 : 0))
        const items = splitJsonBody(Buffer.from(`${space}[${space}${parts.join(`${space},${space}`)}${space}]${space}`), { maxEventBytes: 1e6, maxEvents: 5 })
        assert.deepEqual(texts(items), parts)
      },
    ),
    { numRuns: 300 },
  )
})

t.test('a body either is JSON for JSON.parse as well, or is refused as a validation error', async () => {
  const snippet = fc.constantFrom(
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '"',
    '"a"',
    '\\',
    '1',
    '-',
    '1e5',
    '.',
    'true',
    'nul',
    ' ',
    '\n',
    '"events":',
    '{"a":1}',
    '\\u00',
    'ü',
  )
  fc.assert(
    fc.property(fc.array(snippet, { maxLength: 14 }), (parts) => {
      const body = parts.join('')
      let items: RawItem[] | undefined
      try {
        items = split(body)
      } catch (error) {
        assert.ok(error instanceof RunplaneError, body)
      }
      if (items !== undefined) JSON.parse(body)
    }),
    { numRuns: 5000 },
  )
})

t.test('NDJSON: lines come out the same however the bytes are cut', async (t) => {
  const body = Buffer.from(`\uFEFF{"a":1}\r\n\n  \n{"ü":"日本"}\nbroken\n[1]\n{"a":{"b":"\\u0000"}} \r\n{"big":"${'x'.repeat(3000)}"}\n{"last":1.10}`)
  const whole = run([body])
  t.same(texts(whole), ['{"a":1}', '{"ü":"日本"}', 'VALIDATION_ERROR', 'VALIDATION_ERROR', '{"a":{"b":"\\u0000"}}', 'PAYLOAD_TOO_LARGE', '{"last":1.10}'])
  t.same(
    whole.flatMap((item) => (item.ok ? [] : [item.line])),
    [5, 6, 8],
  )
  fc.assert(
    fc.property(fc.array(fc.nat(body.length), { maxLength: 12 }), (cuts) => {
      const places = [0, ...cuts.sort((a, b) => a - b), body.length]
      assert.deepEqual(run(places.slice(1).map((place, index) => body.subarray(places[index], place))), whole)
    }),
  )

  function run(chunks: Buffer[]): RawItem[] {
    const splitter = createNdjsonSplitter(limits)
    return [...chunks.flatMap((chunk) => splitter.feed(Buffer.from(chunk))), ...splitter.end()]
  }
})

t.test('NDJSON: a line that is not UTF-8 or nests too deep is a rejected item that says where', async (t) => {
  const splitter = createNdjsonSplitter({ maxEventBytes: 100_000, maxEvents: 1 })
  const items = splitter.feed(Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xff]), Buffer.from(`"}\n{"a":${'['.repeat(50_000)}\n{"a":1}x\n{"ok":1}\n`)]))
  t.match(items, [
    { ok: false, line: 1, detail: /UTF-8, from its byte 6/ },
    { ok: false, line: 2, detail: /128 levels/ },
    { ok: false, line: 3, detail: /byte 7/ },
    { ok: true, value: { ok: 1 } },
  ])
  t.same(splitter.end(), [])
})

t.test('NDJSON: an endless line is not held', async (t) => {
  const splitter = createNdjsonSplitter(limits)
  const chunk = Buffer.alloc(65_536, 'x')
  const before = process.memoryUsage().arrayBuffers
  for (let round = 0; round < 1000; round++) assert.equal(splitter.feed(chunk).length, 0)
  t.ok(process.memoryUsage().arrayBuffers - before < 1_000_000)
  t.match(splitter.end(), [{ ok: false, code: 'PAYLOAD_TOO_LARGE', detail: /65536000 bytes/ }])
})
