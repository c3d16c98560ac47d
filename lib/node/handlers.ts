/**
 * What each request of the client protocol means on this node: who may ask, what is checked in which order, and with
 * which code and text it is refused (client-protocol §5, §7, §8). One function per request.
 * Does not know bytes of bodies (codec), sockets (gateway), nor how statements take turns (executor).
 */
import { encodeResponse, type Request } from '../codec/client-protocol.js'
import type { Engine } from '../engine/database.js'
import { DqliteError } from '../errors.js'
import type { ConfigurationChange } from '../raft/types.js'
import type { DatabaseHandle, Responder } from './database-handle.js'
import type { Executor } from './executor.js'
import type { Replicator } from './replicator.js'

/** What handlers see of a client connection. */
export interface Client extends Responder {
  /** Began with the legacy protocol word: LEADER is answered without id. */
  readonly isLegacy: boolean
  clientId: bigint
  /** The one database of the connection; may have been closed by a loss of leadership. */
  handle: DatabaseHandle | undefined
  /** Called if the connection ends before the request does. */
  onGone: (() => void) | undefined
  /** Cuts the connection: the answer has begun and cannot be completed. */
  abort(error: unknown): void
}

/** This node's failure domain and weight, as DESCRIBE tells them; WEIGHT changes the weight until the next start. */
export interface NodeMetadata {
  failureDomain: number | bigint
  weight: number | bigint
}

export interface HandlersOptions {
  readonly engine: Engine
  readonly replicator: Replicator
  readonly executor: Executor
  readonly metadata: NodeMetadata
}

/** Advertised to clients; no client sends heartbeats and no server waits for them (§1.3). */
const heartbeatTimeoutMs = 15_000

/** Pieces of a dump: one is in memory per client that dumps. */
const dumpPieceBytes = 256 * 1024

const notLeader = 10250

export class Handlers {
  readonly #engine: Engine
  readonly #replicator: Replicator
  readonly #executor: Executor
  readonly #metadata: NodeMetadata

  constructor(options: HandlersOptions) {
    this.#engine = options.engine
    this.#replicator = options.replicator
    this.#executor = options.executor
    this.#metadata = options.metadata
  }

  /** Starts the request; its answer comes through `client`, at once or later. `body` holds the parameters. */
  handle(client: Client, request: Exclude<Request, { type: 'connect' }>, body: Uint8Array): void {
    switch (request.type) {
      case 'exec':
      case 'query':
        this.#statement(client, request, body)
        return
      case 'execSql':
      case 'querySql':
        this.#sql(client, request, body)
        return
      case 'prepare': {
        const handle = this.#leaderHandle(client, request.databaseId === 0n)
        handle?.prepare(client, request.sql, request.schema)
        return
      }
      case 'finalize':
        this.#finalize(client, request.databaseId, request.statementId)
        return
      case 'leader':
        this.#leader(client)
        return
      case 'client':
        client.clientId = request.id
        client.answer(encodeResponse.welcome(heartbeatTimeoutMs))
        return
      case 'open':
        this.#open(client, request.name)
        return
      case 'interrupt':
        // Nothing runs when it gets here (§9.7); what runs is interrupted by the gateway.
        client.answer(encodeResponse.empty())
        return
      case 'add':
        this.#change(client, { type: 'add', id: request.id, address: request.address })
        return
      case 'assign':
        // Above 2 there is no role; C makes it stand-by by a slip (§5, §19.10).
        if (request.role === undefined) client.failure(1, 'server role is not valid')
        else this.#change(client, { type: 'assign', id: request.id, role: request.role })
        return
      case 'remove':
        this.#change(client, { type: 'remove', id: request.id })
        return
      case 'transfer':
        if (this.#refuseMembership(client)) return
        this.#answerEmpty(client, this.#replicator.transfer(request.id === 0n ? undefined : request.id))
        return
      case 'cluster':
        this.#cluster(client, request.format)
        return
      case 'dump':
        this.#dump(client, request.name)
        return
      case 'describe':
        if (request.format !== 0n) client.failure(15, 'bad format version')
        else client.answer(encodeResponse.metadata(this.#metadata.failureDomain, this.#metadata.weight))
        return
      case 'weight':
        this.#metadata.weight = request.weight
        client.answer(encodeResponse.empty())
        return
    }
  }

  // ---------------------------------------------------------------------------------------------- SQL

  /** Checks of §7.5 in their order: leader, database. `undefined`: answered. */
  #leaderHandle(client: Client, isDatabase0: boolean): DatabaseHandle | undefined {
    if (!this.#replicator.isLeader) {
      client.failure(notLeader, 'not leader')
      return undefined
    }
    return this.#openHandle(client, isDatabase0)
  }

  #openHandle(client: Client, isDatabase0: boolean): DatabaseHandle | undefined {
    const handle = client.handle
    if (handle === undefined || handle.isClosed || !isDatabase0) {
      client.failure(12, 'no database opened')
      return undefined
    }
    return handle
  }

  #statement(client: Client, request: Extract<Request, { type: 'exec' | 'query' }>, body: Uint8Array): void {
    const handle = this.#leaderHandle(client, request.databaseId === 0)
    if (handle === undefined) return
    const statement = handle.statements.get(request.statementId)
    if (statement === undefined) client.failure(12, 'no statement with the given id')
    else if (request.type === 'exec') handle.exec(client, statement, body, request.params, request.schema)
    else handle.query(client, statement, body, request.params, request.schema)
  }

  #sql(client: Client, request: Extract<Request, { type: 'execSql' | 'querySql' }>, body: Uint8Array): void {
    const handle = this.#leaderHandle(client, request.databaseId === 0n)
    if (handle === undefined) return
    if (request.type === 'execSql') handle.execSql(client, request.sql, body, request.params, request.schema)
    else handle.querySql(client, request.sql, body, request.params, request.schema)
  }

  #finalize(client: Client, databaseId: number, statementId: number): void {
    const handle = this.#openHandle(client, databaseId === 0)
    if (handle === undefined) return
    const statement = handle.statements.remove(statementId)
    if (statement === undefined) return client.failure(12, 'no statement with the given id')
    statement.finalize()
    client.answer(encodeResponse.empty())
  }

  #open(client: Client, name: string): void {
    if (!this.#replicator.isLeader) return client.failure(notLeader, 'not leader')
    if (client.handle !== undefined && !client.handle.isClosed)
      return client.failure(5, 'a database for this connection is already open')
    client.handle = this.#executor.open(name)
    client.answer(encodeResponse.db(0))
  }

  // ---------------------------------------------------------------------------------------------- cluster

  /** §7.1: only who is a voter in its own configuration names a leader; the oldest clients are told in any case. */
  #leader(client: Client): void {
    const leader = this.#replicator.leader()
    if (client.isLegacy) return client.answer(encodeResponse.serverLegacy(leader?.address ?? ''))
    const isVoter = this.#replicator
      .configuration()
      .servers.some(({ id, role }) => id === this.#replicator.id && role === 'voter')
    if (leader === undefined || !isVoter) client.answer(encodeResponse.server(0n, ''))
    else client.answer(encodeResponse.server(leader.id, leader.address))
  }

  #cluster(client: Client, format: bigint): void {
    if (format !== 0n && format !== 1n) return client.failure(1005, 'unrecognized cluster format')
    client.answer(encodeResponse.servers(this.#replicator.configuration().servers, format === 0n ? 0 : 1))
  }

  /** While leadership is handed over the replicator refuses in Raft's own words (§7.9). */
  #refuseMembership(client: Client): boolean {
    if (this.#replicator.isLeader || this.#replicator.isTransferring) return false
    client.failure(notLeader, 'not leader')
    return true
  }

  #change(client: Client, change: ConfigurationChange): void {
    if (this.#refuseMembership(client)) return
    this.#answerEmpty(client, this.#replicator.change(change))
  }

  #answerEmpty(client: Client, done: Promise<void>): void {
    done.then(
      () => {
        client.answer(encodeResponse.empty())
      },
      (error: unknown) => {
        client.fail(error)
      },
    )
  }

  // ---------------------------------------------------------------------------------------------- dump

  /** §7.14: the committed view of this node, whoever leads: the merged image, then an empty write-ahead log. */
  #dump(client: Client, name: string): void {
    const database = this.#engine.find(name)
    if (database === undefined) throw new DqliteError('UNKNOWN_DATABASE', 'database does not exists')
    const image = database.openImage()
    let left = image.byteLength
    let isOpen = true
    const close = (): void => {
      if (!isOpen) return
      isOpen = false
      client.onGone = undefined
      image.close()
    }
    client.onGone = close
    const send = (): void => {
      try {
        while (isOpen && left > 0) {
          const piece = Buffer.allocUnsafe(Math.min(left, dumpPieceBytes))
          const length = image.read(piece)
          if (length === 0) throw new DqliteError('DATA_CORRUPT', `the image of ${name} ends ${left} bytes early`)
          left -= length
          if (!client.part(length === piece.length ? piece : piece.subarray(0, length), send)) return
        }
      } catch (error) {
        close()
        // The message is cut in the middle: only the end of the connection can say so.
        client.abort(error)
        return
      }
      if (!isOpen) return
      close()
      client.answer(tail)
    }
    const [head, tail] = encodeResponse.filesHeads([
      { name, byteLength: left },
      { name: `${name}-wal`, byteLength: 0 },
    ]) as [Buffer, Buffer]
    if (client.part(head, send)) send()
  }
}
