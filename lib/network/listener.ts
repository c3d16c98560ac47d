/**
 * Where connections to a node arrive, on its listening socket or from whoever else listens for it: accepts, tells clients from peers by their first bytes (raft-wire §1.1,
 * client-protocol §1.2), hands them over. Does not know what either says afterwards.
 *
 *   accepted → word (8 bytes, in time) → type of the first message → client
 *                                                                 └→ CONNECT (whole, in time) → peer
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { unlink } from 'node:fs/promises'
import net from 'node:net'
import { ByteQueue, ByteReader, malformed } from '../codec/bytes.js'
import {
  connectCode,
  decodeRequest,
  handshakeBytes,
  legacyProtocolVersion,
  protocolVersion,
} from '../codec/client-protocol.js'
import { MessageStream } from '../codec/message-stream.js'
import { DqliteError } from '../errors.js'
import type { ServerId } from '../raft/types.js'
import { parseAddress, type ParsedAddress } from './dial.js'

/** A client after its protocol word. `rest` is what has been read behind it; the socket is not read until somebody does. */
export interface ClientConnection {
  readonly socket: net.Socket
  readonly protocol: bigint
  readonly rest: Uint8Array
}

/** A peer after its CONNECT: raft-wire messages follow, `rest` first. The socket is not read until somebody does. */
export interface PeerConnection {
  readonly id: ServerId
  readonly address: string
  readonly socket: net.Socket
  readonly rest: Uint8Array
}

export interface ListenerOptions {
  /** `host:port`, `[v6]:port`, `/path`, `@abstract`; port 0 and `@` alone let the system choose. False: no socket. */
  readonly bind: string | false
  /** Called with clients whose first message has begun. The socket is the callee's: errors, closing, everything. */
  readonly onClient: (client: ClientConnection) => void
  readonly onPeer: (peer: PeerConnection) => void
  /** The listening socket itself failed, e.g. out of file descriptors; it goes on. */
  readonly onError?: (error: Error) => void
  /** Clients at once, those that have sent nothing but their protocol word included; one more is closed at once. */
  readonly connectionsMax: number
  /** Peer streams at once; one more is closed at once. */
  readonly peersMax?: number
  /** Connections that have not sent their protocol word; one more is closed at once. */
  readonly strangersMax?: number
  /** For the protocol word, and for the rest of a CONNECT that has begun. A client may stay silent after its word. */
  readonly handshakeTimeoutMs?: number
}

const peersMaxDefault = 1024
const strangersMaxDefault = 1024
const handshakeTimeoutMsDefault = 10_000
/** Id and address; addresses are short. */
const connectBytesMax = 4096
// A client that vanished without a word holds its place until the system notices.
const keepAliveDelayMs = 30_000
/** Word, and the header of the first message up to its type. */
const typeOffset = handshakeBytes + 4

export class Listener {
  readonly #options: ListenerOptions
  readonly #server: net.Server | undefined
  readonly #census: Census
  #address = ''
  #closing: Promise<void> | undefined

  private constructor(options: ListenerOptions) {
    this.#options = options
    this.#census = new Census({
      stranger: options.strangersMax ?? strangersMaxDefault,
      client: options.connectionsMax,
      peer: options.peersMax ?? peersMaxDefault,
    })
    if (options.bind !== false)
      this.#server = net.createServer(
        { noDelay: true, keepAlive: true, keepAliveInitialDelay: keepAliveDelayMs },
        (socket) => this.#accept(socket),
      )
  }

  /** Rejects with ADDRESS_IN_USE or BAD_OPTION, both naming the address. */
  static async listen(options: ListenerOptions): Promise<Listener> {
    const listener = new Listener(options)
    const server = listener.#server
    if (options.bind === false || server === undefined) return listener
    const bind = options.bind
    const parsed = parseAddress(bind)
    const target = parsed.kind === 'unix' && parsed.path === '\0' ? { ...parsed, path: abstractName() } : parsed
    try {
      await listen(server, target)
    } catch (cause) {
      if (target.kind !== 'unix' || !(await removeStale(target.path))) throw bindError(bind, cause)
      await listen(server, target).catch((again: unknown) => {
        throw bindError(bind, again)
      })
    }
    server.on('error', (error) => options.onError?.(error))
    listener.#address = actualAddress(server.address())
    return listener
  }

  /** Where it listens, in the grammar that `dial` reads; empty: it has no socket of its own. */
  get address(): string {
    return this.#address
  }

  /**
   * Takes over a connection that somebody else accepted, e.g. for an HTTP upgrade (client-protocol §12.6): from its
   * protocol word on, of which `head` has been read already. From now on the socket is ours.
   */
  accept(socket: net.Socket, head: Uint8Array): void {
    // Its 'close' may be over, and with it our only way to hear of it.
    if (socket.destroyed) return
    socket.setNoDelay(true)
    socket.setKeepAlive(true, keepAliveDelayMs)
    socket.setTimeout(0)
    // HTTP servers let a connection live when the other end has said good-bye; a stream of ours is over then.
    socket.allowHalfOpen = false
    if (head.byteLength > 0) socket.unshift(head)
    this.#accept(socket)
  }

  /** Stops listening and closes what has not been handed over. Connections handed over belong to others. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close(): Promise<void> {
    // The server's own 'close' waits for connections that are not ours any more; its socket is closed at once.
    this.#server?.close()
    const arriving = [...this.#census.arriving]
    const gone = arriving.map((socket) => new Promise<void>((resolve) => void socket.once('close', () => resolve())))
    for (const socket of arriving) socket.destroy()
    await Promise.all(gone)
  }

  #accept(socket: net.Socket): void {
    // Stays with the socket: a reset between our hands and the next owner's must not end the process.
    socket.on('error', () => socket.destroy())
    if (this.#closing !== undefined) {
      socket.destroy()
      return
    }
    new Arrival(socket, this.#options, this.#census)
  }
}

type Stage = 'stranger' | 'client' | 'peer'

/** Counts connections by what they are, and knows those that are still ours. */
class Census {
  readonly arriving = new Set<net.Socket>()
  readonly #counts: Record<Stage, number> = { stranger: 0, client: 0, peer: 0 }

  constructor(readonly max: Readonly<Record<Stage, number>>) {}

  /** False: there is no room. */
  move(from: Stage | undefined, to: Stage): boolean {
    if (this.#counts[to] >= this.max[to]) return false
    this.#counts[to]++
    if (from !== undefined) this.leave(from)
    return true
  }

  leave(stage: Stage): void {
    this.#counts[stage]--
    assert(this.#counts[stage] >= 0)
  }
}

/** A connection until it is known who it is. */
class Arrival {
  readonly #socket: net.Socket
  readonly #options: ListenerOptions
  readonly #census: Census
  readonly #bytes = new ByteQueue()
  #timer: NodeJS.Timeout | undefined
  readonly #onReadable = (): void => this.#read()
  #stage: Stage | undefined
  #connect: MessageStream | undefined

  constructor(socket: net.Socket, options: ListenerOptions, census: Census) {
    this.#socket = socket
    this.#options = options
    this.#census = census
    census.arriving.add(socket)
    socket.once('close', () => {
      this.#release()
      if (this.#stage !== undefined) census.leave(this.#stage)
    })
    // Reading by 'readable' leaves the socket as if nobody had read it, for whoever gets it next.
    socket.on('readable', this.#onReadable)
    this.#limitTime()
    if (!this.#become('stranger')) socket.destroy()
  }

  #limitTime(): void {
    clearTimeout(this.#timer)
    const timeoutMs = this.#options.handshakeTimeoutMs ?? handshakeTimeoutMsDefault
    this.#timer = setTimeout(() => this.#socket.destroy(), timeoutMs)
  }

  #become(stage: Stage): boolean {
    if (this.#stage === stage) return true
    if (!this.#census.move(this.#stage, stage)) return false
    this.#stage = stage
    return true
  }

  #read(): void {
    const chunk = this.#socket.read() as Buffer | null
    if (chunk === null) return
    if (this.#connect !== undefined) this.#connect.push(chunk)
    else this.#bytes.push(chunk)
    let handOver: (() => void) | undefined
    try {
      handOver = this.#identify()
    } catch (cause) {
      if (!(cause instanceof DqliteError)) throw cause
      // Nothing is answered to a broken handshake (client-protocol §1.5).
      this.#socket.destroy()
    }
    handOver?.()
  }

  /** Who it is, as what to do then; undefined while that is not known. */
  #identify(): (() => void) | undefined {
    if (this.#connect !== undefined) return this.#identifyPeer(this.#connect)
    if (this.#bytes.length < handshakeBytes) return undefined
    const head = this.#bytes.peek(Math.min(this.#bytes.length, typeOffset + 1))
    const protocol = new ByteReader(head).u64()
    if (protocol !== protocolVersion && protocol !== legacyProtocolVersion) throw malformed('an unknown protocol word')
    if (head.byteLength <= typeOffset) {
      // A silent client is legal for ever. While there is no room for clients it may still turn out to be a peer.
      if (this.#become('client')) clearTimeout(this.#timer)
      return undefined
    }
    this.#bytes.take(handshakeBytes)
    const rest = this.#bytes.take(this.#bytes.length)
    if (head[typeOffset] !== connectCode) {
      if (!this.#become('client')) throw new DqliteError('BUSY', 'no room for another client')
      this.#release()
      return () => this.#options.onClient({ socket: this.#socket, protocol, rest })
    }
    if (!this.#become('peer')) throw new DqliteError('BUSY', 'no room for another peer')
    this.#limitTime()
    this.#connect = new MessageStream({ bodyBytesMax: connectBytesMax })
    this.#connect.push(rest)
    return this.#identifyPeer(this.#connect)
  }

  #identifyPeer(stream: MessageStream): (() => void) | undefined {
    const message = stream.next()
    if (message === undefined) return undefined
    const request = decodeRequest(message)
    assert(request.type === 'connect')
    this.#release()
    const { id, address } = request
    return () => this.#options.onPeer({ id, address, socket: this.#socket, rest: stream.takeRest() })
  }

  #release(): void {
    clearTimeout(this.#timer)
    this.#socket.off('readable', this.#onReadable)
    this.#census.arriving.delete(this.#socket)
  }
}

// -------------------------------------------------------------------------------------------------------- binding

function listen(server: net.Server, target: ParsedAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    // exclusive: in a cluster of processes every node still has its own socket.
    server.listen({ ...(target.kind === 'unix' ? { path: target.path } : target), exclusive: true }, () => {
      server.off('error', reject)
      resolve()
    })
  })
}

function bindError(bind: string, cause: unknown): DqliteError {
  const { code, message } = cause as NodeJS.ErrnoException
  return code === 'EADDRINUSE'
    ? new DqliteError('ADDRESS_IN_USE', `cannot listen on ${bind}: the address is in use`, { cause })
    : new DqliteError('BAD_OPTION', `cannot listen on ${bind}: ${message}`, { cause })
}

/** What a kernel does for C nodes that bind `@`: a name that nobody has. */
const abstractName = (): string => `\0dqlite-${randomBytes(8).toString('hex')}`

/** A Unix socket whose listener died stays in the file system. True if it was one and is gone. */
async function removeStale(path: string): Promise<boolean> {
  if (path.startsWith('\0')) return false
  const refused = await new Promise<boolean>((resolve) => {
    const probe = net.connect({ path })
    probe.once('connect', () => {
      probe.destroy()
      resolve(false)
    })
    probe.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'))
  })
  if (!refused) return false
  await unlink(path)
  return true
}

function actualAddress(address: net.AddressInfo | string | null): string {
  assert(address !== null)
  if (typeof address === 'string') return address.startsWith('\0') ? `@${address.slice(1)}` : address
  return address.family === 'IPv6' ? `[${address.address}]:${address.port}` : `${address.address}:${address.port}`
}
