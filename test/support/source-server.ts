/** A source of events that does what a test tells it to, on the loopback. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { inspect } from 'node:util'
import { loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { DEFAULT_WORKSPACE_ID } from '../../src/domain/ids.js'
import { isTerminal, type RunStatus } from '../../src/domain/run.js'
import type { RunPlan } from '../../src/domain/run-request.js'
import { createGroupCommit, type GroupCommit } from '../../src/log/group-commit.js'
import { createStates } from '../../src/log/states.js'
import { createOutbound } from '../../src/ops/outbound.js'
import { type Attach, createAttach } from '../../src/runs/attach.js'
import { assertCallable } from '../../src/runs/attach-source.js'
import { createLifecycle, type Lifecycle } from '../../src/runs/lifecycle.js'
import { silent, type Teardown } from './database.js'
import { type CanonicalEvent, eventually } from './http.js'

export interface SourceServer {
  url: string
  /** Every request so far. */
  requests: IncomingMessage[]
  /** What is open now. */
  connections(): number
  /** Takes another turn from the next request on. */
  answer: (request: IncomingMessage, response: ServerResponse, count: number) => unknown
}

/** @param answer called for each request, with how many came before */
export async function sourceServer(t: Teardown, answer: SourceServer['answer'], port = 0): Promise<SourceServer> {
  const requests: IncomingMessage[] = []
  const sockets = new Set<Socket>()
  const server = createServer((request, response) => {
    requests.push(request)
    source.answer(request, response, requests.length - 1)
  })
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => {})
  })
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const source: SourceServer = { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/events`, requests, connections: () => sockets.size, answer }
  return source
}

export const sse = (response: ServerResponse) => response.writeHead(200, { 'content-type': 'text/event-stream' })
export const ndjson = (response: ServerResponse) => response.writeHead(200, { 'content-type': 'application/x-ndjson' })

/** The frame of a native event that has no id of its own. */
export const frame = (id: string | number | undefined, text: string) =>
  `${id === undefined ? '' : `id: ${id}\n`}data: ${JSON.stringify({ type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text } })}\n\n`
export const COMPLETED = 'id: end\ndata: {"type":"run.completed"}\n\n'

export interface AttachedInstance {
  attach: Attach
  log: GroupCommit
  lifecycle: Lifecycle
  stored: { format: string; events: number }[]
  warnings: string[]
  create(plan: RunPlan): Promise<void>
  close(): Promise<void>
}

/** What of an instance reads sources. They may be on the loopback, and are asked again quickly. */
export function attachedInstance(t: Teardown, database: Database, env: Record<string, string> = {}): AttachedInstance {
  const settings = {
    OUTBOUND_ALLOW_PRIVATE: 'true',
    SOURCE_RETRY_MS: '10',
    SOURCE_RETRY_MAX_MS: '50',
    RECOVERY_INTERVAL_MS: '100',
    SOURCE_LEASE_MS: '1000',
    ...env,
  }
  const config = loadConfig(settings, { envFile: '/nonexistent' })
  const { sql, connect } = database
  const outbound = createOutbound({ allowPrivate: config.OUTBOUND_ALLOW_PRIVATE })
  const warnings: string[] = []
  const stored: AttachedInstance['stored'] = []
  const logger = { ...silent, debug() {}, warn: (details: object, message: string) => warnings.push(`${message} ${inspect(details)}`) }
  const log = createGroupCommit({
    sql,
    connect,
    states: createStates({ maxRuns: 100 }),
    committers: 2,
    maxQueuedEvents: config.MAX_QUEUED_EVENTS,
    onCommitted: (batches) => {
      for (const batch of batches) attach.committed(batch)
    },
    log: silent,
  })
  const attach = createAttach({ sql, log, outbound, config, logger, onStored: (format, events) => stored.push({ format, events }) })
  const lifecycle = createLifecycle({ sql, log, maxEventBytes: config.MAX_EVENT_BYTES, assertPossible: (plan) => assertCallable(plan, outbound) })
  let closing: Promise<void> | undefined
  const close = () => {
    closing ??= (async () => {
      await attach.close()
      await log.close()
      await outbound.close()
    })()
    return closing
  }
  t.teardown(close)
  attach.start()
  return { attach, log, lifecycle, stored, warnings, close, create: async (plan) => void (await lifecycle.create(DEFAULT_WORKSPACE_ID, plan)) }
}

export interface RunRow {
  key: string
  status: string
  attempt: number
  error: { code?: string; message?: string } | null
  last_seq: number
}

export interface SourceRow {
  status: string
  cursor: string | null
  owner_id: string | null
  failures: number
  error: string | null
}

/** What the database holds of attached runs. */
export function attachedRuns({ sql }: Database) {
  const run = async (id: string): Promise<RunRow> => {
    const [row] = await sql<RunRow[]>`select key, status, attempt, error, last_seq from runs where id = ${id}`
    if (!row) throw new Error(`no run ${id}`)
    return row
  }
  const events = async (id: string): Promise<CanonicalEvent[]> => {
    const rows = await sql<{ event: CanonicalEvent }[]>`select event from run_events_canonical where run_key = ${(await run(id)).key} order by seq`
    return rows.map(({ event }) => event)
  }
  const source = async (id: string): Promise<SourceRow> => {
    const [row] = await sql<
      SourceRow[]
    >`select s.status, s.cursor, s.owner_id, s.failures, s.error from run_sources s join runs r on r.key = s.run_key where r.id = ${id}`
    if (!row) throw new Error(`${id} has no source`)
    return row
  }
  return {
    run,
    events,
    source,
    types: async (id: string) => (await events(id)).map((event) => event.type),
    /** The texts of the outputs, in order. */
    texts: async (id: string) => (await events(id)).filter((event) => event.type === 'step.output').map((event) => event.data.text),
    status: (id: string, wanted: string) => eventually(`${id} is ${wanted}`, async () => ((await run(id)).status === wanted ? true : undefined)),
    /** Waits until the run and its source have ended. */
    ended: async (id: string, timeoutMs = 20_000) => {
      await eventually(`the end of ${id}`, async () => (isTerminal((await run(id)).status as RunStatus) ? true : undefined), timeoutMs)
      await eventually(`the end of the source of ${id}`, async () => (['ended', 'failed'].includes((await source(id)).status) ? true : undefined))
      return run(id)
    },
  }
}
