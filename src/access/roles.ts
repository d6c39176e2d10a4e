/** Who may do what: guest reads, member also posts and controls, admin also manages. Each role may do what the ones before it may. */
export const ROLES = ['guest', 'member', 'admin'] as const
export type Role = (typeof ROLES)[number]

export function roleAllows(held: Role, needed: Role): boolean {
  return ROLES.indexOf(held) >= ROLES.indexOf(needed)
}

/** What a request may do: one role in one workspace. */
export interface Access {
  workspaceId: string
  role: Role
  /** The key's id; none for the key of ADMIN_API_KEY and for the open mode. */
  keyId?: string
  /** For the log, and as the name of a producer that gives none. */
  keyName: string
}
