/** From a run's id to its key, remembered: the pair never changes while the run is there. */
import type { Sql } from '../db/client.js'
import { RunplaneError, runNotFound } from '../errors.js'

const MAX_ENTRIES = 20_000

export interface RunKeys {
  /** Undefined: there is no such run in the workspace. At once, where the key is remembered. */
  find(workspaceId: string, runId: string): string | Promise<string | undefined>
  /**
   * Works with the run's key. One that was remembered may be of a run that another instance has deleted, and that may be there anew under the same id:
   * where the work finds no run, the key is looked up once more. @throws RUN_NOT_FOUND
   */
  use<T>(workspaceId: string, runId: string, work: (key: string) => Promise<T>): Promise<T>
  /** For a run that will be asked for soon. */
  remember(workspaceId: string, runId: string, key: string): void
  /** For a run that turned out to be gone. */
  forget(workspaceId: string, runId: string): void
}

export function createRunKeys(sql: Sql): RunKeys {
  const keys = new Map<string, string>()

  function find(workspaceId: string, runId: string): string | Promise<string | undefined> {
    return keys.get(`${workspaceId} ${runId}`) ?? lookUp(workspaceId, runId)
  }

  async function lookUp(workspaceId: string, runId: string): Promise<string | undefined> {
    const [row] = await sql<{ key: string }[]>`select key from runs where workspace_id = ${workspaceId} and id = ${runId}`
    if (!row) return undefined
    add(`${workspaceId} ${runId}`, row.key)
    return row.key
  }

  function add(name: string, key: string): void {
    // Insertion order is age: the oldest entry goes.
    if (keys.size >= MAX_ENTRIES) for (const oldest of keys.keys()) if (keys.delete(oldest)) break
    keys.set(name, key)
  }

  return {
    find,
    async use(workspaceId, runId, work) {
      const key = await find(workspaceId, runId)
      if (key === undefined) throw runNotFound(runId)
      try {
        return await work(key)
      } catch (error) {
        if (!(error instanceof RunplaneError) || error.code !== 'RUN_NOT_FOUND') throw error
        keys.delete(`${workspaceId} ${runId}`)
        const current = await find(workspaceId, runId)
        if (current === undefined || current === key) throw runNotFound(runId)
        return work(current)
      }
    },
    remember: (workspaceId, runId, key) => add(`${workspaceId} ${runId}`, key),
    forget(workspaceId, runId) {
      keys.delete(`${workspaceId} ${runId}`)
    },
  }
}
