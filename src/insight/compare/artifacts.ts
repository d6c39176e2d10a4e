/** Artifacts by their hashes: what both runs made alike, what only one made, and what both made with another content. */
import type { CanonicalEvent } from '../../domain/canonical-event.js'
import type { ArtifactSide, ArtifactsDiff } from './answer.js'
import { type Columns, chunks, type Side } from './side.js'

const TYPE = 'artifact.created'
/** Artifacts without an equal one that are looked at, of each side. */
const MAX_READ = 1000
const CHUNK = 50

export async function artifactsDiff(sides: { left: Side; right: Side }, left: Columns, right: Columns): Promise<ArtifactsDiff> {
  const [one, other] = [madeBy(left), madeBy(right)]
  const common = countCommon(one, other)
  const [removed, added] = await Promise.all([read(sides.left, without(one, other)), read(sides.right, without(other, one))])
  const changed: ArtifactsDiff['changed'] = []
  // The same name first, then the same bytes under another name.
  for (const keyOf of [nameOf, ({ sha256 }: ArtifactSide) => sha256]) {
    for (const artifact of [...removed.artifacts]) {
      const key = keyOf(artifact)
      const match = key === undefined ? undefined : added.artifacts.find((candidate) => keyOf(candidate) === key)
      if (match === undefined) continue
      removed.artifacts.splice(removed.artifacts.indexOf(artifact), 1)
      added.artifacts.splice(added.artifacts.indexOf(match), 1)
      changed.push({ left: artifact, right: match })
    }
  }
  return { common, added: added.artifacts, removed: removed.artifacts, changed, more: removed.more + added.more }
}

function nameOf({ kind, name, label }: ArtifactSide): string | undefined {
  const called = name ?? label
  return called === undefined ? undefined : `${kind ?? ''}\n${called}`
}

/** The seqs of artifacts, by the digest of what is told of them. */
function madeBy({ type, types, content, firstSeq, length }: Columns): Map<number, number[]> {
  const made = new Map<number, number[]>()
  const wanted = types.indexOf(TYPE)
  if (wanted < 0) return made
  for (let index = 0; index < length; index++) {
    if (type[index] !== wanted) continue
    const digest = content[index] ?? 0
    const seqs = made.get(digest)
    if (seqs) seqs.push(firstSeq + index)
    else made.set(digest, [firstSeq + index])
  }
  return made
}

function countCommon(left: Map<number, number[]>, right: Map<number, number[]>): number {
  let common = 0
  for (const [digest, seqs] of left) common += Math.min(seqs.length, right.get(digest)?.length ?? 0)
  return common
}

function without(made: Map<number, number[]>, other: Map<number, number[]>): number[] {
  return [...made].flatMap(([digest, seqs]) => seqs.slice(other.get(digest)?.length ?? 0)).sort((one, two) => one - two)
}

async function read(side: Side, seqs: readonly number[]): Promise<{ artifacts: ArtifactSide[]; more: number }> {
  const artifacts: ArtifactSide[] = []
  for (const chunk of chunks(seqs.slice(0, MAX_READ), CHUNK)) {
    const events = await side.events(chunk)
    for (const seq of chunk) {
      const event = events.get(seq)
      if (event) artifacts.push(artifactOf(event))
    }
  }
  return { artifacts, more: Math.max(0, seqs.length - MAX_READ) }
}

function artifactOf({ seq, subject, data }: CanonicalEvent): ArtifactSide {
  const { name, kind, label, sha256, bytes }: Readonly<Record<string, unknown>> = data
  return {
    artifactId: subject.id,
    seq,
    ...(typeof name === 'string' && { name }),
    ...(typeof kind === 'string' && { kind }),
    ...(typeof label === 'string' && { label }),
    ...(typeof sha256 === 'string' && { sha256 }),
    ...(typeof bytes === 'number' && { bytes }),
  }
}
