/** Comparisons over HTTP and on the command line: what is told of two runs whose differences were planted, wherever the runs are. */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import type { Comparison, ComparisonMatrix } from '../../src/insight/compare/answer.js'
import { serverUrl, silent, testDatabase } from '../support/database.js'
import { createClient, type Problem } from '../support/http.js'

type Event = { type: string; subject?: { kind: string; id: string }; actor?: { kind: string; id: string }; ts?: string; data?: Record<string, unknown> }

const about = (kind: string, id: string) => ({ subject: { kind, id } })

/** A run of steps with a call each. @param tag is in every id */
function agentRun(tag: string, changes: { edit?: (events: Event[]) => Event[]; answer?: string } = {}): Event[] {
  const events: Event[] = [{ type: 'run.started', data: { model: 'small' } }]
  for (const name of ['plan', 'write', 'test']) {
    events.push(
      { type: 'step.started', ...about('step', `${name}-${tag}`), ts: '2026-11-21T08:00:00Z', data: { name, kind: 'agent' } },
      {
        type: 'llm.call.completed',
        ...about('llm_call', `${name}-call-${tag}`),
        data: { model: 'small', inputTokens: 100, outputTokens: 10, costUsd: 0.01, response: `${name}: ${changes.answer ?? 'fine'}`, requestId: `req-${tag}` },
      },
      { type: 'tool.called', ...about('tool', `${name}-tool-${tag}`), data: { name: 'shell', arguments: { cmd: `run ${name}`, host: tag } } },
      { type: 'tool.completed', ...about('tool', `${name}-tool-${tag}`), data: { result: 'ok', durationMs: tag.length } },
      { type: 'step.completed', ...about('step', `${name}-${tag}`), ts: '2026-11-21T08:00:05Z', data: { output: name } },
    )
  }
  events.push({
    type: 'artifact.created',
    ...about('artifact', `report-${tag}`),
    data: { kind: 'report', label: 'report.md', sha256: 'a'.repeat(64), bytes: 10 },
  })
  events.push({ type: 'signal.emitted', ...about('signal', `s-${tag}`), actor: { kind: 'participant', id: 'reviewer' }, data: { name: 'done' } })
  events.push({ type: 'run.completed', data: { output: { ok: true } } })
  return changes.edit ? changes.edit(events) : events
}

for (const kind of ['embedded', 'server'] as const) {
  t.test(`on the ${kind} database`, { skip: kind === 'server' && !serverUrl }, async (t) => {
    const database = await testDatabase(t, { server: kind === 'server' })
    const app = await buildApp({ config: loadConfig({ COMPARE_MAX_EVENTS: '2000' }, { envFile: '/nonexistent' }), database, logger: silent })
    t.teardown(() => app.close())
    await app.listen({ port: 0, host: '127.0.0.1' })
    const { port } = app.server.address() as AddressInfo
    const url = `http://127.0.0.1:${port}`
    const client = createClient(url)

    const make = async (id: string, events: Event[]) => {
      await client.createRun({ id })
      const answer = await client.append(id, events)
      if (answer.status !== 200) throw new Error(answer.text)
    }
    const compare = async (body: object): Promise<Comparison> => {
      const answer = await client.post<Comparison>('/runs/compare', body)
      if (answer.status !== 200) throw new Error(answer.text)
      return answer.body
    }
    const refused = async (body: object): Promise<Problem> => (await client.post<Problem>('/runs/compare', body)).body

    await make('one', agentRun('one'))
    await make('again', agentRun('again'))
    // Seq 1 is run.created, 2 run.started; a step has five events.
    await make('edited', agentRun('edited', { edit: (events) => events.flatMap((event, index) => editOf(event, index)) }))
    function editOf(event: Event, index: number): Event[] {
      if (index === 2) return [{ ...event, data: { ...event.data, response: 'something else', outputTokens: 30, costUsd: 0.03 } }]
      if (index === 8) return [event, { type: 'tool.called', ...about('tool', 'extra'), data: { name: 'grep', arguments: {} } }]
      if (index === 16) return [{ ...event, data: { ...event.data, sha256: 'b'.repeat(64) } }]
      if (index === 17) return []
      if (event.type === 'run.completed') return [{ type: 'run.failed', data: { error: { message: 'no' } } }]
      return [event]
    }

    await t.test('two runs that did the same do not differ, whatever their ids, times and hosts', async (t) => {
      const same = await compare({ left: 'one', right: 'again' })
      t.match(same, {
        left: { runId: 'one', seq: 20, status: 'completed' },
        right: { runId: 'again', seq: 20 },
        statusMatch: true,
        firstDivergence: {},
        events: { equal: 20, changed: 0, leftOnly: 0, rightOnly: 0, moved: 0, hunks: [] },
        steps: { equal: 9, changed: 0, byKind: { step: { equal: 3 }, tool: { equal: 3 }, llm_call: { equal: 3 } } },
        artifacts: { common: 1, added: [], removed: [], changed: [] },
        decision: { same: true },
        policy: { same: true },
        configuration: { same: true },
        stateDiff: [],
        approximate: false,
      })
      t.same(Object.keys(same.firstDivergence ?? {}), [])
      t.same(same.signalsDiff, { added: [], removed: [] })
    })

    await t.test('planted differences are told at their seqs, with what each side has there', async (t) => {
      const answer = await compare({ left: 'one', right: 'edited', fields: true })
      t.match(answer, { statusMatch: false, left: { status: 'completed' }, right: { status: 'failed' }, durationDeltaMs: Number })
      t.same(answer.events?.hunks, [
        { op: 'changed', count: 1, left: { fromSeq: 4, toSeq: 4 }, right: { fromSeq: 4, toSeq: 4 } },
        { op: 'right_only', count: 1, right: { fromSeq: 11, toSeq: 11 } },
        { op: 'changed', count: 1, left: { fromSeq: 18, toSeq: 18 }, right: { fromSeq: 19, toSeq: 19 } },
        { op: 'left_only', count: 2, left: { fromSeq: 19, toSeq: 20 } },
        { op: 'right_only', count: 1, right: { fromSeq: 20, toSeq: 20 } },
      ])
      t.match(answer.firstDivergence?.content, {
        leftSeq: 4,
        rightSeq: 4,
        left: { runId: 'one', seq: 4, type: 'llm.call.completed' },
        right: { runId: 'edited', seq: 4 },
        why: /llm\.call\.completed .* differs in \/data\/outputTokens and 2 more fields/,
        fields: [
          { path: '/data/outputTokens', left: 10, right: 30 },
          { path: '/data/costUsd', left: 0.01, right: 0.03 },
          { path: '/data/response', left: 'plan: fine', right: 'something else' },
        ],
      })
      t.match(answer.firstDivergence?.shape, {
        leftSeq: 11,
        rightSeq: 11,
        right: { type: 'tool.called', data: { name: 'grep' } },
        why: /The right run has tool\.called 'grep'/,
      })
      const changed = answer.steps?.items.find(({ op }) => op === 'changed')
      t.match(changed, {
        kind: 'llm_call',
        name: 'small',
        left: { fromSeq: 4, totalTokens: 110, costUsd: 0.01 },
        right: { totalTokens: 130, costUsd: 0.03 },
        tokensDelta: 20,
        costDeltaUsd: 0.02,
        fields: [{ path: '/started/data/outputTokens' }, {}, {}],
      })
      t.match(
        answer.steps?.items.find(({ op }) => op === 'right_only'),
        { kind: 'tool', name: 'grep', right: { id: 'extra', fromSeq: 11, status: 'running', durationMs: null } },
      )
      t.match(
        answer.steps?.items.find(({ kind, name }) => kind === 'step' && name === 'write'),
        { op: 'equal', left: { durationMs: 5000 }, durationDeltaMs: 0 },
      )
      t.same(answer.signalsDiff, { added: [], removed: ['done'] })
      t.same(answer.participantsDiff, { added: [], removed: ['reviewer'], common: [] })
      t.match(answer.artifacts, {
        common: 0,
        changed: [{ left: { label: 'report.md', sha256: 'a'.repeat(64) }, right: { sha256: 'b'.repeat(64) } }],
        added: [],
        removed: [],
      })
      t.match(answer.metrics, { totalTokens: { left: 330, right: 350, delta: 20 }, toolCallCount: { left: 3, right: 4, delta: 1 }, costUsd: { delta: 0.02 } })
      t.match(
        answer.eventTypes?.find(({ type }) => type === 'run.failed'),
        { left: 0, right: 1, delta: 1 },
      )
    })

    await t.test('artifacts of the same name are one that changed, whether it is a name or a label', async (t) => {
      const artifact = (name: string, data: object) => ({ type: 'artifact.created', ...about('artifact', `made-${name}`), data: { kind: 'file', ...data } })
      await make('made', [artifact('1', { name: 'a.md', sha256: 'a'.repeat(64) }), artifact('2', { label: 'b', sha256: 'c'.repeat(64) })])
      await make('made-again', [artifact('3', { name: 'a.md', sha256: 'b'.repeat(64) }), artifact('4', { label: 'b', sha256: 'd'.repeat(64) })])
      const { artifacts } = await compare({ left: 'made', right: 'made-again', sections: ['artifacts'] })
      t.match(artifacts, {
        added: [],
        removed: [],
        changed: [
          { left: { name: 'a.md', sha256: 'a'.repeat(64) }, right: { name: 'a.md', sha256: 'b'.repeat(64) } },
          { left: { label: 'b' }, right: { label: 'b' } },
        ],
      })
    })

    await t.test('a step that told something else, or more, comes with what', async (t) => {
      const told = (...texts: string[]) => [
        { type: 'step.started', ...about('step', 's'), data: { name: 'build' } },
        ...texts.map((text) => ({ type: 'step.output', ...about('step', 's'), data: { text } })),
        { type: 'step.completed', ...about('step', 's'), data: {} },
      ]
      await make('told', told('a', 'b', 'c'))
      await make('told-other', told('a', 'x', 'y'))
      await make('told-less', told('a', 'b'))
      const stepOf = async (right: string) => (await compare({ left: 'told', right, fields: true, sections: ['steps'] })).steps?.items[0]
      t.match(await stepOf('told-other'), { op: 'changed', fields: [{ path: '/outputs/1/data/text', left: 'b', right: 'x' }], moreFields: 1 })
      const less = await stepOf('told-less')
      t.match(less, { op: 'changed', fields: [{ path: '/outputs/2/data', left: { text: 'c' } }], moreFields: 0 })
      t.notOk('right' in (less?.fields?.[0] ?? {}))
    })

    await t.test('the sides may be swapped, named as macp-control-plane names them, and asked for by GET', async (t) => {
      const there = await compare({ leftRunId: 'one', rightRunId: 'edited' })
      const back = await compare({ left: { runId: 'edited' }, right: { runId: 'one' } })
      t.same(back.events?.hunks.map(({ op }) => op).sort(), ['changed', 'changed', 'left_only', 'left_only', 'right_only'], 'what was only left is only right')
      t.same([back.events?.leftOnly, back.events?.rightOnly], [there.events?.rightOnly, there.events?.leftOnly])
      const got = await client.get<Comparison>('/runs/compare?left=one&rightRunId=edited&sections=events,metrics&limit=2')
      t.equal(got.status, 200)
      t.same(Object.keys(got.body).sort(), ['approximate', 'durationDeltaMs', 'events', 'left', 'metrics', 'right', 'statusMatch'])
      t.same(got.body.events?.hunks, there.events?.hunks.slice(0, 2))
      t.equal(got.body.events?.moreHunks, 3, 'what the limit left out is counted')
      t.same(await compare({ left: 'one', right: 'edited', sections: [] }), there, 'none are all')
      t.same((await client.get<Comparison>('/runs/compare?left=one&right=edited&sections=')).body, there)
    })

    await t.test('a live run is compared as it is, and any run as of a seq', async (t) => {
      await make('live', agentRun('live').slice(0, 7))
      const live = await compare({ left: 'one', right: 'live', sections: ['events', 'firstDivergence'] })
      t.match(live, { right: { status: 'running', seq: 8 }, events: { equal: 8, leftOnly: 12, rightOnly: 0 } })
      t.match(live.firstDivergence?.shape, { leftSeq: 9, rightSeq: null, right: null, why: /^The right run ends before llm\.call\.completed / })
      await make('written', agentRun('written').slice(0, 7))
      let isWriting = true
      const writing = (async () => {
        while (isWriting) await client.append('written', { type: 'step.output', subject: { kind: 'step', id: 's' }, data: { text: 'more' } })
      })()
      const itself: number[] = []
      for (let round = 0; round < 60; round++) itself.push((await compare({ left: 'written', right: 'written', sections: ['events'] })).events?.rightOnly ?? 0)
      isWriting = false
      await writing
      t.same(new Set(itself), new Set([0]), 'while it is written a run does not differ from itself')
      const then = await compare({ left: { runId: 'one', seq: 8 }, right: 'live', sections: ['events', 'metrics', 'stateDiff'] })
      t.match(then, {
        statusMatch: true,
        left: { seq: 8, status: 'running' },
        events: { equal: 8, leftOnly: 0 },
        stateDiff: [],
        metrics: { eventCount: { delta: 0 } },
      })
    })

    await t.test('members can be left out of the comparison, and put back into it', async (t) => {
      const counts = async (ignore: string[]) => (await compare({ left: 'one', right: 'edited', ignore, sections: ['events'] })).events?.changed
      t.equal(await counts(['response', '/data/outputTokens', 'costUsd', 'sha256']), 0)
      t.equal(await counts(['response', '/data/outputTokens', 'costUsd']), 1)
      t.equal(await counts(['!durationMs']), 5, 'how long each tool took')
      t.equal(await counts(['/data/**']), 0)
      for (const seed of [1, 2]) {
        await client.createRun({ id: `seed-${seed}`, input: { seed, tool: { etag: seed } } })
        await client.append(`seed-${seed}`, [
          { type: 'policy.resolved', subject: { kind: 'policy', id: 'p' }, data: { policyVersion: `v${seed}` } },
          { type: 'decision.finalized', subject: { kind: 'decision', id: 'd' }, data: { action: `act ${seed}` } },
        ])
      }
      const parts = async (ignore: string[]) => {
        const { configuration, policy, decision } = await compare({
          left: 'seed-1',
          right: 'seed-2',
          ignore,
          sections: ['configuration', 'policy', 'decision'],
        })
        return [configuration?.fields.map(({ path }) => path).join(), policy?.same, decision?.same].join(' ')
      }
      t.equal(await parts([]), '/input/seed,/input/tool/etag false false')
      t.equal(await parts(['seed', '/data/input/tool/etag', 'policyVersion', 'action']), ' true true')
      const state = await compare({ left: 'one', right: 'again', ignore: ['!host'], sections: ['stateDiff', 'firstDivergence'] })
      t.match(state.firstDivergence?.content, { leftSeq: 5, fields: [{ path: '/data/arguments/host', left: 'one', right: 'again' }] })
    })

    await t.test('events without digests are compared by what they hold', async (t) => {
      const before = await compare({ left: 'one', right: 'edited' })
      await database.sql`
        update run_events_canonical e set shape = null, content = null from runs r
        where r.key = e.run_key and (r.id = 'one' and e.seq % 3 = 0 or r.id = 'edited')`
      t.same(await compare({ left: 'one', right: 'edited' }), before)
    })

    await t.test('several runs are put against the first', async (t) => {
      const answer = await client.post<ComparisonMatrix>('/runs/compare', { runs: ['one', 'again', 'edited', { runId: 'one', seq: 2 }] })
      t.match(answer.body, {
        baseline: { runId: 'one', status: 'completed' },
        runs: [
          { runId: 'again', statusMatch: true, metrics: { totalTokens: { left: 330, right: 330, delta: 0 } } },
          { runId: 'edited', statusMatch: false, metrics: { totalTokens: { delta: 20 } }, signalsDiff: { removed: ['done'] } },
          { runId: 'one', seq: 2, statusMatch: false, metrics: { eventCount: { left: 20, right: 2, delta: -18 } } },
        ],
      })
      t.match(await refused({ runs: ['one', 'again'], left: 'one' }), { code: 'VALIDATION_ERROR', detail: /either runs, or left and right/ })
      t.match(await refused({ runs: Array.from({ length: 21 }, () => 'one') }), { code: 'VALIDATION_ERROR' })
    })

    await t.test('bundles are compared as runs are, and one that was changed is refused', async (t) => {
      for (const format of ['json', 'ndjson']) {
        const { text } = await client.get(`/runs/edited/export?format=${format}`)
        const inline = await compare({ left: 'one', right: { bundle: text } })
        const { right, ...rest } = await compare({ left: 'one', right: 'edited' })
        t.same(inline, { ...rest, right: { ...right, kind: 'bundle' } }, format)
        if (format === 'ndjson') continue
        t.same(await compare({ left: 'one', right: { bundle: JSON.parse(text) } }), inline, 'as an object')
        for (const space of [undefined, 2])
          t.same(await compare({ left: 'one', right: { bundle: JSON.stringify(JSON.parse(text), null, space) } }), inline, 'as a text of that object')
        t.match(await refused({ left: 'one', right: { bundle: text.replace('something else', 'something more') } }), {
          status: 400,
          detail: /^right: events\/canonical\.ndjson, seq 4: /,
        })
      }
      await client.createRun({ id: 'spaced' })
      await client.append('spaced', '{ "type": "run.started" }')
      const { text } = await client.get('/runs/spaced/export?format=json&includeRaw=true')
      t.equal((await compare({ left: 'spaced', right: { bundle: text } })).events?.changed, 0)
      t.match(await refused({ left: 'spaced', right: { bundle: JSON.parse(text) } }), { status: 400, detail: /^right: events\/raw\.ndjson, .* Send the text/ })
    })

    await t.test('what a bundle leaves out at its end is told, and is no end of the run', async (t) => {
      const { text } = await client.get('/runs/one/export?format=ndjson&limit=5')
      const part = await compare({ left: 'one', right: { bundle: text } })
      t.same(part.approximate, [{ what: 'events', left: null, right: { fromSeq: 6, toSeq: 20 } }])
      t.match(part.firstDivergence?.shape?.why, /^What there is of the right run ends before /)
      t.same((await compare({ left: 'one', right: { bundle: text }, sections: ['metrics'] })).approximate, part.approximate, 'whatever is asked for')
    })

    await t.test('like calls are aligned as the events around them are', async (t) => {
      const steps = (names: string[], version: string): Event[] =>
        names.flatMap((name) => [
          { type: 'step.started', ...about('step', name), data: { name } },
          { type: 'step.output', ...about('step', name), data: { text: `${name === 'lint' ? version : ''} of ${name}` } },
          { type: 'llm.call.completed', ...about('llm_call', `call-${name}`), data: { model: version, response: name } },
          { type: 'step.completed', ...about('step', name), data: {} },
        ])
      await make('three-steps', steps(['plan', 'lint', 'test'], 'small'))
      await make('four-steps', steps(['plan', 'lint', 'build', 'test'], 'large'))
      const { steps: found } = await compare({ left: 'three-steps', right: 'four-steps', limit: 100 })
      const ids = found?.items.map(({ op, left, right }) => `${op} ${left?.id ?? '-'} ${right?.id ?? '-'}`) ?? []
      for (const name of ['plan', 'lint', 'test']) t.ok(ids.includes(`changed call-${name} call-${name}`), name)
      t.ok(ids.includes('right_only - call-build') && ids.includes('right_only - build'), ids.join(', '))
    })

    await t.test('redacted bundles align with each other and with their original', async (t) => {
      const redacted = async (id: string, profile: string) => (await client.get(`/runs/${id}/export?format=ndjson&profile=${profile}`)).text
      for (const profile of ['hashed', 'no-content']) {
        const { events, steps } = await compare({ left: 'one', right: { bundle: await redacted('one', profile) } })
        t.match(events, { leftOnly: 0, rightOnly: 0, moved: 0 }, `${profile}: every event has its counterpart`)
        t.match(steps, { leftOnly: 0, rightOnly: 0, moved: 0 })
      }
      const both = await compare({ left: { bundle: await redacted('one', 'hashed') }, right: { bundle: await redacted('again', 'hashed') } })
      t.match(
        both,
        { events: { equal: 20, changed: 0 }, steps: { equal: 9 }, artifacts: { common: 1 } },
        'runs that did the same are the same when they are hashed',
      )
      const edited = await compare({ left: { bundle: await redacted('one', 'hashed') }, right: { bundle: await redacted('edited', 'hashed') } })
      t.same(edited.events, (await compare({ left: 'one', right: 'edited' })).events, 'and differ where the runs differ')
    })

    await t.test('what cannot be compared is refused, and says why', async (t) => {
      t.match(await refused({ left: 'one', right: 'nobody' }), { status: 404, code: 'RUN_NOT_FOUND' })
      t.match(await refused({ left: { runId: 'one', seq: 21 }, right: 'one' }), { status: 400, code: 'CURSOR_INVALID', detail: /head of run 'one' is 20/ })
      t.match(await refused({ left: 'one' }), { status: 400, detail: /one of right and rightRunId/ })
      t.match(await refused({ left: 'one', leftRunId: 'one', right: 'one' }), { status: 400 })
      t.match(await refused({ left: 'one', right: 'one', ignore: ['/source'] }), { status: 400, detail: /begin with \/data/ })
      t.match(await refused({ left: 'one', right: 'one', what: 1 }), { status: 400, detail: /not a known field/ })
      t.match((await client.get<Problem>('/runs/compare?left=one&right=one&sections=tea')).body, { status: 400, detail: /There are: participantsDiff/ })
      await make('long', [])
        .catch(() => undefined)
        .then(async () => {
          for (let batch = 0; batch < 2; batch++)
            await client.append(
              'long',
              Array.from({ length: 1000 }, () => ({ type: 'step.output', data: { text: 'x' } })),
            )
        })
      t.match(await refused({ left: 'long', right: 'one' }), {
        status: 413,
        code: 'PAYLOAD_TOO_LARGE',
        detail: /2001 events, and 2000 can be compared.*"seq": 2000/,
      })
      t.equal((await client.post('/runs/compare', { left: { runId: 'long', seq: 2000 }, right: 'one' })).status, 200)
    })

    await t.test('on the command line: runs, bundles, or one of each, with assertions', { skip: kind === 'server' }, async (t) => {
      const folder = await mkdtemp(join(tmpdir(), 'runplane-compare-test-'))
      t.teardown(() => rm(folder, { recursive: true }))
      const file = async (id: string, format: string, more = '') => {
        const path = join(folder, `${id}${more}.${format}`)
        const answer = await fetch(`${url}/runs/${id}/export?format=${format}${more}`)
        await writeFile(path, Buffer.from(await answer.arrayBuffer()))
        return path
      }
      const cli = async (args: string[], service = url, env: Record<string, string> = {}): Promise<{ code: number; stdout: string; stderr: string }> =>
        promisify(execFile)(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', 'compare', ...args], {
          env: { PATH: process.env.PATH, RUNPLANE_URL: service, NO_COLOR: '1', ...env },
        }).then(
          ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
          (error) => error,
        )
      const [one, edited] = [await file('one', 'json'), await file('edited', 'ndjson')]
      const noService = 'http://127.0.0.1:9'

      const both = await cli([one, edited, '--assert', 'status,tools,tokens<=+10%'], noService)
      t.equal(both.code, 1, `an assertion does not hold: ${both.stderr}`)
      t.match(both.stdout, /First divergence\n {2}of shape {4}left 11, right 11: The right run has tool\.called 'grep'/)
      t.match(
        both.stdout,
        /broken {2}status {2}completed and failed\nbroken {2}tools {2}.*1 only right.*\nholds {3}tokens<=\+10% {2}totalTokens: 330 and 350, to be <= 363/,
      )
      t.equal(both.stderr, '')

      const json = await cli(['one', 'edited', '--json'])
      t.equal(json.code, 0)
      t.same(JSON.parse(json.stdout), await compare({ left: 'one', right: 'edited' }))

      const mixed = await cli([one, 'one', '--assert', 'content,state,events==+0'])
      t.match(mixed, { code: 0, stdout: /The runs do not diverge/ })
      t.match(await cli([one, await file('one', 'ndjson', '&fromSeq=4')]), { code: 0, stdout: /or events are missing: events - \/ 1-3\./ })
      t.match(await cli([one, 'edited@4', '--json']), { code: 0, stdout: /"seq": 4/ })

      t.match(await cli(['one', 'edited', '--assert', 'tea']), { code: 2, stderr: /There is no assertion 'tea'\. There are status, / })
      t.match(await cli(['one', 'edited', '--assert', 'status', '--assert', 'tokens<=+10%']), { code: 1, stdout: /broken {2}status .*\nholds {3}tokens/ })
      t.match(await cli(['one', 'edited', '--assert', 'tools', '--assert', '']), { code: 2, stderr: /empty place/ })
      const pricesFile = join(folder, 'prices.json')
      await writeFile(pricesFile, JSON.stringify({ asOf: '2026-11-01', source: 'ours', models: [{ model: 'house', input: 2, output: 4 }] }))
      await client.createRun({ id: 'house' })
      await client.append('house', { type: 'llm.call.completed', subject: { kind: 'llm_call', id: 'c' }, data: { model: 'house', inputTokens: 500_000 } })
      t.match(JSON.parse((await cli([one, await file('house', 'json'), '--json'], noService, { MODEL_PRICES_FILE: pricesFile })).stdout), {
        metrics: { costUsd: { left: 0.03, right: 1 } },
      })
      t.match(await cli([one, one], noService, { MODEL_PRICES_FILE: '/not/there' }), { code: 2, stderr: /MODEL_PRICES_FILE: \/not\/there cannot be used/ })
      t.match(await cli(['one', 'edited', '--limit', '0']), { code: 2, stderr: /whole number from 1/ })
      t.match(await cli(['one']), { code: 2, stderr: /missing required argument/ })
      t.match(await cli(['one', 'nobody']), { code: 2, stderr: /RUN_NOT_FOUND/ })
      t.match(await cli(['one', 'edited'], noService), { code: 2, stderr: /no service answers at http:\/\/127\.0\.0\.1:9/ })
      t.match(await cli(['./not/there.zip', one]), { code: 2, stderr: /there is no file '\.\/not\/there\.zip'/ })
    })
  })
}
