/**
 * API keys: `rp_` and 32 random bytes as base64url, shown once, kept as their SHA-256.
 * Once there is a key there is always an admin key of the default workspace, which manages all: the first one must be that, and the last one
 * cannot be revoked, because a service without a key is open, and one without that key is locked. Lookups are cached for a second; what this process changes counts at once.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { and, asc, eq, isNull, ne } from 'drizzle-orm'
import type { Database } from '../db/client.js'
import { apiKeys, workspaces } from '../db/schema.js'
import { DEFAULT_WORKSPACE_ID, uuidv7 } from '../domain/ids.js'
import { RunplaneError } from '../errors.js'
import { createExpiringCache } from './expiring-cache.js'
import type { Access, Role } from './roles.js'
import { ensureWorkspace, findWorkspace } from './workspaces.js'

const CACHE_MS = 1000
/** An entry is some 300 bytes: 10,000 are 3 MB at most. */
const CACHE_ENTRIES = 10_000
const KEY_PATTERN = /^rp_[A-Za-z0-9_-]{43}$/

export interface KeyRecord {
  id: string
  name: string
  role: Role
  workspaceId: string
  workspace: string
  createdAt: string
}
export interface CreatedKey extends KeyRecord {
  /** The only time that it can be read. */
  key: string
}

export interface Keys {
  /**
   * @param input.workspace the workspace's name, which is made if it is not there; none: the maker's own.
   * @param by who makes it; none: the operator, at the command line. Only the default workspace makes keys for others.
   * @throws FORBIDDEN for another workspace, INVALID_STATE_TRANSITION for a first key that is not an admin key of the default workspace.
   */
  create(input: { name: string; role: Role; workspace?: string }, by?: Pick<Access, 'workspaceId'>): Promise<CreatedKey>
  /** Without the revoked ones, oldest first; of one workspace or of all. */
  list(workspaceId?: string): Promise<KeyRecord[]>
  /** @throws NOT_FOUND, or INVALID_STATE_TRANSITION for the last admin key of the default workspace. */
  revoke(id: string, workspaceId?: string): Promise<void>
  /** Who holds this key; undefined if nobody does. */
  authenticate(key: string): Access | undefined | Promise<Access | undefined>
  /** Who held this key when it was last looked up; undefined if that is not known. */
  lastHolder(key: string): Access | undefined
  /** Whether there is any key; without one the service is open. At once, where it has been asked a moment ago. */
  exist(): boolean | Promise<boolean>
}

const sha256 = (text: string) => createHash('sha256').update(text).digest()

export function createKeys({ db }: Pick<Database, 'db'>, { adminApiKey, now = Date.now }: { adminApiKey?: string; now?: () => number } = {}): Keys {
  const adminHash = adminApiKey === undefined ? undefined : sha256(adminApiKey)
  const holders = createExpiringCache<Access | undefined>({ ttlMs: CACHE_MS, maxEntries: CACHE_ENTRIES, now })
  const existence = createExpiringCache<boolean>({ ttlMs: CACHE_MS, maxEntries: 1, now })
  const forget = () => {
    holders.clear()
    existence.clear()
  }

  async function find(hash: Buffer): Promise<Access | undefined> {
    const [row] = await db
      .select({ id: apiKeys.id, name: apiKeys.name, role: apiKeys.role, workspaceId: apiKeys.workspaceId, hash: apiKeys.hash })
      .from(apiKeys)
      .where(and(eq(apiKeys.hash, hash), isNull(apiKeys.revokedAt)))
    if (!row || !timingSafeEqual(row.hash, hash)) return undefined
    return { workspaceId: row.workspaceId, role: row.role, keyId: row.id, keyName: row.name }
  }

  return {
    create: async ({ name, role, workspace }, by = { workspaceId: DEFAULT_WORKSPACE_ID }) => {
      const key = `rp_${randomBytes(32).toString('base64url')}`
      const created = await db.transaction(async (tx) => {
        await tx.execute('lock table api_keys in share row exclusive mode')
        const [admin] = await tx
          .select({ id: apiKeys.id })
          .from(apiKeys)
          .where(and(eq(apiKeys.role, 'admin'), isNull(apiKeys.revokedAt)))
          .limit(1)
        const own = await findWorkspace(tx, by.workspaceId)
        if (workspace !== undefined && workspace !== own.name && own.id !== DEFAULT_WORKSPACE_ID) {
          throw new RunplaneError(
            'FORBIDDEN',
            `A key of the workspace '${own.name}' makes keys of '${own.name}' only. One of the default workspace makes keys of any.`,
          )
        }
        const home = workspace === undefined ? own : await ensureWorkspace(tx, workspace)
        if (!admin && !adminHash && (role !== 'admin' || home.id !== DEFAULT_WORKSPACE_ID)) {
          throw new RunplaneError(
            'INVALID_STATE_TRANSITION',
            'The first key must be an admin key of the default workspace: without one nobody could manage the keys. Make that one first.',
          )
        }
        const [row] = await tx
          .insert(apiKeys)
          .values({ id: uuidv7(now()), workspaceId: home.id, name, role, hash: sha256(key), createdAt: new Date(now()).toISOString() })
          .returning({ id: apiKeys.id, createdAt: apiKeys.createdAt })
        if (!row) throw new Error('the new key was not returned')
        return { id: row.id, name, role, workspaceId: home.id, workspace: home.name, createdAt: new Date(row.createdAt).toISOString(), key }
      })
      forget()
      return created
    },

    list: async (workspaceId) => {
      const rows = await db
        .select({
          id: apiKeys.id,
          name: apiKeys.name,
          role: apiKeys.role,
          workspaceId: apiKeys.workspaceId,
          workspace: workspaces.name,
          createdAt: apiKeys.createdAt,
        })
        .from(apiKeys)
        .innerJoin(workspaces, eq(workspaces.id, apiKeys.workspaceId))
        .where(and(isNull(apiKeys.revokedAt), workspaceId === undefined ? undefined : eq(apiKeys.workspaceId, workspaceId)))
        .orderBy(asc(apiKeys.id))
      return rows.map((row) => ({ ...row, createdAt: new Date(row.createdAt).toISOString() }))
    },

    revoke: async (id, workspaceId) => {
      await db.transaction(async (tx) => {
        await tx.execute('lock table api_keys in share row exclusive mode')
        const [key] = await tx
          .select({ role: apiKeys.role, workspaceId: apiKeys.workspaceId })
          .from(apiKeys)
          .where(and(eq(apiKeys.id, id), isNull(apiKeys.revokedAt), workspaceId === undefined ? undefined : eq(apiKeys.workspaceId, workspaceId)))
        if (!key) throw new RunplaneError('NOT_FOUND', `There is no key with the id '${id}'. GET /keys lists the keys that there are.`)
        const isDefault = key.workspaceId === DEFAULT_WORKSPACE_ID
        const ofDefault = isDefault ? eq(apiKeys.workspaceId, DEFAULT_WORKSPACE_ID) : undefined
        const [other] = await tx
          .select({ id: apiKeys.id })
          .from(apiKeys)
          .where(and(ne(apiKeys.id, id), eq(apiKeys.role, 'admin'), isNull(apiKeys.revokedAt), ofDefault))
          .limit(1)
        if (!other && key.role === 'admin' && !adminHash) {
          throw new RunplaneError(
            'INVALID_STATE_TRANSITION',
            `This is the last admin key${isDefault ? ' of the default workspace' : ''}: without it nobody could manage the keys, or anybody could do anything. ` +
              'Make another one first (POST /keys, or npx runplane keys create).',
          )
        }
        await tx
          .update(apiKeys)
          .set({ revokedAt: new Date(now()).toISOString() })
          .where(eq(apiKeys.id, id))
      })
      forget()
    },

    authenticate: (key) => {
      const hash = sha256(key)
      if (adminHash && timingSafeEqual(hash, adminHash)) return { workspaceId: DEFAULT_WORKSPACE_ID, role: 'admin', keyName: 'ADMIN_API_KEY' }
      if (!KEY_PATTERN.test(key)) return undefined
      return holders.get(hash.toString('base64'), () => find(hash))
    },

    lastHolder: (key) => holders.last(sha256(key).toString('base64')),

    exist: () => {
      if (adminHash) return true
      return existence.get('', async () => {
        const [row] = await db.select({ id: apiKeys.id }).from(apiKeys).where(isNull(apiKeys.revokedAt)).limit(1)
        return row !== undefined
      })
    },
  }
}
