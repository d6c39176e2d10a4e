/** Workspaces: every row belongs to one. The default one exists from the first migration on; others are made with their first key. */

import { eq } from 'drizzle-orm'
import type { Database } from '../db/client.js'
import { workspaces } from '../db/schema.js'
import { uuidv7 } from '../domain/ids.js'
import { pattern } from '../domain/pattern.js'

export const WORKSPACE_NAME_PATTERN = pattern('^[a-z0-9][a-z0-9-]{0,62}$', '1 to 63 lower-case letters, digits and hyphens, of which the first is none')

export interface Workspace {
  id: string
  name: string
}

/** Finds the workspace of that name, or makes it. Two at once get the same one. */
export async function ensureWorkspace(db: Pick<Database['db'], 'insert' | 'select'>, name: string): Promise<Workspace> {
  await db.insert(workspaces).values({ id: uuidv7(), name }).onConflictDoNothing({ target: workspaces.name })
  const [found] = await db.select({ id: workspaces.id, name: workspaces.name }).from(workspaces).where(eq(workspaces.name, name))
  if (!found) throw new Error(`workspace '${name}' is neither there nor can it be made`)
  return found
}

/** @throws Error for an id that is no workspace's: ids come from keys, which refer to one. */
export async function findWorkspace(db: Pick<Database['db'], 'select'>, id: string): Promise<Workspace> {
  const [found] = await db.select({ id: workspaces.id, name: workspaces.name }).from(workspaces).where(eq(workspaces.id, id))
  if (!found) throw new Error(`there is no workspace with the id ${id}`)
  return found
}
