/** What can be measured from outside: the metrics of one process, for Prometheus (`GET /metrics`). */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

/** Each app has a registry of its own, so that several in one process do not mix. `now` is asked at each scrape. */
export function createMetrics(now: { queuedEvents: () => number; openStreams: () => number }) {
  const registry = new Registry()
  collectDefaultMetrics({ register: registry })
  const registers = [registry]
  return {
    registry,
    httpRequestSeconds: new Histogram({
      name: 'runplane_http_request_duration_seconds',
      help: 'From the first byte of a request to the last of its answer; a stream lasts as long as its reader stays',
      labelNames: ['method', 'route', 'status'] as const,
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    }),
    eventsAppended: new Counter({
      name: 'runplane_events_appended_total',
      help: 'Raw events stored, by their format',
      labelNames: ['format'] as const,
      registers,
    }),
    appendGroupEvents: new Histogram({
      name: 'runplane_append_group_events',
      help: 'Raw events that one append transaction stored',
      buckets: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
      registers,
    }),
    commitSeconds: new Histogram({
      name: 'runplane_append_commit_duration_seconds',
      help: 'An append transaction from begin to commit',
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
      registers,
    }),
    queuedEvents: new Gauge({
      name: 'runplane_append_queued_events',
      help: 'Raw events that wait for a commit',
      registers,
      collect() {
        this.set(now.queuedEvents())
      },
    }),
    openStreams: new Gauge({
      name: 'runplane_streams_open',
      help: 'Readers that are connected to a stream',
      registers,
      collect() {
        this.set(now.openStreams())
      },
    }),
    webhookAttemptSeconds: new Histogram({
      name: 'runplane_webhook_attempt_duration_seconds',
      help: 'Attempts to send to a webhook, from the connection to the end of the answer; failed ones are tried again, dead ones are not',
      labelNames: ['outcome'] as const,
      buckets: [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30],
      registers,
    }),
  }
}
export type Metrics = ReturnType<typeof createMetrics>
