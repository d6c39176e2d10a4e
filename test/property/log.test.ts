/**
 * Any interleaving of writers, retries, readers and restarts, on two instances, keeps the invariants of the log:
 * seqs and rawSeqs are 1..N, an event id is stored once, what was acknowledged is there, and every way to a state gives the same one.
 */
import fc from 'fast-check'
import { test } from 'tap'
import { NO_MASK } from '../../src/ingest/mask.js'
import { createLogReader } from '../../src/log/read.js'
import { createState, encodeState, fold } from '../../src/projections/fold.js'
import { createCheckpoints } from '../../src/runs/checkpoints.js'
import { saveSnapshot } from '../../src/runs/snapshots.js'
import { createRunStates } from '../../src/runs/state.js'
import { silent, testDatabase } from '../support/database.js'
import { item, type LogInstance, logInstance, output, receiptOf, request, storedLog, upTo } from '../support/log.js'

type Step =
  | { do: 'write'; instance: 0 | 1; run: 0 | 1; ids: number[]; ends: boolean }
  | { do: 'save'; instance: 0 | 1; run: 0 | 1 }
  | { do: 'read'; instance: 0 | 1; run: 0 | 1 }
  | { do: 'restart'; instance: 0 | 1 }
  | { do: 'forget snapshots' }

const instance = fc.constantFrom(0 as const, 1 as const)
const run = fc.constantFrom(0 as const, 1 as const)
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constant('write' as const), instance, run, ids: fc.array(fc.nat(15), { minLength: 1, maxLength: 4 }), ends: fc.boolean() }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('save' as const), instance, run }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('read' as const), instance, run }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('restart' as const), instance }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('forget snapshots' as const) }) },
)
/** Rounds follow each other; the steps of one run at the same time. */
const rounds = fc.array(fc.array(step, { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 6 })

test('any interleaving of writers, retries, readers and restarts keeps the invariants of the log', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const reader = createLogReader({ sql })
  const runStates = ({ states }: LogInstance) =>
    createRunStates({ sql, states, checkpoints: createCheckpoints({ sql, states, everyEvents: 3, log: silent }), mask: NO_MASK })

  await fc.assert(
    fc.asyncProperty(rounds, async (plan) => {
      const instances: [LogInstance, LogInstance] = [logInstance(database, { maxRuns: 1 }), logInstance(database)]
      const runs = [await instances[0].createRun(), await instances[1].createRun()] as const
      const acknowledged = [new Map<string, number[]>(), new Map<string, number[]>()] as const

      const perform = async (one: Step): Promise<void> => {
        switch (one.do) {
          case 'write': {
            const { key } = runs[one.run]
            const items = one.ids.map((id) => output(`e${id}`))
            if (one.ends) items.push(item({ id: 'end', type: 'run.completed' }))
            const { results, headSeq } = receiptOf(await instances[one.instance].log.append(request(key, items)))
            for (const [index, { seqs }] of results.entries()) {
              const { normalized } = items[index] ?? {}
              const id = normalized?.ok ? (normalized.eventId ?? '') : ''
              const before = acknowledged[one.run].get(id)
              if (before && String(before) !== String(seqs)) throw new Error(`${id} was ${before} and is now ${seqs}`)
              acknowledged[one.run].set(id, seqs)
              if (seqs.some((seq) => seq > headSeq)) throw new Error(`${id} is beyond the head that was answered`)
            }
            return
          }
          case 'save':
            return instances[one.instance].states.hold(runs[one.run].key, (hot) => saveSnapshot(sql, hot))
          case 'read': {
            const known = Math.max(1, ...[...acknowledged[one.run].values()].flat())
            const { version } = await runStates(instances[one.instance]).read(runs[one.run])
            if (version < known) throw new Error(`a state at ${version} is behind ${known}, which was acknowledged`)
            return
          }
          case 'restart':
            await instances[one.instance].log.close()
            instances[one.instance] = logInstance(database)
            return
          case 'forget snapshots':
            await sql`delete from run_projections`
            await sql`delete from run_checkpoints`
        }
      }
      // A restart closes its instance for writers: it has a round of its own.
      for (const steps of plan) {
        for (const one of steps) if (one.do === 'restart') await perform(one)
        await Promise.all(steps.filter((one) => one.do !== 'restart').map(perform))
      }

      for (const [index, { key, id }] of runs.entries()) {
        const stored = await storedLog(sql, key)
        const expected = JSON.stringify(upTo(stored.head.last_seq))
        if (JSON.stringify(stored.seqs) !== expected) throw new Error(`seqs are ${stored.seqs}`)
        if (JSON.stringify(stored.rawSeqs) !== JSON.stringify(upTo(stored.head.last_raw_seq))) throw new Error(`rawSeqs are ${stored.rawSeqs}`)
        if (new Set(stored.eventIds).size !== stored.eventIds.length) throw new Error(`ids are ${stored.eventIds}`)
        const ids = [...(acknowledged[index as 0 | 1].keys() ?? [])].sort()
        if (JSON.stringify(ids) !== JSON.stringify([...stored.eventIds].sort())) throw new Error(`acknowledged are ${ids}, stored ${stored.eventIds}`)
        const events = stored.events.map(({ json }) => JSON.parse(json))
        const atOnce = encodeState(fold(createState(), events))
        for (const instance of instances) {
          await runStates(instance).read({ key, id })
          const held = await instance.states.hold(key, async (hot) => hot.state && encodeState(hot.state))
          if (held !== atOnce) throw new Error('the state in memory is not the fold of the log')
        }
        for (const seq of stored.seqs) {
          const then = await runStates(instances[seq % 2 === 0 ? 0 : 1]).fold({ key, id }, seq)
          if (encodeState(then) !== encodeState(fold(createState(), events.slice(0, seq)))) throw new Error(`the state at ${seq} is not the fold up to there`)
        }
        const page = await reader.pageOfEvents({ runKey: key, afterSeq: 0, limit: 1000, maxBytes: 10_000_000 })
        if (page?.count !== stored.seqs.length) throw new Error('a page misses events')
      }
      for (const { log } of instances) await log.close()
    }),
    { numRuns: 40 },
  )
  t.pass('40 plans')
})
