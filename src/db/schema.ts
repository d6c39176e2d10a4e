/**
 * The one schema, for the embedded database and a server alike. drizzle-kit makes the migrations from it.
 *
 * A run has two ids: `id`, which clients see and may choose, unique in its workspace; and `key`, a UUIDv7 of ours that
 * every event table starts with: time-ordered, half the size, and the same for no two workspaces.
 * Events are `json`, not `jsonb`: the text of a canonical event is made once and is the same in a page, a frame and a bundle.
 */
import { sql } from 'drizzle-orm'
import {
  bigint,
  boolean,
  customType,
  doublePrecision,
  index,
  integer,
  json,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core'

const bytea = customType<{ data: Buffer; driverData: Buffer }>({ dataType: () => 'bytea' })
const time = (name: string) => timestamp(name, { withTimezone: true, precision: 6, mode: 'string' })
const counter = (name: string) => bigint(name, { mode: 'number' })

export const workspaces = pgTable('workspaces', {
  id: uuid('id').primaryKey(),
  name: text('name').notNull().unique(),
  createdAt: time('created_at').notNull().defaultNow(),
})

/** Keys are kept as SHA-256 of 256 random bits: nothing to guess, so nothing to salt. */
export const apiKeys = pgTable('api_keys', {
  id: uuid('id').primaryKey(),
  workspaceId: uuid('workspace_id')
    .notNull()
    .references(() => workspaces.id),
  name: text('name').notNull(),
  role: text('role', { enum: ['guest', 'member', 'admin'] }).notNull(),
  hash: bytea('hash').notNull().unique(),
  createdAt: time('created_at').notNull().defaultNow(),
  revokedAt: time('revoked_at'),
})

export const runs = pgTable(
  'runs',
  {
    key: uuid('key').primaryKey(),
    workspaceId: uuid('workspace_id')
      .notNull()
      .references(() => workspaces.id),
    id: text('id').notNull(),
    name: text('name'),
    kind: text('kind'),
    queue: text('queue'),
    priority: integer('priority').notNull().default(0),
    availableAt: time('available_at'),
    maxAttempts: integer('max_attempts'),
    leaseMs: integer('lease_ms'),
    parentRunId: text('parent_run_id'),
    input: json('input'),
    metadata: json('metadata'),
    /** By which the overview groups and filters: of the metadata, whose JSON text may hold what SQL cannot take apart. */
    scenario: text('scenario'),
    environment: text('environment'),
    tags: text('tags').array().notNull().default(sql`'{}'`),
    /** What was asked for beyond the columns: participants, session, source, and the macp RunDescriptor. */
    descriptor: json('descriptor'),
    /** SHA-256 of the request that created the run, so that a repeat with another body is told apart. */
    requestHash: bytea('request_hash'),
    idempotencyKey: text('idempotency_key'),
    // Folded from the log by the append, under the row's lock.
    status: text('status').notNull(),
    progress: integer('progress'),
    attempt: integer('attempt').notNull().default(1),
    error: json('error'),
    lastSeq: counter('last_seq').notNull().default(0),
    lastRawSeq: counter('last_raw_seq').notNull().default(0),
    /** The first canonical event that retention kept. */
    firstSeq: counter('first_seq').notNull().default(1),
    createdAt: time('created_at').notNull(),
    updatedAt: time('updated_at').notNull(),
    startedAt: time('started_at'),
    endedAt: time('ended_at'),
    archivedAt: time('archived_at'),
    /** The first raw event that retention kept. */
    firstRawSeq: counter('first_raw_seq').notNull().default(1),
    // What the overview adds up, folded as well.
    inputTokens: counter('input_tokens').notNull().default(0),
    outputTokens: counter('output_tokens').notNull().default(0),
    /** As reported; what a price table makes of the counts in `modelUsage` is not in it. */
    costUsd: doublePrecision('cost_usd').notNull().default(0),
    llmCalls: integer('llm_calls').notNull().default(0),
    toolCalls: integer('tool_calls').notNull().default(0),
    errorCount: integer('error_count').notNull().default(0),
    /** Counts by model (projections/usage.ts); null where no model was called. */
    modelUsage: json('model_usage'),
    signals: integer('signals').notNull().default(0),
    decisions: integer('decisions').notNull().default(0),
    /** Of the decision that was made last: 1, -1, or 0 where nobody can tell; null where none was made. */
    decisionOutcome: smallint('decision_outcome'),
    /** What each participant told (projections/usage.ts); null where nobody did. */
    agents: json('agents'),
    // Placement (domain/placement.ts): folded too, but for `leaseExpiresAt`, which heartbeats move on, and `reservedUntil`, which a claim sets.
    concurrencyKey: text('concurrency_key'),
    workerId: text('worker_id'),
    leaseExpiresAt: time('lease_expires_at'),
    /** What was left of the lease when the run was suspended. */
    leaseRemainingMs: counter('lease_remaining_ms'),
    /** How long a heartbeat of the holder makes the lease, as its claim asked for; `leaseMs` is the run's own wish. */
    leaseLengthMs: integer('lease_length_ms'),
    reservedUntil: time('reserved_until'),
    ttlExpiresAt: time('ttl_expires_at'),
    ttlRemainingMs: counter('ttl_remaining_ms'),
    cancelRequestedAt: time('cancel_requested_at'),
  },
  (table) => [
    uniqueIndex('runs_workspace_id').on(table.workspaceId, table.id),
    uniqueIndex('runs_idempotency_key').on(table.workspaceId, table.idempotencyKey).where(sql`idempotency_key is not null`),
    index('runs_created').on(table.workspaceId, table.createdAt, table.key),
    // What can be claimed, and nothing else: a claim reads no more entries than it takes. A key is time-ordered: of the same priority, the
    // oldest run comes first.
    index('runs_waiting')
      .on(table.workspaceId, table.queue, table.priority.desc(), table.key)
      .where(sql`status = 'queued' and queue is not null and available_at is null and reserved_until is null`),
    // What waits for its time; runs/queue.ts moves it to the others when it comes.
    index('runs_delayed').on(table.availableAt).where(sql`status = 'queued' and queue is not null and available_at is not null`),
    // What takes a place of its queue.
    index('runs_held').on(table.workspaceId, table.queue, table.reservedUntil).where(sql`worker_id is not null or reserved_until is not null`),
    index('runs_leased').on(table.leaseExpiresAt).where(sql`lease_expires_at is not null`),
    index('runs_ttl').on(table.ttlExpiresAt).where(sql`ttl_expires_at is not null`),
    index('runs_cancelling').on(table.cancelRequestedAt).where(sql`cancel_requested_at is not null`),
    // Not on `updated_at`: an index that has it, even a partial one, makes every update of every run write to all indexes (no HOT update).
    index('runs_binding').on(table.key).where(sql`status in ('starting', 'binding_session')`),
  ],
)

/** What was sent, byte for byte. `firstSeq` and `seqCount` tell which canonical events came of it. */
export const runEventsRaw = pgTable(
  'run_events_raw',
  {
    runKey: uuid('run_key').notNull(),
    rawSeq: counter('raw_seq').notNull(),
    receivedAt: time('received_at').notNull(),
    firstSeq: counter('first_seq').notNull(),
    seqCount: smallint('seq_count').notNull(),
    format: text('format').notNull(),
    rawType: text('raw_type').notNull(),
    source: text('source').notNull(),
    eventId: text('event_id'),
    body: text('body').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.runKey, table.rawSeq] }),
    // Earns its place: it finds a repeated event id. Events without an id are not in it.
    uniqueIndex('run_events_raw_event_id').on(table.runKey, table.source, table.eventId).where(sql`event_id is not null`),
  ],
)

export const runEventsCanonical = pgTable(
  'run_events_canonical',
  {
    runKey: uuid('run_key').notNull(),
    seq: counter('seq').notNull(),
    ts: time('ts').notNull(),
    type: text('type').notNull(),
    subject: text('subject').notNull(),
    event: json('event').notNull(),
    /** Digests for comparing (domain/digest.ts); null: to be computed from the event. */
    shape: counter('shape'),
    content: counter('content'),
  },
  (table) => [primaryKey({ columns: [table.runKey, table.seq] })],
)

/** A cache of folded states: deleting all rows changes nothing but time. */
export const runProjections = pgTable('run_projections', {
  runKey: uuid('run_key').primaryKey(),
  version: counter('version').notNull(),
  schemaVersion: integer('schema_version').notNull(),
  state: json('state').notNull(),
  updatedAt: time('updated_at').notNull().defaultNow(),
})

export const producers = pgTable(
  'producers',
  {
    runKey: uuid('run_key').notNull(),
    producerId: text('producer_id').notNull(),
    epoch: counter('epoch').notNull(),
    lastSeq: counter('last_seq').notNull(),
    updatedAt: time('updated_at').notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.runKey, table.producerId] })],
)

/** What was answered to a request that can be repeated (producer headers, Idempotency-Key), per part of its body. */
export const appendReceipts = pgTable(
  'append_receipts',
  {
    runKey: uuid('run_key').notNull(),
    requestKey: text('request_key').notNull(),
    bodyHash: bytea('body_hash').notNull(),
    receipt: json('receipt').notNull(),
    createdAt: time('created_at').notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.runKey, table.requestKey] })],
)

/** States on the way, so that the state at any seq of a long run is near one. A cache, as run_projections is. */
export const runCheckpoints = pgTable(
  'run_checkpoints',
  {
    runKey: uuid('run_key').notNull(),
    seq: counter('seq').notNull(),
    schemaVersion: integer('schema_version').notNull(),
    state: json('state').notNull(),
  },
  (table) => [primaryKey({ columns: [table.runKey, table.seq] })],
)

/**
 * Of runs whose first events retention has deleted: the state as it was before the first event that is kept. No cache: nothing else has it.
 * One of an older schema version is read as far as it can be.
 */
export const runBases = pgTable('run_bases', {
  runKey: uuid('run_key').primaryKey(),
  seq: counter('seq').notNull(),
  schemaVersion: integer('schema_version').notNull(),
  state: json('state').notNull(),
})

/** Limits of a queue; one without a row has none. */
export const queues = pgTable(
  'queues',
  {
    workspaceId: uuid('workspace_id').notNull(),
    name: text('name').notNull(),
    /** Runs of the queue that are held at once; null: any number. */
    concurrency: integer('concurrency'),
    /** Runs with the same concurrency key that are held at once. */
    keyConcurrency: integer('key_concurrency'),
    paused: boolean('paused').notNull().default(false),
    updatedAt: time('updated_at').notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.workspaceId, table.name] })],
)

/** Sources that the service reads itself. The owner reads until its lease runs out; the cursor is written with the events that it brought. */
export const runSources = pgTable(
  'run_sources',
  {
    runKey: uuid('run_key').primaryKey(),
    workspaceId: uuid('workspace_id').notNull(),
    config: json('config').notNull(),
    status: text('status', { enum: ['waiting', 'reading', 'drained', 'ended', 'failed'] }).notNull(),
    cursor: text('cursor'),
    ownerId: uuid('owner_id'),
    ownerExpiresAt: time('owner_expires_at'),
    /** Failures since the last event that came. */
    failures: integer('failures').notNull().default(0),
    nextAt: time('next_at').notNull().defaultNow(),
    error: text('error'),
    createdAt: time('created_at').notNull().defaultNow(),
  },
  (table) => [
    index('run_sources_due').on(table.nextAt).where(sql`status in ('waiting', 'reading')`),
    index('run_sources_drained').on(table.runKey).where(sql`status = 'drained'`),
  ],
)

/** Workers that are still to be told, or were told, that their run is to be cancelled: of each run the last request. */
export const cancelCallbacks = pgTable(
  'cancel_callbacks',
  {
    runKey: uuid('run_key').primaryKey(),
    requestedAt: time('requested_at').notNull(),
    attempts: integer('attempts').notNull().default(0),
    nextAt: time('next_at').notNull().defaultNow(),
    /** Told, or given up on: then `error` says why. */
    endedAt: time('ended_at'),
    error: text('error'),
  },
  (table) => [index('cancel_callbacks_due').on(table.nextAt).where(sql`ended_at is null`)],
)

/** Runs whose rows in the event tables are still to be deleted, in batches; the row in `runs` is gone, or not there yet. */
export const runDeletions = pgTable('run_deletions', {
  runKey: uuid('run_key').primaryKey(),
  workspaceId: uuid('workspace_id').notNull(),
  runId: text('run_id').notNull(),
  /** Not before: an import that is under way moves it on. */
  dueAt: time('due_at').notNull().defaultNow(),
})

export const webhookEndpoints = pgTable(
  'webhook_endpoints',
  {
    id: uuid('id').primaryKey(),
    workspaceId: uuid('workspace_id')
      .notNull()
      .references(() => workspaces.id),
    url: text('url').notNull(),
    description: text('description'),
    /** Event types, `run.*` for a family, `*` for all. */
    types: text('types').array().notNull(),
    /** The current secret first; those before it sign as well until they expire. */
    secrets: json('secrets').notNull(),
    enabled: boolean('enabled').notNull().default(true),
    /** Why the service disabled it, where it did. */
    disabledReason: text('disabled_reason'),
    createdAt: time('created_at').notNull().defaultNow(),
    updatedAt: time('updated_at').notNull().defaultNow(),
  },
  (table) => [index('webhook_endpoints_workspace').on(table.workspaceId)],
)

/** The outbox: written in the transaction of the event. What is sent is read from the log when it is sent. */
export const webhookDeliveries = pgTable(
  'webhook_deliveries',
  {
    id: uuid('id').primaryKey(),
    endpointId: uuid('endpoint_id').notNull(),
    workspaceId: uuid('workspace_id').notNull(),
    runKey: uuid('run_key').notNull(),
    runId: text('run_id').notNull(),
    seq: counter('seq').notNull(),
    type: text('type').notNull(),
    status: text('status', { enum: ['pending', 'delivered', 'dead'] }).notNull(),
    attempts: integer('attempts').notNull().default(0),
    nextAt: time('next_at').notNull(),
    lockedUntil: time('locked_until'),
    lastStatus: integer('last_status'),
    lastError: text('last_error'),
    lastAnswer: text('last_answer'),
    createdAt: time('created_at').notNull(),
    /** Where it is sent again by hand: until when it is retried. Null: counted from its creation. */
    expiresAt: time('expires_at'),
    endedAt: time('ended_at'),
  },
  (table) => [
    index('webhook_deliveries_pending').on(table.endpointId, table.runKey, table.seq).where(sql`status = 'pending'`),
    index('webhook_deliveries_due').on(table.endpointId, table.nextAt).where(sql`status = 'pending'`),
    index('webhook_deliveries_endpoint').on(table.endpointId, table.status, table.id),
    // For deleting a run.
    index('webhook_deliveries_run').on(table.runKey),
  ],
)

export const auditLog = pgTable(
  'audit_log',
  {
    id: uuid('id').primaryKey(),
    workspaceId: uuid('workspace_id').notNull(),
    at: time('at').notNull().defaultNow(),
    actor: text('actor').notNull(),
    actorKeyId: text('actor_key_id'),
    action: text('action').notNull(),
    targetKind: text('target_kind').notNull(),
    targetId: text('target_id'),
    requestId: text('request_id'),
    outcome: text('outcome', { enum: ['done', 'refused', 'failed'] }).notNull(),
    detail: json('detail'),
  },
  (table) => [index('audit_log_workspace').on(table.workspaceId, table.id), index('audit_log_target').on(table.workspaceId, table.targetId, table.id)],
)

/** Content by its SHA-256, once a workspace; small ones here, others in the store. */
export const artifacts = pgTable(
  'artifacts',
  {
    workspaceId: uuid('workspace_id').notNull(),
    /** hex */
    sha256: text('sha256').notNull(),
    bytes: counter('bytes').notNull(),
    mediaType: text('media_type').notNull(),
    /** Null: it is in the store, under its workspace and SHA-256. */
    content: bytea('content'),
    createdAt: time('created_at').notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.workspaceId, table.sha256] })],
)

/** Which runs need which content. */
export const runArtifacts = pgTable(
  'run_artifacts',
  {
    runKey: uuid('run_key').notNull(),
    sha256: text('sha256').notNull(),
  },
  (table) => [primaryKey({ columns: [table.runKey, table.sha256] }), index('run_artifacts_content').on(table.sha256)],
)

/** Exports of many runs, made in the background. */
export const exportJobs = pgTable(
  'export_jobs',
  {
    id: uuid('id').primaryKey(),
    workspaceId: uuid('workspace_id').notNull(),
    request: json('request').notNull(),
    status: text('status', { enum: ['waiting', 'running', 'completed', 'failed', 'expired'] }).notNull(),
    runsTotal: integer('runs_total'),
    runsDone: integer('runs_done').notNull().default(0),
    bytes: counter('bytes'),
    error: text('error'),
    ownerId: uuid('owner_id'),
    ownerExpiresAt: time('owner_expires_at'),
    createdAt: time('created_at').notNull().defaultNow(),
    endedAt: time('ended_at'),
    expiresAt: time('expires_at'),
  },
  (table) => [index('export_jobs_workspace').on(table.workspaceId, table.id)],
)

/** Secrets that the instances of one database share, made by the first that needs them: for signed downloads, for keyed hashes. */
export const serviceSecrets = pgTable('service_secrets', {
  name: text('name').primaryKey(),
  value: bytea('value').notNull(),
})
