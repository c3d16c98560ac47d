/** Loopback helpers of the network tests. Ports are always the system's choice. */
import { once } from 'node:events'
import net from 'node:net'

/** Resolves when `condition` holds; it is asked again whenever `poke` is called, and from time to time. */
export async function until(condition: () => boolean, what: string, timeoutMs = 20_000): Promise<void> {
  const end = performance.now() + timeoutMs
  while (!condition()) {
    if (performance.now() > end) throw new Error(`never happened: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

export interface RawServer {
  readonly address: string
  readonly sockets: net.Socket[]
  readonly server: net.Server
  close(): Promise<void>
}

/** A listener that does nothing but collect sockets. */
export async function rawServer(onSocket: (socket: net.Socket) => void = () => undefined): Promise<RawServer> {
  const sockets: net.Socket[] = []
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined)
    sockets.push(socket)
    onSocket(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = async (): Promise<void> => {
    for (const socket of sockets) socket.destroy()
    if (!server.listening) return
    server.close()
    await once(server, 'close')
  }
  return { address: `127.0.0.1:${(server.address() as net.AddressInfo).port}`, sockets, server, close }
}

export async function connectTo(address: string): Promise<net.Socket> {
  const [host, port] = [address.slice(0, address.lastIndexOf(':')), address.slice(address.lastIndexOf(':') + 1)]
  const socket = address.startsWith('@')
    ? net.connect({ path: `\0${address.slice(1)}` })
    : address.startsWith('/')
      ? net.connect({ path: address })
      : net.connect({ host: host.replace(/^\[|\]$/g, ''), port: Number(port) })
  socket.on('error', () => undefined)
  await once(socket, 'connect')
  return socket
}

export const closed = (socket: net.Socket): Promise<unknown> => {
  socket.resume()
  return socket.closed ? Promise.resolve() : once(socket, 'close')
}
