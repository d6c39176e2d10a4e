/**
 * Any interleaving of writers, retries, readers and restarts, on two instances of the service, gives each reader each event once, in order:
 * writers send again what was not acknowledged, and some of what was; readers are cut, by themselves or by a restart, and go on from their last id, on either
 * instance; an instance is restarted in the midst of it, in an orderly way or as if it had been killed.
 * In the end seqs are 1..N, what was acknowledged is there once, at the seqs of all its receipts, and nothing else of the writers is.
 */
import fc from 'fast-check'
import { test } from 'tap'
import { testDatabase } from '../support/database.js'
import { createClient, type Receipt, seqsUpTo } from '../support/http.js'
import { startInstance } from '../support/instance.js'
import { openStream } from '../support/sse-client.js'

type Which = 0 | 1
const which = fc.constantFrom<Which>(0, 1)

interface Writer {
  /** A producer's events have no ids: the requests are known by their place. */
  isProducer: boolean
  /** Of other writers as well. Each is a request. */
  writes: { on: Which; ids: number[]; isSentAgain: boolean }[]
}
interface Reader {
  isFiltered: boolean
  on: Which
  /** After so many events of a connection the reader leaves, and goes on there. */
  cuts: { after: number; on: Which }[]
}
const writer: fc.Arbitrary<Writer> = fc.record({
  isProducer: fc.boolean(),
  writes: fc.array(fc.record({ on: which, ids: fc.uniqueArray(fc.nat(25), { minLength: 1, maxLength: 4 }), isSentAgain: fc.boolean() }), {
    minLength: 1,
    maxLength: 12,
  }),
})
const reader: fc.Arbitrary<Reader> = fc.record({
  isFiltered: fc.boolean(),
  on: which,
  cuts: fc.array(fc.record({ after: fc.nat(6), on: which }), { maxLength: 6 }),
})
const plan = fc.record({
  writers: fc.array(writer, { minLength: 2, maxLength: 4 }),
  readers: fc.array(reader, { minLength: 2, maxLength: 5 }),
  restarts: fc.array(
    fc.record({
      of: which,
      /** When so many requests have been begun. */
      at: fc.integer({ min: 1, max: 20 }),
      isKilled: fc.boolean(),
    }),
    { maxLength: 3 },
  ),
})

/** Odd ones pass the filter. */
const eventOf = (name: string, number: number) =>
  number % 2 === 0 ? { type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: name } } : { type: 'custom.emitted', data: { name } }

/** Whoever has been sent away so often, or has waited so long for what is there, is not served. */
const MAX_TRIES = 50
const PATIENCE_MS = 20_000

test('any interleaving of writers, retries, readers and restarts gives each reader each event once, in order', { timeout: 300_000 }, async (t) => {
  const database = await testDatabase(t, { poolMax: 2 })
  const settings = { STREAM_POLL_MS: '100', COMMITTERS: '2', SHUTDOWN_GRACE_MS: '500' }
  const instances = [await startInstance(t, database, settings), await startInstance(t, database, settings)] as const
  let plans = 0
  let restarted = 0
  let repeated = 0
  let cut = 0

  await fc.assert(
    fc.asyncProperty(plan, async ({ writers, readers, restarts }) => {
      const runId = `run-${++plans}`
      await createClient(await instances[0].url()).createRun({ id: runId })
      /** Of each event that was acknowledged, the seqs that its receipts say. */
      const acknowledged = new Map<string, string>()
      let begun = 0
      const restarting: Promise<void>[] = []

      /** Sends the request until it is answered: what happened to one that was not is not known. */
      async function post(body: object[], on: Which, headers: Record<string, string>): Promise<Receipt> {
        begun++
        for (const { of, isKilled } of restarts.filter(({ at }) => at === begun)) restarting.push(instances[of].restart(isKilled))
        for (let tries = 0; tries < MAX_TRIES; tries++) {
          const instance = instances[(on + tries) % 2 === 0 ? 0 : 1]
          const answer = await createClient(await instance.url())
            .append(runId, body, headers)
            .catch(() => undefined)
          if (answer?.status === 200) return answer.body
          if (answer && answer.status < 500) throw new Error(`answered ${answer.status}: ${answer.text}`)
          repeated++
        }
        throw new Error('no answer')
      }

      async function write({ isProducer, writes }: Writer, index: number): Promise<void> {
        for (const [place, { on, ids, isSentAgain }] of writes.entries()) {
          const names = ids.map((id) => (isProducer ? `p${index}-${place}-${id}` : `e${id}`))
          const body = ids.map((id, at) => ({ ...eventOf(names[at] ?? '', id), ...(isProducer ? {} : { id: names[at], source: 'tester' }) }))
          const headers: Record<string, string> = isProducer ? { 'producer-id': `p${index}`, 'producer-epoch': '0', 'producer-seq': String(place) } : {}
          const copies = await Promise.all([post(body, on, headers), ...(isSentAgain ? [post(body, on === 0 ? 1 : 0, headers)] : [])])
          for (const { results = [], headSeq } of copies) {
            if (results.length !== names.length) throw new Error(`${results.length} results of ${names.length}`)
            for (const [at, { seqs = [] }] of results.entries()) {
              const name = names[at] ?? ''
              const told = acknowledged.get(name) ?? String(seqs)
              if (told !== String(seqs) || seqs.length === 0) throw new Error(`${name} was ${told} and is now ${seqs}`)
              if (seqs.some((seq) => seq > headSeq)) throw new Error(`${name} is beyond the head that was answered`)
              acknowledged.set(name, told)
            }
          }
        }
      }

      /** @returns the ids that came, in their order */
      async function read({ isFiltered, on, cuts }: Reader): Promise<number[]> {
        const received: number[] = []
        let lastId = '0'
        let place = on
        const left = [...cuts]
        for (let tries = 0; tries < MAX_TRIES; tries++) {
          const url = `${await instances[place].url()}/runs/${runId}/stream${isFiltered ? '?types=custom.emitted' : ''}`
          const stream = await openStream(url, { headers: { 'last-event-id': lastId } }).catch(() => undefined)
          if (stream?.status === 204) return received
          if (stream?.status !== 200) {
            if (stream && stream.status < 500) throw new Error(`a reader after ${lastId} is answered ${stream.status}: ${stream.text()}`)
            place = place === 0 ? 1 : 0
            continue
          }
          const leaves = left.shift()
          let events = 0
          const last = await stream
            .until(({ event }) => event === 'end' || (event === 'canonical_event' && ++events === leaves?.after), PATIENCE_MS)
            .catch((error: unknown) =>
              // A stream that was closed is resumed; one that stays open and says nothing has been forgotten.
              stream.closed(1).then(
                () => undefined,
                () => Promise.reject(error),
              ),
            )
          stream.close()
          await stream.closed()
          const frames = last ? stream.frames.slice(0, stream.frames.indexOf(last) + 1) : stream.frames
          for (const { event, id } of frames) {
            if (id !== undefined) lastId = id
            if (event === 'canonical_event') received.push(Number(id))
          }
          if (last?.event === 'end') return received
          cut++
          place = leaves?.on ?? place
        }
        throw new Error(`a reader does not come to the end: ${received}`)
      }

      const reading = readers.map(read)
      // Whichever fails first is told below.
      for (const one of reading) one.catch(() => {})
      await Promise.all(writers.map(write))
      await Promise.all(restarting)
      restarted += restarting.length
      const client = createClient(await instances[1].url())
      await client.append(runId, { type: 'run.completed' })

      const events = await client.events(runId)
      const seqs = events.map(({ seq }) => seq)
      if (String(seqs) !== String(seqsUpTo(seqs.length))) throw new Error(`seqs are ${seqs}`)
      const stored = new Map<string, number[]>()
      for (const { seq, type, data } of events) {
        const name = type === 'step.output' ? data.text : type === 'custom.emitted' ? data.name : undefined
        if (name !== undefined) stored.set(String(name), [...(stored.get(String(name)) ?? []), seq])
      }
      const asText = (entries: Iterable<[string, unknown]>) =>
        Array.from(entries, ([name, where]) => `${name}: ${where}`)
          .sort()
          .join('\n')
      if (asText(stored) !== asText(acknowledged)) throw new Error(`stored are\n${asText(stored)}\nand acknowledged\n${asText(acknowledged)}`)
      for (const [index, received] of (await Promise.all(reading)).entries()) {
        const wanted = events.filter(({ type }) => !readers[index]?.isFiltered || type === 'custom.emitted').map(({ seq }) => seq)
        if (String(received) !== String(wanted)) throw new Error(`reader ${index} has ${received} instead of ${wanted}`)
      }
    }),
    { numRuns: Number(process.env.STREAM_RUNS ?? 30), endOnFailure: true },
  )
  t.ok(restarted > 0 && cut > 0 && repeated > 0, `${plans} plans, ${restarted} restarts, ${cut} cuts, ${repeated} requests that had to be repeated`)
})
