/**
 * A worker of the queue as a process of its own, for tests that kill it: claims, tells of its work, beats, completes, and goes on after any error.
 * Arguments: its id, the queue, and the addresses of the instances.
 */
import { setTimeout as delay } from 'node:timers/promises'

const [workerId, queue, ...urls] = process.argv.slice(2)
const LEASE_MS = 1500

/** On any instance, again and again until one answers. Only what may be repeated is sent again. */
async function post(path, body, { repeat = true } = {}) {
  for (;;) {
    const url = urls[Math.floor(Math.random() * urls.length)]
    try {
      const answer = await fetch(url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'x-worker-id': workerId },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(15_000),
      })
      const text = await answer.text()
      if (answer.status < 500) return { status: answer.status, body: text === '' ? undefined : JSON.parse(text) }
    } catch {
      // The instance is down, or was while it answered.
    }
    if (!repeat) return { status: 0 }
    await delay(50)
  }
}

for (;;) {
  const claimed = await post('/runs/claim', { queue, workerId, leaseMs: LEASE_MS, waitMs: 1000 }, { repeat: false })
  if (claimed.status !== 200) continue
  const { runId, attempt } = claimed.body
  const tell = (type, data = {}) => post(`/runs/${runId}/events`, { id: `${workerId}-${attempt}-${type}`, source: workerId, type, data: { workerId, ...data } })
  const steps = [
    () => tell('run.started'),
    () => post(`/runs/${runId}/heartbeat`, { workerId }),
    () => tell('custom.emitted', { name: 'working' }),
    () => tell('run.completed', { output: workerId }),
  ]
  for (const step of steps) {
    await delay(Math.random() * 60)
    // Lost: another has it now, or will have it.
    if ((await step()).status === 409) break
  }
}
