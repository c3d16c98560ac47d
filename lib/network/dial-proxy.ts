/**
 * Connections made by somebody else: a process that dials for a node, with its own TLS, tunnel or HTTP upgrade, behind a
 * Unix socket. Knows the one question that it is asked. What it does then is its own affair.
 *
 *   us:     ADDRESS \n
 *   proxy:  OK \n          and from here on the stream to that address
 *           ERR text \n    and the end
 */
import type net from 'node:net'
import { DqliteError } from '../errors.js'
import { dial, parseAddress, type Dial } from './dial.js'

/** An answer that is longer is none. */
const answerBytesMax = 1024
const addressBytesMax = 1024
const newline = 0x0a

/** Throws BAD_OPTION if `proxy` cannot be a Unix socket. */
export function dialThroughProxy(proxy: string): Dial {
  if (parseAddress(proxy).kind !== 'unix')
    throw new DqliteError('BAD_OPTION', `dial proxy ${JSON.stringify(proxy)} must be /path or @name of a Unix socket`)
  return async (address, options) => {
    // A line break would be a second question.
    if (/[\n\r\0]/.test(address) || address === '' || Buffer.byteLength(address) > addressBytesMax)
      throw new DqliteError('BAD_OPTION', `address ${JSON.stringify(address)} cannot be asked for`)
    const beganMs = performance.now()
    const socket = await dial(proxy, options)
    try {
      socket.write(`${address}\n`)
      await answered(socket, address, {
        ...options,
        timeoutMs: Math.max(0, options.timeoutMs - (performance.now() - beganMs)),
      })
      return socket
    } catch (error) {
      socket.destroy()
      throw error
    }
  }
}

/** Resolves once the proxy has said OK. What it has sent behind that is still to be read. */
function answered(
  socket: net.Socket,
  address: string,
  { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal?: AbortSignal },
): Promise<void> {
  return new Promise((resolve, reject) => {
    let held = Buffer.alloc(0)
    const settle = (error?: DqliteError): void => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
      socket.off('readable', onReadable)
      socket.off('close', onClose)
      if (error === undefined) resolve()
      else reject(error)
    }
    const failed = (why: string): void =>
      settle(new DqliteError('NO_CONNECTION', `the proxy did not connect to ${address}: ${why}`))
    const onReadable = (): void => {
      const chunk = socket.read() as Buffer | null
      if (chunk === null) return
      held = Buffer.concat([held, chunk])
      const end = held.indexOf(newline)
      if (end < 0 ? held.byteLength > answerBytesMax : end > answerBytesMax)
        return failed(`it answered with more than ${answerBytesMax} bytes`)
      if (end < 0) return
      const line = held.toString('utf8', 0, end)
      if (line === 'OK') {
        if (held.byteLength > end + 1) socket.unshift(held.subarray(end + 1))
        settle()
      } else if (line.startsWith('ERR ')) failed(line.slice(4))
      else failed(`it answered ${JSON.stringify(line)}`)
    }
    const onClose = (): void => failed('it closed the connection')
    const onAbort = (): void =>
      settle(new DqliteError('ABORTED', `connecting to ${address} was aborted`, { cause: signal?.reason }))
    const timer = setTimeout(() => failed('it did not answer in time'), timeoutMs)
    socket.on('readable', onReadable)
    socket.on('close', onClose)
    signal?.addEventListener('abort', onAbort, { once: true })
    if (signal?.aborted === true) onAbort()
    else if (socket.destroyed) onClose()
  })
}
