/** All of the webhooks of one instance, wired up. */
import type { BaseLogger } from 'pino'
import type { Config } from '../config.js'
import type { Database } from '../db/client.js'
import type { Mask } from '../ingest/mask.js'
import type { Outbound } from '../ops/outbound.js'
import { createDeliveries } from './deliveries.js'
import { createEndpoints } from './endpoints.js'
import { createSender, type SenderOptions } from './sender.js'
import { startSweeper } from './sweeper.js'

const HOUR_MS = 3_600_000

export interface WebhooksDeps {
  database: Pick<Database, 'sql' | 'connect'>
  outbound: Outbound
  logger: Pick<BaseLogger, 'warn' | 'info'>
  /** Of secrets in what receivers answer. */
  mask: Pick<Mask, 'text'>
  config: Pick<
    Config,
    'WEBHOOK_TIMEOUT_MS' | 'WEBHOOK_RETRY_MS' | 'WEBHOOK_CONCURRENCY' | 'WEBHOOK_POLL_MS' | 'WEBHOOK_KEEP_DELIVERED_HOURS' | 'WEBHOOK_KEEP_DEAD_HOURS'
  >
  onAttempt?: NonNullable<SenderOptions['onAttempt']>
}

export type Webhooks = ReturnType<typeof createWebhooks>

/** Sends from `start()` on. */
export function createWebhooks({ database, outbound, logger, mask, config, onAttempt }: WebhooksDeps) {
  const { sql } = database
  const sender = createSender({
    database,
    outbound,
    logger,
    mask,
    timeoutMs: config.WEBHOOK_TIMEOUT_MS,
    retryForMs: config.WEBHOOK_RETRY_MS,
    concurrency: config.WEBHOOK_CONCURRENCY,
    pollMs: config.WEBHOOK_POLL_MS,
    ...(onAttempt && { onAttempt }),
  })
  const deliveries = createDeliveries({ sql, retryForMs: config.WEBHOOK_RETRY_MS, onDue: sender.wake })
  const endpoints = createEndpoints({ sql, outbound, onChanged: sender.wake })
  let sweeper: ReturnType<typeof startSweeper> | undefined
  return {
    endpoints,
    deliveries,
    committed: sender.committed,
    start(): void {
      sender.start()
      sweeper = startSweeper({
        deliveries,
        logger,
        keepDeliveredMs: config.WEBHOOK_KEEP_DELIVERED_HOURS * HOUR_MS,
        keepDeadMs: config.WEBHOOK_KEEP_DEAD_HOURS * HOUR_MS,
      })
    },
    async close(): Promise<void> {
      await sender.close()
      await sweeper?.close()
    },
  }
}
