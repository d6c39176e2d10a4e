/**
 * One body on its way into the log: what `POST /runs/:id/events` does with the parts of it (append-parts.ts), each of which is stored in one transaction before the next is cut.
 *
 * With an Idempotency-Key or the headers of a producer, the log keeps a receipt of each part under the number of items before it, which says how many items it has, what
 * became of them and whether the body ended there. So a repeat may be cut in another way, or come in another form: what is known of it is skipped, receipt by
 * receipt, and the rest is stored.
 */
import { createHash } from 'node:crypto'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { RunplaneError, runNotFound, type StoredPart } from '../errors.js'
import type { Format } from '../ingest/format.js'
import type { AppendReceipt, AppendRequest, ProducerHeaders, RequestKey } from '../log/append-request.js'
import type { GroupCommit } from '../log/group-commit.js'
import type { RunKeys } from '../log/run-keys.js'
import type { Metrics } from '../ops/metrics.js'
import { hashOf, type Part, type Parts } from './append-parts.js'
import { Tally } from './append-tally.js'
import { catalogued } from './plugins/errors.js'
import type { AppendAnswer, AppendHeaders } from './schemas/append.js'

export interface PostingDeps {
  runKeys: RunKeys
  metrics: Pick<Metrics, 'eventsAppended'>
}

export class Posting {
  private readonly runId: string
  private readonly workspaceId: string
  private readonly producer: ProducerHeaders | undefined
  /** Of the parts: by its producer, else by its Idempotency-Key. */
  private readonly key: string | undefined
  /** The other one, where it has both. */
  private readonly also: string | undefined
  private readonly tally: Tally
  /** Items of the body of which it is known what became of them. */
  private offset = 0

  /** @throws RunplaneError VALIDATION_ERROR for headers that do not go together */
  constructor(
    private readonly deps: PostingDeps,
    private readonly request: FastifyRequest,
    params: { id: string },
    private readonly headers: AppendHeaders,
    private readonly format: Format,
  ) {
    this.runId = params.id
    this.workspaceId = request.access.workspaceId
    const producer = producerOf(headers)
    this.producer = producer
    const idempotencyKey = headers['idempotency-key']
    const ofKey = idempotencyKey === undefined ? undefined : `k:${idempotencyKey}`
    this.key = producer ? `p:${producer.id.length}:${producer.id}:${producer.epoch}:${producer.seq}` : ofKey
    this.also = producer && ofKey
    this.tally = new Tally(headers.prefer !== undefined && /\breturn=minimal\b/i.test(headers.prefer))
  }

  /**
   * Stores the parts, one after the other. Waits only where there is something to wait for: a body of one event for its commit, and for nothing else.
   * @throws RunplaneError which says what was stored before
   */
  async store(parts: Parts, commit: GroupCommit['append'], reply: FastifyReply): Promise<AppendAnswer> {
    const { runKeys } = this.deps
    try {
      let count: number | undefined
      let isSecondLook = false
      for (;;) {
        const looked = parts.look(count)
        const part = looked instanceof Promise ? await looked : looked
        if (part.items.length === 0 && (this.offset === 0 || this.key === undefined)) break
        const found = runKeys.find(this.workspaceId, this.runId)
        const runKey = typeof found === 'string' ? found : await found
        if (runKey === undefined) throw runNotFound(this.runId)
        const outcome = await commit(this.requestOf(part, runKey))
        if (outcome.kind === 'refused') throw outcome.error
        if (outcome.kind === 'recut') {
          count = outcome.items
          continue
        }
        if (outcome.kind !== 'done') {
          // A key that is remembered may be of a run that was deleted and made anew: then it is looked up once more.
          if (isSecondLook) throw runNotFound(this.runId)
          isSecondLook = true
          runKeys.forget(this.workspaceId, this.runId)
          continue
        }
        count = undefined
        isSecondLook = false
        const { receipt } = outcome
        this.note(receipt)
        if (receipt.ended ?? part.end) {
          // What more a producer sends under a seq that has ended is ignored.
          for (let rest = part; !rest.end; rest = await parts.look()) parts.take(rest.items.length)
          break
        }
        parts.take(receipt.results.length)
      }
    } catch (error) {
      // Nobody but us knows what is stored by now.
      throw this.offset === 0 ? error : refusedOnItsWay(catalogued(error, this.request), this.tally.totals())
    } finally {
      parts.close()
    }
    if (this.offset === 0) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send a JSON object a line.')
    if (this.producer) reply.header('producer-epoch', this.producer.epoch).header('producer-seq', this.producer.seq)
    reply.code(this.tally.status())
    return this.tally.answer(this.runId)
  }

  private requestOf(part: Part, runKey: string): AppendRequest {
    const { 'if-match': ifMatch, 'x-worker-id': workerId } = this.headers
    // What only says that the body has ended stores no event, and needs neither the head nor the lease.
    const hasItems = part.items.length > 0
    return {
      runKey,
      receivedAt: new Date().toISOString(),
      items: part.items.map(({ item }) => item),
      // Of the parts after the first: nobody came between.
      ifMatch: hasItems && ifMatch !== undefined ? Math.max(Number(ifMatch.slice(1, -1)), this.tally.totals().lastSeq ?? 0) : undefined,
      producer: this.producer,
      workerId: hasItems ? workerId : undefined,
      requestKey: this.key === undefined ? undefined : this.requestKeyOf(part, this.key),
    }
  }

  private requestKeyOf(part: Part, key: string): RequestKey {
    const { also, offset } = this
    const { body } = this.request
    return {
      key: `${key}:${offset}`,
      also: also && `${also}:${offset}`,
      hash: hashOf(part),
      formerHash: Buffer.isBuffer(body) ? () => createHash('sha256').update(body).digest('hex') : undefined,
      follows: offset > 0,
      goesOn: !part.end,
    }
  }

  private note(receipt: AppendReceipt): void {
    this.tally.add(receipt)
    let stored = 0
    for (const result of receipt.results) if (result.status === 'stored') stored++
    if (stored > 0) this.deps.metrics.eventsAppended.inc({ format: this.format.name }, stored)
    this.offset += receipt.results.length
  }
}

function refusedOnItsWay(error: RunplaneError, stored: StoredPart): RunplaneError {
  const { accepted, duplicates, rejected, lastSeq } = stored
  const taken = `Before that ${accepted} lines were stored, ${duplicates} were known and ${rejected} rejected${lastSeq === null ? '' : `, up to seq ${lastSeq}`}.`
  return new RunplaneError(error.code, `${error.message} ${taken}`, { errors: error.errors, headers: error.headers, stored, cause: error })
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
