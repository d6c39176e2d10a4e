#!/usr/bin/env node
// The command, which is here before the build as well: npx links what it finds at its first use, and would not look again.
import { existsSync } from 'node:fs'

const main = new URL('../dist/cli/main.js', import.meta.url)
if (existsSync(main)) await import(main.href)
else {
  console.error('runplane: it is not built yet. Run npm run build first.')
  process.exitCode = 1
}
