/** Which addresses the service's own requests may reach. */
import t from 'tap'
import { createOutbound, isPublicAddress } from '../../src/ops/outbound.js'

const REFUSED = [
  '127.0.0.1',
  '127.255.255.254',
  '0.0.0.0',
  '0.1.2.3',
  '10.1.2.3',
  '172.16.0.1',
  '172.31.255.255',
  '192.168.0.1',
  '100.64.0.1',
  '100.100.100.200',
  '169.254.169.254',
  '168.63.129.16',
  '192.0.0.192',
  '192.0.2.1',
  '198.18.0.1',
  '203.0.113.1',
  '224.0.0.1',
  '239.255.255.250',
  '240.0.0.1',
  '255.255.255.255',
  '::',
  '::1',
  '::ffff:127.0.0.1',
  '::ffff:7f00:1',
  '::ffff:a9fe:a9fe',
  '::127.0.0.1',
  'fe80::1',
  'fe80::1%eth0',
  'fec0::1',
  'fc00::1',
  'fd00:ec2::254',
  'ff02::1',
  '64:ff9b::7f00:1',
  '64:ff9b::a9fe:a9fe',
  '64:ff9b:1::808:808',
  '2002:7f00:1::',
  '2001::1',
  '2001:db8::1',
  '100::1',
]
const PUBLIC = ['8.8.8.8', '1.1.1.1', '172.32.0.1', '100.128.0.1', '2606:4700:4700::1111', '::ffff:8.8.8.8', '64:ff9b::808:808']

t.test('knows the addresses that are not public', async (t) => {
  for (const address of REFUSED) t.notOk(isPublicAddress(address), address)
  for (const address of PUBLIC) t.ok(isPublicAddress(address), address)
  t.notOk(isPublicAddress('example.com'), 'a name is no address')
})

t.test('refuses a URL that names such an address, in whichever notation', async (t) => {
  const outbound = createOutbound({ allowPrivate: false })
  t.teardown(() => outbound.close())
  const hosts = [
    ...REFUSED.filter((address) => !address.includes('%')).map((address) => (address.includes(':') ? `[${address}]` : address)),
    '2130706433',
    '017700000001',
    '0x7f000001',
    '0x7f.1',
    '127.1',
    '0',
    'localhost',
    'LOCALHOST',
    'localhost.',
    'a.localhost',
    '127.0.0.1.',
    '%31%32%37.0.0.1',
    '１２７.0.0.1',
  ]
  for (const host of hosts) t.throws(() => outbound.assertUrl(`http://${host}:8080/x`), { code: 'VALIDATION_ERROR' }, host)
  for (const host of ['8.8.8.8', '[2606:4700:4700::1111]', 'example.com', 'localhost.example.com', 'mylocalhost']) {
    t.ok(outbound.assertUrl(`https://${host}/x`) instanceof URL, host)
  }
})

t.test('refuses what is no http URL, and credentials in it', async (t) => {
  for (const allowPrivate of [false, true]) {
    const outbound = createOutbound({ allowPrivate })
    t.teardown(() => outbound.close())
    for (const url of ['', 'x', '/x', 'file:///etc/passwd', 'ftp://example.com', 'data:,x', 'javascript:1', 'http://', 'http://[::1', '//example.com']) {
      t.throws(() => outbound.assertUrl(url), { code: 'VALIDATION_ERROR' }, url)
    }
    t.throws(() => outbound.assertUrl('https://user@example.com/'), { code: 'VALIDATION_ERROR' })
    t.throws(() => outbound.assertUrl('https://:secret@example.com/'), { code: 'VALIDATION_ERROR', message: /header/ })
  }
})

t.test('lets private addresses through where the operator allows them', async (t) => {
  const outbound = createOutbound({ allowPrivate: true })
  t.teardown(() => outbound.close())
  t.equal(outbound.assertUrl('http://127.0.0.1:1234/x').port, '1234')
  t.equal(outbound.assertUrl('http://localhost/').hostname, 'localhost')
})
