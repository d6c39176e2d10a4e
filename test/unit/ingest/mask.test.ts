/** Masking of secrets: found wherever they stand in a JSON text, and nothing else is touched; in time linear in the text. */
import fc from 'fast-check'
import t from 'tap'
import { createMask, NO_MASK } from '../../../src/ingest/mask.js'
import { createMatcher, PatternError } from '../../../src/ingest/mask-matcher.js'
import type { ParsedItem } from '../../../src/ingest/raw-item.js'

const SECRET = 'sk-abcdefghijklmnopqrstuvwx'
const mask = createMask(['sk-[A-Za-z0-9]{20,}', '\\b\\d{16}\\b'], Buffer.alloc(32, 1))
const base64 = (text: string) => Buffer.from(text).toString('base64')
/** With an escape for the first letter. */
const escaped = (text: string) => text.replaceAll('sk-', '\\u0073k-')

t.test('a secret is found wherever it stands, and what comes back is JSON', async (t) => {
  const places: Record<string, string> = {
    'a value': JSON.stringify({ a: SECRET }),
    'a part of a value': JSON.stringify({ a: `key=${SECRET};` }),
    'a name': JSON.stringify({ [SECRET]: 1 }),
    'an escaped value': escaped(JSON.stringify({ a: SECRET })),
    'an escaped name': escaped(JSON.stringify({ [SECRET]: 1 })),
    'JSON in a text': JSON.stringify({ a: JSON.stringify({ b: SECRET }) }),
    'escaped JSON in a text': JSON.stringify({ a: escaped(JSON.stringify({ b: SECRET })) }),
    'JSON in JSON in a text': JSON.stringify({ a: JSON.stringify({ b: escaped(JSON.stringify({ c: SECRET })) }) }),
    base64: JSON.stringify({ payload: base64(JSON.stringify({ b: SECRET })) }),
    'base64 of escaped JSON': JSON.stringify({ payload: base64(escaped(JSON.stringify({ b: SECRET }))) }),
    'base64 in lines': JSON.stringify({ payload: base64(JSON.stringify({ b: SECRET })).replace(/.{20}/g, '$&\n') }),
    'a data URI': JSON.stringify({ a: `data:text/plain;base64,${base64(SECRET)}` }),
    base64url: JSON.stringify({ a: Buffer.from(`??>>${SECRET}`).toString('base64url') }),
    'base64 of bytes that are no text': JSON.stringify({ a: Buffer.concat([Buffer.from([0, 255, 254]), Buffer.from(SECRET)]).toString('base64') }),
    'a duplicate key': `{"a":"${SECRET}","a":1}`,
  }
  for (const [place, text] of Object.entries(places)) {
    const masked = mask.json(text)
    const texts: string[] = []
    const collect = (value: unknown): void => {
      if (typeof value === 'string') {
        texts.push(
          value,
          Buffer.from(value, 'base64').toString('latin1'),
          ...(value.match(/[A-Za-z0-9+/]{16,}=*/g) ?? []).map((run) => Buffer.from(run, 'base64').toString()),
        )
        try {
          collect(JSON.parse(value))
        } catch {}
        try {
          collect(JSON.parse(Buffer.from(value, 'base64').toString()))
        } catch {}
      } else if (typeof value === 'object' && value !== null) for (const [name, member] of Object.entries(value)) collect(name) ?? collect(member)
    }
    collect(JSON.parse(masked))
    t.notMatch(`${masked} ${texts.join(' ')}`, SECRET, place)
    t.match(`${masked} ${texts.join(' ')}`, /\[masked:[a-p]{12}\]/, `${place} is masked, not lost`)
    t.equal(mask.json(masked), masked, `${place}, once`)
  }
})

t.test('what holds no secret stays as it was, to the byte', async (t) => {
  for (const text of [
    '{ "n" : 12345678901234567890, "m":1.10,"a":1,"a":2 ,"s":"\\u0000\\ud800"}',
    `{"uuid":"019aa4f2-0000-7000-8000-000000000001"}`,
    '[1e3,-0.5,true,null]',
  ]) {
    t.equal(mask.json(text), text)
  }
  t.equal(mask.json(`{ "n" : 1.10, "a":"${SECRET}", "s":"\\u0041" }`).replace(/\[masked:\w+\]/, ''), '{ "n" : 1.10, "a":"", "s":"\\u0041" }')
})

t.test('a number with a secret in it becomes another number', async (t) => {
  t.equal(mask.json('{"card":4111111111111111,"n":41}'), '{"card":0,"n":41}')
  t.same(mask.value({ card: 4111111111111111, n: 41 }), { card: 0, n: 41 })
  t.equal(mask.json('{"card":4.111111111111111e15}'), '{"card":0}')
})

t.test('equal secrets have equal stand-ins under one key, and others under another', async (t) => {
  t.equal(mask.text(SECRET), mask.text(SECRET))
  t.not(mask.text(SECRET), mask.text(`${SECRET}y`))
  t.not(mask.text(SECRET), createMask(['sk-[A-Za-z0-9]{20,}'], Buffer.alloc(32, 2)).text(SECRET))
  t.equal(createMask(['sk-[A-Za-z0-9]{20,}']).text(SECRET), '[masked]')
})

t.test('an item without a secret is the same item, and one with a secret means what its text says', async (t) => {
  const clean: ParsedItem = { ok: true, text: '{"a":1}', value: { a: 1 } }
  t.equal(mask.item(clean), clean)
  t.equal(NO_MASK.item(clean), clean)
  const text = JSON.stringify({ data: { a: SECRET } })
  const masked = mask.item({ ok: true, text, value: JSON.parse(text) })
  t.ok(masked.ok)
  if (masked.ok) t.same(masked.value, JSON.parse(masked.text))
})

t.test('members that are to be kept are kept', async (t) => {
  const kept = mask.value(
    { source: { url: SECRET, headers: { a: SECRET } }, headers: { a: SECRET } },
    ([first, second]) => first === 'source' && second === 'headers',
  )
  t.match(kept, { source: { url: /^\[masked/, headers: { a: SECRET } }, headers: { a: /^\[masked/ } })
})

t.test('bytes in pieces are masked across their seams, and those that are no text are left alone', async (t) => {
  const through = async (pieces: Buffer[]) => {
    const out: Buffer[] = []
    for await (const piece of mask.bytes(
      (async function* () {
        yield* pieces
      })(),
    ))
      out.push(piece)
    return Buffer.concat(out)
  }
  const cut = (bytes: Buffer, size: number) =>
    Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) => bytes.subarray(index * size, (index + 1) * size))
  const small = Buffer.from(`grüße ${SECRET} und mehr`)
  t.match((await through(cut(small, 3))).toString(), /^grüße \[masked:[a-p]{12}\] und mehr$/)
  t.notMatch((await through([Buffer.from(escaped(JSON.stringify({ a: SECRET })))])).toString(), /u0073k/)
  const filler = 'ü'.repeat(524_280)
  const large = Buffer.from(`${filler}${SECRET} ${filler} ${SECRET}`)
  for (const size of [65_536, 1_000_003]) {
    const masked = (await through(cut(large, size))).toString()
    t.notOk(masked.includes(SECRET))
    t.equal(masked.replaceAll(/\[masked:[a-p]{12}\]/g, SECRET).length, large.toString().length, 'nothing else is lost')
  }
  const binary = Buffer.concat([Buffer.from([0, 1, 2]), Buffer.from(SECRET)])
  t.ok((await through([binary])).equals(binary))
  t.equal((await through([])).length, 0)
})

t.test('patterns that cannot be used say why', async (t) => {
  const bad: [string, RegExp][] = [
    ['a*', /empty text/],
    ['^', /empty text/],
    ['$', /empty text/],
    ['\\b', /empty text/],
    ['(?=a)b', /\(\?=/],
    ['(?<!a)b', /\(\?</],
    ['(a)\\1', /\\1/],
    ['(a', /missing closing/],
    ['[a', /missing closing/],
    ['a)', /unexpected/],
    ['*a', /missing argument/],
    ['a{2,1}', /invalid repeat/],
    ['a{5000}', /invalid repeat/],
    ['((a{1000}){1000}){1000}', /invalid repeat|too large/],
    ['x\\', /trailing/],
  ]
  for (const [pattern, why] of bad) t.throws(() => createMatcher([pattern]), why, pattern)
  t.throws(() => createMask(['mask']), PatternError)
})

t.test('no pattern and no text makes it slow: the steps are bounded by the text', async (t) => {
  // Each of these takes a backtracking matcher minutes; a test that would hang says enough.
  for (const pattern of ['(a+)+b', '([a-z]+)*@x', '[a-z]+@[a-z]+', '(a|aa)+c', 'a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a{24}z', '(.*)(.*)(.*)(.*)x']) {
    const matcher = createMatcher([pattern])
    t.notOk(matcher.test('a'.repeat(262_144)), pattern)
  }
})

/** Patterns in the language that both understand, over few letters, so that they match now and then. */
const pattern: fc.Arbitrary<string> = fc.letrec((tie) => ({
  unit: fc.constantFrom('a', 'b', 'c', '.', '[ab]', '[^a]', '\\w', '\\d', '\\s', '\\b', '\\B', '^', '$', '1', '-', '\\.', '[a-c1]'),
  atom: fc.oneof({ weight: 4, arbitrary: tie('unit') }, { weight: 1, arbitrary: fc.tuple(tie('either')).map(([inner]) => `(?:${inner})`) }),
  repeated: fc
    .tuple(tie('atom'), fc.constantFrom('', '', '', '*', '+', '?', '{2}', '{1,3}', '{2,}', '+?'))
    .map(([atom, quantifier]) => (/^(?:\^|\$|\\b|\\B)$/i.test(String(atom)) ? String(atom) : `${atom}${quantifier}`)),
  sequence: fc.array(tie('repeated'), { minLength: 1, maxLength: 4 }).map((parts) => parts.join('')),
  either: fc.array(tie('sequence'), { minLength: 1, maxLength: 2 }).map((parts) => parts.join('|')),
})).either as fc.Arbitrary<string>

t.test('it finds what the regular expressions of JavaScript find', async (t) => {
  let compared = 0
  fc.assert(
    fc.property(pattern, fc.string({ unit: fc.constantFrom('a', 'b', 'c', '1', ' ', '-', '.', '\n', 'é'), maxLength: 12 }), (source, text) => {
      let matcher: ReturnType<typeof createMatcher>
      try {
        matcher = createMatcher([source])
      } catch (error) {
        if (error instanceof PatternError) return
        throw error
      }
      compared++
      const expected = new RegExp(source, 'u').exec(text)
      // An edge with nothing beside it is nothing to mask.
      if (expected?.[0] === '') return
      if (matcher.test(text) !== (expected !== null)) throw new Error(`/${source}/ in ${JSON.stringify(text)}: ${matcher.test(text)}`)
      const [first] = matcher.find(text)
      if ((first?.[0] ?? -1) !== (expected?.index ?? -1)) throw new Error(`/${source}/ in ${JSON.stringify(text)}: at ${first?.[0]}, not ${expected?.index}`)
      if (first && expected) {
        // The longest, where JavaScript takes the first that it tries: the same text, matched as a whole.
        const [begin, end] = first
        if (end - begin < expected[0].length) throw new Error(`/${source}/ in ${JSON.stringify(text)}: shorter than ${JSON.stringify(expected[0])}`)
      }
    }),
    { numRuns: 20_000 },
  )
  t.ok(compared > 5000, `${compared} compared`)
})
