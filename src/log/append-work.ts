/**
 * The work of an append in memory: which items are new, which numbers they get, what they become; folded into the run's state.
 * What is to be stored is gathered in `Rows`; nothing here touches the database, and a refusal comes before anything is numbered.
 */
import { type CanonicalEvent, type DraftEvent, EVENT_SCHEMA_VERSION } from '../domain/canonical-event.js'
import { digestsOf } from '../domain/digest.js'
import { type Placement, placementAfter } from '../domain/placement.js'
import { assertHolder } from '../domain/queue.js'
import { isTerminal, type RunStatus } from '../domain/run.js'
import { RunplaneError } from '../errors.js'
import { isSameContent } from '../ingest/same-content.js'
import { subjectOf } from '../ingest/subject.js'
import { type FoldState, foldEvent } from '../projections/fold.js'
import { changesUsage } from '../projections/usage.js'
import type { AppendItem, AppendOutcome, AppendRequest, ItemResult, PlacedRun } from './append-request.js'
import type { CommittedBatch, CommittedEvent } from './committed.js'
import type { LogCorrupt, RowError } from './corrupt.js'
import { addRow, DEFAULT_FORMAT, type EventRows, noEventRows } from './event-rows.js'
import type { Told } from './states.js'

/** Who the control plane is in `source`. Its events have no raw event: their rawSeq is 0. */
const CONTROL_PLANE = 'runplane'

export interface RunRow {
  key: string
  id: string
  workspace_id: string
  last_seq: number
  last_raw_seq: number
  /** Of the transaction, where there is one. */
  xid?: string
  /** There is a webhook endpoint, of whichever workspace. */
  hooked: boolean
  /** Of a run that has failed. */
  error?: RowError | null
  /** Only where a request of the group asks for it. */
  place?: PlacedRun
  /** Undefined: not known. */
  told?: Told | undefined
}

export interface ProducerRow {
  run_key: string
  producer_id: string
  epoch: number
  last_seq: number
}

export interface ReceiptRow {
  run_key: string
  request_key: string
  body_hash: string
  receipt: string
}

/** A repeat within the transaction is found among these, a repeat of an earlier one comes from the database. */
export interface KnownEvent {
  text: string
  rawSeq: number
  seqs: number[]
}

/** One run while its requests are worked off. */
export interface RunWork {
  row: RunRow
  state: FoldState
  firstSeq: number
  lastSeq: number
  lastRawSeq: number
  /** What the row has to say for the state to be of use. */
  firstStatus: RunStatus
  status: RunStatus
  placement: Partial<Placement>
  /** The statement is to store nothing unless this worker holds the run. */
  holder?: string
  /** Nor unless this reservation of it stands. */
  reservedUntil?: string | null
  /** What the overview adds up may have changed. */
  usageChanged: boolean
  committed: CommittedEvent[]
  /** What its row says when it is stored. */
  told?: Told
}

export interface Rows {
  events: EventRows
  producers: Map<string, ProducerRow>
  changedProducers: Set<string>
  receipts: ReceiptRow[]
  /** Cursors of sources, by run. */
  cursors: Map<string, { cursor: string | null }>
  /** Runs that begin another attempt. */
  retried: Set<string>
}

/** What was found in the database for a group. */
export interface Found {
  /** Keys of the runs that the group has made. */
  created: Set<string>
  known: Map<string, KnownEvent>
  receipts: Map<string, ReceiptRow>
  /** Of sources: the instance that reads them. */
  owners: Map<string, string | null>
  /** Runs of which there is no state. */
  corrupt?: Map<string, LogCorrupt>
}

export function noRows(): Rows {
  return {
    events: noEventRows(),
    producers: new Map(),
    changedProducers: new Set(),
    receipts: [],
    cursors: new Map(),
    retried: new Set(),
  }
}

/** @param state of exactly `row.last_seq` */
export function beginWork(row: RunRow, state: FoldState): RunWork {
  const { last_seq: lastSeq, last_raw_seq: lastRawSeq } = row
  return {
    row,
    state,
    firstSeq: lastSeq + 1,
    lastSeq,
    lastRawSeq,
    firstStatus: state.folds.run.status,
    status: state.folds.run.status,
    placement: row.place ?? UNREAD,
    usageChanged: false,
    committed: [],
  }
}

/** The work knows where the run is placed, as long as the reservation stands. */
export function reserve(work: RunWork, place: PlacedRun): void {
  work.row.place = place
  work.placement = place
  work.reservedUntil = place.reservedUntil
}

/** Works off the requests in order, folding into the states of `works` and gathering in `out` what is to be stored. */
export function workOff(requests: readonly AppendRequest[], works: Map<string, RunWork>, found: Found, out: Rows) {
  const outcomes = requests.map((request): AppendOutcome => {
    const run = works.get(request.runKey)
    if (request.create && !found.created.has(request.runKey)) return { kind: 'taken' }
    const corrupt = found.corrupt?.get(request.runKey)
    if (corrupt) return { kind: 'refused', error: corrupt }
    if (!run) return { kind: 'missing' }
    const mark = markOf(run, out)
    try {
      return appendOne(request, run, found, out)
    } catch (error) {
      // A refusal comes before anything of its request is numbered; anything else spoils the state and ends the transaction.
      if (error instanceof RunplaneError && mark === markOf(run, out)) return { kind: 'refused', error }
      throw error
    }
  })
  const committed: CommittedBatch[] = []
  let events = 0
  for (const run of works.values()) {
    if (run.committed.length === 0) continue
    events += run.committed.length
    committed.push({
      runKey: run.row.key,
      runId: run.row.id,
      workspaceId: run.row.workspace_id,
      firstSeq: run.firstSeq,
      lastSeq: run.lastSeq,
      events: run.committed,
      status: run.status,
    })
  }
  return { outcomes, committed, events }
}

function markOf(run: RunWork, out: Rows): number {
  return run.lastSeq + run.lastRawSeq + out.receipts.length + out.changedProducers.size
}

/** Works off one request: the checks that may refuse it, then its items, then the control plane's own events. */
function appendOne(request: AppendRequest, run: RunWork, { known, receipts, owners }: Found, out: Rows): AppendOutcome {
  const repeat = findRepeat(request, run, receipts, out)
  if (repeat) return repeat
  // RFC 9110, section 13.1.1: what has been done already succeeds, whatever the head is by now.
  if (request.ifMatch !== undefined && request.ifMatch !== run.lastSeq && !isRepeat(request, known)) {
    throw new RunplaneError(
      'PRECONDITION_FAILED',
      `The run's head is ${run.lastSeq}, not ${request.ifMatch}. Read what came after ${request.ifMatch}, then decide again.`,
    )
  }
  // Of a holder that the statement makes sure of, no more is to be known, until something moves the run.
  const isSure = run.holder === request.workerId && run.placement === UNREAD
  if (request.workerId !== undefined && !isSure) {
    const place = placed(run)
    // What stores nothing needs no lease: of a run that its worker has ended, the answer may have been lost.
    if (!isRepeat(request, known)) assertHolder(request.workerId, { runId: run.row.id, status: run.status }, place, place.now)
  }
  if (request.source && owners.get(request.runKey) !== request.source.ownerId) {
    throw new RunplaneError('LEASE_LOST', `Another instance reads the source of run '${run.row.id}' now.`)
  }
  // Decided on the state before this request's own items: what refuses must refuse before anything is stored.
  const decided = request.decide?.(run.state, placed(run))
  const results = request.items.map((item, index) => appendItem(request, item, index, run, known, out))
  if (decided)
    for (const draft of decided)
      appendEvent(request, draft, { kind: 'control-plane', name: CONTROL_PLANE, format: 'native', rawType: draft.type, rawSeq: 0 }, run, out)
  run.status = run.state.folds.run.status
  if (request.source) out.cursors.set(request.runKey, request.source)
  recordRequest(request, { results, ended: !request.requestKey?.goesOn }, receipts, out)
  return { kind: 'done', receipt: { results, headSeq: run.lastSeq, status: run.status } }
}

/** What is stored under a request's key: what became of its items, and whether it ended with them. */
interface Recorded {
  results: ItemResult[]
  ended: boolean
}

function readRecorded(receipt: string): Recorded {
  const recorded = JSON.parse(receipt) as Recorded | ItemResult[]
  // Receipts were the results alone once: then the request is taken for a whole one.
  return Array.isArray(recorded) ? { results: recorded, ended: true } : recorded
}

/** Stores what a repeat of the request will be told by. */
function recordRequest({ runKey, requestKey, producer }: AppendRequest, recorded: Recorded, receipts: Map<string, ReceiptRow>, out: Rows): void {
  if (requestKey) {
    const { key: own, also, hash, follows, goesOn } = requestKey
    // A whole request of which nothing was taken may be mended and sent again under its key, but for the seq of a producer.
    const isKept = follows || goesOn || recorded.results.some((result) => result.status !== 'rejected')
    for (const key of [producer || isKept ? own : undefined, isKept ? also : undefined]) {
      if (key === undefined) continue
      const row: ReceiptRow = { run_key: runKey, request_key: key, body_hash: hash, receipt: JSON.stringify(recorded) }
      receipts.set(`${runKey} ${key}`, row)
      out.receipts.push(row)
    }
  }
  if (producer) {
    const key = `${runKey} ${producer.id}`
    out.producers.set(key, { run_key: runKey, producer_id: producer.id, epoch: producer.epoch, last_seq: producer.seq })
    out.changedProducers.add(key)
  }
}

export const needsPlace = (request: AppendRequest) => request.decide !== undefined || request.workerId !== undefined
/** The placement of a run that no request of the group asks for: only its end can change it then, which needs to know nothing. */
export const UNREAD: Partial<Placement> = {}

function placed(run: RunWork): PlacedRun {
  if (!run.row.place) throw new Error('the placement was not read')
  return { ...run.row.place, ...run.placement }
}

/** The answer to a request that was answered before; undefined for a new one. Throws where it may not be taken at all. */
function findRepeat(request: AppendRequest, run: RunWork, receipts: Map<string, ReceiptRow>, out: Rows): AppendOutcome | undefined {
  const { producer, requestKey, items } = request
  const stored = requestKey && receipts.get(`${request.runKey} ${requestKey.key}`)
  if (producer) {
    const last = out.producers.get(`${request.runKey} ${producer.id}`)
    if (last && producer.epoch < last.epoch) {
      throw new RunplaneError('PRODUCER_FENCED', `Producer '${producer.id}' is at epoch ${last.epoch}: a newer instance of it has taken over. Stop this one.`, {
        headers: { 'producer-epoch': String(last.epoch) },
      })
    }
    const expected = last && producer.epoch === last.epoch ? last.last_seq + 1 : 0
    if (producer.seq > expected) {
      throw new RunplaneError(
        'PRODUCER_GAP',
        `Producer '${producer.id}' sent seq ${producer.seq} of epoch ${producer.epoch}, but ${expected} comes next. Send what is missing first.`,
        {
          headers: { 'producer-expected-seq': String(expected), 'producer-received-seq': String(producer.seq) },
        },
      )
    }
    // Below the last one and without a receipt: a part of an upload that was cut off and then given up.
    if (!stored && producer.seq < expected - 1) {
      throw new RunplaneError('PRODUCER_GAP', `Producer '${producer.id}' has moved on to seq ${expected - 1}; seq ${producer.seq} was never sent whole.`, {
        headers: { 'producer-expected-seq': String(expected) },
      })
    }
  }
  const repeated = stored ?? (requestKey?.also === undefined ? undefined : receipts.get(`${request.runKey} ${requestKey.also}`))
  if (!repeated || !requestKey) return undefined
  const recorded = readRecorded(repeated.receipt)
  const { length } = recorded.results
  // A seq is a repeat whatever its body: a producer may write its events anew when it tries again.
  const isOfProducer = producer !== undefined && stored !== undefined
  if (!(isOfProducer && recorded.ended)) {
    // Of a key also whether the body ends where it did.
    const wanted = recorded.ended ? length + 1 : length
    if (items.length < wanted ? requestKey.goesOn : items.length > wanted && !recorded.ended) return { kind: 'recut', items: wanted }
  }
  const isSame = items.length === length && (repeated.body_hash === requestKey.hash || repeated.body_hash === requestKey.formerHash?.())
  if (!isOfProducer && !isSame)
    throw new RunplaneError('IDEMPOTENCY_CONFLICT', 'This Idempotency-Key was used for another body. Use a new key for new content.')
  const results = recorded.results.map((result): ItemResult => (result.status === 'stored' ? { ...result, status: 'duplicate' } : result))
  // The next seq of a producer whose content was stored before: it has moved on all the same.
  if (!stored) recordRequest({ ...request, requestKey: { ...requestKey, also: undefined } }, { ...recorded, results }, receipts, out)
  return { kind: 'done', receipt: { results, headSeq: run.lastSeq, status: run.status, ended: recorded.ended } }
}

/** All that is sent is there already, by event ids. */
function isRepeat({ runKey, items, decide }: AppendRequest, known: Map<string, KnownEvent>): boolean {
  if (decide !== undefined || items.length === 0) return false
  return items.every(({ normalized, text }) => {
    if (!normalized.ok || normalized.eventId === undefined) return false
    const before = known.get(knownKey(runKey, normalized.sourceName, normalized.eventId))
    return before !== undefined && isSameContent(before.text, text)
  })
}

function appendItem(request: AppendRequest, item: AppendItem, index: number, run: RunWork, known: Map<string, KnownEvent>, out: Rows): ItemResult {
  const { normalized } = item
  if (!normalized.ok) return { index, status: 'rejected', seqs: [], rawSeq: null, code: normalized.code, detail: normalized.detail }
  const { eventId, sourceKind, sourceName, rawType } = normalized
  const identity = eventId === undefined ? undefined : knownKey(request.runKey, sourceName, eventId)
  const before = identity === undefined ? undefined : known.get(identity)
  if (before) {
    if (isSameContent(before.text, item.text)) return { index, status: 'duplicate', seqs: before.seqs, rawSeq: before.rawSeq }
    return {
      index,
      status: 'rejected',
      seqs: [],
      rawSeq: null,
      code: 'IDEMPOTENCY_CONFLICT',
      detail: `Event id '${eventId}' of source '${sourceName}' was used for other content (rawSeq ${before.rawSeq}). Use a new id for a new event.`,
    }
  }
  const rawSeq = ++run.lastRawSeq
  const firstSeq = run.lastSeq + 1
  const source = { kind: sourceKind, name: sourceName, format: item.format, rawType, rawSeq, eventId }
  const [first] = normalized.events
  const count = normalized.events.length
  // What the row set knows by itself is left out: see event-rows.ts.
  const raw =
    `,"r":${rawSeq},"at":"${request.receivedAt}","s":${JSON.stringify(sourceName)}` +
    (item.format === DEFAULT_FORMAT ? '' : `,"fmt":"${item.format}"`) +
    (count === 1 ? '' : `,"f":${firstSeq},"c":${count}`) +
    (rawType === first?.type ? '' : `,"rt":${JSON.stringify(rawType)}`) +
    (eventId === undefined ? '' : `,"i":${JSON.stringify(eventId)}`)
  if (!first) addRow(out.events, `{"k":"${request.runKey}"${raw}}`, item.text, '')
  const seqs = normalized.events.map((draft) => appendEvent(request, draft, source, run, out, draft === first ? { columns: raw, text: item.text } : undefined))
  if (identity !== undefined) known.set(identity, { text: item.text, rawSeq, seqs })
  return { index, status: 'stored', seqs, rawSeq }
}

/**
 * Numbers, folds and encodes one event.
 * @param raw the raw event that is stored beside it
 * @returns its seq
 */
function appendEvent(
  request: AppendRequest,
  draft: DraftEvent,
  source: CanonicalEvent['source'],
  run: RunWork,
  out: Rows,
  raw = { columns: '', text: '' },
): number {
  const { state } = run
  const seq = ++run.lastSeq
  const subject = subjectOf(draft, run.row.id, source.rawSeq)
  const late = isTerminal(state.folds.run.status) && !(source.kind === 'control-plane' && draft.type === 'run.retry_scheduled')
  const event = {
    runId: run.row.id,
    seq,
    ts: draft.ts ?? request.receivedAt,
    receivedAt: request.receivedAt,
    type: draft.type,
    schemaVersion: EVENT_SCHEMA_VERSION,
    attempt: state.folds.run.attempt,
    subject,
    parent: draft.parent,
    stepId: draft.stepId,
    actor: draft.actor,
    source,
    trace: draft.trace,
    late: late ? true : undefined,
    data: draft.data,
    // A normaliser's draft fits the schema of its type (ingest/normalize.ts checks it), which the type cannot tell.
  } as CanonicalEvent
  const json = JSON.stringify(event)
  foldEvent(state, event)
  if (source.kind === 'control-plane' && draft.type === 'run.retry_scheduled') out.retried.add(request.runKey)
  run.placement = placementAfter(run.placement, event, state.folds.run.status)
  run.usageChanged ||= changesUsage(draft.type)
  const { shape, content } = digestsOf(event)
  const subjectText = `${subject.kind}/${subject.id}`
  run.committed.push({ seq, type: draft.type, subject: subjectText, json })
  const columns = `"n":${seq},"t":"${event.ts}","y":"${draft.type}","u":${JSON.stringify(subjectText)},"h":${shape},"d":${content}`
  addRow(out.events, `{"k":"${request.runKey}"${raw.columns},${columns}}`, raw.text, json)
  return seq
}

export function knownKey(runKey: string, source: string, eventId: string): string {
  return `${runKey} ${source.length} ${source} ${eventId}`
}
