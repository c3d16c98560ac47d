/**
 * One running member of a cluster: opens the rooms in order, wires them, closes them in reverse.
 * Decides nothing while it runs.
 */
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'

import { encodeConfiguration, entryFromParts, entryTypeCode } from '../codec/log-entry.js'
import { Engine } from '../engine/database.js'
import { DqliteError } from '../errors.js'
import { dial, guarded, parseAddress, type Dial } from '../network/dial.js'
import { Listener } from '../network/listener.js'
import { Transport } from '../network/transport.js'
import { nodeLimits, snapshotStrategies, type NodeLimits, type SnapshotStrategy } from '../options.js'
import type { Configuration, Server, ServerId } from '../raft/types.js'
import type { Disk } from '../storage/disk.js'
import { openDataDirectory, type OpenedDirectory } from '../storage/open.js'
import { Executor } from './executor.js'
import { Gateways } from './gateway.js'
import { Handlers } from './handlers.js'
import { RaftDriver, type RaftStatus } from './raft-driver.js'
import { StateMachine } from './state-machine.js'

/** A node with one of these ids founds a cluster of itself when its directory is empty (client-protocol §12.3). */
export const bootstrapIds: readonly ServerId[] = [1n, 3297041220608546238n]

export interface NodeOptions {
  /** Unsigned 64 bits, never 0. A number must be a safe integer. */
  readonly id: bigint | number
  /** What the cluster and its clients call this node, byte for byte: `host:port`. */
  readonly address: string
  /** The data directory, created if it is missing. Locked while the node runs. */
  readonly dir: string
  /**
   * Where to listen, default `address`: `host:port`, a Unix socket's path, or `@name` (abstract). False: nowhere, all
   * connections come through `accept`.
   */
  readonly bind?: string | false
  /** One-way network latency in ns; sets heartbeat to 1.5 and election timeout to 15 times it, as C dqlite does. */
  readonly networkLatencyNs?: number
  readonly failureDomain?: bigint | number
  readonly snapshotStrategy?: SnapshotStrategy
  /** Whether damage that the other members can repair may be set aside at start. Default true. */
  readonly autoRecovery?: boolean
  readonly limits?: Partial<Record<keyof NodeLimits, number>>
  /**
   * How connections to peers are made; default: TCP or Unix sockets by address. What it gives (a `net.Socket`, also a
   * `tls.TLSSocket`) carries the dqlite stream from its first byte on: an HTTP upgrade is over by then.
   */
  readonly dial?: Dial
  /** How files are reached; default: the operating system. Tests break it. */
  readonly disk?: Disk
  /** A sentence about something that went wrong and was dealt with. Default: nothing. */
  readonly onWarning?: (text: string) => void
  /** The node no longer takes part (its disk failed, or a database cannot be applied to). It still answers, until `stop()`. */
  readonly onFailure?: (error: DqliteError) => void
}

export interface NodeStatus extends RaftStatus {
  readonly id: ServerId
  readonly leader: { readonly id: ServerId; readonly address: string } | undefined
  readonly servers: readonly Server[]
}

const uint64Max = (1n << 64n) - 1n

interface Checked {
  readonly id: ServerId
  readonly address: string
  readonly bind: string | false
  readonly limits: NodeLimits
  readonly snapshotStrategy: SnapshotStrategy
  readonly failureDomain: bigint
}

export class Node {
  readonly id: ServerId
  readonly address: string
  readonly #directory: OpenedDirectory
  readonly #engine: Engine
  readonly #driver: RaftDriver
  readonly #executor: Executor
  readonly #transport: Transport
  readonly #listener: Listener
  readonly #gateways: Gateways
  #stopping: Promise<void> | undefined

  private constructor(parts: {
    readonly checked: Checked
    readonly directory: OpenedDirectory
    readonly engine: Engine
    readonly driver: RaftDriver
    readonly executor: Executor
    readonly transport: Transport
    readonly listener: Listener
    readonly gateways: Gateways
  }) {
    this.id = parts.checked.id
    this.address = parts.checked.address
    this.#directory = parts.directory
    this.#engine = parts.engine
    this.#driver = parts.driver
    this.#executor = parts.executor
    this.#transport = parts.transport
    this.#listener = parts.listener
    this.#gateways = parts.gateways
  }

  /**
   * Resolves when connections are accepted. Rejects with BAD_OPTION, ADDRESS_IN_USE, DIRECTORY_LOCKED,
   * DIRECTORY_FOREIGN, DATA_CORRUPT or DISK_FAILED, having written nothing.
   */
  static async start(options: NodeOptions): Promise<Node> {
    const checked = check(options)
    const { limits } = checked
    const warn = options.onWarning ?? ((): void => undefined)
    // Everything that can be refused is tried before anything is written: the port first, then the directory.
    // Connections that come before the rooms behind them are open wait in `early`.
    const early: { readonly socket: Socket; readonly start: (rooms: Rooms) => void }[] = []
    let rooms: Rooms | undefined
    const arrive = (socket: Socket, start: (rooms: Rooms) => void): void => {
      if (rooms !== undefined) start(rooms)
      else early.push({ socket, start })
    }
    const listener = await Listener.listen({
      bind: checked.bind,
      connectionsMax: limits.connectionsMax,
      onClient: (client) => arrive(client.socket, ({ gateways }) => gateways.accept(client)),
      onPeer: (peer) => arrive(peer.socket, ({ transport }) => transport.accept(peer)),
      onError: (error) => warn(`cannot accept connections: ${error.message}`),
    })
    let directory: OpenedDirectory | undefined
    let engine: Engine | undefined
    try {
      directory = await openDataDirectory({
        dir: options.dir,
        ...(options.disk !== undefined && { disk: options.disk }),
        autoRecovery: options.autoRecovery ?? true,
        logCacheBytesMax: limits.logCacheBytesMax,
        onWarning: warn,
      })
      engine = Engine.create({
        workerThreadsMax: limits.workerThreadsMax,
        statementBudgetMs: limits.statementBudgetMs,
        transactionBytesMax: limits.transactionBytesMax,
      })
      const stateMachine = new StateMachine(engine, limits)
      const restored = await bootstrap(directory, checked)
      if (restored.snapshot !== undefined) await restore(directory, stateMachine)
      const driver = new RaftDriver({
        id: checked.id,
        address: checked.address,
        directory,
        restored,
        stateMachine,
        limits,
        snapshotStrategy: checked.snapshotStrategy,
        random: Math.random,
        onFailure: options.onFailure ?? ((error) => warn(error.message)),
        onWarning: warn,
      })
      const onInternalError = (error: unknown): void =>
        warn(error instanceof Error ? (error.stack ?? error.message) : String(error))
      const executor = new Executor({ engine, replicator: driver, limits, onInternalError })
      const transport = new Transport({
        id: checked.id,
        address: checked.address,
        dial: options.dial === undefined ? dial : guarded(options.dial),
        connectTimeoutMs: limits.connectTimeoutMs,
        reconnectMs: limits.reconnectMs,
        sendQueueBytesMax: limits.sendQueueBytesMax,
        progressTimeoutMs: limits.installSnapshotTimeoutMs,
        onMessage: (from, address, message) => driver.onMessage(from, address, message),
        onSnapshot: (from, address, message, contentBytes, content) =>
          void driver.onSnapshot(from, address, message, contentBytes, content).catch(onInternalError),
        onUnreachable: (to) => driver.onUnreachable(to),
        onWarning: warn,
      })
      const metadata = { failureDomain: checked.failureDomain, weight: 0 }
      const handlers = new Handlers({ engine, replicator: driver, executor, metadata })
      const gateways = new Gateways({
        handlers,
        limits,
        onInternalError,
        onPeer: (peer) => transport.accept(peer),
      })
      driver.start(transport)
      rooms = { gateways, transport }
      for (const { start } of early) start(rooms)
      return new Node({ checked, directory, engine, driver, executor, transport, listener, gateways })
    } catch (error) {
      for (const { socket } of early) socket.destroy()
      await listener.close()
      await engine?.close()
      await directory?.close()
      throw error
    }
  }

  /** Where it listens, as clients may dial it: a port of 0 has become a real one. Undefined with `bind: false`. */
  get bindAddress(): string | undefined {
    return this.#listener.address === '' ? undefined : this.#listener.address
  }

  /**
   * Takes over a connection that the application has accepted: a `net.Socket` or `tls.TLSSocket` on which a client or
   * a peer speaks dqlite next, from its protocol word on. `head`: what was read of that already, as an HTTP server's
   * 'upgrade' event gives it. Nobody else may read from the socket. Throws BAD_OPTION for anything else; a stopped node
   * closes the connection.
   */
  accept(socket: Duplex, head: Uint8Array = new Uint8Array()): void {
    if (!(socket instanceof Socket) || socket.readableEncoding !== null)
      throw new DqliteError('BAD_OPTION', 'accept takes a net.Socket or tls.TLSSocket, without an encoding')
    if (!(head instanceof Uint8Array)) throw new DqliteError('BAD_OPTION', 'accept takes a Buffer as head')
    this.#listener.accept(socket, head)
  }

  get status(): NodeStatus {
    return {
      ...this.#driver.status,
      id: this.id,
      leader: this.#driver.leader(),
      servers: this.#driver.configuration().servers,
    }
  }

  /** Ends connections, waits for work in flight, releases the directory. Twice is fine. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  async #stop(): Promise<void> {
    await this.#listener.close()
    await this.#driver.stop()
    await this.#gateways.closeAll()
    await this.#executor.close()
    await this.#transport.close()
    await this.#engine.close()
    await this.#directory.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }
}

interface Rooms {
  readonly gateways: Gateways
  readonly transport: Transport
}

function check(options: NodeOptions): Checked {
  const id = uint64('id', options.id)
  if (id === 0n) throw new DqliteError('BAD_OPTION', 'option id is 0; it must be from 1 to 2^64 - 1')
  if (typeof options.address !== 'string' || options.address === '' || options.address.includes('\0'))
    throw new DqliteError('BAD_OPTION', `option address is ${JSON.stringify(options.address)}; it must be host:port`)
  if (typeof options.dir !== 'string' || options.dir === '')
    throw new DqliteError('BAD_OPTION', `option dir is ${JSON.stringify(options.dir)}; it must name a directory`)
  const bind = options.bind ?? options.address
  if (bind !== false) parseAddress(bind)
  if (options.dial !== undefined && typeof options.dial !== 'function')
    throw new DqliteError('BAD_OPTION', 'option dial must be a function that gives a promise of a socket')
  const snapshotStrategy = options.snapshotStrategy ?? 'static'
  if (!snapshotStrategies.includes(snapshotStrategy))
    throw new DqliteError(
      'BAD_OPTION',
      `option snapshotStrategy is ${JSON.stringify(snapshotStrategy)}; it must be one of ${snapshotStrategies.join(', ')}`,
    )
  const timing = options.networkLatencyNs === undefined ? {} : networkTiming(options.networkLatencyNs)
  return {
    id,
    address: options.address,
    bind,
    limits: nodeLimits({ ...timing, ...options.limits }),
    snapshotStrategy,
    failureDomain: uint64('failureDomain', options.failureDomain ?? 0n),
  }
}

function uint64(name: string, value: bigint | number): bigint {
  if (typeof value === 'number' ? Number.isSafeInteger(value) : typeof value === 'bigint') {
    const big = BigInt(value)
    if (big >= 0n && big <= uint64Max) return big
  }
  throw new DqliteError(
    'BAD_OPTION',
    `option ${name} is ${String(value)}; it must be a whole number from 0 to 2^64 - 1`,
  )
}

/** Raft-wire §6.1: heartbeat = floor(15 L / 10), election timeout = 15 L, with L in whole ms from 1 to an hour. */
function networkTiming(latencyNs: number): { heartbeatMs: number; electionTimeoutMs: number } {
  const latencyMs = Math.floor(latencyNs / 1_000_000)
  if (!Number.isFinite(latencyNs) || latencyMs < 1 || latencyMs > 3_600_000)
    throw new DqliteError(
      'BAD_OPTION',
      `option networkLatencyNs is ${latencyNs}; it must be from 1000000 (1 ms) to 3600000000000 (an hour)`,
    )
  return { heartbeatMs: Math.floor((15 * latencyMs) / 10), electionTimeoutMs: 15 * latencyMs }
}

/** An empty directory of a founder gets term 1 and one entry: the configuration of itself as the only voter. */
async function bootstrap(directory: OpenedDirectory, { id, address }: Checked): Promise<OpenedDirectory['restored']> {
  const { restored, metadata, log } = directory
  const isEmpty = restored.term === 0 && restored.snapshot === undefined && restored.entries.length === 0
  if (!isEmpty || !bootstrapIds.includes(id)) return restored
  const configuration: Configuration = { servers: [{ id, address, role: 'voter' }] }
  const entry = entryFromParts(1, 1, entryTypeCode('configuration'), encodeConfiguration(configuration))
  await metadata.save({ term: 1, votedFor: undefined })
  await log.append([entry])
  return { ...restored, term: 1, entries: [entry] }
}

async function restore(directory: OpenedDirectory, stateMachine: StateMachine): Promise<void> {
  const newest = await directory.snapshots.openNewest()
  if (newest === undefined) return
  try {
    await stateMachine.restore(newest.content)
  } finally {
    await newest.close()
  }
}
