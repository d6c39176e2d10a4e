/** What the run made: a reference to each of the recent artifacts, and small ones themselves. */

import { withoutNull } from '../../domain/known.js'
import { amount, clipped, field, idOf, keep, MAX_LABEL_BYTES, MAX_NAME_BYTES, numberOf, payload, textOf } from '../bounds.js'
import { defineSection } from '../section.js'
import { senderOf } from '../sender.js'

const MAX_ARTIFACTS = 60
const MAX_URI_BYTES = 256
const MAX_INLINE_BYTES = 250

interface Artifact {
  artifactId: string
  name: string | null
  kind: string | null
  label: string | null
  uri: string | null
  inline: unknown
  sha256: string | null
  bytes: number | null
  stepId: string | null
  participantId: string | null
  seq: number
  ts: string
}

export interface ArtifactsFold {
  artifacts: Map<string, Artifact>
  created: number
  bytes: number
  dropped: number
  truncated: number
}

export const artifacts = defineSection({
  name: 'artifacts',
  initial: (): ArtifactsFold => ({ artifacts: new Map(), created: 0, bytes: 0, dropped: 0, truncated: 0 }),
  on: {
    'artifact.created'(state, event) {
      const { data, seq, ts } = event
      const artifactId = idOf(event.subject.id)
      const sender = senderOf(event)
      const artifact: Artifact = {
        artifactId,
        name: clipped(state, textOf(field(data, 'name')), MAX_NAME_BYTES),
        kind: clipped(state, data.kind, MAX_LABEL_BYTES),
        label: clipped(state, data.label, MAX_NAME_BYTES),
        uri: clipped(state, data.uri, MAX_URI_BYTES),
        inline: payload(state, data.inline, MAX_INLINE_BYTES),
        sha256: clipped(state, data.sha256, MAX_NAME_BYTES),
        bytes: numberOf(data.bytes),
        stepId: event.stepId === undefined ? null : idOf(event.stepId),
        participantId: sender === undefined ? null : idOf(sender),
        seq,
        ts,
      }
      state.created += 1
      state.bytes += amount(data.bytes)
      if (keep(state.artifacts, artifactId, artifact, MAX_ARTIFACTS)) state.dropped += 1
    },
  },
  view(state) {
    return { ...state, artifacts: [...state.artifacts.values()].map(withoutNull) }
  },
})
