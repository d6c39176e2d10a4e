/**
 * The one way out: requests to addresses that users name (sources, callbacks, webhooks) go through a dispatcher that reaches
 * public addresses only, unless the setting OUTBOUND_ALLOW_PRIVATE says otherwise.
 *
 * What counts is the address that a socket connects to, so it is looked at there: after each DNS resolution and for each
 * connection. A name that resolves to another address the second time gains nothing by it.
 *
 * To be used with undici's `request`, which follows no redirect and decompresses nothing; `fetch` would do both.
 */
import { type LookupAddress, type LookupOptions, lookup as systemLookup } from 'node:dns'
import { isIP, type LookupFunction } from 'node:net'
import ipaddr from 'ipaddr.js'
import { Agent, buildConnector, type Dispatcher } from 'undici'
import { RunplaneError } from '../errors.js'

/** How long a connection may take to come about, TLS included. */
const CONNECT_TIMEOUT_MS = 10_000
/** Bytes of an answer's headers. */
const MAX_HEADER_BYTES = 16_384

const GLOBAL_UNICAST = ipaddr.IPv6.parse('2000::')
/** RFC 4291, 2.5.5.2 */
const IPV4_MAPPED = ipaddr.IPv6.parse('::ffff:0:0')
/** RFC 6052: how a network that has IPv6 only names the rest. */
const IPV4_TRANSLATED = ipaddr.IPv6.parse('64:ff9b::')

export interface Outbound {
  dispatcher: Dispatcher
  /** @throws RunplaneError VALIDATION_ERROR for a URL that is not http(s), has credentials, or names a refused address literally. */
  assertUrl(url: string): URL
  close(): Promise<void>
}

/** Why a connection was not made. To be told apart from a network's failure: trying again does not help. */
export class AddressRefused extends Error {
  override readonly name = 'AddressRefused'
  readonly code = 'ADDRESS_REFUSED'
}

type Resolve = (hostname: string, options: LookupOptions & { all: true }, done: (error: Error | null, addresses: LookupAddress[]) => void) => void

/** @param options.resolve asks for the addresses of a name; the system's resolver unless a test has its own. */
export function createOutbound({ allowPrivate, resolve = systemLookup }: { allowPrivate: boolean; resolve?: Resolve }): Outbound {
  const lookup: LookupFunction = (hostname, options, done) => {
    resolve(hostname, { ...options, all: true }, (error, addresses) => {
      if (error) return done(error, '', 0)
      const allowed = allowPrivate ? addresses : addresses.filter(({ address }) => isPublicAddress(address))
      const [first] = allowed
      if (!first) return done(refused(hostname), '', 0)
      if (options.all) done(null, allowed)
      else done(null, first.address, first.family)
    })
  }
  const connectTo = buildConnector({ lookup, timeout: CONNECT_TIMEOUT_MS })
  const dispatcher = new Agent({
    connect(options, callback) {
      // A literal address is not looked up.
      const host = bare(options.hostname)
      if (!allowPrivate && isIP(host) !== 0 && !isPublicAddress(host)) callback(refused(host), null)
      else connectTo(options, callback)
    },
    maxHeaderSize: MAX_HEADER_BYTES,
  })
  return {
    dispatcher,
    assertUrl(text) {
      const url = URL.canParse(text) ? new URL(text) : undefined
      if (url === undefined || (url.protocol !== 'http:' && url.protocol !== 'https:')) {
        throw invalid('A URL starts with http:// or https:// and names a host.')
      }
      if (url.username !== '' || url.password !== '') throw invalid('A URL here has no user or password in it: send them in a header.')
      if (!allowPrivate && isRefusedName(bare(url.hostname))) {
        throw invalid(`'${url.hostname}' is not a public address. Name a public one, or let the operator set OUTBOUND_ALLOW_PRIVATE=true.`)
      }
      return url
    },
    // Not close(), which waits for the end of streams that have none.
    close: () => dispatcher.destroy(),
  }
}

/** Of the ranges that IANA lists for special purposes (RFC 6890 and after), none is public. */
export function isPublicAddress(text: string): boolean {
  if (!ipaddr.isValid(text)) return false
  const address = ipaddr.parse(text)
  if (address instanceof ipaddr.IPv6) {
    const embedded = embeddedIPv4(address)
    // RFC 4291, 2.4 gives out global addresses from 2000::/3 only.
    return embedded ? isPublicAddress(embedded) : address.range() === 'unicast' && address.match(GLOBAL_UNICAST, 3)
  }
  // Azure gives its machines their settings at this one, out of a public range.
  return address.range() === 'unicast' && text !== '168.63.129.16'
}

/** The IPv4 address behind an IPv6 one, where there is one. */
function embeddedIPv4(address: ipaddr.IPv6): string | undefined {
  return address.match(IPV4_MAPPED, 96) || address.match(IPV4_TRANSLATED, 96) ? address.toByteArray().slice(12).join('.') : undefined
}

function isRefusedName(host: string): boolean {
  if (isIP(host) !== 0) return !isPublicAddress(host)
  return /^(.*\.)?localhost\.?$/i.test(host)
}

/** A URL has an IPv6 address in brackets. */
const bare = (hostname: string) => (hostname.startsWith('[') ? hostname.slice(1, -1) : hostname)

const refused = (host: string) => new AddressRefused(`'${host}' is not at a public address (setting OUTBOUND_ALLOW_PRIVATE).`)
const invalid = (detail: string) => new RunplaneError('VALIDATION_ERROR', detail)
