/**
 * Blobs in an S3-compatible store, addressed by path (https://host/bucket/name), as AWS, MinIO, R2 and Ceph take it.
 * A small blob is one PUT; a larger one an upload in parts, so that memory holds one part and its length need not be known before.
 */
import type { Readable } from 'node:stream'
import { AwsV4Signer } from 'aws4fetch'
import { Agent, request } from 'undici'

export interface S3Options {
  endpoint: string
  region: string
  bucket: string
  accessKeyId: string
  secretAccessKey: string
  /** Bytes of a part, 5 MiB at least (the last may be less), 10,000 parts at most: 160 GB. */
  partBytes?: number
}

const PART_BYTES = 16_777_216
/** Of an answer that is an error or XML. */
const MAX_ANSWER_BYTES = 65_536
const TRIES = 4

class S3Error extends Error {
  override readonly name = 'S3Error'
  readonly status: number
  constructor(what: string, status: number, answer: string) {
    super(`${what}: the store answered ${status} ${/<Code>([^<]*)<\/Code>/.exec(answer)?.[1] ?? ''}`.trim())
    this.status = status
  }
}

export function createS3Blobs({ endpoint, region, bucket, accessKeyId, secretAccessKey, partBytes = PART_BYTES }: S3Options) {
  const base = `${endpoint.replace(/\/$/, '')}/${bucket}/`
  const dispatcher = new Agent({ connections: 32 })

  async function send(method: 'GET' | 'PUT' | 'POST' | 'DELETE', path: string, body?: Buffer) {
    const signer = new AwsV4Signer({
      method,
      url: base + path,
      ...(body && { body: new Uint8Array(body) }),
      accessKeyId,
      secretAccessKey,
      service: 's3',
      region,
    })
    const { url, headers } = await signer.sign()
    return request(url, { method, headers: Object.fromEntries(headers), body: body ?? null, dispatcher })
  }

  /** What can be sent again, is, where the store or the way to it fails for the moment. */
  async function call(what: string, ...args: Parameters<typeof send>): Promise<{ text: string; etag: string }> {
    for (let attempt = 1; ; attempt++) {
      try {
        const { statusCode, headers, body } = await send(...args)
        const text = await textOf(body)
        // Completing an upload may fail after the 200 was sent (AWS, CompleteMultipartUpload).
        if (statusCode < 300 && !/<Error>/.test(text)) return { text, etag: String(headers.etag ?? '') }
        throw new S3Error(what, statusCode, text)
      } catch (error) {
        const passing = !(error instanceof S3Error) || error.status >= 500 || error.status === 429 || error.status === 200
        if (!passing || attempt === TRIES) throw error
        await new Promise((resolve) => setTimeout(resolve, 100 * 4 ** attempt))
      }
    }
  }

  async function putInParts(name: string, parts: AsyncIterable<Buffer>): Promise<void> {
    const created = await call(`The upload of ${name}`, 'POST', `${name}?uploads=`)
    const uploadId = encodeURIComponent(unescaped(/<UploadId>([^<]+)<\/UploadId>/.exec(created.text)?.[1] ?? ''))
    try {
      const etags: string[] = []
      for await (const part of parts) {
        etags.push((await call(`Part ${etags.length + 1} of ${name}`, 'PUT', `${name}?partNumber=${etags.length + 1}&uploadId=${uploadId}`, part)).etag)
      }
      const list = etags.map((etag, index) => `<Part><PartNumber>${index + 1}</PartNumber><ETag>${escaped(etag)}</ETag></Part>`)
      const complete = `<CompleteMultipartUpload>${list.join('')}</CompleteMultipartUpload>`
      await call(`The end of the upload of ${name}`, 'POST', `${name}?uploadId=${uploadId}`, Buffer.from(complete))
    } catch (error) {
      // Parts of an upload that is not aborted are paid for.
      await call(`Giving up ${name}`, 'DELETE', `${name}?uploadId=${uploadId}`).catch(() => {})
      throw error
    }
  }

  return {
    async put(name: string, bytes: AsyncIterable<Buffer>): Promise<void> {
      const parts = inParts(bytes, partBytes)
      const first = await parts.next()
      if (first.done || first.value.length < partBytes) {
        await call(`The upload of ${name}`, 'PUT', name, first.value ?? Buffer.alloc(0))
        return
      }
      await putInParts(name, withFirst(first.value, parts))
    },
    async get(name: string): Promise<Readable | undefined> {
      const { statusCode, body } = await send('GET', name)
      if (statusCode === 200) return body
      const text = await textOf(body)
      if (statusCode === 404) return undefined
      throw new S3Error(`Reading ${name}`, statusCode, text)
    },
    async remove(name: string): Promise<void> {
      await call(`Removing ${name}`, 'DELETE', name)
    },
  }
}

async function textOf(body: AsyncIterable<Buffer>): Promise<string> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of body) {
    bytes += piece.length
    if (bytes > MAX_ANSWER_BYTES) break
    pieces.push(piece)
  }
  return Buffer.concat(pieces).toString('utf8')
}

async function* inParts(bytes: AsyncIterable<Buffer>, size: number): AsyncGenerator<Buffer> {
  let pieces: Buffer[] = []
  let held = 0
  for await (let piece of bytes) {
    while (held + piece.length >= size) {
      yield Buffer.concat([...pieces, piece.subarray(0, size - held)])
      piece = piece.subarray(size - held)
      pieces = []
      held = 0
    }
    // A copy: whoever gives the bytes may use their memory again.
    if (piece.length > 0) pieces.push(Buffer.from(piece))
    held += piece.length
  }
  if (held > 0) yield Buffer.concat(pieces)
}

async function* withFirst(first: Buffer, rest: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  yield first
  yield* rest
}

const escaped = (text: string) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`)
const unescaped = (text: string) => text.replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&quot;', '"').replaceAll('&amp;', '&')
