/**
 * The settings: one TypeBox schema, and the only place that reads the environment.
 * A bad value stops the start with a message that names the setting, the value and what is allowed; all bad ones at once.
 */
import { readFileSync } from 'node:fs'
import { parseEnv } from 'node:util'
import { FormatRegistry, type Static, type TSchema, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { createMask, PatternError } from './ingest/mask.js'

const integer = (minimum: number, maximum: number, fallback: number, description: string) => Type.Integer({ minimum, maximum, default: fallback, description })

FormatRegistry.Set('mask-patterns', (text) => patternFault(text) === undefined)
FormatRegistry.Set('host-url', (text) => /^https?:\/\/[^/]+\/?$/.test(text) && URL.canParse(text))
FormatRegistry.Set('origins', (text) => text.split(',').every((part) => URL.canParse(part.trim()) && new URL(part.trim()).origin === part.trim()))

export const ConfigSchema = Type.Object({
  PORT: integer(0, 65_535, 3000, 'TCP port; 0 takes a free one'),
  HOST: Type.String({ pattern: '^[A-Za-z0-9.:%\\-]+$', default: '127.0.0.1', description: 'address to listen on; another than the loopback needs an API key' }),
  DATABASE_URL: Type.Optional(
    Type.String({ pattern: '^postgres(ql)?://.+$', secret: true, description: 'postgres://user:password@host:port/database; none: the embedded database' }),
  ),
  DATA_DIR: Type.String({ minLength: 1, default: './data', description: 'folder of the embedded database' }),
  ADMIN_API_KEY: Type.Optional(
    Type.String({
      pattern: '^[\\x21-\\x7E]{32,256}$',
      secret: true,
      description: '32 to 256 printable ASCII characters without spaces: an admin key of the default workspace that is not in the database',
    }),
  ),
  LOG_LEVEL: Type.Union(
    [
      Type.Literal('fatal'),
      Type.Literal('error'),
      Type.Literal('warn'),
      Type.Literal('info'),
      Type.Literal('debug'),
      Type.Literal('trace'),
      Type.Literal('silent'),
    ],
    { default: 'info', description: 'the least level that is logged' },
  ),
  TRUST_PROXY: Type.Boolean({ default: false, description: 'true behind a reverse proxy: the client address in the log is taken from X-Forwarded-For' }),
  DB_POOL_MAX: integer(2, 500, 10, 'database connections for reading; COMMITTERS and 7 more come on top'),
  COMMITTERS: integer(1, 32, 4, 'append transactions at once, each on a connection of its own'),
  STREAM_HEARTBEAT_MS: integer(1000, 3_600_000, 15_000, 'milliseconds between heartbeats of a stream'),
  STREAM_STALL_MS: integer(100, 3_600_000, 30_000, 'milliseconds without progress after which a reader is disconnected'),
  STREAM_POLL_MS: integer(50, 3_600_000, 2000, 'milliseconds between the polls that repair a lost wake-up'),
  MAX_EVENT_BYTES: integer(1024, 16_777_216, 262_144, 'bytes of one event'),
  MAX_BATCH_EVENTS: integer(1, 10_000, 1000, 'events of one JSON request'),
  MAX_BODY_BYTES: integer(1024, 134_217_728, 8_388_608, 'bytes of one JSON request'),
  BODY_TIMEOUT_MS: integer(100, 3_600_000, 30_000, 'milliseconds that a JSON request may take to arrive; NDJSON has no limit'),
  MAX_QUEUED_EVENTS: integer(1, 1_000_000, 20_000, 'events that wait for a commit before 503 is answered'),
  STATE_CACHE_RUNS: integer(1, 100_000, 500, 'runs whose state is held in memory; one of more than 128 KiB counts as several'),
  SNAPSHOT_EVERY_EVENTS: integer(1, 1_000_000, 1000, 'events after which the state of a run is written to the database'),
  RUN_RECOVERY_ENABLED: Type.Boolean({ default: true, description: 'false: what another instance left is not taken up here, and no deadline fails a run' }),
  RECOVERY_INTERVAL_MS: integer(100, 3_600_000, 5000, 'milliseconds between two looks for runs and sources that nobody has'),
  STARTING_TIMEOUT_MS: integer(1000, 604_800_000, 600_000, 'milliseconds after which a run that is starting and that nobody holds is failed'),
  BINDING_TIMEOUT_MS: integer(
    1000,
    604_800_000,
    600_000,
    'milliseconds that a source may take to be there, or a run be quiet after its source has no more, before the run is failed',
  ),
  SOURCES_MAX: integer(0, 100_000, 1000, 'sources that this instance reads at once'),
  SOURCE_LEASE_MS: integer(1000, 3_600_000, 15_000, 'milliseconds after which the sources of an instance that died are read by another'),
  SOURCE_IDLE_TIMEOUT_MS: integer(100, 86_400_000, 120_000, 'milliseconds without a byte after which a source is asked again; a source may have its own'),
  SOURCE_RETRY_MS: integer(10, 3_600_000, 1000, 'milliseconds before a source that closed is asked again, doubled each time'),
  SOURCE_RETRY_MAX_MS: integer(10, 3_600_000, 30_000, 'milliseconds between two tries at most'),
  SOURCE_MAX_FAILURES: integer(1, 1_000_000, 100, 'tries in a row that do not reach a source after which its run is failed'),
  WEBHOOK_TIMEOUT_MS: integer(100, 60_000, 15_000, 'milliseconds that one attempt to send to a webhook may take'),
  WEBHOOK_RETRY_MS: integer(1000, 604_800_000, 86_400_000, 'milliseconds for which a delivery is tried again before it is dead'),
  WEBHOOK_CONCURRENCY: integer(1, 100, 8, 'deliveries that this instance sends to one webhook at once'),
  WEBHOOK_POLL_MS: integer(50, 3_600_000, 1000, 'milliseconds between two looks for deliveries that are due'),
  WEBHOOK_KEEP_DELIVERED_HOURS: integer(1, 87_600, 72, 'hours that deliveries which arrived are kept'),
  WEBHOOK_KEEP_DEAD_HOURS: integer(1, 87_600, 720, 'hours that deliveries which never arrived are kept'),
  OUTBOUND_ALLOW_PRIVATE: Type.Boolean({ default: false, description: 'true: sources, callbacks and webhooks may be at loopback and private addresses' }),
  CANCEL_GRACE_MS: integer(0, 86_400_000, 30_000, 'milliseconds that a worker has to end a run that is to be cancelled, before it is cancelled all the same'),
  RETENTION_POLICIES: Type.Optional(
    Type.String({ minLength: 2, description: 'a JSON list of what is archived, deleted or trimmed, and when (docs/RETENTION.md); none: everything is kept' }),
  ),
  RETENTION_INTERVAL_MS: integer(1000, 604_800_000, 3_600_000, 'milliseconds between two rounds of retention'),
  AUDIT_KEEP_DAYS: integer(0, 36_500, 0, 'days that lines of the audit log are kept; 0: for ever'),
  MODEL_PRICES_FILE: Type.Optional(
    Type.String({ minLength: 1, description: 'a JSON file with the prices of models, in place of the built-in table (docs/METRICS.md)' }),
  ),
  LEASE_MS: integer(1000, 86_400_000, 30_000, 'milliseconds that a claim or a heartbeat holds a run, where neither it nor the run says how long'),
  MAX_ATTEMPTS: integer(1, 1000, 3, 'attempts at a run whose leases run out, where the run does not say how many'),
  RETRY_BASE_MS: integer(0, 3_600_000, 1000, 'milliseconds until a run whose lease ran out can be claimed again; doubled with each attempt'),
  RETRY_MAX_MS: integer(0, 86_400_000, 300_000, 'milliseconds that this takes at the most'),
  LEASE_CHECK_MS: integer(20, 60_000, 1000, 'milliseconds between two looks for leases that ran out'),
  MASK_PATTERNS: Type.Optional(
    Type.String({
      format: 'mask-patterns',
      description:
        'regular expressions of secrets that are masked as they come in, separated by white space, for which \\s stands in one; without look-around and back references, and none may match the empty text',
    }),
  ),
  ARTIFACT_INLINE_BYTES: integer(0, 1_048_576, 65_536, 'bytes of an artifact up to which it is stored in the database; larger ones go to the store'),
  MAX_ARTIFACT_BYTES: integer(1024, 5_497_558_138_880, 1_073_741_824, 'bytes of one artifact'),
  MAX_BUNDLE_BYTES: integer(1024, 5_497_558_138_880, 4_294_967_296, 'bytes of a bundle that is imported, as it is sent and unpacked'),
  IMPORTS_MAX: integer(1, 1000, 4, 'bundles that this instance imports at once, each of which may need MAX_BUNDLE_BYTES in DATA_DIR'),
  S3_ENDPOINT: Type.Optional(
    Type.String({ format: 'host-url', description: 'https://host of an S3-compatible store for artifacts and exports; none: they are in DATA_DIR' }),
  ),
  S3_REGION: Type.String({ minLength: 1, default: 'us-east-1', description: 'region of the S3-compatible store' }),
  S3_BUCKET: Type.Optional(
    Type.String({ pattern: '^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$', description: 'bucket of the S3-compatible store; it has to be there' }),
  ),
  S3_ACCESS_KEY_ID: Type.Optional(Type.String({ minLength: 1, secret: true, description: 'access key of the S3-compatible store' })),
  S3_SECRET_ACCESS_KEY: Type.Optional(Type.String({ minLength: 1, secret: true, description: 'secret key of the S3-compatible store' })),
  EXPORT_KEEP_MS: integer(60_000, 31_536_000_000, 86_400_000, 'milliseconds that the file of a finished export of many runs is kept'),
  COMPARE_MAX_EVENTS: integer(1, 5_000_000, 1_000_000, 'events of one run that can be compared; each takes some 100 bytes of memory meanwhile'),
  SHUTDOWN_GRACE_MS: integer(0, 600_000, 10_000, 'milliseconds that a shutdown may take'),
  CORS_ORIGINS: Type.Optional(
    Type.String({
      format: 'origins',
      description: 'origins whose pages may call the API, such as https://app.example.com, separated by commas; none: CORS is off',
    }),
  ),
})
export type Config = Static<typeof ConfigSchema>

/** A setting that is not valid: the message names it, its value and what is allowed. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError'
}

/**
 * Reads the settings. The environment wins over the file; an empty value is the same as none.
 * @param envFile a file of NAME=value lines, which need not be there.
 * @throws ConfigError that names every bad setting.
 */
export function loadConfig(env: Record<string, string | undefined> = process.env, { envFile = '.env' }: { envFile?: string } = {}): Config {
  const file = readEnvFile(envFile)
  const values: Record<string, unknown> = {}
  const problems: string[] = []
  for (const [name, schema] of Object.entries<TSchema>(ConfigSchema.properties)) {
    const text = env[name] || file[name]
    const value = text ? fromText(schema, text) : schema.default
    if (value === undefined) continue
    if (Value.Check(schema, value)) values[name] = value
    else problems.push(`${name}: ${schema.secret ? 'its value' : `'${text}'`} is not allowed${faultIn(schema, text)}. Allowed: ${allowed(schema)}.`)
  }
  if (problems.length > 0) throw new ConfigError(problems.join('\n'))
  return Value.Decode(ConfigSchema, values)
}

/** The origins of CORS_ORIGINS, as a browser sends them. */
export function corsOrigins(config: Pick<Config, 'CORS_ORIGINS'>): string[] {
  return config.CORS_ORIGINS?.split(',').map((origin) => origin.trim()) ?? []
}

/** Where a client on this machine finds the service. */
export function localUrl({ HOST, PORT }: Pick<Config, 'HOST' | 'PORT'>): string {
  return httpUrl(HOST === '0.0.0.0' ? '127.0.0.1' : HOST === '::' ? '::1' : HOST, PORT)
}

/** An address of IPv6 is in brackets (RFC 3986, section 3.2.2). */
export function httpUrl(host: string, port: number): string {
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** The expressions of MASK_PATTERNS. */
export function maskPatterns(config: Pick<Config, 'MASK_PATTERNS'>): string[] {
  return config.MASK_PATTERNS?.split(/\s+/).filter((pattern) => pattern !== '') ?? []
}

/** Why the service does not start with these patterns. */
function patternFault(text: string): string | undefined {
  try {
    createMask(maskPatterns({ MASK_PATTERNS: text }))
    return undefined
  } catch (error) {
    if (error instanceof PatternError) return error.message
    throw error
  }
}

function faultIn(schema: TSchema, text: string | undefined): string {
  const fault = schema.format === 'mask-patterns' && text ? patternFault(text) : undefined
  return fault === undefined ? '' : `: ${fault}`
}

function readEnvFile(path: string): NodeJS.Dict<string> {
  try {
    return parseEnv(readFileSync(path, 'utf8'))
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return {}
    throw new ConfigError(`The settings file ${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`)
  }
}

/** What is written, in the type that the schema wants, or as it is, which the schema then refuses: '1e3' is not a port. */
function fromText(schema: TSchema, text: string): unknown {
  if (schema.type === 'integer') return /^-?\d{1,15}$/.test(text) ? Number(text) : text
  if (schema.type === 'boolean') return text === 'true' ? true : text === 'false' ? false : text
  return text
}

function allowed(schema: TSchema): string {
  if (schema.type === 'integer') return `a whole number from ${schema.minimum} to ${schema.maximum} (${schema.description})`
  if (schema.type === 'boolean') return `true or false (${schema.description})`
  if (Array.isArray(schema.anyOf)) return `one of ${schema.anyOf.map((member: TSchema) => member.const).join(', ')} (${schema.description})`
  return schema.description ?? ''
}
