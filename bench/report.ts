/** The table: as JSON for programs, as markdown for readers. It names the machine's capabilities, never the machine. */
import type { Row, Spread } from './measure.js'

export interface Report {
  measuredAt: string
  machine: { cores: number; memoryGiB: number; platform: string; node: string; postgres: Record<string, string> }
  quick: boolean
  rows: Row[]
}

export function markdown(report: Report): string {
  const { machine } = report
  const postgres = Object.entries(machine.postgres).map(([kind, version]) => `${kind} ${version}`)
  return `# Benchmarks

The last run of \`npm run bench\`, which overwrites the rows that it measures. What each row measures, its knobs and its target are in the header of the
file under \`bench/\` that measures it. Load generator, service and Postgres share the machine; ours and the baseline are measured in turns,
and *ratio* is the median of the rounds (least to greatest). The ratios are what to compare; the absolute figures are the machine's.

Measured ${report.measuredAt.slice(0, 10)} on ${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.platform}; Node.js ${machine.node}; Postgres: ${postgres.join(', ')}. Logs at \`warn\`; defaults otherwise.${report.quick ? ' **A quick run: the figures mean little.**' : ''}

| what | database | ours | baseline | ratio | target | |
|---|---|--:|--:|--:|---|---|
${report.rows.map(line).join('\n')}
`
}

function line({ what, database, unit, ours, baseline, ratio, target, met, note, measuredAt }: Row): string {
  const more = [note, measuredAt && `measured earlier, ${measuredAt.slice(0, 16).replace('T', ' ')}`].filter((text) => text !== undefined).join('; ')
  const cells = [
    more === '' ? what : `${what}<br><sub>${more}</sub>`,
    database,
    figure(ours, unit),
    baseline === undefined ? '' : figure(baseline, unit),
    ratio === undefined ? '' : `${ratio.median.toFixed(2)} x (${ratio.min.toFixed(2)} to ${ratio.max.toFixed(2)})`,
    target ?? 'printed',
    met === undefined ? '' : met ? 'met' : '**missed**',
  ]
  return `| ${cells.join(' | ')} |`
}

function figure({ median }: Spread, unit: string): string {
  const digits = median >= 100 ? 0 : 1
  return `${median.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${unit}`
}

/** The same for a terminal. */
export function plain(row: Row): string {
  const parts = [`${row.what} [${row.database}]: ${figure(row.ours, row.unit)}`]
  if (row.baseline && row.ratio)
    parts.push(`baseline ${figure(row.baseline, row.unit)}, ${row.ratio.median.toFixed(2)} x (${row.ratio.min.toFixed(2)} to ${row.ratio.max.toFixed(2)})`)
  if (row.target) parts.push(`${row.target}: ${row.met ? 'met' : 'MISSED'}`)
  if (row.note) parts.push(row.note)
  return parts.join('; ')
}
