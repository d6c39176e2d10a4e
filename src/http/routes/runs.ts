/** Runs: create, validate, list, get, state, rebuild. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import type { Sql } from '../../db/client.js'
import { RUN_STATUSES, type RunStatus } from '../../domain/run.js'
import { CreateRun, RunDescriptor, type RunPlan } from '../../domain/run-request.js'
import { type ProblemField, RunplaneError } from '../../errors.js'
import type { RunKeys } from '../../log/run-keys.js'
import type { Lifecycle } from '../../runs/lifecycle.js'
import { listRuns } from '../../runs/list.js'
import { getRun, RunRecord } from '../../runs/record.js'
import type { RunStates, StateAnswer } from '../../runs/state.js'
import { isKnown } from '../etag.js'
import { partsOf } from '../parts.js'
import { checkRun, planRun } from '../run-plan.js'
import { reference } from '../schemas/reference.js'
import { KeyHeader, ListRunsQuery, RunParams, StateQuery } from '../schemas/run.js'

export interface RunsRoutesDeps {
  sql: Sql
  lifecycle: Lifecycle
  runStates: RunStates
  runKeys: RunKeys
}

const JSON_TYPE = 'application/json; charset=utf-8'
const Body = Type.Unknown({ description: 'a CreateRun, or a macp RunDescriptor' })
export const RunStateAnswer = Type.Object(
  { runId: Type.String(), version: Type.Integer(), schemaVersion: Type.Integer(), state: Type.Unknown() },
  { $id: 'RunStateAnswer' },
)

export const runsRoutes: FastifyPluginAsyncTypebox<RunsRoutesDeps> = async (app, { sql, lifecycle, runStates, runKeys }) => {
  for (const schema of [CreateRun, RunDescriptor, RunRecord, RunStateAnswer]) app.addSchema(schema)
  const record = reference(RunRecord)
  // Sent as text, see stateText.
  const stateAnswer = Type.Unsafe<string>({ $ref: 'RunStateAnswer#', description: 'The state of the run, and the seq that it has folded' })
  const body = { ...Body, anyOf: [{ $ref: 'CreateRun#' }, { $ref: 'RunDescriptor#' }] }

  app.post(
    '/runs',
    {
      config: { role: 'member', errors: ['IDEMPOTENCY_CONFLICT'], headers: { 200: ['Location'], 201: ['Location'] } },
      // The two forms are checked by hand, so that an error tells about the form that was meant.
      validatorCompiler: () => () => true,
      schema: {
        operationId: 'createRun',
        tags: ['runs'],
        summary: 'Create a run',
        body,
        headers: KeyHeader,
        response: { 200: reference(RunRecord, 'The run, which the same request has created before'), 201: reference(RunRecord, 'The run') },
      },
    },
    async (request, reply) => {
      const { runId, created } = await lifecycle.create(request.access.workspaceId, planOf(request.body, request.headers))
      const run = await getRun(sql, request.access.workspaceId, runId)
      return reply
        .code(created ? 201 : 200)
        .header('location', `/runs/${encodeURIComponent(runId)}`)
        .send(run)
    },
  )

  app.post(
    '/runs/validate',
    {
      config: { role: 'guest' },
      validatorCompiler: () => () => true,
      schema: {
        operationId: 'validateRun',
        tags: ['runs'],
        summary: 'Check what would create a run, without creating it',
        body,
        headers: KeyHeader,
        response: {
          200: Type.Object(
            {
              valid: Type.Boolean(),
              errors: Type.Array(Type.Object({ path: Type.String(), message: Type.String() })),
              warnings: Type.Array(Type.String()),
            },
            { description: 'Whether it would create a run, and what is wrong with it' },
          ),
        },
      },
    },
    async (request) => {
      const errors = checkRun(request.body)
      if (errors.length === 0) errors.push(...(await impossible(request.access.workspaceId, request.body, request.headers)))
      return { valid: errors.length === 0, errors, warnings: [] }
    },
  )

  app.get(
    '/runs',
    {
      config: { role: 'guest', errors: ['CURSOR_INVALID'] },
      schema: {
        operationId: 'listRuns',
        tags: ['runs'],
        summary: 'List runs',
        querystring: ListRunsQuery,
        response: {
          200: Type.Object(
            { data: Type.Array(record), nextCursor: Type.Optional(Type.String()), total: Type.Optional(Type.Integer()) },
            { description: 'A page of runs' },
          ),
        },
      },
    },
    async (request) => {
      const { query } = request
      return listRuns(sql, request.access.workspaceId, {
        ...query,
        status: statuses(query.status),
        tags: listOf(query.tags),
        includeArchived: query.includeArchived ?? false,
        sort: query.sort ?? 'createdAt',
        order: query.order ?? 'desc',
        limit: query.limit ?? 50,
        count: query.count ?? false,
      })
    },
  )

  app.get(
    '/runs/:id',
    {
      config: { role: 'guest' },
      schema: { operationId: 'getRun', tags: ['runs'], summary: 'Get a run', params: RunParams, response: { 200: reference(RunRecord, 'The run') } },
    },
    async (request) => getRun(sql, request.access.workspaceId, request.params.id),
  )

  app.get(
    '/runs/:id/state',
    {
      config: { role: 'guest', errors: ['CURSOR_INVALID', 'INVALID_STATE_TRANSITION'], headers: { 200: ['ETag'], 304: ['ETag'] } },
      schema: {
        operationId: 'getRunState',
        tags: ['runs'],
        summary: 'Get the state of a run, folded from its events',
        params: RunParams,
        querystring: StateQuery,
        headers: Type.Object({ 'if-none-match': Type.Optional(Type.String()) }),
        response: { 200: stateAnswer, 304: Type.Unsafe<undefined>({ type: 'null', description: 'as it was' }) },
      },
    },
    async (request, reply) => {
      const { id } = request.params
      const known = request.headers['if-none-match']
      const { seq } = request.query
      const answer = await runKeys.use(request.access.workspaceId, id, async (key) => {
        if (known !== undefined && seq === undefined) {
          const [row] = await sql<{ last_seq: number }[]>`select last_seq from runs where key = ${key}`
          if (row && isKnown(known, `"${row.last_seq}"`)) return { version: row.last_seq }
        }
        return runStates.read({ key, id }, seq)
      })
      const etag = `"${answer.version}"`
      reply.header('etag', etag).header('cache-control', 'no-cache')
      if (!('stateJson' in answer) || isKnown(known, etag)) return reply.code(304).send(undefined)
      return reply.type(JSON_TYPE).send(stateText(id, answer))
    },
  )

  app.post(
    '/runs/:id/projection/rebuild',
    {
      config: { role: 'member', errors: ['INVALID_STATE_TRANSITION'] },
      schema: {
        operationId: 'rebuildProjection',
        tags: ['runs'],
        summary: 'Fold the state of a run anew from its log',
        params: RunParams,
        response: { 200: stateAnswer },
      },
    },
    async (request, reply) => {
      const { id } = request.params
      const answer = await runKeys.use(request.access.workspaceId, id, (key) => runStates.rebuild({ key, id }))
      return reply.type(JSON_TYPE).send(stateText(id, answer))
    },
  )

  /** What is well-formed and yet cannot be. */
  async function impossible(workspaceId: string, body: unknown, headers: Static<typeof KeyHeader>): Promise<ProblemField[]> {
    try {
      await lifecycle.assertPlan(workspaceId, planOf(body, headers))
      return []
    } catch (error) {
      if (error instanceof RunplaneError && error.status < 500) return error.errors ?? [{ path: 'body', message: error.message }]
      throw error
    }
  }
}

/** @throws VALIDATION_ERROR with all that is wrong */
function planOf(body: unknown, { 'idempotency-key': idempotencyKey }: Static<typeof KeyHeader>): RunPlan {
  if (idempotencyKey !== undefined && (idempotencyKey.length === 0 || idempotencyKey.length > 255)) {
    throw new RunplaneError('VALIDATION_ERROR', 'Idempotency-Key has 1 to 255 characters.')
  }
  const plan = planRun(body)
  if (idempotencyKey !== undefined && plan.idempotencyKey !== undefined && idempotencyKey !== plan.idempotencyKey) {
    const message = 'is not the key of the header Idempotency-Key. Send the key once, or the same one.'
    throw new RunplaneError('VALIDATION_ERROR', `The run cannot be created: execution.idempotencyKey ${message}`, {
      errors: [{ path: 'body/execution/idempotencyKey', message }],
    })
  }
  return { ...plan, idempotencyKey: idempotencyKey ?? plan.idempotencyKey }
}

/** The answer as text: going through objects again would cost more than folding the state. */
export function stateText(runId: string, { version, schemaVersion, stateJson }: StateAnswer): string {
  return `{"runId":${JSON.stringify(runId)},"version":${version},"schemaVersion":${schemaVersion},"state":${stateJson}}`
}

export function listOf(text: string | undefined): string[] | undefined {
  const values = partsOf(text ?? '').filter((value) => value !== '')
  return values.length > 0 ? values : undefined
}

export function statuses(text: string | undefined): RunStatus[] | undefined {
  return listOf(text)?.map((value) => {
    const status = RUN_STATUSES.find((known) => known === value)
    if (status === undefined) throw new RunplaneError('VALIDATION_ERROR', `status: '${value}' is not a status. There are: ${RUN_STATUSES.join(', ')}.`)
    return status
  })
}
