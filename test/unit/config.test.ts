import { mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { ConfigError, ConfigSchema, corsOrigins, loadConfig, localUrl } from '../../src/config.js'

const none = { envFile: '/nonexistent/.env' }
const fault = (env: Record<string, string>) => {
  try {
    loadConfig(env, none)
  } catch (error) {
    if (error instanceof ConfigError) return error.message
    throw error
  }
  throw new Error('the settings were accepted')
}

t.test('without any setting the service listens on the loopback, with the embedded database', async (t) => {
  t.match(loadConfig({}, none), { PORT: 3000, HOST: '127.0.0.1', DATA_DIR: './data', STREAM_HEARTBEAT_MS: 15_000, LOG_LEVEL: 'info', TRUST_PROXY: false })
  t.equal(loadConfig({}, none).DATABASE_URL, undefined)
  t.equal(loadConfig({}, none).ADMIN_API_KEY, undefined)
})

t.test('an empty value is the same as none', async (t) => {
  t.strictSame(loadConfig({ PORT: '', DATABASE_URL: '', HOST: '', ADMIN_API_KEY: '', CORS_ORIGINS: '' }, none), loadConfig({}, none))
})

t.test('what is not a setting is ignored', async (t) => {
  t.notOk('PATH' in loadConfig({ PATH: '/bin' }, none))
})

t.test('a bad value names the setting, the value and what is allowed', async (t) => {
  t.equal(fault({ PORT: '70000' }), "PORT: '70000' is not allowed. Allowed: a whole number from 0 to 65535 (TCP port; 0 takes a free one).")
  t.match(fault({ LOG_LEVEL: 'loud' }), /^LOG_LEVEL: 'loud' .* one of fatal, error, warn, info, debug, trace, silent/)
  t.match(fault({ TRUST_PROXY: 'yes' }), /^TRUST_PROXY: 'yes' .* true or false/)
  t.match(fault({ CORS_ORIGINS: 'https://a.example/path' }), /^CORS_ORIGINS: 'https:\/\/a.example\/path'/)
})

t.test('numbers are whole decimal numbers and nothing that only looks like one', async (t) => {
  for (const text of ['1e3', '0x10', '3000.5', ' 3000', '3 000', 'NaN', '-1', '3000ms']) t.match(fault({ PORT: text }), /^PORT:/, text)
})

t.test('all bad settings are told at once', async (t) => {
  t.same(
    fault({ PORT: 'x', DB_POOL_MAX: '0', STREAM_STALL_MS: '-5' })
      .split('\n')
      .map((line) => line.split(':', 1)[0]),
    ['PORT', 'DB_POOL_MAX', 'STREAM_STALL_MS'],
  )
})

t.test('the value of a secret is not told', async (t) => {
  const message = fault({ DATABASE_URL: 'mysql://root:hunter2@db/x', ADMIN_API_KEY: 'hunter2' })
  t.match(message, /DATABASE_URL: its value is not allowed/)
  t.match(message, /ADMIN_API_KEY: its value is not allowed. Allowed: 32 to 256/)
  t.notMatch(message, /hunter2/)
})

t.test('any origin at all is refused for CORS: pages are named one by one', async (t) => {
  t.match(fault({ CORS_ORIGINS: '*' }), /^CORS_ORIGINS/)
  t.same(corsOrigins(loadConfig({ CORS_ORIGINS: 'https://app.example.com, http://localhost:5173' }, none)), [
    'https://app.example.com',
    'http://localhost:5173',
  ])
  t.same(corsOrigins(loadConfig({}, none)), [])
})

t.test('the address of a store is a URL of a host', async (t) => {
  for (const bad of ['https://a b', 'https://', 'ftp://store.example', 'https://store.example/path', 'store.example']) {
    t.match(fault({ S3_ENDPOINT: bad }), /^S3_ENDPOINT: /, bad)
  }
  for (const good of ['https://store.example', 'http://127.0.0.1:9000/']) t.equal(loadConfig({ S3_ENDPOINT: good }, none).S3_ENDPOINT, good)
})

t.test('a file of settings is read, and the environment wins over it', async (t) => {
  const envFile = join(mkdtempSync(join(tmpdir(), 'config-')), '.env')
  writeFileSync(envFile, '# settings\nPORT=4000\nDB_POOL_MAX="20"\nHOST=\n')
  t.match(loadConfig({ PORT: '5000' }, { envFile }), { PORT: 5000, DB_POOL_MAX: 20, HOST: '127.0.0.1' })
  t.match(loadConfig({ PORT: '' }, { envFile }), { PORT: 4000 }, 'an empty one does not')
})

t.test('a file of settings that cannot be read is told', async (t) => {
  t.throws(() => loadConfig({}, { envFile: tmpdir() }), /cannot be read/)
})

t.test('every setting tells what it is for', async (t) => {
  for (const [name, schema] of Object.entries(ConfigSchema.properties)) t.ok(schema.description, name)
})

t.test('a client on this machine finds the service by its settings', async (t) => {
  const urlFor = (env: Record<string, string>) => localUrl(loadConfig(env, none))
  t.equal(urlFor({}), 'http://127.0.0.1:3000')
  t.equal(urlFor({ PORT: '3431', HOST: 'localhost' }), 'http://localhost:3431')
  t.equal(urlFor({ HOST: '0.0.0.0' }), 'http://127.0.0.1:3000', 'all addresses')
  t.equal(urlFor({ HOST: '::' }), 'http://[::1]:3000', 'and all of IPv6')
  t.equal(urlFor({ HOST: 'fd00::2' }), 'http://[fd00::2]:3000')
})
