/**
 * Addresses, and connections made to them. Knows the address grammar (client-protocol §1.1). Does not know what is
 * said on a connection, nor when to try again.
 */
import net from 'node:net'
import { DqliteError } from '../errors.js'

export const defaultPort = 8080

export type ParsedAddress =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  /** `path` as the system takes it: an abstract name begins with NUL. */
  | { readonly kind: 'unix'; readonly path: string }

/**
 * `host[:port]`, `[v6][:port]`, bare `v6`, `@abstract`, `/path`. Hosts may be names, which C dqlite does not resolve.
 * Throws BAD_OPTION. Port 0 and `@` alone are for binding only.
 */
export function parseAddress(address: string): ParsedAddress {
  if (address.includes('\0')) throw badAddress(address, 'it contains NUL')
  if (address.startsWith('/')) return { kind: 'unix', path: address }
  if (address.startsWith('@')) return { kind: 'unix', path: `\0${address.slice(1)}` }
  if (net.isIPv6(address)) return { kind: 'tcp', host: address, port: defaultPort }
  const match = /^(?:\[([^[\]]+)\]|([^[\]:@/\s]+))(?::(\d{1,5}))?$/.exec(address)
  if (match === null) throw badAddress(address, 'it should be host:port, [IPv6]:port, @name or /path')
  const [, v6, name, digits] = match
  if (v6 !== undefined && !net.isIPv6(v6)) throw badAddress(address, `${v6} is not an IPv6 address`)
  const port = digits === undefined ? defaultPort : Number(digits)
  if (port > 65_535) throw badAddress(address, `there is no port ${port}`)
  return { kind: 'tcp', host: v6 ?? name!, port }
}

const badAddress = (address: string, why: string): DqliteError =>
  new DqliteError('BAD_OPTION', `address ${JSON.stringify(address)} cannot be used: ${why}`)

export interface DialOptions {
  readonly timeoutMs: number
  readonly signal?: AbortSignal
}

export type Dial = (address: string, options: DialOptions) => Promise<net.Socket>

/**
 * A connected socket. Rejects with BAD_OPTION (no address), NO_CONNECTION (refused, no route, too slow) or ABORTED.
 * An error of the connection later on reaches its owner as 'close', and as 'error' if the owner listens to it.
 */
export async function dial(address: string, options: DialOptions): Promise<net.Socket> {
  const parsed = parseAddress(address)
  const { timeoutMs, signal } = options
  if (parsed.kind === 'tcp' && parsed.port === 0) throw badAddress(address, 'port 0 is for listening')
  if (signal?.aborted === true) throw aborted(address, signal)
  const socket =
    parsed.kind === 'tcp'
      ? net.connect({ host: parsed.host, port: parsed.port, noDelay: true })
      : net.connect({ path: parsed.path })
  return new Promise((resolve, reject) => {
    const settle = (error: DqliteError | undefined): void => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
      socket.off('connect', onConnect)
      if (error === undefined) return resolve(socket)
      socket.destroy()
      reject(error)
    }
    const onConnect = (): void => settle(undefined)
    const onAbort = (): void => settle(aborted(address, signal!))
    const timer = setTimeout(
      () => settle(new DqliteError('NO_CONNECTION', `${address} did not accept a connection within ${timeoutMs} ms`)),
      timeoutMs,
    )
    socket.once('connect', onConnect)
    signal?.addEventListener('abort', onAbort, { once: true })
    // Stays: an error before the owner listens must not end the process. 'close' follows it and cannot be missed,
    // because `socket.destroyed` tells.
    socket.on('error', (cause) =>
      settle(new DqliteError('NO_CONNECTION', `cannot connect to ${address}: ${cause.message}`, { cause })),
    )
  })
}

/**
 * An application's own dial, held to what it promises: in time, or not at all, and a socket. One that comes too late is
 * closed.
 */
export function guarded(custom: Dial): Dial {
  return (address, { timeoutMs, signal }) =>
    new Promise((resolve, reject) => {
      if (signal?.aborted === true) return reject(aborted(address, signal))
      // Ends the attempt, if it listens, whoever gives up.
      const attempt = new AbortController()
      let isSettled = false
      const settle = (error: unknown, socket?: net.Socket): void => {
        if (isSettled) return
        isSettled = true
        clearTimeout(timer)
        signal?.removeEventListener('abort', onAbort)
        if (socket !== undefined) return resolve(socket)
        attempt.abort(error)
        reject(error instanceof Error ? error : new Error(String(error)))
      }
      const onAbort = (): void => settle(aborted(address, signal!))
      const timer = setTimeout(
        () => settle(new DqliteError('NO_CONNECTION', `no connection to ${address} within ${timeoutMs} ms`)),
        timeoutMs,
      )
      signal?.addEventListener('abort', onAbort, { once: true })
      const dialled = async (): Promise<void> => {
        const socket: unknown = await custom(address, { timeoutMs, signal: attempt.signal })
        if (!(socket instanceof net.Socket))
          throw new DqliteError('BAD_OPTION', 'option dial gave something that is not a net.Socket or tls.TLSSocket')
        // As dial's own: an error before the owner listens must not end the process.
        socket.on('error', () => socket.destroy())
        if (isSettled) socket.destroy()
        else settle(undefined, socket)
      }
      dialled().catch((error: unknown) => settle(error))
    })
}

const aborted = (address: string, signal: AbortSignal): DqliteError =>
  new DqliteError('ABORTED', `connecting to ${address} was aborted`, { cause: signal.reason })
