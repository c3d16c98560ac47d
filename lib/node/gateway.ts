/**
 * The server's end of one client connection: cuts requests out of the stream, starts them one after the other, sends
 * the answers in order. Knows the socket: back-pressure both ways, disconnects, what is malformed.
 * Does not know what a request means (handlers) nor how SQL is executed (executor).
 *
 * The next request starts when the answer of the previous one has been handed to the socket, and the socket has room.
 * While a request runs the stream is read a little further, to notice an INTERRUPT and the end of the connection.
 */
import type { Socket } from 'node:net'
import { decodeRequest, encodeResponse, legacyProtocolVersion, type Request } from '../codec/client-protocol.js'
import { messageHeaderBytes, MessageStream } from '../codec/message-stream.js'
import { DqliteError } from '../errors.js'
import type { NodeLimits } from '../options.js'
import type { ServerId } from '../raft/types.js'
import type { DatabaseHandle } from './database-handle.js'
import type { Client, Handlers } from './handlers.js'

/** A connection as the listener hands it over: every byte after the protocol word is in `rest` or still to come. */
export interface AcceptedClient {
  readonly socket: Socket
  readonly rest: Uint8Array
  readonly protocol: bigint
}

/** CONNECT came after other messages (client-protocol §1.4): from here on the stream belongs to Raft. */
export interface HandedOverPeer {
  readonly id: ServerId
  readonly address: string
  readonly socket: Socket
  readonly rest: Uint8Array
}

export interface GatewaysOptions {
  readonly handlers: Handlers
  readonly limits: Pick<NodeLimits, 'requestBytesMax' | 'connectionsMax'>
  /** Told of failures that no client can be blamed for; the client gets "leader exec failed". */
  readonly onInternalError: (error: unknown) => void
  /** Without it a CONNECT among requests closes the connection. */
  readonly onPeer?: (peer: HandedOverPeer) => void
}

/** All client connections of a node. */
export class Gateways {
  readonly #options: GatewaysOptions
  readonly #gateways = new Set<Gateway>()
  #isClosed = false

  constructor(options: GatewaysOptions) {
    this.#options = options
  }

  get connections(): number {
    return this.#gateways.size
  }

  accept(client: AcceptedClient): void {
    if (this.#isClosed || this.#gateways.size >= this.#options.limits.connectionsMax) {
      client.socket.on('error', () => client.socket.destroy())
      client.socket.destroy()
      return
    }
    const gateway = new Gateway(client, this.#options, () => this.#gateways.delete(gateway))
    this.#gateways.add(gateway)
    gateway.start(client.rest)
  }

  /** Ends every connection; resolves when what they had open is closed. Twice is fine. */
  async closeAll(): Promise<void> {
    this.#isClosed = true
    await Promise.all([...this.#gateways].map((gateway) => gateway.close()))
  }
}

type Decoded = { request: Request; body: Uint8Array } | { request: undefined; error: unknown }

/** Bytes that may wait behind a running request; beyond, the socket is not read. */
const readAheadBytesMax = 64 * 1024

/** Pipelined requests of one connection are served for this long, then other connections get their turn. */
const pumpSliceMs = 4

class Gateway implements Client {
  readonly isLegacy: boolean
  clientId = 0n
  handle: DatabaseHandle | undefined
  onGone: (() => void) | undefined

  readonly #socket: Socket
  readonly #stream: MessageStream
  readonly #handlers: Handlers
  readonly #options: GatewaysOptions
  readonly #onClosed: () => void

  /** A request runs: its answer has not been given yet. */
  #isBusy = false
  #isPumping = false
  #isPumpDue = false
  #isClosed = false
  #closing: Promise<void> = Promise.resolve()
  /** Pushed into the stream and not yet taken out as messages. */
  #bufferedBytes = 0
  #isPaused = false
  /** The message behind the running request. */
  #ahead: Decoded | undefined
  #out: Uint8Array[] = []
  #afterDrain: (() => void) | undefined

  constructor(client: AcceptedClient, options: GatewaysOptions, onClosed: () => void) {
    this.isLegacy = client.protocol === legacyProtocolVersion
    this.#socket = client.socket
    this.#stream = new MessageStream({ bodyBytesMax: options.limits.requestBytesMax })
    this.#handlers = options.handlers
    this.#options = options
    this.#onClosed = onClosed
  }

  start(rest: Uint8Array): void {
    const socket = this.#socket
    socket.on('data', this.#onData)
    socket.on('drain', this.#onDrain)
    socket.on('end', this.#onGone)
    socket.on('error', this.#onGone)
    socket.on('close', this.#onGone)
    if (socket.destroyed) this.#onGone()
    else if (rest.length > 0) this.#onData(rest)
    if (!this.#isClosed && !this.#isPaused) socket.resume()
  }

  // ---------------------------------------------------------------------------------------------- in

  readonly #onData = (chunk: Uint8Array): void => {
    if (this.#isClosed) return
    this.#stream.push(chunk)
    this.#bufferedBytes += chunk.length
    if (this.#isBusy) this.#lookAhead()
    else this.#pump()
  }

  #next(): Decoded | undefined {
    const ahead = this.#ahead
    if (ahead !== undefined) {
      this.#ahead = undefined
      return ahead
    }
    try {
      const message = this.#stream.next()
      if (message === undefined) return undefined
      this.#bufferedBytes -= messageHeaderBytes + message.body.length
      return { request: decodeRequest(message), body: message.body }
    } catch (error) {
      return { request: undefined, error }
    }
  }

  /** While a request runs: is the next one an INTERRUPT for it? */
  #lookAhead(): void {
    const ahead = (this.#ahead ??= this.#next())
    if (ahead?.request?.type === 'interrupt') {
      // Taken out first: the interrupted request may be answered, and the next one started, inside the call.
      this.#ahead = undefined
      if (this.handle?.interrupt() !== true) this.#ahead = ahead
    }
    if (this.#isBusy && this.#bufferedBytes > readAheadBytesMax && !this.#isPaused) {
      this.#isPaused = true
      this.#socket.pause()
    }
  }

  /** Starts requests as long as each is answered at once. */
  #pump(): void {
    if (this.#isPumping || this.#isClosed) return
    this.#isPumping = true
    const sliceEndMs = performance.now() + pumpSliceMs
    while (!this.#isBusy && !this.#isClosed && !this.#socket.writableNeedDrain) {
      const next = this.#next()
      if (next === undefined) break
      this.#isBusy = true
      this.#serve(next)
      if (performance.now() > sliceEndMs) {
        this.#pumpLater()
        break
      }
    }
    this.#isPumping = false
    if (this.#isClosed) return
    this.#flush()
    if (this.#isBusy) {
      if (this.#bufferedBytes > 0) this.#lookAhead()
    } else if (this.#isPaused && !this.#socket.writableNeedDrain) {
      this.#isPaused = false
      this.#socket.resume()
    }
  }

  #pumpLater(): void {
    if (this.#isPumpDue) return
    this.#isPumpDue = true
    setImmediate(this.#onPumpDue)
  }

  readonly #onPumpDue = (): void => {
    this.#isPumpDue = false
    if (!this.#isBusy) this.#pump()
  }

  #serve(next: Decoded): void {
    try {
      if (next.request === undefined) throw next.error
      if (next.request.type === 'connect') this.#handOver(next.request.id, next.request.address)
      else this.#handlers.handle(this, next.request, next.body)
    } catch (error) {
      if (error instanceof DqliteError && error.code === 'MALFORMED') this.#hangUp()
      else this.fail(error)
    }
  }

  #handOver(id: ServerId, address: string): void {
    const socket = this.#socket
    const onPeer = this.#options.onPeer
    if (onPeer === undefined) return this.#hangUp()
    this.#flush()
    socket.pause()
    socket.off('data', this.#onData).off('drain', this.#onDrain)
    socket.off('end', this.#onGone).off('error', this.#onGone).off('close', this.#onGone)
    const rest = this.#stream.takeRest()
    this.#release()
    onPeer({ id, address, socket, rest })
  }

  // ---------------------------------------------------------------------------------------------- out

  answer(message: Uint8Array): void {
    if (this.#isClosed) return
    if (!this.#isBusy) {
      // One answer each: what fails after its answer is not for the client.
      this.#options.onInternalError(new Error('a request was answered twice'))
      return
    }
    this.#out.push(message)
    this.#isBusy = false
    this.onGone = undefined
    this.#afterDrain = undefined
    if (this.#isPumping) return // the pump goes on
    this.#flush()
    // An answer may come from the middle of somebody else's work: the next request gets a turn of its own.
    if (this.#ahead !== undefined || this.#bufferedBytes > 0 || this.#isPaused) this.#pumpLater()
  }

  failure(code: number, text: string): void {
    this.answer(encodeResponse.failure(code, text))
  }

  fail(error: unknown): void {
    if (error instanceof DqliteError && error.wire !== undefined) return this.failure(error.wire, error.message)
    this.#options.onInternalError(error)
    this.failure(10, 'leader exec failed')
  }

  part(message: Uint8Array, resume: () => void): boolean {
    if (this.#isClosed) return false
    this.#out.push(message)
    this.#flush()
    if (!this.#socket.writableNeedDrain) return !this.#isClosed
    this.#afterDrain = resume
    return false
  }

  abort(error: unknown): void {
    this.#options.onInternalError(error)
    this.#socket.destroy()
    this.#onGone()
  }

  /** Everything that was answered in this turn leaves in one write. */
  #flush(): void {
    const out = this.#out
    if (out.length === 0) return
    this.#out = []
    const socket = this.#socket
    if (out.length === 1) {
      socket.write(out[0]!)
      return
    }
    socket.cork()
    for (const message of out) socket.write(message)
    socket.uncork()
  }

  readonly #onDrain = (): void => {
    const afterDrain = this.#afterDrain
    if (afterDrain !== undefined) {
      this.#afterDrain = undefined
      afterDrain()
    }
    if (!this.#isBusy) this.#pump()
  }

  // ---------------------------------------------------------------------------------------------- end

  /** Bytes that do not decode: what was answered before still leaves, then the connection ends (§1.5). */
  #hangUp(): void {
    this.#flush()
    this.#release()
    this.#socket.destroySoon()
  }

  readonly #onGone = (): void => {
    if (this.#isClosed) return
    this.#release()
    this.#socket.destroy()
  }

  /** Open transaction rolled back, queued writer removed, running statement interrupted, statements freed (§9.6). */
  #release(): void {
    this.#isClosed = true
    this.#out = []
    this.#ahead = undefined
    this.#afterDrain = undefined
    const onGone = this.onGone
    this.onGone = undefined
    onGone?.()
    const handle = this.handle
    this.handle = undefined
    if (handle !== undefined) this.#closing = handle.close()
    this.#onClosed()
  }

  close(): Promise<void> {
    this.#onGone()
    return this.#closing
  }
}
