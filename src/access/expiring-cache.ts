/**
 * Answers that may be a little old: each is used for `ttlMs` and then asked for again, one question at a time per name.
 * Bounded: the entry that was used least recently goes first. A question that failed is not remembered, but what was known before it is.
 */
export interface ExpiringCache<Value> {
  /** What is known comes at once: a promise for each costs a busy service more than the look-up. */
  get(name: string, load: () => Promise<Value>): Value | Promise<Value>
  /** What was known last, however old; undefined where nothing was. */
  last(name: string): Value | undefined
  clear(): void
}

interface Entry<Value> {
  /** A question until it is answered. */
  value: Value | Promise<Value>
  last: Value | undefined
  expiresAtMs: number
}

export function createExpiringCache<Value>({ ttlMs, maxEntries, now }: { ttlMs: number; maxEntries: number; now: () => number }): ExpiringCache<Value> {
  // A Map keeps the order of insertion, so the first entry is the one to drop.
  const entries = new Map<string, Entry<Value>>()
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
      const entry: Entry<Value> = { value: asked, last: known?.last, expiresAtMs: now() + ttlMs }
      entries.set(name, entry)
      if (entries.size > maxEntries)
        for (const oldest of entries.keys()) {
          entries.delete(oldest)
          break
        }
      asked.then(
        (value) => {
          entry.value = value
          entry.last = value
        },
        () => {
          if (entry.last === undefined && entries.get(name) === entry) entries.delete(name)
          entry.expiresAtMs = Number.NEGATIVE_INFINITY
        },
      )
      return asked
    },
    last: (name) => entries.get(name)?.last,
    clear: () => entries.clear(),
  }
}
