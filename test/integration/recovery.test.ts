/** Runs that are stuck on their way are failed after their time, by however many instances; and workers are told of cancellations. */
import t from 'tap'
import { createRecovery, type Recovery } from '../../src/runs/recovery.js'
import { testDatabase } from '../support/database.js'
import { eventually } from '../support/http.js'
import { attachedInstance, attachedRuns, COMPLETED, frame, sourceServer, sse } from '../support/source-server.js'

t.test('runs that are stuck', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const runs = attachedRuns(database)
  const instance = attachedInstance(t, database)
  const warnings: object[] = []
  const recovery = (env: { RUN_RECOVERY_ENABLED?: boolean } = {}): Recovery => {
    const one = createRecovery({
      sql,
      log: instance.log,
      config: { RUN_RECOVERY_ENABLED: true, RECOVERY_INTERVAL_MS: 50, STARTING_TIMEOUT_MS: 60_000, BINDING_TIMEOUT_MS: 60_000, ...env },
      logger: { warn: (details) => warnings.push(details) },
    })
    t.teardown(() => one.close())
    one.start()
    return one
  }
  const age = (id: string, ms: number) => sql`update runs set updated_at = clock_timestamp() - ${ms} * interval '1 ms' where id = ${id}`
  const control = async (id: string, type: string, data: Record<string, unknown> = {}) =>
    instance.log.append({ runKey: (await runs.run(id)).key, receivedAt: new Date().toISOString(), items: [], decide: () => [{ type, data }] })

  await t.test('in binding are failed with what their source said, once, by several instances', async (t) => {
    const source = await sourceServer(t, (_request, response) => response.writeHead(503).end())
    await instance.create({ id: 'binding', source: { url: source.url } })
    await instance.create({ id: 'patient', source: { url: source.url } })
    for (const id of ['binding', 'patient']) await runs.status(id, 'binding_session')
    await eventually('a failure', async () => ((await runs.source('binding')).error !== null ? true : undefined))
    await age('binding', 61_000)
    await age('patient', 30_000)
    const several = [recovery(), recovery(), recovery()]
    t.match(await runs.ended('binding'), { status: 'failed', error: { code: 'BINDING_TIMEOUT', message: /within 60000 ms.*503/ } })
    t.equal((await runs.types('binding')).filter((type) => type === 'run.failed').length, 1)
    t.equal((await runs.run('patient')).status, 'binding_session')
    source.answer = (_request, response) => sse(response).end(COMPLETED)
    t.equal((await runs.ended('patient')).status, 'completed', 'one that gets there is left alone')
    for (const one of several) await one.close()
  })

  await t.test('in starting are failed unless somebody holds them', async (t) => {
    for (const id of ['held', 'free']) await instance.create({ id, queue: 'q' })
    const leaseExpiresAt = new Date(Date.now() + 600_000).toISOString()
    await control('held', 'run.claimed', { workerId: 'w', leaseExpiresAt })
    await control('free', 'run.claimed', { workerId: 'w' })
    for (const id of ['held', 'free']) await age(id, 61_000)
    const one = recovery()
    await runs.status('free', 'failed')
    t.match(await runs.run('free'), { error: { code: 'STARTING_TIMEOUT' } })
    t.equal((await runs.run('held')).status, 'starting')
    await one.close()
  })

  await t.test('whose source has no more are failed once nothing comes and nobody holds them', async (t) => {
    const source = await sourceServer(t, (_request, response, count) => {
      if (count % 2 === 0) sse(response).end(frame(1, '1'))
      else response.writeHead(204).end()
    })
    const over = async (id: string, queue?: string) => {
      await instance.create({ id, source: { url: source.url }, ...(queue && { queue }) })
      if (queue) await control(id, 'run.claimed', { workerId: 'w', leaseExpiresAt: new Date(Date.now() + 600_000).toISOString() })
      await eventually('it has no more', async () => ((await runs.source(id)).status === 'drained' ? true : undefined))
    }
    const quiet = ['over', 'over-paused', 'over-held', 'over-told', 'over-ended']
    for (const id of quiet) await over(id, id === 'over-held' ? 'q' : undefined)
    await control('over-paused', 'run.suspended')
    await control('over-ended', 'run.completed')
    for (const id of quiet) await age(id, 61_000)
    await control('over-told', 'custom.emitted', { name: 'by another' })
    const several = [recovery(), recovery()]
    t.match(await runs.ended('over'), { status: 'failed', error: { code: 'SOURCE_ENDED', message: /204.*60000 ms/ } })
    t.equal((await runs.types('over')).filter((type) => type === 'run.failed').length, 1)
    t.equal((await runs.ended('over-ended')).status, 'completed', 'a run that has ended lets go of its source')
    t.same(await Promise.all(['over-paused', 'over-held', 'over-told'].map(async (id) => (await runs.run(id)).status)), ['suspended', 'running', 'running'])
    await age('over-told', 61_000)
    t.match(await runs.ended('over-told'), { error: { code: 'SOURCE_ENDED' } })
    await control('over', 'run.retry_scheduled', { delayMs: 0, attempt: 2 })
    await eventually('another attempt asks again', async () => ((await runs.source('over')).status !== 'ended' ? true : undefined))
    for (const one of several) await one.close()
  })

  await t.test('and whose log cannot be folded fail with that, and hold up no other', async (t) => {
    for (const id of ['bad', 'good-1', 'good-2']) {
      await instance.create({ id, queue: 'q' })
      await control(id, 'run.claimed', { workerId: 'w' })
    }
    const another = attachedInstance(t, database)
    await sql`update run_events_canonical set event = '[]'::json where run_key = ${(await runs.run('bad')).key}`
    await sql`delete from run_projections`
    for (const id of ['bad', 'good-1', 'good-2']) await age(id, 61_000)
    const one = createRecovery({
      sql,
      log: another.log,
      config: { RUN_RECOVERY_ENABLED: true, RECOVERY_INTERVAL_MS: 50, STARTING_TIMEOUT_MS: 60_000, BINDING_TIMEOUT_MS: 60_000 },
      logger: { warn: (details) => warnings.push(details) },
    })
    t.teardown(() => one.close())
    one.start()
    await runs.status('good-1', 'failed')
    await runs.status('good-2', 'failed')
    await runs.status('bad', 'failed')
    t.match(await runs.run('bad'), { error: { code: 'LOG_CORRUPT', message: /event 1 is not the one/ } })
    t.same(warnings, [], 'and nothing is tried again')
    await one.close()
  })

  await t.test('are left alone where recovery is off', async (t) => {
    await instance.create({ id: 'off', queue: 'q' })
    await control('off', 'run.claimed', { workerId: 'w' })
    await age('off', 61_000)
    await recovery({ RUN_RECOVERY_ENABLED: false }).close()
    t.equal((await runs.run('off')).status, 'starting')
  })
})
