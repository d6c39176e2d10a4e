/** What ajv says about a request, in words that help: the field, and what it should be. */
import type { FastifySchemaValidationError } from 'fastify'
import { mustBe } from '../../domain/pattern.js'
import type { ProblemField } from '../../errors.js'

const MAX_FIELDS = 20

/** @param context the part of the request: body, querystring, params or headers. */
export function validationFields(errors: FastifySchemaValidationError[], context = 'body'): ProblemField[] {
  const part = context === 'querystring' ? 'query' : context
  const fields = new Map<string, string[]>()
  for (const error of withoutFarMembers(errors)) {
    // A union says that nothing fits, after each member has said why it does not.
    if (error.keyword === 'anyOf' && fields.has(part + error.instancePath)) continue
    const { path, message } = describe(error, context)
    const messages = fields.get(part + path) ?? []
    if (!messages.includes(message)) messages.push(message)
    fields.set(part + path, messages)
  }
  return [...fields].slice(0, MAX_FIELDS).map(([path, messages]) => ({ path, message: joined(messages) }))
}

/**
 * A union tells what keeps each of its members from fitting. Of a value that is of the kind of some members, only the nearest of these is of use:
 * `{"runId": "a", "seq": 0}` has a seq that is too small, and is neither a string nor a bundle.
 */
function withoutFarMembers(errors: FastifySchemaValidationError[]): FastifySchemaValidationError[] {
  let kept = errors
  for (const union of errors) {
    if (union.keyword !== 'anyOf') continue
    const members = new Map<string, FastifySchemaValidationError[]>()
    for (const error of errors) {
      if (!error.schemaPath.startsWith(`${union.schemaPath}/`)) continue
      const member = error.schemaPath
        .slice(union.schemaPath.length + 1)
        .split('/', 1)
        .join()
      members.set(member, [...(members.get(member) ?? []), error])
    }
    const isOfKind = (member: FastifySchemaValidationError[]) =>
      !member.some(({ keyword, instancePath }) => keyword === 'type' && instancePath === union.instancePath)
    const ofKind = [...members.values()].filter(isOfKind)
    const fewest = Math.min(...ofKind.map((member) => member.length))
    const near = ofKind.filter((member) => member.length === fewest)
    if (near.length === 0) continue
    const far = new Set([union, ...[...members.values()].filter((member) => !near.includes(member)).flat()])
    kept = kept.filter((error) => !far.has(error))
  }
  return kept
}

function describe({ keyword, instancePath, params, message }: FastifySchemaValidationError, context: string): { path: string; message: string } {
  switch (keyword) {
    case 'required':
      return { path: `${instancePath}/${params.missingProperty}`, message: 'is required' }
    case 'additionalProperties':
      return { path: `${instancePath}/${params.additionalProperty}`, message: 'is not a known field' }
    case 'enum':
      return { path: instancePath, message: `must be ${[params.allowedValues].flat().join(' or ')}` }
    case 'const':
      return { path: instancePath, message: `must be ${params.allowedValue}` }
    case 'pattern':
      return { path: instancePath, message: mustBe(String(params.pattern)) ?? message ?? 'is not valid' }
    case 'type':
      // All in a query is text, unless it comes several times.
      return { path: instancePath, message: context === 'querystring' && params.type === 'string' ? 'must be given once' : (message ?? 'is not valid') }
    default:
      return { path: instancePath, message: message ?? 'is not valid' }
  }
}

/** 'must be a', 'must be b' -> 'must be a or b' */
function joined(messages: string[]): string {
  const [first = '', ...rest] = messages
  return [first, ...rest.map((message) => message.replace(/^must be /, ''))].join(' or ')
}
