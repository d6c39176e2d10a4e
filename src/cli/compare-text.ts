/** A comparison for people: the summary as a table, where the runs part, and what differs. */
import Table from 'cli-table3'
import colors from 'picocolors'
import type { Comparison, Counts, Delta, FieldChange, Op, SeqRange, UnitDiff } from '../insight/compare/answer.js'
import type { Verdict } from '../insight/compare/assertions.js'

/** Lines of a list that are shown; --json has all. */
const MAX_LINES = 25
const MAX_FIELDS = 8
const MAX_VALUE = 160

export function comparisonText(comparison: Comparison): string {
  const parts = [
    header(comparison),
    summary(comparison),
    divergence(comparison),
    steps(comparison),
    events(comparison),
    sections(comparison),
    doubts(comparison),
  ]
  return parts.filter((part) => part !== '').join('\n\n')
}

export function verdictsText(verdicts: readonly Verdict[]): string {
  return verdicts
    .map(({ assertion, holds, detail }) => `${holds ? colors.green('holds ') : colors.red('broken')}  ${assertion}  ${colors.dim(safe(detail))}`)
    .join('\n')
}

function header({ left, right }: Comparison): string {
  const line = (mark: string, { runId, seq, name, kind }: Comparison['left']) =>
    `${mark} ${colors.bold(safe(runId))}${name === undefined ? '' : ` (${safe(name)})`}, up to event ${seq}${kind === 'bundle' ? ', from a bundle' : ''}`
  return `${line(colors.red('left '), left)}\n${line(colors.green('right'), right)}`
}

const ROWS: readonly [label: string, metric: string, unit: 'ms' | 'usd' | ''][] = [
  ['duration', 'durationMs', 'ms'],
  ['events', 'eventCount', ''],
  ['steps', 'stepCount', ''],
  ['tool calls', 'toolCallCount', ''],
  ['tool failures', 'toolFailureCount', ''],
  ['model calls', 'llmCallCount', ''],
  ['tokens', 'totalTokens', ''],
  ['cost', 'costUsd', 'usd'],
  ['errors', 'errorCount', ''],
]

function summary({ left, right, statusMatch, confidenceDelta, metrics = {} }: Comparison): string {
  const table = new Table({
    head: ['', 'left', 'right', 'difference'],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
    colAligns: ['left', 'right', 'right', 'right'],
  })
  table.push(['status', left.status, right.status, statusMatch ? colors.dim('same') : colors.red('differs')])
  for (const [label, name, unit] of ROWS) {
    const delta = metrics[name]
    if (delta) table.push([label, figure(delta.left, unit), figure(delta.right, unit), change(delta, unit)])
  }
  if (confidenceDelta !== undefined && confidenceDelta !== 0) table.push(['confidence', '', '', colors.yellow(signed(confidenceDelta, ''))])
  return table.toString()
}

function figure(value: number | null, unit: string): string {
  if (value === null) return colors.dim('-')
  if (unit === 'usd') return `$${Number(value.toFixed(6))}`
  if (unit === 'ms') return value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`
  return value.toLocaleString('en')
}

function signed(value: number, unit: string): string {
  return `${value < 0 ? '-' : '+'}${figure(Math.abs(value), unit)}`
}

function change({ left, delta }: Delta, unit: string): string {
  if (delta === null) return colors.dim('-')
  if (delta === 0) return colors.dim('same')
  const share = left ? ` (${delta < 0 ? '' : '+'}${((100 * delta) / left).toFixed(0)}%)` : ''
  return colors.yellow(`${signed(delta, unit)}${share}`)
}

function divergence({ firstDivergence }: Comparison): string {
  if (!firstDivergence) return ''
  const { shape, content } = firstDivergence
  if (!shape && !content) return colors.green('The runs do not diverge.')
  const at = ({ leftSeq, rightSeq }: { leftSeq: number | null; rightSeq: number | null }) =>
    `left ${leftSeq ?? 'at its end'}, right ${rightSeq ?? 'at its end'}`
  const lines = [colors.bold('First divergence')]
  if (shape) lines.push(`  of shape    ${at(shape)}: ${safe(shape.why)}`)
  if (content) lines.push(`  of content  ${at(content)}: ${safe(content.why)}`, ...fieldLines(content.fields, content.moreFields, '    '))
  return lines.join('\n')
}

function fieldLines(fields: readonly FieldChange[], more: number, indent: string): string[] {
  const lines = fields
    .slice(0, MAX_FIELDS)
    .flatMap(({ path, left, right }) => [
      `${indent}${colors.dim(safe(path))}`,
      ...(left === undefined ? [] : [`${indent}  ${colors.red(`- ${value(left)}`)}`]),
      ...(right === undefined ? [] : [`${indent}  ${colors.green(`+ ${value(right)}`)}`]),
    ])
  const rest = Math.max(0, fields.length - MAX_FIELDS) + more
  return rest > 0 ? [...lines, `${indent}${colors.dim(`and ${rest} more`)}`] : lines
}

const MARKS: Record<Op, string> = {
  equal: ' ',
  changed: colors.yellow('~'),
  left_only: colors.red('-'),
  right_only: colors.green('+'),
  moved: colors.cyan('>'),
}

function steps({ steps }: Comparison): string {
  if (!steps) return ''
  const { step, tool, llm_call } = steps.byKind
  const lines = [
    colors.bold('Steps and calls'),
    ...[['steps', step] as const, ['tool calls', tool] as const, ['model calls', llm_call] as const].map(
      ([label, counts]) => `  ${label.padEnd(12)}${counted(counts)}`,
    ),
  ]
  const differing = steps.items.filter(({ op }) => op !== 'equal')
  for (const item of differing.slice(0, MAX_LINES)) lines.push(...stepLines(item))
  const rest = Math.max(0, differing.length - MAX_LINES)
  if (rest > 0 || steps.moreItems > 0) lines.push(colors.dim(`  and more: --json lists them`))
  return lines.join('\n')
}

function stepLines({ op, kind, name, left, right, durationDeltaMs, tokensDelta, costDeltaUsd, fields, moreFields }: UnitDiff): string[] {
  const seqs = [left && `left ${left.fromSeq}`, right && `right ${right.fromSeq}`].filter(Boolean).join(', ')
  const deltas = [
    left && right && left.status !== right.status ? `${left.status} → ${right.status}` : '',
    durationDeltaMs ? signed(durationDeltaMs, 'ms') : '',
    tokensDelta ? `${signed(tokensDelta, '')} tokens` : '',
    costDeltaUsd ? signed(costDeltaUsd, 'usd') : '',
  ].filter((text) => text !== '')
  const line = `  ${MARKS[op]} ${kind === 'llm_call' ? 'model' : kind} ${safe(name)}  ${colors.dim(seqs)}${deltas.length > 0 ? `  ${colors.yellow(deltas.join(', '))}` : ''}`
  return [line, ...fieldLines(fields ?? [], moreFields ?? 0, '      ')]
}

function counted({ equal, changed, leftOnly, rightOnly, moved }: Counts): string {
  const parts = [
    `${equal} equal`,
    changed > 0 ? colors.yellow(`${changed} changed`) : '',
    leftOnly > 0 ? colors.red(`${leftOnly} only left`) : '',
    rightOnly > 0 ? colors.green(`${rightOnly} only right`) : '',
    moved > 0 ? colors.cyan(`${moved} moved`) : '',
  ]
  return parts.filter((part) => part !== '').join(', ')
}

function events({ events }: Comparison): string {
  if (!events) return ''
  const lines = [`${colors.bold('Events')}  ${counted(events)}`]
  const seqs = (range: SeqRange) => (range.fromSeq === range.toSeq ? `${range.fromSeq}` : `${range.fromSeq} to ${range.toSeq}`)
  for (const { op, left, right } of events.hunks.slice(0, MAX_LINES)) {
    lines.push(`  ${MARKS[op]} ${[left && `left ${seqs(left)}`, right && `right ${seqs(right)}`].filter(Boolean).join(', ')}`)
  }
  const rest = Math.max(0, events.hunks.length - MAX_LINES) + events.moreHunks
  if (rest > 0) lines.push(colors.dim(`  and ${rest} more places`))
  return lines.join('\n')
}

function sections({ participantsDiff, signalsDiff, artifacts, decision, policy, configuration, stateDiff }: Comparison): string {
  const lines: string[] = []
  const names = (label: string, diff: { added: string[]; removed: string[] } | undefined) => {
    if (!diff || diff.added.length + diff.removed.length === 0) return
    lines.push(
      `${colors.bold(label)}  ${[...diff.removed.map((name) => colors.red(`- ${safe(name)}`)), ...diff.added.map((name) => colors.green(`+ ${safe(name)}`))].join('  ')}`,
    )
  }
  names('Participants', participantsDiff)
  names('Signals', signalsDiff)
  if (artifacts && artifacts.added.length + artifacts.removed.length + artifacts.changed.length > 0) {
    lines.push(
      `${colors.bold('Artifacts')}  ${artifacts.common} equal, ${artifacts.changed.length} changed, ${artifacts.removed.length} only left, ${artifacts.added.length} only right`,
    )
  }
  for (const [label, part] of [
    ['Configuration', configuration],
    ['Decision', decision],
    ['Policy', policy],
  ] as const) {
    if (part && !part.same) lines.push(colors.bold(label), ...fieldLines(part.fields, part.moreFields, '  '))
  }
  for (const { participantId, left, right } of decision?.votes ?? []) {
    if (left !== right) lines.push(`  vote of ${safe(participantId)}: ${colors.red(safe(left ?? 'none'))} ${colors.green(safe(right ?? 'none'))}`)
  }
  if (stateDiff && stateDiff.length > 0) lines.push(colors.dim(`The states differ in ${stateDiff.length} places: --json has them as a JSON Patch.`))
  return lines.join('\n')
}

function doubts({ approximate }: Comparison): string {
  if (!approximate) return ''
  const where = approximate.map(
    ({ what, left, right }) => `${what} ${[left, right].map((range) => (range ? `${range.fromSeq}-${range.toSeq}` : '-')).join(' / ')}`,
  )
  return colors.yellow(
    `Here the alignment is approximate (the runs have little in common), or events are missing: ${where.slice(0, 5).join('; ')}${where.length > 5 ? ` and ${where.length - 5} more` : ''}.`,
  )
}

function value(content: unknown): string {
  const text = typeof content === 'string' ? content : (JSON.stringify(content) ?? '')
  return safe(text.length > MAX_VALUE ? `${text.slice(0, MAX_VALUE)}…` : text)
}

/** What comes from a run must not steer the terminal. */
function safe(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, (unit) =>
    unit === '\n' ? '↵' : `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}
