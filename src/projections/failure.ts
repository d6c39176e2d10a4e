/** An error as an agent tells it, in one shape: a text is its message. */
import { type Cuts, clip, clipped, field, MAX_LABEL_BYTES } from './bounds.js'

export interface FailureText {
  code: string | null
  message: string
  stack: string | null
}

export function failureOf(cuts: Cuts, error: unknown, maxBytes: number): FailureText | null {
  if (error === undefined || error === null) return null
  if (typeof error === 'string') return { code: null, message: clip(cuts, error, maxBytes), stack: null }
  const code = field(error, 'code')
  const message = field(error, 'message')
  const stack = field(error, 'stack')
  return {
    code: typeof code === 'string' ? clip(cuts, code, MAX_LABEL_BYTES * 2) : typeof code === 'number' ? String(code) : null,
    message: typeof message === 'string' ? clip(cuts, message, maxBytes) : 'No message was given.',
    stack: typeof stack === 'string' ? clipped(cuts, stack, maxBytes) : null,
  }
}
