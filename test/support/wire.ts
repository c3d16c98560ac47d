/**
 * A client that speaks bytes, and a server of real sockets, gateways, executor and engine around a replicator of the
 * test's making.
 */
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import {
  decodeResponse,
  encodeHandshake,
  encodeRequest,
  protocolVersion,
  type ClientRequest,
  type Response,
} from '../../lib/codec/client-protocol.js'
import { MessageStream, type RawMessage } from '../../lib/codec/message-stream.js'
import { decodeRows, encodeParameters, type SqlValue } from '../../lib/codec/tuple.js'
import { Engine, type EngineOptions } from '../../lib/engine/database.js'
import { Executor } from '../../lib/node/executor.js'
import { Gateways, type HandedOverPeer } from '../../lib/node/gateway.js'
import { Handlers } from '../../lib/node/handlers.js'
import { nodeLimits, type NodeLimits } from '../../lib/options.js'
import { LoopbackReplicator } from './loopback-replicator.js'

export interface TestServer {
  readonly port: number
  readonly engine: Engine
  readonly replicator: LoopbackReplicator
  readonly executor: Executor
  readonly gateways: Gateways
  /** What the node would have logged. */
  readonly internalErrors: unknown[]
  readonly peers: HandedOverPeer[]
  readonly sockets: Set<Socket>
  close(): Promise<void>
}

export async function startServer(
  limits: Partial<NodeLimits> = {},
  engineOptions: EngineOptions = {},
): Promise<TestServer> {
  const engine = Engine.create(engineOptions)
  const replicator = new LoopbackReplicator()
  const internalErrors: unknown[] = []
  const onInternalError = (error: unknown): void => void internalErrors.push(error)
  const all = nodeLimits(limits)
  const executor = new Executor({ engine, replicator, limits: all, onInternalError })
  const handlers = new Handlers({ engine, replicator, executor, metadata: { failureDomain: 100, weight: 0 } })
  const peers: HandedOverPeer[] = []
  const gateways = new Gateways({ handlers, limits: all, onInternalError, onPeer: (peer) => peers.push(peer) })
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    let head = Buffer.alloc(0)
    const onData = (chunk: Buffer): void => {
      head = Buffer.concat([head, chunk])
      if (head.length < 8) return
      socket.off('data', onData).off('error', onError).pause()
      gateways.accept({ socket, protocol: head.readBigUInt64LE(0), rest: head.subarray(8) })
    }
    const onError = (): void => void socket.destroy()
    socket.on('data', onData).on('error', onError)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    engine,
    replicator,
    executor,
    gateways,
    internalErrors,
    peers,
    sockets,
    async close() {
      server.close()
      await gateways.closeAll()
      await executor.close()
      for (const socket of sockets) socket.destroy()
      await engine.close()
    },
  }
}

export type RowsAnswer = { columns: readonly string[]; rows: SqlValue[][]; parts: number }

export class WireClient {
  readonly socket: Socket
  readonly #stream = new MessageStream({ bodyBytesMax: 2 ** 31 })
  readonly #waiting: (() => void)[] = []
  #ended = false
  readonly #legacy: boolean

  private constructor(socket: Socket, legacy: boolean) {
    this.socket = socket
    this.#legacy = legacy
    socket.on('data', (chunk: Buffer) => {
      this.#stream.push(chunk)
      this.#wake()
    })
    const onEnd = (): void => {
      this.#ended = true
      this.#wake()
    }
    socket.on('end', onEnd).on('close', onEnd).on('error', onEnd)
  }

  static async connect(server: { port: number }, protocol: bigint = protocolVersion): Promise<WireClient> {
    const socket = connect(server.port, '127.0.0.1')
    socket.setNoDelay(true)
    await once(socket, 'connect')
    socket.write(encodeHandshake(protocol))
    return new WireClient(socket, protocol !== protocolVersion)
  }

  /** Connected, with the database open. */
  static async open(server: { port: number }, name = 'test'): Promise<WireClient> {
    const client = await WireClient.connect(server)
    const answer = await client.ask({ type: 'open', name, flags: 0n, vfs: '' })
    if (answer.type !== 'db') throw new Error(`OPEN was answered ${JSON.stringify(answer)}`)
    return client
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }

  send(bytes: Uint8Array): void {
    this.socket.write(bytes)
  }

  sendHex(text: string): void {
    this.send(fromHex(text))
  }

  /** The next message, `undefined` at the end of the connection. */
  async raw(): Promise<RawMessage | undefined> {
    for (;;) {
      const message = this.#stream.next()
      if (message !== undefined) return message
      if (this.#ended) return undefined
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }

  /** The next message, if one has arrived. */
  peek(): RawMessage | undefined {
    return this.#stream.next()
  }

  /** The next message as bytes in hex, the words separated by blanks. */
  async hex(): Promise<string | undefined> {
    const message = await this.raw()
    if (message === undefined) return undefined
    const bytes = Buffer.alloc(8 + message.body.length)
    bytes.writeUInt32LE(message.body.length / 8, 0)
    bytes[4] = message.type
    bytes[5] = message.schema
    bytes.set(message.body, 8)
    return words(bytes)
  }

  async next(options: { format?: 0 | 1 } = {}): Promise<Response> {
    const message = await this.raw()
    if (message === undefined) throw new Error('the server closed the connection')
    return decodeResponse(message, { legacy: this.#legacy, ...options })
  }

  request(request: ClientRequest): void {
    this.send(encodeRequest(request))
  }

  async ask(request: ClientRequest): Promise<Response> {
    this.request(request)
    return this.next(request.type === 'cluster' ? { format: request.format === 0n ? 0 : 1 } : {})
  }

  requestExec(sql: string, ...values: SqlValue[]): void {
    this.request({ type: 'execSql', schema: 1, databaseId: 0n, sql, params: encodeParameters(values, 1) })
  }

  requestQuery(sql: string, ...values: SqlValue[]): void {
    this.request({ type: 'querySql', schema: 1, databaseId: 0n, sql, params: encodeParameters(values, 1) })
  }

  /** 'rowid/changes' of RESULT, or 'code text' of FAILURE. */
  async exec(sql: string, ...values: SqlValue[]): Promise<string> {
    this.requestExec(sql, ...values)
    return summary(await this.next())
  }

  async answer(): Promise<string> {
    return summary(await this.next())
  }

  async query(sql: string, ...values: SqlValue[]): Promise<RowsAnswer> {
    this.requestQuery(sql, ...values)
    const answer = await this.rows()
    if (typeof answer === 'string') throw new Error(answer)
    return answer
  }

  /** The one value of the one row. */
  async value(sql: string, ...values: SqlValue[]): Promise<SqlValue | undefined> {
    return (await this.query(sql, ...values)).rows[0]?.[0]
  }

  /** All batches of a result; the FAILURE as text. */
  async rows(): Promise<RowsAnswer | string> {
    const all: RowsAnswer = { columns: [], rows: [], parts: 0 }
    for (;;) {
      const response = await this.next()
      if (response.type !== 'rows') return summary(response)
      const { columns, rows, done } = decodeRows(response.body, { dates: 'raw' })
      all.columns = columns
      for (const row of rows) all.rows.push(row)
      all.parts++
      if (done) return all
    }
  }

  async closed(): Promise<boolean> {
    return (await this.raw()) === undefined
  }

  async end(): Promise<void> {
    const closed = this.socket.closed ? undefined : once(this.socket, 'close')
    this.socket.destroy()
    await closed
  }
}

export function summary(response: Response): string {
  if (response.type === 'failure') return `${response.code} ${response.message}`
  if (response.type === 'result') return `${response.lastInsertRowid.toString()}/${response.rowsAffected.toString()}`
  return response.type
}

export const fromHex = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ''), 'hex')

export const words = (bytes: Uint8Array): string =>
  Buffer.from(bytes)
    .toString('hex')
    .replaceAll(/(.{16})(?!$)/g, '$1 ')

/** Lets sockets and the loop do what is due, until `condition` holds. */
export async function until(condition: () => boolean, turnsMax = 20_000): Promise<void> {
  for (let i = 0; i < turnsMax; i++) {
    if (condition()) return
    await new Promise((resolve) => setImmediate(resolve))
  }
  throw new Error(`still not so after ${turnsMax} turns of the loop: ${condition.toString()}`)
}

/** Long enough for anything that could happen on the loopback to have happened. */
export async function settled(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 1))
}
