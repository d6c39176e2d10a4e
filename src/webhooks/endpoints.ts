/** Webhook endpoints: where the events of a workspace are sent to, which ones, and the secrets that sign them. */

import { type Static, Type } from '@sinclair/typebox'
import type { Queries, Sql } from '../db/client.js'
import { utcColumn } from '../db/utc.js'
import { uuidv7 } from '../domain/ids.js'
import { NO_CONTROLS_PATTERN } from '../domain/pattern.js'
import { RunplaneError } from '../errors.js'
import type { Outbound } from '../ops/outbound.js'
import { TYPE_FILTER_PATTERN } from './event-filter.js'
import { generateSecret, inForce, keyOf, rotated, SECRET_PATTERN, type Secret } from './secrets.js'

/** Of one workspace: each is looked at for each event. */
const MAX_ENDPOINTS = 100
const MAX_SECRETS = 10
const DAY_MS = 86_400_000

const fields = {
  url: Type.String({ minLength: 1, maxLength: 2048, description: 'http or https; no credentials in it', examples: ['https://example.com/hooks/runplane'] }),
  description: Type.String({ maxLength: 500, pattern: NO_CONTROLS_PATTERN }),
  types: Type.Array(Type.String({ maxLength: 128, pattern: TYPE_FILTER_PATTERN }), {
    minItems: 1,
    maxItems: 100,
    description: 'event types, `run.*` for a family, `*` for all',
    examples: [['run.completed', 'run.failed', 'gate.*']],
  }),
  enabled: Type.Boolean({ description: 'false: events that come meanwhile are not sent, later neither; what waited already waits on' }),
}
const secret = Type.String({ maxLength: 128, pattern: SECRET_PATTERN, description: '`whsec_` and 24 to 64 bytes in base64' })
const time = Type.String({ format: 'date-time' })

export const NewWebhook = Type.Object(
  {
    url: fields.url,
    description: Type.Optional(fields.description),
    types: Type.Optional(fields.types),
    enabled: Type.Optional(fields.enabled),
    secret: Type.Optional(secret),
  },
  { $id: 'NewWebhook', additionalProperties: false },
)
export type NewWebhook = Static<typeof NewWebhook>

export const WebhookChange = Type.Object(
  {
    url: Type.Optional(fields.url),
    description: Type.Optional(Type.Union([fields.description, Type.Null()])),
    types: Type.Optional(fields.types),
    enabled: Type.Optional(fields.enabled),
  },
  { $id: 'WebhookChange', additionalProperties: false, minProperties: 1 },
)
export type WebhookChange = Static<typeof WebhookChange>

export const SecretRotation = Type.Object(
  {
    secret: Type.Optional(secret),
    overlapMs: Type.Optional(
      Type.Integer({ minimum: 0, maximum: 7 * DAY_MS, description: 'how long the secrets before sign as well; none: 24 hours. 0 where one has leaked' }),
    ),
  },
  { $id: 'SecretRotation', additionalProperties: false },
)
export type SecretRotation = Static<typeof SecretRotation>

const shown = {
  id: Type.String({ format: 'uuid' }),
  url: Type.String(),
  description: Type.Union([Type.String(), Type.Null()]),
  types: Type.Array(Type.String()),
  enabled: Type.Boolean(),
  disabledReason: Type.Union([Type.String(), Type.Null()], { description: 'why the service disabled it, where it did' }),
  oldSecretsExpireAt: Type.Union([time, Type.Null()], { description: 'until then more than one signature is sent' }),
  createdAt: time,
  updatedAt: time,
}
export const Webhook = Type.Object(shown, { $id: 'Webhook', description: 'An endpoint, without its secret' })
export type Webhook = Static<typeof Webhook>
export const WebhookWithSecret = Type.Object(
  { ...shown, secret: Type.String({ description: 'shown this once' }) },
  { $id: 'WebhookWithSecret', description: 'An endpoint with the secret that signs from now on' },
)
export type WebhookWithSecret = Static<typeof WebhookWithSecret>

interface EndpointRow {
  id: string
  url: string
  description: string | null
  types: string[]
  enabled: boolean
  disabled_reason: string | null
  secrets: Secret[]
  created_at: string
  updated_at: string
}

const columns = (sql: Queries) =>
  sql`id, url, description, array_to_json(types) as types, enabled, disabled_reason, secrets, ${utcColumn(sql, 'created_at')}, ${utcColumn(sql, 'updated_at')}`
const textArray = (sql: Queries, values: readonly string[]) =>
  sql`(select array_agg(value) from json_array_elements_text(${JSON.stringify(values)}::text::json))`

function toWebhook(row: EndpointRow): Webhook {
  const old = inForce(row.secrets, Date.now()).flatMap(({ expiresAt }) => expiresAt ?? [])
  return {
    id: row.id,
    url: row.url,
    description: row.description,
    types: row.types,
    enabled: row.enabled,
    disabledReason: row.disabled_reason,
    oldSecretsExpireAt: old.sort().at(-1) ?? null,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
  }
}

export function webhookNotFound(id: string): RunplaneError {
  return new RunplaneError('NOT_FOUND', `There is no webhook '${id}' in this workspace. GET /webhooks lists those that there are.`)
}

export type Endpoints = ReturnType<typeof createEndpoints>

/** @param onChanged an endpoint was made, changed or removed: whoever sends looks again. */
export function createEndpoints({ sql, outbound, onChanged }: { sql: Sql; outbound: Pick<Outbound, 'assertUrl'>; onChanged(): void }) {
  async function one(queries: Queries, workspaceId: string, id: string, lock = false): Promise<EndpointRow> {
    const [row] = await queries<EndpointRow[]>`
      select ${columns(queries)} from webhook_endpoints where id = ${id} and workspace_id = ${workspaceId} ${lock ? queries`for update` : queries``}`
    if (!row) throw webhookNotFound(id)
    return row
  }

  return {
    /** @throws VALIDATION_ERROR for an address that may not be reached, or a secret that is too short. */
    async create(workspaceId: string, wanted: NewWebhook): Promise<WebhookWithSecret> {
      const url = outbound.assertUrl(wanted.url).href
      const secret = checkedSecret(wanted.secret)
      const row = await sql.begin(async (tx) => {
        // One after another, in a statement before the one that counts: what came while it waited is counted.
        await tx`select from workspaces where id = ${workspaceId} for no key update`
        const [made] = await tx<EndpointRow[]>`
          insert into webhook_endpoints (id, workspace_id, url, description, types, secrets, enabled)
          select ${uuidv7()}::text::uuid, ${workspaceId}::text::uuid, ${url}::text, ${wanted.description ?? null}::text, ${textArray(tx, wanted.types ?? ['*'])},
            ${JSON.stringify([{ secret }])}::text::json, ${wanted.enabled ?? true}::text::boolean
          where (select count(*) from webhook_endpoints where workspace_id = ${workspaceId}::text::uuid) < ${MAX_ENDPOINTS}
          returning ${columns(tx)}`
        return made
      })
      if (!row)
        throw new RunplaneError('INVALID_STATE_TRANSITION', `A workspace has at most ${MAX_ENDPOINTS} webhooks. Delete one that is not needed any more.`)
      onChanged()
      return { ...toWebhook(row), secret }
    },

    /** Oldest first. */
    async list(workspaceId: string): Promise<Webhook[]> {
      const rows = await sql<EndpointRow[]>`select ${columns(sql)} from webhook_endpoints where workspace_id = ${workspaceId} order by id`
      return rows.map(toWebhook)
    },

    async get(workspaceId: string, id: string): Promise<Webhook> {
      return toWebhook(await one(sql, workspaceId, id))
    },

    /** What a message to it needs; for a test of it. */
    async target(workspaceId: string, id: string): Promise<{ url: string; secrets: Secret[] }> {
      const { url, secrets } = await one(sql, workspaceId, id)
      return { url, secrets }
    },

    async update(workspaceId: string, id: string, change: WebhookChange): Promise<Webhook> {
      const url = change.url === undefined ? undefined : outbound.assertUrl(change.url).href
      const [row] = await sql<EndpointRow[]>`
        update webhook_endpoints set updated_at = greatest(clock_timestamp(), updated_at)
          ${url === undefined ? sql`` : sql`, url = ${url}`}
          ${change.description === undefined ? sql`` : sql`, description = ${change.description}`}
          ${change.types === undefined ? sql`` : sql`, types = ${textArray(sql, change.types)}`}
          ${change.enabled === undefined ? sql`` : sql`, enabled = ${change.enabled}, disabled_reason = null`}
        where id = ${id} and workspace_id = ${workspaceId} returning ${columns(sql)}`
      if (!row) throw webhookNotFound(id)
      onChanged()
      return toWebhook(row)
    },

    /** Its deliveries go with it, in the background (deliveries.ts). */
    async remove(workspaceId: string, id: string): Promise<void> {
      const { count } = await sql`delete from webhook_endpoints where id = ${id} and workspace_id = ${workspaceId}`
      if (count === 0) throw webhookNotFound(id)
      onChanged()
    },

    /** The secrets before sign as well until their time is up, so that a receiver can change over when it likes. */
    async rotate(workspaceId: string, id: string, { secret: wanted, overlapMs = DAY_MS }: SecretRotation): Promise<WebhookWithSecret> {
      const secret = checkedSecret(wanted)
      return sql.begin(async (tx) => {
        const { secrets } = await one(tx, workspaceId, id, true)
        const next = rotated(secrets, secret, overlapMs, Date.now())
        if (next.length > MAX_SECRETS)
          throw new RunplaneError('INVALID_STATE_TRANSITION', `${MAX_SECRETS} secrets sign already. Wait until some have expired, or send a shorter overlapMs.`)
        const [row] = await tx<EndpointRow[]>`
          update webhook_endpoints set secrets = ${JSON.stringify(next)}::text::json, updated_at = greatest(clock_timestamp(), updated_at)
          where id = ${id} returning ${columns(tx)}`
        if (!row) throw webhookNotFound(id)
        return { ...toWebhook(row), secret }
      })
    },
  }
}

function checkedSecret(wanted: string | undefined): string {
  if (wanted === undefined) return generateSecret()
  if (keyOf(wanted) === undefined) throw new RunplaneError('VALIDATION_ERROR', 'secret is `whsec_` and 24 to 64 bytes in base64. Leave it out and one is made.')
  return wanted
}
