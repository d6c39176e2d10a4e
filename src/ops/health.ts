/** Whether this instance can serve: each thing that it needs is asked, all at once, none for longer than a limit. */
export type HealthCheck = () => Promise<unknown>

export interface Health {
  ready: boolean
  checks: { name: string; ok: boolean; ms: number; error?: unknown }[]
}

/** @param checks each resolves if its thing works, and rejects with the reason if not. Never throws. */
export async function checkHealth(checks: Record<string, HealthCheck>, { timeoutMs = 2000 }: { timeoutMs?: number } = {}): Promise<Health> {
  const results = await Promise.all(
    Object.entries(checks).map(async ([name, check]) => {
      const startedAt = performance.now()
      let timer: NodeJS.Timeout | undefined
      const timeout = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs)
      })
      try {
        await Promise.race([check(), timeout])
        return { name, ok: true, ms: elapsedMs(startedAt) }
      } catch (error) {
        return { name, ok: false, ms: elapsedMs(startedAt), error }
      } finally {
        clearTimeout(timer)
      }
    }),
  )
  return { ready: results.every((result) => result.ok), checks: results }
}

const elapsedMs = (startedAt: number) => Math.round(performance.now() - startedAt)
