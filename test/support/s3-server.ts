/** A small store that speaks as much of S3 as is used here: objects, uploads in parts, and signatures, which it checks. */
import { createHash, createHmac } from 'node:crypto'
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface S3Server {
  url: string
  bucket: string
  accessKeyId: string
  secretAccessKey: string
  region: string
  objects: Map<string, Buffer>
  /** Uploads that are neither completed nor aborted. */
  uploads: Map<string, Map<number, Buffer>>
  requests: string[]
  /** What is answered with 503 instead, once each. */
  failures: string[]
  close(): Promise<void>
}

export async function startS3(): Promise<S3Server> {
  const objects = new Map<string, Buffer>()
  const uploads = new Map<string, Map<number, Buffer>>()
  const requests: string[] = []
  const failures: string[] = []
  const server = createServer(async (request, response) => {
    const body = await bodyOf(request)
    const url = new URL(request.url ?? '/', 'http://s3')
    const line = `${request.method} ${url.pathname}${url.search}`
    requests.push(line)
    const answer = (status: number, text = '', headers: Record<string, string> = {}) => response.writeHead(status, headers).end(text)
    if (!isSigned(request, url, body, store)) return answer(403, '<Error><Code>SignatureDoesNotMatch</Code></Error>')
    const failure = failures.findIndex((start) => line.startsWith(start))
    if (failure >= 0) {
      failures.splice(failure, 1)
      return answer(503, '<Error><Code>SlowDown</Code></Error>')
    }
    if (!url.pathname.startsWith(`/${store.bucket}/`)) return answer(404, '<Error><Code>NoSuchBucket</Code></Error>')
    const key = decodeURIComponent(url.pathname.slice(store.bucket.length + 2))
    const uploadId = url.searchParams.get('uploadId')
    const etag = `"${createHash('md5').update(body).digest('hex')}"`
    if (request.method === 'POST' && url.searchParams.has('uploads')) {
      const id = `upload/${uploads.size + 1}+=`
      uploads.set(id, new Map())
      return answer(200, `<InitiateMultipartUploadResult><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`)
    }
    if (uploadId !== null) {
      const parts = uploads.get(uploadId)
      if (!parts) return answer(404, '<Error><Code>NoSuchUpload</Code></Error>')
      if (request.method === 'PUT') {
        parts.set(Number(url.searchParams.get('partNumber')), body)
        return answer(200, '', { etag })
      }
      uploads.delete(uploadId)
      if (request.method === 'DELETE') return answer(204)
      const numbers = Array.from(body.toString().matchAll(/<PartNumber>(\d+)<\/PartNumber>/g), ([, number]) => Number(number))
      objects.set(key, Buffer.concat(numbers.map((number) => parts.get(number) ?? Buffer.alloc(0))))
      return answer(200, '<CompleteMultipartUploadResult/>')
    }
    if (request.method === 'PUT') {
      objects.set(key, body)
      return answer(200, '', { etag })
    }
    if (request.method === 'DELETE') {
      objects.delete(key)
      return answer(204)
    }
    const object = objects.get(key)
    if (!object) return answer(404, '<Error><Code>NoSuchKey</Code></Error>')
    response.writeHead(200, { 'content-length': object.length }).end(object)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const store: S3Server = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    bucket: 'artifacts-of-tests',
    accessKeyId: 'AKIATEST',
    secretAccessKey: 'a secret of the test',
    region: 'eu-central-1',
    objects,
    uploads,
    requests,
    failures,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
  return store
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = []
  for await (const piece of request) pieces.push(piece)
  return Buffer.concat(pieces)
}

/** Signature Version 4, computed anew from what has arrived. */
function isSigned(request: IncomingMessage, url: URL, body: Buffer, store: Pick<S3Server, 'accessKeyId' | 'secretAccessKey' | 'region'>): boolean {
  const parsed = /Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})/.exec(
    request.headers.authorization ?? '',
  )
  if (!parsed) return false
  const [, keyId, date = '', region = '', names = '', signature] = parsed
  if (keyId !== store.accessKeyId || region !== store.region) return false
  const contentHash = String(request.headers['x-amz-content-sha256'])
  if (contentHash !== 'UNSIGNED-PAYLOAD' && contentHash !== createHash('sha256').update(body).digest('hex')) return false
  const encode = (text: string) => encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`)
  const query = [...url.searchParams].map(([name, value]) => `${encode(name)}=${encode(value)}`).sort()
  const headers = names.split(';').map((name) => `${name}:${String(request.headers[name]).trim().replace(/ +/g, ' ')}\n`)
  const canonical = [request.method, url.pathname, query.join('&'), headers.join(''), names, contentHash].join('\n')
  const hmac = (key: string | Buffer, text: string) => createHmac('sha256', key).update(text).digest()
  const toSign = [
    'AWS4-HMAC-SHA256',
    request.headers['x-amz-date'],
    `${date}/${region}/s3/aws4_request`,
    createHash('sha256').update(canonical).digest('hex'),
  ].join('\n')
  const key = ['s3', 'aws4_request'].reduce((before, part) => hmac(before, part), hmac(hmac(`AWS4${store.secretAccessKey}`, date), region))
  return createHmac('sha256', key).update(toSign).digest('hex') === signature
}
