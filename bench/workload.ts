/**
 * What the agents of the benchmark say: steps with their output, progress, model and tool calls, in the proportions of a coding agent.
 * Every event is padded to about 414 bytes as sent, the size that the design was measured with.
 */
import { type Connection, must, request } from './wire.js'

const EVENT_BYTES = 414
const TEXT = 'The quick brown fox jumps over the lazy dog; "quoted", tabbed\\t and counted 0123456789. '.repeat(5)

function padded(event: { type: string; subject?: { kind: string; id: string }; data: Record<string, unknown> }, field: string): string {
  const size = JSON.stringify({ ...event, ts: '2026-11-21T08:00:00.000Z', data: { ...event.data, [field]: '' } }).length
  const text = JSON.stringify(TEXT.slice(0, EVENT_BYTES - size)).slice(1, -1)
  const filled = JSON.parse(`"${text.slice(0, EVENT_BYTES - size).replace(/\\+$/, '')}"`)
  return JSON.stringify({ ...event, ts: '2026-11-21T08:00:00.000Z', data: { ...event.data, [field]: filled } })
}

/** The `n`th event, as the text that is sent. Twenty of them make a cycle. */
export function eventText(n: number): string {
  const round = Math.floor(n / 20) % 50
  const step = { kind: 'step', id: `step-${round}` }
  switch (n % 20) {
    case 0:
      return padded({ type: 'step.started', subject: step, data: { name: `step ${round}`, kind: 'agent' } }, 'input')
    case 4:
      return padded({ type: 'progress.reported', data: { percentage: (n * 7) % 100 } }, 'message')
    case 8:
      return padded({ type: 'tool.called', subject: { kind: 'tool', id: `tool-${round}` }, data: { name: 'shell' } }, 'arguments')
    case 9:
      return padded({ type: 'tool.completed', subject: { kind: 'tool', id: `tool-${round}` }, data: { durationMs: 12 } }, 'result')
    case 12:
      return padded(
        { type: 'llm.call.completed', subject: { kind: 'llm_call', id: `call-${round}` }, data: { model: 'model-1', inputTokens: 1200, outputTokens: 80 } },
        'response',
      )
    case 15:
      return padded({ type: 'message.completed', subject: { kind: 'message', id: `message-${round}` }, data: { role: 'assistant' } }, 'content')
    case 19:
      return padded({ type: 'step.completed', subject: step, data: { durationMs: 900 } }, 'output')
    default:
      return padded({ type: 'step.output', subject: step, data: { stream: 'stdout' } }, 'text')
  }
}

export async function createRun(connection: Connection, port: number, id: string): Promise<string> {
  await must(connection, request(port, 'POST', '/runs', JSON.stringify({ id })))
  return id
}

/** A request that posts `count` events, from the `first` on. */
export function post(port: number, runId: string, count: number, first = 0): Buffer {
  const events = Array.from({ length: count }, (_, index) => eventText(first + index))
  return request(port, 'POST', `/runs/${runId}/events`, count === 1 ? events[0] : `[${events.join(',')}]`)
}

/** Posts until the run's log is that long (`run.created` is its first event). */
export async function fill(connection: Connection, port: number, runId: string, events: number): Promise<void> {
  const whole = post(port, runId, 1000)
  let missing = events - 1
  for (; missing >= 1000; missing -= 1000) await must(connection, whole)
  if (missing > 0) await must(connection, post(port, runId, missing))
}
