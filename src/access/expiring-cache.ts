/**
 * Answers that may be a little old: each is used for `ttlMs` and then asked for again, one question at a time per name.
 * Bounded: the entry that was used least recently goes first. A question that failed is not remembered.
 */
export interface ExpiringCache<Value> {
  get(name: string, load: () => Promise<Value>): Promise<Value>
  clear(): void
}

export function createExpiringCache<Value>({ ttlMs, maxEntries, now }: { ttlMs: number; maxEntries: number; now: () => number }): ExpiringCache<Value> {
  // A Map keeps the order of insertion, so the first entry is the one to drop.
  const entries = new Map<string, { value: Promise<Value>; expiresAtMs: number }>()
  return {
    get: (name, load) => {
      const known = entries.get(name)
      entries.delete(name)
      if (known && known.expiresAtMs > now()) {
        entries.set(name, known)
        return known.value
      }
      const entry = { value: load(), expiresAtMs: now() + ttlMs }
      entries.set(name, entry)
      if (entries.size > maxEntries)
        for (const oldest of entries.keys()) {
          entries.delete(oldest)
          break
        }
      entry.value.catch(() => {
        if (entries.get(name) === entry) entries.delete(name)
      })
      return entry.value
    },
    clear: () => entries.clear(),
  }
}
