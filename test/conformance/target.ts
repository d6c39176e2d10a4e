/**
 * The service that the conformance tests speak to: the one at RUNPLANE_URL (with the key RUNPLANE_KEY, which needs the role
 * admin), else one that they start. What it answers must be in its own OpenAPI document. Ids are new for every run of the tests, so that a service may be tested again and again.
 */
import { randomBytes } from 'node:crypto'
import { type DescribedOperation, operationOf, undescribed } from '../support/described.js'
import { type Answer, type Client, createClient, type Problem } from '../support/http.js'
import { type Service, startService, type Teardown } from '../support/service.js'

export interface Target {
  url: string
  client: Client
  /** Of every request, the streams included. */
  headers: Record<string, string>
  /** The service that was started here; undefined for one that is given. */
  service: Service | undefined
}

export async function target(t: Teardown, env: Record<string, string> = {}): Promise<Target> {
  const given = process.env.RUNPLANE_URL?.replace(/\/$/, '')
  const key = process.env.RUNPLANE_KEY
  const headers: Record<string, string> = key ? { authorization: `Bearer ${key}` } : {}
  const service = given ? undefined : await startService(t, { database: 'embedded', env })
  const url = given ?? service?.url ?? ''
  const { paths } = (await createClient(url, headers).get<{ paths: Record<string, Record<string, DescribedOperation>> }>('/openapi.json')).body
  const assertDescribed = (method: string, path: string, answer: Answer<unknown>) => {
    const operation = operationOf(paths, method, path)
    const isProblem = answer.headers.get('content-type')?.startsWith('application/problem+json')
    const code = isProblem ? (JSON.parse(answer.text) as Problem).code : undefined
    const missing = operation && undescribed(operation, answer, code)
    if (missing !== undefined) throw new Error(`the OpenAPI document does not describe that ${method} ${path} is answered with ${missing}`)
  }
  return { url, headers, service, client: createClient(url, headers, assertDescribed) }
}

const session = randomBytes(4).toString('hex')
let counter = 0
/** An id that no other test has, with what it is for in it. */
export const newId = (purpose: string): string => `${purpose}-${session}-${counter++}`
