/** What the append tells the rest of the process after a commit: the tail's hub, and whoever else waits. */
import type { RunStatus } from '../domain/run.js'

export interface CommittedEvent {
  seq: number
  type: string
  /** `kind/id` */
  subject: string
  /** The canonical event as it stands on the wire: the text that a page, a frame and a bundle show. */
  json: string
}

/** The events of one run that one transaction stored: consecutive, in order, durable. None where the run has failed for its log (log/corrupt.ts). */
export interface CommittedBatch {
  runKey: string
  runId: string
  workspaceId: string
  firstSeq: number
  lastSeq: number
  events: CommittedEvent[]
  status: RunStatus
}
