/** The trace that the run belongs to, and what is linked to it. A span that begins and ends counts once. */

import { withoutNull } from '../../domain/known.js'
import { idOf, keep } from '../bounds.js'
import { defineSection } from '../section.js'

/** Spans are told apart among this many recent ones: the start and the end of a longer one may count twice. */
const MAX_SPANS = 100
const MAX_ARTIFACTS = 100

export interface TraceFold {
  traceId: string | null
  lastSpanId: string | null
  spanCount: number
  spans: Map<string, true>
  artifacts: Map<string, true>
  linked: number
  dropped: number
}

export const trace = defineSection({
  name: 'trace',
  initial: (): TraceFold => ({ traceId: null, lastSpanId: null, spanCount: 0, spans: new Map(), artifacts: new Map(), linked: 0, dropped: 0 }),
  onEvery(state, { trace: context }) {
    if (context === undefined) return
    state.traceId = idOf(context.traceId)
    if (context.spanId === undefined) return
    const spanId = idOf(context.spanId)
    state.lastSpanId = spanId
    if (state.spans.has(spanId)) return
    state.spanCount += 1
    keep(state.spans, spanId, true, MAX_SPANS)
  },
  on: {
    'artifact.created'(state, { subject }) {
      const id = idOf(subject.id)
      if (state.artifacts.has(id)) return
      state.linked += 1
      if (keep(state.artifacts, id, true, MAX_ARTIFACTS)) state.dropped += 1
    },
  },
  view({ traceId, lastSpanId, spanCount, artifacts, linked, dropped }) {
    return { ...withoutNull({ traceId, lastSpanId }), spanCount, linkedArtifacts: [...artifacts.keys()], linked, dropped }
  },
})
