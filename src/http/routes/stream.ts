/**
 * The tail: `GET /runs/:id/stream`, and `GET /stream?runs=a,b,c` for several runs on one connection.
 * All that can be refused is refused before the stream begins; from then on a fault is an `error` frame.
 */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Config } from '../../config.js'
import { RUN_ID_PATTERN } from '../../domain/ids.js'
import { isTerminal } from '../../domain/run.js'
import { RunplaneError, runNotFound } from '../../errors.js'
import type { LogReader, RunHead } from '../../log/read.js'
import { cursorBeyondHead, parseCompoundCursor, parseCursor } from '../../tail/cursor.js'
import type { Hub } from '../../tail/hub.js'
import { type EventStreamOptions, openEventStream, STREAM_HEADERS } from '../../tail/sse.js'
import { typesOf } from '../parts.js'
import { EventStreamAnswer, ManyStreamQuery, RunParams, StreamHeaders, StreamQuery } from '../schemas/reading.js'

/** The state as readers see it, with the seq that it has folded. */
export interface StateView {
  version: number
  schemaVersion: number
  /** Without line breaks. */
  stateJson: string
}

export interface StreamRoutesDeps {
  log: Pick<LogReader, 'findRun'>
  hub: Hub
  /** Never behind what was acknowledged before the call. */
  snapshotOf: (run: RunHead) => Promise<StateView>
  config: Pick<Config, 'STREAM_HEARTBEAT_MS' | 'STREAM_STALL_MS'>
}

const MAX_RUNS = 100
const runIdPattern = new RegExp(RUN_ID_PATTERN)

export function streamRoutes({ log, hub, snapshotOf, config }: StreamRoutesDeps): FastifyPluginAsyncTypebox {
  async function find(workspaceId: string, runId: string): Promise<RunHead> {
    const run = await log.findRun(workspaceId, runId)
    if (!run) throw runNotFound(runId)
    return run
  }

  function open(reply: FastifyReply, options: Pick<EventStreamOptions, 'runs' | 'isCompound' | 'snapshotJson'> & { heartbeatMs: number | undefined }) {
    hub.assertOpen()
    reply.hijack()
    const heartbeatMs = options.heartbeatMs ?? config.STREAM_HEARTBEAT_MS
    openEventStream({ ...options, hub, raw: reply.raw, headers: reply.getHeaders(), heartbeatMs, stallMs: config.STREAM_STALL_MS })
    return reply
  }

  return async (app) => {
    app.addHook('preClose', async () => hub.close())

    app.get(
      '/runs/:id/stream',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID', 'INVALID_STATE_TRANSITION'] },
        schema: {
          tags: ['tail'],
          operationId: 'streamRun',
          summary: 'Tail a run: every event after the cursor, once, in order; history first, then live',
          params: RunParams,
          querystring: StreamQuery,
          headers: StreamHeaders,
          response: { 200: EventStreamAnswer, 204: Type.Null({ description: 'The run has ended and the reader has all of it: do not reconnect.' }) },
        },
      },
      async (request, reply) => {
        const { afterSeq, heartbeatMs } = request.query
        const cursor = parseCursor(afterSeq, request.headers['last-event-id'])
        const run = await find(request.access.workspaceId, request.params.id)
        const follow = request.query.follow === 'true'
        if (cursor !== undefined && cursor > run.lastSeq) throw cursorBeyondHead(run.id, cursor, run.lastSeq)
        if (cursor === run.lastSeq && isTerminal(run.status) && !follow) return nothingMore(reply)
        if (request.method === 'HEAD') return headersOnly(reply)
        const snapshot = request.query.includeSnapshot === 'true' ? await snapshotOf(run) : undefined
        const snapshotJson = snapshot && `{"version":${snapshot.version},"schemaVersion":${snapshot.schemaVersion},"state":${snapshot.stateJson}}`
        const runs = [{ run, afterSeq: cursor ?? snapshot?.version ?? 0, toldSeq: cursor ?? 0, filter: filterOf(request.query), follow }]
        return open(reply, { runs, isCompound: false, snapshotJson, heartbeatMs })
      },
    )

    app.get(
      '/stream',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID', 'RUN_NOT_FOUND'] },
        schema: {
          tags: ['tail'],
          operationId: 'streamRuns',
          summary: 'Tail several runs on one connection; the id of a frame is a cursor for all of them',
          querystring: ManyStreamQuery,
          headers: StreamHeaders,
          response: { 200: EventStreamAnswer, 204: Type.Null({ description: 'All the runs have ended and the reader has all of them: do not reconnect.' }) },
        },
      },
      async (request, reply) => {
        const runIds = runIdsOf(request.query.runs)
        const cursors = parseCompoundCursor(runIds, request.query.cursor, request.headers['last-event-id'])
        const found = await Promise.all(runIds.map((runId) => find(request.access.workspaceId, runId)))
        const follow = request.query.follow === 'true'
        const runs = found.map((run) => ({ run, afterSeq: cursors.get(run.id) ?? 0, filter: filterOf(request.query), follow }))
        for (const { run, afterSeq } of runs) if (afterSeq > run.lastSeq) throw cursorBeyondHead(run.id, afterSeq, run.lastSeq)
        const isAllRead = runs.every(({ run, afterSeq }) => isTerminal(run.status) && cursors.has(run.id) && afterSeq === run.lastSeq)
        if (isAllRead && !follow) return nothingMore(reply)
        if (request.method === 'HEAD') return headersOnly(reply)
        return open(reply, { runs, isCompound: true, heartbeatMs: request.query.heartbeatMs })
      },
    )
  }
}

function headersOnly(reply: FastifyReply) {
  return reply.headers(STREAM_HEADERS).send()
}

/** Not to be cached: a retry of the run brings more. */
function nothingMore(reply: FastifyReply) {
  return reply.code(204).header('cache-control', STREAM_HEADERS['cache-control']).send(null)
}

function filterOf(query: Pick<StreamQuery, 'type' | 'types' | 'subject'>) {
  const types = typesOf(query)
  if (types === undefined && query.subject === undefined) return undefined
  return { types, subject: query.subject }
}

function runIdsOf(list: string): string[] {
  const runIds = [...new Set(list.split(','))]
  if (runIds.length > MAX_RUNS)
    throw new RunplaneError('VALIDATION_ERROR', `runs names ${runIds.length} runs; ${MAX_RUNS} fit on one stream. Open another one for the rest.`)
  for (const runId of runIds) {
    if (!runIdPattern.test(runId))
      throw new RunplaneError('VALIDATION_ERROR', `runs must be ids of runs, separated by commas; '${runId.slice(0, 128)}' is not one.`)
  }
  return runIds
}
