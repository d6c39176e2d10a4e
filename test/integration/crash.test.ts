/**
 * The promise of the log under crashes: every acknowledged event is there once, seqs are 1..N, and every reader that
 * resumes by its cursor ends with all of them, once, in order. The seed is printed; CRASH_SEED repeats a run's decisions.
 */
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { type CanonicalEvent, type Client, createClient, eventually, type Page, type Receipt, type RunRecord, seqsUpTo } from '../support/http.js'
import { seededRandom } from '../support/proxy.js'
import { type DatabaseKind, NO_SERVER, type Service, startService, TEST_DATABASE_URL } from '../support/service.js'
import { openStream } from '../support/sse-client.js'

const KILLS = 10
const RUNS = ['crash-a', 'crash-b', 'crash-c']
/** Without anything new: how long all of it takes is the machine's affair. */
const GIVE_UP_MS = 60_000

interface Written {
  name: string
  seq: number
}

/** Repeats a request until it is answered for good: 2xx. Refused connections, resets and 503 are what a crash looks like. */
async function untilAcknowledged(client: Client, runId: string, body: unknown, headers: Record<string, string>): Promise<Receipt> {
  const deadline = Date.now() + GIVE_UP_MS
  for (;;) {
    const answer = await client.send<Receipt>('POST', `/runs/${runId}/events`, { body, headers, timeoutMs: 5000 }).catch(() => undefined)
    if (answer?.status === 200) return answer.body
    if (answer && answer.status < 500) throw new Error(`an append was refused with ${answer.status}: ${answer.text}`)
    if (Date.now() > deadline) throw new Error(`no answer to an append: ${answer?.status} ${answer?.text}`)
    await delay(20)
  }
}

/** Writes batches until it is told to stop; some writers name each event, the others number their requests. */
async function write(client: Client, runId: string, writer: string, random: () => number, isOver: () => boolean, acknowledged: Written[]): Promise<void> {
  const numbersRequests = writer.startsWith('producer')
  let next = 0
  for (let request = 0; !isOver(); request++) {
    const names = Array.from({ length: 1 + Math.floor(random() * 20) }, () => `${writer}-${next++}`)
    const events = names.map((name) => ({
      ...(numbersRequests ? {} : { id: name, source: writer }),
      type: 'custom.emitted',
      data: { name, value: 'x'.repeat(50 + Math.floor(random() * 400)) },
    }))
    const headers: Record<string, string> = numbersRequests ? { 'producer-id': writer, 'producer-epoch': '0', 'producer-seq': String(request) } : {}
    const receipt = await untilAcknowledged(client, runId, events, headers)
    names.forEach((name, index) => {
      const seq = receipt.results?.[index]?.seqs?.[0]
      if (seq === undefined) throw new Error(`no seq for ${name} in ${JSON.stringify(receipt).slice(0, 500)}`)
      acknowledged.push({ name, seq })
    })
    // An agent does not write without a pause: the size of the log stays within what a test can read again.
    await delay(5 + random() * 20)
  }
}

/** Tails a run by its cursor, over as many connections as it takes, until the run has ended. @returns the seqs as they came */
async function tail(service: Service, runId: string): Promise<number[]> {
  const seqs: number[] = []
  let deadline = Date.now() + GIVE_UP_MS
  while (Date.now() < deadline) {
    const cursor = seqs.at(-1)
    const stream = await openStream(`${service.url}/runs/${runId}/stream`, {
      headers: cursor === undefined ? {} : { 'last-event-id': String(cursor) },
      timeoutMs: 3000,
    }).catch(() => undefined)
    if (stream?.status === 204) return seqs
    if (stream?.status === 200) {
      const end = await stream.until((frame) => frame.event === 'end', GIVE_UP_MS).catch(() => undefined)
      for (const frame of stream.frames) if (frame.event === 'canonical_event') seqs.push(Number(frame.id))
      if (seqs.at(-1) !== cursor) deadline = Date.now() + GIVE_UP_MS
      stream.close()
      if (end) return seqs
    } else if (stream && stream.status < 500) throw new Error(`a stream was refused with ${stream.status}: ${stream.text()}`)
    await delay(20)
  }
  throw new Error(`a reader of ${runId} did not come to the end; it has ${seqs.length} events`)
}

/** Polls pages after its cursor until it has seen the end of the run. */
async function poll(client: Client, runId: string): Promise<number[]> {
  const seqs: number[] = []
  let deadline = Date.now() + GIVE_UP_MS
  while (Date.now() < deadline) {
    const answer = await client
      .send<Page<CanonicalEvent>>('GET', `/runs/${runId}/events?afterSeq=${seqs.at(-1) ?? 0}&limit=200`, { timeoutMs: 3000 })
      .catch(() => undefined)
    if (answer && answer.status >= 400 && answer.status < 500) throw new Error(`a page was refused with ${answer.status}: ${answer.text}`)
    const events = answer?.status === 200 ? answer.body.data : []
    for (const event of events) seqs.push(event.seq)
    if (events.some((event) => event.type === 'run.completed')) return seqs
    if (events.length === 0) await delay(30)
    else deadline = Date.now() + GIVE_UP_MS
  }
  throw new Error(`a polling reader of ${runId} did not come to the end; it has ${seqs.length} events`)
}

async function crashes(t: Test, database: DatabaseKind): Promise<void> {
  const seed = Number(process.env.CRASH_SEED ?? Date.now() % 100_000)
  t.comment(`CRASH_SEED=${seed}`)
  const random = seededRandom(seed)
  const service = await startService(t, { database })
  const client = createClient(service.url)
  for (const id of RUNS) await client.createRun({ id })

  let isOver = false
  const acknowledged = new Map(RUNS.map((runId) => [runId, [] as Written[]]))
  const writers = RUNS.flatMap((runId) =>
    ['names-1', 'names-2', 'producer'].map((writer) => write(client, runId, writer, random, () => isOver, acknowledged.get(runId) ?? [])),
  )
  const readers = RUNS.flatMap((runId) => [tail(service, runId), tail(service, runId), poll(client, runId)])
  // A failure is seen where it is awaited, below; until then it must not end the process.
  for (const promise of [...writers, ...readers]) promise.catch(() => {})

  const total = () => [...acknowledged.values()].reduce((sum, list) => sum + list.length, 0)
  for (let kill = 0; kill < KILLS; kill++) {
    const before = total()
    const deadline = Date.now() + 20_000
    while (total() === before) {
      if (Date.now() > deadline) throw new Error(`nothing was acknowledged for 20 s after ${kill} kills:\n${service.logs().slice(-3000)}`)
      await delay(5)
    }
    await delay(random() * 500)
    await service.kill('SIGKILL')
    if (database === 'embedded' && kill === 4) {
      const postmasters = service.postmasters()
      t.equal(postmasters.length, 1, 'the postmaster outlives the service that was killed')
      for (const pid of postmasters) process.kill(pid, 'SIGKILL')
    }
    await service.restart()
  }
  const before = total()
  await eventually('50 more events', () => total() >= before + 50 || undefined, GIVE_UP_MS)
  isOver = true
  await Promise.all(writers)

  for (const runId of RUNS) {
    const written = acknowledged.get(runId) ?? []
    await untilAcknowledged(client, runId, { id: 'the-end', type: 'run.completed' }, {})
    const events = await client.events(runId)
    const seqs = events.map((event) => event.seq)
    t.same(seqs, seqsUpTo(events.length), `${runId}: the seqs are 1..${events.length}`)
    const names = new Map(events.filter((event) => event.type === 'custom.emitted').map((event) => [event.data.name, event.seq]))
    const lost = written.filter(({ name, seq }) => names.get(name) !== seq)
    t.same(lost, [], `${runId}: each of ${written.length} acknowledged events is at the seq that its receipt says`)
    t.equal(events.filter((event) => event.type === 'custom.emitted').length, written.length, `${runId}: and none is there twice`)
    const raw = await client.raw(runId)
    t.same(
      raw.map((event) => event.rawSeq),
      seqsUpTo((await client.get<RunRecord>(`/runs/${runId}`)).body.lastRawSeq),
      `${runId}: rawSeqs have no holes`,
    )
    t.same(
      raw.flatMap((event) => event.seqs),
      events.filter((event) => event.source.kind === 'agent').map((event) => event.seq),
      `${runId}: each of them is there with what became of it`,
    )
    const state = await client.state(runId)
    t.equal(state.version, events.length, `${runId}: the state has folded the whole log`)
    t.equal(state.state.run?.status, 'completed', `${runId}: and knows its end`)
    const rebuilt = await client.post(`/runs/${runId}/projection/rebuild`)
    t.equal(rebuilt.status < 300, true, `${runId}: rebuild answers ${rebuilt.status}`)
    t.same((await client.state(runId)).state, state.state, `${runId}: and is what a rebuild makes of the log`)
  }
  const lengths = new Map<string, number>()
  for (const runId of RUNS) lengths.set(runId, (await client.state(runId)).version)
  const read = await Promise.all(readers)
  read.forEach((seqs, index) => {
    const runId = RUNS[Math.floor(index / 3)] ?? ''
    t.same(seqs, seqsUpTo(lengths.get(runId) ?? -1), `reader ${index} of ${runId} has every event once, in order`)
  })
}

t.setTimeout(480_000)
t.test('nothing that was acknowledged is lost or doubled when the service is killed ten times, on the embedded database', { timeout: 230_000 }, async (t) => {
  await crashes(t, 'embedded')
})

t.test(
  'nothing that was acknowledged is lost or doubled when the service is killed ten times, on a Postgres server',
  { timeout: 230_000, skip: TEST_DATABASE_URL === undefined && NO_SERVER },
  async (t) => {
    await crashes(t, 'postgres')
  },
)
