/** What a client sends to create a run: the native command, or the body of a macp RunDescriptor, which becomes one. */
import { type Static, Type } from '@sinclair/typebox'
import { RunplaneError } from '../errors.js'
import { NEW_RUN_ID_PATTERN, RUN_ID_PATTERN } from './ids.js'
import { pattern } from './pattern.js'
import { storable } from './storable.js'

const name = Type.String({ minLength: 1, maxLength: 256 })
const json = Type.Record(Type.String(), Type.Unknown())
const closed = { additionalProperties: false } as const
const open = { additionalProperties: true } as const

export const Participant = Type.Object({ id: name, role: Type.Optional(name) }, open)
export const Tags = Type.Array(Type.String({ minLength: 1, maxLength: 128 }), { maxItems: 100 })

/** Where the service reads a run's events itself. */
export const RunSource = Type.Object(
  {
    url: Type.String({ minLength: 1, maxLength: 4096 }),
    format: Type.Optional(name),
    headers: Type.Optional(Type.Record(Type.String(), Type.String())),
    resume: Type.Optional(Type.Union([Type.Literal('last-event-id'), Type.Literal('query')])),
    idleTimeoutMs: Type.Optional(Type.Integer({ minimum: 100, maximum: 86_400_000 })),
  },
  closed,
)

/** Where a POST tells the worker that its run is to be cancelled. */
export const CancelCallback = Type.Object(
  { url: Type.String({ minLength: 1, maxLength: 4096 }), headers: Type.Optional(Type.Record(Type.String(), Type.String())) },
  closed,
)

/** What a header may hold (RFC 9110, section 5.5). */
const BEARER_PATTERN = pattern('^[\\t\\x20-\\x7e\\x80-\\xff]*$', 'text that a header can hold')

/** A session as macp knows it. Where its initiator is told of a cancellation stands in its metadata. */
const SessionMetadata = Type.Object(
  {
    cancelCallback: Type.Optional(
      Type.Object(
        {
          url: CancelCallback.properties.url,
          bearer: Type.Optional(Type.String({ maxLength: 8000, pattern: BEARER_PATTERN, description: 'sent as the header Authorization, and never shown' })),
        },
        closed,
      ),
    ),
  },
  open,
)
const Session = Type.Unsafe<Record<string, unknown> & { metadata?: Static<typeof SessionMetadata> }>(
  Type.Object({ metadata: Type.Optional(SessionMetadata) }, open),
)
const CALLBACK_OF_SESSION = 'body/session/metadata/cancelCallback'

export const CreateRun = Type.Object(
  {
    id: Type.Optional(Type.String({ pattern: NEW_RUN_ID_PATTERN, description: 'chosen by the client; without one the service makes a UUIDv7' })),
    name: Type.Optional(name),
    kind: Type.Optional(name),
    queue: Type.Optional(name),
    priority: Type.Optional(Type.Integer({ minimum: -1_000_000, maximum: 1_000_000 })),
    availableAt: Type.Optional(Type.String({ format: 'date-time' })),
    input: Type.Optional(Type.Unknown()),
    metadata: Type.Optional(json),
    tags: Type.Optional(Tags),
    participants: Type.Optional(Type.Array(Participant, { maxItems: 1000 })),
    session: Type.Optional(Session),
    source: Type.Optional(RunSource),
    parentRunId: Type.Optional(Type.String({ pattern: RUN_ID_PATTERN })),
    concurrencyKey: Type.Optional(name),
    cancelCallback: Type.Optional(CancelCallback),
    maxAttempts: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
    leaseMs: Type.Optional(Type.Integer({ minimum: 1000, maximum: 86_400_000 })),
  },
  { ...closed, $id: 'CreateRun' },
)
export type CreateRun = Static<typeof CreateRun>

/**
 * The macp RunDescriptor, as far as it is read; what else is in it is kept with the run. The session names its mode and participants, without which
 * macp-control-plane refuses it as well; versions and a time it may leave out here, where nothing depends on them.
 */
export const RunDescriptor = Type.Object(
  {
    mode: Type.Optional(name),
    runtime: Type.Optional(Type.Object({ kind: name, version: Type.Optional(name) }, open)),
    session: Type.Object(
      {
        sessionId: Type.Optional(name),
        modeName: name,
        modeVersion: Type.Optional(name),
        configurationVersion: Type.Optional(name),
        policyVersion: Type.Optional(name),
        ttlMs: Type.Optional(Type.Integer({ minimum: 1 })),
        participants: Type.Array(Participant, { minItems: 1, maxItems: 1000 }),
        metadata: Type.Optional(SessionMetadata),
      },
      open,
    ),
    execution: Type.Optional(
      Type.Object(
        {
          idempotencyKey: Type.Optional(Type.String({ minLength: 1, maxLength: 255 })),
          tags: Type.Optional(Tags),
          requester: Type.Optional(json),
        },
        open,
      ),
    ),
  },
  { ...closed, $id: 'RunDescriptor' },
)
export type RunDescriptor = Static<typeof RunDescriptor>

/** The two forms are told apart by the fields that only a descriptor has. */
export function isRunDescriptor(body: unknown): boolean {
  if (typeof body !== 'object' || body === null) return false
  return 'runtime' in body || 'execution' in body || 'mode' in body
}

/** What both forms come to. */
export interface RunPlan extends CreateRun {
  idempotencyKey?: string | undefined
  /** Kept with the run as it came, but for its cancelCallback. */
  descriptor?: RunDescriptor | undefined
  /** Where in the body the cancelCallback stood, if not where the native command has it. */
  cancelCallbackPath?: string | undefined
}

export function planOfDescriptor(descriptor: RunDescriptor): RunPlan {
  const { execution, mode, runtime } = descriptor
  const { session, ...called } = takeCallback(descriptor.session)
  const { participants, metadata: told, ...rest } = session
  const metadata: Record<string, unknown> = { ...told }
  if (execution?.requester) metadata.requester = execution.requester
  if (mode) metadata.mode = mode
  if (runtime) metadata.runtime = runtime
  return {
    kind: 'macp',
    tags: execution?.tags,
    participants,
    session: rest,
    metadata,
    idempotencyKey: execution?.idempotencyKey,
    descriptor: { ...descriptor, session },
    ...called,
  }
}

/** @throws VALIDATION_ERROR for a command with two callbacks */
export function planOfCommand(command: CreateRun): RunPlan {
  if (command.session === undefined) return command
  const taken = takeCallback(command.session)
  if (command.cancelCallback && taken.cancelCallback) {
    throw new RunplaneError('VALIDATION_ERROR', `There is a cancelCallback, and another one at ${CALLBACK_OF_SESSION}. Name one.`)
  }
  return { ...command, ...taken }
}

/** Sessions are shown, and a callback holds a secret: it is taken out, and is the run's own from then on. */
function takeCallback<S extends { metadata?: Static<typeof SessionMetadata> }>(
  session: S,
): { session: S } & Pick<RunPlan, 'cancelCallback' | 'cancelCallbackPath'> {
  if (session.metadata?.cancelCallback === undefined) return { session }
  const { cancelCallback, ...metadata } = session.metadata
  const { url, bearer } = cancelCallback
  return {
    session: { ...session, metadata },
    cancelCallback: { url, ...(bearer && { headers: { Authorization: `Bearer ${bearer}` } }) },
    cancelCallbackPath: CALLBACK_OF_SESSION,
  }
}

/** Characters of the name of a scenario or an environment. */
const MAX_GROUP = 256

/** By what the overview groups and filters runs: members of the metadata that macp-control-plane names so. */
export function groupingOf(metadata: unknown): { scenario: string | null; environment: string | null } {
  const name = (value: unknown) => (typeof value === 'string' && value !== '' ? storable(value.slice(0, MAX_GROUP)) : null)
  const { sourceRef, scenarioRef, environment }: Readonly<Record<string, unknown>> = typeof metadata === 'object' && metadata !== null ? { ...metadata } : {}
  return { scenario: name(sourceRef) ?? name(scenarioRef), environment: name(environment) }
}
