/**
 * Making runs. A run's row and its first events (`run.created`, one `participant.seen` for each that was declared,
 * `run.queued` where it has a queue) are one transaction; a repeat of the request answers with the same run.
 */
import { createHash } from 'node:crypto'
import type { Sql } from '../db/client.js'
import type { DraftEvent } from '../domain/canonical-event.js'
import { uuidv7 } from '../domain/ids.js'
import { withoutUndefined } from '../domain/known.js'
import { groupingOf, type RunPlan } from '../domain/run-request.js'
import { toUtc } from '../domain/time.js'
import { RunplaneError } from '../errors.js'
import type { GroupCommit } from '../log/group-commit.js'

const CREATE_ATTEMPTS = 3

export interface Lifecycle {
  /** Whether `create` would take it, as things are. @throws as `create` does. */
  assertPlan(workspaceId: string, plan: RunPlan): Promise<void>
  /**
   * Creates the run, or finds the one that the same request created before.
   * @throws IDEMPOTENCY_CONFLICT when its id or its idempotency key belongs to another request, PAYLOAD_TOO_LARGE for one whose `run.created` would
   * be more than an event may be, VALIDATION_ERROR for a run that cannot be, such as one with a source at an address that is refused.
   */
  create(workspaceId: string, plan: RunPlan): Promise<{ runId: string; created: boolean }>
}

export function createLifecycle({
  sql,
  log,
  maxEventBytes,
  now = Date.now,
  assertPossible = () => {},
}: {
  sql: Sql
  log: GroupCommit
  /** Of what is sent to create a run. */
  maxEventBytes: number
  now?: () => number
  assertPossible?: (plan: RunPlan) => void
}): Lifecycle {
  function hashOf(plan: RunPlan): string {
    assertPossible(plan)
    const text = textOf(plan)
    const bytes = Buffer.byteLength(plan.descriptor ? JSON.stringify(plan.descriptor) : text)
    if (bytes > maxEventBytes) {
      const message = `A run of ${bytes} bytes is over the limit of ${maxEventBytes} bytes an event (setting MAX_EVENT_BYTES). Send large input as an artifact.`
      throw new RunplaneError('PAYLOAD_TOO_LARGE', message)
    }
    return createHash('sha256').update(text).digest('hex')
  }

  /** The run that this request made before; undefined where it is new. @throws IDEMPOTENCY_CONFLICT */
  async function madeBefore(workspaceId: string, { id, idempotencyKey }: RunPlan, hash: string): Promise<string | undefined> {
    const rows = await sql<{ id: string; hash: string }[]>`
      select id, encode(request_hash, 'hex') as hash from runs
      where workspace_id = ${workspaceId} and (id = ${id ?? null} or idempotency_key = ${idempotencyKey ?? null})`
    const [row] = rows
    if (!row || (rows.length === 1 && row.hash === hash)) return row?.id
    throw new RunplaneError(
      'IDEMPOTENCY_CONFLICT',
      rows.some((other) => other.id === id)
        ? `There is a run '${id}' already, which was created by another request. Choose another id, or leave it out.`
        : 'This Idempotency-Key was used to create another run. Use a new key for a new run.',
    )
  }

  return {
    async assertPlan(workspaceId, plan) {
      await madeBefore(workspaceId, plan, hashOf(plan))
    },
    async create(workspaceId, plan) {
      const hash = hashOf(plan)
      // The id may be taken by a run that is deleted before it is looked at: then it is free after all.
      for (let attempt = 0; attempt < CREATE_ATTEMPTS; attempt++) {
        const key = uuidv7(now())
        const id = plan.id ?? key
        const createdAt = new Date(now()).toISOString()
        const outcome = await log.append({
          runKey: key,
          receivedAt: createdAt,
          items: [],
          create: {
            key,
            workspace_id: workspaceId,
            id,
            name: plan.name ?? null,
            kind: plan.kind ?? null,
            queue: plan.queue ?? null,
            priority: plan.priority ?? 0,
            available_at: plan.availableAt === undefined ? null : (toUtc(plan.availableAt) ?? null),
            max_attempts: plan.maxAttempts ?? null,
            lease_ms: plan.leaseMs ?? null,
            concurrency_key: plan.concurrencyKey ?? null,
            parent_run_id: plan.parentRunId ?? null,
            input: jsonOrNull(plan.input),
            metadata: jsonOrNull(plan.metadata),
            ...groupingOf(plan.metadata),
            tags: plan.tags ?? [],
            descriptor: jsonOrNull({
              participants: plan.participants,
              session: plan.session,
              source: plan.source,
              cancelCallback: plan.cancelCallback,
              descriptor: plan.descriptor,
            }),
            source: jsonOrNull(plan.source),
            request_hash: hash,
            idempotency_key: plan.idempotencyKey ?? null,
            created_at: createdAt,
          },
          decide: () => firstEvents(plan),
        })
        if (outcome.kind === 'done') return { runId: id, created: true }
        if (outcome.kind === 'refused') throw outcome.error
        const before = await madeBefore(workspaceId, plan, hash)
        if (before !== undefined) return { runId: before, created: false }
      }
      throw new RunplaneError('OVERLOADED', `Runs with this id or Idempotency-Key are made and deleted all the time. Try again.`, {
        headers: { 'retry-after': '1' },
      })
    },
  }
}

function firstEvents(plan: RunPlan): DraftEvent[] {
  const events: DraftEvent[] = [
    {
      type: 'run.created',
      data: withoutUndefined({
        name: plan.name,
        kind: plan.kind,
        input: plan.input,
        tags: plan.tags ?? [],
        parentRunId: plan.parentRunId,
        metadata: plan.metadata,
        session: plan.session,
        participants: plan.participants?.map((participant) => participant.id),
      }),
    },
  ]
  for (const { id, role } of plan.participants ?? []) {
    events.push({ type: 'participant.seen', subject: { kind: 'participant', id }, data: withoutUndefined({ participantId: id, role }) })
  }
  if (plan.queue !== undefined) {
    events.push({
      type: 'run.queued',
      data: withoutUndefined({ queue: plan.queue, priority: plan.priority ?? 0, availableAt: plan.availableAt && toUtc(plan.availableAt) }),
    })
  }
  return events
}

/** What was asked for, whatever the order of its keys, in which form it came, and the Idempotency-Key that came with it. */
function textOf({ idempotencyKey: _, cancelCallbackPath: __, ...plan }: RunPlan): string {
  return JSON.stringify(sorted(plan))
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== 'object' || value === null) return value
  const members = Object.entries(value).filter(([, member]) => member !== undefined)
  return Object.fromEntries(members.sort(([left], [right]) => (left < right ? -1 : 1)).map(([name, member]) => [name, sorted(member)]))
}

function jsonOrNull(value: unknown): string | null {
  return value === undefined ? null : JSON.stringify(value)
}
