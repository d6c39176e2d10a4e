/**
 * Calls of language models, and what they used in all and by model.
 *
 * The same use may be told more than once, and must not be counted twice:
 * - Each subject (a call, a step, the run; in each attempt anew) has one account. A completed call states its counts: they
 *   replace what `usage.reported` said of the same call before, and what it says afterwards is ignored. A cumulative
 *   report replaces the account of its subject, a delta (the default) adds to it. What a completed run or step says of its usage is cumulative.
 * - Calls, steps and the run are three levels at which the same use is told. Each level is added up by itself, and for
 *   each count the largest of the three is the total: a run that repeats the sum of its calls changes nothing.
 *
 * A total that is told (`totalTokens`) may be more than the input and output that are told with it. What goes beyond them is kept beside the counts.
 */
import type { EventOf } from '../../domain/canonical-event.js'
import { withoutNull } from '../../domain/known.js'
import { amount, clipped, field, idOf, keep, MAX_ID_BYTES, MAX_LINE_BYTES, MAX_NAME_BYTES, numberOf, textOf } from '../bounds.js'
import { failureOf } from '../failure.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'

const MAX_CALLS = 100
/** Accounts that can still be replaced; what older ones have told stays counted. */
const MAX_ACCOUNTS = 100
/** Further models are added up under one name. */
const MAX_MODELS = 30
const OTHER_MODELS = '(other)'
const UNKNOWN_MODEL = '(unknown)'

const COUNTS = ['inputTokens', 'outputTokens', 'cacheReadTokens', 'cacheWriteTokens', 'reasoningTokens', 'costUsd'] as const
type CountName = (typeof COUNTS)[number]
type Usage = { readonly [Name in CountName]?: number } & { readonly model?: string }
/** After the counts: tokens of a told total that are beyond input and output. */
const BEYOND = COUNTS.length

const LEVELS = ['call', 'step', 'run'] as const
type Level = (typeof LEVELS)[number]

/** Where a level has a count among the sums. Snapshots of older versions end before BEYOND. */
function slotOf(level: Level, index: number): number {
  const at = LEVELS.indexOf(level)
  return index === BEYOND ? LEVELS.length * COUNTS.length + at : at * COUNTS.length + index
}

interface Account {
  level: Level
  model: string
  counts: number[]
  /** A completed call has stated its counts. */
  closed: boolean
}

interface Call {
  id: string
  status: 'running' | 'completed' | 'failed'
  participantId: string | null
  provider: string | null
  model: string | null
  inputTokens: number
  outputTokens: number
  cacheReadTokens: number
  cacheWriteTokens: number
  reasoningTokens: number
  /** As told. */
  totalTokens: number | null
  costUsd: number | null
  latencyMs: number | null
  ttftMs: number | null
  ts: string
  messageId: string | null
  artifactId: string | null
  error: string | null
}

interface ModelUse {
  /** Completed ones. */
  calls: number
  failed: number
  /** Each count at each level. */
  sums: number[]
}

export interface LlmFold {
  calls: Map<string, Call>
  accounts: Map<string, Account>
  models: Map<string, ModelUse>
  sums: number[]
  started: number
  completed: number
  failed: number
  latencyMs: number
  dropped: number
  truncated: number
}

const zeros = (length: number): number[] => new Array<number>(length).fill(0)
const noSums = (): number[] => zeros(LEVELS.length * (COUNTS.length + 1))

function modelUse(state: LlmFold, model: string): ModelUse {
  const name = state.models.has(model) || state.models.size < MAX_MODELS ? model : OTHER_MODELS
  let use = state.models.get(name)
  if (use === undefined) {
    use = { calls: 0, failed: 0, sums: noSums() }
    state.models.set(name, use)
  }
  return use
}

function add(sums: number[], index: number, delta: number): void {
  sums[index] = (sums[index] ?? 0) + delta
}

function post(state: LlmFold, account: Account, index: number, delta: number): void {
  if (delta === 0) return
  const at = slotOf(account.level, index)
  add(state.sums, at, delta)
  add(modelUse(state, account.model).sums, at, delta)
}

function accountOf(state: LlmFold, level: Level, key: string, model: string | undefined): Account {
  const known = state.accounts.get(key)
  const account = known ?? { level, model: UNKNOWN_MODEL, counts: zeros(COUNTS.length + 1), closed: false }
  if (known === undefined) keep(state.accounts, key, account, MAX_ACCOUNTS)
  if (model !== undefined && account.model === UNKNOWN_MODEL) {
    // What was told before the model was named goes to it.
    const { counts } = account
    for (let index = 0; index < counts.length; index++) post(state, account, index, -(counts[index] ?? 0))
    account.model = idOf(model)
    for (let index = 0; index < counts.length; index++) post(state, account, index, counts[index] ?? 0)
  }
  return account
}

/** @param how `state` replaces the counts that are told, `add` adds them. @returns whether any was told. */
function book(state: LlmFold, account: Account, usage: Usage, how: 'state' | 'add'): boolean {
  let told = false
  const before = partsOf(account)
  for (let index = 0; index < COUNTS.length; index++) {
    const value = usage[COUNTS[index] as CountName]
    if (value === undefined) continue
    told = true
    setCount(state, account, index, how === 'add' ? (account.counts[index] ?? 0) + amount(value) : amount(value))
  }
  const total = numberOf(field(usage, 'totalTokens'))
  const beyond = account.counts[BEYOND] ?? 0
  const grown = partsOf(account) - before
  if (total === null) {
    // Parts that are told after their total are in it.
    if (how === 'state') setCount(state, account, BEYOND, Math.max(0, beyond - Math.max(0, grown)))
    return told
  }
  setCount(state, account, BEYOND, how === 'add' ? beyond + Math.max(0, amount(total) - grown) : Math.max(0, amount(total) - partsOf(account)))
  return true
}

/** Input and output. */
function partsOf({ counts: [input = 0, output = 0] }: Account): number {
  return input + output
}

function setCount(state: LlmFold, account: Account, index: number, after: number): void {
  const before = account.counts[index] ?? 0
  account.counts[index] = after
  post(state, account, index, after - before)
}

function accountKey(level: Level, id: string, attempt: number): string {
  return `${level}/${idOf(id)}#${attempt}`
}

type CallEvent = EventOf<'llm.call.started' | 'llm.call.completed' | 'llm.call.failed'>

function callOf(state: LlmFold, event: CallEvent): Call {
  const { data, ts, attempt } = event
  const id = idOf(event.subject.id)
  const key = `${id}#${attempt}`
  const known = state.calls.get(key)
  const call: Call = known ?? {
    id,
    status: 'running',
    participantId: null,
    provider: null,
    model: null,
    inputTokens: 0,
    outputTokens: 0,
    cacheReadTokens: 0,
    cacheWriteTokens: 0,
    reasoningTokens: 0,
    totalTokens: null,
    costUsd: null,
    latencyMs: null,
    ttftMs: null,
    ts,
    messageId: null,
    artifactId: null,
    error: null,
  }
  if (known === undefined && keep(state.calls, key, call, MAX_CALLS)) state.dropped += 1
  const sender = senderOf(event)
  const messageId = textOf(field(data, 'messageId'))
  if (sender !== undefined) call.participantId = idOf(sender)
  if (messageId !== null) call.messageId = idOf(messageId)
  call.provider = clipped(state, data.provider, MAX_NAME_BYTES) ?? call.provider
  call.model = clipped(state, data.model, MAX_NAME_BYTES) ?? call.model
  call.latencyMs = numberOf(data.latencyMs) ?? call.latencyMs
  call.ttftMs = numberOf(data.ttftMs) ?? call.ttftMs
  call.artifactId = clipped(state, data.artifactId, MAX_ID_BYTES) ?? call.artifactId
  return call
}

function endCall(state: LlmFold, event: EventOf<'llm.call.completed' | 'llm.call.failed'>, status: 'completed' | 'failed'): void {
  const { data, subject, attempt } = event
  const call = callOf(state, event)
  call.ts = event.ts
  const account = accountOf(state, 'call', accountKey('call', subject.id, attempt), call.model ?? undefined)
  if (book(state, account, data, 'state')) account.closed = true
  for (const name of COUNTS) if (data[name] !== undefined) call[name] = amount(data[name])
  call.totalTokens = numberOf(field(data, 'totalTokens')) ?? call.totalTokens
  if (data.error !== undefined) call.error = failureOf(state, data.error, MAX_LINE_BYTES)?.message ?? null
  if (call.status === status) return
  const use = modelUse(state, account.model)
  if (call.status === 'running') state.latencyMs += amount(data.latencyMs)
  use[status === 'failed' ? 'failed' : 'calls'] += 1
  state[status] += 1
  call.status = status
}

/** What a completed step or run says that it used in all. */
function stateUsage(state: LlmFold, level: Level, event: { subject: { id: string }; attempt: number }, usage: Usage | undefined): void {
  if (usage === undefined) return
  book(state, accountOf(state, level, accountKey(level, event.subject.id, event.attempt), usage.model), usage, 'state')
}

export const llm = defineSection({
  name: 'llm',
  initial: (): LlmFold => ({
    calls: new Map(),
    accounts: new Map(),
    models: new Map(),
    sums: noSums(),
    started: 0,
    completed: 0,
    failed: 0,
    latencyMs: 0,
    dropped: 0,
    truncated: 0,
  }),
  on: {
    'llm.call.started'(state, event) {
      state.started += 1
      callOf(state, event)
    },
    'llm.call.completed'(state, event) {
      endCall(state, event, 'completed')
    },
    'llm.call.failed'(state, event) {
      endCall(state, event, 'failed')
    },
    'usage.reported'(state, { subject, attempt, data }) {
      const level = subject.kind === 'llm_call' ? 'call' : subject.kind === 'step' ? 'step' : 'run'
      const account = accountOf(state, level, accountKey(level, subject.id, attempt), data.model)
      if (!account.closed) book(state, account, data, data.mode === 'cumulative' ? 'state' : 'add')
    },
    'step.completed'(state, event) {
      stateUsage(state, 'step', event, event.data.usage)
    },
    'step.failed'(state, event) {
      stateUsage(state, 'step', event, event.data.usage)
    },
    'step.skipped'(state, event) {
      stateUsage(state, 'step', event, event.data.usage)
    },
    'run.completed'(state, event) {
      const { usage, costUsd } = event.data
      stateUsage(state, 'run', event, costUsd === undefined ? usage : { ...usage, costUsd })
    },
  },
  view(state) {
    const { started, completed, failed, latencyMs, dropped, truncated } = state
    const calls = [...state.calls.values()].map((call) => ({
      ...withoutNull(call),
      totalTokens: Math.max(call.inputTokens + call.outputTokens, amount(call.totalTokens)),
      // The names that macp dashboards read.
      promptTokens: call.inputTokens,
      completionTokens: call.outputTokens,
      ...(call.costUsd !== null && { estimatedCostUsd: call.costUsd }),
    }))
    const all = totalsOf(state.sums)
    const totals = {
      callCount: completed,
      started,
      failed,
      latencyMs,
      ...all,
      promptTokens: all.inputTokens,
      completionTokens: all.outputTokens,
      estimatedCostUsd: all.costUsd,
    }
    return { calls, totals, byModel: usageByModel(state), dropped, truncated }
  },
})

/** What each model was used, in the order of their first use. */
export function usageByModel({ models, sums: all }: Readonly<LlmFold>) {
  const used = [...models].filter(([, { calls, failed, sums }]) => calls > 0 || failed > 0 || sums.some((sum) => sum > 0))
  const uses = used.map(([model, { calls, failed, sums }]) => ({ model, calls, failed, ...totalsOf(sums) }))
  const unknown = uses.find(({ model }) => model === UNKNOWN_MODEL)
  if (unknown === undefined || uses.length === 1) return uses
  // A run tells at its end, with no model, what its calls have told by theirs: only what goes beyond that is of none.
  const total = totalsOf(all)
  for (const name of COUNTS) {
    const named = uses.reduce((sum, use) => (use === unknown ? sum : sum + use[name]), 0)
    unknown[name] = Math.max(0, Number((total[name] - named).toFixed(9)))
  }
  const named = uses.reduce((sum, use) => (use === unknown ? sum : sum + use.totalTokens), 0)
  unknown.totalTokens = Math.max(unknown.inputTokens + unknown.outputTokens, total.totalTokens - named)
  return unknown.calls > 0 || unknown.failed > 0 || unknown.totalTokens > 0 || COUNTS.some((name) => unknown[name] > 0)
    ? uses
    : uses.filter((use) => use !== unknown)
}

/** Of each count the largest of the three levels; costs to a billionth, since sums of fractions drift. */
export function totalsOf(sums: readonly number[]) {
  const at = (level: Level, index: number) => sums[slotOf(level, index)] ?? 0
  const largest = (name: CountName): number => Math.max(0, ...LEVELS.map((level) => at(level, COUNTS.indexOf(name))))
  const totals = LEVELS.map((level) => at(level, 0) + at(level, 1) + at(level, BEYOND))
  const inputTokens = largest('inputTokens')
  const outputTokens = largest('outputTokens')
  return {
    inputTokens,
    outputTokens,
    totalTokens: Math.max(inputTokens + outputTokens, ...totals),
    cacheReadTokens: largest('cacheReadTokens'),
    cacheWriteTokens: largest('cacheWriteTokens'),
    reasoningTokens: largest('reasoningTokens'),
    costUsd: Number(largest('costUsd').toFixed(9)),
  }
}
