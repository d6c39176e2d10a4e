/** Records without the members that say nothing. The names of what is given are ours, never a payload's: they are assigned. */

export function withoutUndefined(record: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const kept: Record<string, unknown> = {}
  for (const name in record) if (record[name] !== undefined) kept[name] = record[name]
  return kept
}

/** A record whose members may be absent, where they may be null. */
export type WithoutNull<T> = { [K in keyof T as null extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as null extends T[K] ? K : never]?: NonNullable<T[K]>
}

export function withoutNull<T extends object>(record: T): WithoutNull<T>
export function withoutNull(record: Record<string, unknown>): Record<string, unknown> {
  const kept: Record<string, unknown> = {}
  for (const name in record) if (record[name] !== null) kept[name] = record[name]
  return kept
}
