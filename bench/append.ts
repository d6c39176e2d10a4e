/**
 * Appends, durable when answered: what a request costs, and what a long run costs.
 *
 *   append       one event a request, 64 connections, 64 runs. Baseline: the same rows inserted straight into Postgres, one statement an event,
 *                16 connections. Target: at least 1.0 x its events/s.
 *   batch        100 events a request, 8 connections, 8 runs. Baseline: the same rows in one statement a hundred, one connection. At least 0.6 x.
 *   long-run     one run, 4 connections, 100 events a request: when its log holds 500,000 events, against 1,000. At least 0.9 x.
 * Knobs: ROUNDS and ROUND_MS; 414 bytes an event (workload.ts). The baseline's rows are copies of the service's (copied-rows.ts).
 */
import { performance } from 'node:perf_hooks'
import { copiedRun, insertMany, insertOne, templates } from './copied-rows.js'
import { compared, inTurns, rateOf, seconds, WARM_UP_MS } from './measure.js'
import type { Service } from './process.js'
import type { Scenario } from './scenario.js'
import { must, openConnection, openConnections } from './wire.js'
import { createRun, fill, post } from './workload.js'

const ROUNDS = 11
const ROUND_MS = 1500

/** Counts what is appended in the rounds, and the CPU time that it took the service. */
function meter(service: Service) {
  let events = 0
  let cpuMs = 0
  return {
    rateOf: async (writers: readonly (() => Promise<number>)[], durationMs: number) => {
      const before = await service.cpuMs()
      const startedAt = performance.now()
      const rate = await rateOf(writers, durationMs)
      events += (rate * (performance.now() - startedAt)) / 1000
      cpuMs += (await service.cpuMs()) - before
      return rate
    },
    note: () => `${((1000 * cpuMs) / events).toFixed(0)} µs of the service's CPU an event`,
  }
}

/** The items again and again. */
function around<T>(items: readonly T[]): () => T {
  let next = 0
  return () => {
    const item = items[next++ % items.length]
    if (item === undefined) throw new Error('there is nothing to go around')
    return item
  }
}

export const append: Scenario = async ({ database, quick, startService }) => {
  const service = await startService()
  const connections = await openConnections(service.port, 64)
  const writers = await Promise.all(
    connections.map(async (connection, index) => {
      const run = await createRun(connection, service.port, `append-${index}`)
      const next = around(Array.from({ length: 20 }, (_, n) => post(service.port, run, 1, n)))
      return async () => {
        await must(connection, next())
        return 1
      }
    }),
  )
  await rateOf(writers, WARM_UP_MS)

  const sql = await database.connect(16)
  const rows = await templates(sql, 'append-0', 20)
  const inserters = Array.from({ length: 16 }, () => {
    // 64 runs in all, and no two connections write to one run at once.
    const nextRun = around(Array.from({ length: 4 }, copiedRun))
    const nextRow = around(rows)
    return async () => {
      await insertOne(sql, nextRun(), nextRow())
      return 1
    }
  })
  await rateOf(inserters, WARM_UP_MS)

  const roundMs = quick ? 500 : ROUND_MS
  const measured = meter(service)
  const pairs = await inTurns(
    quick ? 2 : ROUNDS,
    () => measured.rateOf(writers, roundMs),
    () => rateOf(inserters, roundMs),
  )
  for (const connection of connections) connection.close()
  await sql.end()
  await service.stop()
  return [
    compared({ what: 'One event a request, 64 connections, 64 runs', database: database.kind, unit: 'events/s', note: measured.note() }, pairs, { atLeast: 1 }),
  ]
}

export const batch: Scenario = async ({ database, quick, startService }) => {
  const service = await startService()
  const connections = await openConnections(service.port, 8)
  const writers = await Promise.all(
    connections.map(async (connection, index) => {
      const bytes = post(service.port, await createRun(connection, service.port, `batch-${index}`), 100)
      return async () => {
        await must(connection, bytes)
        return 100
      }
    }),
  )
  await rateOf(writers, WARM_UP_MS)

  const sql = await database.connect(1)
  const rows = await templates(sql, 'batch-0', 100)
  const copy = copiedRun()
  const inserter = async () => {
    await insertMany(sql, copy, rows)
    return rows.length
  }
  await rateOf([inserter], WARM_UP_MS)

  const roundMs = quick ? 500 : ROUND_MS
  const measured = meter(service)
  const pairs = await inTurns(
    quick ? 2 : ROUNDS,
    () => measured.rateOf(writers, roundMs),
    () => rateOf([inserter], roundMs),
  )
  for (const connection of connections) connection.close()
  await sql.end()
  await service.stop()
  return [compared({ what: '100 events a request, 8 connections', database: database.kind, unit: 'events/s', note: measured.note() }, pairs, { atLeast: 0.6 })]
}

export const longRun: Scenario = async ({ database, quick, startService, say }) => {
  const service = await startService()
  const connections = await openConnections(service.port, 4)
  const writer = await openConnection(service.port)
  const length = quick ? 20_000 : 500_000
  const long = await createRun(writer, service.port, 'long')
  say(`filling a run with ${length} events`)
  await fill(writer, service.port, long, length)

  const events = quick ? 2000 : 10_000
  const rateOn = async (run: string) => {
    const bytes = post(service.port, run, 100)
    const took = await seconds(() =>
      Promise.all(
        connections.map(async (connection) => {
          for (let sent = 0; sent < events / 4; sent += 100) await must(connection, bytes)
        }),
      ),
    )
    return events / took
  }
  let shortRuns = 0
  const onShort = async () => {
    const run = await createRun(writer, service.port, `short-${shortRuns++}`)
    await fill(writer, service.port, run, 1000)
    return await rateOn(run)
  }
  await onShort()
  const pairs = await inTurns(quick ? 2 : 9, () => rateOn(long), onShort)
  for (const connection of [writer, ...connections]) connection.close()
  await service.stop()
  const what = `One run at ${length.toLocaleString('en')} events (baseline: at 1,000)`
  return [
    compared({ what, database: database.kind, unit: 'events/s', note: `${events.toLocaleString('en')} events a round, 100 a request, 4 connections` }, pairs, {
      atLeast: 0.9,
    }),
  ]
}
