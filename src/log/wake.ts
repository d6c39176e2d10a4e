/**
 * Wake-ups across instances. After a commit an instance tells the others which runs have grown; they look in the log.
 * A wake-up is a hint: it is sent outside any transaction (NOTIFY inside one takes a global lock at its commit), one at a time with all runs that have gathered,
 * and a lost one costs time only, for every instance asks now and then for the heads of the runs that it watches, and whether they have failed.
 *
 * The channel is proven by an echo: each poll sends one, and where it does not come back the connection is made anew. That finds
 * what looks open but hears nothing as well, such as LISTEN through a transaction pooler. The echoes of the others tell that there are
 * others: an instance that hears of none for some polls is alone, and sends no wake-ups.
 *
 *   deaf --(listening)--> listening --(two echoes missing)--> deaf
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { BaseLogger } from 'pino'
import type { Database, Sql } from '../db/client.js'

const CHANNEL = 'runplane_wake'
/** A payload is less than 8,000 bytes (PostgreSQL manual, NOTIFY); a key and its comma are 37. */
const KEYS_PER_NOTIFY = 200
const MISSED_ECHOES = 2
/** Polls without an echo of another instance after which it counts as gone. */
const PEER_POLLS = 3
/** Each NOTIFY is a transaction of its own and wakes every instance: what commits meanwhile goes with the next one. */
const NOTIFY_INTERVAL_MS = 5

export interface WakeOptions {
  database: Pick<Database, 'sql' | 'connect'>
  /** Unlike any other instance's; without spaces. */
  instanceId: string
  logger: Pick<BaseLogger, 'warn'>
  /** Between two polls: how late a lost wake-up is at most. */
  pollMs: number
  /** For tests: the wake-ups that are lost. */
  isLost?: (runKey: string) => boolean
}

export interface WakeListener {
  /** The runs that are read here, with the highest seq that is known of each. */
  watched(): Map<string, number>
  /** The run's log has grown, or the run has failed or is gone. */
  wake(runKey: string): void
}

export type Wake = ReturnType<typeof createWake>

export function createWake({ database, instanceId, logger, pollMs, isLost = () => false }: WakeOptions) {
  const gathered = new Set<string>()
  let listener: WakeListener | undefined
  let client: Sql | undefined
  let sending: Promise<void> | undefined
  let polling: Promise<void> | undefined
  let pollTimer: NodeJS.Timeout | undefined
  /** Of the watched runs, those that had failed when they were last compared. */
  let failed = new Set<string>()
  let echoesMissing = 0
  let listening = false
  let closed = false
  /** Until when another instance counts as being there, in milliseconds of `Date.now()`. At first there may be any. */
  let peersUntilMs = Date.now() + PEER_POLLS * pollMs

  async function send(): Promise<void> {
    // The runs of one commit are published one after another, and go together.
    await Promise.resolve()
    while (gathered.size > 0) {
      const keys = Array.from(gathered).slice(0, KEYS_PER_NOTIFY)
      for (const key of keys) gathered.delete(key)
      try {
        await database.sql`select pg_notify(${CHANNEL}, ${`${instanceId} ${keys.join(',')}`})`
      } catch (error) {
        logger.warn({ err: error, runs: keys.length }, 'a wake-up could not be sent; the poll makes up for it')
      }
      if (!closed) await delay(NOTIFY_INTERVAL_MS)
    }
  }

  function receive(payload: string): void {
    const [sender, keys = '', theirPollMs] = payload.split(' ')
    if (sender === instanceId) {
      if (keys === 'echo') echoesMissing = 0
      return
    }
    peersUntilMs = Math.max(peersUntilMs, Date.now() + PEER_POLLS * Number(theirPollMs ?? pollMs))
    if (keys !== 'echo') for (const key of keys.split(',')) listener?.wake(key)
  }

  async function listen(): Promise<void> {
    const previous = client
    listening = false
    echoesMissing = 0
    const connection = database.connect({ max: 1 })
    client = connection
    await previous?.end({ timeout: 0 })
    // The driver listens again by itself where a connection breaks, and then calls the third argument again.
    await connection.listen(CHANNEL, receive, () => {
      if (client !== connection) return
      listening = true
      echoesMissing = 0
      // What was sent meanwhile is lost.
      compare().catch((error: unknown) => logger.warn({ err: error }, 'the heads of watched runs could not be read'))
    })
  }

  /** Wakes the runs whose head is not what is known here, and once those that are found to have failed: a run fails for its log without an event. */
  async function compare(): Promise<void> {
    const watched = listener?.watched()
    if (!watched || watched.size === 0) return
    const rows =
      await database.sql`select key, last_seq, status from runs where key = any(string_to_array(${Array.from(watched.keys()).join(',')}, ',')::uuid[])`
    const heads = new Map(rows.map((row) => [String(row.key), Number(row.last_seq)]))
    const failedBefore = failed
    failed = new Set(rows.flatMap((row) => (row.status === 'failed' ? [String(row.key)] : [])))
    for (const [key, known] of watched) {
      const hasGrown = (heads.get(key) ?? Number.POSITIVE_INFINITY) > known
      if (hasGrown || (failed.has(key) && !failedBefore.has(key))) listener?.wake(key)
    }
  }

  async function poll(): Promise<void> {
    try {
      await compare()
      if (!listening || echoesMissing >= MISSED_ECHOES) await listen()
      echoesMissing++
      await database.sql`select pg_notify(${CHANNEL}, ${`${instanceId} echo ${pollMs}`})`
    } catch (error) {
      if (!closed) logger.warn({ err: error }, 'the wake channel does not work; readers wait for the poll')
    }
    if (!closed) {
      pollTimer = setTimeout(() => {
        polling = poll()
      }, pollMs).unref()
    }
  }

  return {
    /** Listens and polls from now on. Resolves when the channel has been tried; it does not throw, for readers are served without it, only later. */
    async start(to: WakeListener): Promise<void> {
      listener = to
      polling = poll()
      await polling
    },

    /** Tells the other instances that a run has grown: call it after the commit. Wake-ups that come while one is being sent go together. */
    publish(runKey: string): void {
      if (closed || isLost(runKey) || (listening && Date.now() > peersUntilMs)) return
      gathered.add(runKey)
      sending ??= send().finally(() => {
        sending = undefined
      })
    },

    /** Whether wake-ups arrive: what is sent here comes back. */
    healthy: () => listening && echoesMissing < MISSED_ECHOES,

    async close(): Promise<void> {
      closed = true
      clearTimeout(pollTimer)
      await sending
      await client?.end({ timeout: 0 })
      await polling
      await client?.end({ timeout: 0 })
    },
  }
}
