/**
 * One attempt: a signed POST. The status decides; of the body a few KB are kept for whoever looks into a failure.
 * Redirects are not followed: what is signed for one address is not for another.
 */
import { request } from 'undici'
import { storable } from '../domain/storable.js'
import type { Mask } from '../ingest/mask.js'
import type { Outbound } from '../ops/outbound.js'
import { VERSION } from '../ops/version.js'
import { retryAfterMs } from './retries.js'
import { inForce, type Secret, signatures } from './secrets.js'

export const MAX_ANSWER_BYTES = 2048
/** Read past what is kept, so that a secret that begins in it is whole when it is masked. */
const MASK_AHEAD_BYTES = 4096
const MAX_ERROR_CHARACTERS = 500

export interface Post {
  id: string
  url: string
  secrets: readonly Secret[]
  body: string
  timeoutMs: number
  /** Of secrets in what comes back. */
  mask: Pick<Mask, 'text'>
  /** Ends the attempt early. */
  signal: AbortSignal
}

export type PostOutcome =
  | { kind: 'answered'; status: number; answer: string; retryAfterMs: number | undefined; durationMs: number }
  /** No answer, or none that is HTTP. */
  | { kind: 'unreachable'; error: string; durationMs: number }
  /** By `signal`: whether it arrived is not known. */
  | { kind: 'aborted' }

/** @throws never */
export async function post(outbound: Pick<Outbound, 'dispatcher'>, { id, url, secrets, body, timeoutMs, mask, signal }: Post): Promise<PostOutcome> {
  const startedMs = performance.now()
  const timestampS = Math.floor(Date.now() / 1000)
  // Not AbortSignal.any(): in Node.js 20 each call leaves something behind with a signal that lives long.
  const attempt = new AbortController()
  const giveUp = () => attempt.abort()
  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    giveUp()
  }, timeoutMs)
  signal.addEventListener('abort', giveUp, { once: true })
  if (signal.aborted) giveUp()
  try {
    const response = await request(url, {
      dispatcher: outbound.dispatcher,
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'user-agent': `Runplane/${VERSION}`,
        'webhook-id': id,
        'webhook-timestamp': String(timestampS),
        'webhook-signature': signatures({ id, timestampS, body }, inForce(secrets, timestampS * 1000)),
      },
      body,
      signal: attempt.signal,
      headersTimeout: 0,
      bodyTimeout: 0,
    })
    const answer = await beginningOf(response.body, mask)
    const retryAfter = response.headers['retry-after']
    return {
      kind: 'answered',
      status: response.statusCode,
      answer,
      retryAfterMs: retryAfterMs(Array.isArray(retryAfter) ? retryAfter[0] : retryAfter, Date.now()),
      durationMs: performance.now() - startedMs,
    }
  } catch (error) {
    if (signal.aborted) return { kind: 'aborted' }
    return { kind: 'unreachable', error: timedOut ? `no answer within ${timeoutMs} ms` : messageOf(error), durationMs: performance.now() - startedMs }
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', giveUp)
  }
}

/** What came of the body before its limit, its end or a fault: the status has been said already. */
export async function beginningOf(body: AsyncIterable<Buffer>, mask: Pick<Mask, 'text'>): Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  try {
    for await (const chunk of body) {
      chunks.push(chunk)
      bytes += chunk.length
      // Leaving the loop closes the connection.
      if (bytes >= MAX_ANSWER_BYTES + MASK_AHEAD_BYTES) break
    }
  } catch {
    // The connection was cut, or the time is over.
  }
  // Cut once it is masked: a pattern does not know half of a secret.
  const masked = mask.text(Buffer.concat(chunks).toString('utf8'))
  return storable(Buffer.from(masked).subarray(0, MAX_ANSWER_BYTES).toString('utf8'))
}

function messageOf(error: unknown): string {
  const told = error instanceof AggregateError ? error.errors[0] : error
  const code = error instanceof Error && 'code' in error ? ` (${String(error.code)})` : ''
  const message = told instanceof Error ? told.message : String(told)
  return storable(`${message}${message.includes(code.slice(2, -1)) ? '' : code}`.slice(0, MAX_ERROR_CHARACTERS))
}
