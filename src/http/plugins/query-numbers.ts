/**
 * Numbers in a query are digits. The validator coerces whatever `Number` takes (`1e0`, `0x2`, ` 2 `), and cannot say what was there before;
 * so what a route's schema calls a number is looked at first.
 */
import { KindGuard } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { RunplaneError } from '../../errors.js'

const INTEGER = /^-?\d+$/
const NUMBER = /^-?\d+(\.\d+)?$/

export const queryNumbersPlugin = fastifyPlugin(
  async (app: FastifyInstance) => {
    app.addHook('onRoute', (route) => {
      const schema = route.schema?.querystring
      if (!KindGuard.IsObject(schema)) return
      const patterns = new Map<string, RegExp>()
      for (const [name, property] of Object.entries(schema.properties)) {
        if (KindGuard.IsInteger(property)) patterns.set(name, INTEGER)
        else if (KindGuard.IsNumber(property)) patterns.set(name, NUMBER)
      }
      if (patterns.size === 0) return
      route.preValidation = [
        ...[route.preValidation ?? []].flat(),
        async ({ query }) => {
          for (const [name, text] of Object.entries(query ?? {})) {
            const pattern = patterns.get(name)
            if (!pattern || typeof text !== 'string' || pattern.test(text)) continue
            const message = pattern === INTEGER ? 'must be an integer, in digits' : 'must be a number, in digits'
            throw new RunplaneError('VALIDATION_ERROR', `query/${name} ${message}.`, { errors: [{ path: `query/${name}`, message }] })
          }
        },
      ]
    })
  },
  { name: 'query-numbers', dependencies: ['errors'] },
)
