/** A reference to a shared schema (`app.addSchema`), with the type of what it refers to. */
import { type Static, type TSchema, Type } from '@sinclair/typebox'

export function reference<Schema extends TSchema>(schema: Schema) {
  return Type.Unsafe<Static<Schema>>({ $ref: `${schema.$id}#` })
}
