/** How two runs are aligned and what is said of it, without a database: each case is one that a guess would get wrong. */
import t from 'tap'
import type { CanonicalEvent } from '../../src/domain/canonical-event.js'
import { createRules } from '../../src/domain/volatile.js'
import { align, type Digests } from '../../src/insight/compare/alignment.js'
import type { Comparison } from '../../src/insight/compare/answer.js'
import { check, parseAssertions } from '../../src/insight/compare/assertions.js'
import { compare } from '../../src/insight/compare/compare.js'
import { openEventsSide } from '../../src/insight/compare/events-side.js'
import { fieldDiff } from '../../src/insight/compare/fields.js'
import { createPauses } from '../../src/insight/compare/pauses.js'
import { createPrices } from '../../src/insight/prices.js'
import { createLog } from '../support/event-log.js'

/** Words of a letter for the shape and what follows for the content: `a1 a2 b`. */
function digests(text: string): Digests {
  const words = text.split(' ').filter((word) => word !== '')
  const number = (word: string) => [...word].reduce((sum, letter) => sum * 128 + letter.charCodeAt(0), 0)
  return {
    length: words.length,
    shape: Float64Array.from(words, (word) => word.charCodeAt(0)),
    content: Float64Array.from(words, number),
  }
}

/** The pairs as `left=right`, changed ones with `~`, moved ones with `>`; by index. */
async function aligned(left: string, right: string): Promise<string> {
  const [one, other] = [digests(left), digests(right)]
  const { toRight, movedTo } = await align(one, other, createPauses())
  const pairs = [...toRight].flatMap((there, index) => {
    if (there >= 0) return [`${index}${one.content[index] === other.content[there] ? '=' : '~'}${there}`]
    return (movedTo[index] ?? -1) >= 0 ? [`${index}>${movedTo[index]}`] : []
  })
  return pairs.join(' ')
}

t.test('events are aligned by content first, and then by shape', async (t) => {
  t.equal(await aligned('', ''), '')
  t.equal(await aligned('a', ''), '')
  t.equal(await aligned('a b c', 'a b c'), '0=0 1=1 2=2')
  t.equal(await aligned('a1 b1 c1', 'a1 b2 c1'), '0=0 1~1 2=2', 'changed')
  t.equal(await aligned('a b c', 'a c'), '0=0 2=1', 'only left')
  t.equal(await aligned('a1 a2 a3', 'a1 a9 a2 a3'), '0=0 1=2 2=3', 'the new one, not the last one, has no counterpart')
  t.equal(await aligned('a1 a2 a3 a4', 'a1 a4'), '0=0 3=1')
  t.equal(await aligned('a1 b1 a2 b2', 'a3 b3 a4 b4'), '0~0 1~1 2~2 3~3', 'where nothing is the same, shapes are')
  t.equal(await aligned('a1 b1', 'c1 d1'), '', 'nothing in common')
})

t.test('of like events in a row, the one that changed is paired with what it was', async (t) => {
  t.equal(await aligned('s a a a e', 's a9 a a e'), '0=0 1~1 2=2 3=3 4=4')
  t.equal(await aligned('s a a a e', 's a a a9 e'), '0=0 1=1 2=2 3~3 4=4')
  t.equal(await aligned('s a1 a2 a3 e', 's a7 a8 e'), '0=0 1~1 3~2 4=3', 'and where nothing tells which is missing, it is the middle one')
})

t.test('what is elsewhere has moved', async (t) => {
  t.equal(await aligned('a b c d e x', 'x a b c d e'), '0=1 1=2 2=3 3=4 4=5 5>0')
  t.equal(await aligned('a1 x y z a2', 'a2 x y z a1'), '0>4 1=1 2=2 3=3 4>0', 'two of one shape that changed places are not two changes')
})

t.test('where runs have little in common and the budget is used up, the alignment is approximate and sound', async (t) => {
  let state = 1
  const random = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0
    return (state >>> 16) % 3
  }
  const noise = (): Digests => {
    const list = Float64Array.from({ length: 60_000 }, random)
    return { length: list.length, shape: list, content: list }
  }
  const [left, right] = [noise(), noise()]
  const { toRight, approximate } = await align(left, right, createPauses())
  t.ok(approximate.length > 0)
  let last = -1
  for (const [index, there] of toRight.entries()) {
    if (there < 0) continue
    if (there <= last || left.content[index] !== right.content[there]) t.fail(`${index} and ${there}`)
    last = there
  }
  t.ok(toRight.filter((there) => there >= 0).length > 30_000, 'most of what could be found is')
})

t.test('a comparison that is given up ends at its next pause', async (t) => {
  const controller = new AbortController()
  const list = Float64Array.from({ length: 100_000 }, (_, index) => (index * 7919) % 13)
  const other = Float64Array.from({ length: 100_000 }, (_, index) => ((index * 104_729) % 13) ^ (index % 5))
  const aligning = align(
    { length: list.length, shape: list, content: list },
    { length: other.length, shape: other, content: other },
    createPauses(controller.signal),
  )
  controller.abort()
  await t.rejects(aligning, { name: 'AbortError' })
})

async function compared(left: readonly CanonicalEvent[], right: readonly CanonicalEvent[]): Promise<Comparison> {
  const rules = createRules([])
  const open = (events: readonly CanonicalEvent[]) =>
    openEventsSide({ runId: 'run', kind: 'run', name: 'run', events: () => events }, 1000, rules, createPauses())
  return compare(await open(left), await open(right), { prices: createPrices(), rules, ignore: [], limit: 100, fields: true, pauses: createPauses() })
}

t.test('where the runs first part is the same place from either side', async (t) => {
  const run = (names: string) => {
    const log = createLog()
    for (const name of names) log.about(`step/${name}`, 'step.started', { name })
    return log.events
  }
  const parting = async (left: string, right: string) => {
    const { firstDivergence } = await compared(run(left), run(right))
    const { leftSeq, rightSeq, why = '' } = firstDivergence?.shape ?? {}
    return `${leftSeq} ${rightSeq} ${why.replaceAll('step.started ', '')}`
  }
  t.equal(await parting('mxy', 'xzym'), "1 4 'm' is in both runs, at another place.")
  t.equal(await parting('xzym', 'mxy'), "4 1 'm' is in both runs, at another place.", 'and not the event that comes later')
  t.equal(await parting('abcm', 'abmx'), "3 3 The left run has 'c'; in the right run 'm' comes there.")
  t.equal(await parting('abmx', 'abcm'), "3 3 The right run has 'c'; in the left run 'm' comes there.")
  t.equal(await parting('axb', 'ayb'), "2 2 The left run has 'x'; in the right run 'y' comes there.")
  t.equal(await parting('ayb', 'axb'), "2 2 The left run has 'y'; in the right run 'x' comes there.")
  t.equal(await parting('ab', 'a'), "2 null The right run ends before 'b'.")
  t.equal(await parting('a', 'ab'), "null 2 The left run ends before 'b'.")
  t.equal(await parting('axb', 'ab'), "2 2 The left run has 'x'; in the right run 'b' comes there.")
  t.equal(await parting('ab', 'axb'), "2 2 The right run has 'x'; in the left run 'b' comes there.")
  t.equal(await parting('ab', 'ab'), 'undefined undefined ')
})

t.test('steps and calls are units from their start to their end, also where events of others come between', async (t) => {
  const run = (order: readonly string[], result = 'ok') => {
    const log = createLog()
    for (const id of order) log.about(`tool/${id}`, 'tool.called', { name: `tool-${id}`, arguments: {} })
    for (const id of order) log.about(`tool/${id}`, 'tool.completed', { result: id === 'b' ? result : 'ok' })
    return log.events
  }
  const { steps } = await compared(run(['a', 'b', 'c']), run(['a', 'b', 'c'], 'failed'))
  t.match(steps, { equal: 2, changed: 1, byKind: { tool: { equal: 2, changed: 1 }, step: { equal: 0 } } })
  t.match(
    steps?.items.map(({ op, name }) => `${op} ${name}`),
    ['equal tool-a', 'changed tool-b', 'equal tool-c'],
  )
  t.same(steps?.items[1]?.fields, [{ path: '/ended/data/result', left: 'ok', right: 'failed' }])
  t.match(steps?.items[1], { left: { fromSeq: 2, toSeq: 5, events: 2, status: 'completed' }, right: { fromSeq: 2 } })
  const moved = await compared(run(['a', 'b', 'c']), run(['b', 'c', 'a']))
  t.match(moved.steps, { equal: 2, moved: 1, leftOnly: 0, rightOnly: 0 })
})

t.test('an id that is started again is another step', async (t) => {
  const log = createLog()
  for (let round = 0; round < 3; round++) {
    log.about('step/s', 'step.started', { name: 'build' })
    log.about('step/s', 'step.output', { text: `round ${round}` })
    log.about('step/s', 'step.completed', { durationMs: round })
  }
  const { steps } = await compared(log.events, log.events.slice(0, 6))
  t.match(steps, {
    equal: 2,
    leftOnly: 1,
    items: [{ left: { fromSeq: 1, toSeq: 3, durationMs: 0 } }, { left: { fromSeq: 4 } }, { op: 'left_only', left: { fromSeq: 7 } }],
  })
})

t.test('decisions and votes are put side by side', async (t) => {
  const run = (vote: string, action: string) => {
    const log = createLog()
    log.about('proposal/p1', 'proposal.created', { proposalId: 'p1', action: 'approve', sender: 'author' })
    log.about('proposal/p1', 'proposal.updated', { proposalId: 'p1', messageType: 'Vote', vote, sender: 'judge', confidence: vote === 'approve' ? 0.9 : 0.5 })
    log.about('decision/c1', 'decision.finalized', {
      commitmentId: 'c1',
      action,
      confidence: vote === 'approve' ? 0.9 : 0.5,
      outcomePositive: action === 'approve',
    })
    return log.events
  }
  const { decision, confidenceDelta } = await compared(run('approve', 'approve'), run('reject', 'reject'))
  t.equal(confidenceDelta, -0.4)
  t.match(decision, { same: false, left: { action: 'approve' }, right: { action: 'reject' } })
  t.match(
    decision?.votes.filter(({ participantId }) => participantId === 'judge'),
    [{ participantId: 'judge', left: 'allow', right: 'deny' }],
  )
  t.ok(decision?.fields.some(({ path, left, right }) => path === '/outcomePositive' && left === true && right === false))
  t.match((await compared(run('approve', 'approve'), [])).decision, { same: false, right: null })
  const verdicts = (comparison: Comparison) => check(comparison, parseAssertions('votes,decision')).map(({ holds, detail }) => `${holds} ${detail}`)
  t.match(verdicts(await compared(run('approve', 'approve'), run('approve', 'approve'))), ['true 0 votes that differ', 'true the same'])
  t.match(verdicts(await compared(run('approve', 'approve'), run('reject', 'reject'))), ['false 1 votes that differ', /^false differs in/])
})

t.test('a difference of fields is small enough to be read', async (t) => {
  t.same(fieldDiff({ a: 1, b: [1, 2], 'x/y': { z: null } }, { a: 1, b: [1, 3, 4], 'x/y': {} }), {
    fields: [
      { path: '/b/1', left: 2, right: 3 },
      { path: '/b/2', right: 4 },
      { path: '/x~1y/z', left: null },
    ],
    more: 0,
  })
  const long = 'x'.repeat(5000)
  const [field] = fieldDiff({ a: `${long}left${long}` }, { a: `${long}right${long}` }).fields
  t.match(field, { path: '/a', left: /^…x{60}left/, right: /^…x{60}right/, cut: true })
  t.ok(JSON.stringify(field).length < 1000)
  const many = Object.fromEntries(Array.from({ length: 80 }, (_, index) => [`f${index}`, index]))
  t.match(fieldDiff({}, many), { more: 30 })
  t.equal(fieldDiff(JSON.parse('{"__proto__":1}'), {}).fields[0]?.path, '/__proto__')
})

t.test('assertions', async (t) => {
  const log = createLog()
  log.add('run.started')
  log.about('llm_call/1', 'llm.call.completed', { model: 'm', inputTokens: 100, outputTokens: 0 })
  const more = createLog()
  more.add('run.started')
  more.about('llm_call/1', 'llm.call.completed', { model: 'm', inputTokens: 110, outputTokens: 0 })
  const comparison = await compared(log.events, more.events)
  const holds = (text: string) => check(comparison, parseAssertions(text)).map((verdict) => verdict.holds)
  t.same(holds('status, steps,tools,llm,shape,participants,signals,artifacts,decision,policy'), new Array(10).fill(true))
  t.same(holds('content,events,llm=equal,state'), [false, false, false, false])
  t.same(holds('tokens<=+10%,tokens<+10%,tokens<=+5%,tokens>=-5%,tokens<=+10,tokens<=+9'), [true, false, false, true, true, false])
  t.same(holds('tokens<=110,tokens==110,tokens!=110,tokens<100,errors==0,cost=0,totalTokens>0'), [true, true, false, false, true, true, true])
  for (const none of ['', ' ', 'status,']) t.throws(() => parseAssertions(none), { code: 'VALIDATION_ERROR', message: 'empty place' }, none)
  for (const unknown of ['tea', 'constructor', 'tokens', 'tokens<=', 'tokens<=10%', 'tea<=1', 'tokens=<1', 'tools=same']) {
    t.throws(() => parseAssertions(unknown), { code: 'VALIDATION_ERROR', message: unknown }, unknown)
  }
})

t.test('a side is read in order and within its limit', async (t) => {
  const log = createLog()
  for (let count = 0; count < 5; count++) log.add('step.output', { text: `${count}` })
  const open = (events: readonly CanonicalEvent[], max = 10) =>
    openEventsSide({ runId: 'run', kind: 'bundle', name: 'left', events: () => events }, max, createRules([]), createPauses())
  await t.rejects(open([...log.events.slice(0, 2), ...log.events.slice(3)]), { code: 'VALIDATION_ERROR', message: 'left: after event 2 comes 4.' })
  await t.rejects(open(log.events, 4), { code: 'PAYLOAD_TOO_LARGE' })
  const late = await open(log.events.slice(3))
  t.match(late, { firstSeq: 4, seq: 5 })
  t.same([...(await late.events([5])).keys()], [5])
})
