/** References to shared schemas (`app.addSchema`), with the type of what they refer to. */
import { type Static, type TSchema, Type } from '@sinclair/typebox'

/** @param description of an answer: what it is here, which the shared schema does not say. */
export function reference<Schema extends TSchema>(schema: Schema, description?: string) {
  return Type.Unsafe<Static<Schema>>({ $ref: `${schema.$id}#`, ...(description !== undefined && { description }) })
}
