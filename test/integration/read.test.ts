/** Pages of the log over HTTP, and the statements under them. */
import t from 'tap'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../../src/domain/ids.js'
import { createLogReader, PIECE_BYTES } from '../../src/log/read.js'
import { testDatabase } from '../support/database.js'
import { append, insertRun, readingApp, type TestEvent } from '../support/log-fixture.js'

interface Page {
  data: { runId: string; seq: number; type: string; rawSeq: number; body: unknown }[]
  nextAfterSeq?: number
  nextCursor?: string
  headSeq: number
  code?: string
}

t.test('pages', async (t) => {
  const database = await testDatabase(t)
  const { url } = await readingApp(t, database)
  const text = async (path: string) => (await fetch(`${url}${path}`)).text()
  const get = async (path: string) => JSON.parse(await text(path)) as Page
  const events = (count: number, event: TestEvent = {}): TestEvent[] => Array.from({ length: count }, () => event)
  const seqs = (page: Page) => page.data.map((event) => event.seq)
  const upTo = (last: number, first = 1) => Array.from({ length: last - first + 1 }, (_, index) => first + index)

  const run = await insertRun(database, 'paged')
  await append(database, run, [
    ...events(240),
    { type: 'step.started', subject: 'step/build', ts: '2026-11-21T09:00:00.000001Z' },
    { type: 'step.failed', subject: 'step/build', ts: '2026-11-21T10:00:00.000Z' },
    ...events(8),
  ])

  await t.test('of a run go from cursor to cursor, and the last says nothing of a next', async (t) => {
    const first = await get('/runs/paged/events')
    t.match(first, { nextAfterSeq: 200, headSeq: 250 })
    t.same(seqs(first), upTo(200))
    const second = await get('/runs/paged/events?afterSeq=200')
    t.same(seqs(second), upTo(250, 201))
    t.notOk('nextAfterSeq' in second)
    t.notOk('nextAfterSeq' in (await get('/runs/paged/events?afterSeq=200&limit=50')), 'nor does one that is exactly full')
    t.same(await get('/runs/paged/events?afterSeq=250'), { data: [], headSeq: 250 })
    t.same(await get('/runs/paged/events?afterSeq=9007199254740991'), { data: [], headSeq: 250 })
  })

  await t.test('of a run are filtered by type, subject and time', async (t) => {
    t.same(seqs(await get('/runs/paged/events?type=step.started')), [241])
    t.same(seqs(await get('/runs/paged/events?type=step.started,step.failed')), [241, 242])
    t.same(seqs(await get('/runs/paged/events?type=step.started,%20step.failed')), [241, 242], 'as tags and statuses may be written')
    t.same(seqs(await get('/runs/paged/events?subject=step/build')), [241, 242])
    t.same(seqs(await get('/runs/paged/events?subject=step/build&type=step.failed&afterSeq=100')), [242])
    t.same(seqs(await get('/runs/paged/events?afterTs=2026-11-21T09:00:00Z')), [241, 242])
    t.same(seqs(await get('/runs/paged/events?afterTs=2026-11-21T09:00:00.000001Z')), [242], 'later, not at the time itself')
    t.same(seqs(await get('/runs/paged/events?afterTs=2026-11-21T08:30:00Z&beforeTs=2026-11-21T12:00:00%2B02:00')), [241])
    const one = await get('/runs/paged/events?subject=step/build&limit=1')
    t.match(one, { data: [{ seq: 241 }], nextAfterSeq: 241 })
    const two = await get(`/runs/paged/events?subject=step/build&limit=1&afterSeq=${one.nextAfterSeq}`)
    t.same(seqs(two), [242])
    t.notOk('nextAfterSeq' in (await get('/runs/paged/events?type=no.such')))
    t.notOk('nextAfterSeq' in (await get('/runs/paged/events?subject=step/build&limit=2')), 'a page that is full with the last that fits is the last')
  })

  await t.test('refuse what is wrong', async (t) => {
    const code = async (path: string) => (await get(path)).code
    t.equal(await code('/runs/paged/events?afterSeq=x'), 'CURSOR_INVALID')
    t.equal(await code('/runs/paged/events?limit=0'), 'VALIDATION_ERROR')
    t.equal(await code('/runs/paged/events?limit=1001'), 'VALIDATION_ERROR')
    t.equal(await code('/runs/paged/events?afterTs=yesterday'), 'VALIDATION_ERROR')
    t.equal(await code('/runs/paged/raw?afterRawSeq=-1'), 'CURSOR_INVALID')
    t.equal(await code('/runs/nowhere/events'), 'RUN_NOT_FOUND')
    t.equal(await code('/runs/nowhere/raw'), 'RUN_NOT_FOUND')
    t.equal(await code('/events?cursor=nonsense'), 'CURSOR_INVALID')
    t.equal(await code('/events?runId=nowhere'), 'RUN_NOT_FOUND')
  })

  await t.test('show a canonical event as it is stored, to the character', async (t) => {
    const odd = await insertRun(database, 'odd')
    const json = '{"seq":1, "n":12345678901234567890,"m":1.10,"n":1}'
    await append(database, odd, events(1))
    await database.sql`update run_events_canonical set event = ${json}::text::json where run_key = ${odd.key}`
    t.equal(await text('/runs/odd/events'), `{"data":[${json}],"headSeq":1}`)
  })

  await t.test('show a raw event as it was sent, to the character', async (t) => {
    const bodies = ['{"n":12345678901234567890,"m":1.10,"a":1,"a":2}', '{"s":"\\u0000\\ud800"}', '[ 1,\n 2 ]', '"text"']
    for (const [index, body] of bodies.entries()) {
      const rawSeq = index + 1
      await database.sql`
        insert into run_events_raw (run_key, raw_seq, received_at, first_seq, seq_count, format, raw_type, source, event_id, body)
        values (${run.key}, ${rawSeq}, '2026-11-21T08:00:00.123Z', ${rawSeq * 2 - 1}, ${index === 0 ? 2 : 1}, 'native', 'custom', 'agent', ${index === 0 ? 'id-1' : null}, ${body})`
    }
    await database.sql`update runs set last_raw_seq = 4 where key = ${run.key}`
    const item = (rawSeq: number, more: string) =>
      `{"rawSeq":${rawSeq},"receivedAt":"2026-11-21T08:00:00.123Z","format":"native","rawType":"custom","source":"agent",${more},"body":${bodies[rawSeq - 1]}}`
    t.equal(
      await text('/runs/paged/raw?limit=2'),
      `{"data":[${item(1, '"eventId":"id-1","seqs":[1,2]')},${item(2, '"seqs":[3]')}],"nextAfterSeq":2,"headSeq":4}`,
    )
    t.equal(await text('/runs/paged/raw?afterRawSeq=2'), `{"data":[${item(3, '"seqs":[5]')},${item(4, '"seqs":[7]')}],"headSeq":4}`)
    t.equal(await text('/runs/paged/raw?afterRawSeq=4'), '{"data":[],"headSeq":4}')
  })

  await t.test('of the workspace give every event of every run once, and nothing of other workspaces', async (t) => {
    const other = uuidv7()
    await database.sql`insert into workspaces (id, name) values (${other}, 'other')`
    await append(database, await insertRun(database, 'secret', other), events(5))
    await append(database, await insertRun(database, 'later'), [...events(7), { type: 'step.started', subject: 'step/build' }])
    await insertRun(database, 'empty')
    const all = async (query: string) => {
      const found: string[] = []
      let pages = 0
      for (let cursor: string | undefined = ''; cursor !== undefined; pages++) {
        const page: Page = await get(`/events?${query}${cursor && `&cursor=${cursor}`}`)
        found.push(...page.data.map((event) => `${event.runId}:${event.seq}`))
        cursor = page.nextCursor
      }
      return { found, pages }
    }
    const expected = [...upTo(250).map((seq) => `paged:${seq}`), 'odd:undefined', ...upTo(8).map((seq) => `later:${seq}`)]
    for (const limit of [7, 250, 251, 259, 1000]) {
      const { found } = await all(`limit=${limit}`)
      t.same(
        found.map((place) => place.replace('undefined:1', 'odd:undefined')),
        expected,
        `in pages of ${limit}`,
      )
    }
    t.equal((await all('limit=259')).pages, 1, 'one page that is exactly full is the last')
    t.same((await all('type=step.started&limit=1')).found, ['paged:241', 'later:8'])
    t.same((await all('runId=paged&afterSeq=247&limit=2')).found, ['paged:248', 'paged:249', 'paged:250'])
    t.same((await all('afterSeq=0&type=step.started')).found, ['paged:241', 'later:8'])
    t.match(await get('/events?afterSeq=3'), { status: 400, code: 'VALIDATION_ERROR', detail: /runId/ }, 'rather than the first page again and again')
    t.match(await get('/events?runId=paged&afterSeq=x'), { status: 400, code: 'CURSOR_INVALID' })
    t.same((await all('runId=later&limit=3')).found, expected.slice(-8))
    const one = 'afterSeq=240&limit=1&type=step.started,step.failed'
    const { nextCursor, ...ofOne } = await get(`/events?runId=paged&${one}`)
    t.match(ofOne, { data: [{ seq: 241 }], nextAfterSeq: 241, headSeq: 250 })
    t.same(ofOne, await get(`/runs/paged/events?${one}`), 'of one run as its own pages')
    t.match(await get(`/events?runId=later&cursor=${nextCursor}`), { code: 'CURSOR_INVALID', detail: /not of run 'later'/ })
    t.same((await all('subject=step/build&beforeTs=2026-11-21T09:30:00Z')).found, ['paged:241', 'later:8'])
  })
})

t.test('pages are bounded', async (t) => {
  const database = await testDatabase(t)
  const log = createLogReader(database)
  const run = await insertRun(database, 'large')
  await append(
    database,
    run,
    Array.from({ length: 30 }, (_, index) => ({ type: index % 10 === 9 ? 'step.started' : 'custom.emitted', data: { name: 'x'.repeat(10_000) } })),
  )
  await t.test('in bytes, but hold one event at least', async (t) => {
    t.match(await log.pageOfFrames({ runKey: run.key, afterSeq: 0, limit: 100, maxBytes: 25_000 }), { count: 3, scannedTo: 3, headSeq: 30 })
    t.match(await log.pageOfEvents({ runKey: run.key, afterSeq: 3, limit: 100, maxBytes: 1 }), { count: 1, scannedTo: 4, headSeq: 30 })
    const page = await log.pageOfWorkspace({ workspaceId: DEFAULT_WORKSPACE_ID, after: undefined, filter: {}, limit: 100, maxBytes: 25_000 })
    t.same(page.next, { runKey: run.key, seq: 3 })
  })
  await t.test('and cut into pieces of whole frames that know their last seq', async (t) => {
    const page = await log.pageOfFrames({ runKey: run.key, afterSeq: 0, limit: 100, maxBytes: 1e6 })
    const pieces = (page?.pieces ?? []).map(({ bytes, lastSeq }) => ({
      seqs: Array.from(bytes.toString().matchAll(/(?:^|\n\n)id: (\d+)\n/g), ([, seq]) => Number(seq)),
      lastSeq,
      length: bytes.length,
    }))
    t.same(
      pieces.flatMap(({ seqs }) => seqs),
      Array.from({ length: 30 }, (_, index) => index + 1),
    )
    t.ok(pieces.length > 4 && pieces.every(({ seqs, lastSeq, length }) => length <= PIECE_BYTES && seqs.at(-1) === lastSeq))
  })
  await t.test('in what a filter looks at', async (t) => {
    const filter = { types: ['step.started'] }
    t.match(await log.pageOfFrames({ runKey: run.key, afterSeq: 0, limit: 100, maxBytes: 1e6, filter, maxScan: 9 }), { count: 0, scannedTo: 9 })
    t.match(await log.pageOfFrames({ runKey: run.key, afterSeq: 9, limit: 100, maxBytes: 1e6, filter, maxScan: 9 }), { count: 1, scannedTo: 18 })
    t.match(await log.pageOfFrames({ runKey: run.key, afterSeq: 20, limit: 1, maxBytes: 1e6, filter, maxScan: 99 }), { count: 1, scannedTo: 30 })
  })
  await t.test('and of a run that is gone there is none', async (t) => {
    t.equal(await log.pageOfFrames({ runKey: uuidv7(), afterSeq: 0, limit: 1, maxBytes: 1 }), undefined)
  })
})

t.test('a page is read by the primary key', async (t) => {
  const database = await testDatabase(t)
  const run = await insertRun(database, 'planned')
  await append(
    database,
    run,
    Array.from({ length: 3000 }, () => ({})),
  )
  await database.sql`analyze run_events_canonical`
  const statements: string[] = []
  const debug = (_: number, query: string, parameters: unknown[]) => statements.push(query.replace(/\$(\d+)/g, (_, place) => `'${parameters[place - 1]}'`))
  const client = database.connect({ max: 1, debug })
  t.teardown(() => client.end())
  await createLogReader({ sql: client }).pageOfFrames({ runKey: run.key, afterSeq: 1500, limit: 100, maxBytes: 1_000_000 })
  const plan = await client.unsafe(`explain ${statements.find((text) => text.includes('pg_column_size'))}`)
  const lines = plan.map((row) => String(row['QUERY PLAN'])).join('\n')
  t.match(lines, /Index Scan using run_events_canonical_\w+ on run_events_canonical/, lines)
})
