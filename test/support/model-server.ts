/**
 * The host of one Raft core in a model world: takes its Readys, gives them to the model disk and a hash-chain state
 * machine, and reports back what became durable and what was applied. Keeps the host's duties (order: vote, snapshot,
 * truncation, entries, then the messages that wait, then `persisted`), and nothing else: when things happen, and what
 * fails, is decided by the world outside. Checks nothing but its own contract with the core; see checkers.ts.
 */
import assert from 'node:assert/strict'
import type { Raft, RaftOptions, RestoredState } from '../../lib/raft/raft.js'
import type {
  Configuration,
  Entry,
  EntryId,
  Envelope,
  Index,
  Message,
  RaftEvent,
  Ready,
  Refusal,
  ServerId,
  SnapshotDescription,
  Term,
} from '../../lib/raft/types.js'
import { describeConfiguration } from './words.js'
import { ModelDisk, type DiskBatch, type DiskOperation, type StoredSnapshot } from './model-disk.js'

/** What a host sees of a core; deliberately broken ones are wrappers with the same face. */
export type RaftCore = Pick<
  Raft,
  | 'step'
  | 'ready'
  | 'id'
  | 'state'
  | 'term'
  | 'leader'
  | 'commitIndex'
  | 'lastIndex'
  | 'lastApplied'
  | 'lastPersisted'
  | 'configuration'
  | 'committedConfiguration'
  | 'isTransferring'
  | 'hasCommittedInTerm'
  | 'installingSnapshot'
  | 'cachedBytes'
  | 'termAt'
  | 'progress'
>
export type RaftFactory = (options: RaftOptions, restored: RestoredState) => RaftCore

/** A message on its way, with the bytes that travel beside an InstallSnapshot. */
export interface Parcel {
  readonly from: ServerId
  readonly fromAddress: string
  readonly to: ServerId
  readonly address: string
  readonly message: Message
  readonly content: StoredSnapshot | undefined
}

/** The world around a server: hears of everything it does. */
export interface World {
  send(server: ModelServer, parcel: Parcel): void
  /** The disk queue is not empty any more. */
  onDiskWork(server: ModelServer): void
  onApplyWork(server: ModelServer): void
  /** A message could not be sent. To be told to the core later, never from inside a Ready. */
  onUnreachable(server: ModelServer, to: ServerId): void
  onStart(server: ModelServer): void
  onStepped(server: ModelServer, event: RaftEvent, before: Before, refusal: Refusal | undefined): void
  onReady(server: ModelServer, ready: Ready): void
  /** The core has nothing more to say: its log and the host's picture of it must agree. */
  onPumped(server: ModelServer): void
  onDurable(server: ModelServer): void
  onApplied(server: ModelServer, entry: Entry): void
}

export interface Before {
  readonly state: Raft['state']
  readonly term: Term
  readonly commitIndex: Index
  readonly lastIndex: Index
}

/** Everything applied, folded into one number per index. */
export interface Machine {
  lastApplied: Index
  chain: number
  configuration: Configuration
  configurationIndex: Index
}

export function fingerprintOf(entry: Entry): number {
  let hash = 0x811c9dc5
  const mix = (byte: number) => {
    hash = Math.imul(hash ^ byte, 0x01000193)
  }
  switch (entry.type) {
    case 'command':
      assert(entry.data !== undefined, `entry ${entry.index} has no data here`)
      mix(1)
      for (const byte of entry.data) mix(byte)
      break
    case 'barrier':
      mix(2)
      break
    case 'configuration':
      mix(3)
      for (const { id, address, role } of entry.configuration.servers) {
        for (const char of `${id}=${address}=${role};`) mix(char.charCodeAt(0))
      }
      break
  }
  return hash >>> 0
}

export const chainOf = (chain: number, entry: Entry): number =>
  (Math.imul(chain ^ fingerprintOf(entry), 0x9e3779b1) ^ Math.imul(entry.index + 31 * entry.term, 0x85ebca6b)) >>> 0

const noServers: Configuration = { servers: [] }

export class ModelServer {
  readonly id: ServerId
  readonly address: string
  readonly disk = new ModelDisk()
  raft: RaftCore | undefined = undefined
  machine: Machine = { lastApplied: 0, chain: 0, configuration: noServers, configurationIndex: 0 }
  /** Committed, handed out by the core, not yet applied. */
  applyQueue: Entry[] = []
  /** The highest index the core has handed out in `Ready.committed`. */
  handedOut: Index = 0
  /** The log as Readys have told it, whatever the disk has done of it: entries above `mirrorBase`. */
  mirror: Entry[] = []
  mirrorBase: EntryId = { index: 0, term: 0 }
  isInstalling = false
  /** A write has failed, and what it may have left on the disk is not cut yet. */
  isDiskSuspect = false
  /** Readys wait while this is set (a host takes them at the end of its turn). */
  isHoldingReady = false

  readonly #world: World
  readonly #createRaft: RaftFactory
  options: RaftOptions
  #received: StoredSnapshot[] = []
  #isPumping = false
  #isTakingSnapshot = false

  constructor(id: ServerId, address: string, options: RaftOptions, world: World, createRaft: RaftFactory) {
    this.id = id
    this.address = address
    this.options = options
    this.#world = world
    this.#createRaft = createRaft
  }

  get isUp(): boolean {
    return this.raft !== undefined
  }

  mirrorAt(index: Index): Entry | undefined {
    return this.mirror[index - this.mirrorBase.index - 1]
  }

  mirrorTermAt(index: Index): Term | undefined {
    return index === this.mirrorBase.index ? this.mirrorBase.term : this.mirrorAt(index)?.term
  }

  get mirrorLast(): Index {
    return this.mirrorBase.index + this.mirror.length
  }

  start(): void {
    assert(this.raft === undefined)
    const restored = this.disk.load(this.options.logCacheBytesMax)
    const snapshot = this.disk.newestSnapshot
    this.machine =
      snapshot === undefined
        ? { lastApplied: 0, chain: 0, configuration: noServers, configurationIndex: 0 }
        : {
            lastApplied: snapshot.description.last.index,
            chain: snapshot.chain,
            configuration: snapshot.description.configuration,
            configurationIndex: snapshot.description.configurationIndex,
          }
    this.applyQueue = []
    this.#received = []
    this.isInstalling = false
    this.isHoldingReady = false
    this.#isTakingSnapshot = false
    const { firstIndex } = this.disk
    const beforeFirst = snapshot?.description.last.index === firstIndex - 1 ? snapshot.description.last.term : 0
    this.mirrorBase = { index: firstIndex - 1, term: beforeFirst }
    this.mirror = this.disk.entries.slice()
    this.raft = this.#createRaft(this.options, restored)
    // The first entry of a log is the same everywhere and counts as applied (raft-wire §6.2).
    const [first] = this.disk.entries
    if (this.raft.lastApplied === 1 && first?.index === 1 && this.machine.lastApplied === 0) this.#apply(first)
    assert.equal(this.raft.lastApplied, this.machine.lastApplied)
    this.handedOut = this.machine.lastApplied
    this.#world.onStart(this)
    this.pump()
  }

  /** The process is gone; `keptOperations` of the unfinished disk writes survive it. */
  crash(keptOperations: number): void {
    assert(this.raft !== undefined)
    this.raft = undefined
    this.applyQueue = []
    this.disk.crash(keptOperations)
    this.isDiskSuspect = false
    this.#world.onDurable(this)
  }

  step(event: RaftEvent): Refusal | undefined {
    const raft = this.raft
    assert(raft !== undefined)
    const before = { state: raft.state, term: raft.term, commitIndex: raft.commitIndex, lastIndex: raft.lastIndex }
    const refusal = raft.step(event)
    this.#world.onStepped(this, event, before, refusal)
    this.pump()
    return refusal
  }

  receive(parcel: Parcel): void {
    if (parcel.content !== undefined) {
      this.#received.push(parcel.content)
      if (this.#received.length > 4) this.#received.shift()
    }
    this.step({ type: 'receive', from: parcel.from, address: parcel.fromAddress, message: parcel.message })
  }

  /** Takes every Ready that is due. Re-entered calls leave the work to the outer one. */
  pump(): void {
    if (this.isHoldingReady || this.#isPumping) return
    this.#isPumping = true
    try {
      for (;;) {
        const ready = this.raft?.ready()
        if (ready === undefined) break
        this.#take(ready)
      }
      if (this.raft !== undefined) this.#world.onPumped(this)
    } finally {
      this.#isPumping = false
    }
  }

  #take(ready: Ready): void {
    // The world looks first: the mirror still shows the log before this Ready.
    this.#world.onReady(this, ready)
    const operations: DiskOperation[] = []
    if (ready.vote !== undefined) operations.push({ type: 'vote', ...ready.vote })
    if (ready.snapshot !== undefined) {
      assert(ready.entries.length === 0 && ready.truncateAfter === undefined, 'a snapshot comes alone')
      const { last } = ready.snapshot
      const snapshot = this.#received.find(
        ({ description }) => description.last.index === last.index && description.last.term === last.term,
      )
      assert(snapshot !== undefined, 'asked to install a snapshot that was never received')
      this.applyAll()
      this.isInstalling = true
      operations.push({ type: 'saveSnapshot', snapshot }, { type: 'resetLog', next: last.index + 1 })
      this.mirrorBase = last
      this.mirror = []
    }
    if (ready.truncateAfter !== undefined) {
      operations.push({ type: 'truncateAfter', index: ready.truncateAfter })
      this.mirror.length = Math.min(this.mirror.length, ready.truncateAfter - this.mirrorBase.index)
    }
    for (const entry of ready.entries) {
      assert.equal(entry.index, this.mirrorLast + 1, 'entries to store do not continue the log')
      assert(entry.type !== 'command' || entry.data !== undefined, 'an entry to store has no data')
      operations.push({ type: 'append', entry })
      this.mirror.push(entry)
    }
    for (const envelope of ready.messages) this.#send(envelope)
    const messages = ready.messagesAfterPersist
    if (operations.length > 0 || messages.length > 0) {
      if (operations.length === 0 && this.disk.queue.length === 0) {
        for (const envelope of messages) this.#send(envelope)
      } else {
        this.disk.queue.push({ operations, entries: ready.entries, messages, installs: ready.snapshot })
        if (this.disk.queue.length === 1) this.#world.onDiskWork(this)
      }
    }
    if (ready.committed.length > 0) {
      assert(!this.isInstalling, 'entries to apply while the state machine is being replaced')
      const wasEmpty = this.applyQueue.length === 0
      for (const entry of ready.committed) {
        assert.equal(entry.index, this.handedOut + 1, 'committed entries are handed out in order, once')
        this.handedOut = entry.index
        this.applyQueue.push(this.#withData(entry))
      }
      if (wasEmpty) this.#world.onApplyWork(this)
    }
  }

  /** What the core has evicted the log store still has (queued or durable). */
  #withData(entry: Entry): Entry {
    if (entry.type !== 'command' || entry.data !== undefined) return entry
    const stored = this.disk.at(entry.index)
    if (stored?.term === entry.term) return stored
    for (const { entries } of this.disk.queue.toReversed()) {
      const queued = entries.find(({ index, term }) => index === entry.index && term === entry.term)
      if (queued !== undefined) return queued
    }
    assert.fail(`server ${this.id}: entry ${entry.index}/t${entry.term} was evicted but is not in the log store`)
  }

  #send({ to, address, message }: Envelope): void {
    const parcel = { from: this.id, fromAddress: this.address, to, address }
    if (message.type === 'appendEntries') {
      const entries = message.entries.map((entry) => this.#withData(entry))
      this.#world.send(this, { ...parcel, message: { ...message, entries }, content: undefined })
    } else if (message.type === 'installSnapshot') {
      const { last } = message.snapshot
      const content = this.disk.snapshots.find(({ description }) => description.last.index === last.index)
      // The store keeps two; an older one is gone and cannot be sent any more.
      if (content !== undefined) this.#world.send(this, { ...parcel, message, content })
      else this.#world.onUnreachable(this, to)
    } else {
      this.#world.send(this, { ...parcel, message, content: undefined })
    }
  }

  /** The oldest `count` batches are durable now. */
  completeDisk(count: number, options: { stepEach?: boolean } = {}): void {
    const done = this.disk.queue.splice(0, count)
    const hold = this.isHoldingReady
    this.isHoldingReady = true
    let last: EntryId | undefined
    const steps: (() => void)[] = []
    for (const batch of done) {
      for (const operation of batch.operations) this.disk.apply(operation)
      this.isDiskSuspect = false
      this.#world.onDurable(this)
      for (const envelope of batch.messages) this.#send(envelope)
      const tail = batch.entries.at(-1)
      if (tail !== undefined) {
        last = { index: tail.index, term: tail.term }
        const persisted = last
        if (options.stepEach) steps.push(() => void this.step({ type: 'persisted', last: persisted }))
      }
      if (batch.installs !== undefined) {
        const installed = batch.installs
        steps.push(() => {
          this.#finishInstall(installed)
        })
      }
    }
    for (const run of steps) run()
    if (last !== undefined && !options.stepEach) this.step({ type: 'persisted', last })
    this.isHoldingReady = hold
    if (this.disk.queue.length > 0) this.#world.onDiskWork(this)
    this.pump()
  }

  #finishInstall(description: SnapshotDescription): void {
    const stored = this.disk.newestSnapshot
    assert(stored?.description.last.index === description.last.index)
    this.machine = {
      lastApplied: description.last.index,
      chain: stored.chain,
      configuration: description.configuration,
      configurationIndex: description.configurationIndex,
    }
    this.handedOut = description.last.index
    this.applyQueue = []
    this.isInstalling = false
    this.step({ type: 'snapshotInstalled', last: description.last })
  }

  /** The oldest batch asks for an install and it fails: nothing has changed on disk. */
  failInstall(): void {
    const batch = this.disk.queue[0]
    assert(batch?.installs !== undefined)
    for (const operation of batch.operations) if (operation.type === 'vote') this.disk.apply(operation)
    this.disk.queue.shift()
    this.isInstalling = false
    // What the disk holds is again what there is.
    const { firstIndex, newestSnapshot } = this.disk
    const { last } = batch.installs
    this.mirrorBase = {
      index: firstIndex - 1,
      term: newestSnapshot?.description.last.index === firstIndex - 1 ? newestSnapshot.description.last.term : 0,
    }
    this.mirror = this.disk.entries.slice()
    this.#world.onDurable(this)
    if (this.disk.queue.length > 0) this.#world.onDiskWork(this)
    this.step({ type: 'snapshotFailed', last })
  }

  /**
   * The disk refuses the oldest batch with entries: `stored` of them reached it all the same. Queued entries behind
   * them cannot be stored either, nothing that waits for any of them may be sent, and the host cuts the log on disk.
   */
  failDisk(stored: number): boolean {
    const failing = this.disk.queue.findIndex(({ entries }) => entries.length > 0)
    if (failing !== 0 || this.disk.queue.some(({ installs }) => installs !== undefined)) return false
    const [batch] = this.disk.queue as [DiskBatch]
    for (const operation of batch.operations) {
      if (operation.type === 'append' && stored-- <= 0) break
      this.disk.apply(operation)
    }
    const kept: DiskOperation[] = []
    let first = Infinity
    for (const queued of this.disk.queue) {
      for (const operation of queued.operations) {
        if (operation.type === 'append') first = Math.min(first, operation.entry.index)
        else if (queued === batch) continue
        else if (operation.type === 'truncateAfter') first = Math.min(first, operation.index + 1)
        else if (operation.type === 'vote') kept.push(operation)
      }
    }
    this.disk.queue = [
      {
        operations: [{ type: 'truncateAfter', index: first - 1 }, ...kept],
        entries: [],
        messages: [],
        installs: undefined,
      },
    ]
    this.isDiskSuspect = true
    this.mirror.length = Math.max(0, Math.min(this.mirror.length, first - 1 - this.mirrorBase.index))
    this.#world.onDiskWork(this)
    this.step({ type: 'persistFailed', first })
    return true
  }

  /** Applies everything that waits, and says so. */
  applyAll(): void {
    this.applySome(this.applyQueue.length)
  }

  applySome(count: number): void {
    const entries = this.applyQueue.splice(0, count)
    for (const entry of entries) {
      this.#apply(entry)
      this.#world.onApplied(this, entry)
    }
    if (entries.length > 0) this.step({ type: 'applied', index: this.machine.lastApplied })
    if (this.applyQueue.length > 0) this.#world.onApplyWork(this)
  }

  #apply(entry: Entry): void {
    assert.equal(entry.index, this.machine.lastApplied + 1)
    this.machine.chain = chainOf(this.machine.chain, entry)
    this.machine.lastApplied = entry.index
    if (entry.type === 'configuration') {
      this.machine.configuration = entry.configuration
      this.machine.configurationIndex = entry.index
    }
  }

  /** The state machine as a snapshot, not yet on disk. `undefined`: nothing new, or another one is running. */
  beginSnapshot(): StoredSnapshot | undefined {
    const { lastApplied, chain, configuration, configurationIndex } = this.machine
    if (this.isInstalling || this.#isTakingSnapshot) return undefined
    if (lastApplied <= (this.disk.newestSnapshot?.description.last.index ?? 0)) return undefined
    const term = this.raft?.termAt(lastApplied)
    assert(term !== undefined, `the term of the applied entry ${lastApplied} is not known`)
    this.#isTakingSnapshot = true
    return { description: { last: { index: lastApplied, term }, configuration, configurationIndex }, chain }
  }

  finishSnapshot(snapshot: StoredSnapshot, trailing: number): void {
    this.#isTakingSnapshot = false
    const { last } = snapshot.description
    // A snapshot that was installed meanwhile is the newer one.
    if (this.isInstalling || last.index <= (this.disk.newestSnapshot?.description.last.index ?? 0)) return
    this.disk.apply({ type: 'saveSnapshot', snapshot })
    this.#world.onDurable(this)
    this.step({ type: 'snapshotTaken', snapshot: snapshot.description, trailing })
    this.disk.compact(Math.min(last.index - trailing + 1, this.disk.lastIndex + 1))
  }
}

/** One line about a server, as it sees itself. */
export function describeStatus({ id, raft, disk }: ModelServer): string {
  if (raft === undefined)
    return `${id} is down, its disk: term ${disk.term} vote ${disk.votedFor ?? '-'} log ..${disk.lastIndex}`
  const leader = raft.leader === undefined ? '-' : raft.leader.id
  return `${id} ${raft.state} t${raft.term} leader=${leader} commit=${raft.commitIndex} last=${raft.lastIndex} persisted=${raft.lastPersisted} [${describeConfiguration(raft.configuration)}]`
}
