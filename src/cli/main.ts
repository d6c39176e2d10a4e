#!/usr/bin/env node
/** The command line. What fails says so in a line on stderr, and the exit code is 1. */
import { Command } from 'commander'
import { DrizzleQueryError } from 'drizzle-orm'
import { VERSION } from '../ops/version.js'
import { compareCommand } from './compare.js'
import { keysCommand } from './keys.js'
import { verifyCommand } from './verify.js'

const program = new Command('runplane')
  .description('A control plane for runs of AI agents. Settings come from the environment and from .env: see .env.example.')
  .version(VERSION)
  .showHelpAfterError('(runplane --help shows what there is)')

program
  .command('start')
  .description('start the service')
  .action(async () => {
    await import('../main.js')
  })
program.addCommand(keysCommand())
program.addCommand(compareCommand())
program.addCommand(verifyCommand())

try {
  await program.parseAsync()
} catch (error) {
  // The driver's own words; drizzle's hold the query and its values.
  const shown = error instanceof DrizzleQueryError ? error.cause : error
  console.error(`runplane: ${shown instanceof Error ? shown.message : String(shown)}`)
  process.exitCode = 1
}
