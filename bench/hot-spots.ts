/** Reads the CPU profiles that V8 wrote into a folder and sums the time that each function spent in itself. */
import { readdir, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'

interface Profile {
  nodes: { id: number; callFrame: { functionName: string; url: string; lineNumber: number } }[]
  samples: number[]
  timeDeltas: number[]
}

export async function hotSpots(folder: string, top = 25): Promise<string> {
  const selfMicros = new Map<string, number>()
  let total = 0
  for (const file of await readdir(folder)) {
    const profile: Profile = JSON.parse(await readFile(join(folder, file), 'utf8'))
    const names = new Map(
      profile.nodes.map(({ id, callFrame: { functionName, url, lineNumber } }) => [id, `${functionName || '(anonymous)'} ${place(url)}:${lineNumber + 1}`]),
    )
    profile.samples.forEach((id, index) => {
      const name = names.get(id) ?? '?'
      const micros = profile.timeDeltas[index] ?? 0
      if (name.startsWith('(idle)')) return
      total += micros
      selfMicros.set(name, (selfMicros.get(name) ?? 0) + micros)
    })
  }
  return [...selfMicros]
    .sort(([, left], [, right]) => right - left)
    .slice(0, top)
    .map(([name, micros]) => `${((100 * micros) / total).toFixed(1).padStart(5)} %  ${(micros / 1000).toFixed(0).padStart(6)} ms  ${name}`)
    .join('\n')
}

function place(url: string): string {
  const dependency = url.lastIndexOf('node_modules/')
  if (dependency >= 0) return url.slice(dependency + 'node_modules/'.length)
  const own = url.indexOf('/dist/')
  return own >= 0 ? url.slice(own + 1) : basename(url)
}
