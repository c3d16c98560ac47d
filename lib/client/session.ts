/**
 * The client's end of one connection: one request at a time, its answer, and what the server keeps for it (the open
 * database, prepared statements). A session that saw a broken connection, bytes it does not understand, a time limit
 * or an abort while an answer was due is closed and never used again. Does not know who leads, nor what may be sent
 * a second time.
 */
import assert from 'node:assert/strict'
import type { Duplex } from 'node:stream'
import {
  decodeResponse,
  encodeHandshake,
  encodeRequest,
  responseCodes,
  type ClientRequest,
  type Response,
  type ResponseType,
  type ServerEntry,
} from '../codec/client-protocol.js'
import { MessageStream, type RawMessage } from '../codec/message-stream.js'
import { decodeRows, type RowOptions, type Rows } from '../codec/tuple.js'
import { DqliteError, errorFromWire } from '../errors.js'
import { afterSending, type Deadline } from './deadline.js'

/** Opens a connection to a server's address. TLS, proxies and tests bring their own. */
export type Dial = (address: string, options: { timeoutMs: number; signal?: AbortSignal }) => Promise<Duplex>

export type ResponseOf<Type extends ResponseType> = Extract<Response, { readonly type: Type }>

/** A text that sessions prepare when they first need it: ids belong to a session, texts to everybody. */
export interface PreparedText {
  readonly sql: string
}

interface Prepared {
  readonly id: number
  readonly parameterCount: number
}

interface Receiver {
  readonly resolve: (message: RawMessage) => void
  readonly reject: (error: DqliteError) => void
}

const keepAliveMs = 10_000
/** Messages that a cancelled result may still bring before its connection is given up instead. */
const drainMessagesMax = 10_000

export class Session {
  readonly address: string
  readonly #socket: Duplex
  readonly #messages: MessageStream
  readonly #statements = new Map<PreparedText, Prepared>()
  /** Statements that nobody wants any more; they travel with the next request. */
  #finalizable: number[] = []
  #databaseId: number | undefined
  #receiver: Receiver | undefined
  #deadline: Deadline | undefined
  #isBusy = false
  /** Answers that nobody waits for. */
  #skippable = 0
  #hasGreeted = false
  #failure: DqliteError | undefined
  /** Called once, when the session can no longer be used. */
  onClosed: () => void = () => undefined

  constructor(address: string, socket: Duplex, options: { messageBytesMax: number }) {
    this.address = address
    this.#socket = socket
    this.#messages = new MessageStream({ bodyBytesMax: options.messageBytesMax })
    const maybeTcp = socket as Partial<{ setKeepAlive(on: boolean, delayMs: number): void }>
    maybeTcp.setKeepAlive?.(true, keepAliveMs)
    socket.on('data', this.#onData)
    socket.on('error', (cause: Error) => {
      this.close(new DqliteError('CONNECTION_LOST', `connection to ${address} failed: ${cause.message}`, { cause }))
    })
    const onEnd = (): void => {
      this.close(new DqliteError('CONNECTION_LOST', `${address} closed the connection`))
    }
    socket.on('end', onEnd)
    socket.on('close', onEnd)
  }

  get isUsable(): boolean {
    return this.#failure === undefined
  }

  get hasDatabase(): boolean {
    return this.#databaseId !== undefined
  }

  close(reason: DqliteError = new DqliteError('CLOSED', `the session with ${this.address} is closed`)): void {
    if (this.#failure) return
    this.#failure = reason
    this.#socket.removeListener('data', this.#onData)
    this.#socket.destroy()
    const receiver = this.#receiver
    this.#receiver = undefined
    receiver?.reject(reason)
    this.onClosed()
  }

  // ------------------------------------------------------------------------------------------------ requests

  /** One request, one answer of the given type; FAILURE is thrown as the error that it stands for. */
  async request<Type extends ResponseType>(
    request: ClientRequest,
    expected: Type,
    deadline: Deadline,
  ): Promise<ResponseOf<Type>> {
    this.#begin([encodeRequest(request)], deadline)
    try {
      return this.#expect(await this.#receive(), expected)
    } finally {
      this.#end()
    }
  }

  /** Two requests in one write; their answers in order, a FAILURE as the error that it stands for. */
  async requests<First extends ResponseType, Second extends ResponseType>(
    requests: readonly [ClientRequest, ClientRequest],
    expected: readonly [First, Second],
    deadline: Deadline,
  ): Promise<[ResponseOf<First> | DqliteError, ResponseOf<Second> | DqliteError]> {
    this.#begin(requests.map(encodeRequest), deadline)
    try {
      const first = this.#expectOrFailure(await this.#receive(), expected[0])
      return [first, this.#expectOrFailure(await this.#receive(), expected[1])]
    } finally {
      this.#end()
    }
  }

  /** Opens the database, and asks for the members in the same write; a server that does not say them is no worse. */
  async open(name: string, deadline: Deadline): Promise<readonly ServerEntry[]> {
    assert(this.#databaseId === undefined)
    const [db, servers] = await this.requests(
      // "volatile" is what every Go client sends; servers ignore both fields (client-protocol §5).
      [
        { type: 'open', name, flags: 0n, vfs: 'volatile' },
        { type: 'cluster', format: 1n },
      ],
      ['db', 'servers'],
      deadline,
    )
    if (db instanceof DqliteError) throw db
    this.#databaseId = db.id
    return servers instanceof DqliteError ? [] : servers.servers
  }

  get databaseId(): number {
    assert(this.#databaseId !== undefined)
    return this.#databaseId
  }

  async prepare(text: PreparedText, deadline: Deadline): Promise<Prepared> {
    const known = this.#statements.get(text)
    if (known) return known
    const request = { type: 'prepare', schema: 0, databaseId: BigInt(this.databaseId), sql: text.sql } as const
    const stmt = await this.request(request, 'stmt', deadline)
    const prepared = { id: stmt.statementId, parameterCount: Number(stmt.parameterCount) }
    this.#statements.set(text, prepared)
    return prepared
  }

  /** FINALIZE travels with the next request: nobody waits for it. */
  forget(text: PreparedText): void {
    const prepared = this.#statements.get(text)
    if (!prepared) return
    this.#statements.delete(text)
    this.#finalizable.push(prepared.id)
  }

  /** A request that is answered by rows. The session is busy until the result is done or cancelled. */
  query(request: ClientRequest, rowsOptions: RowOptions, deadline: Deadline): Result {
    this.#begin([encodeRequest(request)], deadline)
    return new Result(this, rowsOptions)
  }

  // ------------------------------------------------------------------------------------------------ for Result

  /** The next batch of a running query. Ends the exchange when it is the last one, or an error. */
  async receiveRows(options: RowOptions): Promise<Rows> {
    let message: RawMessage
    try {
      message = await this.#receive()
      if (message.type !== responseCodes.rows) throw this.#unexpected(this.#decode(message), 'rows')
    } catch (error) {
      this.#end()
      throw error
    }
    // A value that the caller's policy refuses is not the connection's fault: the rest can still be drained.
    const rows = this.#understand(() => decodeRows(message.body, options))
    if (rows.done) this.#end()
    return rows
  }

  /**
   * Ends a running query early. INTERRUPT, then everything up to EMPTY is discarded: servers that read INTERRUPT
   * only after the whole result send all of it first, so there is a limit beyond which the connection is closed
   * instead (client-protocol §9.7).
   */
  async cancel(): Promise<void> {
    assert(this.#isBusy)
    try {
      this.#write([encodeRequest({ type: 'interrupt' })])
      for (let discarded = 0; ; discarded++) {
        const message = await this.#receive()
        if (message.type === responseCodes.rows || message.type === responseCodes.failure) {
          if (discarded < drainMessagesMax) continue
          throw this.#fail(new DqliteError('TOO_BIG', `more than ${drainMessagesMax} messages after INTERRUPT`))
        }
        this.#expect(message, 'empty')
        return
      }
    } finally {
      this.#end()
    }
  }

  // ------------------------------------------------------------------------------------------------ exchange

  #begin(messages: Buffer[], deadline: Deadline): void {
    assert(!this.#isBusy)
    deadline.check()
    if (this.#failure)
      throw new DqliteError('CONNECTION_LOST', `${this.#failure.message}; nothing was sent`, {
        cause: this.#failure,
        retry: 'safe',
      })
    this.#isBusy = true
    this.#deadline = deadline
    deadline.listen((error) => {
      // The answer may be on its way: only a new connection tells it from the answer to a later request.
      this.close(afterSending(error))
    })
    if (this.#finalizable.length > 0) {
      const databaseId = this.databaseId
      this.#skippable = this.#finalizable.length
      messages.unshift(
        ...this.#finalizable.map((statementId) => encodeRequest({ type: 'finalize', databaseId, statementId })),
      )
      this.#finalizable = []
    }
    this.#write(messages)
  }

  #end(): void {
    if (!this.#isBusy) return
    this.#isBusy = false
    this.#deadline?.unlisten()
    this.#deadline = undefined
    if (this.#failure) return
    try {
      if (this.#messages.next()) throw unaskedFor
    } catch (cause) {
      this.#fail(this.#badResponse('bytes that nobody asked for', cause))
      return
    }
    if (this.#socket.isPaused()) this.#socket.resume() // only a flowing socket notices its end
  }

  /** One write, however many messages. */
  #write(messages: Buffer[]): void {
    if (!this.#hasGreeted) {
      this.#hasGreeted = true
      messages.unshift(encodeHandshake())
    }
    this.#socket.write(messages.length === 1 ? messages[0]! : Buffer.concat(messages))
  }

  readonly #onData = (chunk: Uint8Array): void => {
    this.#messages.push(chunk)
    if (this.#receiver) {
      const message = this.#take()
      if (!message) return
      const { resolve } = this.#receiver
      this.#receiver = undefined
      resolve(message)
    } else if (this.#isBusy) {
      this.#socket.pause() // the consumer is slower than the server: the rest waits in the kernel
    } else {
      this.#fail(this.#badResponse('bytes that nobody asked for'))
    }
  }

  #receive(): Promise<RawMessage> {
    return new Promise((resolve, reject) => {
      const message = this.#failure ? undefined : this.#take()
      if (message) {
        resolve(message)
      } else if (this.#failure) {
        reject(this.#failure)
      } else {
        this.#receiver = { resolve, reject }
        if (this.#socket.isPaused()) this.#socket.resume()
      }
    })
  }

  /** The next message that answers something else than a FINALIZE. Bytes that cannot be close the session. */
  #take(): RawMessage | undefined {
    try {
      for (;;) {
        const message = this.#messages.next()
        if (!message || this.#skippable === 0) return message
        this.#skippable--
      }
    } catch (cause) {
      this.#fail(this.#badResponse('a message that cannot be', cause))
      return undefined
    }
  }

  #fail(error: DqliteError): DqliteError {
    this.close(error)
    return this.#failure ?? error
  }

  #understand<T>(decode: () => T): T {
    try {
      return decode()
    } catch (error) {
      if (error instanceof DqliteError && error.code === 'UNSAFE_INTEGER') throw error
      throw this.#fail(this.#badResponse('a message that does not decode', error))
    }
  }

  #decode(message: RawMessage): Response {
    return this.#understand(() => decodeResponse(message))
  }

  #expect<Type extends ResponseType>(message: RawMessage, expected: Type): ResponseOf<Type> {
    const response = this.#decode(message)
    if (response.type === expected) return response as ResponseOf<Type>
    throw this.#unexpected(response, expected)
  }

  #expectOrFailure<Type extends ResponseType>(message: RawMessage, expected: Type): ResponseOf<Type> | DqliteError {
    try {
      return this.#expect(message, expected)
    } catch (error) {
      if (this.#failure || !(error instanceof DqliteError)) throw error
      return error
    }
  }

  #unexpected(response: Response, expected: ResponseType): DqliteError {
    if (response.type === 'failure') return errorFromWire(response.code, response.message)
    return this.#fail(this.#badResponse(`${response.type} instead of ${expected}`))
  }

  #badResponse(what: string, cause?: unknown): DqliteError {
    const detail = cause instanceof Error && cause !== unaskedFor ? `: ${cause.message}` : ''
    return new DqliteError('BAD_RESPONSE', `${this.address} sent ${what}${detail}`, { cause })
  }
}

const unaskedFor = new Error('unasked for')

/** The rows of one query, batch by batch; the session is busy until they are done or cancelled. */
export class Result {
  readonly #session: Session
  readonly #options: RowOptions
  #isDone = false

  constructor(session: Session, options: RowOptions) {
    this.#session = session
    this.#options = options
  }

  get isDone(): boolean {
    return this.#isDone
  }

  /** Must not be called after the batch that was `done`, nor after an error other than UNSAFE_INTEGER. */
  async next(): Promise<Rows> {
    try {
      const rows = await this.#session.receiveRows(this.#options)
      this.#isDone = rows.done
      return rows
    } catch (error) {
      // The connection is in order and the rest of the result still has to be discarded.
      this.#isDone = !(error instanceof DqliteError && error.code === 'UNSAFE_INTEGER')
      throw error
    }
  }

  /** Harmless on a result that has ended. */
  async cancel(): Promise<void> {
    if (this.#isDone) return
    this.#isDone = true
    if (this.#session.isUsable) await this.#session.cancel()
  }
}
