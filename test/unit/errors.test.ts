import t from 'tap'
import { RUN_ID_PATTERN } from '../../src/domain/ids.js'
import { ERROR_CATALOGUE, RunplaneError } from '../../src/errors.js'
import { catalogued } from '../../src/http/plugins/errors.js'
import { createRouteMatcher } from '../../src/http/plugins/route-matcher.js'
import { validationFields } from '../../src/http/plugins/validation-fields.js'
import { toProblem } from '../../src/http/schemas/problem.js'
import { loggableError, loggableUrl } from '../../src/ops/logging.js'

t.test('the codes and statuses that clients rely on stay as they are', async (t) => {
  const statuses = Object.fromEntries(Object.entries(ERROR_CATALOGUE).map(([code, { status }]) => [code, status]))
  t.match(statuses, {
    RUN_NOT_FOUND: 404,
    VALIDATION_ERROR: 400,
    CURSOR_INVALID: 400,
    INVALID_STATE_TRANSITION: 409,
    IDEMPOTENCY_CONFLICT: 409,
    PRODUCER_GAP: 409,
    PRODUCER_FENCED: 403,
    UNAUTHENTICATED: 401,
    FORBIDDEN: 403,
    PAYLOAD_TOO_LARGE: 413,
    UNSUPPORTED_FORMAT: 415,
    RATE_LIMITED: 429,
    OVERLOADED: 503,
    INTERNAL: 500,
  })
})

t.test('an error is problem details on the wire', async (t) => {
  const error = new RunplaneError('PRODUCER_GAP', 'Send 5 next.', { headers: { 'producer-expected-seq': '5' } })
  t.strictSame(toProblem(error, 'request-1'), {
    type: 'urn:runplane:problem:PRODUCER_GAP',
    title: 'A producer sequence number is missing',
    status: 409,
    code: 'PRODUCER_GAP',
    detail: 'Send 5 next.',
    requestId: 'request-1',
  })
})

t.test('an error that nobody foresaw tells nothing of its cause', async (t) => {
  const error = catalogued(new Error('password authentication failed for user "bob"'))
  t.equal(error.code, 'INTERNAL')
  t.notMatch(JSON.stringify(toProblem(error, 'r')), /bob/)
  t.equal(catalogued('thrown text').code, 'INTERNAL')
})

t.test('a database that does not answer is 503 with Retry-After, however deep it is in the causes', async (t) => {
  for (const code of ['CONNECTION_CLOSED', 'CONNECT_TIMEOUT', 'ECONNREFUSED', '57P01', '57P03', '53300', '53100', '08006', '25006']) {
    const error = catalogued(new Error('Failed query', { cause: Object.assign(new Error('the driver'), { code }) }))
    t.match(error, { code: 'OVERLOADED', headers: { 'retry-after': '1' } }, code)
  }
  t.equal(catalogued(Object.assign(new Error('duplicate key'), { code: '23505' })).code, 'INTERNAL')
})

t.test('what the validator says becomes a field and a sentence', async (t) => {
  const error = (keyword: string, instancePath: string, params: Record<string, string | string[]>, message = '') => ({
    keyword,
    instancePath,
    params,
    message,
    schemaPath: '',
  })
  t.same(validationFields([error('required', '', { missingProperty: 'name' })], 'body'), [{ path: 'body/name', message: 'is required' }])
  t.same(validationFields([error('additionalProperties', '/a', { additionalProperty: 'b' })], 'body'), [{ path: 'body/a/b', message: 'is not a known field' }])
  t.same(
    validationFields(
      [
        error('const', '/role', { allowedValue: 'guest' }),
        error('const', '/role', { allowedValue: 'admin' }),
        error('anyOf', '/role', {}, 'must match a schema in anyOf'),
      ],
      'querystring',
    ),
    [{ path: 'query/role', message: 'must be guest or admin' }],
  )
  t.same(validationFields([error('type', '/afterSeq', { type: 'string' }, 'must be string')], 'querystring'), [
    { path: 'query/afterSeq', message: 'must be given once' },
  ])
  const at = (schemaPath: string, ...args: Parameters<typeof error>) => ({ ...error(...args), schemaPath })
  t.same(
    validationFields(
      [
        at('#/left/anyOf/0/type', 'type', '/left', { type: 'string' }, 'must be string'),
        at('#/left/anyOf/1/properties/seq/minimum', 'minimum', '/left/seq', {}, 'must be >= 1'),
        at('#/left/anyOf/2/required', 'required', '/left', { missingProperty: 'bundle' }),
        at('#/left/anyOf/2/additionalProperties', 'additionalProperties', '/left', { additionalProperty: 'runId' }),
        at('#/left/anyOf', 'anyOf', '/left', {}, 'must match a schema in anyOf'),
      ],
      'body',
    ),
    [{ path: 'body/left/seq', message: 'must be >= 1' }],
    'of a union, the nearest member',
  )
  t.match(validationFields([error('pattern', '/id', { pattern: RUN_ID_PATTERN }, 'must match pattern')], 'params'), [
    { path: 'params/id', message: /^must be 1 to 128 letters, digits/ },
  ])
  t.same(validationFields([error('pattern', '/id', { pattern: '^x$' }, 'must match pattern "^x$"')], 'params'), [
    { path: 'params/id', message: 'must match pattern "^x$"' },
  ])
})

t.test('a path knows the methods of the routes that match it', async (t) => {
  const routes = createRouteMatcher()
  routes.add(['GET', 'HEAD'], '/runs/:id')
  routes.add(['POST'], '/runs/:id')
  routes.add(['OPTIONS'], '*')
  t.same(routes.methodsOf('/runs/a'), ['GET', 'HEAD', 'POST'])
  for (const path of ['/runs', '/runs/', '/runs/a/b', '/']) t.same(routes.methodsOf(path), [], path)
})

t.test('the log has the names of secret parameters and not their values', async (t) => {
  t.equal(loggableUrl('/runs?status=running'), '/runs?status=running')
  t.equal(loggableUrl('/x?access_token=abc&a=1&apiKey=def'), '/x?access_token=***&a=1&apiKey=***')
})

t.test('the log has the query that failed and not its values', async (t) => {
  const driver = Object.assign(new Error('invalid input syntax'), { code: '22P02', detail: 'secret payload' })
  const shown = loggableError(new Error('Failed query: insert into t values ($1)\nparams: secret\npayload', { cause: driver }))
  t.match(shown, { message: 'Failed query: insert into t values ($1)', cause: { code: '22P02', message: 'invalid input syntax' } })
  t.notMatch(JSON.stringify(shown), /payload/)
  t.match(shown.stack, /errors\.test/)
})
