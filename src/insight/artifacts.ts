/**
 * Contents of artifacts, by their SHA-256, once a workspace: small ones in the database, others in the store.
 * `run_artifacts` says which runs need which content. A row of it is written last, so that no run ever points at what is not there;
 * a content that no run needs is removed, but not within an hour of the last time that it was stored, for then its row may be on its way.
 */
import { createHash, randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import type { Config } from '../config.js'
import type { Sql } from '../db/client.js'
import { RunplaneError } from '../errors.js'
import { type Blobs, draftsFolder } from './blobs.js'

export interface ArtifactInput {
  bytes: AsyncIterable<Buffer>
  mediaType: string
  /** Refused where the bytes have another. */
  sha256?: string | undefined
}

export interface StoredArtifact {
  sha256: string
  bytes: number
}

export interface OpenArtifact {
  bytes: number
  mediaType: string
  body: Readable
}

export interface Artifacts {
  /** @throws PAYLOAD_TOO_LARGE, and VALIDATION_ERROR for bytes that do not have the given SHA-256; then nothing is stored. */
  store(workspaceId: string, runKey: string, input: ArtifactInput): Promise<StoredArtifact>
  /** What the run needs, oldest first. */
  list(runKey: string): Promise<(StoredArtifact & { mediaType: string })[]>
  open(workspaceId: string, sha256: string): Promise<OpenArtifact | undefined>
  /** Whether the run needs it: what one run stored is not for the readers of another. */
  has(runKey: string, sha256: string): Promise<boolean>
  /** Removes contents that no run needs, and what killed processes left on the disk. Any number of instances may do so at once. */
  sweep(): Promise<void>
}

export type ArtifactsConfig = Pick<Config, 'DATA_DIR' | 'ARTIFACT_INLINE_BYTES' | 'MAX_ARTIFACT_BYTES'>

export function createArtifacts({ sql, blobs, config }: { sql: Sql; blobs: Blobs; config: ArtifactsConfig }): Artifacts {
  const drafts = draftsFolder(config)

  return {
    async store(workspaceId, runKey, { bytes, mediaType, sha256 }) {
      const received = await receive(bytes, drafts, config)
      try {
        if (sha256 !== undefined && sha256 !== received.sha256) {
          throw new RunplaneError('VALIDATION_ERROR', `The content has the SHA-256 ${received.sha256}, not ${sha256}. Send it again.`)
        }
        const { inline, path } = received
        await sql`
          insert into artifacts (workspace_id, sha256, bytes, media_type, content)
          values (${workspaceId}, ${received.sha256}, ${received.bytes}, ${mediaType}, decode(${inline?.toString('base64') ?? null}::text, 'base64'))
          on conflict (workspace_id, sha256) do update set created_at = clock_timestamp(), content = coalesce(excluded.content, artifacts.content)`
        // Also where it is there already: it may have been lost, and nobody else knows what was in it.
        if (path !== undefined) await blobs.put(blobName(workspaceId, received.sha256), createReadStream(path))
        await sql`
          insert into run_artifacts (run_key, sha256) values (${runKey}, ${received.sha256}) on conflict do nothing`
        return { sha256: received.sha256, bytes: received.bytes }
      } finally {
        if (received.path !== undefined) await rm(received.path, { force: true })
      }
    },

    async list(runKey) {
      return sql<(StoredArtifact & { mediaType: string })[]>`
        select a.sha256, a.bytes, a.media_type as "mediaType" from run_artifacts needed
        join runs r on r.key = needed.run_key join artifacts a on a.workspace_id = r.workspace_id and a.sha256 = needed.sha256
        where needed.run_key = ${runKey} order by a.created_at, a.sha256`
    },

    async open(workspaceId, sha256) {
      const [row] = await sql<{ bytes: number; media_type: string; content: string | null }[]>`
        select bytes, media_type, encode(content, 'base64') as content from artifacts where workspace_id = ${workspaceId} and sha256 = ${sha256}`
      if (!row) return undefined
      const body =
        row.content === null ? await blobs.get(blobName(workspaceId, sha256)) : Readable.from([Buffer.from(row.content, 'base64')], { objectMode: false })
      return body && { bytes: row.bytes, mediaType: row.media_type, body }
    },

    async has(runKey, sha256) {
      const [row] = await sql`select from run_artifacts where run_key = ${runKey} and sha256 = ${sha256}`
      return row !== undefined
    },

    async sweep() {
      await removeOld(drafts)
      for (let removed = SWEEP_ROWS; removed === SWEEP_ROWS; ) {
        removed = await sql.begin(async (tx) => {
          const rows = await tx<{ workspace_id: string; sha256: string; stored: boolean }[]>`
            delete from artifacts where (workspace_id, sha256) in (
              select a.workspace_id, a.sha256 from artifacts a
              where a.created_at < clock_timestamp() - interval '1 hour' and not exists (select from run_artifacts where sha256 = a.sha256)
              limit ${SWEEP_ROWS} for update skip locked
            ) returning workspace_id, sha256, content is null as stored`
          // Before the commit: whoever stores the same content waits for it, and stores it after that.
          for (const row of rows) if (row.stored) await blobs.remove(blobName(row.workspace_id, row.sha256))
          return rows.length
        })
      }
    },
  }
}

/** Nothing takes a day to arrive. */
const MAX_DRAFT_AGE_MS = 86_400_000

async function removeOld(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    const path = join(folder, name)
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Date.now() }))
    if (mtimeMs < Date.now() - MAX_DRAFT_AGE_MS) await rm(path, { force: true })
  }
}

/** Contents that one transaction removes. */
const SWEEP_ROWS = 100

const blobName = (workspaceId: string, sha256: string) => `artifacts/${workspaceId}/${sha256.slice(0, 2)}/${sha256}`

interface Received extends StoredArtifact {
  inline?: Buffer
  /** A file of its own, the receiver's to remove. */
  path?: string
}

/** Reads all of it, small ones into memory, others into a file: the name of a content is not known before its end. */
async function receive(bytes: AsyncIterable<Buffer>, folder: string, config: ArtifactsConfig): Promise<Received> {
  const hash = createHash('sha256')
  const pieces: Buffer[] = []
  let count = 0
  let path: string | undefined
  let file: Awaited<ReturnType<typeof open>> | undefined
  try {
    for await (const piece of bytes) {
      count += piece.length
      if (count > config.MAX_ARTIFACT_BYTES) {
        throw new RunplaneError(
          'PAYLOAD_TOO_LARGE',
          `An artifact may have ${config.MAX_ARTIFACT_BYTES} bytes (MAX_ARTIFACT_BYTES). Store it elsewhere and tell its uri.`,
        )
      }
      hash.update(piece)
      if (!file && count > config.ARTIFACT_INLINE_BYTES) {
        await mkdir(folder, { recursive: true })
        path = join(folder, randomUUID())
        file = await open(path, 'wx', 0o600)
        for (const held of pieces.splice(0)) await writeAll(file, held)
      }
      if (file) await writeAll(file, piece)
      else pieces.push(Buffer.from(piece))
    }
  } catch (error) {
    await file?.close()
    if (path !== undefined) await rm(path, { force: true })
    throw error
  }
  await file?.close()
  return { sha256: hash.digest('hex'), bytes: count, ...(path === undefined ? { inline: Buffer.concat(pieces) } : { path }) }
}

async function writeAll(file: Awaited<ReturnType<typeof open>>, bytes: Buffer): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at)).bytesWritten
}
