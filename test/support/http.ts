/** Requests to a service, and the shapes of its answers as the contract has them: written anew here, so that the tests know no internals. */

export interface Reference {
  kind: string
  id: string
}

export interface CanonicalEvent {
  runId: string
  seq: number
  ts: string
  receivedAt: string
  type: string
  schemaVersion: number
  attempt: number
  subject: Reference
  parent?: Reference
  stepId?: string
  actor?: Reference
  source: { kind: string; name: string; format: string; rawType: string; rawSeq: number; eventId?: string }
  trace?: { traceId: string; spanId?: string; parentSpanId?: string }
  late?: boolean
  data: Record<string, unknown>
}

export interface RawEvent {
  rawSeq: number
  seqs: number[]
}

export interface ItemResult {
  index: number
  status: 'stored' | 'duplicate' | 'rejected'
  seqs?: number[]
  rawSeq?: number
  code?: string
  detail?: string
}

export interface Receipt {
  runId: string
  accepted: number
  duplicates: number
  rejected: number
  firstSeq?: number | null
  lastSeq?: number | null
  headSeq: number
  results?: ItemResult[]
}

export interface RunRecord {
  runId: string
  status: string
  progress: number | null
  attempt: number
  lastSeq: number
  lastRawSeq: number
  createdAt: string
  updatedAt: string
  name?: string | null
  kind?: string | null
  queue?: string | null
  tags: string[]
  metadata?: unknown
  error?: unknown
  parentRunId?: string | null
}

export interface StateAnswer {
  runId: string
  version: number
  schemaVersion: number
  state: Record<string, Record<string, unknown>>
}

export interface Page<Item> {
  data: Item[]
  nextAfterSeq?: number | null
  nextAfterRawSeq?: number | null
  headSeq?: number
  nextCursor?: string | null
  total?: number
}

export interface Problem {
  type: string
  title: string
  status: number
  code: string
  detail: string
  requestId: string
  errors?: { path: string; message: string }[]
}

export interface Answer<Body> {
  status: number
  headers: Headers
  text: string
  /** The body as JSON. Throws if it is none. */
  readonly body: Body
}

export interface RequestOptions {
  headers?: Record<string, string>
  /** JSON, unless it is a string or bytes, which go as they are. */
  body?: unknown
  contentType?: string
  timeoutMs?: number
}

export type Client = ReturnType<typeof createClient>

/**
 * @param fixedHeaders sent with every request, such as an Authorization
 * @param onAnswer sees every answer
 */
export function createClient(
  url: string,
  fixedHeaders: Record<string, string> = {},
  onAnswer?: (method: string, path: string, answer: Answer<unknown>) => void,
) {
  async function send<Body>(method: string, path: string, options: RequestOptions = {}): Promise<Answer<Body>> {
    const headers: Record<string, string> = { ...fixedHeaders, ...options.headers }
    const asIs = typeof options.body === 'string' || options.body instanceof Uint8Array
    if (options.body !== undefined && headers['content-type'] === undefined) headers['content-type'] = options.contentType ?? 'application/json'
    const body = options.body === undefined ? undefined : asIs ? bodyAsIs(options.body) : JSON.stringify(options.body)
    const answer = await fetch(url + path, {
      method,
      headers,
      redirect: 'manual',
      signal: AbortSignal.timeout(options.timeoutMs ?? 20_000),
      ...(body === undefined ? {} : { body }),
    })
    const text = await answer.text()
    const received: Answer<Body> = {
      status: answer.status,
      headers: answer.headers,
      text,
      get body(): Body {
        return JSON.parse(text)
      },
    }
    onAnswer?.(method, path, received)
    return received
  }
  /** All items of a list, page by page. @param path with a query, to which the cursor is added as `cursor` */
  async function all<Item>(path: string, cursor: string): Promise<Item[]> {
    const items: Item[] = []
    for (let after: number | null | undefined = 0; typeof after === 'number'; ) {
      const answer: Answer<Page<Item>> = await send('GET', `${path}&${cursor}=${after}`)
      if (answer.status !== 200) throw new Error(`GET ${path} answered ${answer.status}: ${answer.text}`)
      items.push(...answer.body.data)
      // A page of a filter may be empty and still not be the last.
      const next: number | null | undefined = answer.body.nextAfterSeq
      after = typeof next === 'number' && next > after ? next : undefined
    }
    return items
  }
  return {
    url,
    send,
    get: <Body>(path: string, headers?: Record<string, string>) => send<Body>('GET', path, headers ? { headers } : {}),
    post: <Body>(path: string, body?: unknown, headers?: Record<string, string>) => send<Body>('POST', path, { body, ...(headers ? { headers } : {}) }),
    /** Posts native events; `headers` may say otherwise. */
    append: (runId: string, body: unknown, headers?: Record<string, string>) =>
      send<Receipt>('POST', `/runs/${runId}/events`, { body, ...(headers ? { headers } : {}) }),
    createRun: async (body: Record<string, unknown> = {}): Promise<RunRecord> => {
      const answer = await send<RunRecord>('POST', '/runs', { body })
      if (answer.status !== 201) throw new Error(`POST /runs answered ${answer.status}: ${answer.text}`)
      return answer.body
    },
    state: async (runId: string, query = ''): Promise<StateAnswer> => {
      const answer = await send<StateAnswer>('GET', `/runs/${runId}/state${query}`)
      if (answer.status !== 200) throw new Error(`GET state answered ${answer.status}: ${answer.text}`)
      return answer.body
    },
    /** All canonical events. */
    events: (runId: string, query = '', limit = 1000) => all<CanonicalEvent>(`/runs/${runId}/events?limit=${limit}${query}`, 'afterSeq'),
    /** All raw events. */
    raw: (runId: string, limit = 1000) => all<RawEvent>(`/runs/${runId}/raw?limit=${limit}`, 'afterRawSeq'),
  }
}

function bodyAsIs(body: unknown): string | Uint8Array<ArrayBuffer> | undefined {
  return typeof body === 'string' ? body : body instanceof Uint8Array ? new Uint8Array(body) : undefined
}

/** The seqs 1..n in order, as a full log has them. */
export const seqsUpTo = (n: number): number[] => Array.from({ length: n }, (_, index) => index + 1)

/** Waits until `look` gives something else than undefined; never for a fixed time. */
export async function eventually<T>(what: string, look: () => Promise<T | undefined> | T | undefined, timeoutMs = 10_000): Promise<T> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const found = await look()
    if (found !== undefined) return found
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
