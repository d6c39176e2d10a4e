/** Webhook endpoints of a workspace, and what became of their deliveries. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyContextConfig } from 'fastify'
import { uuidv7 } from '../../domain/ids.js'
import type { Mask } from '../../ingest/mask.js'
import type { Outbound } from '../../ops/outbound.js'
import { DELIVERY_STATUSES, Delivery } from '../../webhooks/deliveries.js'
import { NewWebhook, SecretRotation, Webhook, WebhookChange, WebhookWithSecret } from '../../webhooks/endpoints.js'
import { post } from '../../webhooks/post.js'
import type { Webhooks } from '../../webhooks/webhooks.js'
import { goneSignal } from '../gone.js'
import { reference } from '../schemas/reference.js'

export interface WebhooksRoutesDeps {
  webhooks: Pick<Webhooks, 'endpoints' | 'deliveries'>
  outbound: Pick<Outbound, 'dispatcher'>
  mask: Pick<Mask, 'text'>
  timeoutMs: number
}

const Params = Type.Object({ id: Type.String({ format: 'uuid', description: 'the id of a webhook' }) })
const DeliveryParams = Type.Object({
  id: Type.String({ format: 'uuid', description: 'the id of a webhook' }),
  deliveryId: Type.String({ format: 'uuid', description: 'the id of a delivery, which is its webhook-id' }),
})
const TestAnswer = Type.Object(
  {
    delivered: Type.Boolean({ description: 'it answered 2xx' }),
    status: Type.Union([Type.Integer(), Type.Null()]),
    error: Type.Union([Type.String(), Type.Null()]),
    answer: Type.Union([Type.String(), Type.Null()], { description: 'the beginning of the answer, 2 KiB at most' }),
    durationMs: Type.Integer(),
  },
  { $id: 'WebhookTest' },
)

export function webhooksRoutes({ webhooks: { endpoints, deliveries }, outbound, mask, timeoutMs }: WebhooksRoutesDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    for (const schema of [NewWebhook, WebhookChange, SecretRotation, Webhook, WebhookWithSecret, Delivery, TestAnswer]) app.addSchema(schema)
    const tags = ['webhooks']
    const config = { role: 'admin' } as const
    const ofOne = { role: 'admin', errors: ['NOT_FOUND'] } satisfies FastifyContextConfig
    const orIllegal = { role: 'admin', errors: ['NOT_FOUND', 'INVALID_STATE_TRANSITION'] } satisfies FastifyContextConfig

    app.post(
      '/webhooks',
      {
        config: { role: 'admin', errors: ['INVALID_STATE_TRANSITION'], headers: { 201: ['Location'] } },
        schema: {
          operationId: 'createWebhook',
          summary: 'Make a webhook',
          description: 'Events that are stored from now on are sent to it. The secret is in this answer and nowhere else.',
          tags,
          body: reference(NewWebhook),
          response: { 201: reference(WebhookWithSecret, 'The webhook, and its secret this once') },
        },
      },
      async (request, reply) => {
        const webhook = await endpoints.create(request.access.workspaceId, request.body)
        return reply.code(201).header('cache-control', 'no-store').header('location', `/webhooks/${webhook.id}`).send(webhook)
      },
    )

    app.get(
      '/webhooks',
      {
        config,
        schema: {
          operationId: 'listWebhooks',
          summary: 'List the webhooks',
          description: 'Oldest first.',
          tags,
          response: { 200: Type.Object({ data: Type.Array(reference(Webhook)) }, { description: 'The webhooks' }) },
        },
      },
      async (request) => ({ data: await endpoints.list(request.access.workspaceId) }),
    )

    app.get(
      '/webhooks/:id',
      {
        config: ofOne,
        schema: { operationId: 'getWebhook', summary: 'Get a webhook', tags, params: Params, response: { 200: reference(Webhook, 'The webhook') } },
      },
      async (request) => endpoints.get(request.access.workspaceId, request.params.id),
    )

    app.patch(
      '/webhooks/:id',
      {
        config: ofOne,
        schema: {
          operationId: 'updateWebhook',
          summary: 'Change a webhook',
          description: 'What waits already goes to the new address; other types are for events from now on.',
          tags,
          params: Params,
          body: reference(WebhookChange),
          response: { 200: reference(Webhook, 'The webhook') },
        },
      },
      async (request) => endpoints.update(request.access.workspaceId, request.params.id, request.body),
    )

    app.delete(
      '/webhooks/:id',
      {
        config: ofOne,
        schema: {
          operationId: 'deleteWebhook',
          summary: 'Delete a webhook',
          description: 'And its deliveries. What is on its way at this moment may still arrive.',
          tags,
          params: Params,
          response: { 204: Type.Null({ description: 'Deleted' }) },
        },
      },
      async (request, reply) => {
        await endpoints.remove(request.access.workspaceId, request.params.id)
        return reply.code(204).send(null)
      },
    )

    app.post(
      '/webhooks/:id/rotate',
      {
        config: orIllegal,
        // It needs no body.
        preValidation: async (request) => {
          request.body ??= {}
        },
        schema: {
          operationId: 'rotateWebhookSecret',
          summary: 'Change the secret of a webhook',
          description: 'The secrets before sign as well until they expire: `webhook-signature` then has several signatures, and one that fits is enough.',
          tags,
          params: Params,
          body: reference(SecretRotation),
          response: { 200: reference(WebhookWithSecret, 'The webhook, and its new secret this once') },
        },
      },
      async (request, reply) => {
        const webhook = await endpoints.rotate(request.access.workspaceId, request.params.id, request.body)
        return reply.header('cache-control', 'no-store').send(webhook)
      },
    )

    app.post(
      '/webhooks/:id/test',
      {
        config: ofOne,
        schema: {
          operationId: 'testWebhook',
          summary: 'Send a test message to a webhook',
          description: 'Signed like any other, of the type `webhook.test`. It is sent once, also to one that is disabled; the answer says what came back.',
          tags,
          params: Params,
          response: { 200: reference(TestAnswer, 'What came back') },
        },
      },
      async (request, reply) => {
        const target = await endpoints.target(request.access.workspaceId, request.params.id)
        const id = uuidv7()
        const body = JSON.stringify({ type: 'webhook.test', timestamp: new Date().toISOString(), data: { webhookId: request.params.id } })
        const outcome = await post(outbound, { id, ...target, body, timeoutMs, mask, signal: goneSignal(reply) })
        if (outcome.kind === 'answered') {
          const { status, answer } = outcome
          const delivered = status >= 200 && status < 300
          return { delivered, status, error: delivered ? null : `It answered ${status}.`, answer, durationMs: Math.round(outcome.durationMs) }
        }
        const [error, durationMs] = outcome.kind === 'unreachable' ? [outcome.error, outcome.durationMs] : ['The request was given up.', 0]
        return { delivered: false, status: null, error, answer: null, durationMs: Math.round(durationMs) }
      },
    )

    app.get(
      '/webhooks/:id/deliveries',
      {
        config: { role: 'admin', errors: ['NOT_FOUND', 'CURSOR_INVALID'] },
        schema: {
          operationId: 'listDeliveries',
          summary: 'List the deliveries of a webhook',
          description: 'Newest first. Those that are delivered are kept for WEBHOOK_KEEP_DELIVERED_HOURS, dead ones for WEBHOOK_KEEP_DEAD_HOURS.',
          tags,
          params: Params,
          querystring: Type.Object({
            status: Type.Optional(Type.Union(DELIVERY_STATUSES.map((status) => Type.Literal(status)))),
            limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 200, default: 50 })),
            cursor: Type.Optional(Type.String({ maxLength: 64, description: 'the `nextCursor` of the page before' })),
          }),
          response: {
            200: Type.Object({ data: Type.Array(reference(Delivery)), nextCursor: Type.Optional(Type.String()) }, { description: 'A page of deliveries' }),
          },
        },
      },
      async (request) =>
        deliveries.list(request.access.workspaceId, request.params.id, {
          status: request.query.status,
          limit: request.query.limit ?? 50,
          cursor: request.query.cursor,
        }),
    )

    app.post(
      '/webhooks/:id/deliveries/:deliveryId/resend',
      {
        config: orIllegal,
        schema: {
          operationId: 'resendDelivery',
          summary: 'Send a delivery again',
          description: 'One that is dead or delivered. Its id stays the same, and it is retried as if it were new. One that waits already is 409.',
          tags,
          params: DeliveryParams,
          response: { 202: Type.Object({ resent: Type.Integer() }, { description: 'It will be sent' }) },
        },
      },
      async (request, reply) => {
        await deliveries.resend(request.access.workspaceId, request.params.id, request.params.deliveryId)
        return reply.code(202).send({ resent: 1 })
      },
    )

    app.post(
      '/webhooks/:id/deliveries/resend',
      {
        config: ofOne,
        schema: {
          operationId: 'resendDeadDeliveries',
          summary: 'Send all dead deliveries of a webhook again',
          description: 'In the order of each run, as always.',
          tags,
          params: Params,
          response: { 202: Type.Object({ resent: Type.Integer() }, { description: 'They will be sent' }) },
        },
      },
      async (request, reply) => reply.code(202).send({ resent: await deliveries.resendDead(request.access.workspaceId, request.params.id) }),
    )
  }
}
