/** Replays on the wire. */
import { Type } from '@sinclair/typebox'
import { RUN_STATUSES } from '../../domain/run.js'
import { REPLAY_MODES } from '../../insight/replay.js'

const seq = (description: string) => Type.Optional(Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER, description }))

const fields = {
  mode: Type.Optional(
    Type.Union(
      REPLAY_MODES.map((mode) => Type.Literal(mode)),
      { default: 'instant', description: 'all at once, at the pace at which it came, or `count` events a connection' },
    ),
  ),
  speed: Type.Optional(Type.Number({ minimum: 0.01, maximum: 1000, default: 1, description: 'timed: how many times as fast as it was' })),
  maxPauseMs: Type.Optional(Type.Integer({ minimum: 0, maximum: 3_600_000, default: 2000, description: 'timed: no pause is longer than this' })),
  count: Type.Optional(Type.Integer({ minimum: 1, maximum: 100_000, default: 1, description: 'step: events that a connection gives before it ends' })),
  fromSeq: seq('the first event; none: the first of the run'),
  toSeq: seq('the last event; none: the last that there is when it is asked for'),
}

export const ReplayRequest = Type.Object(fields, { additionalProperties: false, $id: 'ReplayRequest' })

export const ReplayDescriptor = Type.Object(
  {
    runId: Type.String(),
    mode: Type.Union(REPLAY_MODES.map((mode) => Type.Literal(mode))),
    speed: Type.Number(),
    maxPauseMs: Type.Integer(),
    count: Type.Integer(),
    fromSeq: Type.Integer(),
    toSeq: Type.Integer(),
    status: Type.Union(
      RUN_STATUSES.map((status) => Type.Literal(status)),
      { description: 'of the run, now' },
    ),
    headSeq: Type.Integer(),
    streamUrl: Type.String({ description: 'with all of the above' }),
    stateUrl: Type.String({ description: 'add `?seq=`' }),
  },
  { $id: 'ReplayDescriptor' },
)

export const ReplayQuery = Type.Object({
  ...fields,
  afterSeq: Type.Optional(Type.String({ description: 'the seq of the last event that you have; it, fromSeq - 1 or Last-Event-ID: the greatest counts' })),
  heartbeatMs: Type.Optional(Type.Integer({ minimum: 1000, maximum: 3_600_000, description: 'milliseconds between heartbeats; none: STREAM_HEARTBEAT_MS' })),
})

export const ReplayStreamAnswer = {
  description: 'Server-sent events: `retry`, then `canonical_event`, `gap`, `heartbeat`, and `end`, `paused` or `error`. See docs/REPLAY.md.',
  content: { 'text/event-stream': { schema: Type.String() } },
}
