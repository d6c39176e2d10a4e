/** For whoever operates the service: is it alive, can it serve, what does it do. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { RunplaneError } from '../../errors.js'
import { checkHealth, type HealthCheck } from '../../ops/health.js'
import type { Metrics } from '../../ops/metrics.js'
import { VERSION } from '../../ops/version.js'

/** @param checks what has to work for this instance to serve, such as database, migrations and wake: each rejects if its thing does not. */
export function healthRoutes({ checks, metrics }: { checks: Record<string, HealthCheck>; metrics: Pick<Metrics, 'registry'> }): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.get(
      '/healthz',
      {
        config: { public: true },
        schema: {
          operationId: 'health',
          summary: 'Is the process alive',
          tags: ['operation'],
          security: [],
          response: { 200: Type.Object({ status: Type.Literal('ok'), version: Type.String() }, { description: 'Alive' }) },
        },
      },
      async () => ({ status: 'ok' as const, version: VERSION }),
    )

    app.get(
      '/readyz',
      {
        config: { public: true },
        schema: {
          operationId: 'readiness',
          summary: 'Can it serve',
          description: 'Asks the database, its migrations and the wake channel. 503 names what is not ready; also while the service stops.',
          tags: ['operation'],
          security: [],
          response: {
            200: Type.Object(
              {
                status: Type.Literal('ready'),
                checks: Type.Array(Type.Object({ name: Type.String(), ms: Type.Integer({ description: 'milliseconds that it took' }) })),
              },
              { description: 'Ready' },
            ),
          },
        },
      },
      async (request) => {
        if (app.isClosing()) throw new RunplaneError('OVERLOADED', 'The service is stopping.', { headers: { 'retry-after': '1' } })
        const health = await checkHealth(checks)
        const failed = health.checks.filter((check) => !check.ok)
        if (failed.length === 0) return { status: 'ready' as const, checks: health.checks.map(({ name, ms }) => ({ name, ms })) }
        // The reasons may name hosts and users: they are for the log.
        for (const { name, error } of failed) request.log.warn({ err: error }, `not ready: ${name}`)
        throw new RunplaneError('OVERLOADED', `Not ready: ${failed.map(({ name }) => name).join(', ')}. The log has the reasons.`, {
          errors: failed.map(({ name, ms }) => ({ path: name, message: `is not ready (asked for ${ms} ms)` })),
          headers: { 'retry-after': '1' },
        })
      },
    )

    app.get(
      '/metrics',
      {
        config: { role: 'guest', withoutDatabase: true },
        schema: {
          operationId: 'metrics',
          summary: 'Metrics for Prometheus',
          tags: ['operation'],
          response: { 200: { description: 'The text format of Prometheus', content: { 'text/plain': { schema: Type.String() } } } },
        },
      },
      async (_request, reply) => reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()),
    )
  }
}
