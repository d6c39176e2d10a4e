/** Problem details (RFC 9457): what every error looks like on the wire. */
import { type Static, Type } from '@sinclair/typebox'
import { ERROR_CATALOGUE, type ErrorCode, type RunplaneError } from '../../errors.js'

export const PROBLEM_CONTENT_TYPE = 'application/problem+json'

export const Problem = Type.Object(
  {
    type: Type.String({ description: 'an identifier of the kind of problem', examples: ['urn:runplane:problem:RUN_NOT_FOUND'] }),
    title: Type.String(),
    status: Type.Integer({ minimum: 400, maximum: 599 }),
    code: Type.Unsafe<ErrorCode>({ type: 'string', enum: Object.keys(ERROR_CATALOGUE), description: 'stable: programs decide by it' }),
    detail: Type.String({ description: 'what is wrong with this request, and what to do next' }),
    requestId: Type.String({ description: 'also in the header x-request-id and in the log' }),
    errors: Type.Optional(Type.Array(Type.Object({ path: Type.String({ examples: ['body/tags/0'] }), message: Type.String() }))),
    stored: Type.Optional(
      Type.Object(
        {
          accepted: Type.Integer({ minimum: 0 }),
          duplicates: Type.Integer({ minimum: 0 }),
          rejected: Type.Integer({ minimum: 0 }),
          firstSeq: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()]),
          lastSeq: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()]),
          headSeq: Type.Integer({ minimum: 0 }),
        },
        { description: 'only where an NDJSON body was refused on its way: what became of its lines before, as in the answer to a whole one' },
      ),
    ),
  },
  { $id: 'Problem', description: 'An error (RFC 9457)' },
)
export type Problem = Static<typeof Problem>

export function toProblem(error: RunplaneError, requestId: string): Problem {
  const { status, title } = ERROR_CATALOGUE[error.code]
  return {
    type: `urn:runplane:problem:${error.code}`,
    title,
    status,
    code: error.code,
    detail: error.message,
    requestId,
    ...(error.errors && error.errors.length > 0 && { errors: error.errors }),
    ...(error.stored && { stored: error.stored }),
  }
}
