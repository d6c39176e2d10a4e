/** The version of this package: the same file seen from src/ops and from dist/ops. */
import { readFileSync } from 'node:fs'
import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'

const packageJson: unknown = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))

export const VERSION = Value.Parse(Type.Object({ version: Type.String() }), packageJson).version
