/** The bundle that retention keeps of a run before it deletes: in the store, whole, or an error. `POST /runs/import` takes it. */
import type { Blobs } from './blobs.js'
import type { Exporter } from './export.js'

const LINE_FEED = 0x0a
const MANIFEST = Buffer.from('{"kind":"manifest"')

/**
 * A bundle of the same head that is there already is kept: since it was made, the run can only have lost events, to a trim that has ended or was cut off.
 * @returns the name of the blob
 */
export function createRetentionExport({ exporter, blobs }: { exporter: Exporter; blobs: Blobs }) {
  return async (run: { key: string; id: string; workspaceId: string; lastSeq: number }): Promise<string> => {
    const name = `retention/${run.workspaceId}/${run.key}-${run.lastSeq}.ndjson`
    const before = await blobs.get(name)
    if (before) {
      before.destroy()
      return name
    }
    const bundle = await exporter.open(run.workspaceId, run.id, { format: 'ndjson', canonical: true, raw: true, artifacts: true, profile: 'full' })
    await blobs.put(name, whole(bundle.stream()))
    return name
  }
}

/** A bundle that ends without its manifest is none: then nothing is stored. */
async function* whole(bytes: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let lastLine = Buffer.alloc(0)
  let isComplete = false
  for await (const chunk of bytes) {
    if (chunk.length === 0) continue
    if (isComplete) lastLine = Buffer.alloc(0)
    isComplete = chunk[chunk.length - 1] === LINE_FEED
    const start = chunk.lastIndexOf(LINE_FEED, chunk.length - 2) + 1
    lastLine = Buffer.concat([start === 0 ? lastLine : Buffer.alloc(0), chunk.subarray(start)]).subarray(0, MANIFEST.length)
    yield chunk
  }
  if (!isComplete || !lastLine.equals(MANIFEST)) throw new Error('the bundle of a run that retention would delete is not complete')
}
