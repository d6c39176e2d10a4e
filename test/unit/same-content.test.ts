/** What a repeat under an event id may change: how it is written, never what it says. */
import fc from 'fast-check'
import t from 'tap'
import { isSameContent } from '../../src/ingest/same-content.js'

const inEvent = (value: string) => `{"id":"1","type":"custom.emitted","data":{"name":"n","value":${value}}}`
const same = (left: string, right: string) => isSameContent(inEvent(left), inEvent(right))

t.test('white space, the order of keys and the way of writing a number do not matter', async (t) => {
  t.ok(isSameContent('{"a":1,"b":{"c":[1,2],"d":"x"}}', ' { "b" : {"d":"\\u0078", "c":[1.0, 20e-1]},\n"a":1 }'))
  for (const [left, right] of [
    ['1', '1.0'],
    ['100', '1E+2'],
    ['0.001', '1e-3'],
    ['0', '0.00e7'],
    ['12345678901234567890', '1234567890123456789.0e1'],
    ['1e400', '10.0e399'],
    ['[1e400,"12\\"3"]', '[ 1e400, "12\\"3" ]'],
  ] as const)
    t.ok(same(left, right), `${left} ${right}`)
})

t.test('numbers that are one double are told apart by their digits', async (t) => {
  for (const [left, right] of [
    ['12345678901234567890', '12345678901234567891'],
    ['0.1', '0.1000000000000000055511151231257827'],
    ['9007199254740993', '9007199254740992'],
    ['[{"deep":[-1.00000000000000000001]}]', '[{"deep":[-1]}]'],
    ['1e400', '1e401'],
    ['1e-400', '2e-400'],
  ] as const)
    t.notOk(same(left, right), `${left} ${right}`)
})

t.test('a number is not the text of its digits, and what is within a text is no number', async (t) => {
  t.notOk(same('12345678901234567890', '"12345678901234567890"'))
  t.notOk(same('1', '"1e0"'))
  t.notOk(same('"1.0"', '"1"'))
  t.notOk(same('["\\\\", 1]', '["\\\\", 2]'))
  t.notOk(same('["\\"", 12345678901234567890]', '["\\"", 12345678901234567891]'))
  t.notOk(isSameContent('not JSON', 'nor this'), 'what cannot be read is compared as it is')
})

t.test('any value is the same as itself, however it is written', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(fc.property(fc.jsonValue({ depthSize: 'medium' }), (value) => isSameContent(JSON.stringify(value), JSON.stringify(value, null, 1)))),
  )
})

t.test('texts and numbers of any length are compared by what they mean', async (t) => {
  const escapes = `"${'\\n'.repeat(4_000_000)}"`
  t.ok(same(`[${escapes}, 1.0]`, `[ ${escapes},1]`))
  t.notOk(same(`[${escapes}, 1.0]`, `[ ${escapes},2]`))
  const digits = '9'.repeat(8_000_000)
  t.ok(same(`[0.${digits}]`, `[ 0.${digits}0]`))
})

t.test('a text as long as an event may be is compared in no time', async (t) => {
  const long = `"${'\\"1'.repeat(80_000)}"`
  t.ok(same(long, `${long} `))
  t.notOk(same(`[${'9'.repeat(200_000)}]`, `[${'9'.repeat(199_999)}8]`))
  const zeros = '0'.repeat(200_000)
  t.ok(same(`[1${zeros}1.${zeros}]`, `[1${zeros}1]`))
  t.ok(same(`[1e${zeros}1]`, `[ 1e${zeros}1 ]`))
})
