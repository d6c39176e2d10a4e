/** A planted secret is nowhere afterwards: in no table, in no log line, in no file and in no bundle, whichever way it came. */
import { mkdtempSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { buildApp } from '../../src/app.js'
import { ConfigError, loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { createLogger } from '../../src/ops/logging.js'
import { dump, serverUrl, type Teardown, testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
import { sourceServer } from '../support/source-server.js'

const SECRET = 'sk-planted0123456789abcdef'
const escaped = (value: unknown) => JSON.stringify(value).replaceAll('sk-', '\\u0073k-')
const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64')

async function service(t: Teardown, database: Database) {
  const dataDir = mkdtempSync(join(tmpdir(), 'masking-'))
  const config = loadConfig(
    {
      DATA_DIR: dataDir,
      MASK_PATTERNS: 'sk-[A-Za-z0-9]{16,} \\b\\d{16}\\b',
      ARTIFACT_INLINE_BYTES: '100',
      LOG_LEVEL: 'trace',
      SNAPSHOT_EVERY_EVENTS: '1',
      OUTBOUND_ALLOW_PRIVATE: 'true',
    },
    { envFile: '/nonexistent' },
  )
  const lines: string[] = []
  const app = await buildApp({ config, database, logger: createLogger(config, { write: (line) => lines.push(line) }) })
  t.teardown(() => app.close())
  await app.listen({ port: 0, host: '127.0.0.1' })
  const address = app.server.address()
  const origin = `http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`
  const send = async (method: 'GET' | 'POST' | 'PUT', path: string, payload?: string | object, headers: Record<string, string> = {}) => {
    const answer = await fetch(origin + path, {
      method,
      ...(payload !== undefined && { body: typeof payload === 'string' ? payload : JSON.stringify(payload) }),
      headers: { ...(payload !== undefined && { 'content-type': 'application/json' }), ...headers },
    })
    const body = await answer.text()
    return { status: answer.status, body, json: () => JSON.parse(body) }
  }
  return { app, lines, dataDir, send }
}

/** As it is, escaped, in base64 at any offset, and in base64 within. */
function traces(text: string): string[] {
  const forms = [SECRET, SECRET.slice(3), escaped(SECRET).slice(1, -1)]
  for (const offset of [0, 1, 2]) {
    const encoded = Buffer.from('x'.repeat(offset) + SECRET).toString('base64')
    forms.push(encoded.slice(4, -4))
  }
  return forms.filter((form) => text.includes(form))
}

for (const kind of ['embedded', 'server']) {
  const server = kind === 'server'
  t.test(`on the ${kind} database a planted secret is nowhere`, { skip: server && !serverUrl && 'needs TEST_DATABASE_URL' }, async (t) => {
    const database = await testDatabase(t, { server })
    const { app, lines, dataDir, send } = await service(t, database)

    await t.test('whichever way it comes', async (t) => {
      const created = await send(
        'POST',
        '/runs',
        {
          id: 'r',
          name: `run ${SECRET}`,
          kind: SECRET,
          input: { deep: [{ key: SECRET }], [SECRET]: 1, card: 4111111111111111 },
          metadata: { token: SECRET, encoded: base64({ key: SECRET }) },
          tags: [SECRET],
          participants: [{ id: SECRET, role: SECRET }],
          session: { goal: SECRET },
        },
        { 'idempotency-key': SECRET, 'x-request-id': SECRET },
      )
      t.equal(created.status, 201)
      t.equal(
        (
          await send('POST', '/runs', {
            mode: 'm',
            session: { modeName: 'm', participants: [{ id: SECRET }], sessionId: SECRET, metadata: { a: SECRET } },
            execution: { idempotencyKey: `b${SECRET}`, tags: [SECRET], requester: { id: SECRET } },
          })
        ).status,
        201,
      )
      t.equal((await send('POST', '/runs/validate', { id: SECRET })).status, 200)

      const events = [
        {
          id: `id-${SECRET}`,
          source: SECRET,
          type: 'step.started',
          subject: { kind: 'step', id: SECRET },
          stepId: SECRET,
          actor: { kind: 'participant', id: SECRET },
          data: { name: SECRET, input: SECRET },
        },
        { type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: `export KEY=${SECRET}\nok` } },
        { type: 'tool.called', subject: { kind: 'tool', id: 't' }, data: { name: 'http', arguments: JSON.stringify({ headers: { authorization: SECRET } }) } },
        { type: 'run.failed', data: { error: { code: SECRET, message: SECRET, stack: SECRET } } },
        { type: 'custom.emitted', data: { name: 'n', value: { [SECRET]: { [SECRET]: [SECRET, 4111111111111111] } } } },
        { type: `x.${SECRET}`, data: {} },
        { type: 'gate.failed', subject: { kind: 'gate', id: 'g' }, data: { reason: SECRET }, trace: { traceId: SECRET } },
      ]
      const posted = await send('POST', '/runs/r/events', escaped(events), { 'idempotency-key': `e-${SECRET}`, 'x-request-id': SECRET })
      t.ok(posted.status < 300)
      t.equal(
        (
          await send('POST', '/runs/r/events', `${events.map((event) => JSON.stringify({ ...event, id: undefined })).join('\n')}\n`, {
            'content-type': 'application/x-ndjson',
            'producer-id': SECRET,
            'producer-epoch': '0',
            'producer-seq': '0',
          })
        ).status < 300,
        true,
      )
      const macp = [
        { messageType: 'Proposal', messageId: 'm1', sender: 'a', payload: base64({ proposalId: 'p', prompt: SECRET, option: SECRET }) },
        { messageType: 'Signal', messageId: 'm2', sender: 'a', payload: { signalType: 'risk', data: base64({ key: SECRET }) } },
        { messageType: 'Vote', messageId: 'm3', sender: 'a', payload: Buffer.from(escaped({ proposalId: 'p', reason: SECRET })).toString('base64') },
      ]
      t.equal((await send('POST', '/runs/r/events?format=macp', macp)).status, 200)
      t.ok([200, 207, 422].includes((await send('POST', '/runs/r/events?format=jobs', [{ type: 'job:output', jobId: 'j', data: SECRET }])).status))
      t.ok([400, 422].includes((await send('POST', '/runs/r/events', `{"type":"${SECRET}`)).status))

      const chat = (id: string, type: string, data: object) => ({ type: `message.${type}`, subject: { kind: 'message', id }, data })
      const pieces = `key ${SECRET} end`.match(/.{1,9}/g) ?? []
      const inPieces = [
        ...pieces.map((text) => chat('pieces', 'delta', { text })),
        ...pieces.map((text) => chat('pieces', 'delta', { text, channel: 'reasoning' })),
        chat('pieces', 'completed', { role: 'assistant' }),
        chat('blocks', 'completed', { content: pieces.map((text) => ({ type: 'text', text })) }),
        ...pieces.map((text) => chat('open', 'delta', { text })),
      ]
      t.match((await send('POST', '/runs/r/events', inPieces)).json(), { accepted: inPieces.length })

      for (const [content, type] of [
        [`token: ${SECRET}`, 'text/plain'],
        [escaped({ a: SECRET }) + ' '.repeat(200), 'application/octet-stream'],
      ] as const) {
        t.equal((await send('POST', `/runs/r/artifacts?mediaType=${type}`, content, { 'content-type': type })).status, 201)
      }
      t.equal(
        (await send('POST', '/runs/r/artifacts', { label: SECRET, name: SECRET, inline: { a: SECRET, pad: 'x'.repeat(200) } }, { 'idempotency-key': SECRET }))
          .status,
        201,
      )
      t.equal((await send('POST', '/runs/r/artifacts', { uri: `https://x/?key=${SECRET}`, mediaType: `text/${SECRET}` })).status, 201)
      const named = `name=${SECRET}&kind=${SECRET}&label=${SECRET}&stepId=${SECRET}&id=${SECRET}`
      t.equal((await send('POST', `/runs/r/artifacts?${named}`, 'named', { 'content-type': `text/plain; x=${SECRET}` })).status, 201)
      t.equal((await send('POST', `/runs/r/artifacts?mediaType=text/${SECRET}`, 'typed')).status, 201)

      await send('POST', '/runs', { id: 'q', queue: 'work', input: SECRET })
      await send('POST', '/runs/claim', { queue: 'work', workerId: SECRET })
      await send('POST', '/runs/q/suspend', { reason: SECRET, by: SECRET })
      await send('POST', '/runs/q/cancel', { reason: SECRET, by: SECRET })
      await send('POST', '/runs/r/clone', { input: SECRET }, { 'idempotency-key': `c${SECRET}` })
      await send('POST', '/runs/batch/cancel', { runIds: [SECRET], reason: SECRET })
      await send('POST', '/exports', { filter: { search: SECRET } })
      await send('GET', `/runs?search=${SECRET}`)
      await send('GET', `/runs/${SECRET}`)
      await send('GET', `/${SECRET}`)
      t.equal((await send('POST', '/runs', { id: SECRET })).status, 400, 'an id cannot be masked and stay one')
      await send('POST', `/runs/${SECRET}/cancel`)
      t.match((await send('PUT', `/queues/${SECRET}`, { concurrency: 1 })).json(), { name: /^\[masked:/, concurrency: 1 })
      t.match((await send('GET', `/queues/${SECRET}`)).json(), { name: /^\[masked:/, concurrency: 1 }, 'and is found by the name that its runs have')
      const bundle = await send('GET', '/runs/q/export?format=ndjson')
      t.match((await send('POST', `/runs/import?as=${SECRET}`, bundle.body)).json(), { status: 400, detail: /is no id/ })
    })

    await t.test('it is in no answer, and the run reads as before', async (t) => {
      for (const path of [
        '/runs',
        '/runs/r',
        '/runs/r/state',
        '/runs/r/events?limit=1000',
        '/runs/r/raw',
        '/runs/r/export?includeRaw=true',
        '/runs/r/export?includeRaw=true&format=ndjson',
        '/runs/r/messages',
        '/runs/r/replay/state',
        '/runs/compare?left=r&right=q',
        '/runs/r/artifacts',
        '/queues',
        '/runs.csv',
        '/exports',
        '/audit',
      ]) {
        const answer = await send('GET', path)
        t.equal(answer.status, 200, path)
        t.same(traces(answer.body), [], path)
      }
      const raw = (await send('GET', '/runs/r/raw')).json() as { data: { body: unknown }[] }
      t.match(raw.data[0]?.body, { data: { name: /^\[masked:[a-p]{12}\]$/ } }, 'a raw event is JSON still')
    })

    await t.test('a text that came in pieces is masked where they are put together', async (t) => {
      const { state } = (await send('GET', '/runs/r/state')).json() as { state: { messages: { streams: object[] } } }
      const whole = /^key \[masked:[a-p]{12}\] end$/
      t.match(state.messages.streams, [
        { messageId: 'pieces', status: 'completed', text: whole, reasoning: whole },
        { messageId: 'blocks', text: whole },
        { messageId: 'open', status: 'streaming', text: whole },
      ])
      t.match((await send('GET', '/runs/r/messages')).json().data.slice(-2), [
        { messageId: 'pieces', text: whole, reasoning: whole },
        { messageId: 'blocks', text: whole },
      ])
    })

    await t.test('a repeat of an event with a secret in it is a repeat still', async (t) => {
      const event = { id: `again-${SECRET}`, type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: SECRET } }
      t.match((await send('POST', '/runs/r/events', event)).json(), { accepted: 1 })
      t.match((await send('POST', '/runs/r/events', event)).json(), { duplicates: 1 })
      t.match((await send('POST', '/runs/r/events', { ...event, id: `${event.id}x` })).json(), { accepted: 1 }, 'another id is another event')
      t.equal((await send('POST', '/runs', { name: 'once' }, { 'idempotency-key': `${SECRET}1` })).status, 201)
      t.equal((await send('POST', '/runs', { name: 'once' }, { 'idempotency-key': `${SECRET}1` })).status, 200)
      t.equal((await send('POST', '/runs', { name: 'once' }, { 'idempotency-key': `${SECRET}2` })).status, 201)
    })

    await t.test('credentials of a source are kept to be sent, and shown nowhere', async (t) => {
      const refused = await send('POST', '/runs', { id: 'attached', source: { url: `https://example.com/?key=${SECRET}` } })
      t.match(refused.json(), { status: 400, detail: /headers/ })
      const participants = [{ id: 'a' }]
      const macp = (cancelCallback: object) => ({ mode: 'live', session: { modeName: 'm', participants, metadata: { cancelCallback } } })
      const ofSession = await send('POST', '/runs', macp({ url: `https://example.com/?key=${SECRET}` }))
      t.match(ofSession.json(), { status: 400, detail: /^session\.metadata\.cancelCallback\.url .*bearer/ })
      const bearer = 'sk-called0123456789abcdef'
      const { runId } = (await send('POST', '/runs', macp({ url: 'https://example.com/', bearer }))).json()
      const [kept] = await database.sql`select descriptor->'cancelCallback' as callback from runs where id = ${runId}`
      t.same(kept?.callback, { url: 'https://example.com/', headers: { Authorization: `Bearer ${bearer}` } })
      const session = { 'metadata.cancelCallback.bearer': SECRET }
      t.match((await send('POST', '/runs', { session })).json(), { session: { 'metadata.cancelCallback.bearer': /^\[masked:/ } })
      const webhook = await send('POST', '/webhooks', { url: 'https://example.com/sk-hook0123456789abcdef', description: SECRET, types: ['run.*'] })
      t.match(webhook.json(), { url: 'https://example.com/sk-hook0123456789abcdef', description: /^\[masked:/ }, 'the address of a webhook is called as it is')
    })

    await t.test('what a source says of itself is quoted without it', async (t) => {
      const source = await sourceServer(t, (_request, response) => response.writeHead(200, { 'content-type': `text/${SECRET}` }).end())
      t.equal((await send('POST', '/runs', { id: 'sourced', source: { url: source.url } })).status, 201)
      const failed = await eventually('the end of the run', async () => {
        const run = (await send('GET', '/runs/sourced')).json()
        return run.status === 'failed' ? run : undefined
      })
      t.match(failed, { error: { code: 'SOURCE_FAILED', message: /The source sends 'text\/\[masked:/ } })
    })

    await t.test('in no table, no log line and no file', async (t) => {
      await eventually('the snapshot is written', async () => ((await database.sql`select from run_projections`).length > 0 ? true : undefined))
      const text = await dump(database)
      t.same(
        text.split('\n').filter((line) => traces(line).length > 0),
        [],
      )
      t.notMatch(text, /4111111111111111/)
      t.match(text, /\[masked:[a-p]{12}\]/)
      t.ok(lines.length > 10)
      t.same(
        lines.filter((line) => traces(line).length > 0),
        [],
      )
      for (const line of lines) JSON.parse(line)
      const files = readdirSync(dataDir, { recursive: true, encoding: 'utf8' })
        .map((path) => join(dataDir, path))
        .filter((path) => statSync(path).isFile())
      t.ok(files.length > 0)
      t.same(
        files.filter((path) => traces(readFileSync(path, 'latin1')).length > 0),
        [],
      )
    })
    await app.close()
    t.same(traces(await dump(database)), [], 'nor in what the end of the service writes')
  })
}

t.test('a pattern that cannot be used stops the start, and says why', async (t) => {
  const fault = (patterns: string) => {
    try {
      loadConfig({ MASK_PATTERNS: patterns }, { envFile: '/nonexistent' })
    } catch (error) {
      if (error instanceof ConfigError) return error.message
      throw error
    }
    return undefined
  }
  t.match(fault('sk-[a-z]+ (a'), /^MASK_PATTERNS: .*'\(a': .*missing closing/)
  t.match(fault('a*'), /matches the empty text/)
  t.match(fault('(?=a)b'), /unsupported/)
  t.equal(fault('sk-[a-z]+ AKIA[0-9A-Z]{16}'), undefined)
})
