/** Which events an endpoint wants: a type, a family (`run.*`), or all (`*`). The outbox says the same in SQL (log/append-rows.ts). */

export const TYPE_FILTER_PATTERN = '^(\\*|[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*(\\.\\*)?)$'

export function wants(filters: readonly string[], type: string): boolean {
  return filters.some((filter) => filter === '*' || filter === type || (filter.endsWith('.*') && type.startsWith(filter.slice(0, -1))))
}
