/** Which methods a path takes, for the 405 of a path that is known and a method that is not. Only asked after a miss. */
export interface RouteMatcher {
  add(methods: string[], pattern: string): void
  /** Sorted; empty for an unknown path. */
  methodsOf(path: string): string[]
}

export function createRouteMatcher(): RouteMatcher {
  const methodsByPattern = new Map<string, Set<string>>()
  return {
    add: (methods, pattern) => {
      // A catch-all (the preflights of CORS, static files) makes no path known.
      if (pattern.includes('*')) return
      const known = methodsByPattern.get(pattern) ?? new Set<string>()
      for (const method of methods) known.add(method)
      methodsByPattern.set(pattern, known)
    },
    methodsOf: (path) => {
      const methods = [...methodsByPattern].flatMap(([pattern, known]) => (matches(pattern, path) ? [...known] : []))
      return [...new Set(methods)].sort()
    },
  }
}

function matches(pattern: string, path: string): boolean {
  const wanted = pattern.split('/')
  const given = path.split('/')
  return wanted.length === given.length && wanted.every((part, index) => (part.startsWith(':') ? given[index] !== '' : part === given[index]))
}
