/**
 * A keyed body that is sent again and again, cut off anywhere, as JSON or NDJSON in any pieces, to instances that cut it in different places, some at once:
 * in the end each of its items is stored once, in order, and every copy that was taken whole is told the same seqs.
 */
import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import { text } from 'node:stream/consumers'
import fc from 'fast-check'
import { test } from 'tap'
import { testDatabase } from '../support/database.js'
import type { Receipt } from '../support/http.js'
import { served } from '../support/served.js'

/** MAX_BATCH_EVENTS of the instances; the last one takes the whole body as JSON. */
const LIMITS = [1, 3, 7, 40]

interface Attempt {
  instance: number
  form: 'json' | 'ndjson'
  /** Bytes of each piece, over and over. */
  pieces: number[]
  /** Where it is cut off, of its length. */
  cutOffAt?: number | undefined
  epoch: number
}

const attempt: fc.Arbitrary<Attempt> = fc.record({
  instance: fc.nat(LIMITS.length - 1),
  form: fc.constantFrom('json', 'ndjson'),
  pieces: fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 4 }),
  cutOffAt: fc.option(fc.double({ min: 0, max: 0.99, noNaN: true }), { nil: undefined }),
  epoch: fc.nat(2),
})
const plan = fc.record({
  known: fc.constantFrom('key', 'producer', 'both'),
  /** Of each item whether it can be an event. */
  items: fc.array(fc.oneof({ weight: 4, arbitrary: fc.constant(true) }, { weight: 1, arbitrary: fc.constant(false) }), { minLength: 1, maxLength: 30 }),
  /** Rounds follow each other; the attempts of one are made at once. */
  rounds: fc.array(fc.array(attempt, { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 4 }),
  last: attempt,
})

test('a keyed body that is sent again in any way is stored once and in order', async (t) => {
  const database = await testDatabase(t)
  const instances = await Promise.all(LIMITS.map((limit) => served(t, database, { MAX_BATCH_EVENTS: String(limit) })))
  const [{ client }] = instances as [Awaited<ReturnType<typeof served>>]

  await fc.assert(
    fc.asyncProperty(plan, async ({ known, items, rounds, last }) => {
      const { runId } = await client.createRun()
      const texts = items.map((valid, index) => (valid ? JSON.stringify({ type: 'custom.emitted', data: { name: `n${index}` } }) : '5'))

      /** @returns undefined where it was cut off */
      const send = async ({ instance, form, pieces, cutOffAt, epoch }: Attempt): Promise<{ status: number; body: Receipt } | undefined> => {
        const { port } = instances[form === 'json' ? LIMITS.length - 1 : instance] ?? { port: 0 }
        const body = Buffer.from(form === 'json' ? `[${texts.join(',')}]` : texts.join('\n'))
        const sending = request({
          port,
          host: '127.0.0.1',
          method: 'POST',
          path: `/runs/${runId}/events`,
          headers: {
            'content-type': form === 'json' ? 'application/json' : 'application/x-ndjson',
            'transfer-encoding': 'chunked',
            ...(known !== 'producer' && { 'idempotency-key': 'k' }),
            ...(known !== 'key' && { 'producer-id': 'p', 'producer-epoch': known === 'both' ? epoch : 0, 'producer-seq': 0 }),
          },
        })
        const answered = once(sending, 'response').catch(() => undefined)
        const end = cutOffAt === undefined ? body.length : Math.floor(body.length * cutOffAt)
        for (let at = 0, count = 0; at < end; count++) {
          const next = Math.min(end, at + (pieces[count % pieces.length] ?? 1))
          await new Promise((resolve) => sending.write(body.subarray(at, next), resolve))
          at = next
        }
        if (cutOffAt === undefined) sending.end()
        else sending.destroy()
        const response = (await answered)?.[0] as IncomingMessage | undefined
        if (cutOffAt !== undefined || !response) return undefined
        return { status: response.statusCode ?? 0, body: JSON.parse(await text(response)) }
      }
      const seqs = new Map<number, string>()
      const take = (answer: { status: number; body: Receipt } | undefined) => {
        if (!answer || answer.status === 403) return
        const { status, body } = answer
        if (body.results?.length !== items.length) throw new Error(`answered ${status}: ${JSON.stringify(body)}`)
        for (const [index, result] of body.results.entries()) {
          const before = seqs.get(index) ?? String(result.seqs)
          if (before !== String(result.seqs)) throw new Error(`item ${index} was ${before} and is now ${result.seqs}`)
          if ((result.status === 'rejected') === items[index]) throw new Error(`item ${index} is ${result.status}`)
          seqs.set(index, before)
        }
      }
      for (const attempts of rounds) for (const answer of await Promise.all(attempts.map(send))) take(answer)
      for (const form of ['json', 'ndjson'] as const) {
        const answer = await send({ ...last, form, cutOffAt: undefined, epoch: 3 })
        if (answer?.status === 403) throw new Error('the last epoch is fenced')
        take(answer)
      }
      const names = (await client.events(runId, '&type=custom.emitted')).map((event) => event.data.name)
      const expected = items.flatMap((valid, index) => (valid ? [`n${index}`] : []))
      if (String(names) !== String(expected)) throw new Error(`stored are ${names}`)
    }),
    { numRuns: 100 },
  )
  t.pass('100 plans')
})
