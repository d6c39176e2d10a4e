/** What is asked of the log, and what it answers. */
import type { DraftEvent } from '../domain/canonical-event.js'
import type { Placement } from '../domain/placement.js'
import type { RunStatus } from '../domain/run.js'
import type { ErrorCode, RunplaneError } from '../errors.js'
import type { Normalized, Rejected } from '../ingest/format.js'
import type { FoldState } from '../projections/fold.js'
import type { KnownRow } from './states.js'

/** One raw event: its exact text, and what its format made of it. */
export interface AppendItem {
  text: string
  format: string
  normalized: Normalized | Rejected
}

/** How many canonical events an item becomes; one that is rejected counts as one, for it is carried along all the same. */
export const eventsOf = ({ normalized }: AppendItem): number => (normalized.ok ? normalized.events.length : 1)

/** A run's placement as its row has it, under its lock. */
export interface PlacedRun extends Placement {
  /** A claim is under way, which names this time; it takes a place of the queue until it is done or undone. */
  reservedUntil: string | null
  maxAttempts: number | null
  leaseMs: number | null
  /** The database's clock: what all instances agree on. RFC 3339. */
  now: string
}

export interface ProducerHeaders {
  id: string
  epoch: number
  seq: number
}

/** The columns of a new run. Times are RFC 3339 texts, JSON columns are JSON texts. */
export interface NewRun {
  key: string
  workspace_id: string
  id: string
  name: string | null
  kind: string | null
  queue: string | null
  priority: number
  available_at: string | null
  max_attempts: number | null
  lease_ms: number | null
  concurrency_key: string | null
  parent_run_id: string | null
  input: string | null
  metadata: string | null
  /** By which the overview groups and filters. */
  scenario?: string | null
  environment?: string | null
  tags: string[]
  descriptor: string | null
  /** Where the service reads the run's events itself. */
  source: string | null
  /** hex */
  request_hash: string
  idempotency_key: string | null
  created_at: string
}

export interface AppendRequest {
  runKey: string
  /** RFC 3339; what `receivedAt` says. */
  receivedAt: string
  items: AppendItem[]
  /** Makes the run first. Where its id or its idempotency key is taken, the outcome is `taken` and nothing is stored. */
  create?: NewRun
  /**
   * Events of the control plane itself: decided under the run's lock, on what the run is before `items`, and appended after them.
   * May throw a RunplaneError to refuse the whole request, and may return nothing.
   */
  decide?: (state: FoldState, place: PlacedRun) => DraftEvent[]
  /**
   * What the reservation `place.reservedUntil` has read of the run, for `decide`: while it stands and no event has come, the row says the same, so it
   * need not be read again.
   */
  reserved?: KnownRow & { place: PlacedRun }
  /** The request is refused with LEASE_LOST unless this worker holds the run, or all of it is stored already. */
  workerId?: string
  /** Where the run's source goes on, stored with the events that it brought; refused with LEASE_LOST unless `ownerId` still reads it. */
  source?: { ownerId: string; cursor: string | null }
  /** The request is refused unless the run's head is this seq. */
  ifMatch?: number
  producer?: ProducerHeaders
  requestKey?: RequestKey
}

/** Names the request among the repeats of itself; a part of a longer one by what comes before it. Without `follows` and `goesOn` it is a whole one. */
export interface RequestKey {
  key: string
  /** Names it once more: by its Idempotency-Key, where `key` is its place among those of its producer. */
  also?: string | undefined
  /** Of its items, hex SHA-256: tells whether it has the same content. */
  hash: string
  /** What was its hash before receipts told where a request ends. */
  formerHash?: (() => string) | undefined
  /** Items of the same request have come before. */
  follows?: boolean
  /** More of them may come. */
  goesOn?: boolean
}

export type ItemResult =
  | { index: number; status: 'stored' | 'duplicate'; seqs: number[]; rawSeq: number }
  | { index: number; status: 'rejected'; seqs: number[]; rawSeq: null; code: ErrorCode; detail: string }

export interface AppendReceipt {
  results: ItemResult[]
  /** The run's head after this request. */
  headSeq: number
  status: RunStatus
  /** Of a repeat: whether what is stored under its key ends with these results. */
  ended?: boolean
}

export type AppendOutcome =
  | { kind: 'done'; receipt: AppendReceipt }
  | { kind: 'refused'; error: RunplaneError }
  | { kind: 'taken' }
  | { kind: 'missing' }
  /** A part that is known, but was cut elsewhere: it is to be sent with so many items, or with all that there are. */
  | { kind: 'recut'; items: number }
