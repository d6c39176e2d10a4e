/**
 * Lets what runs within a test write Parquet: the loader of the test runner does not know patterns in a package's `exports`,
 * which hyparquet-writer's imports of hyparquet go by. To be imported before anything is exported as a zip.
 */
import { createRequire, register } from 'node:module'
import { pathToFileURL } from 'node:url'

const entry = pathToFileURL(createRequire(import.meta.url).resolve('hyparquet')).href
const hooks = `export function resolve(name, context, next) {
  return name.startsWith('hyparquet/src/') ? { url: new URL(name.slice('hyparquet/src/'.length), ${JSON.stringify(entry)}).href, shortCircuit: true } : next(name, context)
}`
register(`data:text/javascript,${encodeURIComponent(hooks)}`)
