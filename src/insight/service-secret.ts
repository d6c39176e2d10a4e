/** Secrets that the instances of one database share, each made by the first that asks for it: for signed downloads, for keyed hashes. */
import { randomBytes } from 'node:crypto'
import type { Sql } from '../db/client.js'

const SECRET_BYTES = 32

/** @returns 32 random bytes, the same for this name whoever asks, and for ever. */
export async function serviceSecret(sql: Sql, name: string): Promise<Buffer> {
  await sql`
    insert into service_secrets (name, value) values (${name}, decode(${randomBytes(SECRET_BYTES).toString('hex')}, 'hex')) on conflict do nothing`
  const [row] = await sql<{ value: string }[]>`select encode(value, 'hex') as value from service_secrets where name = ${name}`
  if (!row) throw new Error(`the service secret '${name}' is gone`)
  return Buffer.from(row.value, 'hex')
}
