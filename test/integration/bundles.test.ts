/** Exports, imports and `runplane verify`, on both databases. */
import '../support/parquet-loader.js'
import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { gunzipSync, gzipSync } from 'node:zlib'
import { DuckDBInstance } from '@duckdb/node-api'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { ZipFile } from 'yazl'
import type { Database } from '../../src/db/client.js'
import type { CanonicalEvent } from '../../src/domain/canonical-event.js'
import { openBundle } from '../../src/insight/bundle-reader.js'
import { createState, encodeState, fold } from '../../src/projections/fold.js'
import { exportOf, importInto, listening, resealed, scanned, temporaryFolder, unzipped } from '../support/bundles.js'
import { serverUrl, testDatabase } from '../support/database.js'
import { eventually, type RunRecord } from '../support/http.js'

type Records = { kind: string; event?: { seq: number; rawSeq: number; type: string }; [name: string]: unknown }[]
const records = (bundle: Buffer): Records =>
  bundle
    .toString()
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
const FORMATS = ['ndjson', 'json', 'zip'] as const
const everything = (format: string) => `?format=${format}&include=canonical,raw,artifacts`

const databases: [string, () => Promise<Database>][] = [['embedded', () => testDatabase(t)]]
if (serverUrl) databases.push(['server', () => testDatabase(t, { server: true })])

for (const [name, open] of databases) {
  const database = await open()
  const { url, client, config } = await listening(t, database)
  const folder = await temporaryFolder(t)

  /** Steps, calls with tokens, texts that are awkward, a body of several lines. */
  const filled = async (id: string, rounds = 3): Promise<number> => {
    await client.createRun({ id, name: `run ${id}`, tags: ['a', 'ü'], metadata: { team: 'x' }, input: { q: [1, '\u0001'] }, queue: 'slow' })
    for (let round = 0; round < rounds; round++) {
      const step = { kind: 'step', id: `step-${round}` }
      await client.append(id, [
        { id: `s-${round}`, type: 'step.started', subject: step, data: { name: `build ${round}` } },
        { type: 'llm.call.completed', subject: { kind: 'llm_call', id: `c-${round}` }, data: { model: 'm', inputTokens: 5, outputTokens: 7, costUsd: 0.25 } },
        { type: 'tool.called', subject: { kind: 'tool', id: `t-${round}` }, data: { name: 'shell', arguments: { cmd: 'echo "\\u0000" \u2028 👍' } } },
        { type: 'step.completed', subject: step, data: { durationMs: 12 } },
      ])
    }
    await client.append(id, '{"type":"custom.emitted",\n  "data":{"name":"x","n":12345678901234567890,"nul":"\\u0000","half":"\\ud83d","x":1.10,"x":2}}')
    await client.append(id, { type: 'run.completed', data: { usage: { inputTokens: 5 * rounds, outputTokens: 7 * rounds } } })
    return (await client.state(id)).version
  }
  const head = await filled('original')

  t.test(`${name}: an export`, async (t) => {
    await t.test('is all of the run in JSON by default, without raw events', async (t) => {
      const bundle = JSON.parse((await exportOf(url, 'original')).toString())
      t.equal(bundle.run.runId, 'original')
      t.same((await client.state('original')).state, bundle.state.state)
      t.same(bundle.canonicalEvents, await client.events('original'))
      t.equal(bundle.rawEvents, undefined)
      t.match(bundle.manifest, { complete: true, counts: { canonical: head, raw: 0 }, omissions: [{ what: 'raw_events', reason: 'not asked for' }] })
      t.equal(bundle.metrics.inputTokens, 15)
    })
    await t.test('is a header, records and a manifest in NDJSON, each event as it is stored', async (t) => {
      const lines = records(await exportOf(url, 'original', '?format=jsonl&includeRaw=true'))
      t.equal(lines[0]?.kind, 'header')
      t.equal(lines.at(-1)?.kind, 'manifest')
      const events = lines.filter((line) => line.kind === 'canonical_event').map((line) => line.event)
      t.same(events, await client.events('original'))
      const raw = lines.filter((line) => line.kind === 'raw_event').map((line) => line.event)
      t.same(
        raw.map((event) => event?.rawSeq),
        raw.map((_, index) => index + 1),
      )
      t.match(lines.at(-1), {
        complete: true,
        counts: { canonical: head, raw: raw.length, types: { 'step.started': 3 } },
        ranges: { canonical: { fromSeq: 1, toSeq: head } },
      })
    })
    await t.test('tells its files by their own SHA-256, in a zip that other programs open', async (t) => {
      const path = join(folder, 'original.zip')
      await writeFile(path, await exportOf(url, 'original', everything('zip')))
      const manifest = JSON.parse(unzipped(path, 'manifest.json'))
      t.ok(manifest.files.length >= 8)
      for (const file of manifest.files.filter((file: { path: string }) => !file.path.startsWith('tables/'))) {
        t.equal(createHash('sha256').update(unzipped(path, file.path)).digest('hex'), file.sha256, file.path)
      }
    })
    await t.test('has the same event files in each format', async (t) => {
      const sums = await Promise.all(
        FORMATS.map(async (format) => {
          const bundle = await exportOf(url, 'original', everything(format))
          const path = join(folder, `same.${format}`)
          await writeFile(path, bundle)
          const { manifest } = await openBundle(path)
          return manifest.files.filter((file) => file.path.startsWith('events/'))
        }),
      )
      t.same(sums[1], sums[0])
      t.same(sums[2], sums[0])
    })
    await t.test('of a run that has not changed is the same, and is known by its ETag', async (t) => {
      for (const format of FORMATS) {
        const first = await fetch(`${url}/runs/original/export?format=${format}`)
        const etag = first.headers.get('etag') ?? ''
        t.match(first.headers.get('content-disposition'), `filename="original.${format}"`)
        t.same(Buffer.from(await first.arrayBuffer()), await exportOf(url, 'original', `?format=${format}`))
        const again = await fetch(`${url}/runs/original/export?format=${format}`, { headers: { 'if-none-match': etag } })
        t.equal(again.status, 304)
        const other = await fetch(`${url}/runs/original/export?format=${format}&include=canonical,raw`, { headers: { 'if-none-match': etag } })
        t.equal(other.status, 200)
        await other.arrayBuffer()
      }
    })
    await t.test('has another ETag where its prices are others', async (t) => {
      const prices = join(folder, 'prices.json')
      await writeFile(prices, JSON.stringify({ asOf: '2026-11-01', source: 'ours', models: [] }))
      const etags = [url, (await listening(t, database, { MODEL_PRICES_FILE: prices })).url].map(async (service) => {
        const answer = await fetch(`${service}/runs/original/export`)
        await answer.arrayBuffer()
        return answer.headers.get('etag')
      })
      t.not(await etags[0], await etags[1])
    })
    await t.test('comes gzipped where that is asked for', async (t) => {
      const plain = await exportOf(url, 'original', '?format=ndjson')
      const answer = await new Promise<{ encoding: string | undefined; body: Buffer }>((resolve, reject) => {
        import('node:http').then(({ get }) =>
          get(`${url}/runs/original/export?format=ndjson`, { headers: { 'accept-encoding': 'br;q=0.5, gzip' } }, (response) => {
            const chunks: Buffer[] = []
            response.on('data', (chunk) => chunks.push(chunk))
            response.on('end', () => resolve({ encoding: response.headers['content-encoding'], body: Buffer.concat(chunks) }))
          }).on('error', reject),
        )
      })
      t.equal(answer.encoding, 'gzip')
      t.same(gunzipSync(answer.body), plain)
    })
    await t.test('goes on after a break, and says where a limit cut it', async (t) => {
      const first = records(await exportOf(url, 'original', '?format=ndjson&limit=4&includeRaw=true'))
      t.match(first.at(-1), { complete: false, nextSeq: 5, counts: { canonical: 4 }, ranges: { canonical: { fromSeq: 1, toSeq: 4, headSeq: head } } })
      const rest = records(await exportOf(url, 'original', '?format=ndjson&fromSeq=5&includeRaw=true'))
      t.match(rest.at(-1), { complete: false, counts: { canonical: head - 4 } })
      t.equal(rest.at(-1)?.nextSeq, undefined)
      const seqs = (kind: string) => [...first, ...rest].filter((line) => line.kind === kind).map((line) => line.event?.seq ?? line.event?.rawSeq)
      t.same(
        seqs('canonical_event'),
        Array.from({ length: head }, (_, index) => index + 1),
      )
      t.same(
        seqs('raw_event'),
        Array.from({ length: seqs('raw_event').length }, (_, index) => index + 1),
        'raw events go with the canonical ones that came of them',
      )
      t.equal((await client.get(`/runs/original/export?fromSeq=${head + 2}`)).status, 400)
      t.equal((await importInto(url, await exportOf(url, 'original', '?limit=4'), '?as=part')).status, 400, 'a part is no run')
    })
    await t.test('of a run that is not there is 404', async (t) => {
      t.match(await client.get('/runs/none/export'), { status: 404 })
    })
    await t.test('is as of its beginning while the run is written', async (t) => {
      await client.createRun({ id: `busy-${name}` })
      let writing = true
      const writer = (async () => {
        for (let n = 0; writing; n++)
          await client.append(
            `busy-${name}`,
            Array.from({ length: 50 }, () => ({ type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: `${n}` } })),
          )
      })()
      for (let round = 0; round < 5; round++) {
        const lines = records(await exportOf(url, `busy-${name}`, '?format=ndjson&includeRaw=true'))
        const manifest = lines.at(-1) as unknown as { complete: boolean; headSeq: number; counts: { canonical: number } }
        t.equal(manifest.complete, true)
        t.equal(manifest.counts.canonical, manifest.headSeq)
        const state = lines.find((line) => line.kind === 'state') as unknown as { state: { version: number } }
        t.equal(state.state.version, manifest.headSeq)
        t.equal(typeof (await scanned(folder, await exportOf(url, `busy-${name}`, everything('zip')))), 'object')
      }
      writing = false
      await writer
    })
    await t.test('has every event where they grow and shrink from one to the next, whoever reads slowly beside', async (t) => {
      await client.createRun({ id: `uneven-${name}` })
      const event = (n: number, bytes: number) => ({
        type: 'step.output',
        subject: { kind: 'step', id: 's' },
        data: { text: `${n} `.padEnd(bytes, `${n % 10}"\n`) },
      })
      const append = (count: number, bytes: number) =>
        client.append(
          `uneven-${name}`,
          Array.from({ length: count }, (_, n) => event(n, bytes)),
        )
      for (const [count, bytes] of [
        [1, 1],
        [700, 100],
        [9, 240_000],
        [700, 100],
        [60, 20_000],
        [1000, 1500],
      ] as const)
        await append(count, bytes)
      const { version } = await client.state(`uneven-${name}`)
      const key = database.sql`(select key from runs where id = ${`uneven-${name}`})`
      const stored = await database.sql<{ event: string }[]>`select event::text from run_events_canonical where run_key = ${key} order by seq`
      const sent = await database.sql<{ body: string }[]>`select body from run_events_raw where run_key = ${key} order by raw_seq`
      t.equal(stored.length, version)

      /** @param pauseMs between two pieces that are taken */
      const read = async (format: string, pauseMs: number) => {
        const pieces: Uint8Array[] = []
        for await (const piece of (await fetch(`${url}/runs/uneven-${name}/export${everything(format)}`)).body ?? []) {
          pieces.push(piece)
          if (pauseMs > 0) await delay(pauseMs)
        }
        return Buffer.concat(pieces)
      }
      const bundles = await Promise.all([read('ndjson', 0), read('ndjson', 5), read('ndjson', 1), read('json', 2), read('ndjson', 0)])
      const hashes = bundles.map((bundle) => createHash('sha256').update(bundle).digest('hex'))
      t.same([hashes[1], hashes[2], hashes[4]], [hashes[0], hashes[0], hashes[0]])
      const lines = (bundles[0] ?? Buffer.alloc(0)).toString().split('\n')
      const of = (kind: string) =>
        lines.filter((line) => line.startsWith(`{"kind":"${kind}"`)).map((line) => line.slice(`{"kind":"${kind}","event":`.length, -1))
      t.same(
        of('canonical_event'),
        stored.map(({ event }) => event),
      )
      t.same(
        of('raw_event').map((line) => line.slice(line.indexOf(',"body":') + 8, -1)),
        sent.map(({ body }) => body),
      )
      for (const bundle of bundles) t.equal(typeof (await scanned(folder, bundle)), 'object')
    })
    await t.test('that fails on its way ends in an error and no manifest', async (t) => {
      await client.createRun({ id: `doomed-${name}` })
      // Texts that do not shrink in a zip, and more of them than the buffers on the way hold: the export waits for its reader before the seqs that go.
      const text = () => randomBytes(750).toString('base64')
      const many = () => Array.from({ length: 1000 }, () => ({ type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: text() } }))
      for (let batch = 0; batch < 20; batch++) t.equal((await client.append(`doomed-${name}`, many())).status, 200)
      for (const format of FORMATS) {
        const answer = await fetch(`${url}/runs/doomed-${name}/export?format=${format}`)
        const reader = answer.body?.getReader()
        await reader?.read()
        // As retention does it, from the beginning on.
        await database.sql`delete from run_events_canonical where seq > ${format === 'ndjson' ? 17_000 : format === 'json' ? 16_000 : 15_000} and seq < 19000
          and run_key = (select key from runs where id = ${`doomed-${name}`})`
        const chunks: Uint8Array[] = []
        for (;;) {
          const piece = await reader?.read()
          if (!piece || piece.done) break
          chunks.push(piece.value)
        }
        const text = Buffer.concat(chunks).toString('latin1')
        if (format === 'zip') {
          t.match(text, 'error.json')
          t.notMatch(text, 'manifest.json')
        } else {
          t.match(text.slice(-400), format === 'json' ? '"error":{"code":"RUN_NOT_FOUND"' : '{"kind":"error","code":"RUN_NOT_FOUND"')
          t.notMatch(text.slice(-2000), '"manifest"')
        }
      }
    })
  })

  t.test(`${name}: an import`, async (t) => {
    await t.test('brings back a run whose event files and state are the same', async (t) => {
      for (const format of FORMATS) {
        const there = await testDatabase(t)
        const other = await listening(t, there)
        const bundle = await exportOf(url, 'original', everything(format))
        const answer = await importInto(other.url, bundle)
        t.match(answer, { status: 201, body: { runId: 'original', imported: true, lastSeq: head, events: { canonical: head } } })
        const stateHere = await client.state('original')
        t.same(await other.client.state('original'), stateHere)
        const back = await exportOf(other.url, 'original', everything(format))
        const files = async (bytes: Buffer) => {
          const path = join(folder, `round.${format}`)
          await writeFile(path, bytes)
          const { manifest } = await openBundle(path)
          return manifest.files.filter((file) => /^(events|tables)\/|state/.test(file.path))
        }
        t.same(await files(back), await files(bundle))
        const record = (await other.client.get<RunRecord>('/runs/original')).body
        const original = (await client.get<RunRecord>('/runs/original')).body
        t.same({ ...record, queue: null }, { ...original, queue: null }, 'the record is the same, but for the queue: nobody is to work on it again')
        t.same(await there.sql`select seq, shape, content from run_events_canonical where shape is null or content is null`, [], 'and it can be compared')
        const [digests] =
          await there.sql`select string_agg(concat(seq, ' ', shape, ' ', content, ' ', subject, ' ', type, ' ', ts), ',' order by seq) as all from run_events_canonical`
        const [ours] = await database.sql`select string_agg(concat(seq, ' ', shape, ' ', content, ' ', subject, ' ', type, ' ', ts), ',' order by seq) as all
          from run_events_canonical where run_key = (select key from runs where id = 'original')`
        t.equal(digests?.all, ours?.all)
        const again = await importInto(other.url, bundle)
        t.match(again, { status: 200, body: { imported: false, chain: answer.body.chain } })
        t.equal(
          (await other.client.append('original', { id: 's-0', type: 'step.started', subject: { kind: 'step', id: 'step-0' }, data: { name: 'build 0' } })).body
            .duplicates,
          1,
        )
        t.equal((await other.client.append('original', { type: 'custom.emitted', data: { name: 'later' } })).body.firstSeq, head + 1, 'it can be written on')
        t.match(await importInto(other.url, bundle), { status: 200, body: { imported: false } }, 'all of the bundle is still there')
      }
    })
    await t.test('brings back who was at work on the run, when, and how that ended', async (t) => {
      const id = `tried-${name}`
      const queue = `q-${name}`
      const [ann, bob] = ['worker of Ann <ann@example.com>', 'worker-7']
      const claim = async (workerId: string) => t.match(await client.post('/runs/claim', { queue, workerId }), { status: 200, body: { runId: id } })
      await client.createRun({ id, queue })
      await claim(ann)
      t.match(await client.post(`/runs/${id}/release`, { workerId: ann }), { status: 200 })
      await claim(bob)
      await client.append(id, { type: 'run.failed', data: { error: { message: 'no' } } })
      t.match(await client.post(`/runs/${id}/retry`, {}), { status: 200 })
      await claim(bob)
      await client.append(id, [{ type: 'run.started' }, { type: 'run.completed' }])
      const attempts = [
        { attempt: 1, workerId: ann, claimedAt: String, endedAt: String, status: 'released' },
        { attempt: 1, workerId: bob, claimedAt: String, startedAt: String, endedAt: String, status: 'failed' },
        { attempt: 2, workerId: bob, claimedAt: String, startedAt: String, endedAt: String, status: 'completed' },
      ]
      t.match(await client.state(id), { state: { run: { attempts } } })
      const there = (await listening(t, await testDatabase(t))).url
      for (const format of FORMATS) {
        const path = join(folder, `tried.${format}`)
        const bundle = await exportOf(url, id, everything(format))
        await writeFile(path, bundle)
        const { run, state } = await openBundle(path)
        t.match(run, { attempts }, `the record in ${format}`)
        t.same(run.attempts, (state as { state: { run: { attempts: unknown } } }).state.run.attempts)
        const as = `?as=${id}-${format}`
        t.match(await importInto(there, bundle, as), { status: 201 })
        await writeFile(path, await exportOf(there, `${id}-${format}`, everything(format)))
        t.same((await openBundle(path)).run.attempts, run.attempts, 'and after an import')
      }
      for (const profile of ['hashed', 'no-content']) {
        const path = join(folder, `tried-${profile}.json`)
        const bundle = await exportOf(url, id, `?format=json&profile=${profile}`)
        await writeFile(path, bundle)
        const { run } = await openBundle(path)
        t.match(run, { attempts: [{ ...attempts[0], workerId: /^h:/ }, ...attempts.slice(1)] }, profile)
        t.notMatch(bundle.toString(), 'ann@example.com')
      }
    })
    await t.test('leaves the states on the way of a long run, so that none is folded from its beginning', async (t) => {
      const long = `long-${name}`
      await client.createRun({ id: long })
      for (let batch = 0; batch < 5; batch++) {
        await client.append(
          long,
          Array.from({ length: 1000 }, (_, n) => ({ type: 'step.started', subject: { kind: 'step', id: `${batch}-${n}` }, data: { name: `step ${n}` } })),
        )
      }
      const as = `${long}-copy`
      t.match(await importInto(url, await exportOf(url, long, '?format=ndjson'), `?as=${as}`), { status: 201 })
      const saved = await database.sql<{ seq: number; state: string }[]>`
        select seq, state::text as state from run_checkpoints where run_key = (select key from runs where id = ${as}) order by seq`
      t.same(
        saved.map(({ seq }) => seq),
        [2000, 4000],
      )
      const events = (
        await database.sql<{ event: CanonicalEvent }[]>`
        select event from run_events_canonical where run_key = (select key from runs where id = ${as}) order by seq`
      ).map(({ event }) => event)
      for (const { seq, state } of saved)
        t.equal(state, encodeState(fold(createState(), events.slice(0, seq))), `the state at ${seq} is the fold of ${seq} events`)
      t.same((await client.state(as, '?seq=4321')).state.steps, (await client.state(long, '?seq=4321')).state.steps)
    })
    await t.test('takes another id, once', async (t) => {
      const bundle = await exportOf(url, 'original', everything('ndjson'))
      const as = `copy-${name}`
      t.match(await importInto(url, bundle, `?as=${as}`), { status: 201, body: { runId: as, imported: true } })
      t.match(await importInto(url, bundle, `?as=${as}`), { status: 200, body: { imported: false } })
      const events = await client.events(as)
      t.ok(events.every((event) => event.runId === as && (event.subject.kind !== 'run' || event.subject.id === as)))
      t.same(
        events.map(({ type, seq, data }) => ({ type, seq, data })),
        (await client.events('original')).map(({ type, seq, data }) => ({ type, seq, data })),
      )
      t.match(await importInto(url, bundle, `?as=${encodeURIComponent('../x')}`), { status: 400 })
    })
    await t.test('of a bundle whose id belongs to another run is 409, and says from where on they differ', async (t) => {
      await client.createRun({ id: `taken-${name}` })
      const answer = await importInto(url, await exportOf(url, 'original'), `?as=taken-${name}`)
      t.match(answer, { status: 409, body: { code: 'IDEMPOTENCY_CONFLICT', detail: /seq 1 / } })
    })
    await t.test('of one bundle eight times at once makes one run', async (t) => {
      const bundle = await exportOf(url, 'original', everything('zip'))
      const answers = await Promise.all(Array.from({ length: 8 }, () => importInto(url, bundle, `?as=race-${name}`)))
      t.same(answers.map(({ status }) => status).sort(), [200, 200, 200, 200, 200, 200, 200, 201])
      t.equal((await client.events(`race-${name}`)).length, head)
    })
    await t.test('of a bundle that has more than the run that is there changes nothing, and says what the run has of it', async (t) => {
      const as = `less-${name}`
      const whole = await exportOf(url, 'original', everything('zip'))
      t.match(await importInto(url, await exportOf(url, 'original', '?include=canonical'), `?as=${as}`), { status: 201, body: { events: { raw: 0 } } })
      t.match(await importInto(url, whole, `?as=${as}`), { status: 200, body: { imported: false, events: { canonical: head, raw: 0 }, artifacts: 0 } })
      const { lastRawSeq: raw } = (await client.get<RunRecord>(`/runs/copy-${name}`)).body
      t.match(await importInto(url, whole, `?as=copy-${name}`), { status: 200, body: { imported: false, events: { canonical: head, raw } } })
    })
    await t.test('of a run that was trimmed here is 409, for nothing tells whether it is the same', async (t) => {
      const as = `trimmed-${name}`
      const bundle = await exportOf(url, 'original')
      await importInto(url, bundle, `?as=${as}`)
      await database.sql`update runs set first_seq = 3 where id = ${as}`
      t.match(await importInto(url, bundle, `?as=${as}`), { status: 409, body: { detail: /before 3 are no longer kept/ } })
    })
    await t.test('of a bundle whose raw events are not those of the run is 409', async (t) => {
      const as = `raw-${name}`
      const bundle = await exportOf(url, 'original', everything('ndjson'))
      await importInto(url, bundle, `?as=${as}`)
      await database.sql`
        update run_events_raw set body = replace(body, 'build 1', 'build 9') where run_key = (select key from runs where id = ${as})`
      t.match(await importInto(url, bundle, `?as=${as}`), { status: 409, body: { code: 'IDEMPOTENCY_CONFLICT', detail: /raw events/ } })
    })
    await t.test('takes NDJSON and JSON gzipped', async (t) => {
      const gzipped = gzipSync(await exportOf(url, 'original', everything('json')))
      t.match(await importInto(url, gzipped, `?as=gz-${name}`, 'application/gzip'), { status: 201 })
      const encoded = await fetch(`${url}/runs/import?as=gze-${name}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'content-encoding': 'gzip' },
        body: new Uint8Array(gzipped),
      })
      t.equal(encoded.status, 201)
      await encoded.arrayBuffer()
    })
    await t.test('brings artifacts along', async (t) => {
      const content = Buffer.from('x'.repeat(100_000) + name)
      const stored = await fetch(`${url}/runs/original/artifacts`, { method: 'POST', headers: { 'content-type': 'text/plain' }, body: content })
      if (stored.status >= 400) return t.fail(await stored.text())
      const sha256 = createHash('sha256').update(content).digest('hex')
      for (const format of FORMATS) {
        const other = await listening(t, await testDatabase(t))
        const bundle = await exportOf(url, 'original', everything(format))
        t.match(await importInto(other.url, bundle), { status: 201, body: { artifacts: 1 } })
        const path = join(folder, 'back.zip')
        await writeFile(path, await exportOf(other.url, 'original', everything('zip')))
        t.equal(unzipped(path, `artifacts/${sha256}`), content.toString())
      }
    })
    await t.test('of a bundle that was changed anywhere is refused, and leaves nothing', async (t) => {
      const before = await database.sql`select count(*) as runs from runs`
      for (const format of FORMATS) {
        const bundle = await exportOf(url, 'original', everything(format))
        await fc.assert(
          fc.asyncProperty(fc.nat(bundle.length - 1), fc.integer({ min: 1, max: 255 }), async (at, change) => {
            const changed = Buffer.from(bundle)
            changed[at] = (changed[at] ?? 0) ^ change
            const found = await scanned(folder, changed)
            if (typeof found !== 'string') throw new Error(`byte ${at} of the ${format} may be ${changed[at]}`)
          }),
          { numRuns: 150 },
        )
        const damaged = Buffer.from(bundle)
        damaged.writeUInt8(damaged.readUInt8(damaged.length >> 1) ^ 1, damaged.length >> 1)
        t.match(await importInto(url, damaged, `?as=damaged-${format}-${name}`), { status: 400, body: { code: 'VALIDATION_ERROR' } })
      }
      const changed = (await exportOf(url, 'original', everything('ndjson'))).toString().replace(/(?<="canonical_event".*)"build 1"/, '"build 9"')
      t.match(await importInto(url, Buffer.from(changed), `?as=c-${name}`), {
        status: 400,
        body: { detail: /events\/canonical\.ndjson, seq 7: /, errors: [{ path: 'events/canonical.ndjson' }] },
      })
      // The second line of an artifact: the manifest, which has its media type, is compared with the first.
      const lines = (await exportOf(url, 'original', everything('ndjson'))).toString().split('\n')
      const second = lines.findIndex((line, index) => index > 0 && line.startsWith('{"kind":"artifact"') && lines[index - 1]?.startsWith(line.slice(0, 120)))
      lines[second] = lines[second]?.replace('"text/plain"', '"text/plaim"') ?? ''
      t.match(await scanned(folder, Buffer.from(lines.join('\n'))), /do not agree/)
      // No header holds such a media type, and no column the second.
      for (const text of ['text/pl\u00e4in', 'text/plain\\u0000', 'a\\r\\nb: c', '']) {
        const odd = resealed(await exportOf(url, 'original', everything('ndjson')), (lines) =>
          lines.map((line) => (/^.{9}(artifact|manifest)"/.test(line) ? line.replace('"text/plain"', `"${text}"`) : line)),
        )
        t.match(await importInto(url, odd, `?as=odd-${name}`), { status: 400, body: { detail: /manifest\.json: .*mediaType/ } }, text)
      }
      t.same(await database.sql`select count(*) as runs from runs`, before)
    })
    await t.test('of a bundle that was cut anywhere is refused', async (t) => {
      for (const format of FORMATS) {
        const bundle = await exportOf(url, 'original', everything(format))
        await fc.assert(
          fc.asyncProperty(fc.nat(bundle.length - 1), async (length) => {
            if (typeof (await scanned(folder, bundle.subarray(0, length))) !== 'string') throw new Error(`${length} bytes of the ${format} pass for whole`)
          }),
          { numRuns: 60 },
        )
        const gzipped = gzipSync(bundle)
        if (format !== 'zip') t.type(await scanned(folder, gzipped.subarray(0, gzipped.length - 20)), 'string')
      }
      const half = (await exportOf(url, 'original', '?format=ndjson')).toString().split('\n').slice(0, 9).join('\n')
      t.match(await scanned(folder, Buffer.from(`${half}\n`)), /^events\/canonical\.ndjson, seq 6: the bundle is cut here/)
    })
    await t.test('of something else is refused', async (t) => {
      const zip = async (add: (zip: ZipFile) => void, patch?: (bytes: Buffer) => void) => {
        const file = new ZipFile()
        add(file)
        file.end()
        const chunks: Buffer[] = []
        for await (const chunk of file.outputStream) chunks.push(Buffer.from(chunk))
        const bytes = Buffer.concat(chunks)
        patch?.(bytes)
        return bytes
      }
      const slipped = (bytes: Buffer) => {
        for (let at = bytes.indexOf('aa/passwd'); at !== -1; at = bytes.indexOf('aa/passwd')) bytes.write('../passwd', at)
      }
      const bomb = await zip((file) => file.addBuffer(Buffer.alloc(30_000_000), 'state.json'))
      const bad: [string, Buffer, number][] = [
        ['nothing', Buffer.alloc(0), 400],
        ['a text', Buffer.from('hello'), 400],
        ['JSON', Buffer.from('{"a":1}\n'), 400],
        ['an array', Buffer.from('[]'), 400],
        ['an empty zip', await zip(() => {}), 400],
        ['a zip of something else', await zip((file) => file.addBuffer(Buffer.from('x'), 'readme.txt')), 400],
        ['a slipped path', await zip((file) => file.addBuffer(Buffer.from('x'), 'aa/passwd'), slipped), 400],
        ['a zip bomb', bomb, 413],
        ['a line without end', gzipSync(Buffer.concat([Buffer.from('{"kind":"header",'), Buffer.alloc(70_000_000, 'x')]), { level: 1 }), 400],
        ['deep nesting', Buffer.from(`{"kind":"header",${'['.repeat(200_000)}\n`), 400],
        ['PK and rubbish', Buffer.from('PK\u0003\u0004rubbish'), 400],
        ['gzip and rubbish', Buffer.from([0x1f, 0x8b, 8, 0, 1, 2, 3, 4]), 400],
      ]
      for (const [what, bytes, status] of bad) t.equal((await importInto(url, bytes, `?as=bad-${name}`)).status, status, what)
      t.equal((await client.get(`/runs/bad-${name}`)).status, 404)
      const { url: small } = await listening(t, database, { MAX_BUNDLE_BYTES: '4096' })
      t.match(await importInto(small, await exportOf(url, 'original'), `?as=large-${name}`), { status: 413, body: { detail: /MAX_BUNDLE_BYTES/ } })
      t.match(await importInto(small, gzipSync(await exportOf(url, 'original', everything('json'))), `?as=large-${name}`), { status: 413 })
      const nothing = await fetch(`${url}/runs/import`, { method: 'POST' })
      t.equal(nothing.status, 400)
    })
    await t.test('takes so many at once, and the next in its turn', async (t) => {
      const { url: busy, config: own } = await listening(t, database, { IMPORTS_MAX: '1' })
      const bundle = await exportOf(url, 'original')
      const halves = new TransformStream<Uint8Array, Uint8Array>()
      const writer = halves.writable.getWriter()
      const first = fetch(`${busy}/runs/import?as=first-${name}`, { method: 'POST', body: halves.readable, duplex: 'half' })
      // A failure is seen where it is awaited, below.
      first.catch(() => {})
      await writer.write(bundle.subarray(0, 100))
      const places = () => readdir(join(own.DATA_DIR, 'imports')).catch(() => [])
      await eventually('the first has its place', async () => (await places()).length > 0 || undefined)
      const others = Array.from({ length: 101 }, (_, index) => importInto(busy, bundle, `?as=next-${name}-${index}`))
      for (const other of others) other.catch(() => {})
      const refused = await Promise.race(others)
      t.match(refused, { status: 503, body: { code: 'OVERLOADED', detail: /Too many imports/ } }, 'a hundred may wait')
      t.equal((await places()).length, 1, 'and nothing is stored of those that do')
      await writer.write(bundle.subarray(100))
      await writer.close()
      t.equal((await first).status, 201)
      t.equal((await Promise.all(others)).filter(({ status }) => status === 201).length, 100)
    })
    await t.test('leaves nothing on disk', async (t) => {
      t.same(await readdir(join(config.DATA_DIR, 'imports')), [])
    })
  })

  t.test(`${name}: a redacted bundle can be imported`, async (t) => {
    for (const profile of ['hashed', 'no-content']) {
      const bundle = await exportOf(url, 'original', `?format=zip&include=canonical,raw&profile=${profile}`)
      t.match(await importInto(url, bundle, `?as=${profile}-${name}`), { status: 201, body: { events: { raw: 0 } } })
      const [redacted] =
        await database.sql`select string_agg(shape::text, ',' order by seq) as shapes from run_events_canonical where run_key = (select key from runs where id = ${`${profile}-${name}`})`
      const [own] =
        await database.sql`select string_agg(shape::text, ',' order by seq) as shapes from run_events_canonical where run_key = (select key from runs where id = 'original') and seq <= ${head}`
      t.ok(String(own?.shapes).startsWith(String(redacted?.shapes).split(',').slice(0, head).join(',')), 'and aligns with its original')
      t.notMatch(bundle.toString('latin1'), 'build 1')
      const again = JSON.parse((await exportOf(url, `${profile}-${name}`, '?format=json&include=canonical,raw')).toString())
      t.match(again.manifest, { profile, omissions: [{ what: 'raw_events', reason: 'redacted' }] }, 'and is never said to be the whole')
    }
  })

  t.test(`${name}: DuckDB reads the tables`, async (t) => {
    const { execFileSync } = await import('node:child_process')
    const unzip = async (id: string, into: string) => {
      const path = join(folder, 'tables.zip')
      await writeFile(path, await exportOf(url, id, '?format=zip'))
      execFileSync('unzip', ['-o', '-q', path, 'tables/*', '-d', into])
    }
    await unzip('original', folder)
    const instance = await DuckDBInstance.create(':memory:')
    const connection = await instance.connect()
    const rows = async (query: string) => (await connection.runAndReadAll(query)).getRowObjectsJson()
    const state = (await client.state('original')).state as { llm: { totals: { totalTokens: number; inputTokens: number; costUsd: number } } }
    const events = `'${join(folder, 'tables/events.parquet')}'`
    const [sums] = await rows(`select count(*) n, sum(tokens) tokens, sum(input_tokens) told, sum(cost_usd) spent, min(seq) low, max(seq) high,
      min(ts)::timestamptz is not null as timed, count(distinct type) distinct_types, sum(case when json_valid(data) then 1 else 0 end) as json_texts from ${events}`)
    const now = (await client.state('original')).version
    t.match(sums, {
      n: String(now),
      tokens: String(state.llm.totals.totalTokens),
      told: String(state.llm.totals.inputTokens),
      low: '1',
      high: String(now),
      timed: true,
      json_texts: String(now),
    })
    t.equal(Number(sums?.spent), state.llm.totals.costUsd)
    const [steps] = await rows(`select count(*) n, count(ended_at) ended, min(duration_ms) ms from '${join(folder, 'tables/steps.parquet')}'`)
    t.same(steps, { n: '3', ended: '3', ms: 12 })
    const [calls] = await rows(
      `select count(*) n, sum(input_tokens + output_tokens) tokens, min(model) model from '${join(folder, 'tables/llm_calls.parquet')}'`,
    )
    t.same(calls, { n: '3', tokens: '36', model: 'm' })

    const called = { subject: { kind: 'llm_call', id: 'c' }, stepId: 's' }
    await client.createRun({ id: 'named' })
    await client.append('named', [
      { type: 'step.output', subject: { kind: 'step', id: ',"data":{"not":"this"}' }, data: { text: ',"data":{', n: 1.5 } },
      { type: 'llm.call.started', ...called, data: { provider: 'p', model: 'told-first' } },
      { type: 'llm.call.completed', subject: called.subject, data: { inputTokens: 5, outputTokens: 7, costUsd: 0.3 } },
    ])
    await unzip('named', join(folder, 'named'))
    const named = (table: string) => `'${join(folder, `named/tables/${table}.parquet`)}'`
    t.same(
      await rows(`select model, tokens from ${named('events')} where tokens > 0`),
      [{ model: 'told-first', tokens: '12' }],
      'the model that its start told',
    )
    t.same(await rows(`select provider, model, step, status from ${named('llm_calls')}`), [
      { provider: 'p', model: 'told-first', step: 's', status: 'completed' },
    ])
    const { body } = await client.get<{ data: { seq: number; data: object }[] }>('/runs/named/events')
    t.same(
      (await rows(`select seq, data from ${named('events')} order by seq`)).map(({ seq, data }) => [Number(seq), JSON.parse(String(data))]),
      body.data.map(({ seq, data }) => [seq, data]),
      'the data of each event as its log has it',
    )
    const types = await rows(`describe select * from ${events}`)
    t.match(Object.fromEntries(types.map((row) => [row.column_name, row.column_type])), {
      seq: 'BIGINT',
      ts: 'TIMESTAMP WITH TIME ZONE',
      type: 'VARCHAR',
      tokens: 'BIGINT',
      cost_usd: 'DOUBLE',
      data: 'VARCHAR',
    })
    connection.closeSync()
  })

  t.test(`${name}: runplane verify needs no service, and says what is wrong`, async (t: Test) => {
    const good = join(folder, 'good.zip')
    const bad = join(folder, 'bad.ndjson')
    await writeFile(good, await exportOf(url, 'original', everything('zip')))
    await writeFile(bad, (await exportOf(url, 'original', '?format=ndjson')).toString().replace(/(?<="canonical_event".*)"build 2"/, '"build 3"'))
    const run = (...args: string[]) =>
      new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
        execFile(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', 'verify', ...args], (error, stdout, stderr) =>
          resolve({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr }),
        )
      })
    const whole = await run(good)
    t.match(whole, { code: 0, stdout: /whole\. Run 'original'/ })
    const broken = await run('--json', good, bad)
    t.equal(broken.code, 1)
    const verdicts = broken.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    t.match(verdicts, [{ ok: true }, { ok: false, file: 'events/canonical.ndjson', seq: 11 }])
  })
}
