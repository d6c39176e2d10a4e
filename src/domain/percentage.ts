/** Percentages are from 0 to 100, whatever was told. */

export function clampPercentage(value: number): number {
  return Math.min(100, Math.max(0, value))
}

/** From what a progress report tells: the percentage itself, else the current of the total; undefined where it tells neither. */
export function percentageOf({
  percentage,
  current,
  total,
}: {
  percentage?: number | undefined
  current?: number | undefined
  total?: number | undefined
}): number | undefined {
  const value = percentage ?? (current !== undefined && total !== undefined && total > 0 ? (current / total) * 100 : Number.NaN)
  return Number.isNaN(value) ? undefined : clampPercentage(value)
}
