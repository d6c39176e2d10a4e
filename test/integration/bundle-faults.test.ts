/** Where a bundle is cut or damaged, it is said: the file, and the first event that is not as it was exported. By verify and by an import alike. */
import '../support/parquet-loader.js'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { constants, gunzipSync, gzipSync, inflateRawSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { openPromise } from 'yauzl'
import { ZipFile } from 'yazl'
import { BundleError, BundleTooLargeError } from '../../src/insight/bundle.js'
import { checkCanonical, checkRaw } from '../../src/insight/bundle-events.js'
import { scanBundle } from '../../src/insight/bundle-reader.js'
import { exportOf, importInto, listening, resealed, temporaryFolder } from '../support/bundles.js'
import { testDatabase } from '../support/database.js'

const CANONICAL = 'events/canonical.ndjson'
const RAW = 'events/raw.ndjson'
const EVERYTHING = 'include=canonical,raw,artifacts'
/** zlib gives what it can of a text that is cut. */
const CUT = { finishFlush: constants.Z_SYNC_FLUSH }

const { url, client } = await listening(t, await testDatabase(t))
const folder = await temporaryFolder(t)

await client.createRun({ id: 'original', input: { q: 'ü' } })
for (let batch = 0; batch < 6; batch++) {
  await client.append(
    'original',
    Array.from({ length: 100 }, (_, n) => ({
      type: 'step.output',
      subject: { kind: 'step', id: `s-${n}` },
      data: {
        text: createHash('sha256')
          .update(`${batch} ${n}`)
          .digest('hex')
          .repeat(n % 7),
        n,
      },
    })),
  )
}
await client.append('original', { type: 'run.completed' })
await fetch(`${url}/runs/original/artifacts`, { method: 'POST', headers: { 'content-type': 'text/plain' }, body: 'a file '.repeat(500) })
const head = (await client.state('original')).version
const zip = await exportOf(url, 'original', `?format=zip&${EVERYTHING}`)

interface Found {
  file?: string
  seq?: number | undefined
  message: string
}

async function faultOf(bundle: Uint8Array): Promise<Found> {
  const path = join(folder, 'bundle')
  await writeFile(path, bundle)
  try {
    for await (const _ of scanBundle(path, { maxBytes: 100_000_000 }));
  } catch (error) {
    if (error instanceof BundleError) return { file: error.file, seq: error.seq, message: error.message }
    // Of a size in the directory that is another: no file is to blame.
    if (error instanceof BundleTooLargeError) return { message: error.message }
    throw error
  }
  throw new Error('the bundle is taken for whole')
}

interface Layout {
  file: string
  start: number
  end: number
  packed: boolean
}

/** Where the contents of a zip's files are, by another reader than the one that is tested. */
async function layoutOf(bytes: Buffer): Promise<Layout[]> {
  const path = join(folder, 'layout.zip')
  await writeFile(path, bytes)
  const file = await openPromise(path, { lazyEntries: true })
  const found: Layout[] = []
  for await (const entry of file.eachEntry()) {
    const at = entry.relativeOffsetOfLocalHeader
    const start = at + 30 + bytes.readUInt16LE(at + 26) + bytes.readUInt16LE(at + 28)
    found.push({ file: entry.fileName, start, end: start + entry.compressedSize, packed: entry.compressionMethod === 8 })
  }
  return found.sort((left, right) => left.start - right.start)
}

const newlines = (bytes: Buffer) => bytes.reduce((count, byte) => count + (byte === 0x0a ? 1 : 0), 0)
const layout = await layoutOf(zip)
const rawEvents = newlines(inflateRawSync(zip.subarray(layout[4]?.start, layout[4]?.end)))

/** The first event that is not there, of a file of which only the beginning is. */
const seqAfter = (file: string, content: Buffer) => (file === CANONICAL || file === RAW ? newlines(content) + 1 : undefined)
const isBefore = (file: string) => ['run.json', 'state.json', 'metrics.json'].includes(file)

t.test('a zip that is cut names the file, and the first event that is not there', async (t) => {
  t.equal(layout[3]?.file, CANONICAL)
  t.equal(layout[4]?.file, RAW)
  const told = async (length: number) => {
    const found = await faultOf(zip.subarray(0, length))
    const at = layout.findLast(({ start }) => start <= length)
    if (!at) return void t.match(found, { file: 'the zip', seq: undefined })
    const content = at.packed ? inflateRawSync(zip.subarray(at.start, Math.min(at.end, length)), CUT) : Buffer.alloc(0)
    const first = length >= at.end ? seqAfter(at.file, content) : (seqAfter(at.file, content) ?? undefined)
    const seq = isBefore(at.file) ? undefined : (first ?? head + 1)
    // Of an event of whose line not even the number is there, nothing is known.
    const isUnknown = first === 1 && content.length < 60 && found.seq === undefined
    if (found.file !== at.file || (found.seq !== seq && !isUnknown)) throw new Error(`${length}: ${at.file} ${seq}, not ${JSON.stringify(found)}`)
  }
  // At each edge, and in between.
  for (const { start, end } of layout) for (const length of [start - 1, start, start + 1, end - 1, end, end + 1]) await told(length)
  for (const length of [4, 10, 31, zip.length - 1, zip.length - 50, zip.length - 200]) await told(length)
  await fc.assert(fc.asyncProperty(fc.integer({ min: 4, max: zip.length - 1 }), told), { numRuns: 120 })
})

t.test('a zip that is packed by another program and cut is read as well', async (t) => {
  const other = new ZipFile()
  for (const { file, start, end, packed } of layout) {
    const content = packed ? inflateRawSync(zip.subarray(start, end)) : zip.subarray(start, end)
    other.addBuffer(content, file, { compress: file !== RAW && packed })
  }
  other.end()
  const chunks: Buffer[] = []
  for await (const chunk of other.outputStream) chunks.push(Buffer.from(chunk))
  const bytes = Buffer.concat(chunks)
  const contents = await layoutOf(bytes)
  const raw = contents.find(({ file }) => file === RAW)
  if (!raw) return t.fail('there are no raw events')
  t.notOk(raw.packed)
  const half = Math.floor((raw.start + raw.end) / 2)
  t.match(await faultOf(bytes.subarray(0, half)), { file: RAW, seq: newlines(bytes.subarray(raw.start, half)) + 1 })
  const checks = contents.find(({ file }) => file === 'events/checks.ndjson')
  t.match(await faultOf(bytes.subarray(0, (checks?.start ?? 0) + 3)), { file: 'events/checks.ndjson', seq: head + 1 })
})

t.test('a zip that was unpacked and packed anew as a folder is the same bundle, and cut is refused as any', async (t) => {
  const packed = async (add: (file: ZipFile) => void) => {
    const file = new ZipFile()
    add(file)
    for (const { file: name, start, end, packed } of layout) {
      file.addBuffer(packed ? inflateRawSync(zip.subarray(start, end)) : zip.subarray(start, end), name)
    }
    file.end()
    const chunks: Buffer[] = []
    for await (const chunk of file.outputStream) chunks.push(Buffer.from(chunk))
    return Buffer.concat(chunks)
  }
  const bytes = await packed((file) => {
    for (const name of ['artifacts', 'events', 'tables']) file.addEmptyDirectory(name)
  })
  t.match(await importInto(url, bytes, '?as=folder'), { status: 201, body: { events: { canonical: head } } })
  t.match(await faultOf(bytes.subarray(0, bytes.length - 30)), { file: 'manifest.json', message: /cut or damaged/ })
  t.match(await faultOf(await packed((file) => file.addEmptyDirectory('more'))), { file: 'more/', message: /no bundle has such a file/ })
  const full = await packed((file) => file.addBuffer(Buffer.from('x'), 'events+'))
  for (let at = full.indexOf('events+'); at !== -1; at = full.indexOf('events+')) full.write('events/', at)
  t.match(await faultOf(full), { file: 'events/', message: /no bundle has such a file/ })
})

t.test('a byte that is changed in a packed file names it, and the first event that is another', async (t) => {
  let inEvents = 0
  const told = async (at: number, change: number) => {
    const entry = layout.find(({ start, end }) => start <= at && at < end)
    const damaged = Buffer.from(zip)
    damaged.writeUInt8(damaged.readUInt8(at) ^ change, at)
    const found = await faultOf(damaged)
    if (!entry) return
    const changed = contentUpToFault(damaged.subarray(entry.start, entry.end), entry.packed)
    const original = entry.packed ? inflateRawSync(zip.subarray(entry.start, entry.end)) : zip.subarray(entry.start, entry.end)
    // Bits that are in no file: the seal of the zip tells.
    const file = changed.equals(original) && isWhole(damaged.subarray(entry.start, entry.end), entry.packed) ? 'the zip' : entry.file
    let same = 0
    while (same < changed.length && changed[same] === original[same]) same++
    const seq = file === CANONICAL || file === RAW ? newlines(original.subarray(0, same)) + 1 : undefined
    if (found.file !== file || (seq !== undefined && found.seq !== seq)) throw new Error(`byte ${at} ^ ${change}: ${file} ${seq}, not ${JSON.stringify(found)}`)
    if (seq !== undefined) inEvents++
  }
  for (const { start, end } of layout) for (const at of [start, start + 1, (start + end) >> 1, end - 1]) await told(at, 1)
  // The number of the first event, which says where the file begins.
  let inNumbers = 0
  for (const { start } of layout.slice(3, 5)) {
    const beginOf = (bytes: Buffer) => inflateRawSync(bytes.subarray(start, start + 400), CUT).toString('latin1')
    const begin = beginOf(zip)
    const number = begin.search(/(?<="(seq|rawSeq)":)1/)
    for (let at = start; at < start + 300; at++) {
      for (let bit = 1; bit < 256; bit <<= 1) {
        const damaged = Buffer.from(zip)
        damaged.writeUInt8(damaged.readUInt8(at) ^ bit, at)
        const text = isWhole(damaged.subarray(start, start + 400), true, CUT) ? beginOf(damaged) : ''
        if (text.slice(0, number) !== begin.slice(0, number) || !/^[02-9]/.test(text.slice(number))) continue
        await told(at, bit)
        inNumbers++
      }
    }
  }
  t.ok(inNumbers > 0, `${inNumbers} of numbers`)
  const events = fc.integer({ min: layout[3]?.start ?? 0, max: (layout[4]?.end ?? 1) - 1 })
  await fc.assert(fc.asyncProperty(events, fc.integer({ min: 1, max: 255 }), told), { numRuns: 100 })
  await fc.assert(fc.asyncProperty(fc.nat(zip.length - 1), fc.integer({ min: 1, max: 255 }), told), { numRuns: 100 })
  t.ok(inEvents > 100, `${inEvents} of events`)
  const inHeader = Buffer.from(zip)
  inHeader.writeUInt8(0, layout[3] ? layout[3].start - 30 - CANONICAL.length : 0)
  t.match(await faultOf(inHeader), { file: CANONICAL, message: /invalid local file header/ })
  const directory = zip.indexOf('PK\u0001\u0002')
  const damaged = Buffer.from(zip)
  damaged.writeUInt32LE(2 ** 31, directory + 24)
  t.match(await faultOf(damaged), { file: undefined, message: /would be 2147483648/ }, 'nor is it unpacked where the directory tells a size that cannot be')
})

function isWhole(packed: Buffer, isPacked: boolean, options = {}): boolean {
  try {
    if (isPacked) inflateRawSync(packed, options)
    return true
  } catch {
    return false
  }
}

/** All that zlib unpacks before it finds a fault: of so many bytes that one more is one too many. */
function contentUpToFault(packed: Buffer, isPacked: boolean): Buffer {
  if (!isPacked) return packed
  const upTo = (length: number): Buffer | undefined => {
    try {
      return inflateRawSync(packed.subarray(0, length), CUT)
    } catch {
      return undefined
    }
  }
  let [good, bad] = [0, packed.length + 1]
  while (bad - good > 1) {
    const middle = (good + bad) >> 1
    if (upTo(middle)) good = middle
    else bad = middle
  }
  return upTo(good) ?? Buffer.alloc(0)
}

for (const format of ['ndjson', 'json'] as const) {
  t.test(`${format} that is cut names the file, and the first event that is not there, also gzipped`, async (t) => {
    const bundle = await exportOf(url, 'original', `?format=${format}&${EVERYTHING}`)
    const gzipped = gzipSync(bundle, { level: 3 })
    const lines = bundle.toString().split('\n')
    const places = placesOf(lines)
    /** @param length of the text that is there, some of it perhaps packed */
    const expected = (length: number) => {
      const text = bundle.subarray(0, length).toString()
      const index = newlines(Buffer.from(text))
      const rest = text.slice(text.lastIndexOf('\n') + 1)
      const [before, here] = [places[index - 1], places[index]]
      if (rest === '') return [{ file: index === 1 ? 'run.json' : (before?.file ?? 'the header'), seq: before?.next }]
      // A line of which so little is there that it may be anything belongs to what came before.
      return [here, ...(rest.length < 60 ? [before] : [])].map((place) => ({
        file: place?.file ?? 'the header',
        seq: place === here ? place?.seq : place?.next,
      }))
    }
    const told = async (cut: Buffer, length: number) => {
      if (cut.length < 2) return
      const found = await faultOf(cut)
      const fits = expected(length).some(({ file, seq }) => file === found.file && (seq === found.seq || (seq === 1 && found.seq === undefined)))
      if (!fits) throw new Error(`${length}: ${JSON.stringify(expected(length))}, not ${JSON.stringify(found)}`)
    }
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 2, max: bundle.length - 1 }), (length) => told(bundle.subarray(0, length), length)),
      { numRuns: 100 },
    )
    for (let at = bundle.indexOf('\n'), n = 0; n < 12; at = bundle.indexOf('\n', at + 1), n++) {
      for (const length of [at, at + 1, at + 2, at + 70]) await told(bundle.subarray(0, length), length)
    }
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 30, max: gzipped.length - 12 }), async (length) => {
        const cut = gzipped.subarray(0, length)
        await told(cut, gunzipSync(cut, CUT).length)
      }),
      { numRuns: 60 },
    )
    t.match(await faultOf(gzipped.subarray(0, gzipped.length - 4)), { file: 'manifest.json' }, 'all of it is there, but the end of the gzip')
  })
}

interface LinePlace {
  file: string
  /** If the line is cut. */
  seq: number | undefined
  /** If the line is the last that is there. */
  next: number | undefined
}

/** What each line is: NDJSON says so, and in JSON the lists do. */
function placesOf(lines: string[]): LinePlace[] {
  const kinds: [RegExp, string][] = [
    [/^(\{"kind":"run"|"run":)/, 'run.json'],
    [/^(\{"kind":"state"|"state":)/, 'state.json'],
    [/^(\{"kind":"metrics"|"metrics":)/, 'metrics.json'],
    [/^(\{"kind":"canonical_event"|"canonicalEvents":)/, CANONICAL],
    [/^(\{"kind":"raw_event"|"rawEvents":)/, RAW],
    [/^(\{"kind":"artifact"|"artifacts":)/, 'artifacts/'],
    [/^(\{"kind":"checks"|"checks":)/, 'events/checks.ndjson'],
    [/^(\{"kind":"manifest"|"manifest":)/, 'manifest.json'],
  ]
  let file = 'run.json'
  let canonical = 0
  let raw = 0
  return lines.map((line, index) => {
    if (index === 0) return { file: 'the header', seq: undefined, next: undefined }
    file = kinds.find(([start]) => start.test(line))?.[1] ?? file
    const isEvent = /^(\{"kind":"(canonical|raw)_event"|\{"runId":|\{"rawSeq":)/.test(line)
    const at = () => (isBefore(file) ? undefined : file === RAW ? raw + 1 : canonical + 1)
    const seq = at()
    if (isEvent && file === CANONICAL) canonical++
    else if (isEvent && file === RAW) raw++
    return { file: index === 1 && file === 'run.json' ? 'run.json' : file, seq, next: at() }
  })
}

t.test('verify and an import say the same of a cut zip', async (t) => {
  const [canonical] = layout.filter(({ file }) => file === CANONICAL)
  const cut = zip.subarray(0, ((canonical?.start ?? 0) + (canonical?.end ?? 0)) >> 1)
  const { message, seq = 0 } = await faultOf(cut)
  t.ok(seq > 1 && seq < head, message)
  t.match(message, `${CANONICAL}, seq ${seq}: the zip is cut here`)
  t.match(await importInto(url, cut, '?as=cut'), {
    status: 400,
    body: { detail: `The bundle is refused: ${message}.`, errors: [{ path: CANONICAL, message }] },
  })
  t.equal((await client.get('/runs/cut')).status, 404)
  const path = join(folder, 'cut.zip')
  await writeFile(path, cut)
  const stdout = await new Promise<string>((resolve) => {
    execFile(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', 'verify', '--json', path], (_error, stdout) => resolve(stdout))
  })
  t.match(JSON.parse(stdout), { ok: false, file: CANONICAL, seq, error: message })
})

t.test('what is hostile in a cut zip costs nothing, and is refused', async (t) => {
  const zipOf = async (add: (file: ZipFile) => void) => {
    const file = new ZipFile()
    add(file)
    file.end()
    const chunks: Buffer[] = []
    for await (const chunk of file.outputStream) chunks.push(Buffer.from(chunk))
    return Buffer.concat(chunks).subarray(0, -22)
  }
  const bomb = await zipOf((file) => file.addBuffer(Buffer.alloc(30_000_000), 'state.json'))
  t.match(await faultOf(bomb), { file: undefined, message: /state.json is \d+ bytes and would be \d+/ })
  t.match(await importInto(url, bomb, '?as=bomb'), { status: 413 })
  const long = await zipOf((file) => file.addBuffer(Buffer.alloc(9_000_000, 'x'), CANONICAL))
  t.match(await faultOf(long), { file: CANONICAL, seq: undefined, message: /cut or damaged after/ })
  const coloured = await zipOf((file) => file.addBuffer(Buffer.from('x'), '\u001b[31mred'))
  t.match(await faultOf(coloured), { file: '?[31mred', message: /no bundle has such a file/ })
  const huge = await zipOf((file) => file.addBuffer(Buffer.from('{"runId":"a","seq":9999999999999999999999,"x":1}\n'), CANONICAL))
  t.match(await faultOf(huge), { file: CANONICAL, seq: undefined })
  const header = Buffer.from(zip.subarray(0, 60))
  header.writeUInt16LE(0xffff, 26)
  t.match(await faultOf(header), { file: 'the zip' })
  t.match(await faultOf(Buffer.from('PK\u0003\u0004rubbish')), { file: 'the zip' })
  await fc.assert(
    fc.asyncProperty(
      fc.nat(3000),
      fc.uint8Array({ minLength: 1, maxLength: 40 }),
      fc.integer({ min: 100, max: zip.length - 100 }),
      async (at, noise, length) => {
        const damaged = Buffer.from(zip.subarray(0, length))
        Buffer.from(noise).copy(damaged, Math.min(at + 4, length - noise.length))
        await faultOf(damaged)
      },
    ),
    { numRuns: 60 },
  )
  t.ok(rawEvents > 1)
})

t.test('a bundle that agrees with itself, and was never exported', async (t) => {
  const bundle = await exportOf(url, 'original', '?format=ndjson')
  const CHECKS = 'events/checks.ndjson'

  await t.test('is read where it could have been', async (t) => {
    t.match(
      await importInto(
        url,
        resealed(bundle, (lines) => lines),
        '?as=resealed',
      ),
      { status: 201 },
    )
  })

  await t.test('is refused for a line break in an event, which would end its frame in a stream', async (t) => {
    const withRaw = await exportOf(url, 'original', `?format=ndjson&${EVERYTHING}`)
    const texts = (kind: string) => {
      const prefix = `{"kind":"${kind}","event":`
      return withRaw
        .toString()
        .split('\n')
        .flatMap((line) => (line.startsWith(prefix) ? [line.slice(prefix.length, -1)] : []))
    }
    const [event = ''] = texts('canonical_event')
    const raw = texts('raw_event').find((text) => text.includes(',"body":{')) ?? ''
    const canonicalWith = (space: string) => checkCanonical(Buffer.from(event.replace(/\}$/, `${space}}`)), 1, 'original')
    const { rawSeq } = JSON.parse(raw)
    const rawWith = (space: string) => checkRaw(Buffer.from(raw.replace(',"body":{', `,"body":{${space}`)), rawSeq)
    t.match(canonicalWith(' \t'), { event: { seq: 1 } }, 'other white space is as it was sent')
    t.match(rawWith(' \t'), { rawSeq })
    for (const space of ['\r', '\n', ' \r\n']) {
      t.throws(() => canonicalWith(space), { file: CANONICAL, seq: 1, message: /line break/ })
      t.throws(() => rawWith(space), { file: RAW, seq: rawSeq, message: /line break/ })
    }
  })

  await t.test('is refused for a record that no run has, whatever it would take to read it', async (t) => {
    const withRecord = (from: RegExp, to: string) =>
      resealed(bundle, (lines) => lines.map((line) => (line.startsWith('{"kind":"run"') ? line.replace(from, to) : line)))
    const deep = `"input":${'['.repeat(100_000)}${']'.repeat(100_000)}`
    const records: [string, Buffer][] = [
      ['deep', withRecord(/"input":\{[^}]*\}/, deep)],
      ['a name of a megabyte', withRecord(/"name":null/, `"name":"${'x'.repeat(1_000_000)}"`)],
      ['a thousand tags', withRecord(/"tags":\[\]/, `"tags":${JSON.stringify(new Array(1000).fill('tag'))}`)],
      ['a parent that can be none', withRecord(/"parentRunId":null/, '"parentRunId":"../other"')],
      ['metadata that is none', withRecord(/"metadata":\{\}/, '"metadata":5')],
    ]
    for (const [what, bytes] of records) {
      t.match(await importInto(url, bytes, '?as=record'), { status: 400, body: { code: 'VALIDATION_ERROR', errors: [{ path: 'run.json' }] } }, what)
    }
  })

  await t.test('is refused for more checks than there are links, before they are in memory', async (t) => {
    const line = (links: string, more = '') => `{"kind":"checks","checks":{"file":"${CANONICAL}","first":1,"every":1,"links":"${links}"${more}}}`
    const withChecks = (...checks: string[]) => resealed(bundle, (lines) => [...lines.slice(0, -1), ...checks, ...lines.slice(-1)])
    t.match(await faultOf(withChecks(...new Array(1000).fill(line('AAAA')))), { file: CHECKS, message: /more than \d+ lines/ })
    t.match(await faultOf(withChecks(line('A'.repeat(1_000_000)))), { file: CHECKS, message: /links/ })
    t.match(await faultOf(withChecks(line('AAAA', `,"more":"${'x'.repeat(1000)}"`))), { file: CHECKS, message: /more/ })
  })
})
