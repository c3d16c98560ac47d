/**
 * A follower: believes one leader at a time, makes its log like the leader's, and promises only what its disk holds.
 * Does not campaign (candidate.ts) beyond noticing that it is time to.
 */
import assert from 'node:assert/strict'
import { campaign, isOwnLogPersisted } from './candidate.js'
import { isVoter } from './configuration.js'
import { endLeadership } from './leader.js'
import type { Core, Peer } from './core.js'
import type { AppendEntries, EntryId, Index, InstallSnapshot, Term, TimeoutNow } from './types.js'

/** Ends whatever this server was. `term` at or above ours. */
export function becomeFollower(core: Core, term: Term): void {
  assert(term >= core.term)
  if (core.state === 'leader') endLeadership(core)
  core.campaign = undefined
  core.leader = undefined
  core.state = 'follower'
  if (term > core.term) core.adoptTerm(term)
  core.resetElectionTimer()
  core.refreshConfiguration()
}

/** Dissertation §3.4: who hears nothing from a leader for an election timeout asks to become one. */
export function tickFollower(core: Core): void {
  core.electionElapsedTicks++
  if (core.electionElapsedTicks < core.electionTimeoutTicks) return
  if (!core.canCampaign) {
    // Non-voters wait (raft-wire §6.3), and stop naming a leader that has gone silent.
    core.leader = undefined
    core.resetElectionTimer()
  } else if (core.installing !== undefined) core.resetElectionTimer()
  // A write under way: we would ask for votes with less than we are about to have. The next tick looks again.
  else if (isOwnLogPersisted(core)) campaign(core)
}

// ------------------------------------------------------------------------------------------------ AppendEntries

/** raft-wire §6.5, dissertation §3.5. */
export function handleAppendEntries(core: Core, from: Peer, message: AppendEntries): void {
  const { prev, entries } = message
  if (message.term < core.term) {
    // Never 0, which is success: the sender may lead our term by now.
    rejectAppend(core, from, Math.max(1, prev.index), core.log.lastIndex)
    return
  }
  if (!follow(core, from, message.term)) return
  // A snapshot is replacing the log: nothing can be added to it now (raft-wire §6.5). Heartbeats are answered.
  if (core.installing !== undefined && entries.length > 0) return

  const covered = prev.index + entries.length
  if (entries.length > 0 && (entries[0]!.index !== prev.index + 1 || entries.at(-1)!.index !== covered)) return
  const { log } = core

  if (prev.index > log.lastIndex) {
    rejectAppend(core, from, prev.index, log.lastIndex)
    return
  }
  // What is committed here is equal on every leader (dissertation §3.6.3): no need to compare, and it may be compacted.
  if (prev.index > core.commitIndex && log.termAt(prev.index) !== prev.term) {
    // Nothing above the last entry of at most this term can match: spare the leader the steps in between.
    const hint = log.lastIndexWithTermUpTo(prev.term, core.commitIndex, prev.index - 1)
    rejectAppend(core, from, prev.index, hint)
    return
  }
  if (prev.index > 0 && prev.index <= core.commitIndex && (log.termAt(prev.index) ?? prev.term) !== prev.term) {
    core.conflictIndex = prev.index
    return
  }

  // Dissertation §3.5: only a conflict truncates. A late message that covers less than we have must not.
  let position = 0
  for (; position < entries.length; position++) {
    const entry = entries[position]!
    if (entry.index > log.lastIndex) break
    const term = log.termAt(entry.index)
    if (term === entry.term || (term === undefined && entry.index < log.firstIndex)) continue
    if (entry.index <= core.commitIndex) {
      core.conflictIndex = entry.index
      return
    }
    core.truncateAfter(entry.index - 1)
    break
  }
  if (position < entries.length) {
    if (!core.hasRoomForEntries) return
    for (; position < entries.length; position++) core.append(entries[position]!)
  }

  // Not min(commitIndex, lastIndex): beyond `covered` our entries may be a stale tail.
  if (core.installing === undefined) {
    core.knownCommitIndex = Math.max(core.knownCommitIndex, Math.min(message.commitIndex, covered))
    commitPersisted(core)
  }
  // A heartbeat is answered at once, whatever the disk does: the leader is to know that we are alive.
  if (entries.length === 0) acceptAppend(core, from, Math.min(covered, core.lastPersisted))
  else acceptOncePersisted(core, from, covered)
}

/** raft-wire §6.5: success says that the disk holds it. One answer serves all that became durable together. */
function acceptOncePersisted(core: Core, to: Peer, covered: Index): void {
  if (covered <= core.lastPersisted) acceptAppend(core, to, covered)
  else if (core.owedAck?.to.id === to.id && core.owedAck.to.address === to.address)
    core.owedAck.index = Math.max(core.owedAck.index, covered)
  else core.owedAck = { to, index: covered }
}

/** Hears a leader of `term`, at least ours. False: it cannot be one. */
function follow(core: Core, from: Peer, term: Term): boolean {
  // Two leaders of one term cannot be (dissertation §3.4, election safety): not a peer of ours speaks.
  if (term === core.term && core.state === 'leader') return false
  if (term > core.term || core.state !== 'follower') becomeFollower(core, term)
  if (core.leader?.id !== from.id || core.leader.address !== from.address) core.leader = from
  core.electionElapsedTicks = 0
  return true
}

/** A follower applies what is committed once its own disk has it (raft-wire §6.5). */
export function commitPersisted(core: Core): void {
  const index = Math.min(core.knownCommitIndex, core.lastPersisted)
  if (index > core.commitIndex) core.commitIndex = index
}

export function acceptAppend(core: Core, to: Peer, lastLogIndex: Index): void {
  core.send(to, {
    type: 'appendEntriesResult',
    term: core.term,
    rejected: 0,
    lastLogIndex,
    features: core.features,
  })
}

export function rejectAppend(core: Core, to: Peer, rejected: Index, lastLogIndex: Index): void {
  core.send(to, {
    type: 'appendEntriesResult',
    term: core.term,
    rejected,
    lastLogIndex,
    features: core.features,
  })
}

/** Our disk lost what we were about to acknowledge: the leader is to send it again (raft-wire §6.5). */
export function followerPersistFailed(core: Core, first: Index): void {
  core.persistFailed(first)
  if (core.state === 'follower' && core.leader !== undefined) rejectAppend(core, core.leader, first, core.lastPersisted)
}

// ------------------------------------------------------------------------------------------------ snapshots

/** raft-wire §6.6, dissertation §5.1. The reply comes when the snapshot is installed, or at once when it is not needed. */
export function handleInstallSnapshot(core: Core, from: Peer, message: InstallSnapshot): void {
  const { snapshot } = message
  const { last } = snapshot
  if (message.term < core.term) {
    rejectAppend(core, from, last.index, core.log.lastIndex)
    return
  }
  if (!follow(core, from, message.term)) return
  if (core.installing !== undefined) return
  if (last.index <= core.commitIndex || core.log.termAt(last.index) === last.term) {
    // Ours already: everything up to it is equal (dissertation §3.5). Acknowledged as far as our disk has it.
    core.knownCommitIndex = Math.max(core.knownCommitIndex, last.index)
    commitPersisted(core)
    acceptOncePersisted(core, from, last.index)
    return
  }
  core.installing = { snapshot, isHandedOut: false }
}

export function snapshotInstalled(core: Core, last: EntryId): void {
  const { installing } = core
  if (installing?.isHandedOut !== true || !isSame(installing.snapshot.last, last)) return
  core.installed(installing.snapshot)
  core.electionElapsedTicks = 0
  if (core.leader !== undefined) acceptAppend(core, core.leader, last.index)
}

export function snapshotFailed(core: Core, last: EntryId): void {
  const { installing } = core
  if (installing === undefined || !isSame(installing.snapshot.last, last)) return
  core.installing = undefined
  if (core.leader !== undefined) rejectAppend(core, core.leader, last.index, core.log.lastIndex)
}

function isSame(one: EntryId, other: EntryId): boolean {
  return one.index === other.index && one.term === other.term
}

// ------------------------------------------------------------------------------------------------ TimeoutNow

/** raft-wire §6.8, dissertation §3.10: our leader asks us to take over, now. */
export function handleTimeoutNow(core: Core, from: Peer, message: TimeoutNow): void {
  if (core.state !== 'follower' || core.leader?.id !== from.id) return
  if (message.term !== core.term) return
  if (!isVoter(core.configuration, core.id) || core.installing !== undefined) return
  if (message.last.index !== core.log.lastIndex || message.last.term !== core.log.lastTerm) return
  if (!isOwnLogPersisted(core)) return
  campaign(core, { isTransfer: true })
}
