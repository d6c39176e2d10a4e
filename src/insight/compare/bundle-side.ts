/** A bundle as a side: a local file, or the JSON of one that came with a request. It is checked as an import would check it. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Rules } from '../../domain/volatile.js'
import { RunplaneError } from '../../errors.js'
import { RAW_FILE, SECTIONS } from '../bundle.js'
import { BundleError, openBundle } from '../bundle-reader.js'
import { jsonWire } from '../export-lines.js'
import { openEventsSide } from './events-side.js'
import type { Pauses } from './pauses.js'
import type { Side } from './side.js'

export interface BundleSideOptions {
  /** Unpacked. */
  maxBytes: number
  maxEvents: number
  rules: Rules
  pauses: Pauses
}

/** Raw events are what was sent, to the byte, and an object has lost how they were written. */
const WRITTEN_ANEW = ' Send the text of a bundle with raw events, rather than an object, or one without them.'

/**
 * @param name as it is called in messages
 * @param isWrittenAnew it was an object, and not the text of an export
 * @throws VALIDATION_ERROR for what is no whole bundle, PAYLOAD_TOO_LARGE
 */
export async function openBundleSide(
  path: string,
  name: string,
  { maxBytes, maxEvents, rules, pauses }: BundleSideOptions,
  isWrittenAnew = false,
): Promise<Side> {
  try {
    const bundle = await openBundle(path, { maxBytes })
    const { runId, ranges } = bundle.manifest
    const source = { runId, headSeq: ranges.canonical?.headSeq, kind: 'bundle' as const, name, events: () => bundle.events() }
    return await openEventsSide(source, maxEvents, rules, pauses)
  } catch (error) {
    if (error instanceof BundleError) {
      const advice = isWrittenAnew && error.file === RAW_FILE ? WRITTEN_ANEW : ''
      throw new RunplaneError('VALIDATION_ERROR', `${name}: ${error.message}.${advice}`)
    }
    if (error instanceof RangeError) throw new RunplaneError('PAYLOAD_TOO_LARGE', `${name}: ${error.message}.`)
    throw error
  }
}

/**
 * @param bundle the text of a JSON or NDJSON bundle, or a JSON bundle as an object
 * @param use works with the side: its events can be read until then
 */
export async function withInlineBundle<T>(bundle: string | object, name: string, options: BundleSideOptions, use: (side: Side) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'runplane-compare-'))
  try {
    const path = join(folder, 'bundle')
    const object = typeof bundle === 'string' ? objectOf(bundle) : bundle
    await writeFile(path, object ? textOf(object) : String(bundle))
    return await use(await openBundleSide(path, name, options, object !== undefined))
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Of a text that a program has made of such an object: it has other lines than an export writes. Undefined for any other. */
function objectOf(text: string): object | undefined {
  if (text.startsWith('{"kind":"header",') || text.includes('\n"manifest":')) return undefined
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && 'header' in value ? value : undefined
  } catch {
    return undefined
  }
}

/** The lines that an export would have written: numbers and texts of ours are the same after parsing. Where they are not, the check says so. */
function textOf(bundle: object): string {
  const wire = jsonWire()
  const members: Readonly<Record<string, unknown>> = { ...bundle }
  let text = wire.header(JSON.stringify(members.header ?? {}))
  for (const section of SECTIONS) {
    const value = members[section.member]
    if (value === undefined) continue
    if (!section.list) text += wire.single(section, JSON.stringify(value))
    else if (Array.isArray(value)) {
      if (value.length > 0) text += wire.open(section) + value.map((item) => JSON.stringify(item)).join(wire.joint(section))
      text += wire.close(section)
    }
  }
  return text + wire.manifest(JSON.stringify(members.manifest ?? {}))
}
