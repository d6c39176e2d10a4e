/** Replays: a descriptor, the stream, and the state as it was at a seq. What can be refused is refused before the stream begins. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Config } from '../../config.js'
import { RunplaneError, runNotFound } from '../../errors.js'
import { DEFAULT_MAX_PAUSE_MS, openReplay, type ReplayMode } from '../../insight/replay.js'
import type { LogReader, RunHead } from '../../log/read.js'
import type { RunStates } from '../../runs/state.js'
import { cursorBeyondHead, parseCursor } from '../../tail/cursor.js'
import type { Hub } from '../../tail/hub.js'
import { STREAM_HEADERS } from '../../tail/sse.js'
import { isKnown } from '../etag.js'
import { StreamHeaders } from '../schemas/reading.js'
import { reference } from '../schemas/reference.js'
import { ReplayDescriptor, ReplayQuery, ReplayRequest, ReplayStreamAnswer } from '../schemas/replay.js'
import { RunParams, StateQuery } from '../schemas/run.js'
import { RunStateAnswer, stateText } from './runs.js'

export interface ReplayRoutesDeps {
  log: LogReader
  hub: Hub
  runStates: Pick<RunStates, 'read'>
  config: Pick<Config, 'STREAM_HEARTBEAT_MS' | 'STREAM_STALL_MS'>
}

interface Asked {
  mode?: ReplayMode
  speed?: number
  maxPauseMs?: number
  count?: number
  fromSeq?: number
  toSeq?: number
}

export function replayRoutes({ log, hub, runStates, config }: ReplayRoutesDeps): FastifyPluginAsyncTypebox {
  async function find(workspaceId: string, runId: string): Promise<RunHead> {
    const run = await log.findRun(workspaceId, runId)
    if (!run) throw runNotFound(runId)
    return run
  }

  /** What is to be replayed, with nothing left open. @throws CURSOR_INVALID, VALIDATION_ERROR */
  function planned(run: RunHead, asked: Asked) {
    const { mode = 'instant', speed = 1, maxPauseMs = DEFAULT_MAX_PAUSE_MS, count = 1, fromSeq = 1, toSeq = run.lastSeq } = asked
    if (fromSeq - 1 > run.lastSeq) throw cursorBeyondHead(run.id, fromSeq - 1, run.lastSeq)
    if (toSeq > run.lastSeq) throw cursorBeyondHead(run.id, toSeq, run.lastSeq)
    // From behind the head, and no end named: there is nothing yet.
    if (fromSeq > toSeq && asked.toSeq !== undefined)
      throw new RunplaneError('VALIDATION_ERROR', `fromSeq ${fromSeq} comes after toSeq ${toSeq}: there is nothing between.`)
    return { mode, speed, maxPauseMs, count, fromSeq, toSeq }
  }

  return async (app) => {
    for (const schema of [ReplayRequest, ReplayDescriptor, RunStateAnswer]) app.addSchema(schema)

    app.post(
      '/runs/:id/replay',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID'] },
        // All of it may be left out.
        preValidation: async (request) => {
          request.body ??= {}
        },
        schema: {
          tags: ['insight'],
          operationId: 'describeReplay',
          summary: 'Describe a replay: where its stream and its states are. Nothing is stored',
          params: RunParams,
          body: reference(ReplayRequest),
          response: { 200: reference(ReplayDescriptor, 'The replay') },
        },
      },
      async (request) => {
        const run = await find(request.access.workspaceId, request.params.id)
        const plan = planned(run, request.body)
        const query = new URLSearchParams(Object.entries(plan).map(([name, value]): [string, string] => [name, String(value)]))
        const path = `/runs/${encodeURIComponent(run.id)}/replay`
        return { runId: run.id, ...plan, status: run.status, headSeq: run.lastSeq, streamUrl: `${path}/stream?${query}`, stateUrl: `${path}/state` }
      },
    )

    app.get(
      '/runs/:id/replay/stream',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID'] },
        schema: {
          tags: ['insight'],
          operationId: 'streamReplay',
          summary: 'Replay a run, or a part of it: the frames of the tail, and an end',
          params: RunParams,
          querystring: ReplayQuery,
          headers: StreamHeaders,
          response: { 200: ReplayStreamAnswer, 204: Type.Null({ description: 'The reader has all of it: do not reconnect.' }) },
        },
      },
      async (request, reply) => {
        const { afterSeq, heartbeatMs } = request.query
        const cursor = parseCursor(afterSeq, request.headers['last-event-id']) ?? 0
        const run = await find(request.access.workspaceId, request.params.id)
        if (cursor > run.lastSeq) throw cursorBeyondHead(run.id, cursor, run.lastSeq)
        const { fromSeq, ...plan } = planned(run, request.query)
        const after = Math.max(cursor, fromSeq - 1)
        if (after >= plan.toSeq) return reply.code(204).send(null)
        if (request.method === 'HEAD') return headersOnly(reply)
        hub.assertOpen()
        reply.hijack()
        void openReplay({
          ...plan,
          run,
          afterSeq: after,
          hub,
          log,
          raw: reply.raw,
          headers: reply.getHeaders(),
          heartbeatMs: heartbeatMs ?? config.STREAM_HEARTBEAT_MS,
          stallMs: config.STREAM_STALL_MS,
          logger: request.log,
        })
        return reply
      },
    )

    app.get(
      '/runs/:id/replay/state',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID', 'INVALID_STATE_TRANSITION'], headers: { 200: ['ETag'], 304: ['ETag'] } },
        schema: {
          tags: ['insight'],
          operationId: 'getReplayState',
          summary: 'The state of a run as it was after an event',
          params: RunParams,
          querystring: StateQuery,
          headers: Type.Object({ 'if-none-match': Type.Optional(Type.String()) }),
          response: {
            200: Type.Unsafe<string>({ $ref: 'RunStateAnswer#', description: 'The state of the run as it was' }),
            304: Type.Unsafe<undefined>({ type: 'null', description: 'as it was' }),
          },
        },
      },
      async (request, reply) => {
        const run = await find(request.access.workspaceId, request.params.id)
        const answer = await runStates.read(run, request.query.seq)
        const etag = `"${answer.version}"`
        reply.header('etag', etag).header('cache-control', 'no-cache')
        if (isKnown(request.headers['if-none-match'], etag)) return reply.code(304).send(undefined)
        return reply.type('application/json; charset=utf-8').send(stateText(run.id, answer))
      },
    )
  }
}

function headersOnly(reply: FastifyReply) {
  return reply.headers(STREAM_HEADERS).send()
}
