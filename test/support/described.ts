/** Whether the OpenAPI document of a service describes what the service answers: its status, its problem code and its headers. */

interface Response {
  description: string
  headers?: Record<string, unknown>
}
export interface DescribedOperation {
  responses: Record<string, Response>
}

/** Headers that mean something to a client: what HTTP does by itself, such as Content-Length, is not for the document. */
const HEADERS = ['Accept-Encoding', 'Content-Disposition', 'ETag', 'Location', 'Retry-After', 'WWW-Authenticate', 'x-request-id'].concat(
  ['Epoch', 'Seq', 'Expected-Seq', 'Received-Seq'].map((name) => `Producer-${name}`),
)

/** What of an answer the document does not say; undefined where it says all of it. */
export function undescribed(
  { responses }: DescribedOperation,
  { status, headers }: { status: number; headers: Headers },
  code: string | undefined,
): string | undefined {
  const described = responses[status]
  if (!described) return `${status} ${code ?? ''}`
  if (code !== undefined && !described.description.includes(`\`${code}\``)) return `${status} with the code ${code}`
  const names = Object.keys(described.headers ?? {})
  const sent = HEADERS.find((name) => headers.has(name) && !names.includes(name))
  return sent && `${status} with the header ${sent}`
}

/** The operation of a request among the paths of a document; undefined for what it does not have. */
export function operationOf<Operation>(paths: Record<string, Record<string, Operation>>, method: string, target: string): Operation | undefined {
  const path = target.split('?', 1)[0] ?? ''
  const found = Object.keys(paths)
    .filter((template) => new RegExp(`^${template.replaceAll('.', '\\.').replace(/\{[^}]+\}/g, '[^/]+')}$`).test(path))
    // /runs/compare before /runs/{id}
    .sort((a, b) => Number(a.includes('{')) - Number(b.includes('{')))
  return found.map((template) => paths[template]?.[method.toLowerCase()]).find((operation) => operation !== undefined)
}
