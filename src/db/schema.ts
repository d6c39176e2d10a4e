/**
 * The one schema, for the embedded database and a server alike. drizzle-kit makes the migrations from it.
 *
 * A run has two ids: `id`, which clients see and may choose, unique in its workspace; and `key`, a UUIDv7 of ours that
 * every event table starts with: time-ordered, half the size, and the same for no two workspaces.
 * Events are `json`, not `jsonb`: the text of a canonical event is made once and is the same in a page, a frame and a bundle.
 */
import { sql } from 'drizzle-orm'
import { bigint, customType, index, integer, json, pgTable, primaryKey, smallint, text, timestamp, uniqueIndex, uuid } from 'drizzle-orm/pg-core'

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
  },
  (table) => [
    uniqueIndex('runs_workspace_id').on(table.workspaceId, table.id),
    uniqueIndex('runs_idempotency_key').on(table.workspaceId, table.idempotencyKey).where(sql`idempotency_key is not null`),
    index('runs_created').on(table.workspaceId, table.createdAt, table.key),
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

/** What was answered to a request that can be repeated (producer headers, Idempotency-Key), per slice of its body. */
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
