/**
 * Artifacts of a run: their content is stored first, then the run's log says that there is one (`artifact.created`), as if the client had
 * posted that event itself. What is stored twice under one Idempotency-Key is one artifact.
 */
import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { FastifyRequest } from 'fastify'
import type { Config } from '../../config.js'
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import { uuidv7 } from '../../domain/ids.js'
import { RunplaneError, runNotFound } from '../../errors.js'
import { native } from '../../ingest/formats/native.js'
import { harmless } from '../../ingest/json-items.js'
import type { Mask } from '../../ingest/mask.js'
import { normalizeItem } from '../../ingest/normalize.js'
import type { Artifacts } from '../../insight/artifacts.js'
import type { GroupCommit } from '../../log/group-commit.js'
import type { LogReader } from '../../log/read.js'
import { isKnown } from '../etag.js'
import { ArtifactBody, ArtifactCommand, ArtifactList, ArtifactQuery, ContentParams, ListArtifactsQuery, StoredArtifact } from '../schemas/artifacts.js'
import { reference } from '../schemas/reference.js'
import { IdempotencyKey, RunParams } from '../schemas/run.js'
import { WorkerHeader } from '../schemas/worker.js'

export interface ArtifactsRoutesDeps {
  config: Pick<Config, 'ARTIFACT_INLINE_BYTES' | 'MAX_ARTIFACT_BYTES' | 'MAX_BODY_BYTES' | 'BODY_TIMEOUT_MS'>
  artifacts: Artifacts
  log: Pick<GroupCommit, 'append'>
  reader: LogReader
  mask: Mask
}

const BINARY = 'application/octet-stream'
const CONTENT_ANSWER = {
  description: 'The content',
  content: { 'application/octet-stream': { schema: Type.Unsafe<unknown>({ type: 'string', format: 'binary' }) } },
}
const PAGE_BYTES = 4_194_304
const command = TypeCompiler.Compile(ArtifactCommand)

/** What the event says of it. */
type Told = Pick<ArtifactCommand, 'id' | 'name' | 'kind' | 'label' | 'stepId' | 'uri' | 'bytes' | 'sha256'> & { mediaType?: string; inline?: unknown }

export const artifactsRoutes: FastifyPluginAsyncTypebox<ArtifactsRoutesDeps> = async (app, { config, artifacts, log, reader, mask }) => {
  for (const schema of [ArtifactCommand, StoredArtifact, ArtifactList]) app.addSchema(schema)
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', (_request, payload, done) => done(null, payload))

  app.post(
    '/runs/:id/artifacts',
    {
      config: {
        role: 'member',
        streamed: true,
        body: ArtifactBody,
        errors: ['LEASE_LOST', 'IDEMPOTENCY_CONFLICT', 'INVALID_STATE_TRANSITION'],
        headers: { 200: ['Location'], 201: ['Location'] },
      },
      schema: {
        operationId: 'createArtifact',
        tags: ['insight'],
        summary: 'Store an artifact of a run',
        description: 'The body is the content, of any type; a body of JSON without `mediaType` in the query is an ArtifactCommand. See docs/ARTIFACTS.md.',
        params: RunParams,
        querystring: ArtifactQuery,
        headers: Type.Object({
          'idempotency-key': IdempotencyKey,
          'x-worker-id': WorkerHeader,
        }),
        response: { 200: reference(StoredArtifact, 'The artifact, which was stored before'), 201: reference(StoredArtifact, 'The artifact') },
      },
    },
    async (request, reply) => {
      const { access, params, query, headers, body } = request
      const runKey = await keyOf(access.workspaceId, params.id)
      if (!isStream(body)) throw new RunplaneError('VALIDATION_ERROR', 'The body is empty. Send the content, or an ArtifactCommand as application/json.')
      if (Number(headers['content-length']) > config.MAX_ARTIFACT_BYTES) throw tooLarge()
      const contentType = request.headers['content-type']
      const told =
        query.mediaType === undefined && /^application\/json\b/i.test(contentType ?? '')
          ? await fromCommand(request, runKey, commandOf(await readJson(body)))
          : await fromContent(request, runKey, query, chunks(body), query.mediaType ?? knownMediaType(contentType))
      const idempotencyKey = headers['idempotency-key']
      const id = told.id ?? (idempotencyKey === undefined ? uuidv7() : hashOf(idempotencyKey).slice(0, 32))
      const { stepId, id: _, ...rest } = told
      const uri = told.uri ?? (told.sha256 === undefined ? undefined : uriOf(params.id, told.sha256))
      const data = { ...rest, ...(uri !== undefined && { uri }) }
      const event = {
        ...(idempotencyKey !== undefined && { id: `artifact:${idempotencyKey}` }),
        type: 'artifact.created',
        subject: { kind: 'artifact', id },
        ...(stepId !== undefined && { stepId }),
        data,
      }
      const { seq, created } = await append(request, runKey, event)
      return reply
        .code(created ? 201 : 200)
        .header('location', asciiOf(uri ?? `/runs/${encodeURIComponent(params.id)}/artifacts`))
        .send({ runId: params.id, artifactId: id, ...data, seq })
    },
  )

  app.get(
    '/runs/:id/artifacts',
    {
      config: { role: 'guest' },
      schema: {
        operationId: 'listArtifacts',
        tags: ['insight'],
        summary: 'List the artifacts of a run, as its log tells them',
        params: RunParams,
        querystring: ListArtifactsQuery,
        response: { 200: reference(ArtifactList, 'A page of artifacts') },
      },
    },
    async (request) => {
      const runKey = await keyOf(request.access.workspaceId, request.params.id)
      const { afterSeq = 0, limit = 200 } = request.query
      const page = await reader.pageOfEvents({ runKey, afterSeq, limit, maxBytes: PAGE_BYTES, filter: { types: ['artifact.created'] } })
      if (!page) throw runNotFound(request.params.id)
      const events = page.items.map((item): CanonicalEvent => JSON.parse(item.toString('utf8')))
      const stored = new Map((await artifacts.list(runKey)).map((content) => [content.sha256, content]))
      const data = events.map((event) => listed(event, stored, request.params.id))
      return { data, headSeq: page.headSeq, ...(page.scannedTo < page.headSeq && { nextAfterSeq: page.scannedTo }) }
    },
  )

  app.get(
    '/runs/:id/artifacts/:sha256',
    {
      config: { role: 'guest', errors: ['NOT_FOUND'], headers: { 200: ['ETag', 'Content-Disposition'], 304: ['ETag'] } },
      // Whoever asks for the head only would have all of it read.
      exposeHeadRoute: false,
      schema: {
        operationId: 'getArtifact',
        tags: ['insight'],
        summary: 'Get the content of an artifact',
        params: ContentParams,
        headers: Type.Object({ 'if-none-match': Type.Optional(Type.String()) }),
        response: {
          200: CONTENT_ANSWER,
          304: Type.Unsafe<undefined>({ type: 'null', description: 'as it was, as ever' }),
        },
      },
    },
    async (request, reply) => {
      const { id, sha256 } = request.params
      const runKey = await keyOf(request.access.workspaceId, id)
      const found = (await artifacts.has(runKey, sha256)) ? await artifacts.open(request.access.workspaceId, sha256) : undefined
      if (!found) throw new RunplaneError('NOT_FOUND', `Run '${id}' has no content with this SHA-256 here. GET /runs/${id}/artifacts lists what there is.`)
      const etag = `"${sha256}"`
      reply.header('etag', etag).header('cache-control', 'private, max-age=31536000, immutable')
      if (isKnown(request.headers['if-none-match'], etag)) {
        found.body.destroy()
        return reply.code(304).send(undefined)
      }
      return (
        reply
          .type(found.mediaType)
          .header('content-length', found.bytes)
          // Whatever an agent made, a browser neither shows nor runs it under our origin.
          .header('content-disposition', `attachment; filename="${sha256}"`)
          .header('content-security-policy', "default-src 'none'; sandbox")
          .send(found.body)
      )
    },
  )

  async function keyOf(workspaceId: string, runId: string): Promise<string> {
    // Not from memory: content that is stored for a run that another instance has deleted would be nobody's.
    const run = await reader.findRun(workspaceId, runId)
    if (!run) throw runNotFound(runId)
    return run.key
  }

  function tooLarge(): RunplaneError {
    return new RunplaneError(
      'PAYLOAD_TOO_LARGE',
      `An artifact may have ${config.MAX_ARTIFACT_BYTES} bytes (MAX_ARTIFACT_BYTES). Store it elsewhere and tell its uri.`,
    )
  }

  async function fromContent({ access }: FastifyRequest, runKey: string, sent: Told, content: AsyncIterable<Buffer>, type: string): Promise<Told> {
    const bytes = mask.bytes(sent.sha256 === undefined ? content : checked(content, sent.sha256))
    const mediaType = plainMediaType(type)
    return { ...maskedNames(sent), mediaType, ...(await artifacts.store(access.workspaceId, runKey, { bytes, mediaType })) }
  }

  /** Names that hold a secret are names without it; the hash is what it was. */
  const maskedNames = (told: Told): Told => ({ ...(mask.value(told) as Told), ...(told.sha256 !== undefined && { sha256: told.sha256 }) })

  /** One with a secret in it is none. */
  const plainMediaType = (type: string): string => (mask.text(type) === type ? type : BINARY)

  async function fromCommand(request: FastifyRequest, runKey: string, sent: ArtifactCommand): Promise<Told> {
    const { inline, text, base64, mediaType, ...told } = sent
    const given = ['inline', 'text', 'base64', 'uri'].filter((field) => Reflect.get(sent, field) !== undefined)
    if (given.length !== 1)
      throw new RunplaneError(
        'VALIDATION_ERROR',
        `An artifact has one of inline, text, base64 and uri; this one has ${given.length === 0 ? 'none' : given.join(' and ')}.`,
      )
    if (told.uri !== undefined) return { ...maskedNames(told), ...(mediaType !== undefined && { mediaType: plainMediaType(mediaType) }) }
    if (told.bytes !== undefined) throw new RunplaneError('VALIDATION_ERROR', 'bytes goes with uri: what is sent is counted.')
    if (base64 !== undefined) return fromContent(request, runKey, told, pieces(Buffer.from(base64, 'base64')), mediaType ?? BINARY)
    if (text !== undefined) return fromContent(request, runKey, told, pieces(Buffer.from(text)), mediaType ?? 'text/plain; charset=utf-8')
    const json = Buffer.from(JSON.stringify(inline))
    const stored = await fromContent(request, runKey, told, pieces(json), mediaType ?? 'application/json')
    // What is small stands in the event as well, for those who read it there.
    return json.length > config.ARTIFACT_INLINE_BYTES ? stored : { ...stored, inline: mask.value(inline) }
  }

  /** As a client's own event, so that what is said twice is one, and a worker that has lost its lease is refused. */
  async function append(request: FastifyRequest, runKey: string, event: object): Promise<{ seq: number; created: boolean }> {
    const value = harmless(JSON.parse(JSON.stringify(event)))
    const workerId = request.headers['x-worker-id']
    const outcome = await log.append({
      runKey,
      receivedAt: new Date().toISOString(),
      items: [{ text: JSON.stringify(value), format: native.name, normalized: normalizeItem(native, value, { defaultSource: request.access.keyName }) }],
      ...(typeof workerId === 'string' && { workerId }),
    })
    if (outcome.kind === 'refused') throw outcome.error
    if (outcome.kind !== 'done') throw runNotFound(Reflect.get(Object(request.params), 'id'))
    const [result] = outcome.receipt.results
    if (result?.status === 'rejected') throw new RunplaneError(result.code, result.detail)
    return { seq: result?.seqs[0] ?? 0, created: result?.status === 'stored' }
  }

  /** @throws REQUEST_TIMEOUT for a body that stands still. */
  async function* chunks(body: IncomingMessage): AsyncGenerator<Buffer> {
    let timer: NodeJS.Timeout | undefined
    const watch = () => {
      clearTimeout(timer)
      timer = setTimeout(
        () => body.destroy(new RunplaneError('REQUEST_TIMEOUT', `The body stood still for ${config.BODY_TIMEOUT_MS} ms. Send it again.`)),
        config.BODY_TIMEOUT_MS,
      )
    }
    try {
      watch()
      for await (const chunk of body) {
        clearTimeout(timer)
        yield chunk
        watch()
      }
    } finally {
      clearTimeout(timer)
    }
    // A body that was cut off ends as well.
    if (!body.complete) throw new RunplaneError('VALIDATION_ERROR', 'The body broke off, and nothing is stored. Send it again.')
  }

  async function readJson(body: IncomingMessage): Promise<unknown> {
    const read: Buffer[] = []
    let bytes = 0
    for await (const chunk of chunks(body)) {
      bytes += chunk.length
      if (bytes > config.MAX_BODY_BYTES) {
        throw new RunplaneError(
          'PAYLOAD_TOO_LARGE',
          `An ArtifactCommand may have ${config.MAX_BODY_BYTES} bytes (MAX_BODY_BYTES). Send the content as the body.`,
        )
      }
      read.push(chunk)
    }
    try {
      return JSON.parse(Buffer.concat(read).toString('utf8'))
    } catch {
      throw new RunplaneError('VALIDATION_ERROR', 'The body is not valid JSON. To store it as it is, name its type in the query: ?mediaType=application/json.')
    }
  }
}

function commandOf(body: unknown): ArtifactCommand {
  if (command.Check(body)) return body
  const { path, message } = command.Errors(body).First() ?? { path: '', message: 'is no ArtifactCommand' }
  throw new RunplaneError('VALIDATION_ERROR', `body${path} ${message === 'Unexpected property' ? 'is not a field of this command' : message}.`, {
    errors: [{ path: `body${path}`, message }],
  })
}

function knownMediaType(contentType: string | undefined): string {
  return contentType !== undefined && contentType.length <= 255 && /^[\w!#$&^.+'-]+\/[\w!#$&^.+'-]+ *(?:;[ -~]*)?$/.test(contentType) ? contentType : BINARY
}

/** An IRI as a URI, which a header can hold: RFC 3987, section 3.1, step 2. */
const asciiOf = (iri: string) => iri.replace(/[^!-~]+/g, (text) => encodeURIComponent(text.toWellFormed()))
/** As `uriOf` makes it. */
const STORED_URI = /^\/runs\/[^/]+\/artifacts\/[0-9a-f]{64}$/
const uriOf = (runId: string, sha256: string) => `/runs/${encodeURIComponent(runId)}/artifacts/${sha256}`

function listed(
  { seq, ts, stepId, actor, subject, data }: CanonicalEvent,
  stored: ReadonlyMap<string, { bytes: number; mediaType: string }>,
  runId: string,
): ArtifactList['data'][number] {
  const told: Readonly<Record<string, unknown>> = data
  const text = (name: string) => (typeof told[name] === 'string' ? { [name]: told[name] } : {})
  const content = typeof told.sha256 === 'string' ? stored.get(told.sha256) : undefined
  return {
    artifactId: subject.id,
    ...text('name'),
    ...text('kind'),
    ...text('label'),
    ...text('sha256'),
    ...text('uri'),
    // Under the id that an imported run had, there may be another one.
    ...(content !== undefined && STORED_URI.test(String(told.uri)) && { uri: uriOf(runId, String(told.sha256)) }),
    ...(typeof told.bytes === 'number' && { bytes: told.bytes }),
    ...(told.inline !== undefined && { inline: told.inline }),
    ...content,
    // As it was told: the same content may have been stored as another type before.
    ...text('mediaType'),
    ...(stepId !== undefined && { stepId }),
    ...(actor?.kind === 'participant' && { participantId: actor.id }),
    seq,
    ts,
    stored: content !== undefined,
  }
}

async function* checked(bytes: AsyncIterable<Buffer>, sha256: string): AsyncGenerator<Buffer> {
  const hash = createHash('sha256')
  for await (const piece of bytes) {
    hash.update(piece)
    yield piece
  }
  const actual = hash.digest('hex')
  if (actual !== sha256) throw new RunplaneError('VALIDATION_ERROR', `The content has the SHA-256 ${actual}, not ${sha256}. Send it again.`)
}

async function* pieces(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes
}

const hashOf = (text: string) => createHash('sha256').update(text).digest('hex')

function isStream(body: unknown): body is IncomingMessage {
  return typeof body === 'object' && body !== null && 'pipe' in body
}
