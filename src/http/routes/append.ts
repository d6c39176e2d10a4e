/** `POST /runs/:id/events` and `POST /ingest/explain`: the wire's end of the append. What becomes of a body is in append-posting.ts. */
import type { IncomingMessage } from 'node:http'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Config } from '../../config.js'
import { RunplaneError, runNotFound } from '../../errors.js'
import { explain } from '../../ingest/explain.js'
import type { Format } from '../../ingest/format.js'
import { type ItemLimits, type RawItem, splitJsonBody } from '../../ingest/json-items.js'
import type { Mask } from '../../ingest/mask.js'
import { formatFor, NDJSON_TYPES, normalizeItem } from '../../ingest/normalize.js'
import type { AppendItem } from '../../log/append-request.js'
import type { GroupCommit } from '../../log/group-commit.js'
import type { RunKeys } from '../../log/run-keys.js'
import type { Metrics } from '../../ops/metrics.js'
import { jsonParts, ndjsonItems, ndjsonParts } from '../append-parts.js'
import { Posting } from '../append-posting.js'
import { AppendAnswer, AppendHeaders, AppendQuery, EventsBody, ExplainAnswer } from '../schemas/append.js'
import { reference } from '../schemas/reference.js'
import { RunParams } from '../schemas/run.js'

export interface AppendRoutesDeps {
  config: Pick<Config, 'MAX_EVENT_BYTES' | 'MAX_BATCH_EVENTS' | 'MAX_BODY_BYTES'>
  log: GroupCommit
  runKeys: RunKeys
  mask: Pick<Mask, 'item'>
  metrics: Pick<Metrics, 'eventsAppended'>
}

export const appendRoutes: FastifyPluginAsyncTypebox<AppendRoutesDeps> = async (app, { config, log, runKeys, mask, metrics }) => {
  const limits: ItemLimits = { maxEventBytes: config.MAX_EVENT_BYTES, maxEvents: config.MAX_BATCH_EVENTS }

  // Bodies are cut by their bytes, so nothing may parse them before.
  app.removeAllContentTypeParsers()
  app.addContentTypeParser([...NDJSON_TYPES], (_request, payload, done) => done(null, payload))
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))

  app.post(
    '/runs/:id/events',
    {
      config: {
        role: 'member',
        body: EventsBody,
        errors: ['PRODUCER_FENCED', 'PRODUCER_GAP', 'LEASE_LOST', 'IDEMPOTENCY_CONFLICT', 'INVALID_STATE_TRANSITION', 'PRECONDITION_FAILED'],
        headers: { 200: ['Producer-Epoch', 'Producer-Seq'], 207: ['Producer-Epoch', 'Producer-Seq'], 422: ['Producer-Epoch', 'Producer-Seq'] },
      },
      schema: {
        operationId: 'postEvents',
        tags: ['events'],
        summary: 'Post events to a run',
        description:
          'One event, an array, `{"events":[...]}`, or a line each (application/x-ndjson, of any length). Durable when answered. Formats: docs/FORMATS.md.',
        params: RunParams,
        querystring: AppendQuery,
        headers: AppendHeaders,
        response: {
          200: reference(AppendAnswer, 'What became of the items: all of them are stored'),
          207: reference(AppendAnswer, 'What became of the items: some were rejected, the others are stored'),
          422: reference(AppendAnswer, 'What became of the items: all of them were rejected, and nothing is stored'),
        },
      },
    },
    (request, reply) => {
      const { access, body } = request
      const format = formatFor(request.headers['content-type'], request.query.format)
      const posting = new Posting({ runKeys, metrics }, request, request.params, request.headers, format)
      const toItem = (raw: RawItem) => toAppendItem(mask.item(raw), format, access.keyName)
      if (Buffer.isBuffer(body)) return posting.store(jsonParts(body, limits, toItem), log.append, reply)
      if (isStream(body))
        return storeLines(request.params.id, access.workspaceId, () => posting.store(ndjsonParts(body, limits, toItem), log.appendWhenRoom, reply))
      throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send one JSON object, an array of objects, or {"events":[...]}.')
    },
  )

  app.post(
    '/ingest/explain',
    {
      config: { role: 'guest', body: EventsBody },
      schema: {
        operationId: 'explainIngest',
        tags: ['events'],
        summary: 'Show what a payload would become, without storing it',
        querystring: AppendQuery,
        response: { 200: reference(ExplainAnswer, 'What each item would become') },
      },
    },
    async (request) => {
      const { body } = request
      const format = formatFor(request.headers['content-type'], request.query.format)
      const items: RawItem[] = []
      if (Buffer.isBuffer(body)) items.push(...splitJsonBody(body, limits))
      else if (isStream(body)) {
        for await (const some of ndjsonItems(body, limits, config.MAX_BODY_BYTES)) {
          items.push(...some)
          if (items.length > limits.maxEvents)
            throw new RunplaneError('PAYLOAD_TOO_LARGE', `At most ${limits.maxEvents} events are explained at once (MAX_BATCH_EVENTS).`)
        }
      }
      if (items.length === 0) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send what you would post to a run.')
      return explain(format, items.map(mask.item), { defaultSource: request.access.keyName })
    },
  )

  /** The run is looked for first: nobody should send a gigabyte to learn that there is none. */
  async function storeLines<T>(runId: string, workspaceId: string, store: () => Promise<T>): Promise<T> {
    if ((await runKeys.find(workspaceId, runId)) === undefined) throw runNotFound(runId)
    return store()
  }
}

function toAppendItem(item: RawItem, format: Format, defaultSource: string): AppendItem {
  if (!item.ok) return { text: '', format: format.name, normalized: { ok: false, code: item.code, detail: item.detail } }
  return { text: item.text, format: format.name, normalized: normalizeItem(format, item.value, { defaultSource }) }
}

function isStream(body: unknown): body is IncomingMessage {
  return typeof body === 'object' && body !== null && 'pipe' in body
}
