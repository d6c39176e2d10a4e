/** What runs did, used and cost: one by one, and all of a workspace over a window. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Sql } from '../../db/client.js'
import { runNotFound } from '../../errors.js'
import type { Mask } from '../../ingest/mask.js'
import { createMessages, Message } from '../../insight/messages.js'
import { metricsOf, RunMetrics } from '../../insight/metrics.js'
import { AgentMetrics, createOverview, Overview } from '../../insight/overview.js'
import type { PriceTable } from '../../insight/prices.js'
import type { LogReader } from '../../log/read.js'
import type { RunKeys } from '../../log/run-keys.js'
import { viewState } from '../../projections/fold.js'
import type { RunStates } from '../../runs/state.js'
import { parseSeq } from '../../tail/cursor.js'
import { AgentsQuery, MessagesQuery, MetricsQuery, OverviewQuery, RunTrace } from '../schemas/insight.js'
import { reference } from '../schemas/reference.js'
import { RunParams } from '../schemas/run.js'

export interface InsightRoutesDeps {
  sql: Sql
  log: LogReader
  runKeys: RunKeys
  runStates: RunStates
  prices: PriceTable
  mask: Pick<Mask, 'text'>
}

const DEFAULT_MESSAGES = 100
const DEFAULT_AGENTS = 200

export const insightRoutes: FastifyPluginAsyncTypebox<InsightRoutesDeps> = async (app, { sql, log, runKeys, runStates, prices, mask }) => {
  for (const schema of [RunMetrics, RunTrace, Message, Overview, AgentMetrics]) app.addSchema(schema)
  const dashboard = createOverview({ sql, prices })
  const messages = createMessages({ sql, log, mask })
  const route = { config: { role: 'guest' as const } }
  const tags = ['insight']

  app.get(
    '/runs/:id/metrics',
    {
      config: { role: 'guest', errors: ['CURSOR_INVALID', 'INVALID_STATE_TRANSITION'] },
      schema: {
        tags,
        operationId: 'getRunMetrics',
        summary: 'What a run did, used and cost, in numbers',
        params: RunParams,
        querystring: MetricsQuery,
        response: { 200: reference(RunMetrics, 'The numbers of the run') },
      },
    },
    async (request) => {
      const { id } = request.params
      const metrics = await runKeys.use(request.access.workspaceId, id, (key) =>
        runStates.at({ key, id }, request.query.seq, (state) => metricsOf(state, prices)),
      )
      // A state shortens a long id.
      return { ...metrics, runId: id }
    },
  )

  app.get(
    '/runs/:id/traces',
    {
      config: { role: 'guest', errors: ['INVALID_STATE_TRANSITION'] },
      schema: {
        tags,
        operationId: 'getRunTraces',
        summary: 'The trace that a run belongs to, and what is linked to it',
        params: RunParams,
        response: { 200: reference(RunTrace, 'The trace') },
      },
    },
    async (request) => {
      const { id } = request.params
      return runKeys.use(request.access.workspaceId, id, async (key) => {
        const [trace, runStatus] = await runStates.at({ key, id }, undefined, (state) => [viewState(state).trace, state.folds.run.status] as const)
        const { traceId, spanCount, lastSpanId, linkedArtifacts, linked } = trace
        const [row] = await sql<{ scenario: string | null }[]>`select scenario from runs where key = ${key}`
        return { runId: id, traceId, spanCount, lastSpanId, linkedArtifacts, linked, runStatus, scenarioRef: row?.scenario ?? undefined }
      })
    },
  )

  app.get(
    '/runs/:id/messages',
    {
      config: { role: 'guest', errors: ['CURSOR_INVALID'] },
      schema: {
        tags,
        operationId: 'listRunMessages',
        summary: 'The messages of a run: sent, received, and written by an agent',
        params: RunParams,
        querystring: MessagesQuery,
        response: {
          200: Type.Object(
            {
              data: Type.Array(reference(Message)),
              nextAfterSeq: Type.Optional(Type.Integer({ description: 'only if there is more. A page may be short, or empty, and still have it' })),
              headSeq: Type.Integer(),
            },
            { description: 'A page of messages' },
          ),
        },
      },
    },
    async (request) => {
      const { afterSeq, limit = DEFAULT_MESSAGES } = request.query
      const after = afterSeq === undefined ? 0 : parseSeq('afterSeq', afterSeq)
      const { id } = request.params
      return runKeys.use(request.access.workspaceId, id, async (key) => {
        const page = await messages.page(key, after, limit)
        if (!page) throw runNotFound(id)
        return page
      })
    },
  )

  app.get(
    '/dashboard/overview',
    {
      ...route,
      schema: {
        tags,
        operationId: 'getOverview',
        summary: 'The runs of the workspace over a window: figures, recent runs and series',
        querystring: OverviewQuery,
        response: { 200: reference(Overview, 'The figures') },
      },
    },
    async (request) => {
      const { range, window = range, ...query } = request.query
      return dashboard.overview(request.access.workspaceId, { ...query, window })
    },
  )

  app.get(
    '/dashboard/agents/metrics',
    {
      ...route,
      schema: {
        tags,
        operationId: 'getAgentMetrics',
        summary: 'What each participant told, over the runs of a window',
        querystring: AgentsQuery,
        response: { 200: Type.Array(reference(AgentMetrics), { description: 'The participants' }) },
      },
    },
    async (request) => {
      const { limit = DEFAULT_AGENTS, ...query } = request.query
      return dashboard.agents(request.access.workspaceId, query, limit)
    },
  )
}
