/**
 * Whatever a run holds, its bundle brings it back: the same event files, the same state, in each format, also under another id, and redacted.
 */
import '../support/parquet-loader.js'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import fc from 'fast-check'
import { test } from 'tap'
import { openBundle } from '../../src/insight/bundle-reader.js'
import { arbitraryEvents } from '../support/arbitrary-events.js'
import { exportOf, importInto, listening, temporaryFolder } from '../support/bundles.js'
import { testDatabase } from '../support/database.js'

/** What an agent would send of such an event; the log says itself whether it takes it. */
const posted = arbitraryEvents({ minLength: 1, maxLength: 12 }).map((events) =>
  events.map(({ type, ts, subject, parent, stepId, actor, data }, index) => ({
    type,
    ts,
    subject,
    parent,
    stepId,
    actor,
    data,
    ...(index % 3 === 0 && { id: `e-${index}` }),
  })),
)
/** Each as one line, or as several. */
const indents = fc.array(fc.constantFrom(0, 1, 2), { minLength: 12, maxLength: 12 })
const format = fc.constantFrom('ndjson', 'json', 'zip')

test('a run that is exported, imported and exported again has the same event files and the same state', async (t) => {
  const here = await listening(t, await testDatabase(t), { MAX_EVENT_BYTES: '1048576' })
  const there = await listening(t, await testDatabase(t))
  const folder = await temporaryFolder(t)
  let runs = 0
  let stored = 0

  const filesOf = async (bundle: Buffer) => {
    const path = join(folder, 'bundle')
    await writeFile(path, bundle)
    const { manifest } = await openBundle(path)
    return manifest.files.filter(({ path }) => path.startsWith('events/') || path.startsWith('tables/') || path === 'state.json')
  }

  await fc.assert(
    fc.asyncProperty(posted, indents, format, format, async (events, spaces, first, second) => {
      const id = `run-${runs++}`
      await here.client.createRun({ id, input: { first: events[0]?.type }, metadata: { n: runs } })
      for (const [index, event] of events.entries()) {
        const answer = await here.client.append(id, JSON.stringify(event, null, spaces[index]))
        if (answer.status === 200) stored++
        else if (answer.status >= 500) throw new Error(answer.text)
      }
      const bundle = await exportOf(here.url, id, `?format=${first}&include=canonical,raw,artifacts`)
      const answer = await importInto(there.url, bundle)
      if (answer.status !== 201) throw new Error(JSON.stringify(answer))
      const again = await exportOf(there.url, id, `?format=${first}&include=canonical,raw,artifacts`)
      const [left, right] = [await filesOf(bundle), await filesOf(again)]
      if (JSON.stringify(left) !== JSON.stringify(right)) throw new Error(`${JSON.stringify(left)} and ${JSON.stringify(right)}`)
      const pages = await Promise.all([here, there].map(({ url }) => fetch(`${url}/runs/${id}/raw?limit=1000`).then((page) => page.text())))
      if (pages[0] !== pages[1]) throw new Error('the raw events are others')

      const copy = await importInto(here.url, again, `?as=${id}-copy`)
      if (copy.status !== 201) throw new Error(JSON.stringify(copy))
      for (const profile of ['hashed', 'no-content']) {
        const redacted = await exportOf(here.url, id, `?format=${second}&profile=${profile}`)
        const imported = await importInto(there.url, redacted, `?as=${id}-${profile}`)
        if (imported.status !== 201) throw new Error(JSON.stringify(imported))
      }
    }),
    { numRuns: 25, interruptAfterTimeLimit: 60_000, markInterruptAsFailure: false },
  )
  t.ok(stored > runs, `${stored} events of ${runs} runs`)
})
