/** Runs and events put straight into the database, and a small app with only the routes that read: the tail is tested without the append. */
import type { AddressInfo } from 'node:net'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import Fastify from 'fastify'
import type { Access } from '../../src/access/roles.js'
import type { Database } from '../../src/db/client.js'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../../src/domain/ids.js'
import type { RunStatus } from '../../src/domain/run.js'
import { errorsPlugin } from '../../src/http/plugins/errors.js'
import { eventsRoutes } from '../../src/http/routes/events.js'
import { type StateView, streamRoutes } from '../../src/http/routes/stream.js'
import { serverOptions } from '../../src/http/server-options.js'
import { NO_MASK } from '../../src/ingest/mask.js'
import type { CommittedBatch } from '../../src/log/committed.js'
import { createLogReader, type RunHead } from '../../src/log/read.js'
import { createHub, type HubOptions } from '../../src/tail/hub.js'
import { silent, type Teardown } from './database.js'

export interface TestEvent {
  type?: string
  subject?: string
  ts?: string
  data?: Record<string, unknown>
}

export interface TestRun {
  key: string
  id: string
  workspaceId: string
}

export async function insertRun(database: Database, id: string, workspaceId = DEFAULT_WORKSPACE_ID): Promise<TestRun> {
  const key = uuidv7()
  await database.sql`insert into runs (key, workspace_id, id, status, created_at, updated_at) values (${key}, ${workspaceId}, ${id}, 'running', now(), now())`
  return { key, id, workspaceId }
}

/** Appends as the real one does: numbered under the run's row lock, in one transaction. */
export async function append(database: Database, run: TestRun, events: TestEvent[], status: RunStatus = 'running'): Promise<CommittedBatch> {
  return database.sql.begin(async (tx) => {
    const [row] = await tx`select last_seq from runs where key = ${run.key} for update`
    const head = Number(row?.last_seq)
    const committed = events.map((event, index) => {
      const { type = 'custom.emitted', subject = `run/${run.id}`, ts = '2026-11-21T08:00:00.000Z', data = { name: 'x', value: index } } = event
      const seq = head + index + 1
      return { seq, type, subject, ts, json: JSON.stringify({ runId: run.id, seq, ts, type, data }) }
    })
    await tx`
      insert into run_events_canonical (run_key, seq, ts, type, subject, event)
      select ${run.key}::uuid, seq, ts, type, subject, json::json from json_to_recordset(${JSON.stringify(committed)}::text::json)
        as e(seq bigint, ts timestamptz, type text, subject text, json text)`
    await tx`update runs set last_seq = ${head + events.length}, status = ${status} where key = ${run.key}`
    return { runKey: run.key, runId: run.id, workspaceId: run.workspaceId, firstSeq: head + 1, lastSeq: head + events.length, status, events: committed }
  })
}

export interface ReadingOptions {
  stallMs?: number
  heartbeatMs?: number
  hub?: Partial<HubOptions>
  workspaceId?: string
  snapshotOf?: (run: RunHead) => Promise<StateView>
}

/** Listens on a free port of the loopback. */
export async function readingApp(t: Teardown, database: Database, options: ReadingOptions = {}) {
  const app = Fastify(serverOptions({ MAX_BODY_BYTES: 1_048_576, TRUST_PROXY: false }, silent, NO_MASK)).withTypeProvider<TypeBoxTypeProvider>()
  const log = createLogReader(database)
  const hub = createHub({ log, logger: silent, ...options.hub })
  await app.register(errorsPlugin)
  app.decorateRequest('access', { getter: (): Access => ({ workspaceId: options.workspaceId ?? DEFAULT_WORKSPACE_ID, role: 'guest', keyName: 'test' }) })
  const snapshotOf = options.snapshotOf ?? (async (run) => ({ version: run.lastSeq, schemaVersion: 1, stateJson: '{"run":{}}' }))
  await app.register(eventsRoutes({ log }))
  const config = { STREAM_HEARTBEAT_MS: options.heartbeatMs ?? 15_000, STREAM_STALL_MS: options.stallMs ?? 30_000 }
  await app.register(streamRoutes({ log, hub, snapshotOf, config }))
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => app.close())
  return { app, hub, log, url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` }
}
