/** `GET /audit`: who commanded what in this workspace, newest first. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { AUDIT_OUTCOMES, type Audit } from '../../access/audit.js'
import { toUtc } from '../../domain/time.js'
import { RunplaneError } from '../../errors.js'
import { reference } from '../schemas/reference.js'

const nullable = (description: string) => Type.Union([Type.String(), Type.Null()], { description })
const Outcome = Type.Union(
  AUDIT_OUTCOMES.map((outcome) => Type.Literal(outcome)),
  { description: 'refused: for what it asked; failed: for a fault of the service, or its end is not known (`detail.unfinished`)' },
)

export const AuditLine = Type.Object(
  {
    id: Type.String({ format: 'uuid' }),
    at: Type.String({ format: 'date-time' }),
    actor: Type.String({ description: 'the name of the key; `anonymous` where the service is open' }),
    actorKeyId: nullable('the id of the key'),
    action: Type.String({ examples: ['run.cancel', 'key.create'] }),
    target: Type.Object({ kind: Type.String({ examples: ['run'] }), id: nullable('what it was done to; null where nothing was made') }),
    requestId: nullable('as in the answer and in the log'),
    outcome: Outcome,
    detail: Type.Unknown({ description: 'the status and code of the answer, and what was asked for, without secrets' }),
  },
  { $id: 'AuditLine' },
)

const AuditQuery = Type.Object({
  actor: Type.Optional(Type.String({ maxLength: 256 })),
  action: Type.Optional(Type.String({ maxLength: 128, description: 'one, or a family: `run.*`' })),
  target: Type.Optional(Type.String({ maxLength: 512, description: 'an id, or kind/id', examples: ['queue/build'] })),
  run: Type.Optional(Type.String({ maxLength: 128, description: 'the id of a run: short for target=run/<id>' })),
  outcome: Type.Optional(Outcome),
  from: Type.Optional(Type.String({ description: 'RFC 3339' })),
  to: Type.Optional(Type.String({ description: 'RFC 3339' })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 200, default: 50 })),
  cursor: Type.Optional(Type.String({ maxLength: 64, description: 'the `nextCursor` of the page before' })),
})

export function auditRoutes({ audit }: { audit: Audit }): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.addSchema(AuditLine)
    app.get(
      '/audit',
      {
        config: { role: 'admin', errors: ['CURSOR_INVALID'] },
        schema: {
          operationId: 'listAudit',
          tags: ['access'],
          summary: 'Who commanded what, newest first',
          querystring: AuditQuery,
          response: {
            200: Type.Object({ data: Type.Array(reference(AuditLine)), nextCursor: Type.Optional(Type.String()) }, { description: 'A page of the audit log' }),
          },
        },
      },
      async (request) => {
        const { run, target, from, to, limit = 50, ...query } = request.query
        if (run !== undefined && target !== undefined) throw new RunplaneError('VALIDATION_ERROR', 'run is short for target=run/<id>: send one of them.')
        const slash = target?.indexOf('/') ?? -1
        const of =
          run !== undefined
            ? { targetKind: 'run', targetId: run }
            : target === undefined
              ? {}
              : slash > 0
                ? { targetKind: target.slice(0, slash), targetId: target.slice(slash + 1) }
                : { targetId: target }
        return audit.list(request.access.workspaceId, { ...query, ...of, limit, from: timeOf('from', from), to: timeOf('to', to) })
      },
    )
  }
}

function timeOf(name: string, text: string | undefined): string | undefined {
  const utc = text === undefined ? undefined : toUtc(text)
  if (text !== undefined && utc === undefined) throw new RunplaneError('VALIDATION_ERROR', `${name} must be an RFC 3339 time, such as 2026-11-21T08:00:00Z.`)
  return utc
}
