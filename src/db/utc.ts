/** Times in statements, as they stand on the wire: RFC 3339 in UTC with milliseconds. */
import type { Queries } from './client.js'

export function utc(sql: Queries, column: string) {
  return sql`to_char(${sql(column)} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`
}

export function utcColumn(sql: Queries, column: string, name = column) {
  return sql`${utc(sql, column)} as ${sql(name)}`
}
