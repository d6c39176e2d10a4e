/** Which events an endpoint wants: a type, a family (`run.*`), or all (`*`). The outbox says the same in SQL (log/append-rows.ts). */
import { pattern } from '../domain/pattern.js'

export const TYPE_FILTER_PATTERN = pattern('^(\\*|([A-Za-z0-9_-]+\\.)+(\\*|[A-Za-z0-9_-]+))$', 'a type such as run.completed, run.* for a family, or * for all')

export function wants(filters: readonly string[], type: string): boolean {
  return filters.some((filter) => filter === '*' || filter === type || (filter.endsWith('.*') && type.startsWith(filter.slice(0, -1))))
}
