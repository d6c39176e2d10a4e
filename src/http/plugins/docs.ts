/**
 * The OpenAPI document, made of the routes' own schemas: what is validated is what is documented. Register it before the routes.
 * Shared schemas are components under their `$id`; each operation gets its problems, its headers, its role and its security here.
 */
import { STATUS_CODES } from 'node:http'
import swagger from '@fastify/swagger'
import type { FastifyContextConfig, FastifyInstance, FastifySchema } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { ERROR_CATALOGUE, type ErrorCode } from '../../errors.js'
import { VERSION } from '../../ops/version.js'
import { PROBLEM_CONTENT_TYPE, Problem } from '../schemas/problem.js'
import { RESPONSE_HEADERS, type ResponseHeader } from '../schemas/response-headers.js'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What the body may be, by content type, where the route reads and checks it itself: for the document only. */
    body?: Readonly<Record<string, { schema: object }>>
    /** What refuses it, besides what `refusals` below knows of every route. */
    errors?: readonly ErrorCode[]
    /** Headers of its answers, by status. */
    headers?: Readonly<Record<number, readonly ResponseHeader[]>>
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
      transform: ({ schema, url, route }) => ({ url, schema: schema?.hide ? schema : documented(url, schema ?? {}, route.config) }),
    })
  },
  { name: 'docs' },
)

function documented(url: string, schema: FastifySchema, config: FastifyContextConfig = {}): FastifySchema {
  const { role, body, headers = {} } = config
  const answers = Object.entries(schema.response ?? {}).map(([status, answer]: [string, object]) => [
    status,
    { ...described(answer, STATUS_CODES[status] ?? status), headers: headersOf(headers[Number(status)]) },
  ])
  return {
    ...schema,
    ...(body && { body: { content: body } }),
    description: [schema.description, role && `Needs the role ${role}.`].filter(Boolean).join('\n\n'),
    response: { ...refusals(url, schema, config), ...Object.fromEntries(answers) },
  }
}

/** A shared schema says what a thing is, not that it is the answer: that is said beside the reference to it. */
function described(answer: object, status: string): object {
  const description = 'description' in answer ? answer.description : status
  if (!('$ref' in answer)) return { ...answer, description }
  return { description, content: { 'application/json': { schema: { $ref: answer.$ref } } } }
}

const headersOf = (names: readonly ResponseHeader[] = []) =>
  Object.fromEntries([...names, 'x-request-id' as const].map((name) => [name, RESPONSE_HEADERS[name]]))

/** Headers that come with a problem. */
const PROBLEM_HEADERS: Partial<Record<ErrorCode, readonly ResponseHeader[]>> = {
  UNAUTHENTICATED: ['WWW-Authenticate'],
  PRODUCER_FENCED: ['Producer-Epoch'],
  PRODUCER_GAP: ['Producer-Expected-Seq', 'Producer-Received-Seq'],
  UNSUPPORTED_FORMAT: ['Accept-Encoding'],
  OVERLOADED: ['Retry-After'],
}

/** The problems of a route by their status: those that it names, and those that come of its path, its body and its role. */
function refusals(url: string, schema: FastifySchema, { role, body, errors = [] }: FastifyContextConfig): Record<string, object> {
  const codes = new Set<ErrorCode>(['VALIDATION_ERROR', 'FORBIDDEN', 'INTERNAL', 'OVERLOADED', ...errors])
  if (role) codes.add('UNAUTHENTICATED')
  if (url.startsWith('/runs/:id')) codes.add('RUN_NOT_FOUND')
  if (schema.body || body) for (const code of ['REQUEST_TIMEOUT', 'PAYLOAD_TOO_LARGE', 'UNSUPPORTED_FORMAT'] as const) codes.add(code)
  const statuses = new Set([...codes].map((code) => ERROR_CATALOGUE[code].status))
  const known = [...statuses].map((status) => {
    const ofStatus = [...codes].filter((code) => ERROR_CATALOGUE[code].status === status)
    const description = ofStatus.map((code) => `\`${code}\`: ${ERROR_CATALOGUE[code].title}`).join('. ')
    return [
      status,
      problem(
        description,
        ofStatus.flatMap((code) => PROBLEM_HEADERS[code] ?? []),
      ),
    ]
  })
  return { ...Object.fromEntries(known), '4XX': problem('Any other refusal, of what is wrong with a request whatever its route', ['Allow']) }
}

function problem(description: string, headers?: readonly ResponseHeader[]): object {
  return { description, headers: headersOf(headers), content: { [PROBLEM_CONTENT_TYPE]: { schema: { $ref: 'Problem#' } } } }
}
