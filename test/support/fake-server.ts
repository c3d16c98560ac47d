/**
 * A server that does as it is told: speaks the client protocol through the codec, remembers what it was asked, and
 * lets a test answer in its place. Without instructions it leads, and every statement succeeds. It has no SQL.
 */
import net from 'node:net'
import { ByteWriter } from '../../lib/codec/bytes.js'
import {
  decodeRequest,
  encodeResponse,
  handshakeBytes,
  messageHeader,
  responseCodes,
  rowHeaderBytes,
  valueTypes,
  type Request,
} from '../../lib/codec/client-protocol.js'
import { MessageStream } from '../../lib/codec/message-stream.js'

/** Says that the test has answered, or will, or never will. */
export type Script = (
  request: Request,
  connection: FakeConnection,
  sql: string,
) => 'answered' | undefined | Promise<'answered' | undefined>

export class FakeServer {
  /** One line per request: its type, and its SQL. */
  readonly log: string[] = []
  readonly connections: FakeConnection[] = []
  /** Answers before the default does. */
  script: Script = () => undefined
  /** What LEADER is told; itself by default. */
  leader: string | undefined
  /** What CLUSTER is told. */
  members: { id: bigint; address: string; role: 'voter' | 'standby' | 'spare' }[] = []
  readonly #server: net.Server
  readonly #sockets = new Set<net.Socket>()
  #address = ''

  private constructor() {
    this.#server = net.createServer((socket) => {
      this.#sockets.add(socket)
      socket.on('close', () => this.#sockets.delete(socket))
      this.connections.push(new FakeConnection(this, socket))
    })
  }

  static async start(script?: Script): Promise<FakeServer> {
    const server = new FakeServer()
    if (script) server.script = script
    await new Promise<void>((resolve) => server.#server.listen(0, '127.0.0.1', resolve))
    const { port } = server.#server.address() as net.AddressInfo
    server.#address = `127.0.0.1:${port}`
    server.leader = server.#address
    return server
  }

  get address(): string {
    return this.#address
  }

  get openConnections(): number {
    return this.#sockets.size
  }

  /** How many requests have this in their line. */
  asked(text: string): number {
    return this.log.filter((line) => line.includes(text)).length
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    if (this.#server.listening) await new Promise((resolve) => this.#server.close(resolve))
  }
}

export class FakeConnection {
  readonly socket: net.Socket
  inTransaction = false
  statements = 0
  readonly #server: FakeServer
  readonly #messages = new MessageStream({ bodyBytesMax: 1 << 24 })
  #greeting = handshakeBytes
  #turn: Promise<void> = Promise.resolve()

  constructor(server: FakeServer, socket: net.Socket) {
    this.#server = server
    this.socket = socket
    socket.on('error', () => undefined)
    socket.on('data', (chunk) => {
      const skipped = Math.min(this.#greeting, chunk.length)
      this.#greeting -= skipped
      this.#messages.push(chunk.subarray(skipped))
      for (let message = this.#messages.next(); message; message = this.#messages.next()) {
        const request = decodeRequest(message)
        this.#turn = this.#turn.then(() => this.#answer(request))
      }
    })
  }

  send(...messages: Uint8Array[]): 'answered' {
    this.socket.write(Buffer.concat(messages))
    return 'answered'
  }

  fail(code: number, message: string): 'answered' {
    return this.send(encodeResponse.failure(code, message))
  }

  close(): 'answered' {
    this.socket.destroy()
    return 'answered'
  }

  async #answer(request: Request): Promise<void> {
    const sql = 'sql' in request ? Buffer.from(request.sql).toString() : ''
    this.#server.log.push(sql ? `${request.type} ${sql}` : request.type)
    if ((await this.#server.script(request, this, sql)) === 'answered') return
    switch (request.type) {
      case 'leader':
        this.send(encodeResponse.server(this.#server.leader ? 1n : 0n, this.#server.leader ?? ''))
        return
      case 'cluster':
        this.send(encodeResponse.servers(this.#server.members, 1))
        return
      case 'open':
        this.send(encodeResponse.db(0))
        return
      case 'prepare':
        this.send(encodeResponse.stmt({ databaseId: 0, statementId: this.statements++, parameterCount: 1 }))
        return
      case 'execSql':
        this.#execSql(sql)
        return
      case 'exec':
        this.send(encodeResponse.result(1n, 1))
        return
      case 'query':
      case 'querySql':
        this.send(rowsMessage(['n'], [[1]]))
        return
      case 'describe':
        this.send(encodeResponse.metadata(0, 0))
        return
      case 'client':
        this.send(encodeResponse.welcome(15_000))
        return
      case 'connect':
      case 'dump':
        this.close()
        return
      case 'finalize':
      case 'interrupt':
      case 'add':
      case 'assign':
      case 'remove':
      case 'transfer':
      case 'weight':
        this.send(encodeResponse.empty())
    }
  }

  #execSql(sql: string): void {
    const word = /^\w+/.exec(sql)?.[0] ?? ''
    if (word === 'BEGIN' && this.inTransaction) {
      this.fail(1, 'cannot start a transaction within a transaction')
    } else if ((word === 'COMMIT' || sql === 'ROLLBACK') && !this.inTransaction) {
      this.fail(1, `cannot ${word.toLowerCase()} - no transaction is active`)
    } else {
      if (word === 'BEGIN') this.inTransaction = true
      if (word === 'COMMIT' || sql === 'ROLLBACK') this.inTransaction = false
      this.send(encodeResponse.result(1n, 1))
    }
  }
}

/** A ROWS message of integers, texts and nulls. */
export function rowsMessage(
  columns: readonly string[],
  rows: readonly (readonly (number | bigint | string | null)[])[],
  { done = true }: { done?: boolean } = {},
): Buffer {
  const body = new ByteWriter()
  body.u64(columns.length)
  for (const name of columns) body.text(name)
  for (const row of rows) {
    const header = new Uint8Array(rowHeaderBytes(columns.length))
    row.forEach((value, i) => {
      const type = value === null ? valueTypes.null : typeof value === 'string' ? valueTypes.text : valueTypes.integer
      header[i >> 1]! |= i % 2 === 0 ? type : type << 4
    })
    body.raw(header)
    for (const value of row) {
      if (typeof value === 'string') body.text(value)
      else body.i64(BigInt(value ?? 0))
    }
  }
  body.raw(new Uint8Array(8).fill(done ? 0xff : 0xee))
  const bytes = body.finish()
  return Buffer.concat([messageHeader(responseCodes.rows, bytes.length), bytes])
}
