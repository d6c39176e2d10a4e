/**
 * Unpacking up to a fault. A zlib stream that fails takes with it what it had unpacked and nobody had read yet; to say where a bundle is cut or
 * damaged, that is just what is wanted. For bundles that have failed only: it is slower than a stream.
 */
import { createReadStream } from 'node:fs'
import type { Transform } from 'node:stream'
import { createGunzip, type Zlib } from 'node:zlib'

/** Input that is unpacked at once: at most a thousandfold of it is held (deflate packs no better than 1032:1). */
const STEP_BYTES = 4096

/** What is packed is cut or damaged. */
export class PackingError extends Error {
  override readonly name = 'PackingError'
}

/** @param engine a new one: `createInflateRaw()`, `createGunzip()` */
export function createInflation(engine: Transform & Zlib) {
  let fault: NodeJS.ErrnoException | undefined
  let failedAt = 0
  return {
    /** Why it ended before its end: Z_DATA_ERROR, or Z_BUF_ERROR where the input ended first. */
    get fault() {
      return fault
    },
    /** Where in the input the step begins that failed. */
    get failedAt() {
      return failedAt
    },
    /** Bytes of the input up to the end of what was packed; more may follow. */
    get usedBytes() {
      return engine.bytesWritten
    },
    /** All that can be unpacked, in order. Does not throw for what is packed wrongly: see `fault`. @param fineFrom from here on byte by byte */
    async *pieces(input: AsyncIterable<Buffer>, fineFrom = Number.POSITIVE_INFINITY): AsyncGenerator<Buffer> {
      let unpacked: Buffer[] = []
      let isOver = false
      let wake = (): void => {}
      const over = (error?: NodeJS.ErrnoException): void => {
        isOver = true
        fault = error
        wake()
      }
      engine.on('data', (piece: Buffer) => void unpacked.push(piece))
      engine.on('error', over).on('end', () => over())
      // What follows the packed bytes ends the engine, and then a write is never called back.
      const done = (work: (called: () => void) => void) =>
        new Promise<void>((resolve) => {
          wake = resolve
          work(resolve)
        })
      try {
        for await (const piece of input) {
          for (let at = 0; at < piece.length; ) {
            const step = piece.subarray(at, at + (failedAt < fineFrom ? Math.min(STEP_BYTES, fineFrom - failedAt) : 1))
            await done((called) => engine.write(step, called))
            yield* unpacked
            unpacked = []
            if (isOver) return
            at += step.length
            failedAt += step.length
          }
        }
        await done(() => engine.end())
        yield* unpacked
      } finally {
        engine.destroy()
      }
    },
  }
}

/**
 * What can be unpacked after the first `skip` bytes, to the last byte before the fault.
 * @param open the packed bytes, from their beginning, as often as it is called
 */
export async function* unpackedToFault(open: () => Promise<AsyncIterable<Buffer>>, engine: () => Transform & Zlib, skip: number): AsyncGenerator<Buffer> {
  let given = skip
  // Damage fails a whole step, with what was right in it: the second time that step is taken in bytes.
  for (let fineFrom: number | undefined; ; ) {
    const inflation = createInflation(engine())
    let passed = 0
    for await (const piece of inflation.pieces(await open(), fineFrom)) {
      const fresh = piece.subarray(Math.max(0, given - passed))
      passed += piece.length
      given = Math.max(given, passed)
      if (fresh.length > 0) yield fresh
    }
    if (fineFrom !== undefined || inflation.fault?.code !== 'Z_DATA_ERROR') return
    fineFrom = inflation.failedAt
  }
}

/** The content of a gzipped file, to the last byte that is right. @throws PackingError */
export async function* gunzipped(path: string, readBytes: number): AsyncGenerator<Buffer> {
  const file = createReadStream(path, { highWaterMark: readBytes })
  const content = file.pipe(createGunzip({ chunkSize: readBytes }))
  file.on('error', (error) => content.destroy(error))
  let given = 0
  try {
    for await (const piece of content) {
      given += piece.length
      yield piece
    }
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && String(error.code).startsWith('Z_'))) throw error
    yield* unpackedToFault(async () => createReadStream(path), createGunzip, given)
    throw new PackingError(`the gzip is cut or damaged here: ${error.message}`)
  } finally {
    file.destroy()
    content.destroy()
  }
}
