/**
 * The databases of a node: their content in memory, the transactions captured from SQLite, and the two views of them.
 *
 * Knows databases by name and what may be done to one when. Does not know Raft: the caller says when a transaction is
 * committed (`publish`), lost (`dropSpeculative`) or comes from another leader (`apply`). The rules are constraints C1
 * to C8 of pipelined commit; the mechanism is native/vfs.h.
 */
import assert from 'node:assert/strict'
import { encodeKey } from '../codec/log-entry.js'
import { DqliteError, errorFromWire } from '../errors.js'
import { engineAddon } from './addon-engine.js'
import { Connection } from './connection.js'
import type { NativeConnection, NativeDatabase, NativeEngine, NativeImage, NativeRestore } from './addon-engine.js'

export interface EngineOptions {
  /** Heavy statements at once; more wait for a thread. */
  readonly workerThreadsMax?: number
  /** An inline statement that takes longer is undone and reported as `overBudget`. */
  readonly statementBudgetMs?: number
  /** A transaction whose command would be larger fails at its commit, with SQLITE_TOOBIG, and is rolled back. */
  readonly transactionBytesMax?: number
}

const nameBytesMax = 504

/** Commands are encoded into slabs of this size; a larger one gets its own memory. */
const commandSlabBytes = 256 * 1024

export class Engine {
  readonly #native: NativeEngine
  readonly #databases = new Map<string, Database>()
  #closing: Promise<void> | undefined

  private constructor(native: NativeEngine) {
    this.#native = native
  }

  static create(options: EngineOptions = {}): Engine {
    const { workerThreadsMax = 64, statementBudgetMs = 4, transactionBytesMax = 256 * 1024 * 1024 } = options
    assert(workerThreadsMax >= 1 && statementBudgetMs >= 1 && transactionBytesMax >= 1)
    return new Engine(new engineAddon.Engine(workerThreadsMax, statementBudgetMs, transactionBytesMax))
  }

  /** Existing or new; a new one has one local page, which is not replicated. */
  database(name: string): Database {
    const database = this.#databases.get(name) ?? this.#create(name, false)
    if (database?.isOpenable !== true)
      throw new DqliteError('CANNOT_OPEN', `not a name a database can have: ${JSON.stringify(name)}`)
    return database
  }

  /**
   * For what Raft has committed: C 1.11 lets its clients choose names that ours may not (`x-wal`, bytes that are not
   * UTF-8). Such a database is kept, and never connected to.
   */
  replicated(name: string): Database {
    const database = this.#databases.get(name) ?? this.#create(name, false) ?? this.#create(name, true)
    assert(database !== undefined)
    return database
  }

  #create(name: string, isReplicated: boolean): Database | undefined {
    if (this.#closing !== undefined) throw new DqliteError('CLOSED', 'the engine is closed')
    // The longest that C dqlite opens: a longer one would stop C members that are to apply it.
    const isTooLong = Buffer.byteLength(name) > nameBytesMax
    if (!isReplicated && (isTooLong || name.includes('\0'))) return undefined
    const native = this.#native.database(encodeKey(name), isReplicated)
    if (native === undefined) return undefined
    const database = new Database(name, native, !isReplicated)
    this.#databases.set(name, database)
    return database
  }

  find(name: string): Database | undefined {
    return this.#databases.get(name)
  }

  /** In order of creation. */
  databases(): readonly Database[] {
    return [...this.#databases.values()]
  }

  /** Forgets a database completely. It has no connections. Open images of it stay whole. */
  drop(name: string): void {
    assert(this.#native.drop(encodeKey(name)), `database ${name} has connections`)
    this.#databases.delete(name)
  }

  /** Closes every connection, interrupts and waits for workers. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await Promise.all(this.databases().map((database) => database.closeConnections()))
    this.#native.stop()
  }
}

export class Database {
  readonly name: string
  readonly #native: NativeDatabase
  readonly #connections = new Set<Connection>()
  #slab: Buffer | undefined
  #slabUsed = 0

  /** Made by `Engine.database` or `Engine.replicated`. */
  constructor(
    name: string,
    native: NativeDatabase,
    readonly isOpenable: boolean,
  ) {
    this.name = name
    this.#native = native
  }

  connect(): Connection {
    assert(this.isOpenable)
    const native = this.#native.connect()
    if (Array.isArray(native)) {
      const [code, message] = native as readonly [number, string]
      throw errorFromWire(code, message)
    }
    const connection: Connection = new Connection(native as NativeConnection, () => {
      this.#connections.delete(connection)
    })
    this.#connections.add(connection)
    return connection
  }

  get connections(): number {
    return this.#connections.size
  }

  /** Waits for workers, which it interrupts. */
  async closeConnections(): Promise<void> {
    await Promise.all([...this.#connections].map((connection) => connection.close()))
  }

  // ------------------------------------------------------------------------------------------ leader

  /** Transactions that are captured and neither published nor dropped. */
  get speculative(): number {
    return this.#native.speculative()
  }

  /**
   * The FRAMES command (raft-wire §5.1) of the oldest transaction that SQLite has committed and nobody has taken yet. To
   * be asked after every statement that could have committed, whatever its outcome.
   */
  takeCaptured(): Uint8Array | undefined {
    this.#slab ??= Buffer.allocUnsafeSlow(commandSlabBytes)
    let bytes = this.#native.takeCaptured(this.#slab, this.#slabUsed)
    if (bytes === 0) return undefined
    if (bytes < 0) {
      const needed = -bytes
      if (needed > commandSlabBytes / 4) {
        const own = Buffer.allocUnsafeSlow(needed)
        bytes = this.#native.takeCaptured(own, 0)
        assert(bytes === needed)
        return own
      }
      this.#slab = Buffer.allocUnsafeSlow(commandSlabBytes)
      this.#slabUsed = 0
      bytes = this.#native.takeCaptured(this.#slab, 0)
      assert(bytes === needed)
    }
    const command = this.#slab.subarray(this.#slabUsed, this.#slabUsed + bytes)
    this.#slabUsed += bytes
    return command
  }

  /** The oldest captured transaction becomes part of the committed view. */
  publish(): void {
    assert(this.#native.publish(), 'nothing is captured')
  }

  /** Forgets what is captured and not published. Every connection that saw it must be closed before (C4.15). */
  dropSpeculative(): void {
    assert(this.#native.dropSpeculative(), 'a connection is writing')
  }

  // ------------------------------------------------------------------------------------------ follower

  /** Applies the data of a FRAMES entry by the rules of raft-wire §5.2. Nothing may be speculative. */
  apply(command: Uint8Array): void {
    const problem = this.#native.apply(command)
    if (problem !== undefined)
      throw new DqliteError('DATA_CORRUPT', `cannot apply a command to database ${this.name}: ${problem}`)
  }

  // ------------------------------------------------------------------------------------------ maintenance

  get walFrames(): number {
    return this.#native.walFrames()
  }

  /** `PRAGMA delete_database` was the last transaction: to be dropped once it has no connections (raft-wire §5.2). */
  get isDeleted(): boolean {
    return this.#native.isDeleted()
  }

  /** Moves the WAL into the main pages. False: readers, writers or speculative transactions are in the way. */
  checkpoint(): boolean {
    return this.#native.checkpoint()
  }

  openImage(): DatabaseImage {
    return new DatabaseImage(this.#native.openImage())
  }

  /** New content, collected beside the old until `finish`. No connection may be open then. */
  restore(byteLength: number): DatabaseRestore {
    return new DatabaseRestore(this.name, this.#native, this.#native.restore(byteLength))
  }
}

/** The committed view of one instant; checkpoints wait until it is closed. */
export class DatabaseImage {
  readonly #native: NativeImage
  readonly byteLength: number

  constructor(native: NativeImage) {
    this.#native = native
    this.byteLength = native.byteLength()
  }

  /** The next bytes; fewer than asked for at the end, then 0. */
  read(target: Uint8Array): number {
    return this.#native.read(target)
  }

  close(): void {
    this.#native.close()
  }
}

export class DatabaseRestore {
  readonly #name: string
  readonly #database: NativeDatabase
  #native: NativeRestore | undefined

  constructor(name: string, database: NativeDatabase, native: NativeRestore) {
    this.#name = name
    this.#database = database
    this.#native = native
  }

  /** Chunks of any size, in order. */
  write(chunk: Uint8Array): void {
    assert(this.#native !== undefined, 'finished or aborted')
    this.#check(this.#native.write(chunk))
  }

  finish(): void {
    assert(this.#native !== undefined, 'finished or aborted')
    const native = this.#native
    this.#native = undefined
    this.#check(this.#database.finishRestore(native))
  }

  abort(): void {
    this.#native = undefined
  }

  #check(problem: string | undefined): void {
    if (problem !== undefined)
      throw new DqliteError('DATA_CORRUPT', `cannot restore database ${this.#name}: ${problem}`)
  }
}
