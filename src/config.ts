/**
 * The settings: one TypeBox schema, and the only place that reads the environment.
 * A bad value stops the start with a message that names the setting, the value and what is allowed.
 */
import { type Static, Type } from '@sinclair/typebox'
import envSchema from 'env-schema'

const integer = (minimum: number, maximum: number, fallback: number, description: string) =>
  Type.Integer({ minimum, maximum, default: fallback, description })

export const ConfigSchema = Type.Object({
  PORT: integer(0, 65_535, 3000, 'TCP port; 0 takes a free one'),
  HOST: Type.String({ minLength: 1, default: '127.0.0.1', description: 'address to listen on; another than the loopback needs an API key' }),
  DATABASE_URL: Type.Optional(Type.String({ pattern: '^(postgres(ql)?://.+)?$', description: 'postgres://user:password@host:port/database; none: the embedded database' })),
  DATA_DIR: Type.String({ minLength: 1, default: './data', description: 'folder of the embedded database' }),
  LOG_LEVEL: Type.Union(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'].map((level) => Type.Literal(level)), { default: 'info', description: 'the least level that is logged' }),
  DB_POOL_MAX: integer(2, 500, 10, 'database connections of this instance'),
  COMMITTERS: integer(1, 32, 2, 'append transactions at once'),
  STREAM_HEARTBEAT_MS: integer(1000, 3_600_000, 15_000, 'milliseconds between heartbeats of a stream'),
  STREAM_STALL_MS: integer(100, 3_600_000, 30_000, 'milliseconds without progress after which a reader is disconnected'),
  STREAM_POLL_MS: integer(50, 3_600_000, 2000, 'milliseconds between the polls that repair a lost wake-up'),
  MAX_EVENT_BYTES: integer(1024, 16_777_216, 262_144, 'bytes of one event'),
  MAX_BATCH_EVENTS: integer(1, 10_000, 1000, 'events of one JSON request'),
  MAX_BODY_BYTES: integer(1024, 134_217_728, 8_388_608, 'bytes of one JSON request'),
  MAX_QUEUED_EVENTS: integer(1, 1_000_000, 20_000, 'events that wait for a commit before 503 is answered'),
  STATE_CACHE_RUNS: integer(1, 100_000, 500, 'runs whose state is held in memory'),
  SNAPSHOT_EVERY_EVENTS: integer(1, 1_000_000, 1000, 'events after which the state of a run is written to the database'),
  SHUTDOWN_GRACE_MS: integer(0, 600_000, 10_000, 'milliseconds that a shutdown may take'),
  CORS_ORIGINS: Type.String({ default: '', description: 'origins whose pages may call the API, separated by commas; none: CORS is off' }),
})
export type Config = Static<typeof ConfigSchema>

/** A setting that is not valid: the message names it, its value and what is allowed. */
export class ConfigError extends Error {}
