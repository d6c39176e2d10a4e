/** The guard on real sockets: a server on the loopback must not be reached, by whatever name. */
import type { LookupAddress } from 'node:dns'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, isIPv6 } from 'node:net'
import t, { type Test } from 'tap'
import { request } from 'undici'
import { createOutbound } from '../../src/ops/outbound.js'

interface Counted {
  port: number
  requests: string[]
}

/** A server on both loopbacks where there are both, which redirects /redirect to itself. */
async function loopbackServer(t: Test): Promise<Counted> {
  const requests: string[] = []
  const server: Server = createServer((message, response) => {
    requests.push(message.url ?? '')
    if (message.url === '/redirect') response.writeHead(302, { location: `http://127.0.0.1:${(server.address() as AddressInfo).port}/target` })
    response.end('reached')
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', () => server.listen(0, '127.0.0.1', resolve).once('error', reject))
    server.listen(0, '::', resolve)
  })
  t.teardown(() => server.close())
  return { port: (server.address() as AddressInfo).port, requests }
}

function outbound(t: Test, allowPrivate: boolean, names: Record<string, string[]> = {}) {
  const asked: string[] = []
  const one = createOutbound({
    allowPrivate,
    resolve(hostname, _options, done) {
      asked.push(hostname)
      const addresses: LookupAddress[] = (names[hostname] ?? []).map((address) => ({ address, family: isIPv6(address) ? 6 : 4 }))
      if (addresses.length === 0) done(Object.assign(new Error(`no ${hostname}`), { code: 'ENOTFOUND' }), [])
      else done(null, addresses)
    },
  })
  t.teardown(() => one.close())
  return { ...one, asked }
}

t.test('connects to no literal address of its own machine', async (t) => {
  const { port, requests } = await loopbackServer(t)
  const { dispatcher } = outbound(t, false)
  for (const host of ['127.0.0.1', '[::1]', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '2130706433', '0177.0.0.1', '0x7f000001', '0.0.0.0', '127.1']) {
    await t.rejects(request(`http://${host}:${port}/`, { dispatcher }), { code: 'ADDRESS_REFUSED' }, host)
    await t.rejects(request(`https://${host}:${port}/`, { dispatcher }), { code: 'ADDRESS_REFUSED' }, host)
  }
  t.same(requests, [])
})

t.test('connects to no name that resolves to a private address', async (t) => {
  const { port, requests } = await loopbackServer(t)
  const names = {
    'four.example': ['127.0.0.1'],
    'six.example': ['::1'],
    'mapped.example': ['::ffff:127.0.0.1'],
    'metadata.example': ['169.254.169.254', 'fd00:ec2::254'],
  }
  const { dispatcher, asked } = outbound(t, false, names)
  for (const name of Object.keys(names)) {
    for (const scheme of ['http', 'https']) await t.rejects(request(`${scheme}://${name}:${port}/`, { dispatcher }), { code: 'ADDRESS_REFUSED' }, name)
  }
  t.same(new Set(asked), new Set(Object.keys(names)))
  t.same(requests, [])
})

t.test('looks again at each connection, so that a name cannot change its address in between', async (t) => {
  const { port, requests } = await loopbackServer(t)
  const names: Record<string, string[]> = {}
  const { dispatcher, asked } = outbound(t, false, names)
  await t.rejects(request(`http://rebound.example:${port}/`, { dispatcher }), { code: 'ENOTFOUND' })
  names['rebound.example'] = ['127.0.0.1']
  await t.rejects(request(`http://rebound.example:${port}/`, { dispatcher }), { code: 'ADDRESS_REFUSED' })
  t.equal(asked.length, 2)
  t.same(requests, [])
})

t.test('refuses the name localhost of the real resolver', async (t) => {
  const { port, requests } = await loopbackServer(t)
  const { dispatcher, close } = createOutbound({ allowPrivate: false })
  t.teardown(close)
  await t.rejects(request(`http://localhost:${port}/`, { dispatcher }), { code: 'ADDRESS_REFUSED' })
  t.same(requests, [])
})

t.test('follows no redirect', async (t) => {
  const { port, requests } = await loopbackServer(t)
  const { dispatcher } = outbound(t, true, { 'here.example': ['127.0.0.1'] })
  const { statusCode, body } = await request(`http://here.example:${port}/redirect`, { dispatcher })
  await body.dump()
  t.equal(statusCode, 302)
  t.same(requests, ['/redirect'])
})

t.test('reaches private addresses where they are allowed, by name and by number', async (t) => {
  const { port } = await loopbackServer(t)
  const { dispatcher } = outbound(t, true, { 'here.example': ['127.0.0.1'] })
  for (const host of ['127.0.0.1', 'here.example']) {
    const { body } = await request(`http://${host}:${port}/`, { dispatcher })
    t.equal(await body.text(), 'reached', host)
  }
})

t.test('closes while a stream is open', async (t) => {
  const server = createServer((_message, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(': open\n\n')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { dispatcher, close } = createOutbound({ allowPrivate: true })
  const { body } = await request(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, { dispatcher })
  await close()
  await t.rejects(body.text())
})
