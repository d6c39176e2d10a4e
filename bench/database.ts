/** The databases under test, each new and removed afterwards: one on the server at DATABASE_URL, one embedded in a temporary folder. */
import { chmod, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import postgres, { type Sql } from 'postgres'

export interface BenchDatabase {
  kind: 'server' | 'embedded'
  /** What the service is told. */
  env: Record<string, string>
  /** A client of the baseline's own. The embedded database runs as long as a service does. */
  connect(connections: number): Promise<Sql>
  remove(): Promise<void>
}

/** json is bound as the text that it is. */
const types = { json: { to: 114, from: [114], serialize: (text: string) => text, parse: (text: string) => text } }

/** @param url a database of the server, from which another is made. */
export async function serverDatabase(url: string): Promise<BenchDatabase> {
  const name = `runplane_bench_${process.pid}_${Date.now().toString(36)}`
  const admin = postgres(url, { max: 1, onnotice: () => undefined })
  await admin`create database ${admin(name)}`
  const own = new URL(url)
  own.pathname = `/${name}`
  return {
    kind: 'server',
    env: { DATABASE_URL: own.href },
    connect: async (max) => postgres(own.href, { max, types, onnotice: () => undefined }),
    remove: async () => {
      await admin`drop database ${admin(name)} with (force)`
      await admin.end()
    },
  }
}

export async function embeddedDatabase(): Promise<BenchDatabase> {
  const folder = await mkdtemp(join(tmpdir(), 'runplane-bench-'))
  // A service that runs as root runs its Postgres as another user, who must get there.
  await chmod(folder, 0o755)
  const dataDir = join(folder, 'data')
  return {
    kind: 'embedded',
    env: { DATA_DIR: dataDir },
    connect: async (max) => postgres({ path: await socketOf(dataDir), user: 'runplane', database: 'postgres', max, types, onnotice: () => undefined }),
    remove: () => rm(folder, { recursive: true, force: true }),
  }
}

/** The socket of the Postgres in a data directory: lines 4 and 5 of its postmaster.pid are its port and folder, which may be relative to its files. */
async function socketOf(dataDir: string): Promise<string> {
  const files = await readdir(dataDir, { recursive: true })
  const file = files.find((path) => path.endsWith('postmaster.pid'))
  if (file === undefined) throw new Error('the embedded database is not running')
  const path = join(dataDir, file)
  const [, , , port, folder] = (await readFile(path, 'utf8')).split('\n')
  if (port === undefined || folder === undefined) throw new Error('postmaster.pid is not complete')
  return resolve(dirname(path), folder, `.s.PGSQL.${port}`)
}
