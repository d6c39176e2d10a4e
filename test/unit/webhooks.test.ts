/** What computes in webhooks: secrets and signatures, filters, delays. */
import { Webhook } from 'standardwebhooks'
import t from 'tap'
import { TYPE_FILTER_PATTERN, wants } from '../../src/webhooks/event-filter.js'
import { beginningOf, MAX_ANSWER_BYTES } from '../../src/webhooks/post.js'
import { restMs, retryAfterMs, retryDelayMs } from '../../src/webhooks/retries.js'
import { generateSecret, inForce, keyOf, rotated, signatures } from '../../src/webhooks/secrets.js'

const NOW = Date.parse('2026-11-21T12:00:00.000Z')
const DAY_MS = 86_400_000

t.test('a signature is that of the specification, and of the public library', async (t) => {
  // The example of the library's own tests.
  const secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'
  const message = { id: 'msg_p5jXN8AQM9LWM0D4loKWxJek', timestampS: 1_614_265_330, body: '{"test": 2432232314}' }
  t.equal(signatures(message, [{ secret }]), 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=')
  const own = generateSecret()
  const timestampS = Math.floor(Date.now() / 1000)
  const body = JSON.stringify({ text: 'snow \u2603 and \ud83d\ude00' })
  const headers = {
    'webhook-id': 'x',
    'webhook-timestamp': String(timestampS),
    'webhook-signature': signatures({ id: 'x', timestampS, body }, [{ secret: own }, { secret }]),
  }
  for (const one of [own, secret]) t.doesNotThrow(() => new Webhook(one).verify(body, headers))
  t.throws(() => new Webhook(own).verify(`${body} `, headers))
})

t.test('a secret has 24 to 64 bytes in base64, as other readers of base64 take it', async (t) => {
  const of = (bytes: number) => `whsec_${Buffer.alloc(bytes, 1).toString('base64')}`
  t.equal(keyOf(of(24))?.length, 24)
  t.equal(keyOf(of(64))?.length, 64)
  for (const bad of [of(23), of(65), 'whsec_', of(24).slice(6), `${of(24)}=`, of(25).replace(/=+$/, ''), `${of(24)} `, 'whsec_####'])
    t.equal(keyOf(bad), undefined, bad)
  t.equal(keyOf(generateSecret())?.length, 32)
})

t.test('a rotation keeps the old secrets until their time is up, and never lengthens it', async (t) => {
  const first = rotated([{ secret: 'a' }], 'b', DAY_MS, NOW)
  t.same(first, [{ secret: 'b' }, { secret: 'a', expiresAt: '2026-11-22T12:00:00.000Z' }])
  t.same(rotated(first, 'c', 7 * DAY_MS, NOW + 1000)[2], { secret: 'a', expiresAt: '2026-11-22T12:00:00.000Z' })
  t.same(rotated(first, 'c', 0, NOW + 1000), [{ secret: 'c' }])
  t.same(inForce(first, NOW + DAY_MS), [{ secret: 'b' }])
})

t.test('a filter is a type, a family or all', async (t) => {
  t.ok(wants(['*'], 'run.started'))
  t.ok(wants(['gate.*', 'run.started'], 'run.started'))
  t.ok(wants(['llm.*'], 'llm.call.completed'))
  t.notOk(wants(['run.*'], 'runner.moved'))
  t.notOk(wants(['run'], 'run.started'))
  t.notOk(wants([], 'run.started'))
  const pattern = new RegExp(TYPE_FILTER_PATTERN)
  for (const good of ['*', 'run.*', 'run.started', 'llm.call.*', 'a-b_c.D9']) t.match(good, pattern)
  for (const bad of ['', 'run*', '*.started', 'run.*.x', '.run', 'run.', 'run..x', 'a b']) t.notMatch(bad, pattern)
})

t.test('retries grow apart, and there are some fifteen in 24 hours', async (t) => {
  t.equal(retryDelayMs(1, 0.5), 3000)
  t.equal(retryDelayMs(1, 0), 2400)
  t.equal(retryDelayMs(1, 1), 3600)
  t.equal(retryDelayMs(2, 0.5), 7500)
  t.equal(retryDelayMs(1000, 0.5), 4 * 3_600_000)
  let attempts = 1
  for (let at = 0; at < DAY_MS; attempts++) at += retryDelayMs(attempts, 0.5)
  t.ok(attempts >= 12 && attempts <= 18, `${attempts} attempts`)
})

t.test('Retry-After is seconds or a date; nonsense is none', async (t) => {
  t.equal(retryAfterMs('120', NOW), 120_000)
  t.equal(retryAfterMs(' 0 ', NOW), 0)
  t.equal(retryAfterMs('Sat, 21 Nov 2026 12:01:00 GMT', NOW), 60_000)
  t.equal(retryAfterMs('Sat, 21 Nov 2026 11:00:00 GMT', NOW), 0, 'in the past')
  for (const nonsense of [undefined, '', '-5', '1e9', 'soon', '12345678901', '2026-11-21', 'Nov, never GMT'])
    t.equal(retryAfterMs(nonsense, NOW), undefined, String(nonsense))
})

t.test('an endpoint rests only after failures in a row, a minute or so at most', async (t) => {
  t.same(
    [1, 2, 3, 4, 5].map((failures) => restMs(failures, 0.5)),
    [0, 0, 1000, 2000, 4000],
  )
  t.equal(restMs(1_000_000, 0.5), 60_000)
})

t.test('a secret in an answer is masked though it comes in two chunks, across what is kept', async (t) => {
  const secret = `sk-${'a'.repeat(40)}`
  const mask = { text: (text: string) => text.replaceAll(secret, '[masked]') }
  async function* answer() {
    yield Buffer.from('x'.repeat(MAX_ANSWER_BYTES - 18) + secret.slice(0, 25))
    yield Buffer.from(`${secret.slice(25)} and more`)
  }
  t.equal(await beginningOf(answer(), mask), `${'x'.repeat(MAX_ANSWER_BYTES - 18)}[masked] and more`)
})
