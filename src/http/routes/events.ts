/**
 * Pages of the log: `GET /runs/:id/events`, `GET /runs/:id/raw`, `GET /events`.
 * Answers are put together from stored text: nothing of an event is parsed or written anew.
 */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import type { Access } from '../../access/roles.js'
import { toUtc } from '../../domain/time.js'
import { RunplaneError, runNotFound } from '../../errors.js'
import type { LogReader, PageRequest, RunHead } from '../../log/read.js'
import { parseSeq } from '../../tail/cursor.js'
import { typesOf } from '../parts.js'
import {
  DEFAULT_PAGE_LIMIT,
  EventsPage,
  EventsQuery,
  RawPage,
  RawQuery,
  READING_SCHEMAS,
  RunParams,
  WorkspaceEventsPage,
  WorkspaceEventsQuery,
} from '../schemas/reading.js'
import { reference } from '../schemas/reference.js'

export interface EventsRoutesDeps {
  log: LogReader
}

/** A page ends early where its events are large. */
const PAGE_BYTES = 8_388_608
const RUN_KEY = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

export function eventsRoutes({ log }: EventsRoutesDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    for (const schema of READING_SCHEMAS) if (schema.$id && !app.getSchema(schema.$id)) app.addSchema(schema)

    app.get(
      '/runs/:id/events',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID'] },
        schema: {
          tags: ['events'],
          operationId: 'listEvents',
          summary: 'The canonical events of a run, by seq',
          params: RunParams,
          querystring: EventsQuery,
          response: { 200: reference(EventsPage, 'A page of canonical events') },
        },
      },
      async (request, reply) => {
        const { afterSeq } = request.query
        const run = await findRun(request.access, request.params.id)
        return sendEvents(reply, run, afterSeq === undefined ? 0 : parseSeq('afterSeq', afterSeq), request.query)
      },
    )

    async function findRun({ workspaceId }: Access, runId: string) {
      const run = await log.findRun(workspaceId, runId)
      if (!run) throw runNotFound(runId)
      return run
    }

    /** @param nextCursor of the page after this seq, where one goes on by cursors too */
    async function sendEvents(
      reply: FastifyReply,
      run: RunHead,
      afterSeq: number,
      query: Filters & { limit?: number },
      nextCursor: (seq: number) => string = () => '',
    ) {
      const { limit = DEFAULT_PAGE_LIMIT } = query
      const page = await log.pageOfEvents({ runKey: run.key, afterSeq, limit, maxBytes: PAGE_BYTES, filter: filterOf(query) })
      if (!page) throw runNotFound(run.id)
      const { scannedTo, firstSeq, headSeq } = page
      const next = scannedTo < headSeq ? `"nextAfterSeq":${scannedTo},${nextCursor(scannedTo)}` : ''
      // Nothing is left out without a word: what was asked for may not be kept any more.
      const first = afterSeq < firstSeq - 1 ? `"firstSeq":${firstSeq},` : ''
      return sendText(reply, '{"data":[', page.items, `],${next}${first}"headSeq":${headSeq}}`)
    }

    app.get(
      '/runs/:id/raw',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID'] },
        schema: {
          tags: ['events'],
          operationId: 'listRawEvents',
          summary: 'What was sent to a run, to the byte, by rawSeq',
          params: RunParams,
          querystring: RawQuery,
          response: { 200: reference(RawPage, 'A page of raw events') },
        },
      },
      async (request, reply) => {
        const { afterSeq, afterRawSeq: cursor = afterSeq, limit = DEFAULT_PAGE_LIMIT } = request.query
        const afterRawSeq = cursor === undefined ? 0 : parseSeq('afterRawSeq', cursor)
        const run = await findRun(request.access, request.params.id)
        const { items, lastRawSeq } = await log.pageOfRaw({ runKey: run.key, afterRawSeq, limit, maxBytes: PAGE_BYTES })
        const headSeq = Math.max(run.lastRawSeq, items.length > 0 ? lastRawSeq : 0)
        const next = items.length > 0 && lastRawSeq < headSeq ? `"nextAfterSeq":${lastRawSeq},` : ''
        const first = afterRawSeq < run.firstRawSeq - 1 ? `"firstRawSeq":${run.firstRawSeq},` : ''
        return sendText(reply, '{"data":[', [Buffer.from(items.join(','))], `],${next}${first}"headSeq":${headSeq}}`)
      },
    )

    app.get(
      '/events',
      {
        config: { role: 'guest', errors: ['CURSOR_INVALID', 'RUN_NOT_FOUND'] },
        schema: {
          tags: ['events'],
          operationId: 'listWorkspaceEvents',
          summary: 'The canonical events of all runs of the workspace: the runs by age, the events of each by seq',
          description: 'For paging through what there is. Events that earlier runs get later are not behind the cursor: to follow runs, tail them.',
          querystring: WorkspaceEventsQuery,
          response: { 200: reference(WorkspaceEventsPage, 'A page of canonical events') },
        },
      },
      async (request, reply) => {
        const { cursor, limit = DEFAULT_PAGE_LIMIT, runId, afterSeq: seqText } = request.query
        const afterSeq = seqText === undefined ? 0 : parseSeq('afterSeq', seqText)
        const after = cursor === undefined ? undefined : decodeCursor(cursor)
        if (runId !== undefined) {
          const run = await findRun(request.access, runId)
          if (after && after.runKey !== run.key) throw new RunplaneError('CURSOR_INVALID', `cursor is not of run '${runId}'. Leave it out, or runId.`)
          return sendEvents(reply, run, after?.seq ?? afterSeq, request.query, (seq) => `"nextCursor":"${encodeCursor({ runKey: run.key, seq })}",`)
        }
        if (afterSeq > 0) {
          throw new RunplaneError(
            'VALIDATION_ERROR',
            'afterSeq is a seq of one run: name it with runId. To page through the events of all runs, send nextCursor as cursor.',
          )
        }
        const { workspaceId } = request.access
        const page = await log.pageOfWorkspace({ workspaceId, after, filter: filterOf(request.query), limit, maxBytes: PAGE_BYTES })
        return sendText(reply, '{"data":[', page.body ? [page.body] : [], page.next ? `],"nextCursor":"${encodeCursor(page.next)}"}` : ']}')
      },
    )
  }
}

const COMMA = Buffer.from(',')

function sendText(reply: FastifyReply, before: string, items: readonly Buffer[], after: string) {
  const parts = items.flatMap((item, index) => (index === 0 ? [item] : [COMMA, item]))
  return reply.type('application/json; charset=utf-8').send(Buffer.concat([Buffer.from(before), ...parts, Buffer.from(after)]))
}

type Filters = Pick<EventsQuery, 'type' | 'types' | 'subject' | 'afterTs' | 'beforeTs'>

function filterOf(query: Filters): NonNullable<PageRequest['filter']> {
  const time = (name: 'afterTs' | 'beforeTs') => {
    const text = query[name]
    if (text === undefined) return undefined
    const utc = toUtc(text)
    if (utc === undefined) throw new RunplaneError('VALIDATION_ERROR', `${name} must be an RFC 3339 time, such as 2026-11-21T08:00:00Z.`)
    return utc
  }
  return { types: typesOf(query), subject: query.subject, afterTs: time('afterTs'), beforeTs: time('beforeTs') }
}

function encodeCursor({ runKey, seq }: { runKey: string; seq: number }): string {
  return Buffer.from(`${runKey} ${seq}`).toString('base64url')
}

function decodeCursor(cursor: string): { runKey: string; seq: number } {
  const [runKey = '', seq = ''] = Buffer.from(cursor, 'base64url').toString('latin1').split(' ')
  if (!RUN_KEY.test(runKey) || !/^\d{1,15}$/.test(seq)) throw new RunplaneError('CURSOR_INVALID', 'cursor must be the nextCursor of a page before, as it is.')
  return { runKey, seq: Number(seq) }
}
