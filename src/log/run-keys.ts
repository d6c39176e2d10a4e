/** From a run's id to its key, remembered: the pair never changes while the run is there. */
import type { Sql } from '../db/client.js'

const MAX_ENTRIES = 20_000

export interface RunKeys {
  /** Undefined: there is no such run in the workspace. */
  find(workspaceId: string, runId: string): Promise<string | undefined>
  /** For a run that turned out to be gone. */
  forget(workspaceId: string, runId: string): void
}

export function createRunKeys(sql: Sql): RunKeys {
  const keys = new Map<string, string>()
  return {
    async find(workspaceId, runId) {
      const name = `${workspaceId} ${runId}`
      const known = keys.get(name)
      if (known !== undefined) return known
      const [row] = await sql<{ key: string }[]>`select key from runs where workspace_id = ${workspaceId} and id = ${runId}`
      if (!row) return undefined
      // Insertion order is age: the oldest entry goes.
      if (keys.size >= MAX_ENTRIES) for (const oldest of keys.keys()) if (keys.delete(oldest)) break
      keys.set(name, row.key)
      return row.key
    },
    forget(workspaceId, runId) {
      keys.delete(`${workspaceId} ${runId}`)
    },
  }
}
