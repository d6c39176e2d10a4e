/**
 * Answers that may be a little old: each is used for `ttlMs` and then asked for again, one question at a time per name.
 * Bounded: the entry that was used least recently goes first. A question that failed is not remembered.
 */
export interface ExpiringCache<Value> {
  /** What is known comes at once: a promise for each costs a busy service more than the look-up. */
  get(name: string, load: () => Promise<Value>): Value | Promise<Value>
  clear(): void
}

export function createExpiringCache<Value>({ ttlMs, maxEntries, now }: { ttlMs: number; maxEntries: number; now: () => number }): ExpiringCache<Value> {
  // A Map keeps the order of insertion, so the first entry is the one to drop.
  const entries = new Map<string, { value: Value | Promise<Value>; expiresAtMs: number }>()
  return {
    get: (name, load) => {
      const known = entries.get(name)
      const isFresh = known !== undefined && known.expiresAtMs > now()
      // The order is that of their use.
      if (maxEntries > 1) entries.delete(name)
      if (isFresh) {
        if (maxEntries > 1) entries.set(name, known)
        return known.value
      }
      const asked = load()
      const entry: { value: Value | Promise<Value>; expiresAtMs: number } = { value: asked, expiresAtMs: now() + ttlMs }
      entries.set(name, entry)
      if (entries.size > maxEntries)
        for (const oldest of entries.keys()) {
          entries.delete(oldest)
          break
        }
      asked.then(
        (value) => {
          entry.value = value
        },
        () => {
          if (entries.get(name) === entry) entries.delete(name)
        },
      )
      return asked
    },
    clear: () => entries.clear(),
  }
}
