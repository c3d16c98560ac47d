/**
 * Who writes next. One lane per database: a FIFO of writers, the turn, the tip of the chain of captured transactions,
 * checkpoints, and the end of everything when leadership is lost. Knows when a statement may start.
 * Does not know what a statement does (`DatabaseHandle`), nor requests and sockets.
 *
 * One writer at a time runs to SQLite's commit, its frames are proposed, and the turn passes on in the same turn of the
 * loop: everything captured in it leaves as one disk write and one message per follower (pipelined group commit).
 */
import assert from 'node:assert/strict'
import { RowsBuffer } from '../engine/connection.js'
import type { Database, Engine } from '../engine/database.js'
import { DqliteError } from '../errors.js'
import type { NodeLimits } from '../options.js'
import type { Index } from '../raft/types.js'
import { DatabaseHandle } from './database-handle.js'
import type { Replicator } from './replicator.js'

export interface ExecutorOptions {
  readonly engine: Engine
  readonly replicator: Replicator
  readonly limits: ExecutorLimits
  /** False: every statement runs on the loop, however long it takes, so that a simulation replays. */
  readonly usesWorkers?: boolean
  /** Told of failures that no client can be blamed for. */
  readonly onInternalError: (error: unknown) => void
}

export type ExecutorLimits = Pick<
  NodeLimits,
  'busyTimeoutMs' | 'writersQueuedMax' | 'checkpointFrames' | 'statementsMax' | 'rowsBatchBytes'
>

/** Queued writers are served for this long, then timers and sockets (heartbeats among them) get their turn. */
const writersSliceMs = 4

/** With busyTimeoutMs 0 nobody waits for another writer; the node's own pauses (pipeline, checkpoint) are not BUSY at once. */
const pauseMsMax = 1000

/** SQLite's frame: page and header. */
const frameBytes = 4096

/** Row buffers kept for workers; more are made when more work at once. */
const workerRowsKept = 4

type Admission = 'taken' | 'queued' | 'refused' | 'notLeader'

export class Lane {
  readonly database: Database
  readonly replicator: Replicator
  /** The batch that is being produced on the loop; copied out before anything else runs. */
  readonly rows: RowsBuffer
  readonly onInternalError: (error: unknown) => void
  readonly usesWorkers: boolean
  readonly #executor: Executor
  readonly #limits: ExecutorLimits

  readonly handles = new Set<DatabaseHandle>()
  /** Has the turn: runs a writing statement, or has a write transaction open. */
  holder: DatabaseHandle | undefined
  /** The newest entry of this database; what the speculative view stands on. */
  tip: Index = 0

  /** Insertion order is the order of service. */
  readonly #queue = new Set<DatabaseHandle>()
  #timer: NodeJS.Timeout | undefined
  #isAdvancing = false
  #isAdvanceDue = false
  #waitsForRoom = false

  #framesEstimate = 0
  #checkpointAt: number
  #drainsForCheckpoint = false

  /** The chain ends in a transaction that the log refused: nothing starts until it is dropped (C1.3). */
  #isVoid = false

  constructor(executor: Executor, database: Database, options: ExecutorOptions, rows: RowsBuffer) {
    this.#executor = executor
    this.database = database
    this.replicator = options.replicator
    this.rows = rows
    this.onInternalError = options.onInternalError
    this.usesWorkers = options.usesWorkers ?? true
    this.#limits = options.limits
    this.#checkpointAt = options.limits.checkpointFrames
    this.#framesEstimate = database.walFrames
  }

  get writersQueued(): number {
    return this.#queue.size
  }

  get isVoid(): boolean {
    return this.#isVoid
  }

  // -------------------------------------------------------------------------------------------------- the turn

  /** For a writing statement of a connection that does not hold the turn. 'queued': `takeTurn` or `refuseTurn` follows. */
  acquire(handle: DatabaseHandle): Admission {
    if (this.#queue.size === 0 && this.#admits()) {
      this.holder = handle
      return 'taken'
    }
    if (!this.replicator.isLeader || this.#isVoid) return 'notLeader'
    if (this.#limits.busyTimeoutMs === 0 && this.holder !== undefined) return 'refused'
    if (this.#queue.size >= this.#limits.writersQueuedMax) return 'refused'
    handle.queuedUntilMs = performance.now() + (this.#limits.busyTimeoutMs || pauseMsMax)
    this.#queue.add(handle)
    this.#armTimer()
    return 'queued'
  }

  /** The holder's transaction is over. The caller calls `advance` once its own request is in order. */
  release(handle: DatabaseHandle): void {
    assert(this.holder === handle)
    this.holder = undefined
  }

  /** The connection is closed by its client, or the request was interrupted: no turn for it. */
  forget(handle: DatabaseHandle): void {
    this.#queue.delete(handle)
  }

  /** Hands the turn to queued writers, one after the other, never deeper in the stack. */
  advance(): void {
    if (this.#queue.size === 0 || this.#isAdvancing || this.#isAdvanceDue) return
    this.#isAdvancing = true
    try {
      const sliceEndMs = performance.now() + writersSliceMs
      while (this.#queue.size > 0 && this.#admits()) {
        if (performance.now() > sliceEndMs) {
          this.#advanceLater()
          return
        }
        const next = this.#queue.values().next().value!
        this.#queue.delete(next)
        this.holder = next
        next.takeTurn()
      }
    } finally {
      this.#isAdvancing = false
    }
  }

  #advanceLater(): void {
    if (this.#isAdvanceDue) return
    this.#isAdvanceDue = true
    setImmediate(this.#onAdvanceDue)
  }

  readonly #onAdvanceDue = (): void => {
    this.#isAdvanceDue = false
    this.advance()
  }

  /** May a new writer start now? If not for a reason of our own, `advance` is called when it is gone. */
  #admits(): boolean {
    if (this.holder !== undefined || this.#isVoid) return false
    if (!this.replicator.isLeader) {
      this.refuseQueued()
      return false
    }
    if (this.replicator.pipelineFull) {
      this.#waitForRoom()
      return false
    }
    return this.#framesEstimate < this.#checkpointAt || this.#checkpointed()
  }

  #waitForRoom(): void {
    if (this.#waitsForRoom) return
    this.#waitsForRoom = true
    void this.replicator.whenPipelineHasRoom().then(() => {
      this.#waitsForRoom = false
      this.advance()
    }) // never rejects
  }

  /** Not leader any more: nothing of theirs has happened. */
  refuseQueued(): void {
    for (const handle of [...this.#queue]) {
      this.#queue.delete(handle)
      handle.refuseTurn(10250, 'not leader')
    }
  }

  #armTimer(): void {
    if (this.#timer !== undefined) return
    const [first] = this.#queue
    if (first === undefined) return
    this.#timer = setTimeout(this.#onTimer, Math.max(1, Math.ceil(first.queuedUntilMs - performance.now())))
    this.#timer.unref()
  }

  /** All wait equally long, so the first in the queue is the first to give up. */
  readonly #onTimer = (): void => {
    this.#timer = undefined
    const now = performance.now()
    for (const handle of this.#queue) {
      if (handle.queuedUntilMs > now) break
      this.#queue.delete(handle)
      handle.refuseTurn(5, 'database is locked')
    }
    this.#armTimer()
  }

  // -------------------------------------------------------------------------------------------------- the chain

  onAppended(index: Index, commandBytes: number): void {
    assert(index > this.tip)
    this.tip = index
    this.#framesEstimate += Math.ceil(commandBytes / frameBytes)
  }

  /**
   * True: go on. New writers wait until both views meet, which takes one commit (C5.18); readers in the way only
   * postpone it, nobody waits for them.
   */
  #checkpointed(): boolean {
    const frames = this.database.walFrames
    this.#framesEstimate = frames
    if (frames < this.#checkpointAt) return true
    if (this.database.speculative > 0) {
      if (!this.#drainsForCheckpoint) {
        this.#drainsForCheckpoint = true
        this.replicator.hold(this.tip, this.#onDrained)
      }
      return false
    }
    if (this.database.checkpoint()) {
      this.#framesEstimate = 0
      this.#checkpointAt = this.#limits.checkpointFrames
    } else this.#checkpointAt = frames + this.#limits.checkpointFrames
    return true
  }

  readonly #onDrained = (): void => {
    this.#drainsForCheckpoint = false
    this.#advanceLater()
  }

  /** The log has refused a captured transaction (a transfer has begun): close what has seen it, then drop it. */
  voidTail(): void {
    if (this.#isVoid || this.#executor.isStopping || !(this.replicator.isLeader || this.replicator.isTransferring))
      return
    this.#isVoid = true
    this.refuseQueued()
    const tip = this.tip
    void this.abandonHandles().then(() => {
      this.replicator.hold(tip, (error) => {
        if (error === undefined) setImmediate(this.#dropVoidTail) // else the driver drops it
      })
    })
  }

  readonly #dropVoidTail = (): void => {
    if (!this.#isVoid) return
    try {
      this.database.dropSpeculative()
    } catch (error) {
      this.onInternalError(error)
    }
    this.#isVoid = false
  }

  async abandonHandles(): Promise<void> {
    await Promise.all([...this.handles].map((handle) => handle.abandon()))
  }

  onLeadershipLost(): void {
    this.tip = 0
    this.#isVoid = false
    this.#drainsForCheckpoint = false
  }

  // -------------------------------------------------------------------------------------------------- handles

  onClosed(handle: DatabaseHandle): void {
    this.handles.delete(handle)
    if (this.holder === handle) {
      this.holder = undefined
      this.advance()
    }
    if (this.handles.size === 0) this.#executor.onLaneIdle(this)
  }

  takeWorkerRows(): RowsBuffer {
    return this.#executor.takeWorkerRows()
  }

  giveWorkerRows(rows: RowsBuffer): void {
    this.#executor.giveWorkerRows(rows)
  }

  stopTimer(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }
}

export class Executor {
  readonly #options: ExecutorOptions
  readonly #lanes = new Map<string, Lane>()
  readonly #rows: RowsBuffer
  readonly #workerRows: RowsBuffer[] = []
  #isStopping = false
  #isClosed = false

  constructor(options: ExecutorOptions) {
    this.#options = options
    this.#rows = new RowsBuffer(options.limits.rowsBatchBytes)
    options.replicator.onLeadershipLost(() => this.#onLeadershipLost())
  }

  /** Connections of a term that is over are being closed; nothing new starts. */
  get isStopping(): boolean {
    return this.#isStopping || this.#isClosed
  }

  /** A connection to the database of that name, which is created if unknown. Throws CANNOT_OPEN, NOT_LEADER. */
  open(name: string): DatabaseHandle {
    if (this.isStopping) throw new DqliteError('NOT_LEADER', 'not leader')
    const database = this.#options.engine.database(name)
    let lane = this.#lanes.get(name)
    if (lane?.database !== database) {
      assert(lane === undefined || lane.handles.size === 0)
      lane = new Lane(this, database, this.#options, this.#rows)
      this.#lanes.set(name, lane)
    }
    if (lane.isVoid) throw new DqliteError('NOT_LEADER', 'not leader')
    const handle = new DatabaseHandle(lane, database.connect(), this.#options.limits.statementsMax)
    lane.handles.add(handle)
    return handle
  }

  /** Statements that wait for their turn, of all databases. */
  get writersQueued(): number {
    let sum = 0
    for (const lane of this.#lanes.values()) sum += lane.writersQueued
    return sum
  }

  async #onLeadershipLost(): Promise<void> {
    this.#isStopping = true
    try {
      const lanes = [...this.#lanes.values()]
      // Queued writers first: a handle that closes hands its turn on.
      for (const lane of lanes) lane.refuseQueued()
      await Promise.all(lanes.map((lane) => lane.abandonHandles()))
      for (const lane of lanes) lane.onLeadershipLost()
    } finally {
      this.#isStopping = false
    }
  }

  /** Ends every request, closes every connection. Twice is fine. */
  async close(): Promise<void> {
    this.#isClosed = true
    const lanes = [...this.#lanes.values()]
    for (const lane of lanes) {
      lane.stopTimer()
      lane.refuseQueued()
    }
    await Promise.all(lanes.map((lane) => lane.abandonHandles()))
  }

  /** Without connections a lane keeps nothing but its tip, which matters only while it is not applied. */
  onLaneIdle(lane: Lane): void {
    if (lane.isVoid || this.isStopping) return
    const { replicator } = this.#options
    if (lane.tip > replicator.lastApplied) {
      replicator.hold(lane.tip, (error) => {
        if (error === undefined) setImmediate(() => this.#forget(lane))
      })
      return
    }
    this.#forget(lane)
  }

  #forget(lane: Lane): void {
    const { database } = lane
    if (this.isStopping || lane.handles.size > 0 || this.#lanes.get(database.name) !== lane) return
    lane.stopTimer()
    this.#lanes.delete(database.name)
    // PRAGMA delete_database: it disappears with its last connection (client-protocol §10).
    const { engine } = this.#options
    if (database.isDeleted && database.speculative === 0 && engine.find(database.name) === database)
      engine.drop(database.name)
  }

  takeWorkerRows(): RowsBuffer {
    return this.#workerRows.pop() ?? new RowsBuffer(this.#options.limits.rowsBatchBytes)
  }

  giveWorkerRows(rows: RowsBuffer): void {
    if (this.#workerRows.length < workerRowsKept) this.#workerRows.push(rows)
  }
}
