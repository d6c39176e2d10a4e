/** The queue for workers (claim, heartbeat, release), and queues for those who look after them. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Sql } from '../../db/client.js'
import { RUN_STATUSES } from '../../domain/run.js'
import { STORABLE_PATTERN } from '../../domain/storable.js'
import { RunplaneError } from '../../errors.js'
import type { RunKeys } from '../../log/run-keys.js'
import type { Leases } from '../../runs/leases.js'
import type { Claims } from '../../runs/queue.js'
import { listQueues, QueueLimits, QueueRecord, setLimits } from '../../runs/queue-limits.js'
import { getRun, RunRecord } from '../../runs/record.js'
import { goneSignal } from '../gone.js'
import { reference } from '../schemas/reference.js'
import { RunParams } from '../schemas/run.js'
import { workerId as nameOfWorker } from '../schemas/worker.js'

export interface QueueRoutesDeps {
  sql: Sql
  claims: Claims
  leases: Leases
  runKeys: RunKeys
}

const closed = { additionalProperties: false } as const
const queue = Type.String({ minLength: 1, maxLength: 256, pattern: STORABLE_PATTERN })
const workerId = nameOfWorker('printable ASCII, unlike any other worker of the workspace, such as host and process')
const leaseMs = Type.Optional(Type.Integer({ minimum: 1000, maximum: 86_400_000, description: 'how long the run is held unless a heartbeat comes' }))

const ClaimBody = Type.Object(
  {
    queue: Type.Optional(queue),
    queues: Type.Optional(Type.Array(queue, { minItems: 1, maxItems: 100 })),
    workerId,
    leaseMs,
    waitMs: Type.Optional(Type.Integer({ minimum: 0, maximum: 60_000, default: 0, description: 'how long to wait for a run' })),
  },
  { ...closed, $id: 'ClaimRun' },
)
const HeartbeatBody = Type.Object({ workerId, leaseMs }, { ...closed, $id: 'HeartbeatRun' })
const ReleaseBody = Type.Object(
  { workerId, delayMs: Type.Optional(Type.Integer({ minimum: 0, maximum: 86_400_000, description: 'not to be claimed before' })) },
  { ...closed, $id: 'ReleaseRun' },
)
const HeartbeatAnswer = Type.Object(
  {
    leaseExpiresAt: Type.Union([Type.String({ format: 'date-time' }), Type.Null()], { description: 'null while the run is suspended' }),
    cancelRequested: Type.Boolean(),
    status: Type.Union(RUN_STATUSES.map((status) => Type.Literal(status))),
  },
  { description: 'The run is held on' },
)
const QueueParams = Type.Object({ name: queue })

export const queueRoutes: FastifyPluginAsyncTypebox<QueueRoutesDeps> = async (app, { sql, claims, leases, runKeys }) => {
  for (const schema of [RunRecord, ClaimBody, HeartbeatBody, ReleaseBody, QueueLimits, QueueRecord]) app.addSchema(schema)
  // Those that wait are answered before the server waits for its connections.
  app.addHook('preClose', async () => claims.stop())

  app.post(
    '/runs/claim',
    {
      config: { role: 'member' },
      schema: {
        operationId: 'claimRun',
        tags: ['queue'],
        summary: 'Claim the next run of one or several queues: by priority, then age',
        body: reference(ClaimBody),
        response: { 200: reference(RunRecord, 'The run, which is the worker’s now'), 204: Type.Null({ description: 'No run came in time' }) },
      },
    },
    async (request, reply) => {
      const { body } = request
      const { workspaceId } = request.access
      const queues = body.queues ?? (body.queue === undefined ? [] : [body.queue])
      if (queues.length === 0 || (body.queue !== undefined && body.queues !== undefined))
        throw new RunplaneError('VALIDATION_ERROR', 'Name the queue, or the queues, to claim from: one of the two fields.')
      const gone = goneSignal(reply)
      const run = await claims.claim({ workspaceId, queues, workerId: body.workerId, leaseMs: body.leaseMs, waitMs: body.waitMs ?? 0 }, gone)
      if (!run) return reply.code(204).send(null)
      const giveBack = () => {
        claims
          .giveBack(workspaceId, run.runId, body.workerId)
          .catch((error: unknown) => request.log.warn({ err: error, runId: run.runId }, 'a run whose claimer is gone waits for the end of its lease'))
      }
      if (gone.aborted) giveBack()
      else gone.addEventListener('abort', giveBack, { once: true })
      return run
    },
  )

  app.post(
    '/runs/:id/heartbeat',
    {
      config: { role: 'member', errors: ['LEASE_LOST'] },
      schema: {
        operationId: 'heartbeatRun',
        tags: ['queue'],
        summary: 'Go on holding a run; 409 LEASE_LOST when it is lost',
        params: RunParams,
        body: reference(HeartbeatBody),
        response: { 200: HeartbeatAnswer },
      },
    },
    async (request) => leases.heartbeat(request.access.workspaceId, request.params.id, request.body.workerId, request.body.leaseMs),
  )

  app.post(
    '/runs/:id/release',
    {
      config: { role: 'member', errors: ['LEASE_LOST', 'INVALID_STATE_TRANSITION'] },
      schema: {
        operationId: 'releaseRun',
        tags: ['queue'],
        summary: 'Give a run back to its queue, as the same attempt',
        params: RunParams,
        body: reference(ReleaseBody),
        response: { 200: reference(RunRecord, 'The run, in its queue again') },
      },
    },
    async (request) => {
      const { workspaceId } = request.access
      const { id } = request.params
      await runKeys.use(workspaceId, id, (key) => leases.release({ key, id }, request.body.workerId, request.body.delayMs))
      return getRun(sql, workspaceId, id)
    },
  )

  app.get(
    '/queues',
    {
      config: { role: 'guest' },
      schema: {
        operationId: 'listQueues',
        tags: ['queue'],
        summary: 'The queues that have runs or limits',
        response: { 200: Type.Object({ data: Type.Array(reference(QueueRecord)) }, { description: 'The queues' }) },
      },
    },
    async (request) => ({ data: await listQueues(sql, request.access.workspaceId) }),
  )

  app.get(
    '/queues/:name',
    {
      config: { role: 'guest' },
      schema: { operationId: 'getQueue', tags: ['queue'], summary: 'A queue', params: QueueParams, response: { 200: reference(QueueRecord, 'The queue') } },
    },
    async (request) => queueNamed(request.access.workspaceId, request.params.name),
  )

  app.put(
    '/queues/:name',
    {
      config: { role: 'admin' },
      schema: {
        operationId: 'putQueue',
        tags: ['queue'],
        summary: 'Set the limits of a queue, all of them; pause it, or let it go on',
        params: QueueParams,
        body: reference(QueueLimits),
        response: { 200: reference(QueueRecord, 'The queue, with its limits as they are now') },
      },
    },
    async (request) => {
      const { workspaceId } = request.access
      await setLimits(sql, workspaceId, request.params.name, request.body)
      claims.arrived(workspaceId, request.params.name)
      return queueNamed(workspaceId, request.params.name)
    },
  )

  async function queueNamed(workspaceId: string, name: string): Promise<QueueRecord> {
    const [found] = await listQueues(sql, workspaceId, name)
    // A queue needs no making: one that nobody has used yet is empty.
    return found ?? { name, concurrency: null, keyConcurrency: null, paused: false, depth: 0, delayed: 0, running: 0, oldest: null }
  }
}
