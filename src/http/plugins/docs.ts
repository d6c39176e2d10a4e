/**
 * The OpenAPI document, made of the routes' own schemas: what is validated is what is documented. Register it before the routes.
 * Shared schemas are components under their `$id`; each operation gets its problems, its role and its security here.
 */
import { STATUS_CODES } from 'node:http'
import swagger from '@fastify/swagger'
import type { FastifyContextConfig, FastifyInstance, FastifySchema } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { VERSION } from '../../ops/version.js'
import { PROBLEM_CONTENT_TYPE, Problem } from '../schemas/problem.js'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What the body may be, by content type, where the route reads and checks it itself: for the document only. */
    body?: Readonly<Record<string, { schema: object }>>
  }
}

const TAGS = [
  { name: 'events', description: 'Post events, read them' },
  { name: 'runs', description: 'Create runs, list them, read their state' },
  { name: 'tail', description: 'Tail a run' },
  { name: 'insight', description: 'Take runs away and bring them back, compare them, replay them, their numbers' },
  { name: 'webhooks', description: 'Send events to where they are wanted' },
  { name: 'queue', description: 'Runs that wait, and the workers that claim them' },
  { name: 'control', description: 'Commands on runs' },
  { name: 'access', description: 'API keys' },
  { name: 'operation', description: 'Health, metrics and this document' },
]

export const docsPlugin = fastifyPlugin(
  async (app: FastifyInstance) => {
    app.addSchema(Problem)
    await app.register(swagger, {
      openapi: {
        openapi: '3.1.0',
        info: {
          title: 'Runplane',
          version: VERSION,
          description: 'A control plane for runs of AI agents: post events, keep them as a log, tail them, fold them into state.',
          license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
        },
        servers: [{ url: '/', description: 'this service' }],
        tags: TAGS,
        components: {
          securitySchemes: { key: { type: 'http', scheme: 'bearer', description: 'An API key. Without any key the service is open on the loopback.' } },
        },
        security: [{ key: [] }],
      },
      refResolver: { buildLocalReference: (json, _baseUri, _fragment, index) => (typeof json.$id === 'string' ? json.$id : `def-${index}`) },
      transform: ({ schema, url, route }) => ({ url, schema: schema?.hide ? schema : documented(schema ?? {}, route.config) }),
    })
  },
  { name: 'docs' },
)

function documented(schema: FastifySchema, { role, body }: Pick<FastifyContextConfig, 'role' | 'body'> = {}): FastifySchema {
  const problem = (description: string) => ({ description, content: { [PROBLEM_CONTENT_TYPE]: { schema: { $ref: 'Problem#' } } } })
  const response = Object.entries(schema.response ?? {}).map(([status, answer]: [string, object]) => [
    status,
    described(answer, STATUS_CODES[status] ?? status),
  ])
  return {
    ...schema,
    ...(body && { body: { content: body } }),
    description: [schema.description, role && `Needs the role ${role}.`].filter(Boolean).join('\n\n'),
    response: {
      ...Object.fromEntries(response),
      '4XX': problem('The request was refused: `code` says why'),
      '5XX': problem('The service could not do it: try again'),
    },
  }
}

/** A shared schema says what a thing is, not that it is the answer: that is the status's name. */
function described(answer: object, description: string): object {
  if ('description' in answer) return answer
  return '$ref' in answer ? { description, content: { 'application/json': { schema: answer } } } : { ...answer, description }
}
