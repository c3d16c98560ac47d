/**
 * SQLite connections and statements, on wire bytes: parameters come as the request's body, rows leave as ROWS messages.
 * The one place where native error codes become exceptions or outcomes.
 *
 * Knows which calls exist and what they mean for the caller. Does not know Raft, turns of writers or sockets. The rules
 * of views and transactions are in native/connection.h. In short: a connection has one statement in progress at most;
 * a read-only statement outside a transaction sees the committed view, everything else the speculative one; after any
 * outcome, an error too (`INSERT OR FAIL`), SQLite may have committed, so `Database.takeCaptured` is asked each time.
 */
import assert from 'node:assert/strict'
import { DqliteError, errorFromWire } from '../errors.js'
import { nativeOutcome } from './addon-engine.js'
import type { NativeConnection, NativeStatement } from './addon-engine.js'

export type StepOutcome =
  | { readonly kind: 'done' | 'row' | 'part' | 'overBudget' }
  | { readonly kind: 'error'; readonly code: number; readonly message: string }

export interface Prepared {
  /** `undefined`: the text holds no statement. */
  readonly statement: Statement | undefined
  /** Byte offset behind the statement. */
  readonly tail: number
}

const done: StepOutcome = { kind: 'done' }
const row: StepOutcome = { kind: 'row' }
const part: StepOutcome = { kind: 'part' }
const overBudget: StepOutcome = { kind: 'overBudget' }

/** Prepared statements kept per connection; the one unused for longest goes. */
const statementsCachedMax = 32
/** A longer text is not worth a place. */
const cachedSqlBytesMax = 64 * 1024
const rowsBufferBytes = 64 * 1024

/** One character per byte: cheap, and different bytes give different keys. */
function textKey(sql: Uint8Array): string {
  const bytes = sql instanceof Buffer ? sql : Buffer.from(sql.buffer, sql.byteOffset, sql.byteLength)
  return bytes.toString('latin1')
}

/**
 * Where ROWS messages are made, one behind the other, and taken from: `take` gives the bytes away, so a message is
 * copied once and many share one allocation.
 */
export class RowsBuffer {
  /** Size of a batch after the first (the first ends at 4 KiB: client-protocol §9.8). */
  readonly batchBytes: number
  #bytes: Buffer
  #used = 0
  #length = 0

  constructor(batchBytes: number = rowsBufferBytes) {
    this.batchBytes = batchBytes
    this.#bytes = Buffer.allocUnsafeSlow(rowsBufferBytes)
  }

  get bytes(): Buffer {
    return this.#bytes
  }

  /** Where the next message goes. */
  get offset(): number {
    return this.#used
  }

  /** Room for a message of this size at `offset`. */
  reserve(bytes: number): void {
    if (this.#bytes.length - this.#used >= bytes) return
    this.#bytes = Buffer.allocUnsafeSlow(Math.max(rowsBufferBytes, bytes))
    this.#used = 0
  }

  /** The native side has put a message of this size at `offset`. */
  filled(bytes: number): void {
    this.#length = bytes
  }

  /** The last message. It belongs to the caller. */
  take(): Uint8Array {
    const message = this.#bytes.subarray(this.#used, this.#used + this.#length)
    this.#used += this.#length
    this.#length = 0
    return message
  }
}

export class Connection {
  readonly #native: NativeConnection
  readonly #onClosed: () => void
  // Idle ones, by text. A map keeps insertion order: the first is the one unused for longest.
  readonly #cache = new Map<string, Statement>()
  #running: Promise<unknown> | undefined
  #closing: Promise<void> | undefined

  /** Made by `Database.connect`. */
  constructor(native: NativeConnection, onClosed: () => void) {
    this.#native = native
    this.#onClosed = onClosed
  }

  /** The first statement at or after `offset`. Throws SQLite's error. */
  prepare(sql: Uint8Array, offset = 0): Prepared {
    return this.#prepare(sql, offset, undefined)
  }

  /** As `prepare`, for the whole text; `Statement.release` gives it back to the connection's cache. */
  prepareCached(sql: Uint8Array): Prepared {
    if (sql.byteLength > cachedSqlBytesMax) return this.prepare(sql)
    const key = textKey(sql)
    const cached = this.#cache.get(key)
    if (cached === undefined) return this.#prepare(sql, 0, key)
    this.assertIdle()
    this.#cache.delete(key)
    return cached.prepared!
  }

  #prepare(sql: Uint8Array, offset: number, key: string | undefined): Prepared {
    this.assertIdle()
    const native = this.#native.prepare(sql, offset)
    if (native === undefined) throw this.error()
    const tail = this.#native.tail()
    if (native === null) return { statement: undefined, tail }
    const statement = new Statement(this, native, key)
    statement.prepared = { statement, tail }
    return statement.prepared
  }

  /** For Statement: keeps it for the next `prepareCached` of its text. False: there is no place for it. */
  keep(statement: Statement, key: string): boolean {
    if (this.#closing !== undefined || this.#cache.has(key)) return false
    this.#cache.set(key, statement)
    if (this.#cache.size > statementsCachedMax) {
      const [oldestKey, oldest] = this.#cache.entries().next().value!
      this.#cache.delete(oldestKey)
      oldest.finalize()
    }
    return true
  }

  /** An explicit transaction is open. */
  get inTransaction(): boolean {
    return this.#native.inTransaction()
  }

  /** Holds the database's write lock. */
  get isWriting(): boolean {
    return this.#native.isWriting()
  }

  /** A worker runs a statement: until it has ended, only `interrupt` and `close` may be called. */
  get isBusy(): boolean {
    return this.#running !== undefined
  }

  get isClosed(): boolean {
    return this.#closing !== undefined
  }

  /** The body of RESULT: last_insert_rowid, int64 · changes, uint64. */
  writeResult(target: Uint8Array, offset: number): void {
    this.assertIdle()
    assert(offset + 16 <= target.byteLength)
    this.#native.writeResult(target, offset)
  }

  /** What runs, on a worker or between two batches, ends with SQLITE_INTERRUPT. */
  interrupt(): void {
    this.#native.interrupt()
  }

  /** Rolls back what is open. Waits for a worker, which it interrupts. Twice is fine. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    if (this.#running !== undefined) {
      this.#native.interrupt()
      await this.#running
    }
    this.#cache.clear()
    this.#native.close()
    this.#onClosed()
  }

  /** For Statement: the error of the call that has just failed. */
  error(): DqliteError {
    return errorFromWire(this.#native.errorCode(), this.#native.errorMessage())
  }

  /** For Statement: the outcome behind a native number. */
  outcome(code: number): StepOutcome {
    switch (code) {
      case nativeOutcome.done:
        return done
      case nativeOutcome.row:
        return row
      case nativeOutcome.part:
        return part
      case nativeOutcome.overBudget:
        return overBudget
      default:
        return { kind: 'error', code: this.#native.errorCode(), message: this.#native.errorMessage() }
    }
  }

  /** For Statement: a worker has the connection until `running` resolves. */
  async during(running: number | Promise<number>): Promise<number> {
    if (typeof running === 'number') return running
    this.#running = running
    try {
      return await running
    } finally {
      this.#running = undefined
    }
  }

  /** For Statement: moves the message that a worker has made. */
  takeRows(target: RowsBuffer): void {
    const bytes = this.#native.rowsBytes()
    target.reserve(bytes)
    this.#native.takeRows(target.bytes, target.offset)
    target.filled(bytes)
  }

  /** For Statement: nothing may be called on a closed connection, or while a worker has it. */
  assertIdle(): void {
    if (this.#closing !== undefined) throw new DqliteError('CLOSED', 'the connection is closed')
    assert(this.#running === undefined, 'a worker runs a statement of this connection')
  }
}

export class Statement {
  readonly #connection: Connection
  readonly #native: NativeStatement
  readonly #key: string | undefined
  readonly #runsInline: boolean
  readonly #isCacheable: boolean
  readonly isReadOnly: boolean
  readonly isVacuum: boolean
  readonly parameterCount: number
  /** For Connection: what `prepareCached` answers. */
  prepared: Prepared | undefined

  constructor(connection: Connection, native: NativeStatement, key: string | undefined) {
    this.#connection = connection
    this.#native = native
    this.#key = key
    const info = native.info()
    this.isReadOnly = (info & 1) !== 0
    this.isVacuum = (info & 2) !== 0
    this.#isCacheable = (info & 4) !== 0
    this.#runsInline = (info & 8) !== 0
    this.parameterCount = info >> 4
  }

  /** DML, DDL, BEGIN IMMEDIATE and EXCLUSIVE: only one connection of a database at a time (client-protocol §9.3). */
  get needsWriteTurn(): boolean {
    return !this.isReadOnly
  }

  get columnCount(): number {
    return this.#native.columnCount()
  }

  /**
   * Likely to run long (scans, sorts, builds an index). A write inside an explicit transaction cannot be interrupted
   * without losing the transaction, so it has no budget: start it on a worker if this says so.
   */
  get prefersWorker(): boolean {
    return this.#native.prefersWorker()
  }

  /**
   * Binds from wire bytes, at `params` of `message` (client-protocol §4.2), without the first `skip` values; parameters
   * without a value are NULL. Returns how many values the tuple has.
   */
  bind(message: Uint8Array, params: number, schema: 0 | 1, skip: number): number {
    this.#connection.assertIdle()
    const values = this.#native.bind(message, params, schema, skip)
    if (values >= 0) return values
    if (values === -1) throw new DqliteError('SQLITE_ERROR', 'bind parameters')
    throw this.#connection.error()
  }

  /** EXEC: to the end. `row`: it yielded one, and nothing of it remains. */
  execute(): StepOutcome {
    this.#connection.assertIdle()
    return this.#connection.outcome(this.#native.execute())
  }

  async executeOnWorker(): Promise<StepOutcome> {
    if (this.#runsInline) return this.execute()
    this.#connection.assertIdle()
    return this.#connection.outcome(await this.#connection.during(this.#native.executeOnWorker()))
  }

  /** QUERY: the next batch as a whole ROWS message, in `target`. After an error, and after `overBudget`, there is none. */
  rows(target: RowsBuffer): StepOutcome {
    this.#connection.assertIdle()
    const packed = this.#native.rows(target.bytes, target.offset, target.batchBytes)
    const code = packed % 8
    const bytes = (packed - code) / 8
    if (bytes > target.bytes.length - target.offset) this.#connection.takeRows(target)
    else target.filled(bytes)
    return this.#connection.outcome(code)
  }

  async rowsOnWorker(target: RowsBuffer): Promise<StepOutcome> {
    if (this.#runsInline) return this.rows(target)
    this.#connection.assertIdle()
    const outcome = this.#connection.outcome(
      await this.#connection.during(this.#native.rowsOnWorker(target.batchBytes)),
    )
    if (outcome.kind === 'done' || outcome.kind === 'part') this.#connection.takeRows(target)
    return outcome
  }

  /** Ends it early. A read stops; a write that has yielded rows has made all its changes: it commits. */
  reset(): StepOutcome {
    this.#connection.assertIdle()
    return this.#connection.outcome(this.#native.reset())
  }

  /** For a statement of `prepareCached`: gives it back. */
  release(): void {
    if (this.#connection.isClosed) return
    this.reset()
    if (this.#key === undefined || !this.#isCacheable || !this.#connection.keep(this, this.#key)) this.finalize()
  }

  finalize(): void {
    this.#native.finalize()
  }
}
