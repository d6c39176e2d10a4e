/**
 * What differs between any two runs, and so says nothing of how they differ: ids, times, durations, hosts.
 *
 * It is told by the names of members (`durationMs`, `created_at`, `host`), and a text that is as a whole a UUID or a time is one too.
 * Whoever compares may add paths and take some off (`createRules`); the digests in the log are those of the rules without either.
 */
import { RunplaneError } from '../errors.js'

const BY_NAME =
  /(?:^id|Id|Ids|[a-z]ID|At|Ms|Time|Timestamp|Uuid|Host|Hostname|_id|_ids|_at|_ms|_time|_timestamp|_uuid|_host|_hostname|_port)$|^(?:duration|elapsed|latency)|^(?:ids|uuid|guid|ts|timestamp|time|host|hostname|pid|port|ip|stack)$/
/** They look like ids, and are names that people gave. */
const NAMES = new Set(['participantId', 'modelId', 'model_id'])

/** The regular expression costs 100 ns, the look-up 15. What is asked after the first names is not kept. */
const known = new Map<string, boolean>()
const MAX_KNOWN = 5000

export function isVolatileName(name: string): boolean {
  const before = known.get(name)
  if (before !== undefined) return before
  const volatile = BY_NAME.test(name) && !NAMES.has(name)
  if (known.size < MAX_KNOWN) known.set(name, volatile)
  return volatile
}

/** Of the vocabulary's own members, not of what is within them: where an artifact lies. */
export function isVolatileField(name: string): boolean {
  return name === 'uri' || isVolatileName(name)
}

export const UUID_TEXT = '<uuid>'
export const TIME_TEXT = '<time>'
const UUID = /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/i
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)$/
const DASH = 0x2d
const LETTER_T = 0x54

/** What stands for a text that is a UUID or a time; undefined for any other. */
export function volatileText(text: string): typeof UUID_TEXT | typeof TIME_TEXT | undefined {
  const { length } = text
  if (length === 36 && text.charCodeAt(8) === DASH && UUID.test(text)) return UUID_TEXT
  if (length > 16 && length < 36 && text.charCodeAt(10) === LETTER_T && text.charCodeAt(4) === DASH && TIME.test(text)) return TIME_TEXT
  return undefined
}

/** An id that somebody chose, such as the name of a participant, rather than one that was made up for this run. */
export function isChosenId(id: string): boolean {
  return id.length < 64 && !/\d{6}|[0-9a-f]{8}-|[0-9a-f]{12}/i.test(id)
}

export const MAX_RULES = 100
const MAX_RULE_CHARS = 500

export interface Rule {
  /** Takes off what the rules before it would ignore. */
  negated: boolean
  /** Of the path below the event, `data` first; `*` is any one, `**` any number. Undefined: a kind of text. */
  segments: readonly string[] | undefined
  text?: typeof UUID_TEXT | typeof TIME_TEXT
}

export interface Rules {
  readonly rules: readonly Rule[]
  /** A part that is in the JSON text of every event that the rules may concern; undefined: any may be. */
  readonly needles: readonly string[] | undefined
}

/**
 * @param ignore paths such as `/data/arguments/seed` (a JSON Pointer into the event; `*` any member, `**` any depth), or the name of a
 *   member, wherever it is; with `!` before it, it is no longer ignored. The last that matches counts. `$uuid` and `$time` are the texts.
 * @throws VALIDATION_ERROR
 */
export function createRules(ignore: readonly string[]): Rules {
  if (ignore.length > MAX_RULES) throw new RunplaneError('VALIDATION_ERROR', `ignore: ${MAX_RULES} paths at most, not ${ignore.length}.`)
  const rules = ignore.map(parseRule)
  const needles: string[] = []
  for (const { segments } of rules) {
    const last = segments?.at(-1)
    // An index of an array, or a pattern, is not in the text.
    if (last === undefined || last.includes('*') || /^\d+$/.test(last)) return { rules, needles: undefined }
    needles.push(`${JSON.stringify(last)}:`)
  }
  return { rules, needles }
}

function parseRule(text: string): Rule {
  const negated = text.startsWith('!')
  const path = negated ? text.slice(1) : text
  if (path === '' || path.length > MAX_RULE_CHARS) throw new RunplaneError('VALIDATION_ERROR', `ignore: '${text.slice(0, 100)}' is not a path.`)
  if (path === '$uuid') return { negated, segments: undefined, text: UUID_TEXT }
  if (path === '$time') return { negated, segments: undefined, text: TIME_TEXT }
  if (!path.startsWith('/')) return { negated, segments: ['data', '**', path] }
  // RFC 6901, section 4.
  const segments = path
    .slice(1)
    .split('/')
    .map((segment) => segment.replaceAll('~1', '/').replaceAll('~0', '~'))
  if (segments.filter((segment) => segment === '**').length > 4) throw new RunplaneError('VALIDATION_ERROR', `ignore: '${path}' has more than four '**'.`)
  if (segments[0] !== 'data' && segments[0] !== '**') {
    throw new RunplaneError('VALIDATION_ERROR', `ignore: '${path}' does not begin with /data: of an event, its type, subject and data are compared.`)
  }
  return { negated, segments }
}

function matches(segments: readonly string[], path: readonly string[], at = 0, from = 0): boolean {
  for (; at < segments.length; at++, from++) {
    const segment = segments[at]
    if (segment === '**') {
      for (let rest = from; rest <= path.length; rest++) if (matches(segments, path, at + 1, rest)) return true
      return false
    }
    if (from === path.length || (segment !== '*' && segment !== path[from])) return false
  }
  return from === path.length
}

/** The value without what is volatile: members left out, texts replaced. @param path where it is in the event. */
export function withoutVolatile(value: unknown, { rules }: Pick<Rules, 'rules'> = NO_RULES, path: string[] = ['data']): unknown {
  const textRules = rules.filter((rule) => rule.text !== undefined)
  const pathRules = rules.filter((rule) => rule.segments !== undefined)

  function ignored(name: string, isMember: boolean): boolean {
    let ignoring = isMember && (path.length === 1 ? isVolatileField(name) : isVolatileName(name))
    path.push(name)
    for (const { negated, segments } of pathRules) if (segments && ignoring === negated && matches(segments, path)) ignoring = !negated
    path.pop()
    return ignoring
  }

  function prune(member: unknown): unknown {
    if (typeof member === 'string') {
      const stand = volatileText(member)
      return stand === undefined || textRules.findLast((rule) => rule.text === stand)?.negated ? member : stand
    }
    if (typeof member !== 'object' || member === null) return member
    if (Array.isArray(member)) {
      if (pathRules.length === 0) return member.map(prune)
      const kept: unknown[] = []
      member.forEach((item, index) => {
        if (!ignored(String(index), false)) kept.push(below(String(index), item))
      })
      return kept
    }
    const kept: [string, unknown][] = []
    for (const [name, item] of Object.entries(member)) if (item !== undefined && !ignored(name, true)) kept.push([name, below(name, item)])
    // Not by assignment: a member may be called __proto__.
    return Object.fromEntries(kept)
  }

  function below(name: string, item: unknown): unknown {
    path.push(name)
    const kept = prune(item)
    path.pop()
    return kept
  }

  return prune(value)
}

const NO_RULES = { rules: [] }
