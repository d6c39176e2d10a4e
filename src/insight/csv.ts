/**
 * Runs as a table, a row each, for spreadsheets (RFC 4180). What a spreadsheet would take for a formula gets an apostrophe in front:
 * names and errors are what clients and agents made them.
 */
import { stringify } from 'csv-stringify/sync'
import type { Sql } from '../db/client.js'
import { matchingRuns, type RunFilter } from '../runs/list.js'
import { costOfModels, type PriceTable, type TokenCounts } from './prices.js'
import { isCode } from './redact.js'

/** Either the runs of the filter, oldest first, or those of the ids that there are. */
export type RunSelection = { filter: RunFilter } | { runIds: readonly string[] }

export interface SelectedRun {
  key: string
  id: string
}

interface SummaryRow extends SelectedRun {
  at: string
  cells: (string | number | null)[]
  /** By model, of a run that told no cost. */
  uses: (TokenCounts & { model: string })[] | null
}

const PAGE_RUNS = 500
/** Columns and what is in them; times in UTC. */
const COLUMNS = {
  run_id: 'id',
  name: 'name',
  kind: 'kind',
  status: 'status',
  queue: 'queue',
  attempt: 'attempt',
  progress: 'progress',
  parent_run_id: 'parent_run_id',
  created_at: utc('created_at'),
  started_at: utc('started_at'),
  ended_at: utc('ended_at'),
  archived_at: utc('archived_at'),
  // Producers' clocks may run backwards. Of what has not ended there is none, and `greatest` passes over a null.
  duration_ms: 'case when ended_at - started_at is not null then greatest(0, (extract(epoch from ended_at - started_at) * 1000)::bigint) end',
  events: 'last_seq',
  raw_events: 'last_raw_seq',
  llm_calls: 'llm_calls',
  tool_calls: 'tool_calls',
  errors: 'error_count',
  input_tokens: 'input_tokens',
  output_tokens: 'output_tokens',
  cost_usd: 'cost_usd',
  tags: "array_to_string(tags, ' ')",
  error_code: "error->>'code'",
  error_message: "error->>'message'",
} as const
/** What was said, and not what happened. */
const CONTENT: readonly string[] = ['tags', 'error_message']

function utc(column: string): string {
  return `to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`
}

function condition(sql: Sql, workspaceId: string, selection: RunSelection) {
  if ('filter' in selection) return matchingRuns(sql, workspaceId, selection.filter)
  return sql`workspace_id = ${workspaceId} and id in (select json_array_elements_text(${JSON.stringify(selection.runIds)}::text::json))`
}

export async function countRuns(sql: Sql, workspaceId: string, selection: RunSelection): Promise<number> {
  const [row] = await sql<{ count: number }[]>`select count(*) as count from runs where ${condition(sql, workspaceId, selection)}`
  return row?.count ?? 0
}

/** By age, in pages: an order that never changes, so that none is skipped or comes twice. */
export async function* selectRuns(sql: Sql, workspaceId: string, selection: RunSelection): AsyncGenerator<SummaryRow[]> {
  let last: SummaryRow | undefined
  do {
    const rows: SummaryRow[] = await sql<SummaryRow[]>`
      select key, id, created_at::text as at, json_build_array(${sql.unsafe(Object.values(COLUMNS).join(', '))}) as cells,
        case when cost_usd = 0 then model_usage end as uses from runs
      where ${condition(sql, workspaceId, selection)} ${last ? sql`and (created_at, key) > (${last.at}::text::timestamptz, ${last.key}::text::uuid)` : sql``}
      order by created_at, key limit ${PAGE_RUNS}`
    if (rows.length > 0) yield rows
    last = rows.length < PAGE_RUNS ? undefined : rows.at(-1)
  } while (last)
}

/**
 * The cost is what a run told, and where it told nothing what the prices make of its tokens, as in its metrics.
 * @param options.content whether tags and the messages of errors are in it. @returns pieces of text, the first with the names of the columns
 */
export async function* summaryCsv(
  { sql, prices }: { sql: Sql; prices: PriceTable },
  workspaceId: string,
  selection: RunSelection,
  { content = true } = {},
): AsyncGenerator<string> {
  const names = Object.keys(COLUMNS)
  const [costAt, codeAt] = [names.indexOf('cost_usd'), names.indexOf('error_code')]
  const kept = names.map((name) => content || !CONTENT.includes(name))
  const encode = (rows: unknown[][]) =>
    stringify(
      rows.map((row) => row.filter((_, index) => kept[index])),
      // Of line breaks it quotes the delimiter alone.
      { escape_formulas: true, record_delimiter: 'windows', quoted_match: /[\r\n]/ },
    )
  yield encode([names])
  for await (const rows of selectRuns(sql, workspaceId, selection))
    yield encode(
      rows.map(({ cells, uses }) => {
        const priced = uses === null ? cells : cells.with(costAt, costOfModels(prices, uses))
        return content || isCode(String(cells[codeAt] ?? '')) ? priced : priced.with(codeAt, null)
      }),
    )
}
