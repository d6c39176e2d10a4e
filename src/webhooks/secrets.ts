/**
 * Secrets and signatures as Standard Webhooks has them (https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md):
 * `whsec_` and 24 to 64 bytes in base64; HMAC-SHA256 over `id.timestamp.body`, one `v1,` signature for each secret that is in force.
 */

import { createHmac, randomBytes } from 'node:crypto'
import { pattern } from '../domain/pattern.js'

const PREFIX = 'whsec_'
export const SECRET_PATTERN = pattern('^whsec_[A-Za-z0-9+/]+={0,2}$', 'whsec_ and 24 to 64 bytes in base64')
const MIN_BYTES = 24
const MAX_BYTES = 64

/** The current one has no end. */
export interface Secret {
  secret: string
  /** RFC 3339 */
  expiresAt?: string
}

export function generateSecret(): string {
  return PREFIX + randomBytes(32).toString('base64')
}

/** The key in a secret; undefined for what is none. */
export function keyOf(secret: string): Buffer | undefined {
  if (!new RegExp(SECRET_PATTERN).test(secret)) return undefined
  const text = secret.slice(PREFIX.length)
  const key = Buffer.from(text, 'base64')
  // Other base64 readers refuse what Node passes over, such as a length that cannot be.
  if (key.toString('base64') !== text || key.length < MIN_BYTES || key.length > MAX_BYTES) return undefined
  return key
}

/** The secrets that sign at a time, the current one first. */
export function inForce(secrets: readonly Secret[], nowMs: number): Secret[] {
  return secrets.filter(({ expiresAt }) => expiresAt === undefined || Date.parse(expiresAt) > nowMs)
}

/** Makes `secret` the current one. The others sign for at most `overlapMs` more, or less where their time was up sooner. */
export function rotated(secrets: readonly Secret[], secret: string, overlapMs: number, nowMs: number): Secret[] {
  const endMs = nowMs + overlapMs
  const old = secrets.map((one) => ({
    secret: one.secret,
    expiresAt: new Date(one.expiresAt === undefined ? endMs : Math.min(endMs, Date.parse(one.expiresAt))).toISOString(),
  }))
  return [{ secret }, ...inForce(old, nowMs)]
}

export interface Message {
  /** The same in each attempt at a delivery. */
  id: string
  timestampS: number
  body: string
}

/** The value of `webhook-signature`. */
export function signatures({ id, timestampS, body }: Message, secrets: readonly Secret[]): string {
  return secrets
    .flatMap(({ secret }) => keyOf(secret) ?? [])
    .map((key) => `v1,${createHmac('sha256', key).update(`${id}.${timestampS}.${body}`).digest('base64')}`)
    .join(' ')
}
