/**
 * A bundle of a run that is there already. The same again changes nothing, and a bundle with other events is a conflict. Compared is what both have;
 * what the run does not have of the bundle (raw events, artifacts) is counted, and not added to it.
 */
import type { Sql } from '../db/client.js'
import { RunplaneError } from '../errors.js'
import type { LogReader } from '../log/read.js'
import type { Artifacts } from './artifacts.js'
import { CANONICAL_FILE, type Checks, checkSpacing, createEventTally, type EventTally, type Manifest } from './bundle.js'

const PAGE_EVENTS = 1000
const PAGE_BYTES = 1_048_576
const NEWLINE = 0x0a

export interface RepeatDeps {
  sql: Sql
  reader: LogReader
  artifacts: Pick<Artifacts, 'list'>
}

/**
 * @param tally of the canonical events of the bundle, as they are under this id
 * @returns how many of the bundle's raw events and artifacts the run has. @throws IDEMPOTENCY_CONFLICT, OVERLOADED where the run has just been deleted
 */
export async function heldOf(deps: RepeatDeps, workspaceId: string, runId: string, tally: EventTally, manifest: Manifest) {
  const { sql, reader, artifacts } = deps
  const [run] = await sql<{ key: string; last_seq: number; first_seq: number; last_raw_seq: number; first_raw_seq: number }[]>`
    select key, last_seq, first_seq, last_raw_seq, first_raw_seq from runs where workspace_id = ${workspaceId} and id = ${runId}`
  if (!run) throw new RunplaneError('OVERLOADED', `Run '${runId}' was deleted while its bundle was read. Send it again.`, { headers: { 'retry-after': '1' } })
  const { key: runKey } = run
  const conflict = (what: string) =>
    new RunplaneError('IDEMPOTENCY_CONFLICT', `There is a run '${runId}', and ${what}. Import the bundle under another id: ?as=<id>.`)
  if (run.first_seq > 1) throw conflict(`of its events those before ${run.first_seq} are no longer kept: nothing tells whether it is that of the bundle`)
  await assertCanonical()
  const raw = await heldRaw()
  const needed = new Set((await artifacts.list(runKey)).map(({ sha256 }) => sha256))
  return { raw, artifacts: manifest.artifacts.filter(({ sha256 }) => needed.has(sha256)).length }

  async function assertCanonical(): Promise<void> {
    const { headSeq } = manifest
    const own = createEventTally(1, checkSpacing(headSeq))
    await read('canonical', own, 0, Math.min(headSeq, run?.last_seq ?? 0))
    if (own.lines === headSeq && own.chain().hash === tally.chain().hash) return
    const seq = own.divergence([...tally.checks(CANONICAL_FILE)].map((line) => JSON.parse(line) as Checks)) ?? own.lines + 1
    throw conflict(`from seq ${seq} on its events are not those of the bundle`)
  }

  /** Those that it does not have any more, or never had, are nothing to compare with. */
  async function heldRaw(): Promise<number> {
    const range = manifest.ranges.raw
    if (!range || !run) return 0
    const from = Math.max(range.fromSeq, run.first_raw_seq)
    const to = Math.min(range.toSeq, run.last_raw_seq)
    const count = Math.max(0, to - from + 1)
    if (count < range.count) return count
    const own = createEventTally(from, checkSpacing(manifest.headRawSeq))
    await read('raw', own, from - 1, to)
    if (count > 0 && own.chain().hash !== manifest.chains.raw?.hash) throw conflict('its raw events are not those of the bundle')
    return count
  }

  async function read(log: 'canonical' | 'raw', own: EventTally, after: number, to: number): Promise<void> {
    let averageBytes: number | undefined
    for (let at = after; at < to; ) {
      const limit = Math.min(PAGE_EVENTS, to - at)
      const page = await reader.pageOfLines({ log, runKey, after: at, limit, maxBytes: PAGE_BYTES, averageBytes, joint: '\n', isContinued: false })
      if (page.count === 0) return
      // Where it is known, events are read some at a time rather than one by one.
      averageBytes = page.bytes / page.count
      const lines = Buffer.concat(page.pieces)
      for (let start = 0; start < lines.length; ) {
        const newline = lines.indexOf(NEWLINE, start)
        const end = newline === -1 ? lines.length : newline
        own.add(lines.subarray(start, end))
        start = end + 1
      }
      at += page.count
    }
  }
}
