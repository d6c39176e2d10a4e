/** Commands on runs, one by one and in batches. An illegal one is 409 and says from which statuses it works; one that has had its effect is answered as before. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type TSchema, Type } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Audit } from '../../access/audit.js'
import type { Sql } from '../../db/client.js'
import { type CommandName, type Because as Reasons, WORKS_FROM } from '../../domain/command.js'
import { storable } from '../../domain/storable.js'
import { RunplaneError } from '../../errors.js'
import { type BatchAnswer as Answer, type BatchRequest, runBatch } from '../../runs/batch.js'
import type { Commands } from '../../runs/commands.js'
import { getRun, RunRecord } from '../../runs/record.js'
import { planClone } from '../run-plan.js'
import { Batch, BatchAnswer, BatchBecause, Because, CloneRun, Retry } from '../schemas/commands.js'
import { reference } from '../schemas/reference.js'
import { KeyHeader, RunParams } from '../schemas/run.js'

export interface CommandsRoutesDeps {
  sql: Sql
  commands: Commands
  audit: Pick<Audit, 'record'>
}

const works = (command: CommandName) => `Works from ${WORKS_FROM[command].join(', ')}; else 409.`

export const commandsRoutes: FastifyPluginAsyncTypebox<CommandsRoutesDeps> = async (app, { sql, commands, audit }) => {
  for (const schema of [RunRecord, Because, Retry, CloneRun, Batch, BatchBecause, BatchAnswer]) app.addSchema(schema)
  const record = reference(RunRecord, 'The run, after it')
  const MADE = { 200: ['Location'], 201: ['Location'] } as const

  // A command needs no body.
  app.addHook('preValidation', async (request) => {
    request.body ??= {}
  })

  const because = ({ reason, by }: Reasons, request: FastifyRequest): Reasons => ({
    reason: reason && storable(reason),
    by: by === undefined ? request.access.keyName : storable(by),
  })
  const told = (request: FastifyRequest, runId: string) => getRun(sql, request.access.workspaceId, runId)

  async function made(request: FastifyRequest, reply: FastifyReply, { runId, created }: { runId: string; created: boolean }) {
    const run = await told(request, runId)
    return reply
      .code(created ? 201 : 200)
      .header('location', `/runs/${encodeURIComponent(runId)}`)
      .send(run)
  }

  const one = <Body extends TSchema>(operationId: string, summary: string, description: string, body: Body) => ({
    config: { role: 'member' as const, errors: ['INVALID_STATE_TRANSITION' as const] },
    schema: { operationId, tags: ['control'], summary, description, params: RunParams, body: reference(body), response: { 200: record } },
  })

  app.post(
    '/runs/:id/cancel',
    one(
      'cancelRun',
      'Cancel a run',
      `At once where nobody is at work on it; else \`run.cancel_requested\` tells whoever is, and after CANCEL_GRACE_MS it is cancelled all the same. ${works('cancel')}`,
      Because,
    ),
    async (request) => {
      await commands.cancel(request.access.workspaceId, request.params.id, because(request.body, request))
      return told(request, request.params.id)
    },
  )

  app.post(
    '/runs/:id/suspend',
    one('suspendRun', 'Suspend a run', `What is left of its lease and of its session's time stands still until it is resumed. ${works('suspend')}`, Because),
    async (request) => {
      await commands.suspend(request.access.workspaceId, request.params.id, because(request.body, request))
      return told(request, request.params.id)
    },
  )

  app.post(
    '/runs/:id/resume',
    one('resumeRun', 'Resume a suspended run', `Its lease and its session's time run on from where they stood. ${works('resume')}`, Because),
    async (request) => {
      await commands.resume(request.access.workspaceId, request.params.id, because(request.body, request))
      return told(request, request.params.id)
    },
  )

  app.post(
    '/runs/:id/retry',
    {
      config: { role: 'member', errors: ['INVALID_STATE_TRANSITION', 'IDEMPOTENCY_CONFLICT'], headers: MADE },
      schema: {
        operationId: 'retryRun',
        tags: ['control'],
        summary: 'Retry a run, as its next attempt or as a new run',
        description: `${works('retry')} As a new run, also from completed: the new one names it as its parent, and \`run.linked\` in it names the new one.`,
        params: RunParams,
        headers: KeyHeader,
        body: reference(Retry),
        response: {
          200: reference(RunRecord, 'The run, in its next attempt; or the new run, which the same request has made before'),
          201: reference(RunRecord, 'The new run'),
        },
      },
    },
    async (request, reply) => {
      const { access, params, body } = request
      const { as = 'same', id, delayMs } = body
      if (as === 'new') {
        const idempotencyKey = request.headers['idempotency-key']
        return made(request, reply, await commands.retryAsNew(access.workspaceId, params.id, { ...because(body, request), id, delayMs, idempotencyKey }))
      }
      if (id !== undefined) throw new RunplaneError('VALIDATION_ERROR', 'body/id goes with {"as":"new"}: another attempt of a run keeps its id.')
      await commands.retry(access.workspaceId, params.id, { ...because(body, request), delayMs })
      return reply.send(await told(request, params.id))
    },
  )

  app.post(
    '/runs/:id/clone',
    {
      config: { role: 'member', errors: ['IDEMPOTENCY_CONFLICT'], headers: MADE },
      schema: {
        operationId: 'cloneRun',
        tags: ['control'],
        summary: 'Create a run as another one was created',
        description: 'With what the body says instead. Its id, its session id, its parent and its idempotency key are not taken over.',
        params: RunParams,
        headers: KeyHeader,
        body: reference(CloneRun),
        response: { 200: reference(RunRecord, 'The new run, which the same request has made before'), 201: reference(RunRecord, 'The new run') },
      },
    },
    async (request, reply) => {
      const overrides = planClone(request.body)
      return made(request, reply, await commands.clone(request.access.workspaceId, request.params.id, overrides, request.headers['idempotency-key']))
    },
  )

  const Empty = Type.Object({}, { additionalProperties: false })
  for (const command of ['archive', 'unarchive'] as const) {
    app.post(
      `/runs/:id/${command}`,
      {
        config: { role: 'member' },
        schema: {
          operationId: `${command}Run`,
          tags: ['control'],
          summary: command === 'archive' ? 'Archive a run: lists leave it out' : 'Bring an archived run back into the lists',
          params: RunParams,
          body: Empty,
          response: { 200: record },
        },
      },
      async (request) => {
        await commands[command](request.access.workspaceId, request.params.id)
        return told(request, request.params.id)
      },
    )
  }

  app.delete(
    '/runs/:id',
    {
      config: { role: 'member', errors: ['INVALID_STATE_TRANSITION'] },
      schema: {
        operationId: 'deleteRun',
        tags: ['control'],
        summary: 'Delete a run and all that belongs to it, for good',
        description: `Archived or not. It is gone at once; its events are deleted in the background. ${works('delete')}`,
        params: RunParams,
        response: { 204: Type.Null({ description: 'Deleted' }) },
      },
    },
    async (request, reply) => {
      await commands.delete(request.access.workspaceId, request.params.id)
      return reply.code(204).send(null)
    },
  )

  const batchOf = <Body extends TSchema>(command: string, summary: string, body: Body) => ({
    config: { role: 'member' as const, errors: ['CURSOR_INVALID' as const] },
    schema: {
      operationId: `${command}Runs`,
      tags: ['control'],
      summary,
      description: 'By `runIds`, or by a `filter`, oldest first. Each run has its result; one that is refused holds up no other.',
      body: reference(body),
      response: { 200: reference(BatchAnswer, 'What became of each run') },
    },
  })

  async function batch(request: FastifyRequest, selection: BatchRequest, command: 'cancel' | 'archive' | 'delete', reasons: Reasons = {}): Promise<Answer> {
    const { workspaceId, keyName, keyId } = request.access
    const work = {
      cancel: (runId: string) => commands.cancel(workspaceId, runId, reasons),
      archive: (runId: string) => commands.archive(workspaceId, runId),
      delete: (runId: string) => commands.delete(workspaceId, runId),
    }
    const statuses = command === 'archive' ? undefined : WORKS_FROM[command]
    const answer = await runBatch(selection, { sql, workspaceId, statuses, work: work[command], log: request.log })
    // A line for each run, beside the one of the request: whoever looks for a run finds what was done to it.
    const by = { workspaceId, actor: keyName, actorKeyId: keyId, requestId: request.id }
    await audit.record(
      answer.results.map(({ runId, outcome, code }) => ({
        ...by,
        action: `run.${command}`,
        targetKind: 'run',
        targetId: runId,
        outcome,
        detail: { batch: true, code },
      })),
    )
    return answer
  }

  app.post('/runs/batch/cancel', batchOf('cancel', 'Cancel many runs', BatchBecause), async (request) => {
    const { reason, by, ...selection } = request.body
    return batch(request, selection, 'cancel', because({ reason, by }, request))
  })
  app.post('/runs/batch/archive', batchOf('archive', 'Archive many runs', Batch), async (request) => batch(request, request.body, 'archive'))
  app.post('/runs/batch/delete', batchOf('delete', 'Delete many runs for good', Batch), async (request) => batch(request, request.body, 'delete'))
}
