/** Checks the body that creates a run, in either of its forms, and tells all that is wrong with it. */
import { FormatRegistry } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import { mustBe } from '../domain/pattern.js'
import { CreateRun, isRunDescriptor, planOfCommand, planOfDescriptor, RunDescriptor, type RunPlan } from '../domain/run-request.js'
import { toUtc } from '../domain/time.js'
import { type ProblemField, RunplaneError } from '../errors.js'
import { harmless } from '../ingest/json-items.js'

FormatRegistry.Set('date-time', (text) => toUtc(text) !== undefined)
const createRun = TypeCompiler.Compile(CreateRun)
const runDescriptor = TypeCompiler.Compile(RunDescriptor)
const MAX_ERRORS = 20
const PLAIN: Readonly<Record<string, string>> = { 'Unexpected property': 'is not a field of this command', 'Expected required property': 'is required' }
const MAX_DEPTH = 64

/** What is wrong with the body; empty where nothing is. */
export function checkRun(body: unknown): ProblemField[] {
  if (depthOf(body) > MAX_DEPTH) return [{ path: 'body', message: `nests deeper than ${MAX_DEPTH} levels` }]
  const schema = isRunDescriptor(body) ? runDescriptor : createRun
  if (schema.Check(body)) return []
  const errors = new Map<string, ProblemField>()
  for (const { path: at, message, schema: part } of schema.Errors(body)) {
    const path = `body${at}`
    // The first of a path says most: what is missing is of the wrong type, too.
    if (!errors.has(path)) errors.set(path, { path, message: PLAIN[message] ?? mustBe(part.pattern) ?? message })
    if (errors.size >= MAX_ERRORS) break
  }
  return [...errors.values()]
}

/** @throws VALIDATION_ERROR with all that is wrong */
export function planRun(body: unknown): RunPlan {
  const errors = checkRun(body)
  if (errors.length > 0) {
    throw new RunplaneError(
      'VALIDATION_ERROR',
      `The run cannot be created: ${errors[0]?.path} ${errors[0]?.message}. POST /runs/validate checks without creating.`,
      { errors },
    )
  }
  // NUL and lone surrogates are nothing that the database holds.
  const clean = harmless(body)
  if (isRunDescriptor(clean)) return planOfDescriptor(runDescriptor.Decode(clean))
  return planOfCommand(createRun.Decode(clean))
}

/** What a clone has of its own. @throws VALIDATION_ERROR for what nests too deep; its fields are checked by the route's schema. */
export function planClone(body: CreateRun): RunPlan {
  if (depthOf(body) > MAX_DEPTH) throw new RunplaneError('VALIDATION_ERROR', `The body nests deeper than ${MAX_DEPTH} levels.`)
  return planOfCommand(createRun.Decode(harmless(body)))
}

function depthOf(value: unknown, depth = 0): number {
  if (typeof value !== 'object' || value === null || depth > MAX_DEPTH) return depth
  let deepest = depth + 1
  for (const member of Object.values(value)) deepest = Math.max(deepest, depthOf(member, depth + 1))
  return deepest
}
