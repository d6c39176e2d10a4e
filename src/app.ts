/**
 * The composition root: everything that one instance is made of, wired up once.
 *
 * Shutting down goes the way that requests come: streams end so that their readers reconnect elsewhere, requests are answered,
 * the last groups commit, snapshots are saved. The database is its opener's to close.
 */

import { join } from 'node:path'
import sensible from '@fastify/sensible'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import Fastify, { type FastifyBaseLogger, type FastifyInstance } from 'fastify'
import { createAudit } from './access/audit.js'
import { createKeys, type Keys } from './access/keys.js'
import { type Config, maskPatterns } from './config.js'
import type { Database } from './db/client.js'
import { migrationsCurrent } from './db/migrate.js'
import { CanonicalEventSchema } from './domain/canonical-event.js'
import { uuidv7 } from './domain/ids.js'
import { accessPlugin, isAdmitted } from './http/plugins/access.js'
import { auditPlugin } from './http/plugins/audit.js'
import { bodiesPlugin } from './http/plugins/bodies.js'
import { closingPlugin } from './http/plugins/closing.js'
import { corsPlugin } from './http/plugins/cors.js'
import { docsPlugin } from './http/plugins/docs.js'
import { errorsPlugin } from './http/plugins/errors.js'
import { maskingPlugin } from './http/plugins/masking.js'
import { queryNumbersPlugin } from './http/plugins/query-numbers.js'
import { requestsPlugin } from './http/plugins/requests.js'
import { appendRoutes } from './http/routes/append.js'
import { artifactsRoutes } from './http/routes/artifacts.js'
import { auditRoutes } from './http/routes/audit.js'
import { bundlesRoutes } from './http/routes/bundles.js'
import { commandsRoutes } from './http/routes/commands.js'
import { compareRoutes } from './http/routes/compare.js'
import { docsRoutes } from './http/routes/docs.js'
import { eventsRoutes } from './http/routes/events.js'
import { exportsRoutes } from './http/routes/exports.js'
import { healthRoutes } from './http/routes/health.js'
import { insightRoutes } from './http/routes/insight.js'
import { keysRoutes } from './http/routes/keys.js'
import { queueRoutes } from './http/routes/queue.js'
import { replayRoutes } from './http/routes/replay.js'
import { runsRoutes } from './http/routes/runs.js'
import { streamRoutes } from './http/routes/stream.js'
import { webhooksRoutes } from './http/routes/webhooks.js'
import { AppendAnswer, ExplainAnswer, PostedEvent } from './http/schemas/append.js'
import { serverOptions } from './http/server-options.js'
import { createMask, NO_MASK } from './ingest/mask.js'
import { createArtifacts } from './insight/artifacts.js'
import { createBlobs } from './insight/blobs.js'
import { createComparer } from './insight/compare/comparer.js'
import { createExporter } from './insight/export.js'
import { createExportJobs } from './insight/export-jobs.js'
import { createImporter } from './insight/import.js'
import { loadPrices } from './insight/prices.js'
import { createRedactor } from './insight/redact.js'
import { createRetentionExport } from './insight/retention-export.js'
import { serviceSecret } from './insight/service-secret.js'
import { createGroupCommit } from './log/group-commit.js'
import { createLogReader } from './log/read.js'
import { createRunKeys } from './log/run-keys.js'
import { createStates } from './log/states.js'
import { createWake } from './log/wake.js'
import { createMetrics } from './ops/metrics.js'
import { createOutbound } from './ops/outbound.js'
import { createAttach } from './runs/attach.js'
import { assertCallable } from './runs/attach-source.js'
import { createCancelCallbacks } from './runs/cancel-callback.js'
import { createCheckpoints } from './runs/checkpoints.js'
import { createCommands } from './runs/commands.js'
import { startDeadlines } from './runs/deadlines.js'
import { createDeletions } from './runs/deletions.js'
import { createLeases } from './runs/leases.js'
import { createLifecycle } from './runs/lifecycle.js'
import { createClaims } from './runs/queue.js'
import { createRecovery } from './runs/recovery.js'
import { startRetention } from './runs/retention.js'
import { parsePolicies } from './runs/retention-policy.js'
import { type Snapshots, startSnapshots } from './runs/snapshots.js'
import { createRunStates } from './runs/state.js'
import { createHub } from './tail/hub.js'
import { createWebhooks } from './webhooks/webhooks.js'

export interface AppOptions {
  config: Config
  /** Open and migrated. */
  database: Database
  logger: FastifyBaseLogger
  keys?: Keys
}

/** An instance that is ready to listen or to be injected into. `close()` ends all that it started, but not the database. */
export async function buildApp({
  config,
  database,
  logger,
  keys = createKeys(database, { adminApiKey: config.ADMIN_API_KEY }),
}: AppOptions): Promise<FastifyInstance> {
  const { sql } = database
  const patterns = maskPatterns(config)
  const mask = patterns.length === 0 ? NO_MASK : createMask(patterns, await serviceSecret(sql, 'mask'))
  const audit = createAudit({ sql })
  const metrics = createMetrics({ queuedEvents: () => log.queuedEvents, openStreams: () => hub.stats().streams })
  const reader = createLogReader({ sql })
  const runKeys = createRunKeys(sql)
  let snapshots: Snapshots | undefined
  const states = createStates({ maxRuns: config.STATE_CACHE_RUNS, onEvict: (hot) => snapshots?.evicted(hot) })
  snapshots = startSnapshots({ sql, states, everyEvents: config.SNAPSHOT_EVERY_EVENTS, log: logger })
  const checkpoints = createCheckpoints({ sql, states, log: logger })
  const hub = createHub({ log: reader, logger, isAdmitted: (headers) => isAdmitted(keys, headers) })
  const wake = createWake({ database, instanceId: uuidv7(), logger, pollMs: config.STREAM_POLL_MS })
  const log = createGroupCommit({
    sql,
    connect: database.connect,
    states,
    committers: config.COMMITTERS,
    maxQueuedEvents: config.MAX_QUEUED_EVENTS,
    log: logger,
    onCommitted(batches) {
      for (const batch of batches) {
        hub.committed(batch)
        checkpoints.committed(batch)
        wake.publish(batch.runKey)
        attach.committed(batch)
        cancelCallbacks.committed(batch)
      }
      claims.committed(batches)
      webhooks.committed(batches)
    },
    onGroup({ events, durationMs }) {
      metrics.appendGroupEvents.observe(events)
      metrics.commitSeconds.observe(durationMs / 1000)
    },
  })
  const leaseDefaults = {
    leaseMs: config.LEASE_MS,
    maxAttempts: config.MAX_ATTEMPTS,
    retryBaseMs: config.RETRY_BASE_MS,
    retryMaxMs: config.RETRY_MAX_MS,
  }
  const leases = createLeases({
    sql,
    log,
    defaults: leaseDefaults,
    checkMs: config.LEASE_CHECK_MS,
    logger,
    onArrived: (workspaceId, queue) => claims.arrived(workspaceId, queue),
  })
  const claims = createClaims({
    sql,
    log,
    states,
    runKeys,
    defaults: leaseDefaults,
    pollMs: config.STREAM_POLL_MS,
    logger,
    publish: wake.publish,
    onDelayed: leases.soon,
  })
  const outbound = createOutbound({ allowPrivate: config.OUTBOUND_ALLOW_PRIVATE })
  const webhooks = createWebhooks({
    database,
    outbound,
    logger,
    mask,
    config,
    onAttempt: ({ outcome, durationMs }) => metrics.webhookAttemptSeconds.observe({ outcome }, durationMs / 1000),
  })
  const lifecycle = createLifecycle({ sql, log, maxEventBytes: config.MAX_EVENT_BYTES, assertPossible: (plan) => assertCallable(plan, outbound) })
  const onStored = (format: string, events: number) => metrics.eventsAppended.inc({ format }, events)
  const attach = createAttach({ sql, log, outbound, config, logger, onStored, mask })
  const recovery = createRecovery({ sql, log, config, logger })
  const cancelCallbacks = createCancelCallbacks({ sql, outbound, logger, pollMs: config.RECOVERY_INTERVAL_MS })
  const runStates = createRunStates({ sql, states, checkpoints, mask })
  const onDeleted = (runKey: string) => {
    hub.wake(runKey)
    wake.publish(runKey)
  }
  const deletions = createDeletions({ sql, runKeys, states, onDeleted, log: logger })
  const commands = createCommands({ sql, log, runKeys, lifecycle, deletions })
  const deadlines = startDeadlines({ sql, log, cancelGraceMs: config.CANCEL_GRACE_MS, logger })

  const blobs = createBlobs(config)
  const artifacts = createArtifacts({ sql, blobs, config })
  const prices = loadPrices(config.MODEL_PRICES_FILE)
  const exporter = createExporter({
    sql,
    reader,
    runStates,
    prices,
    mask,
    artifacts,
    redactorFor: async (profile) => createRedactor(profile, await serviceSecret(sql, 'redaction')),
    log: logger,
  })
  const exportJobs = createExportJobs({
    sql,
    blobs,
    exporter,
    prices,
    secret: await serviceSecret(sql, 'downloads'),
    config,
    log: logger,
    sweep: () => artifacts.sweep(),
  })
  const retention = startRetention({
    database,
    policies: parsePolicies(config.RETENTION_POLICIES),
    auditKeepDays: config.AUDIT_KEEP_DAYS,
    intervalMs: config.RETENTION_INTERVAL_MS,
    deletions,
    stateAt: (run, seq) => runStates.fold(run, seq),
    exportRun: createRetentionExport({ exporter, blobs }),
    audit: {
      begin: ({ runId, ...line }) => audit.begin({ ...line, actor: 'retention', targetKind: 'run', targetId: runId }),
      finish: audit.finish,
    },
    log: logger,
  })
  const importer = createImporter({
    sql,
    reader,
    artifacts,
    folder: join(config.DATA_DIR, 'imports'),
    maxBytes: config.MAX_BUNDLE_BYTES,
    maxAtOnce: config.IMPORTS_MAX,
    pauseMs: config.BODY_TIMEOUT_MS,
  })

  const app = Fastify(serverOptions(config, logger, mask)).withTypeProvider<TypeBoxTypeProvider>()
  await app.register(errorsPlugin)
  await app.register(closingPlugin, { config })
  await app.register(sensible)
  await app.register(requestsPlugin, { metrics })
  await app.register(corsPlugin, { config })
  await app.register(accessPlugin, { keys, config })
  await app.register(auditPlugin, { audit, mask })
  await app.register(bodiesPlugin, { config })
  await app.register(queryNumbersPlugin)
  await app.register(maskingPlugin, { mask })
  await app.register(docsPlugin)

  app.addSchema(CanonicalEventSchema)
  for (const schema of [AppendAnswer, PostedEvent, ExplainAnswer]) app.addSchema(schema)
  await app.register(runsRoutes, { sql, lifecycle, runStates, runKeys })
  await app.register(queueRoutes, { sql, claims, leases, runKeys })
  await app.register(appendRoutes, { config, log, runKeys, mask, metrics })
  await app.register(eventsRoutes({ log: reader }))
  await app.register(insightRoutes, { sql, log: reader, runKeys, runStates, prices, mask })
  await app.register(replayRoutes({ hub, log: reader, runStates, config }))
  await app.register(streamRoutes({ hub, log: reader, config, snapshotOf: (run) => runStates.read(run) }))
  await app.register(artifactsRoutes, { config, artifacts, log, reader, mask })
  await app.register(exportsRoutes, { sql, prices, jobs: exportJobs })
  await app.register(bundlesRoutes({ exporter, importer, mask }))
  await app.register(compareRoutes({ comparer: createComparer({ sql, runStates, prices, mask, config }) }))
  await app.register(keysRoutes({ keys }))
  await app.register(webhooksRoutes({ webhooks, outbound, mask, timeoutMs: config.WEBHOOK_TIMEOUT_MS }))
  await app.register(commandsRoutes, { sql, commands, audit })
  await app.register(auditRoutes({ audit }))
  await app.register(
    healthRoutes({
      metrics,
      checks: {
        database: () => sql`select 1`,
        migrations: async () => {
          if (!(await migrationsCurrent(sql))) throw new Error('the migrations of the database are not those of this version')
        },
        wake: async () => {
          if (!wake.healthy()) throw new Error('the wake channel is not connected')
        },
      },
    }),
  )
  await app.register(docsRoutes())

  app.addHook('onClose', async () => {
    await claims.close()
    await leases.close()
    await exportJobs.close()
    await retention.close()
    await deadlines.close()
    await deletions.close()
    await attach.close()
    await recovery.close()
    await cancelCallbacks.close()
    await log.close()
    await checkpoints.close()
    await snapshots.close()
    await wake.close()
    await webhooks.close()
    await outbound.close()
  })
  await wake.start({
    watched: hub.watched,
    wake(runKey) {
      if (claims.woken(runKey)) return
      states.stale(runKey)
      hub.wake(runKey)
    },
  })
  attach.start()
  recovery.start()
  cancelCallbacks.start()
  leases.start()
  webhooks.start()
  exportJobs.start()
  return app
}
