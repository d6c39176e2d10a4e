/** Artifacts: stored by their hash, in the database, on disk or in an S3-compatible store, and told by the run's log. */
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import t from 'tap'
import { buildApp } from '../../src/app.js'
import { ConfigError, loadConfig } from '../../src/config.js'
import { createBlobs } from '../../src/insight/blobs.js'
import { createS3Blobs } from '../../src/insight/blobs-s3.js'
import { silent, type Teardown, testDatabase } from '../support/database.js'
import { startS3 } from '../support/s3-server.js'

const sha256 = (bytes: Buffer | string) => createHash('sha256').update(bytes).digest('hex')

async function service(t: Teardown, env: Record<string, string> = {}) {
  const database = await testDatabase(t)
  const dataDir = mkdtempSync(join(tmpdir(), 'artifacts-'))
  const config = loadConfig({ DATA_DIR: dataDir, ARTIFACT_INLINE_BYTES: '1000', ...env }, { envFile: '/nonexistent' })
  const app = await buildApp({ config, database, logger: silent })
  t.teardown(() => app.close())
  await app.listen({ port: 0 })
  const address = app.server.address()
  const url = `http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`
  const create = (id: string) => fetch(`${url}/runs`, { method: 'POST', body: JSON.stringify({ id }), headers: { 'content-type': 'application/json' } })
  const post = async (path: string, body: string | Buffer, headers: Record<string, string> = {}) => {
    const answer = await fetch(`${url}${path}`, { method: 'POST', body: new Uint8Array(Buffer.from(body)), headers })
    return { status: answer.status, location: answer.headers.get('location'), body: (await answer.json()) as Record<string, unknown> }
  }
  const json = (path: string, body: unknown) => post(path, JSON.stringify(body), { 'content-type': 'application/json' })
  const get = async (path: string) => {
    const answer = await fetch(`${url}${path}`)
    return { status: answer.status, headers: answer.headers, bytes: Buffer.from(await answer.arrayBuffer()) }
  }
  const list = async (runId: string) =>
    JSON.parse((await get(`/runs/${runId}/artifacts`)).bytes.toString()) as { data: Record<string, unknown>[]; headSeq: number }
  return { database, dataDir, url, create, post, json, get, list }
}

t.test('artifacts', async (t) => {
  const { create, post, json, get, list, dataDir, database, url } = await service(t)
  await create('made')

  await t.test('a small one is in the database, and comes back as it was', async (t) => {
    const answer = await post('/runs/made/artifacts?name=notes.txt&kind=log&label=What%20it%20said', 'a small text', { 'content-type': 'text/plain' })
    t.match(answer, {
      status: 201,
      body: { runId: 'made', name: 'notes.txt', kind: 'log', label: 'What it said', mediaType: 'text/plain', sha256: sha256('a small text'), bytes: 12 },
    })
    const content = await get(String(answer.body.uri))
    t.equal(content.bytes.toString(), 'a small text')
    t.match(Object.fromEntries(content.headers), {
      'content-type': 'text/plain',
      'content-disposition': /^attachment/,
      'x-content-type-options': 'nosniff',
      'content-security-policy': /sandbox/,
      etag: `"${sha256('a small text')}"`,
    })
    t.notOk(existsSync(join(dataDir, 'blobs')))
  })

  await t.test('a large one is a file, and nothing else is left on the disk', async (t) => {
    const large = randomBytes(3_000_000)
    const answer = await post('/runs/made/artifacts?name=model.bin', large)
    t.match(answer, { status: 201, body: { sha256: sha256(large), bytes: large.length, mediaType: 'application/octet-stream' } })
    t.ok((await get(String(answer.body.uri))).bytes.equals(large))
    t.same(readdirSync(join(dataDir, 'drafts')), [])
    const files = readdirSync(join(dataDir, 'blobs'), { recursive: true, encoding: 'utf8' }).filter((path) => /[0-9a-f]{64}/.test(path))
    t.match(files, [new RegExp(`${sha256(large)}$`)])
  })

  await t.test('a command holds JSON, text, bytes or the uri of what lies elsewhere, and one of them only', async (t) => {
    t.match(await json('/runs/made/artifacts', { kind: 'json', label: 'verdict', inline: { approved: true } }), {
      status: 201,
      body: { kind: 'json', inline: { approved: true }, mediaType: 'application/json', sha256: sha256('{"approved":true}') },
    })
    const large = { text: 'x'.repeat(2000) }
    const stored = await json('/runs/made/artifacts', { inline: large })
    t.notOk('inline' in stored.body)
    t.same(JSON.parse((await get(String(stored.body.uri))).bytes.toString()), large)
    t.match(await json('/runs/made/artifacts', { base64: 'aGk=', mediaType: 'text/x-hi' }), { body: { bytes: 2, mediaType: 'text/x-hi' } })
    t.match(await json('/runs/made/artifacts', { uri: 's3://elsewhere/a', bytes: 5, kind: 'model' }), {
      status: 201,
      body: { uri: 's3://elsewhere/a', bytes: 5 },
    })
    t.equal((await json('/runs/made/artifacts', { uri: 'https://x/\u202eé 100%25\ud800' })).location, 'https://x/%E2%80%AE%C3%A9%20100%25%EF%BF%BD')
    for (const bad of [{}, { text: 'a', uri: 'b' }, { text: 'a', bytes: 1 }, { base64: '*' }, { text: 'a', other: 1 }, [], 'text', { text: 5 }]) {
      t.match(await json('/runs/made/artifacts', bad), { status: 400, body: { code: 'VALIDATION_ERROR' } }, JSON.stringify(bad))
    }
    const asItIs = await post('/runs/made/artifacts?mediaType=application/json', '{ "a": 1 }', { 'content-type': 'application/json' })
    t.equal((await get(String(asItIs.body.uri))).bytes.toString(), '{ "a": 1 }')
    await post('/runs/made/artifacts?mediaType=text/x-other', '{ "a": 1 }')
    t.match((await list('made')).data.slice(-2), [{ mediaType: 'application/json' }, { mediaType: 'text/x-other' }], 'each as it was told, of one content')
  })

  await t.test('the log tells of each, and the list what is here', async (t) => {
    await post(
      '/runs/made/events',
      JSON.stringify({ type: 'artifact.created', subject: { kind: 'artifact', id: 'told' }, data: { kind: 'image', uri: 'https://x/y.png' } }),
      {
        'content-type': 'application/json',
      },
    )
    const { data } = await list('made')
    t.equal(data.length, 10)
    t.match(data[0], { name: 'notes.txt', stored: true, bytes: 12, mediaType: 'text/plain' })
    t.match(data.at(-1), { artifactId: 'told', stored: false, uri: 'https://x/y.png' })
  })

  await t.test('the same Idempotency-Key is one artifact, and another content under it is refused', async (t) => {
    await create('once')
    const key = { 'idempotency-key': 'k1' }
    const first = await post('/runs/once/artifacts?name=a', 'one', key)
    const again = await post('/runs/once/artifacts?name=a', 'one', key)
    t.match([first.status, again.status], [201, 200])
    t.same(again.body, first.body)
    t.match(await post('/runs/once/artifacts?name=a', 'two', key), { status: 409, body: { code: 'IDEMPOTENCY_CONFLICT' } })
    t.equal((await list('once')).data.length, 1)
  })

  await t.test('what was damaged on its way, or breaks off, is not stored', async (t) => {
    await create('whole')
    t.match(await post(`/runs/whole/artifacts?sha256=${sha256('right')}`, 'wrong'), { status: 400, body: { detail: /not / } })
    t.match(await post(`/runs/whole/artifacts?sha256=${sha256('right')}`, 'right'), { status: 201 })
    const cut = new AbortController()
    const body = Readable.toWeb(Readable.from(cutting(cut))) as ReadableStream
    await t.rejects(fetch(`${url}/runs/whole/artifacts`, { method: 'POST', body, duplex: 'half', signal: cut.signal } as RequestInit))
    t.equal((await list('whole')).data.length, 1)
    t.same(readdirSync(join(dataDir, 'drafts')), [])
  })

  await t.test('of another run, or of none, is not found', async (t) => {
    await create('other')
    t.match((await get(`/runs/other/artifacts/${sha256('a small text')}`)).status, 404)
    t.match((await get(`/runs/made/artifacts/${sha256('nothing')}`)).status, 404)
    t.match((await get('/runs/made/artifacts/x')).status, 400)
    t.match(await post('/runs/nowhere/artifacts', 'x'), { status: 404, body: { code: 'RUN_NOT_FOUND' } })
    t.match((await get('/runs/nowhere/artifacts')).status, 404)
  })

  await t.test('what no run needs any more is removed after an hour, from the disk too', async (t) => {
    const { createArtifacts } = await import('../../src/insight/artifacts.js')
    const config = loadConfig({ DATA_DIR: dataDir, ARTIFACT_INLINE_BYTES: '10' }, { envFile: '/nonexistent' })
    const artifacts = createArtifacts({ sql: database.sql, blobs: createBlobs(config), config })
    const [run] = await database.sql<{ key: string; workspace_id: string }[]>`select key, workspace_id from runs where id = 'other'`
    const { key = '', workspace_id: workspaceId = '' } = run ?? {}
    const bytes = () => Readable.from([Buffer.from('needed by nobody soon')])
    const { sha256: stored } = await artifacts.store(workspaceId, key, { bytes: bytes(), mediaType: 'text/plain' })
    await database.sql`delete from run_artifacts where sha256 = ${stored}`
    await artifacts.sweep()
    const found = await artifacts.open(workspaceId, stored)
    t.ok(found, 'it may be on its way to a run')
    found?.body.destroy()
    await database.sql`update artifacts set created_at = now() - interval '2 hours'`
    const [old, fresh] = ['old', 'fresh'].map((name) => join(dataDir, 'drafts', name)) as [string, string]
    for (const path of [old, fresh]) writeFileSync(path, 'what a killed process left')
    utimesSync(old, 0, 0)
    await artifacts.sweep()
    t.same([existsSync(old), existsSync(fresh)], [false, true])
    t.equal(await artifacts.open(workspaceId, stored), undefined)
    t.ok((await get(`/runs/made/artifacts/${sha256('a small text')}`)).status === 200, 'what is needed stays')
    const left = readdirSync(join(dataDir, 'blobs'), { recursive: true, encoding: 'utf8' })
    t.notOk(left.some((path) => path.endsWith(stored)))
  })
})

async function* cutting(cut: AbortController): AsyncGenerator<Buffer> {
  yield randomBytes(100_000)
  cut.abort()
  yield randomBytes(100_000)
}

t.test('past the limit an artifact is refused, whether it says so or not', async (t) => {
  const { create, post, url, dataDir } = await service(t, { MAX_ARTIFACT_BYTES: '5000' })
  await create('r')
  t.match(await post('/runs/r/artifacts', 'x'.repeat(5000)), { status: 201 })
  t.match(await post('/runs/r/artifacts', 'x'.repeat(5001)), { status: 413, body: { code: 'PAYLOAD_TOO_LARGE', detail: /MAX_ARTIFACT_BYTES/ } })
  const body = Readable.toWeb(Readable.from([Buffer.alloc(3000), Buffer.alloc(3000)])) as ReadableStream
  const answer = await fetch(`${url}/runs/r/artifacts`, { method: 'POST', body, duplex: 'half' } as RequestInit)
  t.equal(answer.status, 413)
  t.same(readdirSync(join(dataDir, 'drafts')), [])
})

t.test('an S3-compatible store', async (t) => {
  const s3 = await startS3()
  t.teardown(() => s3.close())
  const env = { S3_ENDPOINT: s3.url, S3_BUCKET: s3.bucket, S3_REGION: s3.region, S3_ACCESS_KEY_ID: s3.accessKeyId, S3_SECRET_ACCESS_KEY: s3.secretAccessKey }

  await t.test('holds what is large', async (t) => {
    const { create, post, get, dataDir } = await service(t, env)
    await create('r')
    const large = randomBytes(50_000)
    const { body } = await post('/runs/r/artifacts', large)
    t.ok((await get(String(body.uri))).bytes.equals(large))
    t.match([...s3.objects.keys()], [/^artifacts\/[0-9a-f-]+\/[0-9a-f]{2}\/[0-9a-f]{64}$/])
    t.notOk(existsSync(join(dataDir, 'blobs')))
    s3.objects.clear()
    t.equal((await get(String(body.uri))).status, 404, 'what was lost there is not found, and is no fault of ours')
  })

  const blobs = createS3Blobs({ endpoint: s3.url, partBytes: 1000, ...s3 })
  const read = async (name: string) => {
    const body = await blobs.get(name)
    return body && Buffer.concat(await body.toArray())
  }

  await t.test('takes what is larger than a part in parts, to the byte', async (t) => {
    for (const size of [0, 1, 999, 1000, 1001, 3000, 10_123]) {
      const bytes = randomBytes(size)
      await blobs.put('a/b', Readable.from(size === 0 ? [] : [bytes.subarray(0, 700), bytes.subarray(700)], { objectMode: false }))
      t.ok((await read('a/b'))?.equals(bytes), `${size} bytes`)
    }
    await blobs.remove('a/b')
    await blobs.remove('a/b')
    t.equal(await blobs.get('a/b'), undefined)
  })

  await t.test('that is busy for a moment is asked again, and an upload that is given up leaves nothing', async (t) => {
    s3.failures.push(`PUT /${s3.bucket}/busy`, `POST /${s3.bucket}/busy?uploadId`)
    await blobs.put('busy', Readable.from([Buffer.alloc(2500)]))
    t.equal(s3.objects.get('busy')?.length, 2500)
    const breaks = async function* () {
      yield Buffer.alloc(1500)
      throw new Error('the sender is gone')
    }
    await t.rejects(blobs.put('broken', breaks()), /the sender is gone/)
    t.notOk(s3.objects.has('broken'))
    t.equal(s3.uploads.size, 0)
  })

  await t.test('that refuses the key says so', async (t) => {
    const wrong = createS3Blobs({ endpoint: s3.url, ...s3, secretAccessKey: 'another' })
    await t.rejects(wrong.put('x', Readable.from([Buffer.alloc(5)])), /403 SignatureDoesNotMatch/)
    await t.rejects(wrong.get('x'), /403/)
  })
})

t.test('half of the settings of a store stops the start', async (t) => {
  const config = loadConfig({ S3_BUCKET: 'some-bucket' }, { envFile: '/nonexistent' })
  t.throws(() => createBlobs(config), ConfigError)
})
