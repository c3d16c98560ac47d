/**
 * Drives the Raft core on Node's event loop: time, disk and network on one side, the state machine on the other.
 * Takes one Ready at the end of each turn, so that everything captured in a turn leaves as one disk write and one
 * AppendEntries per follower. Knows the order in which a Ready must be handled; decides nothing that Raft decides,
 * knows no SQL and no byte layout.
 */
import { strict as assert } from 'node:assert'

import type { Database } from '../engine/database.js'
import { DqliteError } from '../errors.js'
import type { NodeLimits, SnapshotStrategy } from '../options.js'
import type { Transport } from '../network/transport.js'
import { Raft } from '../raft/raft.js'
import type {
  Configuration,
  ConfigurationChange,
  Entry,
  Envelope,
  Index,
  InstallSnapshot,
  Message,
  Outcome,
  RaftEvent,
  RaftState,
  Ready,
  Refusal,
  ServerId,
  SnapshotDescription,
  Term,
} from '../raft/types.js'
import type { OpenedDirectory } from '../storage/open.js'
import type { ReceivedSnapshot } from '../storage/snapshot-store.js'
import type { Replicator } from './replicator.js'
import { hasData, Sender } from './sender.js'
import type { StateMachine } from './state-machine.js'

export interface RaftDriverOptions {
  readonly id: ServerId
  readonly address: string
  readonly directory: OpenedDirectory
  readonly restored: OpenedDirectory['restored']
  readonly stateMachine: StateMachine
  readonly limits: NodeLimits
  readonly snapshotStrategy: SnapshotStrategy
  readonly random: () => number
  /** The node cannot go on (its disk or its databases failed): it no longer acknowledges, votes or leads. */
  readonly onFailure: (error: DqliteError) => void
  /** Something went wrong that Raft repairs by itself. */
  readonly onWarning: (text: string) => void
}

/** Five ticks a heartbeat: timeouts are noticed a fifth of a heartbeat late at most (C dqlite: a whole one). */
const ticksPerHeartbeat = 5

export interface RaftStatus {
  readonly state: RaftState
  readonly term: Term
  readonly commitIndex: Index
  readonly lastIndex: Index
  readonly lastApplied: Index
  readonly lastPersisted: Index
}

/**
 * A snapshot costs what it is large; the log written since must be this many times as much. Drawn anew each time, so
 * that the members, who all apply the same, do not all write snapshots at the same moment.
 */
const snapshotGrowthMin = 3
const snapshotGrowthMax = 6

interface Held {
  readonly index: Index
  readonly release: (error: DqliteError | undefined) => void
}

interface PendingRequest {
  readonly resolve: () => void
  readonly reject: (error: DqliteError) => void
}

export class RaftDriver implements Replicator {
  readonly id: ServerId
  readonly address: string
  readonly #options: RaftDriverOptions
  readonly #raft: Raft
  readonly #tickMs: number
  #sender: Sender | undefined
  #timer: NodeJS.Timeout | undefined
  #flushDue: NodeJS.Immediate | undefined
  #stopped = false
  #failure: DqliteError | undefined

  /** The term in which we lead and last index at the election: reads and writes wait until it is applied. */
  #leading: { readonly term: Term; readonly electionIndex: Index } | undefined
  #leadershipLostListeners: (() => void | Promise<void>)[] = []
  /** Set while the executor lets go of connections after a lost leadership; nothing is applied meanwhile. */
  #abandoning: Promise<void> | undefined

  /** Responses waiting for the state machine, by ascending index. */
  #held: Held[] = []
  #roomWaiters: (() => void)[] = []
  #uncommittedBytes = 0
  #uncommittedSizes: { readonly index: Index; readonly bytes: number }[] = []

  #nextRequest = 1
  readonly #requests = new Map<number, PendingRequest>()
  readonly #reads = new Map<number, PendingRequest>()

  /** Persistence in order: votes, truncations and snapshots wait for what is before them and hold what is after. */
  #persistTail: Promise<void> = Promise.resolve()
  #persistBusy = 0
  /** Committed entries not yet applied, in order; drained by one loop at a time. */
  #applyQueue: Entry[] = []
  #applying = false
  #received: ReceivedSnapshot | undefined
  #hasConflict = false
  #snapshotIndex: Index
  /** Bytes of entries applied since the newest snapshot, and the size of that one. */
  #bytesSinceSnapshot = 0
  #snapshotBytes = 0
  #snapshotGrowth = snapshotGrowthMin
  #takingSnapshot: Promise<void> | undefined

  constructor(options: RaftDriverOptions) {
    const { limits, restored } = options
    this.id = options.id
    this.address = options.address
    this.#options = options
    this.#tickMs = Math.max(1, Math.floor(limits.heartbeatMs / ticksPerHeartbeat))
    const ticks = (ms: number): number => Math.max(1, Math.ceil(ms / this.#tickMs))
    this.#snapshotIndex = restored.snapshot?.last.index ?? 0
    this.#raft = new Raft(
      {
        id: options.id,
        random: options.random,
        electionTimeoutTicks: ticks(limits.electionTimeoutMs),
        heartbeatTicks: ticks(limits.heartbeatMs),
        installSnapshotTimeoutTicks: ticks(limits.installSnapshotTimeoutMs),
        maxCatchUpRounds: limits.catchUpRoundsMax,
        catchUpRoundTimeoutTicks: ticks(limits.catchUpRoundTimeoutMs),
        appendEntriesMax: limits.appendEntriesMax,
        appendBytesMax: limits.appendBytesMax,
        inflightAppendsMax: limits.inflightAppendsMax,
        // The driver asks writers to wait at the limit (pipelineFull); a commit that is under way must not be refused.
        pipelineEntriesMax: Number.MAX_SAFE_INTEGER,
        // Finite all the same: a follower bounds by it what waits for its disk.
        pipelineBytesMax: limits.pipelineBytesMax + limits.transactionBytesMax,
        logCacheBytesMax: limits.logCacheBytesMax,
        committedBytesMax: limits.committedBytesMax,
      },
      restored,
    )
  }

  /** Starts time. Messages flow from now on. */
  start(transport: Transport): void {
    const { directory, limits } = this.#options
    this.#sender = new Sender({
      transport,
      directory,
      readBytesMax: limits.appendBytesMax,
      // Members of ours say so by this bit; C's leave it 0.
      takesLargeSnapshots: (to) => this.#raft.progress().some(({ id, features }) => id === to && (features & 1) !== 0),
      onUnreachable: (to) => this.onUnreachable(to),
      onWarning: this.#options.onWarning,
      onFailure: (error) => this.#fail(error),
    })
    this.#timer = setInterval(() => this.#step({ type: 'tick' }), this.#tickMs)
    this.#afterStep()
  }

  /** Waits for what is being written or sent from disk; later events are ignored. */
  async stop(): Promise<void> {
    if (this.#stopped) return
    this.#stopped = true
    clearInterval(this.#timer)
    clearImmediate(this.#flushDue)
    this.#loseLeadership()
    await this.#abandoning
    this.#failRequests(this.#requests, () => new DqliteError('CLOSED', 'server is shutting down', { wire: 1 }))
    await this.#persistTail
    await this.#sender?.close()
    await this.#takingSnapshot
    await this.#received?.discard()
  }

  // -------------------------------------------------------------------------------------------- from the network

  onMessage(from: ServerId, address: string, message: Message): void {
    this.#step({ type: 'receive', from, address, message })
  }

  onUnreachable(to: ServerId): void {
    this.#step({ type: 'unreachable', to })
  }

  /** A snapshot goes to a temporary file first; Raft hears of it when it is whole. */
  async onSnapshot(
    from: ServerId,
    address: string,
    message: InstallSnapshot,
    contentBytes: number,
    content: AsyncIterable<Uint8Array>,
  ): Promise<void> {
    if (this.#stopped || this.#failure !== undefined || this.#received !== undefined) {
      // Given up unread; the leader tries again.
      await content[Symbol.asyncIterator]().return?.()
      return
    }
    let received: ReceivedSnapshot
    try {
      const alive = this.#whileArriving(from, address, message, content)
      received = await this.#options.directory.snapshots.receive(message.snapshot, contentBytes, alive)
    } catch (error) {
      // The connection broke or the disk is full: the leader sends it again.
      this.#options.onWarning(
        `snapshot ${message.snapshot.last.index} from ${address} was not stored: ${String(error)}`,
      )
      return
    }
    if (this.#isStopped() || this.#received !== undefined) {
      await received.discard()
      return
    }
    this.#received = received
    this.#step({ type: 'receive', from, address, message })
    // Raft asks for it in a Ready, once what it handed out before is applied; or does not want it.
    const wanted = this.#raft.installingSnapshot?.last
    const { last } = received.description
    if (this.#received === received && (wanted?.index !== last.index || wanted.term !== last.term)) {
      this.#received = undefined
      await received.discard()
    }
  }

  /**
   * The leader's heartbeats queue behind the content on its one stream. Content that arrives says the same: without
   * this we would campaign against a leader that is busy with us, and it would step down for want of our answers.
   */
  async *#whileArriving(
    from: ServerId,
    address: string,
    { term }: InstallSnapshot,
    content: AsyncIterable<Uint8Array>,
  ): AsyncGenerator<Uint8Array> {
    const heartbeat: Message = { type: 'appendEntries', term, prev: { index: 0, term: 0 }, commitIndex: 0, entries: [] }
    let beatAtMs = 0
    for await (const piece of content) {
      const nowMs = performance.now()
      if (nowMs - beatAtMs >= this.#options.limits.heartbeatMs) {
        beatAtMs = nowMs
        this.onMessage(from, address, heartbeat)
      }
      yield piece
    }
  }

  #isStopped(): boolean {
    return this.#stopped
  }

  // -------------------------------------------------------------------------------------------- Replicator

  get isLeader(): boolean {
    return (
      this.#leading !== undefined &&
      !this.#raft.isTransferring &&
      this.#abandoning === undefined &&
      this.#failure === undefined
    )
  }

  get isTransferring(): boolean {
    return this.#leading !== undefined && this.#raft.isTransferring
  }

  leader(): { readonly id: ServerId; readonly address: string } | undefined {
    return this.#failure === undefined ? this.#raft.leader : undefined
  }

  configuration(): Configuration {
    return this.#raft.configuration
  }

  get lastApplied(): Index {
    return this.#raft.lastApplied
  }

  get status(): RaftStatus {
    const { state, term, commitIndex, lastIndex, lastApplied, lastPersisted } = this.#raft
    return { state, term, commitIndex, lastIndex, lastApplied, lastPersisted }
  }

  propose(database: Database, command: Uint8Array): Index | Refusal {
    if (!this.isLeader) return 'notLeader'
    const refusal = this.#raft.step({ type: 'propose', entries: [{ type: 'command', data: command }] })
    if (refusal !== undefined) return refusal
    const index = this.#raft.lastIndex
    this.#options.stateMachine.captured(index, database)
    this.#uncommittedBytes += command.byteLength
    this.#uncommittedSizes.push({ index, bytes: command.byteLength })
    this.#afterStep()
    return index
  }

  get needsBarrier(): boolean {
    return this.#leading !== undefined && this.#raft.lastApplied < this.#leading.electionIndex
  }

  barrier(): Promise<void> {
    if (this.#leading === undefined || !this.isLeader) return Promise.reject(notLeader())
    return this.whenApplied(this.#leading.electionIndex)
  }

  readIndex(): Promise<void> {
    if (!this.isLeader) return Promise.reject(notLeader())
    return new Promise((resolve, reject) => {
      const id = this.#nextRequest++
      this.#reads.set(id, { resolve, reject })
      if (this.#step({ type: 'readIndex', id }) !== undefined) {
        this.#reads.delete(id)
        reject(notLeader())
      }
    })
  }

  whenApplied(index: Index): Promise<void> {
    return new Promise((resolve, reject) => {
      this.hold(index, (error) => (error === undefined ? resolve() : reject(error)))
    })
  }

  hold(index: Index, release: (error: DqliteError | undefined) => void): void {
    if (this.#leading === undefined) return release(leadershipLost())
    if (index <= this.#raft.lastApplied) return release(undefined)
    const held = this.#held
    let at = held.length
    while (at > 0 && held[at - 1]!.index > index) at -= 1
    if (at === held.length) held.push({ index, release })
    else held.splice(at, 0, { index, release })
  }

  get pipelineFull(): boolean {
    const { pipelineEntriesMax, pipelineBytesMax } = this.#options.limits
    return this.#uncommittedSizes.length >= pipelineEntriesMax || this.#uncommittedBytes >= pipelineBytesMax
  }

  /** Resolves when the pipeline has room, or leadership is gone: ask again. */
  whenPipelineHasRoom(): Promise<void> {
    if (!this.pipelineFull || this.#leading === undefined) return Promise.resolve()
    return new Promise((resolve) => this.#roomWaiters.push(resolve))
  }

  change(change: ConfigurationChange): Promise<void> {
    return this.#request((request) => ({ type: 'change', request, change }))
  }

  transfer(to: ServerId | undefined): Promise<void> {
    return this.#request((request) => ({ type: 'transfer', request, to }))
  }

  onLeadershipLost(listener: () => void | Promise<void>): void {
    this.#leadershipLostListeners.push(listener)
  }

  #request(event: (request: number) => RaftEvent): Promise<void> {
    if (this.#stopped) return Promise.reject(new DqliteError('CLOSED', 'server is shutting down', { wire: 1 }))
    if (!this.isLeader) return Promise.reject(new DqliteError('NOT_LEADER', 'server is not the leader'))
    return new Promise((resolve, reject) => {
      const request = this.#nextRequest++
      this.#requests.set(request, { resolve, reject })
      const asked = event(request)
      const refusal = this.#step(asked)
      if (refusal === undefined) return
      this.#requests.delete(request)
      reject(refusalError(refusal, asked))
    })
  }

  // -------------------------------------------------------------------------------------------- the loop

  #step(event: RaftEvent): Refusal | undefined {
    if (this.#stopped || this.#failure !== undefined) return 'notLeader'
    const refusal = this.#raft.step(event)
    this.#afterStep()
    return refusal
  }

  /** Notices a change of role at once (nobody may act on an old one) and asks for a Ready at the end of the turn. */
  #afterStep(): void {
    const { state, term, conflictIndex } = this.#raft
    if (conflictIndex !== undefined && !this.#hasConflict) {
      this.#hasConflict = true
      this.#options.onWarning(
        `a leader contradicts the committed entry ${conflictIndex}: it belongs to another cluster, or has lost its disk`,
      )
    }
    if (this.#leading !== undefined && (state !== 'leader' || term !== this.#leading.term)) this.#loseLeadership()
    if (this.#leading === undefined && state === 'leader') {
      this.#leading = { term, electionIndex: this.#raft.lastIndex }
    }
    this.#flushDue ??= setImmediate(() => {
      this.#flushDue = undefined
      this.#flush()
    })
  }

  #flush(): void {
    if (this.#failure !== undefined || this.#isStopped()) return
    for (let ready = this.#raft.ready(); ready !== undefined; ready = this.#raft.ready()) {
      this.#handle(ready)
      if (this.#hasFailed()) return
    }
  }

  #hasFailed(): boolean {
    return this.#failure !== undefined
  }

  #handle(ready: Ready): void {
    // Beside the disk write: a follower's copy counts even if ours is late (dissertation §10.2.1).
    this.#send(ready.messages)
    this.#persist(ready)
    if (ready.committed.length > 0) this.#apply(ready.committed)
    for (const read of ready.reads) this.#answerRead(read.id, read.index)
    for (const outcome of ready.outcomes) this.#answer(outcome)
  }

  #persist(ready: Ready): void {
    const { vote, snapshot, truncateAfter, entries, messagesAfterPersist } = ready
    if (vote === undefined && snapshot === undefined && truncateAfter === undefined && this.#persistBusy === 0) {
      if (entries.length > 0) this.#append(entries, messagesAfterPersist)
      else this.#send(messagesAfterPersist)
      return
    }
    const received = snapshot === undefined ? undefined : this.#takeReceived(snapshot)
    this.#persistBusy += 1
    this.#persistTail = this.#persistTail
      .then(async () => {
        const { metadata, log } = this.#options.directory
        if (this.#failure !== undefined) {
          await received?.discard()
          return
        }
        if (vote !== undefined) await metadata.save(vote)
        if (snapshot !== undefined) await this.#install(snapshot, received)
        if (truncateAfter !== undefined) await log.truncateAfter(truncateAfter)
        if (entries.length > 0) this.#append(entries, messagesAfterPersist)
        else this.#send(messagesAfterPersist)
      })
      .catch((error: unknown) => this.#fail(error))
      .finally(() => {
        this.#persistBusy -= 1
      })
  }

  /** The store keeps the order of calls and merges those that arrive while a write runs. */
  #append(entries: readonly Entry[], messages: readonly Envelope[]): void {
    const last = entries.at(-1)!
    this.#options.directory.log.append(entries).then(
      () => {
        this.#step({ type: 'persisted', last: { index: last.index, term: last.term } })
        if (!this.#isStopped()) this.#send(messages)
      },
      (error: unknown) => {
        this.#step({ type: 'persistFailed', first: entries[0]!.index })
        this.#flush()
        this.#fail(error)
      },
    )
  }

  #fail(error: unknown): void {
    if (this.#failure !== undefined || this.#stopped) return
    const failure =
      error instanceof DqliteError
        ? error
        : new DqliteError('DISK_FAILED', `the node stops taking part: ${String(error)}`, { cause: error })
    this.#failure = failure
    clearInterval(this.#timer)
    this.#loseLeadership()
    this.#failRequests(this.#requests, leadershipLost)
    this.#options.onFailure(failure)
  }

  // -------------------------------------------------------------------------------------------- messages

  #send(envelopes: readonly Envelope[]): void {
    if (envelopes.length > 0) this.#sender?.send(envelopes)
  }

  // -------------------------------------------------------------------------------------------- applying

  #apply(entries: readonly Entry[]): void {
    for (const entry of entries) this.#applyQueue.push(entry)
    if (this.#applying) return
    if (this.#abandoning === undefined && entries.every(hasData)) this.#applyNow()
    else this.#applyLater()
  }

  #applyNow(): void {
    const { stateMachine } = this.#options
    const queue = this.#applyQueue
    this.#applyQueue = []
    try {
      for (const entry of queue) {
        stateMachine.apply(entry)
        this.#bytesSinceSnapshot += entry.byteLength
      }
    } catch (error) {
      this.#fail(error)
      return
    }
    const last = queue.at(-1)
    if (last !== undefined) this.#onApplied(last.index)
  }

  /** The rare way: entries come back from disk, or connections of a lost leadership are still being closed. */
  #applyLater(): void {
    this.#applying = true
    const run = async (): Promise<void> => {
      await this.#abandoning
      while (this.#applyQueue.length > 0 && !this.#stopped && this.#failure === undefined) {
        const head = this.#applyQueue[0]!
        if (hasData(head)) {
          this.#applyQueue.shift()
          this.#options.stateMachine.apply(head)
          this.#bytesSinceSnapshot += head.byteLength
          this.#onApplied(head.index)
          continue
        }
        const last = this.#applyQueue.at(-1)!.index
        const read = await this.#options.directory.log.read(head.index, last, this.#options.limits.committedBytesMax)
        this.#applyQueue.splice(0, read.length, ...read)
        await this.#abandoning
      }
    }
    run()
      .catch((error: unknown) => this.#fail(error))
      .finally(() => {
        this.#applying = false
        if (this.#applyQueue.length > 0 && !this.#stopped && this.#failure === undefined) this.#applyLater()
      })
  }

  #onApplied(index: Index): void {
    this.#step({ type: 'applied', index })
    const sizes = this.#uncommittedSizes
    let committed = 0
    while (committed < sizes.length && sizes[committed]!.index <= index) {
      this.#uncommittedBytes -= sizes[committed]!.bytes
      committed += 1
    }
    if (committed > 0) sizes.splice(0, committed)
    const held = this.#held
    let due = 0
    while (due < held.length && held[due]!.index <= index) due += 1
    if (due > 0) for (const { release } of held.splice(0, due)) release(undefined)
    this.#wakeRoomWaiters()
    this.#maybeSnapshot(index)
  }

  #wakeRoomWaiters(): void {
    if (this.#roomWaiters.length === 0 || (this.pipelineFull && this.#leading !== undefined)) return
    const waiters = this.#roomWaiters
    this.#roomWaiters = []
    for (const wake of waiters) wake()
  }

  /** Everything that depended on leading ends here; entries may yet be committed by the next leader. */
  #loseLeadership(): void {
    if (this.#leading === undefined) return
    this.#leading = undefined
    const held = this.#held
    this.#held = []
    this.#uncommittedSizes = []
    this.#uncommittedBytes = 0
    for (const { release } of held) release(leadershipLost())
    this.#failRequests(this.#reads, leadershipLost)
    this.#wakeRoomWaiters()
    // Connections that saw the speculative view must be closed before it is dropped, and dropped before anything
    // of the next leader is applied (vfs constraints 14 and 15).
    const abandoning = Promise.all(this.#leadershipLostListeners.map(async (listener) => listener()))
      .then(() => this.#options.stateMachine.dropSpeculative())
      .catch((error: unknown) => this.#fail(error))
      .finally(() => {
        if (this.#abandoning === abandoning) this.#abandoning = undefined
      })
    this.#abandoning = abandoning
  }

  // -------------------------------------------------------------------------------------------- requests

  #answerRead(id: number, index: Index): void {
    const read = this.#reads.get(id)
    if (read === undefined) return
    this.#reads.delete(id)
    this.hold(index, (error) => (error === undefined ? read.resolve() : read.reject(error)))
  }

  #answer(outcome: Outcome): void {
    const request = this.#requests.get(outcome.request)
    if (request === undefined) return
    this.#requests.delete(outcome.request)
    switch (outcome.result) {
      case 'done':
        return request.resolve()
      case 'leadershipLost':
        return request.reject(new DqliteError('LEADERSHIP_LOST', 'server has lost leadership'))
      case 'noConnection':
        return request.reject(new DqliteError('SQLITE_ERROR', 'no connection to remote server available'))
      case 'timedOut':
        return request.reject(new DqliteError('SQLITE_ERROR', 'leadership transfer failed'))
    }
  }

  #failRequests(requests: Map<number, PendingRequest>, error: () => DqliteError): void {
    const pending = [...requests.values()]
    requests.clear()
    for (const { reject } of pending) reject(error())
  }

  // -------------------------------------------------------------------------------------------- snapshots

  /**
   * Raft-wire §6.6: after an apply, once enough entries were applied since the last one. But not before the log has
   * grown by several times what the last snapshot was large: a large database under load would be written over and over.
   */
  #maybeSnapshot(applied: Index): void {
    const { limits, stateMachine, directory } = this.#options
    if (applied - this.#snapshotIndex < limits.snapshotThreshold) return
    // Committed by the others' disks; ours has yet to write it. The next apply looks again.
    if (applied > this.#raft.lastPersisted) return
    if (this.#bytesSinceSnapshot < this.#snapshotGrowth * this.#snapshotBytes) return
    if (this.#takingSnapshot !== undefined || this.#stopped || this.#failure !== undefined) return
    const term = this.#raft.termAt(applied)
    assert(term !== undefined, 'a just applied entry is in the log')
    // The entry of a recovery has term 1 (disk-format §5): a snapshot that ended with it would count as an old one.
    if (term < (directory.snapshots.newest?.last.term ?? 0)) return
    const { configuration, index: configurationIndex } = this.#raft.configurationAt(applied)
    const snapshot: SnapshotDescription = { last: { index: applied, term }, configuration, configurationIndex }
    // Pinned between two applies: exactly the state at `applied`, never the speculative view (vfs constraint 20).
    const image = stateMachine.openImage()
    this.#bytesSinceSnapshot = 0
    this.#snapshotBytes = image.contentBytes
    this.#snapshotGrowth = snapshotGrowthMin + this.#options.random() * (snapshotGrowthMax - snapshotGrowthMin)
    const take = async (): Promise<void> => {
      try {
        await directory.snapshots.take(snapshot, image.contentBytes, image.content())
      } finally {
        image.close()
      }
      if (this.#stopped || this.#failure !== undefined || this.#snapshotIndex >= applied) return
      this.#snapshotIndex = applied
      const trailing = this.#trailing(applied, image.contentBytes)
      this.#step({ type: 'snapshotTaken', snapshot, trailing })
      // On disk always the configured number (disk-format §7.1).
      if (applied > limits.snapshotTrailing) await directory.log.compact(applied - limits.snapshotTrailing + 1)
    }
    this.#takingSnapshot = take()
      .catch((error: unknown) => this.#fail(error))
      .finally(() => {
        this.#takingSnapshot = undefined
      })
  }

  /** Raft-wire §6.6, strategy "dynamic": as many entries as fit in the size of the snapshot, within the two limits. */
  #trailing(applied: Index, contentBytes: number): number {
    const { limits, snapshotStrategy } = this.#options
    if (snapshotStrategy === 'static') return limits.snapshotTrailing
    return Math.min(
      limits.snapshotTrailing,
      Math.max(limits.snapshotThreshold, this.#raft.entriesWithin(applied, contentBytes)),
    )
  }

  #takeReceived(snapshot: SnapshotDescription): ReceivedSnapshot {
    const received = this.#received
    assert(received !== undefined, 'Raft asked for a snapshot that was not received')
    assert.equal(received.description.last.index, snapshot.last.index)
    this.#received = undefined
    return received
  }

  async #install(snapshot: SnapshotDescription, received: ReceivedSnapshot | undefined): Promise<void> {
    assert(received !== undefined)
    const { directory, stateMachine } = this.#options
    await this.#takingSnapshot
    await this.#abandoning
    await received.install()
    await directory.log.reset(snapshot.last.index + 1)
    this.#applyQueue = []
    const stored = await directory.snapshots.openNewest()
    assert(stored !== undefined && stored.description.last.index === snapshot.last.index)
    try {
      await stateMachine.restore(stored.content)
    } finally {
      await stored.close()
    }
    this.#snapshotIndex = snapshot.last.index
    this.#step({ type: 'snapshotInstalled', last: snapshot.last })
  }
}

const notLeader = (): DqliteError => new DqliteError('NOT_LEADER', 'not leader')
const leadershipLost = (): DqliteError => new DqliteError('LEADERSHIP_LOST', 'leadership lost')

/** Client-protocol §8.2: codes and texts of refused membership requests and transfers. */
function refusalError(refusal: Refusal, event: RaftEvent): DqliteError {
  switch (refusal) {
    case 'notLeader':
      return new DqliteError('NOT_LEADER', 'server is not the leader')
    case 'changeInProgress':
      return new DqliteError('BUSY', 'a configuration change is already in progress')
    case 'duplicateId':
      return new DqliteError('SQLITE_ERROR', 'server ID already in use')
    case 'duplicateAddress':
      return new DqliteError('SQLITE_ERROR', 'server address already in use')
    case 'unknownId':
      if (event.type === 'change' && event.change.type === 'assign')
        return new DqliteError('SQLITE_ERROR', 'Resource not found')
      return new DqliteError('SQLITE_ERROR', 'server ID is not valid')
    case 'noTarget':
      return new DqliteError('SQLITE_ERROR', 'Resource not found')
    case 'badRole':
      return new DqliteError('SQLITE_ERROR', 'server role is not valid')
    case 'badTarget':
      return new DqliteError('SQLITE_ERROR', 'server ID is not valid')
    case 'pipelineFull':
      return new DqliteError('BUSY', "operation can't be performed at this time")
  }
}
