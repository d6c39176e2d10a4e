/** Times in statements, as they stand on the wire: RFC 3339 in UTC with milliseconds. */
import type { Queries } from './client.js'

export function utc(sql: Queries, column: string) {
  return text(sql, sql(column))
}

export function utcColumn(sql: Queries, column: string, name = column) {
  return sql`${utc(sql, column)} as ${sql(name)}`
}

/** The database's clock, which moves within a transaction too. */
export function utcNow(sql: Queries) {
  return text(sql, sql`clock_timestamp()`)
}

type Fragment = Parameters<Queries>[1]

const text = (sql: Queries, time: Fragment) => sql`to_char(${time} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`
