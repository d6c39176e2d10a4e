/** A list in a query: texts with commas between, and spaces where they please. @returns them as they are, the empty ones too. */
export function partsOf(list: string): string[] {
  return list.split(',').map((part) => part.trim())
}

/** The event types that a query asks for, under either name; undefined: all. */
export function typesOf({ type, types = type }: { type?: string; types?: string }): string[] | undefined {
  return types === undefined ? undefined : partsOf(types)
}
