/**
 * The state that every Raft state shares, and the outbox that becomes the next Ready. Keeps the invariants of its
 * indexes; does not know why they change: follower.ts, candidate.ts and leader.ts decide.
 */
import assert from 'node:assert/strict'
import type { Campaign } from './candidate.js'
import { ConfigurationHistory, isVoter } from './configuration.js'
import type { Leadership } from './leader.js'
import { Log } from './log.js'
import type {
  Configuration,
  Entry,
  EntryId,
  Envelope,
  Index,
  Message,
  Outcome,
  RaftState,
  ServerId,
  SnapshotDescription,
  Term,
} from './types.js'

export interface RaftOptions {
  readonly id: ServerId
  /** [0, 1): time and chance come in as arguments. */
  readonly random: () => number
  /** The timeout of a follower or candidate is uniform in [E, 2E). */
  readonly electionTimeoutTicks: number
  readonly heartbeatTicks: number
  readonly installSnapshotTimeoutTicks: number
  readonly maxCatchUpRounds: number
  readonly catchUpRoundTimeoutTicks: number
  /** Entries per AppendEntries. */
  readonly appendEntriesMax: number
  /** Bytes per AppendEntries; one larger entry goes alone. */
  readonly appendBytesMax: number
  /** AppendEntries with entries that a follower has not answered; at it, sending waits. */
  readonly inflightAppendsMax: number
  /** Uncommitted entries of a leader; at it, commands are refused with 'pipelineFull'. */
  readonly pipelineEntriesMax: number
  readonly pipelineBytesMax: number
  /** Command bytes kept in memory; beyond, the oldest that are applied and persisted lose their data. */
  readonly logCacheBytesMax: number
  /** Bytes of entries per Ready.committed; one larger entry goes alone. */
  readonly committedBytesMax: number
  /** Silence on votes after start; the election timeout by default, 0: none. */
  readonly quietTicks?: number
}

export interface RestoredState {
  readonly term: Term
  readonly votedFor: ServerId | undefined
  readonly snapshot: SnapshotDescription | undefined
  /** Contiguous; the first index may be at most snapshot.last.index + 1. */
  readonly entries: readonly Entry[]
}

/** Where an answer goes: not looked up in the configuration (raft-wire §1.2). */
export interface Peer {
  readonly id: ServerId
  readonly address: string
}

/** Bit 0 of `features`: this member keeps silent on votes for one election timeout after it starts. */
export const featureVoteSilence = 1

/**
 * A follower stops taking entries while this many times `pipelineBytesMax` wait for its disk. Our leaders stay below
 * `pipelineBytesMax`; C leaders have no bound of their own. What is dropped is sent again after a refused heartbeat.
 */
const unpersistedPipelines = 4

/** A Ready whose entries are on their way to the disk. */
interface Write {
  readonly first: Index
  readonly last: EntryId
  /** What of it later truncations have left. */
  keptTo: Index
}

export class Core {
  readonly id: ServerId
  state: RaftState = 'follower'
  term: Term
  votedFor: ServerId | undefined
  leader: Peer | undefined
  campaign: Campaign | undefined
  leadership: Leadership | undefined

  readonly log: Log
  readonly configurations = new ConfigurationHistory()
  /** In force: on a leader the newest of the log, else the newest that is persisted (raft-wire §6.2). */
  configuration: Configuration
  snapshot: SnapshotDescription | undefined

  /** Known to be committed; on a follower never beyond what it has persisted. */
  commitIndex: Index
  /** The state machine has it. */
  lastApplied: Index
  /** Handed out to be applied. */
  lastHandedToApply: Index
  /** Our disk has it. */
  lastPersisted: Index
  /** Handed out to be persisted. */
  lastHandedToPersist: Index
  /** Follower: committed according to the leader, and verified to be ours. */
  knownCommitIndex: Index = 0
  #writes: Write[] = []
  #unpersistedBytes = 0

  /** A snapshot accepted from a leader and not yet in the state machine. */
  installing: { readonly snapshot: SnapshotDescription; isHandedOut: boolean } | undefined
  /** A message contradicted what is committed here: another cluster's, or a lost disk's. Kept for the operator. */
  conflictIndex: Index | undefined

  ticksSinceStart = 0
  electionElapsedTicks = 0
  electionTimeoutTicks = 0
  readonly #quietTicks: number

  // The outbox.
  isVoteDirty = false
  truncateAfterIndex: Index | undefined
  messages: Envelope[] = []
  messagesAfterPersist: Envelope[] = []
  reads: { readonly id: number; readonly index: Index }[] = []
  outcomes: Outcome[] = []
  /** A success that the leader is owed once our disk holds `index`. One answers for all before it. */
  owedAck: { readonly to: Peer; index: Index } | undefined

  constructor(
    readonly options: RaftOptions,
    restored: RestoredState,
  ) {
    this.id = options.id
    this.log = new Log(options.logCacheBytesMax, restored.snapshot, restored.entries)
    // A metadata file older than the log would let us vote twice in the log's last term.
    this.term = Math.max(restored.term, this.log.lastTerm)
    this.votedFor = this.term === restored.term ? restored.votedFor : undefined
    this.isVoteDirty = this.term !== restored.term
    this.snapshot = restored.snapshot
    if (restored.snapshot !== undefined)
      this.configurations.reset(restored.snapshot.configuration, restored.snapshot.configurationIndex)
    for (const entry of restored.entries)
      if (
        entry.type === 'configuration' &&
        entry.index <= this.log.lastIndex &&
        entry.index > this.configurations.newest.index
      )
        this.configurations.push(entry.configuration, entry.index)
    // raft-wire §6.2: without a snapshot the bootstrap entry is committed and needs no application.
    this.commitIndex = restored.snapshot?.last.index ?? Math.min(this.log.lastIndex, 1)
    this.lastApplied = this.commitIndex
    this.lastHandedToApply = this.commitIndex
    this.lastPersisted = this.log.lastIndex
    this.lastHandedToPersist = this.log.lastIndex
    this.configuration = this.configurations.newest.configuration
    // Who has never known a leader has nothing to keep silent about: a new cluster elects at once.
    const isNew = restored.term === 0 && this.log.lastIndex === 0
    this.#quietTicks = isNew ? 0 : (options.quietTicks ?? options.electionTimeoutTicks)
    this.resetElectionTimer()
  }

  // -------------------------------------------------------------------------------------------------- time

  /** Uniform in [E, 2E) (dissertation §3.4, raft-wire §6.1). */
  resetElectionTimer(): void {
    const { electionTimeoutTicks, random } = this.options
    this.electionTimeoutTicks = electionTimeoutTicks + Math.floor(random() * electionTimeoutTicks)
    this.electionElapsedTicks = 0
  }

  /** For the first `quietTicks` after start we may have forgotten that we promised a leader its lease. */
  get isQuiet(): boolean {
    return this.ticksSinceStart < this.#quietTicks
  }

  get features(): number {
    const { quietTicks, electionTimeoutTicks } = this.options
    return (quietTicks ?? electionTimeoutTicks) >= electionTimeoutTicks ? featureVoteSilence : 0
  }

  // -------------------------------------------------------------------------------------------------- term and vote

  adoptTerm(term: Term): void {
    assert(term > this.term)
    this.term = term
    this.votedFor = undefined
    this.isVoteDirty = true
    // Promised in the old term and not yet sent: the entries may never reach the disk (raft-wire §6.5).
    this.owedAck = undefined
  }

  vote(candidate: ServerId): void {
    assert(this.votedFor === undefined || this.votedFor === candidate)
    this.votedFor = candidate
    this.isVoteDirty = true
  }

  // -------------------------------------------------------------------------------------------------- log

  append(entry: Entry): void {
    this.log.append(entry)
    this.#unpersistedBytes += entry.byteLength
    if (entry.type === 'configuration') {
      this.configurations.push(entry.configuration, entry.index)
      this.refreshConfiguration()
    }
  }

  get hasRoomForEntries(): boolean {
    return this.#unpersistedBytes <= this.options.pipelineBytesMax * unpersistedPipelines
  }

  truncateAfter(index: Index): void {
    assert(index >= this.commitIndex, 'a committed entry would be lost')
    for (let lost = Math.max(index, this.lastPersisted) + 1; lost <= this.log.lastIndex; lost++)
      this.#unpersistedBytes -= this.log.at(lost).byteLength
    this.log.truncateAfter(index)
    this.configurations.truncateAfter(index)
    this.#unpersistAfter(index)
    if (this.owedAck !== undefined && this.owedAck.index > index) this.owedAck.index = index
    this.refreshConfiguration()
  }

  /** The disk is to forget what it holds, or will hold, above `index`. */
  #unpersistAfter(index: Index): void {
    if (this.lastHandedToPersist <= index) return
    this.lastHandedToPersist = index
    this.lastPersisted = Math.min(this.lastPersisted, index)
    this.truncateAfterIndex = Math.min(this.truncateAfterIndex ?? index, index)
    for (const write of this.#writes) write.keptTo = Math.min(write.keptTo, index)
  }

  handToPersist(last: Index): Entry[] {
    const first = this.lastHandedToPersist + 1
    const entries = this.log.slice(first, last)
    this.#writes.push({ first, last: { index: last, term: entries.at(-1)!.term }, keptTo: last })
    this.lastHandedToPersist = last
    return entries
  }

  /**
   * The disk has finished the write that ends at (or contains) `last`, and all before it. Matching the writes rather
   * than the log alone: an entry that was truncated and came back is on its way a second time, and only that counts.
   */
  persisted(last: EntryId): boolean {
    let position = 0
    for (; position < this.#writes.length; position++) {
      const write = this.#writes[position]!
      if (last.index < write.first || last.index > write.last.index) continue
      if (last.index === write.last.index && last.term === write.last.term) break
      if (last.index < write.last.index && last.index <= write.keptTo && this.log.termAt(last.index) === last.term)
        break
    }
    const write = this.#writes[position]
    if (write === undefined) return false
    this.#writes.splice(0, last.index === write.last.index ? position + 1 : position)
    return this.#persistedTo(Math.min(last.index, write.keptTo))
  }

  #persistedTo(index: Index): boolean {
    if (index <= this.lastPersisted) return false
    for (let stored = this.lastPersisted + 1; stored <= index; stored++)
      this.#unpersistedBytes -= this.log.at(stored).byteLength
    this.lastPersisted = index
    this.evict()
    this.refreshConfiguration()
    return true
  }

  /**
   * Entries from `first` on are not on our disk. They are forgotten, except committed ones: those are everybody's and
   * are handed out once more.
   */
  persistFailed(first: Index): void {
    const before = Math.max(first, this.log.firstIndex) - 1
    const keepTo = Math.max(before, this.commitIndex)
    if (this.owedAck !== undefined && this.owedAck.index > before) this.owedAck = undefined
    if (keepTo < this.log.lastIndex) this.truncateAfter(keepTo)
    for (let lost = before + 1; lost <= this.lastPersisted; lost++)
      this.#unpersistedBytes += this.log.at(lost).byteLength
    this.#unpersistAfter(before)
    // What was queued behind the failure is not going to be reported either.
    const failed = this.#writes.findIndex((write) => write.last.index > before)
    if (failed >= 0) this.#writes.length = failed
    this.refreshConfiguration()
  }

  evict(): void {
    this.log.evict(Math.min(this.lastApplied, this.lastPersisted))
  }

  /** A snapshot has become log and state machine. */
  installed(snapshot: SnapshotDescription): void {
    const { last } = snapshot
    this.log.reset(last)
    this.configurations.reset(snapshot.configuration, snapshot.configurationIndex)
    this.snapshot = snapshot
    this.commitIndex = last.index
    this.knownCommitIndex = last.index
    this.lastApplied = last.index
    this.lastHandedToApply = last.index
    this.lastPersisted = last.index
    this.lastHandedToPersist = last.index
    this.truncateAfterIndex = undefined
    this.#writes = []
    this.#unpersistedBytes = 0
    this.owedAck = undefined
    this.installing = undefined
    this.refreshConfiguration()
  }

  // -------------------------------------------------------------------------------------------------- configuration

  refreshConfiguration(): void {
    const { configuration } =
      this.state === 'leader' ? this.configurations.newest : this.configurations.at(this.lastPersisted)
    if (configuration === this.configuration) return
    this.configuration = configuration
    this.leadership?.onConfiguration(this)
  }

  /**
   * May this server ask for votes? A voter may. So may one that an uncommitted change demotes or removes: it may be the
   * only one that can bring the change to those that have to commit it (dissertation §4.2.2). Any configuration above
   * what is known to be committed may be the one in force: after a restart the others know more of that than we do.
   */
  get canCampaign(): boolean {
    return isVoter(this.configuration, this.id) || this.configurations.isVoterSince(this.commitIndex, this.id)
  }

  // -------------------------------------------------------------------------------------------------- outbox

  send(to: Peer, message: Message): void {
    this.messages.push({ to: to.id, address: to.address, message })
  }

  sendAfterPersist(to: Peer, message: Message): void {
    this.messagesAfterPersist.push({ to: to.id, address: to.address, message })
  }
}
