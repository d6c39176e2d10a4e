/**
 * Webhooks when things die: the service is killed in the middle, receivers fail at random, two instances share the work. Each event is
 * delivered at least once, and each endpoint sees the events of a run in their order. WEBHOOK_SEED repeats a run's decisions.
 */
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { type Client, createClient, eventually, type Page, seqsUpTo } from '../support/http.js'
import { seededRandom } from '../support/proxy.js'
import { type DatabaseKind, NO_SERVER, type Service, startService, TEST_DATABASE_URL } from '../support/service.js'
import { type Answer, OK, type Receiver, seqsByRun, startReceiver } from '../support/webhook-receiver.js'

const RUNS = Array.from({ length: 12 }, (_, index) => `run-${index}`)
const GIVE_UP_MS = 100_000
const ENV = { OUTBOUND_ALLOW_PRIVATE: 'true', WEBHOOK_POLL_MS: '100', WEBHOOK_TIMEOUT_MS: '500' }

async function untilStored(client: () => Client, runId: string, body: object): Promise<void> {
  await eventually(
    `an append to ${runId}`,
    async () => {
      const answer = await client()
        .append(runId, body)
        .catch(() => undefined)
      if (answer && answer.status >= 400 && answer.status < 500) throw new Error(answer.text)
      return answer?.status === 200 ? true : undefined
    },
    GIVE_UP_MS,
  )
}

async function webhookFor(client: Client, receiver: Receiver): Promise<string> {
  const answer = await client.post<{ id: string; secret: string }>('/webhooks', { url: receiver.url })
  if (answer.status !== 201) throw new Error(answer.text)
  receiver.secret = answer.body.secret
  return answer.body.id
}

/** Fails as receivers do, until it is told to be good. */
function troubled(random: () => number): { good: boolean; behave: Parameters<typeof startReceiver>[1] } {
  const state = {
    good: false,
    behave: async (...[, response]: Parameters<NonNullable<Parameters<typeof startReceiver>[1]>>): Promise<Answer | undefined> => {
      if (random() < 0.3) await delay(random() * 40)
      const luck = state.good ? 1 : random()
      if (luck < 0.02) return { status: 500 }
      if (luck < 0.03) return { status: 503 }
      if (luck < 0.05) response.destroy()
      else if (luck > 0.055) return OK
      // And one in two hundred never answers.
      return undefined
    },
  }
  return state
}

/** What each receiver has to have in the end: every event of the log at least once, verified, and in order. */
async function assertDelivered(t: Test, client: Client, receivers: Receiver[], webhookIds: string[]): Promise<void> {
  const heads = new Map<string, number>()
  for (const id of RUNS) heads.set(id, (await client.state(id)).version)
  const total = [...heads.values()].reduce((sum, head) => sum + head, 0)
  for (const [index, receiver] of receivers.entries()) {
    await eventually(
      `receiver ${index} to have all ${total}`,
      () => ([...seqsByRun(receiver.accepted).values()].reduce((sum, seqs) => sum + seqs.length, 0) === total ? true : undefined),
      GIVE_UP_MS,
    )
    const byRun = seqsByRun(receiver.accepted)
    for (const id of RUNS) t.same(byRun.get(id), seqsUpTo(heads.get(id) ?? -1), `receiver ${index} has ${id} in order`)
    t.ok(
      receiver.received.every(({ verified }) => verified),
      `receiver ${index} verified ${receiver.received.length} requests`,
    )
    const ids = new Map<string, string>()
    for (const { id, data } of receiver.received) {
      const key = `${data.runId} ${data.seq}`
      if ((ids.get(key) ?? id) !== id) t.fail(`${key} came with two ids`)
      ids.set(key, id)
    }
    await eventually(
      'nothing to be left',
      async () => {
        const left = await client.get<Page<object>>(`/webhooks/${webhookIds[index]}/deliveries?status=pending`)
        return left.body.data.length === 0 ? true : undefined
      },
      GIVE_UP_MS,
    )
  }
}

async function killed(t: Test, database: DatabaseKind): Promise<void> {
  const seed = Number(process.env.WEBHOOK_SEED ?? Date.now() % 100_000)
  t.comment(`WEBHOOK_SEED=${seed}`)
  const random = seededRandom(seed)
  const services: Service[] = [await startService(t, { database, env: ENV })]
  const [first] = services
  if (database === 'postgres' && first) services.push(await startService(t, { database, env: ENV, sharing: first }))
  const clients = services.map(({ url }) => createClient(url))
  const someClient = () => clients[Math.floor(random() * clients.length)] ?? createClient('')
  const troubles = [troubled(random), troubled(random)]
  const receivers = await Promise.all(troubles.map(({ behave }) => startReceiver(t, behave)))
  const webhookIds: string[] = []
  for (const receiver of receivers) webhookIds.push(await webhookFor(someClient(), receiver))
  for (const id of RUNS) await someClient().createRun({ id })

  let isOver = false
  const writers = RUNS.map(async (id) => {
    for (let n = 0; !isOver; n++) {
      // Named, so that a repeat after a crash is no second event.
      await untilStored(someClient, id, { id: `${id}-${n}`, source: 'writer', type: 'custom.emitted', data: { name: 'n', value: n } })
      await delay(100 + random() * 400)
    }
  })
  for (const writer of writers) writer.catch(() => {})
  for (let kill = 0; kill < 4; kill++) {
    const before = receivers[0]?.received.length ?? 0
    await eventually('something to arrive', () => ((receivers[0]?.received.length ?? 0) > before + 5 ? true : undefined), GIVE_UP_MS)
    await delay(random() * 300)
    const service = services[kill % services.length]
    await service?.kill('SIGKILL')
    await service?.restart()
  }
  isOver = true
  await Promise.all(writers)
  for (const trouble of troubles) trouble.good = true
  const client = clients[0]
  if (client) await assertDelivered(t, client, receivers, webhookIds)
  const repeats = receivers.map(({ accepted }) => accepted.length - new Set(accepted.map(({ id }) => id)).size)
  t.comment(`accepted more than once: ${repeats.join(', ')}`)
}

t.test('nothing is lost and nothing out of order when the service is killed while it sends, on the embedded database', { timeout: 200_000 }, (t) =>
  killed(t, 'embedded'),
)

t.test('nor when two instances send, and each is killed, on a Postgres server', { timeout: 200_000, skip: TEST_DATABASE_URL === undefined && NO_SERVER }, (t) =>
  killed(t, 'postgres'),
)
