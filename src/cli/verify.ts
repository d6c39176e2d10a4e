/** `runplane verify`: the checks of an import, with no service and no database. Exits with 1 where a bundle is not whole. */
import { Command } from 'commander'
import { BundleError, type Manifest } from '../insight/bundle.js'
import { scanBundle } from '../insight/bundle-reader.js'

export function verifyCommand(): Command {
  return new Command('verify')
    .description('check bundles: that each byte is as it was exported, and nothing is missing')
    .argument('<file...>', 'what GET /runs/:id/export answered: zip, NDJSON or JSON, also gzipped')
    .option('--json', 'print a JSON object a line')
    .action(async (files: string[], { json }: { json?: true }) => {
      for (const file of files) {
        const verdict = await verify(file)
        if ('error' in verdict) process.exitCode = 1
        if (json) console.log(JSON.stringify({ bundle: file, ...verdict }))
        else if ('error' in verdict) console.error(`${file}: refused. ${verdict.error}`)
        else console.log(`${file}: ${describe(verdict.manifest)}`)
      }
    })
}

type Verdict = { ok: true; manifest: Manifest } | { ok: false; file?: string; seq?: number; error: string }

async function verify(path: string): Promise<Verdict> {
  try {
    for await (const part of scanBundle(path)) if (part.kind === 'manifest') return { ok: true, manifest: part.manifest }
    return { ok: false, error: 'it has no manifest' }
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    if (!(error instanceof BundleError)) return { ok: false, error: message }
    return { ok: false, file: error.file, ...(error.seq !== undefined && { seq: error.seq }), error: message }
  }
}

function describe({ runId, profile, complete, counts, ranges, headSeq, omissions }: Manifest): string {
  const range = ranges.canonical && counts.canonical > 0 ? ` (${ranges.canonical.fromSeq} to ${ranges.canonical.toSeq} of ${headSeq})` : ''
  const parts = [
    `whole. Run '${runId}', ${counts.canonical} events${range}, ${counts.raw} raw events, ${counts.artifacts} artifacts, profile ${profile}`,
    complete ? undefined : 'it holds a part of the run',
    omissions.length > 0 ? `left out: ${omissions.map(({ what, reason }) => `${what.replace('_', ' ')} (${reason})`).join(', ')}` : undefined,
  ]
  return parts.filter((part) => part !== undefined).join('; ')
}
