/**
 * One server of a Raft cluster as a value that events change: `step` an event, take the `ready` work, report back by
 * events. Pure and synchronous: equal events give equal Readys. Knows no bytes, sockets, files, clocks or promises.
 *
 *     for (const event of events) raft.step(event)
 *     for (let ready; (ready = raft.ready()) !== undefined; ) …
 *
 * What the host owes a Ready, with several of them in flight:
 * - persist in order: vote, then snapshot, then truncateAfter, then entries; then send messagesAfterPersist; then step
 *   `persisted` with the last entry. Should a write fail, step `persistFailed` with its first entry, and drop the
 *   messagesAfterPersist of it and of everything queued behind it.
 * - `messages` may leave at once.
 * - apply `committed` and step `applied`; the next batch is handed out only then, so a slow state machine is not flooded.
 * - a Ready with `snapshot` carries no entries and nothing to apply, and comes when everything handed out before is
 *   applied. Until `snapshotInstalled` or `snapshotFailed` no entry is handed out either. A host that holds the content
 *   of a received snapshot asks `installingSnapshot` whether it is wanted.
 * - a local snapshot at `index` carries `configurationAt(index)`, and is taken of what is persisted as well as applied.
 */
import assert from 'node:assert/strict'
import { campaign, handleRequestVote, handleRequestVoteResult, tickCandidate } from './candidate.js'
import { findServer, isOnlyVoter, type IndexedConfiguration } from './configuration.js'
import { Core, type Peer, type RaftOptions, type RestoredState } from './core.js'
import {
  acceptAppend,
  commitPersisted,
  followerPersistFailed,
  handleAppendEntries,
  handleInstallSnapshot,
  handleTimeoutNow,
  snapshotFailed,
  snapshotInstalled,
  tickFollower,
} from './follower.js'
import {
  becomeLeader,
  change,
  handleAppendEntriesResult,
  hasCommittedInTerm,
  leaderPersistFailed,
  leaderPersisted,
  leaderUnreachable,
  propose,
  readIndex,
  replicate,
  tickLeader,
  transfer,
} from './leader.js'
import type {
  Configuration,
  Entry,
  Envelope,
  Index,
  Message,
  RaftEvent,
  RaftState,
  Ready,
  Refusal,
  ServerId,
  SnapshotDescription,
  Term,
} from './types.js'

export type { RaftOptions, RestoredState } from './core.js'

const nothing: readonly never[] = []

export class Raft {
  readonly id: ServerId
  readonly #core: Core

  constructor(options: RaftOptions, restored: RestoredState) {
    this.id = options.id
    this.#core = new Core(options, restored)
    if (isOnlyVoter(this.#core.configuration, this.id)) leadAlone(this.#core)
  }

  /** A refusal changes nothing. */
  step(event: RaftEvent): Refusal | undefined {
    const core = this.#core
    switch (event.type) {
      case 'tick':
        tick(core)
        return undefined
      case 'receive':
        receive(core, { id: event.from, address: event.address }, event.message)
        return undefined
      case 'propose':
        return propose(core, event.entries)
      case 'persisted':
        if (core.persisted(event.last)) {
          if (core.state === 'leader') leaderPersisted(core)
          else commitPersisted(core)
        }
        return undefined
      case 'persistFailed':
        if (event.first <= core.log.lastIndex) {
          if (core.state === 'leader') leaderPersistFailed(core, event.first)
          else followerPersistFailed(core, event.first)
        }
        return undefined
      case 'applied':
        applied(core, event.index)
        return undefined
      case 'snapshotTaken':
        snapshotTaken(core, event.snapshot, event.trailing)
        return undefined
      case 'snapshotInstalled':
        snapshotInstalled(core, event.last)
        return undefined
      case 'snapshotFailed':
        snapshotFailed(core, event.last)
        return undefined
      case 'unreachable':
        leaderUnreachable(core, event.to)
        return undefined
      case 'readIndex':
        return readIndex(core, event.id)
      case 'change':
        return change(core, event.request, event.change)
      case 'transfer':
        return transfer(core, event.request, event.to)
    }
  }

  /** What is due, once. `undefined`: nothing. */
  ready(): Ready | undefined {
    const core = this.#core
    if (core.state === 'leader') replicate(core)

    const hasVote = core.isVoteDirty
    const installing = core.installing
    const isApplying = core.lastHandedToApply > core.lastApplied
    const hasSnapshot = installing !== undefined && !installing.isHandedOut && !isApplying
    const canPersist = installing === undefined
    const hasEntries = canPersist && core.lastHandedToPersist < core.log.lastIndex
    const hasTruncation = canPersist && core.truncateAfterIndex !== undefined
    const hasCommitted = installing === undefined && !isApplying && core.commitIndex > core.lastHandedToApply

    // What the disk already holds is acknowledged now, what this Ready carries once it is durable, and what an earlier
    // one carries when `persisted` says so.
    const { owedAck } = core
    let ack: Envelope | undefined
    if (owedAck !== undefined && canPersist && (hasEntries || owedAck.index <= core.lastPersisted)) {
      core.owedAck = undefined
      if (hasEntries && owedAck.index > core.lastPersisted) ack = acknowledgement(core, owedAck.to, owedAck.index)
      else acceptAppend(core, owedAck.to, owedAck.index)
    }

    if (
      !hasVote &&
      !hasSnapshot &&
      !hasEntries &&
      !hasTruncation &&
      !hasCommitted &&
      core.messages.length === 0 &&
      core.messagesAfterPersist.length === 0 &&
      core.reads.length === 0 &&
      core.outcomes.length === 0
    )
      return undefined

    let messages: readonly Envelope[] = nothing
    let messagesAfterPersist: readonly Envelope[] = nothing
    if (core.messages.length > 0) {
      messages = core.messages
      core.messages = []
    }
    if (core.messagesAfterPersist.length > 0) {
      messagesAfterPersist = core.messagesAfterPersist
      core.messagesAfterPersist = []
    }
    if (ack !== undefined) messagesAfterPersist = [...messagesAfterPersist, ack]
    if (hasVote && messages.length > 0) {
      // They speak in a term that we must not forget.
      messagesAfterPersist = [...messages, ...messagesAfterPersist]
      messages = nothing
    }

    let entries: readonly Entry[] = nothing
    const truncateAfter = hasTruncation ? core.truncateAfterIndex : undefined
    if (hasTruncation) core.truncateAfterIndex = undefined
    if (hasEntries) entries = core.handToPersist(core.log.lastIndex)
    let committed: readonly Entry[] = nothing
    if (hasCommitted) {
      committed = core.log.take({
        first: core.lastHandedToApply + 1,
        last: core.commitIndex,
        entriesMax: Infinity,
        bytesMax: core.options.committedBytesMax,
      })
      core.lastHandedToApply += committed.length
    }
    let reads: Ready['reads'] = nothing
    if (core.reads.length > 0) {
      reads = core.reads
      core.reads = []
    }
    let outcomes: Ready['outcomes'] = nothing
    if (core.outcomes.length > 0) {
      outcomes = core.outcomes
      core.outcomes = []
    }
    if (hasSnapshot) installing.isHandedOut = true
    core.isVoteDirty = false
    const ready: { -readonly [Key in keyof Ready]: Ready[Key] } = {
      entries,
      messages,
      messagesAfterPersist,
      committed,
      reads,
      outcomes,
    }
    if (hasVote) ready.vote = { term: core.term, votedFor: core.votedFor }
    if (hasSnapshot) ready.snapshot = installing.snapshot
    if (truncateAfter !== undefined) ready.truncateAfter = truncateAfter
    return ready
  }

  get state(): RaftState {
    return this.#core.state
  }
  get term(): Term {
    return this.#core.term
  }

  /** `undefined` while unknown, and while leadership is being transferred. */
  get leader(): { id: ServerId; address: string } | undefined {
    const core = this.#core
    if (core.state !== 'leader') return core.leader && { id: core.leader.id, address: core.leader.address }
    if (this.isTransferring) return undefined
    const self =
      findServer(core.configuration, this.id) ??
      findServer(core.configurations.at(core.commitIndex).configuration, this.id)
    return self && { id: self.id, address: self.address }
  }

  get commitIndex(): Index {
    return this.#core.commitIndex
  }
  get lastIndex(): Index {
    return this.#core.log.lastIndex
  }
  /** The oldest entry in memory. */
  get firstIndex(): Index {
    return this.#core.log.firstIndex
  }
  get lastApplied(): Index {
    return this.#core.lastApplied
  }
  get lastPersisted(): Index {
    return this.#core.lastPersisted
  }
  /** The newest in the log, committed or not. */
  get configuration(): Configuration {
    return this.#core.configurations.newest.configuration
  }
  get committedConfiguration(): IndexedConfiguration {
    return this.#core.configurations.at(this.#core.commitIndex)
  }
  /** The configuration that belongs to a snapshot of the state at `index`, at least that of the newest snapshot. */
  configurationAt(index: Index): IndexedConfiguration {
    return this.#core.configurations.at(index)
  }
  get isTransferring(): boolean {
    return this.#core.leadership?.transfer !== undefined
  }
  /** A leader whose term has begun in the log: everything committed before it is known (dissertation §6.4). */
  get hasCommittedInTerm(): boolean {
    return hasCommittedInTerm(this.#core)
  }
  /** The snapshot that is to replace log and state machine: accepted, and neither installed nor failed yet. */
  get installingSnapshot(): SnapshotDescription | undefined {
    return this.#core.installing?.snapshot
  }
  /** A message contradicted what is committed here: a peer of another cluster, or one that lost its disk. */
  get conflictIndex(): Index | undefined {
    return this.#core.conflictIndex
  }
  /** Command bytes in memory. */
  get cachedBytes(): number {
    return this.#core.log.cachedBytes
  }

  termAt(index: Index): Term | undefined {
    return this.#core.log.termAt(index)
  }

  /** Leader: what is known of every other server; else empty. */
  progress(): readonly {
    readonly id: ServerId
    readonly matchIndex: Index
    readonly nextIndex: Index
    readonly state: 'probe' | 'replicate' | 'snapshot'
    readonly features: number
  }[] {
    return [...(this.#core.leadership?.others.values() ?? [])].map(
      ({ id, matchIndex, nextIndex, state, features }) => ({ id, matchIndex, nextIndex, state, features }),
    )
  }
}

/**
 * raft-wire §6.3: the only voter leads at once, in the current term, and all it has stored is committed. Unless the
 * term may have another leader, which may not know yet that it is over: two of them would write one term. That is a
 * server we voted for, or who made in this very term the change that left us alone. Term 1 belongs to the server that
 * bootstrapped the cluster.
 */
function leadAlone(core: Core): void {
  const { configurations, id, term, votedFor } = core
  const bootstrap = configurations.at(1).configuration
  const madeIn = core.log.termAt(configurations.newest.index) ?? core.snapshot?.last.term ?? term
  const isOurs = madeIn < term || (term === 1 && isOnlyVoter(bootstrap, id))
  if (isOurs && (votedFor === undefined || votedFor === id)) becomeLeader(core, { isStart: true })
  else campaign(core)
}

function tick(core: Core): void {
  core.ticksSinceStart++
  switch (core.state) {
    case 'follower':
      tickFollower(core)
      break
    case 'candidate':
      tickCandidate(core)
      break
    case 'leader':
      tickLeader(core)
      break
  }
}

function receive(core: Core, from: Peer, message: Message): void {
  if (from.id === core.id || from.id === 0n) return
  switch (message.type) {
    case 'requestVote':
      handleRequestVote(core, from, message)
      break
    case 'requestVoteResult':
      handleRequestVoteResult(core, from, message)
      break
    case 'appendEntries':
      handleAppendEntries(core, from, message)
      break
    case 'appendEntriesResult':
      handleAppendEntriesResult(core, from, message)
      break
    case 'installSnapshot':
      handleInstallSnapshot(core, from, message)
      break
    case 'timeoutNow':
      handleTimeoutNow(core, from, message)
      break
  }
}

function applied(core: Core, index: Index): void {
  assert(index <= core.lastHandedToApply, 'applied what was not handed out')
  if (index <= core.lastApplied) return
  core.lastApplied = index
  core.evict()
}

function snapshotTaken(core: Core, snapshot: SnapshotDescription, trailing: number): void {
  const { last } = snapshot
  assert(last.index <= core.lastApplied, 'a snapshot of what is not applied')
  if (core.snapshot !== undefined && last.index <= core.snapshot.last.index) return
  core.snapshot = snapshot
  // Nothing that the disk has yet to write may go.
  core.log.trim(last, Math.min(last.index - trailing, core.lastPersisted))
  core.configurations.trim(last.index)
}

function acknowledgement(core: Core, to: Peer, lastLogIndex: Index): Envelope {
  return {
    to: to.id,
    address: to.address,
    message: {
      type: 'appendEntriesResult',
      term: core.term,
      rejected: 0,
      lastLogIndex,
      features: core.features,
    },
  }
}
