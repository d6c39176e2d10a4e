/** The first lines of a list of reasons. */
import { type Cuts, clip, MAX_LINE_BYTES } from './bounds.js'

const MAX_LINES = 3

export function linesOf(cuts: Cuts, lines: readonly string[] | undefined): string[] {
  if (lines === undefined || lines.length === 0) return []
  if (lines.length > MAX_LINES) cuts.truncated += 1
  return lines.slice(0, MAX_LINES).map((line) => clip(cuts, line, MAX_LINE_BYTES))
}
