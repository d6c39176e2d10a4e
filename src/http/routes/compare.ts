/** `POST /runs/compare` and `GET /runs/compare`: two runs side by side, or several against the first. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { type ErrorCode, RunplaneError } from '../../errors.js'
import { COMPARE_SECTIONS, type CompareSection, Comparison, ComparisonMatrix } from '../../insight/compare/answer.js'
import type { Comparer, SideRequest } from '../../insight/compare/comparer.js'
import { goneSignal } from '../gone.js'
import { partsOf } from '../parts.js'
import { CompareBody, CompareQuery, type SideBody } from '../schemas/compare.js'
import { reference } from '../schemas/reference.js'

export interface CompareRoutesDeps {
  comparer: Comparer
}

const JSON_TYPE = 'application/json; charset=utf-8'
// Sent as text: what is in an event is no part of a schema.
const answers = Type.Unsafe<string>({
  anyOf: [{ $ref: 'Comparison#' }, { $ref: 'ComparisonMatrix#' }],
  description: 'How the runs differ: of two a Comparison, of several a ComparisonMatrix',
})
const answer = Type.Unsafe<string>({ $ref: 'Comparison#', description: 'How the runs differ' })
const REFUSED: ErrorCode[] = ['RUN_NOT_FOUND', 'CURSOR_INVALID', 'INVALID_STATE_TRANSITION', 'PAYLOAD_TOO_LARGE']

export function compareRoutes({ comparer }: CompareRoutesDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    for (const schema of [CompareBody, Comparison, ComparisonMatrix]) app.addSchema(schema)

    app.post(
      '/runs/compare',
      {
        config: { role: 'guest', errors: REFUSED },
        schema: {
          operationId: 'compareRuns',
          tags: ['insight'],
          summary: 'Put two runs side by side, or several against the first',
          description: 'Runs as they are when the comparison begins, live ones too; runs as of a seq; bundles. docs/COMPARE.md explains every field.',
          body: reference(CompareBody),
          response: { 200: answers },
        },
      },
      async (request, reply) => {
        const { runs, left, right, leftRunId, rightRunId, ...options } = request.body
        const { workspaceId } = request.access
        reply.type(JSON_TYPE)
        if (runs) {
          if (left || right || leftRunId || rightRunId) throw new RunplaneError('VALIDATION_ERROR', 'Send either runs, or left and right.')
          if (Object.keys(options).length > 0) throw new RunplaneError('VALIDATION_ERROR', `With runs, there is no ${Object.keys(options).join(', ')}.`)
          return reply.send(JSON.stringify(await comparer.matrix(workspaceId, runs.map(sideOf), goneSignal(reply))))
        }
        const sides = { left: chosen('left', left, leftRunId), right: chosen('right', right, rightRunId) }
        return reply.send(JSON.stringify(await comparer.compare(workspaceId, { ...sides, ...options }, goneSignal(reply))))
      },
    )

    app.get(
      '/runs/compare',
      {
        config: { role: 'guest', errors: REFUSED },
        schema: {
          operationId: 'compareTwoRuns',
          tags: ['insight'],
          summary: 'Put two runs side by side',
          querystring: CompareQuery,
          response: { 200: answer },
        },
      },
      async (request, reply) => {
        const { left, right, leftRunId, rightRunId, leftSeq, rightSeq, ignore, sections, limit, fields } = request.query
        const at = (side: SideRequest, seq: number | undefined): SideRequest => (seq === undefined ? side : { ...side, seq })
        const comparison = await comparer.compare(
          request.access.workspaceId,
          {
            left: at(chosen('left', left, leftRunId), leftSeq),
            right: at(chosen('right', right, rightRunId), rightSeq),
            ignore: listOf(ignore),
            sections: listOf(sections)?.map(sectionOf),
            limit,
            fields,
          },
          goneSignal(reply),
        )
        return reply.type(JSON_TYPE).send(JSON.stringify(comparison))
      },
    )
  }
}

function sideOf(side: SideBody): SideRequest {
  return typeof side === 'string' ? { runId: side } : side
}

function chosen(name: 'left' | 'right', side: SideBody | undefined, runId: string | undefined): SideRequest {
  if ((side === undefined) === (runId === undefined)) {
    throw new RunplaneError('VALIDATION_ERROR', `Send one of ${name} and ${name}RunId.`, { errors: [{ path: `/${name}`, message: 'the id of a run' }] })
  }
  return sideOf(side ?? runId ?? '')
}

function listOf(text: string | undefined): string[] | undefined {
  return text === undefined ? undefined : partsOf(text).filter((part) => part !== '')
}

function sectionOf(name: string): CompareSection {
  const section = COMPARE_SECTIONS.find((known) => known === name)
  if (section === undefined)
    throw new RunplaneError('VALIDATION_ERROR', `sections: '${name.slice(0, 100)}' is none. There are: ${COMPARE_SECTIONS.join(', ')}.`)
  return section
}
