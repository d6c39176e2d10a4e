/**
 * `runplane keys`: straight on the database, since a service on a public address does not start without a key.
 * stdout has what a program wants (the key alone, or a line each), stderr what a person wants to know beside it.
 */
import { Value } from '@sinclair/typebox/value'
import { Command, Option } from 'commander'
import { pino } from 'pino'
import { type AuditEntry, createAudit } from '../access/audit.js'
import { createKeys, type Keys } from '../access/keys.js'
import { ROLES, type Role } from '../access/roles.js'
import { loadConfig } from '../config.js'
import { openDatabase } from '../db/client.js'
import { migrate } from '../db/migrate.js'
import { DEFAULT_WORKSPACE_ID } from '../domain/ids.js'
import { RunplaneError } from '../errors.js'
import { NewKey } from '../http/schemas/keys.js'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i

export function keysCommand(): Command {
  const keys = new Command('keys').description('make, list and revoke API keys (on the database at DATABASE_URL, or the embedded one in DATA_DIR)')

  keys
    .command('create')
    .description('make a key; it is shown this once')
    .requiredOption('--name <name>', 'who holds it')
    .addOption(new Option('--role <role>', 'guest reads, member also posts and controls, admin also manages').choices(ROLES).makeOptionMandatory())
    .option('--workspace <name>', 'the workspace that it belongs to, made if it is not there', 'default')
    .action(async (input: { name: string; role: Role; workspace: string }) => {
      const [fault] = Value.Errors(NewKey, input)
      if (fault)
        throw new RunplaneError(
          'VALIDATION_ERROR',
          `--${fault.path.slice(1)} '${fault.value}' is not allowed. Allowed: ${fault.schema.description ?? fault.message}.`,
        )
      const created = await withKeys(async (keys, told) => {
        const made = await keys.create(input)
        await told({ action: 'key.create', workspaceId: made.workspaceId, targetId: made.id, detail: { name: made.name, role: made.role } })
        return made
      })
      console.error(`Key ${created.id} '${created.name}' with the role ${created.role} in the workspace ${created.workspace}. It is shown this once:`)
      console.log(created.key)
    })

  keys
    .command('list')
    .description('list the keys that are not revoked')
    .action(async () => {
      const rows = await withKeys((keys) => keys.list())
      if (rows.length === 0) console.error('There is no key: the service is open, and listens on the loopback only.')
      for (const row of rows) console.log([row.id, row.role.padEnd(6), row.createdAt, row.workspace, row.name].join('  '))
    })

  keys
    .command('revoke')
    .description('revoke a key; services refuse it within a second')
    .argument('<id>', 'as keys list shows it')
    .action(async (id: string) => {
      if (!UUID.test(id)) throw new RunplaneError('VALIDATION_ERROR', `'${id}' is not the id of a key. runplane keys list shows the ids.`)
      await withKeys(async (keys, told) => {
        const key = (await keys.list()).find((one) => one.id === id.toLowerCase())
        await keys.revoke(id)
        await told({ action: 'key.revoke', workspaceId: key?.workspaceId ?? DEFAULT_WORKSPACE_ID, targetId: id, detail: {} })
      })
      console.error(`Key ${id} is revoked.`)
    })

  return keys
}

type Tell = (line: Pick<AuditEntry, 'action' | 'workspaceId' | 'targetId' | 'detail'>) => Promise<void>

async function withKeys<Result>(use: (keys: Keys, told: Tell) => Promise<Result>): Promise<Result> {
  const config = loadConfig()
  const logger = pino({ level: 'warn' }, pino.destination({ dest: 2, sync: true }))
  const database = await openDatabase({ databaseUrl: config.DATABASE_URL, dataDir: config.DATA_DIR, poolMax: 2, logger })
  try {
    await migrate(database)
    const audit = createAudit(database)
    const told: Tell = (line) => audit.record([{ ...line, actor: 'operator', targetKind: 'key', outcome: 'done' }])
    return await use(createKeys(database, { adminApiKey: config.ADMIN_API_KEY }), told)
  } finally {
    await database.close()
  }
}
