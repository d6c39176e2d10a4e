/**
 * A line in the audit log for each command: every route that changes something, but for what agents and workers tell of their work, which the runs'
 * own logs have. The action is named after the operation: `cancelRun` is `run.cancel`.
 */
import type { FastifyInstance, FastifyRequest, onSendAsyncHookHandler, preHandlerAsyncHookHandler, preSerializationAsyncHookHandler } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import type { Audit, AuditEntry } from '../../access/audit.js'
import type { Mask } from '../../ingest/mask.js'
import { knownAccess } from './access.js'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The action of a route that is a command; found by the operation where a route does not say it. False: it is none. */
    audit?: false | { action: string; targetKind: string }
  }
  interface FastifyRequest {
    /** Of a command that has begun. */
    auditLine: { id: string | undefined; made: string | undefined } | null
  }
}

/** Operations of agents and workers: what they do is in the log of the run, and there are many. */
const NO_COMMANDS = new Set(['postEvents', 'claimRun', 'heartbeatRun', 'releaseRun', 'postArtifact', 'uploadArtifact', 'createArtifact'])
/** Operations whose name does not say what they are done to. */
const NAMED: Record<string, { action: string; targetKind: string }> = {
  rebuildProjection: { action: 'run.rebuild', targetKind: 'run' },
  rotateWebhookSecret: { action: 'webhook.rotate', targetKind: 'webhook' },
  resendDeadDeliveries: { action: 'webhook.resend', targetKind: 'webhook' },
  exportRuns: { action: 'export.create', targetKind: 'export' },
}
/** The first event of a run says that it was created: its line need not be there before. */
const AFTERWARDS = new Set(['run.create'])
/** What of a body is told. Never what may hold a secret: no URLs, no headers, no content. */
const TOLD = [
  'reason',
  'by',
  'as',
  'id',
  'name',
  'kind',
  'queue',
  'role',
  'workspace',
  'types',
  'enabled',
  'paused',
  'concurrency',
  'keyConcurrency',
  'filter',
  'format',
]
const MAX_TEXT = 500
const MAX_TOLD_IDS = 100

/** `cancelRun` -> run.cancel; `cancelRuns` -> runs.cancel */
export function actionOf(operationId: string): { action: string; targetKind: string } {
  const named = NAMED[operationId]
  if (named) return named
  const [verb = operationId, ...nouns] = operationId.split(/(?=[A-Z])/).map((word) => word.toLowerCase())
  const noun = nouns.join('-') || 'service'
  return { action: `${noun}.${verb}`, targetKind: noun }
}

/** The least that is known of a route; its schema may say how it is called. */
interface RouteFacts {
  method: string | string[]
  config?: { role?: string; audit?: false | { action: string; targetKind: string } } | undefined
  schema?: object | undefined
}

/** Undefined: the route is no command. */
export function auditOf({ method, config, schema }: RouteFacts): { action: string; targetKind: string } | undefined {
  const reads = [method].flat().every((one) => one === 'GET' || one === 'HEAD' || one === 'OPTIONS')
  // Whoever may only read cannot command: what a guest may POST asks a question.
  if (reads || config?.audit === false || config?.role === undefined || config.role === 'guest') return undefined
  if (config.audit) return config.audit
  const operationId = schema && 'operationId' in schema ? String(schema.operationId) : undefined
  return operationId === undefined || NO_COMMANDS.has(operationId) ? undefined : actionOf(operationId)
}

export const auditPlugin = fastifyPlugin(
  async (app: FastifyInstance, { audit, mask }: { audit: Audit; mask: Pick<Mask, 'text'> }) => {
    app.decorateRequest('auditLine', null)

    const begin: preHandlerAsyncHookHandler = async (request) => {
      const named = request.routeOptions.config.audit
      if (!named) return
      request.auditLine = { id: undefined, made: undefined }
      if (!AFTERWARDS.has(named.action)) request.auditLine.id = await audit.begin(entryOf(request, named, mask))
    }

    // What was made is told by its id.
    const noteMade: preSerializationAsyncHookHandler = async (request, _reply, payload) => {
      const line = request.auditLine
      if (!line || typeof payload !== 'object' || payload === null) return payload
      const id = 'runId' in payload ? payload.runId : 'id' in payload ? payload.id : undefined
      if (typeof id === 'string') line.made = id
      return payload
    }

    // Before the answer is sent: who has it finds the line complete.
    const complete: onSendAsyncHookHandler = async (request, reply, payload) => {
      const named = request.routeOptions.config?.audit
      // What was refused before its handler, by the role or by the schema, has not begun.
      const line = request.auditLine ?? { id: undefined, made: undefined }
      if (!named || knownAccess(request) === null) return payload
      const entry = entryOf(request, named, mask)
      const status = reply.statusCode
      const outcome = status < 400 ? 'done' : status < 500 ? 'refused' : 'failed'
      const made = line.made === entry.targetId ? undefined : line.made
      const detail = {
        status,
        ...(status >= 400 && { code: codeOf(payload) }),
        ...entry.detail,
        ...(made !== undefined && entry.targetId !== undefined && { made }),
      }
      const targetId = entry.targetId ?? line.made
      try {
        if (line.id === undefined) await audit.record([{ ...entry, targetId, outcome, detail }])
        else await audit.finish(line.id, { targetId, outcome, detail })
      } catch (error) {
        request.log.error({ err: error, action: entry.action, targetId, outcome }, 'an audit line could not be completed')
      }
      return payload
    }

    // Of the commands only: the others pay nothing for it.
    app.addHook('onRoute', (route) => {
      const named = auditOf(route)
      if (!named) return
      route.config = { ...route.config, audit: named }
      route.preHandler = [route.preHandler ?? [], begin].flat()
      route.preSerialization = [route.preSerialization ?? [], noteMade].flat()
      route.onSend = [route.onSend ?? [], complete].flat()
    })
  },
  { name: 'audit', dependencies: ['access', 'errors'] },
)

function entryOf(
  request: FastifyRequest,
  { action, targetKind }: { action: string; targetKind: string },
  mask: Pick<Mask, 'text'>,
): Omit<AuditEntry, 'outcome'> {
  const access = knownAccess(request)
  const params: unknown = request.params
  const target = textAt(params, `${targetKind}Id`) ?? textAt(params, 'id') ?? textAt(params, 'name') ?? textAt(params, 'queue')
  return {
    workspaceId: access?.workspaceId ?? '',
    actor: access?.keyName ?? '',
    actorKeyId: access?.keyId,
    action,
    targetKind,
    // Whatever a path names, also where there is no such thing.
    targetId: target === undefined ? undefined : mask.text(target),
    requestId: request.id,
    detail: told(request.body),
  }
}

/** The code of problem details. */
function codeOf(payload: unknown): string | undefined {
  return typeof payload === 'string' ? /"code":"([A-Z_]+)"/.exec(payload)?.[1] : undefined
}

function textAt(object: unknown, name: string): string | undefined {
  if (typeof object !== 'object' || object === null) return undefined
  const value: unknown = Reflect.get(object, name)
  return typeof value === 'string' ? value.slice(0, MAX_TEXT) : undefined
}

function told(body: unknown): Record<string, unknown> {
  if (typeof body !== 'object' || body === null || Array.isArray(body) || Buffer.isBuffer(body)) return {}
  const detail: Record<string, unknown> = {}
  for (const name of TOLD) {
    const value: unknown = Object.hasOwn(body, name) ? Reflect.get(body, name) : undefined
    if (value !== undefined) detail[name] = clipped(value)
  }
  if ('runIds' in body && Array.isArray(body.runIds)) {
    detail.runs = body.runIds.length
    detail.runIds = body.runIds.slice(0, MAX_TOLD_IDS)
  }
  return detail
}

/** A text is cut, and so is what is larger than one as JSON. */
function clipped(value: unknown): unknown {
  const text = typeof value === 'string' ? value : textOf(value)
  return text.length <= MAX_TEXT ? value : `${text.slice(0, MAX_TEXT)}…`
}

function textOf(value: unknown): string {
  try {
    return JSON.stringify(value)
  } catch {
    // It nests too deep to be written.
    return ' '.repeat(MAX_TEXT + 1)
  }
}
