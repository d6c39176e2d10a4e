/** Headers of answers that mean something to a client: one table for the OpenAPI document and for CORS, which shows a page no other ones. */

const text = (description: string) => ({ type: 'string', description }) as const
const whole = (description: string) => ({ type: 'integer', minimum: 0, description }) as const

export const RESPONSE_HEADERS = {
  'Accept-Encoding': text('the encodings of a body that are taken'),
  Allow: text('the methods that the path takes'),
  'Content-Disposition': text('the name of the file'),
  ETag: text('what the answer was made from: as `If-None-Match` it is answered with 304 while nothing has changed'),
  Location: text('the path of what was made, or was there already'),
  'Producer-Epoch': whole('the epoch of the producer'),
  'Producer-Expected-Seq': whole('the seq that comes next in this epoch'),
  'Producer-Received-Seq': whole('the seq that was sent'),
  'Producer-Seq': whole('the seq that was sent'),
  'Retry-After': whole('seconds to wait before it is tried again'),
  'WWW-Authenticate': text('Bearer (RFC 6750)'),
  'x-request-id': text('of this request: as in the log, and as it was sent if it was'),
} as const

export type ResponseHeader = keyof typeof RESPONSE_HEADERS
