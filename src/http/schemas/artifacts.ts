/** Artifacts on the wire. */
import { type Static, Type } from '@sinclair/typebox'
import { RUN_ID_PATTERN } from '../../domain/ids.js'
import { pattern, SHA256_PATTERN } from '../../domain/pattern.js'

const name = Type.String({ minLength: 1, maxLength: 256 })
const sha256 = Type.String({ pattern: SHA256_PATTERN, description: 'of the content, in hex' })
const mediaType = Type.String({
  pattern: pattern("^[A-Za-z0-9!#$&^_.+'-]{1,127}/[A-Za-z0-9!#$&^_.+'-]{1,127}(?: *;[ -~]{0,200})?$", 'a media type, such as text/plain'),
})
const closed = { additionalProperties: false } as const

const told = {
  id: Type.Optional(Type.String({ minLength: 1, maxLength: 256, description: 'of the artifact; without one the service makes it' })),
  name: Type.Optional(name),
  kind: Type.Optional(Type.String({ minLength: 1, maxLength: 128, description: 'such as report, log, image, json' })),
  label: Type.Optional(Type.String({ minLength: 1, maxLength: 1024 })),
  stepId: Type.Optional(Type.String({ minLength: 1, maxLength: 256 })),
  sha256: Type.Optional({ ...sha256, description: 'of what is sent, in hex: refused where it has another' }),
}

export const ArtifactQuery = Type.Object({
  ...told,
  mediaType: Type.Optional({ ...mediaType, description: 'instead of the Content-Type; with it, a body of JSON is the content too' }),
})
export type ArtifactQuery = Static<typeof ArtifactQuery>

/** Exactly one of the contents, or a `uri` of what lies elsewhere. */
export const ArtifactCommand = Type.Object(
  {
    ...told,
    mediaType: Type.Optional(mediaType),
    inline: Type.Optional(Type.Unknown({ description: 'the content, as JSON' })),
    text: Type.Optional(Type.String({ description: 'the content, as text' })),
    base64: Type.Optional(Type.String({ pattern: pattern('^[A-Za-z0-9+/]*={0,2}$', 'base64'), description: 'the content, as bytes' })),
    uri: Type.Optional(Type.String({ minLength: 1, maxLength: 4096, description: 'where it lies, if not here' })),
    bytes: Type.Optional(Type.Integer({ minimum: 0, description: 'its size, of one that lies elsewhere' })),
  },
  { ...closed, $id: 'ArtifactCommand' },
)
export type ArtifactCommand = Static<typeof ArtifactCommand>

/** A stream, which is content or checked by hand. */
export const ArtifactBody = {
  'application/json': { schema: { $ref: 'ArtifactCommand#' } },
  '*/*': { schema: { description: 'the content, of any type' } },
}

const listed = {
  artifactId: Type.String(),
  name: Type.Optional(Type.String()),
  kind: Type.Optional(Type.String()),
  label: Type.Optional(Type.String()),
  mediaType: Type.Optional(Type.String()),
  sha256: Type.Optional(Type.String()),
  bytes: Type.Optional(Type.Number()),
  uri: Type.Optional(Type.String({ description: 'where it lies: here, below /runs, or elsewhere' })),
  inline: Type.Optional(Type.Unknown()),
}
export const StoredArtifact = Type.Object(
  { runId: Type.String(), ...listed, seq: Type.Integer({ description: 'of its artifact.created' }) },
  { $id: 'StoredArtifact' },
)

export const ArtifactList = Type.Object(
  {
    data: Type.Array(
      Type.Object({
        ...listed,
        stepId: Type.Optional(Type.String()),
        participantId: Type.Optional(Type.String()),
        seq: Type.Integer(),
        ts: Type.String(),
        stored: Type.Boolean({ description: 'the content is here: GET /runs/:id/artifacts/:sha256' }),
      }),
    ),
    nextAfterSeq: Type.Optional(Type.Integer({ description: 'only if there may be more: where the next page starts' })),
    headSeq: Type.Integer(),
  },
  { $id: 'ArtifactList' },
)
export type ArtifactList = Static<typeof ArtifactList>

export const ListArtifactsQuery = Type.Object({
  afterSeq: Type.Optional(Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: 0 })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000, default: 200 })),
})

export const ContentParams = Type.Object({ id: Type.String({ pattern: RUN_ID_PATTERN }), sha256 })
