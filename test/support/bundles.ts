/** An instance of the service in this process, and what bundles are made of, for the tests of exports and imports. */
import './parquet-loader.js'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildApp } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import type { Database } from '../../src/db/client.js'
import { type BundlePart, scanBundle } from '../../src/insight/bundle-reader.js'
import { silent, type Teardown } from './database.js'
import { createClient } from './http.js'

export async function temporaryFolder(t: Teardown): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'runplane-bundles-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}

export async function listening(t: Teardown, database: Database, env: Record<string, string> = {}) {
  const config = loadConfig({ DATA_DIR: await temporaryFolder(t), ...env }, { envFile: '/nonexistent' })
  const app = await buildApp({ config, database, logger: silent })
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => app.close())
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
  return { app, url, client: createClient(url), config }
}

export async function exportOf(url: string, runId: string, query = '', headers: Record<string, string> = {}): Promise<Buffer> {
  const answer = await fetch(`${url}/runs/${runId}/export${query}`, { headers: { 'accept-encoding': 'identity', ...headers } })
  const bytes = Buffer.from(await answer.arrayBuffer())
  if (answer.status !== 200) throw new Error(`${answer.status} ${bytes.toString()}`)
  return bytes
}

export async function importInto(url: string, bundle: Uint8Array, query = '', contentType = 'application/octet-stream') {
  const answer = await fetch(`${url}/runs/import${query}`, { method: 'POST', headers: { 'content-type': contentType }, body: new Uint8Array(bundle) })
  const text = await answer.text()
  return { status: answer.status, body: JSON.parse(text) }
}

/** What is in a bundle, or the message of why it is none. */
export async function scanned(folder: string, bundle: Uint8Array): Promise<BundlePart[] | string> {
  const path = join(folder, 'scanned')
  await writeFile(path, bundle)
  const parts: BundlePart[] = []
  try {
    for await (const part of scanBundle(path, { maxBytes: 1_000_000_000 })) parts.push(part)
    return parts
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/**
 * An NDJSON bundle with other lines, and hashes that agree with them, as whoever can compute a SHA-256 may make one.
 * The events are those that there were.
 */
export function resealed(bundle: Buffer, change: (lines: string[]) => string[]): Buffer {
  const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')
  const lines = change(bundle.toString().trimEnd().split('\n'))
  const contentOf = (kind: string) => {
    const prefix = `{"kind":"${kind}","${kind}":`
    const found = lines.filter((line) => line.startsWith(prefix))
    return found.map((line) => `${line.slice(prefix.length, -1)}\n`).join('')
  }
  const { kind, sha256: _, ...manifest } = JSON.parse(lines.at(-1) ?? '')
  for (const file of manifest.files) {
    const content = file.path === 'run.json' ? contentOf('run') : file.path === 'events/checks.ndjson' ? contentOf('checks') : undefined
    if (content !== undefined) Object.assign(file, { bytes: Buffer.byteLength(content), sha256: sha256(content) })
  }
  const text = JSON.stringify(manifest).slice(0, -1)
  return Buffer.from([...lines.slice(0, -1), `{"kind":"${kind}",${text.slice(1)},"sha256":"${sha256(text)}"}`, ''].join('\n'))
}

/** A file of a zip, as the `unzip` of Info-ZIP reads it: another reader than ours. */
export function unzipped(path: string, file: string): string {
  return execFileSync('unzip', ['-p', path, file], { encoding: 'utf8', maxBuffer: 1_000_000_000 })
}
