/**
 * The open mode: a service without any key answers only callers on its own machine, and never a page of the web that a
 * browser on this machine shows (DNS rebinding, cross-site requests).
 */
import type { Config } from '../config.js'
import { ConfigError } from '../config.js'

/** Callers of one machine call it by one name: that is taken apart once. */
let lastLoopbackHost: string | undefined

/** @param host a `Host` header or a host name: `localhost:3000`, `[::1]`, `127.0.0.1`. */
export function isLoopbackHost(host: string | undefined): boolean {
  if (host === undefined) return false
  if (host === lastLoopbackHost) return true
  const name = /^(\[[^\]]*\]|[^:]*)(:\d{1,5})?$/.exec(host)?.[1]?.toLowerCase().replace(/\.$/, '')
  if (name === undefined) return false
  const isLoopback = name === 'localhost' || name.endsWith('.localhost') || name === '[::1]' || isLoopbackAddress(name)
  if (isLoopback) lastLoopbackHost = host
  return isLoopback
}

/** @param address an IP address without brackets, or `localhost`: what a server listens on, or who a peer is. */
export function isLoopbackAddress(address: string): boolean {
  const plain = address.toLowerCase().replace(/^::ffff:/, '')
  return plain === 'localhost' || plain === '::1' || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(plain)
}

/** @param origin an `Origin` header. `null` is no loopback: any sandboxed page sends it. */
export function isLoopbackOrigin(origin: string): boolean {
  return URL.canParse(origin) && /^https?:$/.test(new URL(origin).protocol) && isLoopbackHost(new URL(origin).host)
}

/** Refuses to start on an address that others can reach while there is no key. @throws ConfigError */
export function assertExposable(config: Pick<Config, 'HOST'>, hasKeys: boolean): void {
  if (hasKeys || isLoopbackAddress(config.HOST)) return
  throw new ConfigError(
    `HOST: '${config.HOST}' can be reached from other machines, and there is no API key, so that anyone could do anything. ` +
      "Make one first (npx runplane keys create --name admin --role admin) or set ADMIN_API_KEY, or leave HOST at '127.0.0.1'.",
  )
}
