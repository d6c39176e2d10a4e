/** API keys: made, listed, revoked. An admin of the default workspace manages those of every workspace, another admin those of its own. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Keys } from '../../access/keys.js'
import type { Access } from '../../access/roles.js'
import { DEFAULT_WORKSPACE_ID } from '../../domain/ids.js'
import { CreatedKey, Key, NewKey } from '../schemas/keys.js'
import { reference } from '../schemas/reference.js'

export function keysRoutes({ keys }: { keys: Keys }): FastifyPluginAsyncTypebox {
  return async (app) => {
    for (const schema of [NewKey, Key, CreatedKey]) app.addSchema(schema)

    app.post(
      '/keys',
      {
        config: { role: 'admin', errors: ['INVALID_STATE_TRANSITION'] },
        schema: {
          operationId: 'createKey',
          summary: 'Make an API key',
          description:
            'The key is in this answer and nowhere else. The first key must be an admin key of the default workspace; from then on every request needs a key. ' +
            'With `workspace`, an admin of the default workspace makes a key of another workspace, which is made if it is not there.',
          tags: ['access'],
          body: reference(NewKey),
          response: { 201: reference(CreatedKey, 'The key, this once') },
        },
      },
      async (request, reply) =>
        reply
          .code(201)
          .header('cache-control', 'no-store')
          .send(await keys.create(request.body, request.access)),
    )

    app.get(
      '/keys',
      {
        config: { role: 'admin' },
        schema: {
          operationId: 'listKeys',
          summary: 'List the API keys',
          description: 'The keys that are not revoked, oldest first.',
          tags: ['access'],
          response: { 200: Type.Object({ data: Type.Array(reference(Key)) }, { description: 'The keys' }) },
        },
      },
      async (request) => ({ data: await keys.list(managedWorkspace(request.access)) }),
    )

    app.delete(
      '/keys/:id',
      {
        config: { role: 'admin', errors: ['NOT_FOUND', 'INVALID_STATE_TRANSITION'] },
        schema: {
          operationId: 'revokeKey',
          summary: 'Revoke an API key',
          description:
            'It is refused at once by this instance, and within a second by others. The last admin key of the default workspace cannot be revoked (409).',
          tags: ['access'],
          params: Type.Object({ id: Type.String({ format: 'uuid' }) }),
          response: { 204: Type.Null({ description: 'Revoked' }) },
        },
      },
      async (request, reply) => {
        await keys.revoke(request.params.id, managedWorkspace(request.access))
        return reply.code(204).send(null)
      },
    )
  }
}

/** The workspace whose keys may be managed; undefined for all. */
function managedWorkspace(access: Access): string | undefined {
  return access.workspaceId === DEFAULT_WORKSPACE_ID ? undefined : access.workspaceId
}
