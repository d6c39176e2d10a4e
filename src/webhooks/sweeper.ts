/** Lets old deliveries go, now and then. */
import type { BaseLogger } from 'pino'
import type { Deliveries, SweepOptions } from './deliveries.js'

const INTERVAL_MS = 60_000

export function startSweeper({
  deliveries,
  logger,
  ...keep
}: { deliveries: Pick<Deliveries, 'sweep'>; logger: Pick<BaseLogger, 'warn' | 'info'> } & SweepOptions) {
  let sweeping: Promise<void> | undefined
  const timer = setInterval(
    () => {
      sweeping ??= deliveries
        .sweep(keep)
        .then(
          ({ expired }) => {
            if (expired > 0) logger.info({ deliveries: expired }, 'webhooks: deliveries whose time was up are dead')
          },
          (error: unknown) => logger.warn({ err: error }, 'webhooks: old deliveries could not be removed'),
        )
        .finally(() => {
          sweeping = undefined
        })
      // Instances that were started at once do not sweep at once.
    },
    INTERVAL_MS * (0.8 + 0.4 * Math.random()),
  ).unref()
  return {
    async close(): Promise<void> {
      clearInterval(timer)
      await sweeping
    },
  }
}
