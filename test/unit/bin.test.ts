/** The command of the package. */
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'

const root = new URL('../../', import.meta.url)
const { bin } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8'))

t.test('the command is there before the build, says so, and runs what is built', async (t) => {
  const file = new URL(bin.runplane, root)
  t.ok(statSync(file).mode & 0o111, 'npx makes it executable only as it links it')
  const folder = t.testdir({ 'package.json': '{"type":"module"}' })
  mkdirSync(join(folder, 'bin'))
  copyFileSync(file, join(folder, 'bin/runplane.js'))
  const run = () => spawnSync(process.execPath, [join(folder, 'bin/runplane.js'), 'a'], { encoding: 'utf8' })
  t.match(run(), { status: 1, stdout: '', stderr: 'runplane: it is not built yet. Run npm run build first.\n' })
  mkdirSync(join(folder, 'dist/cli'), { recursive: true })
  writeFileSync(join(folder, 'dist/cli/main.js'), 'console.log(process.argv[2])')
  t.match(run(), { status: 0, stdout: 'a\n', stderr: '' })
})

t.test('the image has the command, and its build is given all that it copies', async (t) => {
  const text = (name: string) => readFileSync(new URL(name, root), 'utf8')
  const copied = Array.from(text('Dockerfile').matchAll(/^COPY (?!--from)(.+) \S+$/gm), ([, names = '']) => names.split(' ')).flat()
  t.ok(copied.includes('bin'))
  const given = Array.from(text('.dockerignore').matchAll(/^!(.+)$/gm), ([, name]) => name)
  t.same([...new Set(copied)].sort(), given.sort())
})
