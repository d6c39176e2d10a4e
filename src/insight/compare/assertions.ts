/** What a pipeline asserts of a comparison: `status,tools,tokens<=+10%`. */
import { RunplaneError } from '../../errors.js'
import type { Comparison, Counts } from './answer.js'
import { METRICS, type MetricName } from './summary.js'

export interface Verdict {
  assertion: string
  holds: boolean
  /** What was found. */
  detail: string
}

export interface Assertion {
  readonly text: string
  check(comparison: Comparison): Omit<Verdict, 'assertion'>
}

type Check = Assertion['check']

const inOrder = (counts: Counts | undefined, what: string): Omit<Verdict, 'assertion'> => {
  const { leftOnly, rightOnly, moved } = of(counts)
  return { holds: leftOnly + rightOnly + moved === 0, detail: `${what}: ${leftOnly} only left, ${rightOnly} only right, ${moved} moved` }
}
const alike = (counts: Counts | undefined, what: string): Omit<Verdict, 'assertion'> => {
  const { changed } = of(counts)
  const { holds, detail } = inOrder(counts, what)
  return { holds: holds && changed === 0, detail: `${detail}, ${changed} changed` }
}
const nothing = (found: readonly (readonly unknown[] | undefined)[], names: readonly string[]): Omit<Verdict, 'assertion'> => {
  const counts = found.map((list) => of(list).length)
  return { holds: counts.every((count) => count === 0), detail: counts.map((count, index) => `${count} ${names[index]}`).join(', ') }
}
const same = (part: { same: boolean; fields: readonly { path: string }[]; moreFields: number } | undefined): Omit<Verdict, 'assertion'> => {
  const { same, fields, moreFields } = of(part)
  const more = fields.length - 3 + moreFields
  const paths = fields.slice(0, 3).map(({ path }) => path)
  return { holds: same, detail: same ? 'the same' : `differs in ${paths.join(', ')}${more > 0 ? ` and ${more} more` : ''}` }
}

const CHECKS: Readonly<Record<string, Check>> = {
  status: ({ statusMatch, left, right }) => ({ holds: statusMatch, detail: `${left.status} and ${right.status}` }),
  shape: ({ firstDivergence }) => ({ holds: !firstDivergence?.shape, detail: firstDivergence?.shape?.why ?? 'no divergence' }),
  content: ({ firstDivergence }) => {
    const found = firstDivergence?.shape ?? firstDivergence?.content
    return { holds: !found, detail: found?.why ?? 'no divergence' }
  },
  events: ({ events }) => alike(events, 'events'),
  steps: ({ steps }) => inOrder(steps?.byKind.step, 'steps'),
  tools: ({ steps }) => inOrder(steps?.byKind.tool, 'tool calls'),
  llm: ({ steps }) => inOrder(steps?.byKind.llm_call, 'model calls'),
  'steps=equal': ({ steps }) => alike(steps?.byKind.step, 'steps'),
  'tools=equal': ({ steps }) => alike(steps?.byKind.tool, 'tool calls'),
  'llm=equal': ({ steps }) => alike(steps?.byKind.llm_call, 'model calls'),
  decision: ({ decision }) => same(decision),
  votes: ({ decision }) => nothing([of(decision).votes.filter(({ left, right }) => left !== right)], ['votes that differ']),
  policy: ({ policy }) => same(policy),
  configuration: ({ configuration }) => same(configuration),
  participants: ({ participantsDiff }) => nothing([participantsDiff?.added, participantsDiff?.removed], ['added', 'removed']),
  signals: ({ signalsDiff }) => nothing([signalsDiff?.added, signalsDiff?.removed], ['added', 'removed']),
  artifacts: ({ artifacts }) => nothing([artifacts?.added, artifacts?.removed, artifacts?.changed], ['added', 'removed', 'changed']),
  state: ({ stateDiff }) => nothing([stateDiff], ['changes of the state']),
}

const ALIASES: Readonly<Record<string, MetricName>> = {
  tokens: 'totalTokens',
  cost: 'costUsd',
  duration: 'durationMs',
  events: 'eventCount',
  steps: 'stepCount',
  tools: 'toolCallCount',
  llm: 'llmCallCount',
  errors: 'errorCount',
}

const METRIC = /^([A-Za-z]+)\s*(<=|>=|==|!=|<|>|=)\s*([+-]?)(\d+(?:\.\d+)?)(%?)$/

const COMPARES: Readonly<Record<string, (one: number, other: number) => boolean>> = {
  '<=': (one, other) => one <= other,
  '>=': (one, other) => one >= other,
  '==': (one, other) => one === other,
  '=': (one, other) => one === other,
  '!=': (one, other) => one !== other,
  '<': (one, other) => one < other,
  '>': (one, other) => one > other,
}

/** @throws VALIDATION_ERROR that names what is not known, and what is. */
export function parseAssertions(text: string): Assertion[] {
  const parts = text.split(',').map((part) => part.trim())
  // A variable of a pipeline that is not set would pass everything.
  if (parts.includes('')) throw new RunplaneError('VALIDATION_ERROR', `The list of assertions '${text}' has an empty place: name them, such as status,tools.`)
  return parts.map((part) => ({ text: part, check: (Object.hasOwn(CHECKS, part) ? CHECKS[part] : undefined) ?? metricCheck(part) }))
}

function metricCheck(text: string): Check {
  const [, name = '', operator = '', sign = '', digits = '', percent = ''] = METRIC.exec(text) ?? []
  const metric = Object.hasOwn(ALIASES, name) ? ALIASES[name] : METRICS.find((known) => known === name)
  const compares = COMPARES[operator]
  if (metric === undefined || compares === undefined) {
    throw new RunplaneError(
      'VALIDATION_ERROR',
      `There is no assertion '${text}'. There are ${Object.keys(CHECKS).join(', ')}; and figures such as tokens<=+10%, cost<=+0.05, errors==0, of ${[...Object.keys(ALIASES), ...METRICS].join(', ')}.`,
    )
  }
  if (percent !== '' && sign === '') throw new RunplaneError('VALIDATION_ERROR', `'${text}': say +${digits}% or -${digits}%, of what the left run has.`)
  const amount = Number(digits) * (sign === '-' ? -1 : 1)
  return ({ metrics }) => {
    const { left, right } = of(metrics?.[metric])
    const found = `${metric}: ${left ?? 'unknown'} and ${right ?? 'unknown'}`
    if (right === null || (sign !== '' && left === null)) return { holds: false, detail: found }
    const base = left ?? 0
    const bound = sign === '' ? amount : percent === '' ? base + amount : base + (base * amount) / 100
    return { holds: compares(right, bound), detail: `${found}, to be ${operator} ${Number(bound.toFixed(9))}` }
  }
}

export function check(comparison: Comparison, assertions: readonly Assertion[]): Verdict[] {
  return assertions.map((assertion) => ({ assertion: assertion.text, ...assertion.check(comparison) }))
}

function of<T>(section: T | undefined): T {
  if (section === undefined) throw new TypeError('an assertion asks for a section that was not computed')
  return section
}
