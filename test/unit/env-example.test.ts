/** .env.example is what an operator reads: it has to say what the schema says. */
import { readFileSync } from 'node:fs'
import type { TSchema } from '@sinclair/typebox'
import { test } from 'tap'
import { ConfigSchema } from '../../src/config.js'

test('.env.example names every setting once, with its default and its range', async (t) => {
  const lines = readFileSync(new URL('../../.env.example', import.meta.url), 'utf8').split('\n')
  const named = lines.flatMap((line) => /^# ([A-Z][A-Z0-9_]+)=/.exec(line)?.[1] ?? [])
  t.same(named.sort(), Object.keys(ConfigSchema.properties).sort())
  for (const [name, schema] of Object.entries<TSchema>(ConfigSchema.properties)) {
    const at = lines.indexOf(`# ${name}=${schema.default ?? ''}`)
    t.ok(at > 0, `${name} has its default`)
    if (schema.type === 'integer') t.match(lines[at - 1], `${schema.minimum} to ${schema.maximum}`, `${name} has its range`)
  }
})
