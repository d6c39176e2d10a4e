/** A percentage from what a progress report tells: the percentage itself, else the current of the total. */
export function percentageOf(report: { percentage?: number; current?: number; total?: number }): number | null {
  const { percentage, current, total } = report
  if (typeof percentage === 'number') return clamp(percentage)
  if (typeof current === 'number' && typeof total === 'number' && total > 0) return clamp((current / total) * 100)
  return null
}

function clamp(percentage: number): number | null {
  return Number.isNaN(percentage) ? null : Math.min(100, Math.max(0, percentage))
}
