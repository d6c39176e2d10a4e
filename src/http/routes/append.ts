/**
 * `POST /runs/:id/events` and `POST /ingest/explain`: the wire's end of the append.
 *
 * A body is stored part by part (append-parts.ts), each in one transaction before the next is cut; a JSON body is one part. With an Idempotency-Key or the
 * headers of a producer, the log keeps a receipt of each part under the number of items before it, which says how many items it has, what became of them and whether
 * the body ended there. So a repeat may be cut in another way, or come in another form: what is known of it is skipped, receipt by receipt, and the rest is stored.
 */
import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Config } from '../../config.js'
import { RunplaneError, runNotFound, type StoredPart } from '../../errors.js'
import { explain } from '../../ingest/explain.js'
import type { Format } from '../../ingest/format.js'
import { type ItemLimits, type RawItem, splitJsonBody } from '../../ingest/json-items.js'
import type { Mask } from '../../ingest/mask.js'
import { formatFor, NDJSON_TYPES, normalizeItem } from '../../ingest/normalize.js'
import type { AppendItem, AppendOutcome, AppendRequest, ProducerHeaders } from '../../log/append-request.js'
import type { GroupCommit } from '../../log/group-commit.js'
import type { RunKeys } from '../../log/run-keys.js'
import type { Metrics } from '../../ops/metrics.js'
import { hashOf, jsonParts, ndjsonItems, ndjsonParts, type Part, type Parts } from '../append-parts.js'
import { createTally } from '../append-tally.js'
import { catalogued } from '../plugins/errors.js'
import { AppendAnswer, type AppendHeaders, AppendHeaders as AppendHeadersSchema, AppendQuery, EventsBody, ExplainAnswer } from '../schemas/append.js'
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
        headers: AppendHeadersSchema,
        response: {
          200: reference(AppendAnswer, 'What became of the items: all of them are stored'),
          207: reference(AppendAnswer, 'What became of the items: some were rejected, the others are stored'),
          422: reference(AppendAnswer, 'What became of the items: all of them were rejected, and nothing is stored'),
        },
      },
    },
    async (request, reply) => {
      const { access, headers, body } = request
      const runId = request.params.id
      const format = formatFor(request.headers['content-type'], request.query.format)
      const producer = producerOf(headers)
      const tally = createTally(/\breturn=minimal\b/i.test(headers.prefer ?? ''))
      const idempotencyKey = headers['idempotency-key']
      const ofProducer = producer && `p:${producer.id.length}:${producer.id}:${producer.epoch}:${producer.seq}`
      const ofKey = idempotencyKey === undefined ? undefined : `k:${idempotencyKey}`
      const name = ofProducer ?? ofKey
      const also = ofProducer && ofKey
      const ifMatch = headers['if-match']

      /** @param offset how many items of the body come before the part */
      const keyOf = (part: Part, offset: number): AppendRequest['requestKey'] =>
        name === undefined
          ? undefined
          : {
              key: `${name}:${offset}`,
              also: also && `${also}:${offset}`,
              hash: hashOf(part),
              formerHash: Buffer.isBuffer(body) ? () => sha256(body) : undefined,
              follows: offset > 0,
              goesOn: !part.end,
            }

      const requestOf = (part: Part, offset: number): AppendRequest => {
        // What only says that the body has ended stores no event, and needs neither the head nor the lease.
        const hasItems = part.items.length > 0
        return {
          runKey: '',
          receivedAt: new Date().toISOString(),
          items: part.items.map(({ item }) => item),
          // Of the parts after the first: nobody came between.
          ifMatch: hasItems && ifMatch !== undefined ? Math.max(Number(ifMatch.slice(1, -1)), tally.totals().lastSeq ?? 0) : undefined,
          producer,
          workerId: hasItems ? headers['x-worker-id'] : undefined,
          requestKey: keyOf(part, offset),
        }
      }

      /** @returns how many items the body has, as far as they are told apart */
      const append = async (parts: Parts, commit: GroupCommit['append']): Promise<number> => {
        let offset = 0
        let count: number | undefined
        try {
          for (;;) {
            const part = await parts.look(count)
            if (part.items.length === 0 && (offset === 0 || name === undefined)) return offset
            const outcome = await store(commit, access.workspaceId, runId, requestOf(part, offset))
            count = outcome.kind === 'recut' ? outcome.items : undefined
            if (outcome.kind === 'recut') continue
            const { results, ended = part.end } = outcome.receipt
            tally.add(outcome.receipt)
            let stored = 0
            for (const result of results) if (result.status === 'stored') stored++
            if (stored > 0) metrics.eventsAppended.inc({ format: format.name }, stored)
            offset += results.length
            if (!ended) parts.take(results.length)
            else {
              // What more a producer sends under a seq that has ended is ignored.
              for (let rest = part; !rest.end; rest = await parts.look()) parts.take(rest.items.length)
              return offset
            }
          }
        } catch (error) {
          // Nobody but us knows what is stored by now.
          throw offset === 0 ? error : refusedOnItsWay(catalogued(error, request), tally.totals())
        } finally {
          parts.close()
        }
      }

      const toItem = (raw: RawItem) => toAppendItem(mask.item(raw), format, access.keyName)
      if (Buffer.isBuffer(body)) await append(jsonParts(body, limits, toItem), log.append)
      else if (isStream(body)) {
        // The run is looked for first: nobody should send a gigabyte to learn that there is none.
        if ((await runKeys.find(access.workspaceId, runId)) === undefined) throw runNotFound(runId)
        const count = await append(ndjsonParts(body, limits, toItem), log.appendWhenRoom)
        if (count === 0) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send a JSON object a line.')
      } else throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send one JSON object, an array of objects, or {"events":[...]}.')

      if (producer) reply.header('producer-epoch', producer.epoch).header('producer-seq', producer.seq)
      // Not the reply, which is a promise of its end: to wait for that costs as much as to send it.
      reply.code(tally.status())
      return tally.answer(runId)
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

  /** Finds the request's `runKey`, and stores it. */
  async function store(commit: GroupCommit['append'], workspaceId: string, runId: string, request: AppendRequest): Promise<Stored> {
    // A key that is remembered may be of a run that was deleted and made anew: then it is looked up once more.
    for (let attempt = 0; attempt < 2; attempt++) {
      const found = runKeys.find(workspaceId, runId)
      const runKey = typeof found === 'string' ? found : await found
      if (runKey === undefined) break
      request.runKey = runKey
      const outcome = await commit(request)
      if (outcome.kind === 'done' || outcome.kind === 'recut') return outcome
      if (outcome.kind === 'refused') throw outcome.error
      runKeys.forget(workspaceId, runId)
    }
    throw runNotFound(runId)
  }
}

type Stored = Extract<AppendOutcome, { kind: 'done' | 'recut' }>

function refusedOnItsWay(error: RunplaneError, stored: StoredPart): RunplaneError {
  const { accepted, duplicates, rejected, lastSeq } = stored
  const taken = `Before that ${accepted} lines were stored, ${duplicates} were known and ${rejected} rejected${lastSeq === null ? '' : `, up to seq ${lastSeq}`}.`
  return new RunplaneError(error.code, `${error.message} ${taken}`, { errors: error.errors, headers: error.headers, stored, cause: error })
}

function toAppendItem(item: RawItem, format: Format, defaultSource: string): AppendItem {
  if (!item.ok) return { text: '', format: format.name, normalized: { ok: false, code: item.code, detail: item.detail } }
  return { text: item.text, format: format.name, normalized: normalizeItem(format, item.value, { defaultSource }) }
}

function producerOf(headers: AppendHeaders): ProducerHeaders | undefined {
  const { 'producer-id': id, 'producer-epoch': epoch, 'producer-seq': seq } = headers
  if (id === undefined && epoch === undefined && seq === undefined) return undefined
  const producer = { id: id ?? '', epoch: Number(epoch), seq: Number(seq) }
  if (id === undefined || epoch === undefined || seq === undefined || !Number.isSafeInteger(producer.epoch) || !Number.isSafeInteger(producer.seq)) {
    throw new RunplaneError(
      'VALIDATION_ERROR',
      'Producer-Id, Producer-Epoch and Producer-Seq go together; the last two are integers from 0 to 9007199254740991.',
    )
  }
  return producer
}

const sha256 = (body: Buffer) => createHash('sha256').update(body).digest('hex')

function isStream(body: unknown): body is IncomingMessage {
  return typeof body === 'object' && body !== null && 'pipe' in body
}
