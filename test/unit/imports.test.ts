/** The direction of imports (design, section 7): down the line, never up, and in no circle; and the pure folders stay pure. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const src = fileURLToPath(new URL('../../src', import.meta.url))

/** What each folder or file of src may import, besides itself. */
const ALLOWED: Record<string, string[]> = {
  'errors.ts': [],
  // What a setting may say is checked when it is read.
  'config.ts': ['ingest'],
  domain: ['errors.ts'],
  ingest: ['domain', 'errors.ts'],
  projections: ['domain', 'errors.ts'],
  db: ['domain', 'errors.ts', 'config.ts'],
  ops: ['errors.ts', 'config.ts', 'domain', 'ingest', 'db'],
  log: ['domain', 'errors.ts', 'config.ts', 'ingest', 'projections', 'db', 'ops'],
  access: ['domain', 'errors.ts', 'config.ts', 'db'],
  tail: ['domain', 'errors.ts', 'config.ts', 'ingest', 'projections', 'db', 'ops', 'log'],
  runs: ['domain', 'errors.ts', 'config.ts', 'ingest', 'projections', 'db', 'ops', 'log'],
  insight: ['domain', 'errors.ts', 'config.ts', 'ingest', 'projections', 'db', 'ops', 'log', 'runs', 'tail'],
  webhooks: ['domain', 'errors.ts', 'config.ts', 'ingest', 'projections', 'db', 'ops', 'log'],
  http: ['domain', 'errors.ts', 'config.ts', 'ingest', 'projections', 'db', 'ops', 'log', 'access', 'tail', 'runs', 'insight', 'webhooks'],
  'app.ts': ['domain', 'errors.ts', 'config.ts', 'ingest', 'projections', 'db', 'ops', 'log', 'access', 'tail', 'runs', 'insight', 'webhooks', 'http'],
  'main.ts': ['app.ts', 'config.ts', 'errors.ts', 'db', 'ops', 'access'],
  // `keys` works on the database: without a key there may be no service to ask. `verify` and `compare` of bundles need no service.
  // Of projections, the types of what a service answers.
  cli: ['main.ts', 'config.ts', 'errors.ts', 'domain', 'projections', 'db', 'access', 'ops', 'http', 'insight'],
}
const PURE = ['domain', 'ingest', 'projections']
/** Of Node, what computes; of npm, what describes. */
const PURE_PACKAGES = [
  'node:crypto',
  'node:buffer',
  'node:string_decoder',
  'node:util',
  '@sinclair/typebox',
  '@sinclair/typebox/value',
  '@sinclair/typebox/compiler',
  're2js',
]
/** Code that is pure but for a default argument: the caller may always pass the time. */
const EXCEPTIONS: Record<string, RegExp> = { 'domain/ids.ts': /nowMs: number = Date\.now\(\)|randomFillSync/ }

const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter((path) => /\.tsx?$/.test(path))
const IMPORT = /(?:^|\n)\s*(?:import|export)\s[^'"]*?from\s+'([^']+)'|(?:^|\n)\s*import\s+'([^']+)'|\bimport\(\s*'([^']+)'\s*\)/g

interface Import {
  from: string
  /** A path in src, or a package. */
  to: string
  local: boolean
}

const imports: Import[] = files.flatMap((from) =>
  [...readFileSync(join(src, from), 'utf8').matchAll(IMPORT)].map((match) => {
    const to = match[1] ?? match[2] ?? match[3] ?? ''
    return to.startsWith('.') ? { from, to: normalize(join(dirname(from), to)).replace(/\.js$/, '.ts'), local: true } : { from, to, local: false }
  }),
)

const part = (path: string) => path.split('/', 1)[0] ?? path

t.test('every import goes down the line', async (t) => {
  const upward = imports.filter(({ from, to, local }) => local && part(from) !== part(to) && !ALLOWED[part(from)]?.includes(part(to)))
  t.same(
    upward.map(({ from, to }) => `${from} -> ${to}`),
    [],
  )
})

t.test('every folder has its place in the line', async (t) => {
  t.same(
    [...new Set(files.map(part))].filter((name) => !(name in ALLOWED)),
    [],
  )
})

t.test('no imports go in a circle', async (t) => {
  const targets = new Map<string, string[]>()
  for (const { from, to, local } of imports) if (local) targets.set(from, [...(targets.get(from) ?? []), to])
  const done = new Set<string>()
  const circles: string[] = []
  const visit = (file: string, path: string[]) => {
    if (path.includes(file)) circles.push([...path.slice(path.indexOf(file)), file].join(' -> '))
    if (done.has(file) || path.includes(file)) return
    for (const next of targets.get(file) ?? []) visit(next, [...path, file])
    done.add(file)
  }
  for (const file of files) visit(file, [])
  t.same(circles, [])
})

t.test('the pure folders import nothing that acts', async (t) => {
  const acting = imports.filter(({ from, to, local }) => PURE.includes(part(from)) && !local && !PURE_PACKAGES.includes(to))
  t.same(
    acting.map(({ from, to }) => `${from} -> ${to}`),
    [],
  )
})

t.test('the pure folders ask neither the clock nor chance', async (t) => {
  const IMPURE = /Date\.now\(\)|new Date\(\)|Math\.random|performance\.now|randomUUID|randomBytes|randomFillSync|setTimeout|setInterval|process\.env/
  const found = files
    .filter((file) => PURE.includes(part(file)))
    .flatMap((file) =>
      readFileSync(join(src, file), 'utf8')
        .split('\n')
        .flatMap((line, index) => (IMPURE.test(line) && !EXCEPTIONS[relative('.', file)]?.test(line) ? [`${file}:${index + 1}: ${line.trim()}`] : [])),
    )
  t.same(found, [])
})

t.test('of a service, only config.ts reads the environment', async (t) => {
  t.same(
    // The embedded PostgreSQL is spawned with the PATH of its service.
    files.filter((file) => file !== 'config.ts' && part(file) !== 'cli' && /process\.env\b(?!\.PATH)/.test(readFileSync(join(src, file), 'utf8'))),
    [],
  )
})
