/**
 * The store for what is too large for the database: files under DATA_DIR/blobs, or objects of an S3-compatible store.
 * A blob is there whole or not at all: a file gets its name when it is complete and flushed, an object when its upload is completed.
 */
import { randomUUID } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, open, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type Config, ConfigError } from '../config.js'
import { createS3Blobs } from './blobs-s3.js'

export interface Blobs {
  /** Replaces what has the name. The name: a-z, 0-9, `.`, `_`, `-` and `/` between. */
  put(name: string, bytes: AsyncIterable<Buffer>): Promise<void>
  get(name: string): Promise<Readable | undefined>
  /** Nothing happens where there is none. */
  remove(name: string): Promise<void>
}

export type BlobsConfig = Pick<Config, 'DATA_DIR' | 'S3_ENDPOINT' | 'S3_REGION' | 'S3_BUCKET' | 'S3_ACCESS_KEY_ID' | 'S3_SECRET_ACCESS_KEY'>

const NAME = /^[a-z0-9_-][a-z0-9._-]*(?:\/[a-z0-9_-][a-z0-9._-]*)*$/

/** @throws ConfigError where the settings of the S3-compatible store are not complete. */
export function createBlobs(config: BlobsConfig): Blobs {
  const { S3_ENDPOINT: endpoint, S3_REGION: region, S3_BUCKET: bucket, S3_ACCESS_KEY_ID: accessKeyId, S3_SECRET_ACCESS_KEY: secretAccessKey } = config
  const given = [endpoint, bucket, accessKeyId, secretAccessKey].filter((value) => value !== undefined).length
  if (given > 0 && given < 4) {
    throw new ConfigError('S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY go together: set all four, or none to store in DATA_DIR.')
  }
  const blobs =
    endpoint && bucket && accessKeyId && secretAccessKey
      ? createS3Blobs({ endpoint, region, bucket, accessKeyId, secretAccessKey })
      : createFileBlobs(join(config.DATA_DIR, 'blobs'), draftsFolder(config))
  return {
    put: async (name, bytes) => blobs.put(checked(name), bytes),
    get: async (name) => blobs.get(checked(name)),
    remove: async (name) => blobs.remove(checked(name)),
  }
}

function checked(name: string): string {
  if (!NAME.test(name)) throw new TypeError(`'${name}' is no name of a blob`)
  return name
}

/** Where bytes lie while they arrive. A process that is killed leaves its own there; see artifacts.ts, which removes old ones. */
export function draftsFolder(config: Pick<Config, 'DATA_DIR'>): string {
  return join(config.DATA_DIR, 'drafts')
}

function createFileBlobs(folder: string, drafts: string): Blobs {
  return {
    async put(name, bytes) {
      const path = join(folder, name)
      await mkdir(dirname(path), { recursive: true })
      await mkdir(drafts, { recursive: true })
      const draft = join(drafts, randomUUID())
      try {
        await pipeline(bytes, createWriteStream(draft, { flags: 'wx', mode: 0o600, flush: true }))
        await rename(draft, path)
        await flushFolder(dirname(path))
      } catch (error) {
        await rm(draft, { force: true })
        throw error
      }
    },
    async get(name) {
      const path = join(folder, name)
      // Opened before it is answered: what is removed meanwhile can still be read to its end.
      const file = await open(path).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return undefined
        throw error
      })
      return file && createReadStream(path, { fd: file })
    },
    async remove(name) {
      await rm(join(folder, name), { force: true })
    },
  }
}

/** A name is durable when its folder is (POSIX rename). */
async function flushFolder(path: string): Promise<void> {
  const folder = await open(path)
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
