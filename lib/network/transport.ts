/**
 * Streams between members, each one way (raft-wire §1.2–§1.4): what we send leaves on connections that we made, what
 * we receive arrives on connections that others made. Knows queues, connections and time limits. Does not know what
 * Raft wants to send, nor when to send it again: a message that cannot leave is dropped and reported.
 */
import assert from 'node:assert/strict'
import type net from 'node:net'
import {
  encodeConnect,
  encodeInstallSnapshotHeader,
  encodeMessage,
  headerBytesMax,
  payloadBytesMax,
  PeerMessageStream,
} from '../codec/peer-protocol.js'
import { DqliteError } from '../errors.js'
import type { Envelope, InstallSnapshot, Message, ServerId } from '../raft/types.js'
import type { Dial } from './dial.js'
import { dial } from './dial.js'
import type { PeerConnection } from './listener.js'

export interface TransportOptions {
  readonly id: ServerId
  /** What our CONNECT announces: where replies to us go. */
  readonly address: string
  readonly dial?: Dial
  /** Bytes waiting for one peer; a message above it is dropped, unless it is the only one. */
  readonly sendQueueBytesMax: number
  readonly connectTimeoutMs: number
  /** Upper bound of the pause between attempts. */
  readonly reconnectMs: number
  /** Without a byte moving for this long, a snapshot or a blocked stream is given up. */
  readonly progressTimeoutMs: number
  /** A peer to which we send, and which says nothing for this long, gets a new connection. */
  readonly silenceTimeoutMs?: number
  readonly onMessage: (from: ServerId, address: string, message: Message) => void
  /**
   * The content must be read, or given up by ending the iteration; the peer's later messages wait behind it. It
   * throws CONNECTION_LOST if it ends early.
   */
  readonly onSnapshot: (
    from: ServerId,
    address: string,
    message: InstallSnapshot,
    contentBytes: number,
    content: AsyncIterable<Uint8Array>,
  ) => void
  /** Something to this peer was lost. Never called from within `send`; once for all that was lost in a turn. */
  readonly onUnreachable: (to: ServerId) => void
  /** A peer's connection was closed because of what it sent. At most once a minute per peer, however often it comes. */
  readonly onWarning?: (text: string) => void
}

const silenceTimeoutMsDefault = 10_000
const backoffStartMs = 50
/** While there is no connection only the newest messages wait: older ones are stale when it comes (C keeps 3). */
const messagesWithoutConnectionMax = 8
const warningPauseMs = 60_000
/** Peers at once in each direction; beyond, the one that has been idle for longest loses its connection. */
const peersMax = 256

export class Transport {
  readonly #options: TransportOptions
  readonly #outbound = new Map<ServerId, Outbound>()
  readonly #inbound = new Map<ServerId, Inbound>()
  /** Everything that `close` waits for. */
  readonly #running = new Set<Promise<unknown>>()
  readonly #unreachable = new Set<ServerId>()
  readonly #warnedAtMs = new Map<ServerId, number>()
  #closing: Promise<void> | undefined

  constructor(options: TransportOptions) {
    this.#options = options
  }

  #warn(id: ServerId, text: string): void {
    const nowMs = performance.now()
    if (nowMs - (this.#warnedAtMs.get(id) ?? -Infinity) < warningPauseMs) return
    if (this.#warnedAtMs.size >= peersMax) this.#warnedAtMs.clear()
    this.#warnedAtMs.set(id, nowMs)
    this.#options.onWarning?.(text)
  }

  /** Messages of one call to one peer leave in one write. The data of every command must be in memory. */
  send(envelopes: readonly Envelope[]): void {
    if (this.#closing !== undefined) return
    const touched = new Set<Outbound>()
    for (const { to, address, message } of envelopes) {
      assert(message.type !== 'installSnapshot', 'snapshots go through sendSnapshot')
      const outbound = this.#reach(to, address)
      touched.add(outbound)
      outbound.queue(encodeMessage(message, this.#options.id))
    }
    for (const outbound of touched) outbound.flush()
  }

  /**
   * Resolves when the last byte has been handed to the system. Once the snapshot is on the stream, messages wait
   * behind it. Rejects with NO_CONNECTION, CLOSED or what reading the content threw; the content is always ended.
   */
  sendSnapshot(envelope: Envelope, contentBytes: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    const { to, address, message } = envelope
    assert(message.type === 'installSnapshot')
    return this.#track(this.#sendSnapshot(to, address, message, contentBytes, content))
  }

  async #sendSnapshot(
    to: ServerId,
    address: string,
    message: InstallSnapshot,
    contentBytes: number,
    content: AsyncIterable<Uint8Array>,
  ): Promise<void> {
    const chunks = content[Symbol.asyncIterator]()
    try {
      if (this.#closing !== undefined) throw new DqliteError('CLOSED', 'the transport is closed')
      await this.#reach(to, address).sendSnapshot(
        encodeInstallSnapshotHeader(message, contentBytes),
        contentBytes,
        chunks,
      )
    } finally {
      await chunks.return?.()
    }
  }

  /** Takes over a connection on which a peer has said CONNECT. */
  accept(peer: PeerConnection): void {
    const { id, socket } = peer
    // Nobody may speak for us, and 0 is nobody.
    if (this.#closing !== undefined || id === 0n || id === this.#options.id) {
      socket.destroy()
      if (this.#closing === undefined) this.#warn(id, `a peer announced the impossible id ${id.toString()}`)
      return
    }
    // A peer has one connection to us; an older one is what a lost connection left behind.
    this.#inbound.get(id)?.destroy()
    if (this.#inbound.size >= peersMax) evictOldest(this.#inbound)
    const inbound = new Inbound(peer, {
      ...this.#options,
      onWarning: (text) => this.#warn(id, text),
      onBytes: () => this.#outbound.get(id)?.heard(),
    })
    this.#inbound.set(id, inbound)
    void this.#track(inbound.closed).then(() => {
      if (this.#inbound.get(id) === inbound) this.#inbound.delete(id)
    })
    inbound.start(peer.rest)
  }

  /** Ends the connections to a server that is no longer one. */
  forget(id: ServerId): void {
    this.#outbound.get(id)?.destroy()
    this.#outbound.delete(id)
  }

  /** Ends everything and waits for it. What has not been handed to the system is lost. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close(): Promise<void> {
    for (const outbound of this.#outbound.values()) outbound.destroy()
    for (const inbound of this.#inbound.values()) inbound.destroy()
    await Promise.allSettled(this.#running)
  }

  /** The stream to a server at an address; a new address is a new stream (raft-wire §1.2). */
  #reach(to: ServerId, address: string): Outbound {
    assert(to !== this.#options.id, 'a message to oneself')
    let outbound = this.#outbound.get(to)
    if (outbound?.address !== address) {
      outbound?.destroy()
      if (outbound === undefined && this.#outbound.size >= peersMax) evictOldest(this.#outbound)
      outbound = new Outbound(address, {
        ...this.#options,
        onLost: () => this.#reportUnreachable(to),
        track: (promise) => void this.#track(promise),
      })
    } else this.#outbound.delete(to)
    // Insertion order is order of use: the first of the map is the one to evict.
    this.#outbound.set(to, outbound)
    return outbound
  }

  #reportUnreachable(to: ServerId): void {
    if (this.#unreachable.size === 0)
      queueMicrotask(() => {
        const lost = [...this.#unreachable]
        this.#unreachable.clear()
        if (this.#closing === undefined) for (const id of lost) this.#options.onUnreachable(id)
      })
    this.#unreachable.add(to)
  }

  #track<T>(promise: Promise<T>): Promise<T> {
    this.#running.add(promise)
    const done = (): void => void this.#running.delete(promise)
    promise.then(done, done)
    return promise
  }
}

function evictOldest(peers: Map<ServerId, { destroy(): void }>): void {
  for (const [id, peer] of peers) {
    peers.delete(id)
    peer.destroy()
    return
  }
}

const closed = (socket: net.Socket): Promise<void> =>
  socket.closed ? Promise.resolve() : new Promise((resolve) => void socket.once('close', () => resolve()))

// ------------------------------------------------------------------------------------------------------ outbound

interface OutboundOptions extends TransportOptions {
  readonly onLost: () => void
  readonly track: (promise: Promise<unknown>) => void
}

/**
 *            send                connected
 *   idle ──────────→ connecting ───────────→ connected
 *    ↑                   │ failed                │ lost
 *    │    time is up,    ↓                       │
 *    └──────────────── pausing ←─────────────────┘      any → closed
 *      (at once connecting again if something waits)
 */
type OutboundState =
  | { readonly name: 'idle' }
  | { readonly name: 'connecting'; readonly abort: AbortController }
  | { readonly name: 'connected'; readonly socket: net.Socket; readonly since: number }
  | { readonly name: 'pausing'; readonly timer: NodeJS.Timeout }
  | { readonly name: 'closed' }

/** A snapshot that waits for a connection. Once it is on one, the connection's end is its end too. */
interface SnapshotTurn {
  readonly start: (socket: net.Socket) => void
  readonly fail: (error: DqliteError) => void
}

class Outbound {
  readonly address: string
  readonly #options: OutboundOptions
  #state: OutboundState = { name: 'idle' }
  #backoffMs = backoffStartMs
  /** Messages in pieces, waiting for a connection, the end of a snapshot, or the end of the caller's turn. */
  #waiting: Uint8Array[][] = []
  #waitingBytes = 0
  #snapshot: SnapshotTurn | undefined
  /** When we first sent something after the peer was last heard. */
  #unansweredSince: number | undefined

  constructor(address: string, options: OutboundOptions) {
    this.address = address
    this.#options = options
  }

  // ------------------------------------------------------------------------------------------------- messages

  queue(pieces: Uint8Array[]): void {
    this.#noticeEnd()
    const bytes = byteLength(pieces)
    const queued = this.#waitingBytes + this.#socketBytes()
    if (queued > 0 && queued + bytes > this.#options.sendQueueBytesMax) {
      this.#options.onLost()
      return
    }
    this.#waiting.push(pieces)
    this.#waitingBytes += bytes
  }

  /** Lets out what waits, as far as it may leave. */
  flush(): void {
    switch (this.#state.name) {
      case 'idle':
        this.#trim()
        this.#connect()
        return
      case 'connecting':
      case 'pausing':
        this.#trim()
        return
      case 'connected':
        if (this.#isSilent()) return this.#replaceConnection(this.#state.socket)
        if (this.#snapshot === undefined) this.#write(this.#state.socket)
        return
      case 'closed':
        this.#drop()
    }
  }

  /** The peer said something, so our connection to it is worth keeping. */
  heard(): void {
    this.#unansweredSince = undefined
  }

  #socketBytes(): number {
    return this.#state.name === 'connected' ? this.#state.socket.writableLength : 0
  }

  #trim(): void {
    let dropped = false
    while (this.#waiting.length > messagesWithoutConnectionMax) {
      this.#waitingBytes -= byteLength(this.#waiting.shift()!)
      dropped = true
    }
    if (dropped) this.#options.onLost()
  }

  #drop(): void {
    if (this.#waiting.length > 0) this.#options.onLost()
    this.#waiting = []
    this.#waitingBytes = 0
  }

  #write(socket: net.Socket): void {
    if (this.#waiting.length === 0) return
    const waiting = this.#waiting
    this.#waiting = []
    this.#waitingBytes = 0
    // Corked: the system gets one list of pieces, whatever the number of messages.
    socket.cork()
    for (const pieces of waiting) for (const piece of pieces) socket.write(piece)
    socket.uncork()
    this.#unansweredSince ??= performance.now()
  }

  /**
   * After a partition TCP repeats lost segments in growing intervals, minutes in the end; a new connection is there
   * at once. Peers answer everything we send, so silence says that nothing arrives (or that they are stopped).
   */
  #isSilent(): boolean {
    const since = this.#unansweredSince
    const timeoutMs = this.#options.silenceTimeoutMs ?? silenceTimeoutMsDefault
    return this.#snapshot === undefined && since !== undefined && performance.now() - since > timeoutMs
  }

  #replaceConnection(socket: net.Socket): void {
    this.#unansweredSince = undefined
    this.#options.onLost()
    this.#state = { name: 'idle' }
    socket.destroy()
    this.flush()
  }

  // ----------------------------------------------------------------------------------------------- connection

  #connect(): void {
    const abort = new AbortController()
    const state: OutboundState = { name: 'connecting', abort }
    this.#state = state
    const connect = this.#options.dial ?? dial
    const attempt = connect(this.address, { timeoutMs: this.#options.connectTimeoutMs, signal: abort.signal }).then(
      (socket) => {
        if (this.#state !== state) socket.destroy()
        else this.#connected(socket)
      },
      (cause: unknown) => {
        if (this.#state !== state) return
        this.#lost(
          new DqliteError('NO_CONNECTION', `no connection to ${this.address}: ${(cause as Error).message}`, { cause }),
        )
      },
    )
    this.#options.track(attempt)
  }

  #connected(socket: net.Socket): void {
    const state: OutboundState = { name: 'connected', socket, since: performance.now() }
    this.#state = state
    this.#unansweredSince = undefined
    this.#options.track(closed(socket))
    // What goes wrong with the socket ends in 'close'; dial's own listener keeps its errors from being unhandled.
    socket.on('error', () => socket.destroy())
    socket.once('close', () => {
      if (this.#state !== state) return
      this.#lost(this.#connectionLost())
    })
    // Node counts a write as activity while the system takes bytes of it: this fires when a peer has stopped reading.
    socket.setTimeout(this.#options.progressTimeoutMs, () => {
      if (socket.writableLength > 0) socket.destroy()
    })
    // Nothing comes on this stream (raft-wire §1.2), but its end must be noticed.
    socket.resume()
    if (socket.destroyed) return
    socket.cork()
    socket.write(encodeConnect(this.#options.id, this.#options.address))
    this.#write(socket)
    socket.uncork()
    this.#snapshot?.start(socket)
  }

  readonly #connectionLost = (): DqliteError =>
    new DqliteError('NO_CONNECTION', `the connection to ${this.address} was lost`)

  /** A destroyed socket says 'close' only later; what is sent until then must not go there. */
  #noticeEnd(): void {
    if (this.#state.name === 'connected' && this.#state.socket.destroyed) this.#lost(this.#connectionLost())
  }

  #lost(error: DqliteError): void {
    const state = this.#state
    // A connection that lasted was a good one; one that ends at once is not made again at once.
    if (state.name === 'connected' && performance.now() - state.since > this.#options.reconnectMs)
      this.#backoffMs = backoffStartMs
    this.#options.onLost()
    this.#waiting = []
    this.#waitingBytes = 0
    const pauseMs = this.#backoffMs
    this.#backoffMs = Math.min(pauseMs * 2, Math.max(this.#options.reconnectMs, backoffStartMs))
    const timer = setTimeout(() => {
      this.#state = { name: 'idle' }
      // Only what was sent since then asks for another attempt.
      if (this.#waiting.length > 0 || this.#snapshot !== undefined) this.#connect()
    }, pauseMs)
    this.#state = { name: 'pausing', timer }
    this.#snapshot?.fail(error)
  }

  destroy(): void {
    const state = this.#state
    this.#state = { name: 'closed' }
    if (state.name === 'connecting') state.abort.abort()
    if (state.name === 'connected') state.socket.destroy()
    if (state.name === 'pausing') clearTimeout(state.timer)
    this.#waiting = []
    this.#waitingBytes = 0
    this.#snapshot?.fail(new DqliteError('CLOSED', `the stream to ${this.address} was closed`))
  }

  // ------------------------------------------------------------------------------------------------- snapshot

  async sendSnapshot(header: Buffer, contentBytes: number, chunks: AsyncIterator<Uint8Array>): Promise<void> {
    if (this.#snapshot !== undefined)
      throw new DqliteError('NO_CONNECTION', `a snapshot is already on its way to ${this.address}`)
    if (this.#state.name === 'closed') throw new DqliteError('CLOSED', `the stream to ${this.address} was closed`)
    this.#noticeEnd()
    try {
      const socket = await new Promise<net.Socket>((resolve, reject) => {
        this.#snapshot = { start: resolve, fail: reject }
        if (this.#state.name === 'connected') resolve(this.#state.socket)
        else this.flush()
      })
      await this.#writeSnapshot(socket, header, contentBytes, chunks)
    } finally {
      this.#snapshot = undefined
      this.#unansweredSince = undefined
      if (this.#waiting.length > 0) this.flush()
    }
  }

  async #writeSnapshot(
    socket: net.Socket,
    header: Buffer,
    contentBytes: number,
    chunks: AsyncIterator<Uint8Array>,
  ): Promise<void> {
    try {
      let left = contentBytes
      await write(socket, header)
      for (;;) {
        const chunk: IteratorResult<Uint8Array, unknown> = await chunks.next()
        if (chunk.done === true) break
        left -= chunk.value.byteLength
        assert(left >= 0, 'a snapshot is longer than announced')
        await write(socket, chunk.value)
      }
      assert(left === 0, 'a snapshot is shorter than announced')
      // The writable side is empty once everything is with the system.
      await drained(socket)
    } catch (cause) {
      // Half a snapshot cannot be followed by a message.
      socket.destroy()
      throw cause
    }
  }
}

/** Waits while more than Node's own mark lies before the system: memory stays at one chunk, whatever the snapshot. */
async function write(socket: net.Socket, bytes: Uint8Array): Promise<void> {
  if (socket.destroyed) throw lostDuringSnapshot()
  if (!socket.write(bytes)) await drained(socket)
}

function drained(socket: net.Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    if (socket.destroyed) return reject(lostDuringSnapshot())
    if (socket.writableLength === 0) return resolve()
    const onDrain = (): void => {
      socket.off('close', onClose)
      resolve()
    }
    const onClose = (): void => {
      socket.off('drain', onDrain)
      reject(lostDuringSnapshot())
    }
    socket.once('close', onClose)
    if (socket.writableNeedDrain) socket.once('drain', onDrain)
    else
      socket.write('', (error) => {
        if (!error) onDrain()
      })
  })
}

const lostDuringSnapshot = (): DqliteError =>
  new DqliteError('NO_CONNECTION', 'the connection was lost while a snapshot was sent')

const byteLength = (pieces: readonly Uint8Array[]): number => pieces.reduce((sum, piece) => sum + piece.byteLength, 0)

// ------------------------------------------------------------------------------------------------------- inbound

interface InboundOptions extends TransportOptions {
  readonly onBytes: () => void
}

/** Messages of one peer. While a snapshot's content is read, the socket gives only what its reader asks for. */
class Inbound {
  readonly closed: Promise<void>
  readonly #peer: PeerConnection
  readonly #options: InboundOptions
  readonly #stream = new PeerMessageStream({ headerBytesMax, payloadBytesMax })
  #content: InboundContent | undefined

  constructor(peer: PeerConnection, options: InboundOptions) {
    this.#peer = peer
    this.#options = options
    this.closed = closed(peer.socket)
  }

  start(rest: Uint8Array): void {
    const { socket } = this.#peer
    socket.on('error', () => socket.destroy())
    socket.on('close', () => this.#content?.onClose())
    this.#receive(rest)
    socket.on('data', (chunk) => this.#receive(chunk))
    if (this.#content === undefined) socket.resume()
  }

  destroy(): void {
    this.#peer.socket.destroy()
  }

  #receive(chunk: Uint8Array): void {
    this.#options.onBytes()
    this.#stream.push(chunk)
    if (this.#content !== undefined) this.#content.onBytes()
    else this.#deliver()
  }

  #deliver(): void {
    const { id, address, socket } = this.#peer
    while (this.#content === undefined && !socket.destroyed) {
      const received = this.#next()
      if (received === undefined) return
      const { message } = received
      if (message.type !== 'installSnapshot') {
        this.#options.onMessage(id, address, message)
        continue
      }
      const contentBytes = received.content?.byteLength ?? 0
      this.#content = new InboundContent(this.#stream, socket, this.#options.progressTimeoutMs, () => {
        this.#content = undefined
        socket.resume()
        this.#deliver()
      })
      this.#options.onSnapshot(id, address, message, contentBytes, this.#content)
    }
  }

  #next(): ReturnType<PeerMessageStream['next']> {
    try {
      return this.#stream.next()
    } catch (cause) {
      if (!(cause instanceof DqliteError)) throw cause
      const { id, address, socket } = this.#peer
      this.#options.onWarning?.(
        `the connection from server ${id.toString()} at ${address} was closed: ${cause.message}`,
      )
      socket.destroy()
      return undefined
    }
  }
}

/**
 * The content of a snapshot on its way in: for one reader, once. Ended early, the rest is received and thrown away,
 * so that the stream stays in step. Without progress, of the peer or of the reader, the connection ends.
 */
class InboundContent implements AsyncIterable<Uint8Array>, AsyncIterator<Uint8Array> {
  readonly #stream: PeerMessageStream
  readonly #socket: net.Socket
  readonly #onEnd: () => void
  readonly #timer: NodeJS.Timeout
  #isDiscarding = false
  #hasEnded = false
  #wake: (() => void) | undefined

  constructor(stream: PeerMessageStream, socket: net.Socket, progressTimeoutMs: number, onEnd: () => void) {
    this.#stream = stream
    this.#socket = socket
    this.#onEnd = onEnd
    this.#timer = setTimeout(() => socket.destroy(), progressTimeoutMs)
    socket.pause()
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<IteratorResult<Uint8Array, undefined>> {
    assert(this.#wake === undefined, 'a snapshot has one reader')
    for (;;) {
      if (this.#hasEnded || this.#stream.contentRemaining === 0) {
        this.#end()
        return { done: true, value: undefined }
      }
      const piece = this.#stream.takeContent()
      if (piece !== undefined) {
        this.#progress()
        return { done: false, value: piece }
      }
      if (this.#socket.destroyed)
        throw new DqliteError('CONNECTION_LOST', 'the connection ended before the snapshot was complete')
      this.#socket.resume()
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }

  return(): Promise<IteratorResult<Uint8Array, undefined>> {
    if (!this.#hasEnded) {
      this.#isDiscarding = true
      this.#discard()
    }
    return Promise.resolve({ done: true, value: undefined })
  }

  #discard(): void {
    while (this.#stream.takeContent() !== undefined) this.#progress()
    if (this.#stream.contentRemaining === 0) this.#end()
    else this.#socket.resume()
  }

  #progress(): void {
    // A cleared timer must stay so: what is buffered may be read after the connection ended.
    if (!this.#socket.destroyed) this.#timer.refresh()
  }

  onBytes(): void {
    if (this.#isDiscarding) return this.#discard()
    this.#socket.pause()
    this.#awake()
  }

  onClose(): void {
    clearTimeout(this.#timer)
    this.#awake()
  }

  #awake(): void {
    this.#wake?.()
    this.#wake = undefined
  }

  #end(): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    clearTimeout(this.#timer)
    // Not from within the reader: what the next messages do is none of its business.
    queueMicrotask(this.#onEnd)
  }
}
