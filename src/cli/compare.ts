/**
 * `runplane compare A B`: each a bundle's file, or the id of a run of the service at RUNPLANE_URL. Two bundles need no service.
 * The exit code is 0, or 1 where an assertion does not hold, or 2 where nothing could be compared.
 */
import { existsSync } from 'node:fs'
import { Command, InvalidArgumentError } from 'commander'
import type { CanonicalEvent } from '../domain/canonical-event.js'
import { RUN_ID_PATTERN } from '../domain/ids.js'
import { createRules } from '../domain/volatile.js'
import type { Comparison } from '../insight/compare/answer.js'
import { type Assertion, check, parseAssertions } from '../insight/compare/assertions.js'
import { openBundleSide } from '../insight/compare/bundle-side.js'
import { compare, DEFAULT_LIMIT, MAX_LIMIT } from '../insight/compare/compare.js'
import { openEventsSide } from '../insight/compare/events-side.js'
import { createPauses } from '../insight/compare/pauses.js'
import type { Side } from '../insight/compare/side.js'
import { loadPrices } from '../insight/prices.js'
import { comparisonText, verdictsText } from './compare-text.js'

interface Options {
  json?: true
  assert?: string
  ignore: string[]
  fields?: true
  limit: number
  url: string
}

const RUN = new RegExp(`^(?:run:)?(${RUN_ID_PATTERN.slice(1, -1)})(?:@([1-9]\\d{0,14}))?$`)
const PAGE_EVENTS = 1000
/** Memory of the own process: a million events take 0.5 GB. */
const MAX_EVENTS = 5_000_000

interface RunSide {
  runId: string
  seq?: number
}
type Place = { file: string } | { run: RunSide }

export function compareCommand(): Command {
  return (
    new Command('compare')
      .description('put two runs side by side: bundles (files), or runs of a service')
      .argument('<left>', 'the file of a bundle, or the id of a run; id@120 is the run as of its event 120')
      .argument('<right>', 'the same')
      .option('--json', 'print the comparison as JSON')
      // Given twice, both count: the last alone would pass what the first was to stop.
      .option('--assert <list>', "set the exit code by assertions, such as 'status,tools,tokens<=+10%'; may be given more than once", both)
      .option('--ignore <path>', 'do not compare this member; may be given more than once', (path: string, before: string[]) => [...before, path], [])
      .option('--fields', 'show how changed steps differ, field by field')
      .option('--limit <n>', 'differences that are listed', wholeNumber, DEFAULT_LIMIT)
      .option('--url <url>', 'the service', process.env.RUNPLANE_URL ?? 'http://127.0.0.1:3000')
      // A pipeline takes 1 for a difference.
      .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : 2))
      .addHelpText('after', '\nThe key of the service is in RUNPLANE_API_KEY. docs/COMPARE.md explains what is compared, and every assertion.')
      .action(async (left: string, right: string, options: Options) => {
        try {
          // Before anything is compared: an assertion that is not known is a mistake, not a difference.
          const assertions = options.assert === undefined ? [] : parseAssertions(options.assert)
          print(await comparisonOf(placeOf(left), placeOf(right), options), assertions, options)
        } catch (error) {
          console.error(`runplane compare: ${error instanceof Error ? error.message : String(error)}`)
          process.exitCode = 2
        }
      })
  )
}

function print(comparison: Comparison, assertions: readonly Assertion[], options: Options): void {
  const verdicts = check(comparison, assertions)
  if (options.json) console.log(JSON.stringify(verdicts.length > 0 ? { ...comparison, assertions: verdicts } : comparison, null, 2))
  else {
    console.log(comparisonText(comparison))
    if (verdicts.length > 0) console.log(`\n${verdictsText(verdicts)}`)
  }
  if (verdicts.some(({ holds }) => !holds)) process.exitCode = 1
}

function placeOf(text: string): Place {
  if (!text.startsWith('run:') && existsSync(text)) return { file: text }
  const [, runId, seq] = RUN.exec(text) ?? []
  if (runId === undefined) throw new Error(`there is no file '${text}', and no run can have that id`)
  return { run: { runId, ...(seq !== undefined && { seq: Number(seq) }) } }
}

async function comparisonOf(left: Place, right: Place, options: Options): Promise<Comparison> {
  const { ignore, limit, fields = false } = options
  if ('run' in left && 'run' in right) {
    return request<Comparison>(options.url, '/runs/compare', { left: left.run, right: right.run, ignore, limit, fields })
  }
  // As the service has them, where it is told of a file of one's own.
  const prices = loadPrices(process.env.MODEL_PRICES_FILE || undefined)
  const rules = createRules(ignore)
  const pauses = createPauses()
  const open = async (place: Place): Promise<Side> => {
    if ('file' in place) return openBundleSide(place.file, place.file, { maxBytes: Number.MAX_SAFE_INTEGER, maxEvents: MAX_EVENTS, rules, pauses })
    const { runId } = place.run
    const seq = place.run.seq ?? (await request<{ lastSeq: number }>(options.url, `/runs/${runId}`)).lastSeq
    return openEventsSide({ runId, kind: 'run', name: `run ${runId}`, events: () => eventsOf(options.url, runId, seq) }, MAX_EVENTS, rules, pauses)
  }
  const sides = [await open(left), await open(right)] as const
  return compare(...sides, { prices, rules, ignore, limit, fields, pauses })
}

/** The events of a run up to a seq, page by page. */
async function* eventsOf(url: string, runId: string, seq: number): AsyncGenerator<CanonicalEvent> {
  for (let after: number | undefined = 0; after !== undefined; ) {
    const page: { data: CanonicalEvent[]; nextAfterSeq?: number } = await request(url, `/runs/${runId}/events?afterSeq=${after}&limit=${PAGE_EVENTS}`)
    for (const event of page.data) {
      if (event.seq > seq) return
      yield event
    }
    after = page.nextAfterSeq
  }
}

/** @throws Error with what the service said. */
async function request<T>(url: string, path: string, body?: object): Promise<T> {
  const key = process.env.RUNPLANE_API_KEY
  const answer = await fetch(url.replace(/\/+$/, '') + path, {
    method: body ? 'POST' : 'GET',
    headers: { ...(key && { authorization: `Bearer ${key}` }), ...(body && { 'content-type': 'application/json' }) },
    ...(body && { body: JSON.stringify(body) }),
  }).catch((error: unknown) => {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause.message : String(error)
    throw new Error(`no service answers at ${url} (${cause}). Start one, or set RUNPLANE_URL`)
  })
  const text = await answer.text()
  if (answer.ok) return JSON.parse(text)
  throw new Error(`${url} answered ${answer.status}: ${detailOf(text)}`)
}

function detailOf(text: string): string {
  try {
    const { code, detail }: { code?: string; detail?: string } = JSON.parse(text)
    return `${code}: ${detail}`
  } catch {
    return text.slice(0, 200)
  }
}

function both(list: string, before: string | undefined): string {
  return before === undefined ? list : `${before},${list}`
}

function wholeNumber(text: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1 || value > MAX_LIMIT) throw new InvalidArgumentError(`It is a whole number from 1 to ${MAX_LIMIT}.`)
  return value
}
