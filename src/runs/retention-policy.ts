/** What is kept for how long, as it is set: RETENTION_POLICIES, a JSON list. None: everything is kept. */
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { ConfigError } from '../config.js'
import { isTerminal, RUN_STATUSES, type RunStatus, TERMINAL_STATUSES } from '../domain/run.js'
import { Tags } from '../domain/run-request.js'

export const RetentionPolicy = Type.Object(
  {
    /** For the audit log. */
    name: Type.String({ minLength: 1, maxLength: 100 }),
    action: Type.Union([Type.Literal('archive'), Type.Literal('delete'), Type.Literal('trim')]),
    /** Since the run's end, or its last event where it has not ended. */
    afterDays: Type.Number({ minimum: 0, maximum: 36_500 }),
    /** By name; none: all. */
    workspace: Type.Optional(Type.String({ minLength: 1, maxLength: 63 })),
    /** None: those that have ended. */
    status: Type.Optional(Type.Array(Type.Union(RUN_STATUSES.map((status) => Type.Literal(status))), { minItems: 1 })),
    kind: Type.Optional(Type.String({ minLength: 1, maxLength: 256 })),
    /** All of them. */
    tags: Type.Optional(Tags),
    /** Only archived runs, or only others. */
    archived: Type.Optional(Type.Boolean()),
    /** Only runs with more canonical events than this. */
    minEvents: Type.Optional(Type.Integer({ minimum: 0 })),
    /** Of a run that is trimmed: its last ones, which stay. */
    keepEvents: Type.Optional(Type.Integer({ minimum: 0 })),
    /** Trims the raw events only. */
    only: Type.Optional(Type.Literal('raw')),
    /** Into the store, as a bundle that can be imported, before anything of the run is deleted. */
    export: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type RetentionPolicy = Static<typeof RetentionPolicy>

const Policies = Type.Array(RetentionPolicy, { maxItems: 100 })

export function statusesOf({ status }: RetentionPolicy): readonly RunStatus[] {
  return status ?? TERMINAL_STATUSES
}

/** @throws ConfigError that says which policy is wrong, and how. */
export function parsePolicies(text: string | undefined): RetentionPolicy[] {
  if (text === undefined) return []
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new ConfigError(`RETENTION_POLICIES: '${shortened(text)}' is not JSON. Allowed: a list of policies (docs/RETENTION.md).`)
  }
  if (!Value.Check(Policies, value)) {
    const [fault] = Value.Errors(Policies, value)
    const what = `${fault?.path || '/'} is ${shortened(JSON.stringify(fault?.value) ?? 'missing')}: ${fault?.message}`
    throw new ConfigError(`RETENTION_POLICIES: ${what}. Allowed: a list of policies (docs/RETENTION.md).`)
  }
  for (const policy of value) {
    const fault = faultOf(policy)
    if (fault) throw new ConfigError(`RETENTION_POLICIES: '${policy.name}' ${fault} (docs/RETENTION.md).`)
  }
  return value
}

const shortened = (text: string) => (text.length > 100 ? `${text.slice(0, 100)}...` : text)

function faultOf(policy: RetentionPolicy): string | undefined {
  const { action, keepEvents, only } = policy
  if (action === 'delete' && !statusesOf(policy).every(isTerminal)) return `deletes, and so its status can only be ${TERMINAL_STATUSES.join(', ')}`
  if (action !== 'trim' && (keepEvents !== undefined || only !== undefined)) return 'has keepEvents or only, which go with the action trim'
  if (action === 'archive' && policy.export !== undefined) return 'has export, but archiving deletes nothing'
  return undefined
}
