/** A list in a query: texts with commas between, and spaces where they please. @returns them as they are, the empty ones too. */
export function partsOf(list: string): string[] {
  return list.split(',').map((part) => part.trim())
}
