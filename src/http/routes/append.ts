/**
 * `POST /runs/:id/events` and `POST /ingest/explain`: the wire's end of the append.
 * A JSON body is one slice, stored whole in one transaction; an NDJSON body is cut into slices as it arrives, each stored
 * before the next is read. Where repeats are known by their slices (Idempotency-Key, producer headers) they are cut by count and bytes
 * only, so that a repeat of the same body is cut the same; else a pause ends a slice as well.
 */
import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Config } from '../../config.js'
import { RunplaneError, runNotFound, type StoredPart } from '../../errors.js'
import { explain } from '../../ingest/explain.js'
import type { Format } from '../../ingest/format.js'
import { createNdjsonSplitter, type ItemLimits, type RawItem, splitJsonBody } from '../../ingest/json-items.js'
import type { Mask } from '../../ingest/mask.js'
import { formatFor, NDJSON_TYPES, normalizeItem } from '../../ingest/normalize.js'
import type { AppendItem, AppendReceipt, AppendRequest, ProducerHeaders } from '../../log/append-request.js'
import type { GroupCommit } from '../../log/group-commit.js'
import type { RunKeys } from '../../log/run-keys.js'
import type { Metrics } from '../../ops/metrics.js'
import { createTally } from '../append-tally.js'
import { catalogued } from '../plugins/errors.js'
import { AppendAnswer, type AppendHeaders, AppendHeaders as AppendHeadersSchema, AppendQuery, EventsBody, ExplainAnswer } from '../schemas/append.js'
import { reference } from '../schemas/reference.js'
import { RunParams } from '../schemas/run.js'

/** Bytes of one slice of an NDJSON body. */
const SLICE_BYTES = 1024 * 1024
/** A body that pauses this long is stored so far. */
const PAUSE_MS = 50

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
      let slice = 0

      const append = async (items: RawItem[], hash: () => string, commit = log.append): Promise<void> => {
        const appendItems = items.map((item) => toAppendItem(mask.item(item), format, access.keyName))
        const ofProducer = producer && `p:${producer.id.length}:${producer.id}:${producer.epoch}:${producer.seq}:${slice}`
        const ofKey = idempotencyKey && `k:${idempotencyKey}:${slice}`
        const key = ofProducer ?? ofKey
        const ifMatch = headers['if-match']
        const receipt = await store(commit, access.workspaceId, runId, {
          runKey: '',
          receivedAt: new Date().toISOString(),
          items: appendItems,
          // Of the slices after the first: nobody came between.
          ifMatch: ifMatch === undefined ? undefined : Math.max(Number(ifMatch.slice(1, -1)), tally.totals().lastSeq ?? 0),
          producer,
          workerId: headers['x-worker-id'],
          requestKey: key === undefined ? undefined : { key, also: ofProducer && ofKey, hash: hash() },
        })
        slice++
        tally.add(receipt)
        let stored = 0
        for (const result of receipt.results) if (result.status === 'stored') stored++
        if (stored > 0) metrics.eventsAppended.inc({ format: format.name }, stored)
      }

      if (Buffer.isBuffer(body)) await append(splitJsonBody(body, limits), () => sha256(body))
      else if (isStream(body)) {
        // The run is looked for first: nobody should send a gigabyte to learn that there is none.
        if ((await runKeys.find(access.workspaceId, runId)) === undefined) throw runNotFound(runId)
        // Repeats are known by their slices, which must then be cut the same.
        const prompt = !producer && idempotencyKey === undefined
        try {
          for await (const { items, hash } of slices(body, limits, prompt)) await append(items, hash, log.appendWhenRoom)
        } catch (error) {
          // Nobody but us knows what is stored by now.
          throw slice === 0 ? error : refusedOnItsWay(catalogued(error, request), tally.totals())
        }
        if (slice === 0) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send a JSON object a line.')
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
        for await (const slice of slices(body, limits, false)) {
          items.push(...slice.items)
          if (items.length > limits.maxEvents)
            throw new RunplaneError('PAYLOAD_TOO_LARGE', `At most ${limits.maxEvents} events are explained at once (MAX_BATCH_EVENTS).`)
        }
      }
      if (items.length === 0) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send what you would post to a run.')
      return explain(format, items.map(mask.item), { defaultSource: request.access.keyName })
    },
  )

  /** Finds the request's `runKey`, and stores it. */
  async function store(commit: GroupCommit['append'], workspaceId: string, runId: string, request: AppendRequest): Promise<AppendReceipt> {
    // A key that is remembered may be of a run that was deleted and made anew: then it is looked up once more.
    for (let attempt = 0; attempt < 2; attempt++) {
      const found = runKeys.find(workspaceId, runId)
      const runKey = typeof found === 'string' ? found : await found
      if (runKey === undefined) break
      request.runKey = runKey
      const outcome = await commit(request)
      if (outcome.kind === 'done') return outcome.receipt
      if (outcome.kind === 'refused') throw outcome.error
      runKeys.forget(workspaceId, runId)
    }
    throw runNotFound(runId)
  }
}

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

/**
 * Cuts a stream of lines into slices of at most `maxEvents` items, or SLICE_BYTES.
 * @param prompt cuts as well when nothing comes for PAUSE_MS, so that what an agent writes line by line is seen as it goes
 */
async function* slices(body: IncomingMessage, limits: ItemLimits, prompt: boolean): AsyncGenerator<{ items: RawItem[]; hash: () => string }> {
  const splitter = createNdjsonSplitter(limits)
  let items: RawItem[] = []
  let bytes = 0
  const cut = () => {
    const slice = items
    items = []
    bytes = 0
    return { items: slice, hash: () => hashOfItems(slice) }
  }
  const take = function* (found: RawItem[]) {
    for (const item of found) {
      items.push(item)
      bytes += item.ok ? item.text.length : 0
      if (items.length >= limits.maxEvents || bytes >= SLICE_BYTES) yield cut()
    }
  }
  const chunks: AsyncIterator<Buffer> = body.iterator({ destroyOnReturn: false })
  try {
    for (;;) {
      const next = chunks.next()
      // It may fail while nobody waits for it.
      next.catch(() => {})
      if (prompt && items.length > 0 && !(await settlesWithin(next, PAUSE_MS))) yield cut()
      const { done, value } = await next
      if (done) break
      yield* take(splitter.feed(value))
    }
  } finally {
    // What is refused on its way is read to its end all the same, and dropped: a client that writes all before it reads would wait for ever.
    const drop = () => body.resume()
    void chunks.return?.().then(drop, drop)
  }
  // A body that was cut off ends here as well: without its end, its last line is not one.
  if (!body.complete)
    throw new RunplaneError('VALIDATION_ERROR', 'The body broke off. Send it again, with event ids or an Idempotency-Key, so that nothing is stored twice.')
  yield* take(splitter.end())
  if (items.length > 0) yield cut()
}

async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), ms)
  })
  try {
    return await Promise.race([promise.then(() => true), late])
  } finally {
    clearTimeout(timer)
  }
}

function hashOfItems(items: RawItem[]): string {
  const hash = createHash('sha256')
  for (const item of items) hash.update(item.ok ? item.text : item.detail).update('\n')
  return hash.digest('hex')
}

const sha256 = (body: Buffer) => createHash('sha256').update(body).digest('hex')

function isStream(body: unknown): body is IncomingMessage {
  return typeof body === 'object' && body !== null && 'pipe' in body
}
