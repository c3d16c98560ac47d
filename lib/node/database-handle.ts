/**
 * One client's open database: its SQLite connection, its prepared statements and the one request that runs on it
 * (client-protocol §9.1: all session state lives here). Knows the steps of a request from barrier to held response.
 * Does not know sockets, message headers of requests, or how the turn of writers is handed on (`Lane` does).
 */
import assert from 'node:assert/strict'
import { encodeResponse, messageHeader, responseCodes } from '../codec/client-protocol.js'
import type { Connection, RowsBuffer, Statement, StepOutcome } from '../engine/connection.js'

import { DqliteError } from '../errors.js'
import { Lifecycle, type Moves } from '../lifecycle.js'
import type { Index } from '../raft/types.js'
import type { Lane } from './executor.js'
import { StatementTable } from './statement-table.js'

/** Where the answer of a request goes. Exactly one of `answer`, `failure`, `fail` ends a request. */
export interface Responder {
  /** The whole answer, or its last message. */
  answer(message: Uint8Array): void
  failure(code: number, text: string): void
  fail(error: unknown): void
  /** A message with more to follow. `false`: produce the next one when `resume` is called (the socket has drained). */
  part(message: Uint8Array, resume: () => void): boolean
}

//                    ┌────────── interrupt, time limit ───────────┐
//  idle → barrier → queued → running ⇄ worker → holding → idle    │   room: holds the turn, the pipeline is full
//                     ↑        ↓ ↑                                │   sending: a batch is in the socket
//                    room    sending / holdingPart / pausing ─────┘   pausing: other work first; every state → closed
type RunState =
  | 'idle'
  | 'barrier'
  | 'queued'
  | 'room'
  | 'running'
  | 'worker'
  | 'pausing'
  | 'sending'
  | 'holdingPart'
  | 'holding'
  | 'closed'

const moves: Moves<RunState> = {
  idle: ['running', 'barrier', 'closed'],
  pausing: ['running', 'closed'],
  barrier: ['running', 'idle', 'closed'],
  queued: ['running', 'room', 'idle', 'closed'],
  room: ['running', 'idle', 'closed'],
  running: ['queued', 'room', 'worker', 'pausing', 'sending', 'holdingPart', 'holding', 'idle', 'closed'],
  worker: ['running', 'closed'],
  sending: ['running', 'idle', 'closed'],
  holdingPart: ['running', 'closed'],
  holding: ['idle', 'closed'],
  closed: [],
}

type Kind = 'prepare' | 'exec' | 'execSql' | 'query' | 'querySql'

const noBytes = new Uint8Array(0)

const resultBodyBytes = 16
const resultHeader = messageHeader(responseCodes.result, resultBodyBytes)
const resultMessageBytes = resultHeader.length + resultBodyBytes

/** Rows, or the statements of a text, are executed for this long before other work of the loop gets its turn. */
const sliceMs = 4

const sqliteError = 1

/**
 * Is there more than blanks, semicolons and comments? Looked at, not prepared: to prepare some PRAGMAs is to run them.
 * A tail that does not even compile is one, too (§7.4).
 */
function hasStatementAfter(sql: Uint8Array, tail: number): boolean {
  const [newline, slash, asterisk, dash] = [0x0a, 0x2f, 0x2a, 0x2d]
  for (let at = tail; at < sql.length; at++) {
    const byte = sql[at]!
    if (byte === dash && sql[at + 1] === dash) {
      at = sql.indexOf(newline, at)
      if (at < 0) return false
    } else if (byte === slash && sql[at + 1] === asterisk) {
      at += 2
      while (at < sql.length && !(sql[at] === asterisk && sql[at + 1] === slash)) at++
      at++
    } else if (!blanks.has(byte)) return true
  }
  return false
}

/** Tab, newline, form feed, carriage return, space, semicolon. */
const blanks: ReadonlySet<number> = new Set([0x09, 0x0a, 0x0c, 0x0d, 0x20, 0x3b])

export class DatabaseHandle {
  readonly lane: Lane
  readonly connection: Connection

  /** What PREPARE has left here; gone with the connection. */
  readonly statements: StatementTable

  readonly #life = new Lifecycle<RunState>(moves, 'idle')
  #closing: Promise<void> | undefined
  /** Settles after the worker's outcome was looked at, also when the handle has been closed meanwhile. */
  #working: Promise<void> | undefined
  /** The chain that this connection has seen is void: nothing captured here may be appended any more (C1.3). */
  #abandoned = false
  /** As SQLite's autocommit flag says after the last statement. */
  #inTransaction = false

  /** When the wait for the writer's turn ends in BUSY; set by the lane. */
  queuedUntilMs = 0

  // The running request. Fields rather than closures: one request at a time, thousands per second.
  #kind: Kind = 'exec'
  #responder: Responder | undefined
  #statement: Statement | undefined
  /** How `#statement` is given back: it belongs to the client, to the cache, or to this request only. */
  #ownership: 'client' | 'cached' | 'transient' = 'client'
  #sql: Uint8Array = noBytes
  #offset = 0
  #message: Uint8Array = noBytes
  #params = 0
  #schema: 0 | 1 = 0
  #valuesConsumed = 0
  #isBound = false
  #onWorker = false
  #interrupted = false
  #batchSent = false
  /** Something of this request was appended: after a loss of leadership the outcome is unknown. */
  #appended = false
  /** Highest index whose effects the answer may show (C2.5); 0: the committed view. */
  #dependsOn: Index = 0
  #dependsOnBefore: Index = 0
  #heldMessage: Uint8Array | undefined
  #heldCode = 0
  #heldText = ''
  #sliceEndMs = 0

  constructor(lane: Lane, connection: Connection, statementsMax: number) {
    this.lane = lane
    this.connection = connection
    this.statements = new StatementTable(statementsMax)
  }

  get isClosed(): boolean {
    return this.#life.is('closed')
  }

  get isIdle(): boolean {
    return this.#life.is('idle')
  }

  // ------------------------------------------------------------------------------------------ requests

  /** PREPARE: answers STMT. Schema 0 takes exactly one statement, schema 1 says where the next one begins (§7.4). */
  prepare(responder: Responder, sql: Uint8Array, schema: 0 | 1): void {
    this.#begin('prepare', responder, undefined, sql, sql, sql.length, schema)
  }

  exec(responder: Responder, statement: Statement, message: Uint8Array, params: number, schema: 0 | 1): void {
    this.#begin('exec', responder, statement, noBytes, message, params, schema)
  }

  execSql(responder: Responder, sql: Uint8Array, message: Uint8Array, params: number, schema: 0 | 1): void {
    this.#begin('execSql', responder, undefined, sql, message, params, schema)
  }

  query(responder: Responder, statement: Statement, message: Uint8Array, params: number, schema: 0 | 1): void {
    this.#begin('query', responder, statement, noBytes, message, params, schema)
  }

  querySql(responder: Responder, sql: Uint8Array, message: Uint8Array, params: number, schema: 0 | 1): void {
    this.#begin('querySql', responder, undefined, sql, message, params, schema)
  }

  #begin(
    kind: Kind,
    responder: Responder,
    statement: Statement | undefined,
    sql: Uint8Array,
    message: Uint8Array,
    params: number,
    schema: 0 | 1,
  ): void {
    assert(this.#life.is('idle'))
    this.#kind = kind
    this.#responder = responder
    this.#statement = statement
    this.#ownership = 'client'
    this.#sql = sql
    this.#offset = 0
    this.#message = message
    this.#params = params
    this.#schema = schema
    this.#valuesConsumed = 0
    this.#isBound = false
    this.#onWorker = false
    this.#interrupted = false
    this.#batchSent = false
    this.#appended = false
    this.#dependsOn = 0
    this.#dependsOnBefore = 0
    if (kind === 'execSql') this.#sliceEndMs = performance.now() + sliceMs
    const replicator = this.lane.replicator
    if (replicator.needsBarrier && !this.#inTransaction) {
      // §9.4: a fresh leader's state machine may lag behind what the previous leader acknowledged.
      this.#life.move('barrier')
      replicator.barrier().then(this.#onBarrier, this.#onBarrierFailed)
      return
    }
    this.#life.move('running')
    this.#guarded(this.#start)
  }

  readonly #onBarrier = (): void => {
    if (!this.#life.is('barrier')) return
    this.#life.move('running')
    this.#guarded(this.#start)
  }

  readonly #onBarrierFailed = (error: unknown): void => {
    if (!this.#life.is('barrier')) return
    this.#life.move('idle')
    this.#end()?.fail(error)
  }

  /** Runs a step; whatever it throws answers the request (§8.3), never the process. */
  #guarded(step: () => void): void {
    try {
      step()
    } catch (error) {
      this.#onThrown(error)
    }
  }

  #onThrown(error: unknown): void {
    if (!this.#life.is('running')) {
      // Answered already, or nobody is left to be answered.
      this.lane.onInternalError(error)
      return
    }
    try {
      if (!this.#afterStatement()) return
    } catch (second) {
      this.lane.onInternalError(second)
    }
    if (error instanceof DqliteError && error.wire !== undefined) this.#failure(error.wire, error.message)
    else {
      this.lane.onInternalError(error)
      this.#failure(10, 'leader exec failed')
    }
  }

  readonly #start = (): void => {
    switch (this.#kind) {
      case 'prepare':
        this.#prepareForClient()
        return
      case 'execSql':
        this.#nextStatement()
        return
      case 'querySql':
        this.#onlyStatement()
        return
      case 'exec':
      case 'query':
        this.#enter()
        return
    }
  }

  #prepareForClient(): void {
    // The schema that SQLite looked at may be of the speculative view: the answer waits for it, also a failure.
    this.#dependsOn = this.lane.tip
    if (this.statements.isFull) return this.#failure(18, 'too many prepared statements on this connection')
    const sql = this.#sql
    const { statement, tail } = this.connection.prepare(sql)
    if (statement === undefined) return this.#failure(0, 'empty statement')
    if (this.#schema === 0 && hasStatementAfter(this.#sql, tail)) {
      statement.finalize()
      return this.#failure(sqliteError, 'nonempty statement tail')
    }
    const id = this.statements.add(statement)
    this.#finish(
      encodeResponse.stmt({
        databaseId: 0,
        statementId: id,
        parameterCount: statement.parameterCount,
        tail: this.#schema === 1 ? tail : undefined,
      }),
    )
  }

  /** EXEC_SQL: the next statement of the text, after the one before has run (it may have created what this one uses). */
  #nextStatement(): void {
    for (;;) {
      const first = this.#offset === 0
      this.#dependsOnBefore = this.#dependsOn
      this.#dependsOn = Math.max(this.#dependsOn, this.lane.tip) // for what prepare may throw
      const prepared = first
        ? this.connection.prepareCached(this.#sql)
        : this.connection.prepare(this.#sql, this.#offset)
      this.#dependsOn = this.#dependsOnBefore
      if (prepared.statement === undefined) return this.#finish(this.#result())
      this.#offset = prepared.tail
      this.#statement = prepared.statement
      this.#ownership = first ? 'cached' : 'transient'
      this.#isBound = false
      this.#onWorker = false
      if (!this.#enter()) return
      // It ran to its end at once: go on here rather than deeper in the stack.
      if (this.#offset >= this.#sql.length) return this.#finish(this.#result())
      if (performance.now() > this.#sliceEndMs) {
        this.#life.move('pausing')
        setImmediate(this.#onPauseOver)
        return
      }
    }
  }

  readonly #onPauseOver = (): void => {
    if (!this.#life.is('pausing')) return
    this.#life.move('running')
    this.#sliceEndMs = performance.now() + sliceMs
    this.#guarded(this.#start)
    this.lane.advance()
  }

  #onlyStatement(): void {
    this.#dependsOn = this.lane.tip
    const { statement, tail } = this.connection.prepareCached(this.#sql)
    if (statement === undefined) return this.#failure(0, 'empty statement')
    this.#statement = statement
    this.#ownership = 'cached'
    if (hasStatementAfter(this.#sql, tail)) return this.#failure(sqliteError, 'nonempty statement tail')
    this.#dependsOn = 0
    this.#enter()
  }

  // ------------------------------------------------------------------------------------------ the writer's turn

  /** True: an EXEC_SQL statement has ended well and the next one may follow. */
  #enter(): boolean {
    const statement = this.#statement!
    const lane = this.lane
    if (lane.holder === this) {
      // Any statement of an open write transaction may be its commit, which needs room in the pipeline.
      if (lane.replicator.pipelineFull) return this.#waitForRoom()
      return this.#run()
    }
    if (!statement.needsWriteTurn) return this.#run()
    switch (lane.acquire(this)) {
      case 'taken':
        return statement.isVacuum ? this.#drainPipeline() : this.#run()
      case 'queued':
        this.#life.move('queued')
        return false
      case 'refused':
        this.#failure(5, 'database is locked')
        return false
      case 'notLeader':
        this.#failure(10250, 'not leader')
        return false
    }
  }

  /** The lane says: the turn is ours. */
  takeTurn(): void {
    assert(this.lane.holder === this)
    this.#life.move('running')
    this.#guarded(this.#onTurn)
  }

  readonly #onTurn = (): void => {
    if (this.#statement!.isVacuum ? this.#drainPipeline() : this.#run()) this.#continueText()
  }

  #continueText(): void {
    if (this.#offset >= this.#sql.length) this.#finish(this.#result())
    else this.#nextStatement()
  }

  /** The lane says: not in time, or not any more. Nothing has happened. */
  refuseTurn(code: number, text: string): void {
    this.#life.move('idle')
    this.#giveBack()
    if (this.#appended) this.#refuseLater(code, text)
    else this.#end()?.failure(code, text)
  }

  /** Earlier statements of this text are in flight: the refusal of a later one must not overtake their commit. */
  #refuseLater(code: number, text: string): void {
    this.#life.move('running')
    this.#failure(code, text)
  }

  #waitForRoom(): boolean {
    this.#life.move('room')
    void this.lane.replicator.whenPipelineHasRoom().then(this.#onRoom) // never rejects
    return false
  }

  readonly #onRoom = (): void => {
    if (!this.#life.is('room')) return
    if (this.lane.replicator.pipelineFull && this.lane.replicator.isLeader) {
      void this.lane.replicator.whenPipelineHasRoom().then(this.#onRoom)
      return
    }
    this.#life.move('running')
    if (!this.lane.replicator.isLeader) return this.#failure(10250, 'not leader')
    this.#guarded(this.#onTurn)
  }

  /** VACUUM rewrites every page: it waits until nothing of this database is in flight. */
  #drainPipeline(): boolean {
    if (this.lane.database.speculative === 0) return this.#run()
    this.#life.move('room')
    this.lane.replicator.hold(this.lane.tip, this.#onDrained)
    return false
  }

  // Released in the middle of the driver's work: what may propose waits for a turn of its own.
  readonly #onDrained = (error: DqliteError | undefined): void => {
    if (error === undefined) setImmediate(this.#onRoom)
  }

  // ------------------------------------------------------------------------------------------ execution

  /** True: an EXEC_SQL statement has ended well and the next one may follow. */
  #run(): boolean {
    const statement = this.#statement!
    this.#dependsOnBefore = this.#dependsOn
    // C2.5/C2.6: only a read-only statement outside a transaction looks at the committed view.
    if ((!statement.isReadOnly || this.#inTransaction) && this.lane.tip > this.#dependsOn)
      this.#dependsOn = this.lane.tip
    if (!this.#bind(statement)) return false
    if (this.#kind === 'query' || this.#kind === 'querySql') {
      this.#sliceEndMs = performance.now() + sliceMs
      this.#onWorker = this.lane.usesWorkers && (statement.isVacuum || this.#isHeavyInTransaction(statement))
      this.#produce()
      return false
    }
    if (this.lane.usesWorkers && (statement.isVacuum || this.#isHeavyInTransaction(statement)))
      return this.#onExecuted({ kind: 'overBudget' })
    return this.#onExecuted(statement.execute())
  }

  /** It could not be interrupted and started again on a worker: SQLite would roll the client's transaction back. */
  #isHeavyInTransaction(statement: Statement): boolean {
    return this.#inTransaction && !statement.isReadOnly && statement.prefersWorker
  }

  #bind(statement: Statement): boolean {
    if (this.#isBound) return true
    let values: number
    try {
      values = statement.bind(this.#message, this.#params, this.#schema, this.#valuesConsumed)
    } catch (error) {
      // Nothing was executed; a text that does not decode is worded by the protocol, not by SQLite (§8.3).
      if (!(error instanceof DqliteError) || error.wire === undefined) throw error
      this.#afterStatement()
      this.#failure(error.wire, error.message)
      return false
    }
    this.#isBound = true
    const left = values - this.#valuesConsumed
    if (left > statement.parameterCount && this.#kind !== 'exec' && this.#kind !== 'execSql') {
      this.#afterStatement()
      this.#failure(sqliteError, 'bind parameters')
      return false
    }
    this.#valuesConsumed += Math.min(left, statement.parameterCount)
    return true
  }

  /** EXEC, EXEC_SQL. True: the statement has ended well and, in a text, the next one may follow. */
  #onExecuted(outcome: StepOutcome): boolean {
    switch (outcome.kind) {
      case 'overBudget':
        this.#life.move('worker')
        this.#working = this.#statement!.executeOnWorker()
          .then(this.#onExecutedByWorker, this.#onWorkerFailed)
          .catch(this.lane.onInternalError)
        return false
      case 'done': {
        const wasInTransaction = this.#inTransaction
        if (!this.#afterStatement()) return false
        // BEGIN has shown nothing of the speculative view: its answer does not wait.
        if (!wasInTransaction && this.#inTransaction) this.#dependsOn = this.#dependsOnBefore
        if (this.#interrupted || this.#kind === 'exec') {
          this.#finish(this.#result())
          return false
        }
        this.#giveBack()
        return true
      }
      case 'row':
        if (!this.#afterStatement()) return false
        this.#failure(sqliteError, 'rows yielded when none expected for EXEC request')
        return false
      case 'error':
        if (!this.#afterStatement()) return false
        this.#failure(outcome.code, outcome.message)
        return false
      case 'part':
        return assert.fail('EXEC produces no batches')
    }
  }

  readonly #onExecutedByWorker = (outcome: StepOutcome): void => {
    this.#working = undefined
    if (this.#life.is('closed')) return this.#closedUnderWorker()
    this.#life.move('running')
    try {
      if (this.#onExecuted(outcome)) this.#continueText()
    } catch (error) {
      this.#onThrown(error)
    }
    this.lane.advance()
  }

  readonly #onWorkerFailed = (error: unknown): void => {
    this.#working = undefined
    if (this.#life.is('closed')) {
      this.lane.onInternalError(error)
      return this.#closedUnderWorker()
    }
    this.#life.move('running')
    this.#onThrown(error)
    this.lane.advance()
  }

  /** The client went away, or leadership did. What SQLite has committed is in the chain and must be appended, or dropped. */
  #closedUnderWorker(): void {
    try {
      if (!this.#capture()) this.lane.voidTail()
    } catch (error) {
      this.lane.onInternalError(error)
    }
  }

  // ------------------------------------------------------------------------------------------ rows

  #produce(): void {
    const statement = this.#statement!
    for (;;) {
      if (this.#onWorker) {
        this.#life.move('worker')
        const target = this.lane.takeWorkerRows()
        this.#working = statement
          .rowsOnWorker(target)
          .then(
            (outcome) => {
              this.#onRowsFromWorker(outcome, target)
            },
            (error: unknown) => {
              this.lane.giveWorkerRows(target)
              this.#onWorkerFailed(error)
            },
          )
          .catch(this.lane.onInternalError)
        return
      }
      if (!this.#onRows(statement.rows(this.lane.rows), this.lane.rows)) return
    }
  }

  #onRowsFromWorker(outcome: StepOutcome, target: RowsBuffer): void {
    this.#working = undefined
    if (this.#life.is('closed')) {
      this.lane.giveWorkerRows(target)
      return this.#closedUnderWorker()
    }
    this.#life.move('running')
    try {
      const goesOn = this.#onRows(outcome, target)
      this.lane.giveWorkerRows(target)
      if (goesOn) this.#produce()
    } catch (error) {
      this.#onThrown(error)
    }
    this.lane.advance()
  }

  /** True: produce the next batch now. */
  #onRows(outcome: StepOutcome, target: RowsBuffer): boolean {
    switch (outcome.kind) {
      case 'overBudget':
        this.#onWorker = true
        return true
      case 'part':
        if (this.#interrupted) {
          this.#stop()
          return false
        }
        // One batch was quick; how far it is to the next row nobody knows (architecture: the loop stays free).
        if (this.lane.usesWorkers && this.#statement!.isReadOnly) this.#onWorker = true
        return this.#sendPart(target.take())
      case 'done':
        if (this.#afterStatement()) this.#finish(target.take())
        return false
      case 'error':
        // The batch that was begun is forgotten: a clean FAILURE, not one behind rows (§7.6).
        if (this.#afterStatement()) this.#failure(outcome.code, outcome.message)
        return false
      case 'row':
        return assert.fail('QUERY yields batches')
    }
  }

  #sendPart(message: Uint8Array): boolean {
    this.#batchSent = true
    const replicator = this.lane.replicator
    if (this.#dependsOn > replicator.lastApplied) {
      this.#heldMessage = message
      this.#life.move('holdingPart')
      replicator.hold(this.#dependsOn, this.#onPartReleased)
      return false
    }
    return this.#passPart(message)
  }

  #passPart(message: Uint8Array): boolean {
    if (!this.#responder!.part(message, this.#resume)) {
      if (this.#life.is('running')) this.#life.move('sending') // the socket may have failed and closed this handle
      return false
    }
    if (performance.now() < this.#sliceEndMs) return true
    this.#life.move('sending')
    setImmediate(this.#resume)
    return false
  }

  readonly #onPartReleased = (error: DqliteError | undefined): void => {
    if (!this.#life.is('holdingPart')) return
    const message = this.#heldMessage!
    this.#heldMessage = undefined
    this.#life.move('running')
    if (error !== undefined) {
      // The connection is about to be closed by the executor: end the request, touch nothing.
      this.#life.move('idle')
      this.#giveBack()
      this.#end()?.fail(error)
      return
    }
    this.#sliceEndMs = 0 // at most this one batch inside the driver's release; the rest in a turn of its own
    if (this.#interrupted) {
      this.#life.move('sending')
      setImmediate(this.#resume)
    } else this.#passPart(message)
  }

  readonly #resume = (): void => {
    if (!this.#life.is('sending')) return
    this.#life.move('running')
    this.#sliceEndMs = performance.now() + sliceMs
    try {
      if (this.#interrupted) this.#stop()
      else this.#produce()
    } catch (error) {
      this.#onThrown(error)
    }
    this.lane.advance()
  }

  /**
   * INTERRUPT between batches. A read stops here; a writing statement has made all of its changes at its first step, and
   * keeps them (§9.7).
   */
  #stop(): void {
    this.#statement!.reset()
    if (this.#afterStatement()) this.#finish(noBytes)
  }

  // ------------------------------------------------------------------------------------------ the end of a request

  /** Looks at what SQLite has committed, and gives the turn back. False: the chain is void, the request is answered. */
  #afterStatement(): boolean {
    if (!this.#capture()) {
      this.#refreshTransaction()
      // The chain ends before us; earlier statements of this text may be in it.
      const appended = this.#appended
      this.#life.move('idle')
      this.#giveBack()
      const responder = this.#end()
      this.lane.voidTail()
      if (appended) responder?.failure(10506, 'leadership lost')
      else responder?.failure(10250, 'not leader')
      return false
    }
    this.#refreshTransaction()
    return true
  }

  /** False: SQLite has committed what the log refuses. */
  #capture(): boolean {
    const lane = this.lane
    if (lane.holder !== this) return true
    const command = lane.database.takeCaptured()
    if (command === undefined) return true
    if (this.#abandoned) return true // dropped with the rest of the chain
    const index = lane.replicator.propose(lane.database, command)
    if (typeof index === 'string') return false
    lane.onAppended(index, command.byteLength)
    this.#appended = true
    this.#dependsOn = index
    return true
  }

  #refreshTransaction(): void {
    this.#inTransaction = this.connection.inTransaction
    const lane = this.lane
    if (!this.#inTransaction) {
      if (lane.holder === this) lane.release(this)
    } else if (lane.holder === this && !this.connection.isWriting) lane.release(this)
  }

  #result(): Uint8Array {
    const message = Buffer.allocUnsafe(resultMessageBytes)
    message.set(resultHeader, 0)
    this.connection.writeResult(message, resultHeader.length)
    return message
  }

  #finish(message: Uint8Array): void {
    this.#giveBack()
    const replicator = this.lane.replicator
    if (this.#dependsOn <= replicator.lastApplied) {
      this.#life.move('idle')
      const interrupted = this.#interrupted
      this.#end()?.answer(interrupted ? encodeResponse.empty() : message)
    } else {
      this.#heldMessage = message
      this.#life.move('holding')
      replicator.hold(this.#dependsOn, this.#onReleased)
    }
    this.lane.advance()
  }

  #failure(code: number, text: string): void {
    this.#giveBack()
    const replicator = this.lane.replicator
    if (this.#dependsOn <= replicator.lastApplied) {
      this.#life.move('idle')
      const interrupted = this.#interrupted
      const responder = this.#end()
      if (interrupted) responder?.answer(encodeResponse.empty())
      else responder?.failure(code, text)
    } else {
      this.#heldMessage = undefined
      this.#heldCode = code
      this.#heldText = text
      this.#life.move('holding')
      replicator.hold(this.#dependsOn, this.#onReleased)
    }
    this.lane.advance()
  }

  readonly #onReleased = (error: DqliteError | undefined): void => {
    if (!this.#life.is('holding')) return
    this.#life.move('idle')
    const message = this.#heldMessage
    this.#heldMessage = undefined
    const interrupted = this.#interrupted
    const responder = this.#end()
    if (responder === undefined) return
    if (interrupted) responder.answer(encodeResponse.empty())
    else if (error !== undefined) responder.fail(error)
    else if (message !== undefined) responder.answer(message)
    else responder.failure(this.#heldCode, this.#heldText)
  }

  #giveBack(): void {
    const statement = this.#statement
    this.#statement = undefined
    if (statement === undefined) return
    switch (this.#ownership) {
      case 'client':
        return
      case 'cached':
        statement.release()
        return
      case 'transient':
        statement.finalize()
        return
    }
  }

  /** Forgets the request; its responder is asked for an answer by the caller, last of all. */
  #end(): Responder | undefined {
    const responder = this.#responder
    this.#responder = undefined
    this.#sql = noBytes
    this.#message = noBytes
    return responder
  }

  // ------------------------------------------------------------------------------------------ interrupt, close

  /**
   * INTERRUPT while a request runs (§9.7). True: that request will be answered by the one EMPTY that is owed. False: it
   * cannot be stopped any more; it is answered as usual and INTERRUPT after it.
   */
  interrupt(): boolean {
    if (this.#interrupted) return false // one EMPTY for each
    switch (this.#life.state) {
      case 'idle':
      case 'closed':
      case 'holding':
      case 'running':
      case 'pausing':
        return false
      case 'barrier':
      case 'queued':
      case 'room':
        if (this.#appended || this.#life.is('room')) return false
        this.lane.forget(this)
        this.#life.move('idle')
        this.#giveBack()
        this.#end()?.answer(encodeResponse.empty())
        return true
      case 'sending':
      case 'holdingPart':
        this.#interrupted = true
        if (this.#life.is('sending')) this.#resume()
        return true
      case 'worker':
        // SQLite would roll the client's whole transaction back: let a write in it end by itself.
        if (this.#inTransaction && !this.#statement!.isReadOnly) return false
        this.#interrupted = true
        // A write that has yielded rows keeps its changes: it is only stopped after this batch.
        if (!this.#batchSent || this.#statement!.isReadOnly) this.connection.interrupt()
        return true
    }
  }

  /**
   * Leadership was lost, or the chain is void: ends the running request with what is known of its outcome (§9.5), closes
   * the connection, and appends nothing any more.
   */
  abandon(): Promise<void> {
    if (!this.#life.is('closed')) {
      this.#abandoned = true
      const state = this.#life.state
      const wasReading = this.#statement?.isReadOnly === true
      const responder = this.#responder
      const owesEmpty = this.#interrupted
      const closing = this.close()
      if (owesEmpty) responder?.answer(encodeResponse.empty())
      else if (this.#appended || ((state === 'worker' || state === 'sending') && wasReading) || state === 'holding')
        responder?.failure(10506, 'leadership lost')
      else responder?.failure(10250, 'not leader')
      return closing
    }
    this.#abandoned = true
    return this.close()
  }

  /** Rolls back, frees everything, gives the turn away; resolves when the SQLite connection is gone. Never rejects. */
  close(): Promise<void> {
    if (this.#closing !== undefined) return this.#closing
    if (this.#life.is('worker')) this.connection.interrupt()
    this.lane.forget(this)
    this.#life.move('closed')
    this.#end()
    this.#heldMessage = undefined
    this.#closing =
      this.#working === undefined ? this.#closeConnection() : this.#working.then(() => this.#closeConnection())
    return this.#closing
  }

  async #closeConnection(): Promise<void> {
    try {
      // Closing frees the statements and undoes what is half done, a statement that yields rows included.
      this.#statement = undefined
      this.statements.clear()
      await this.connection.close()
    } catch (error) {
      this.lane.onInternalError(error)
    } finally {
      this.lane.onClosed(this)
    }
  }
}
