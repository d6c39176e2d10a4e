/**
 * Clients that others wrote, through a proxy that cuts their connections at random: the `eventsource` package, and the
 * EventSource of a browser. Each gets every event once, in order, and stops by itself at the end of the run.
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { EventSource } from 'eventsource'
import { chromium } from 'playwright-core'
import t from 'tap'
import { createClient, eventually, seqsUpTo } from '../support/http.js'
import { seededRandom, startProxy } from '../support/proxy.js'
import { startService } from '../support/service.js'

const EVENTS = 600
const CUT_BYTES = [50_000, 160_000] as const
const CLOSED = 2
// A cut costs a client the 3 s of `retry`; some twenty of them are survived.
const FINISH_MS = 90_000
const BROWSER = [process.env.CHROMIUM_PATH, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(
  (path) => path !== undefined && existsSync(path),
)

const seed = Number(process.env.CRASH_SEED ?? Date.now() % 100_000)
t.comment(`CRASH_SEED=${seed}`)
// Both clients spend most of their time waiting to reconnect.
t.jobs = 2
const service = await startService(t, { database: 'embedded' })
const client = createClient(service.url)

/** Writes the events of a run while its readers are being cut off, then ends the run. */
async function writeRun(runId: string): Promise<void> {
  const random = seededRandom(seed)
  for (let written = 0; written < EVENTS; written += 20) {
    const events = Array.from({ length: 20 }, (_, index) => ({
      id: `event-${written + index}`,
      type: 'step.output',
      subject: { kind: 'step', id: 'build' },
      // Line breaks and what lies beyond the BMP are what a careless framing breaks on.
      data: { stream: 'stdout', text: `${written + index}\r\n\u2028😀 ${'x'.repeat(random() * 500)}` },
    }))
    const answer = await client.append(runId, events)
    if (answer.status !== 200) throw new Error(`${answer.status} ${answer.text}`)
    await new Promise((resolve) => setTimeout(resolve, 60))
  }
  const answer = await client.append(runId, { type: 'run.completed' })
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.text}`)
}

t.test('the eventsource package gets every event once, in order, and stops at the end', { timeout: 150_000 }, async (t) => {
  const proxy = await startProxy(t, { target: service.url, seed, bytes: CUT_BYTES })
  await client.createRun({ id: 'package' })
  const seqs: number[] = []
  let codeAtEnd: number | undefined
  const source = new EventSource(`${proxy.url}/runs/package/stream`)
  t.teardown(() => source.close())
  source.addEventListener('canonical_event', (event) => {
    const { seq } = JSON.parse(event.data) as { seq: number }
    if (event.lastEventId !== String(seq)) t.fail(`the id ${event.lastEventId} came with seq ${seq}`)
    seqs.push(seq)
  })
  source.addEventListener('error', (event) => {
    if (source.readyState === CLOSED) codeAtEnd = event.code
  })
  await writeRun('package')
  await eventually('the client stops by itself', () => (source.readyState === CLOSED ? true : undefined), FINISH_MS)
  const head = (await client.state('package')).version
  t.same(seqs, seqsUpTo(head), `all ${head} events, once, in order`)
  t.ok(proxy.cuts > 0, `over ${proxy.cuts} cuts`)
  t.equal(codeAtEnd, 204)
})

t.test(
  "a browser's EventSource gets every event once, in order, and stops at the end",
  { timeout: 150_000, skip: BROWSER === undefined && 'no Chromium: install one, or set CHROMIUM_PATH' },
  async (t) => {
    const proxy = await startProxy(t, { target: service.url, seed: seed + 1, bytes: CUT_BYTES, cutting: false })
    await client.createRun({ id: 'browser' })
    const profile = mkdtempSync(join(tmpdir(), 'runplane-browser-'))
    const browser = await chromium.launchPersistentContext(profile, {
      executablePath: BROWSER ?? '',
      headless: true,
      args: [
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
      ],
    })
    t.teardown(async () => {
      await browser.close()
      rmSync(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 })
    })
    const page = await browser.newPage()
    // A page of the service, whose policy lets it connect to its own origin.
    await page.goto(`${proxy.url}/docs`)
    proxy.cutting = true
    await page.evaluate(`
    globalThis.seqs = []
    globalThis.wrongIds = 0
    globalThis.source = new EventSource('/runs/browser/stream')
    source.addEventListener('canonical_event', (event) => {
      const { seq } = JSON.parse(event.data)
      if (event.lastEventId !== String(seq)) wrongIds++
      seqs.push(seq)
    })
    undefined
  `)
    await writeRun('browser')
    await eventually('the browser stops by itself', async () => ((await page.evaluate<number>('source.readyState')) === CLOSED ? true : undefined), FINISH_MS)
    const head = (await client.state('browser')).version
    t.same(await page.evaluate<number[]>('seqs'), seqsUpTo(head), `all ${head} events, once, in order`)
    t.equal(await page.evaluate<number>('wrongIds'), 0, 'each with its seq as id')
    t.ok(proxy.cuts > 0, `over ${proxy.cuts} cuts`)
  },
)
