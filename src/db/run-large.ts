/** Statements that carry much: a group of appends, a slice of an import. */
import type { Queries } from './client.js'

/**
 * Runs a prepared statement, sent before this returns, and lets go of its parameters when it is over.
 *
 * The driver (postgres 3.4) assigns closures to members of each query, `this.resolve = ...`, and V8 makes a function literal that is assigned to a member in the
 * old generation. There they stay until the whole heap is collected, the query and its parameters with them: most of what the collections of the young generation had to
 * copy under load was kept by them (docs/adr/0012). For the same reason it is one text: each fragment of a template is a query of its own.
 */
export async function runLarge(sql: Queries, text: string, parameters: string[]) {
  const query = sql.unsafe(text, parameters, { prepare: true }).execute()
  try {
    return await query
  } finally {
    Object.assign(query, { args: [], parameters: [] })
  }
}
