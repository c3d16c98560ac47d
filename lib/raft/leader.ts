/**
 * A leader: appends, replicates to every server in its own pace, commits, changes the configuration, hands over, and
 * steps down when it cannot hear a majority. Messages are made when the Ready is taken, so that whatever a turn
 * brought leaves in one message per follower.
 *
 * The commit index has no message of its own: it rides on the next entries or heartbeat, at most `heartbeatTicks`
 * later, as with C leaders (raft-wire §6.4).
 */
import assert from 'node:assert/strict'
import {
  configurationByteLength,
  findServer,
  isOnlyVoter,
  isVoter,
  majorityOf,
  voterCount,
  withRole,
  withServer,
  withoutServer,
} from './configuration.js'
import { featureVoteSilence, type Core, type Peer } from './core.js'
import { becomeFollower } from './follower.js'
import { Progress } from './progress.js'
import type {
  AppendEntriesResult,
  Configuration,
  ConfigurationChange,
  Entry,
  EntryId,
  Index,
  Proposal,
  Refusal,
  Role,
  ServerId,
} from './types.js'

/** Reads that wait for their round; one more is refused with 'pipelineFull'. */
const readsPendingMax = 65_536

/**
 * Results do not say to which message they belong. Where that matters we ask by an AppendEntries about an entry that
 * cannot exist: a follower, C or ours, refuses it and echoes the index in `rejected` (raft-wire §6.5): an answer with a
 * number on it, which nothing sent before can imitate. Numbered within a term; below 2^53, far above any log.
 */
const questionBase: Index = 2 ** 52

interface Promotion {
  readonly request: number
  readonly id: ServerId
  round: number
  targetIndex: Index
  ticks: number
}

interface Transfer {
  readonly request: number
  readonly to: ServerId
  isAsked: boolean
  ticks: number
}

interface Reads {
  waiting: number[]
  confirming: number[]
  /** The commit index when the running round began. */
  index: Index
  question: number
  ticksInRound: number
  isSendDue: boolean
}

export class Leadership {
  /** Every other server of the configuration, spares too. */
  readonly others = new Map<ServerId, Progress>()
  /** Once this is committed, everything before our term is (dissertation §3.6.2). */
  termStartIndex: Index = 0
  uncommittedBytes = 0
  /** The number of the last question. */
  question = 0
  ticksSinceQuorumCheck = 0
  /** A message may be due to somebody. */
  isSendDue = true
  /** The uncommitted configuration entry that a request waits for. */
  change: { readonly request: number; readonly index: Index } | undefined
  promotion: Promotion | undefined
  transfer: Transfer | undefined
  readonly reads: Reads = { waiting: [], confirming: [], index: 0, question: 0, ticksInRound: 0, isSendDue: false }
  readonly matches: Index[] = []

  /** Dissertation §4.1: a leader uses a configuration as soon as it is in its log. */
  onConfiguration(core: Core): void {
    const { servers } = core.configuration
    for (const id of this.others.keys()) if (!servers.some((server) => server.id === id)) this.others.delete(id)
    for (const { id, address } of servers) {
      if (id === core.id) continue
      const progress = this.others.get(id)
      if (progress === undefined) this.others.set(id, new Progress(id, address, core.log.lastIndex + 1))
      else progress.address = address
    }
    this.isSendDue = true
  }
}

function leadershipOf(core: Core): Leadership {
  assert(core.leadership !== undefined)
  return core.leadership
}

// ------------------------------------------------------------------------------------------------ coming and going

/**
 * Dissertation §3.4, §6.4: a new leader appends an entry of its term at once, so that what came before can commit. The
 * only voter at start is the exception (raft-wire §6.3): nobody else could have led in its term, all it has stored is
 * committed, and nothing is appended.
 */
export function becomeLeader(core: Core, { isStart = false } = {}): void {
  assert(core.state !== 'leader')
  core.state = 'leader'
  core.campaign = undefined
  core.leader = undefined
  core.electionElapsedTicks = 0
  const leadership = new Leadership()
  core.leadership = leadership
  core.configuration = core.configurations.newest.configuration
  leadership.onConfiguration(core)
  for (let index = core.commitIndex + 1; index <= core.log.lastIndex; index++)
    leadership.uncommittedBytes += core.log.at(index).byteLength
  if (isStart) {
    leadership.termStartIndex = core.log.lastIndex
    commitTo(core, core.log.lastIndex)
  } else {
    leadership.termStartIndex = core.log.lastIndex + 1
    appendEntry(core, { type: 'barrier' })
  }
}

/** Only becomeFollower calls it. Pending reads vanish: the host sees the state change. */
export function endLeadership(core: Core): void {
  const { change, promotion, transfer } = leadershipOf(core)
  if (change !== undefined) core.outcomes.push({ request: change.request, result: 'leadershipLost' })
  if (promotion !== undefined) core.outcomes.push({ request: promotion.request, result: 'leadershipLost' })
  if (transfer !== undefined) core.outcomes.push({ request: transfer.request, result: 'done' })
  core.leadership = undefined
}

export function leaderPersistFailed(core: Core, first: Index): void {
  becomeFollower(core, core.term)
  core.persistFailed(first)
}

export function tickLeader(core: Core): void {
  const leadership = leadershipOf(core)
  const { heartbeatTicks, installSnapshotTimeoutTicks, electionTimeoutTicks } = core.options

  leadership.ticksSinceQuorumCheck++
  if (leadership.ticksSinceQuorumCheck >= electionTimeoutTicks) {
    leadership.ticksSinceQuorumCheck = 0
    if (!hearsQuorum(core, leadership)) {
      // raft-wire §6.3, dissertation §6.2: clients should not wait for a leader that cannot commit.
      becomeFollower(core, core.term)
      return
    }
  }

  for (const progress of leadership.others.values()) {
    progress.ticksSinceSend++
    if (progress.ticksSinceSend >= heartbeatTicks) {
      progress.isHeartbeatDue = true
      leadership.isSendDue = true
    }
    if (progress.state !== 'snapshot') continue
    progress.ticksInSnapshot++
    if (progress.ticksInSnapshot >= installSnapshotTimeoutTicks) progress.becomeProbe()
  }

  const { reads } = leadership
  if (reads.confirming.length > 0 && ++reads.ticksInRound % heartbeatTicks === 0) {
    reads.isSendDue = true
    leadership.isSendDue = true
  }

  tickPromotion(core, leadership)
  tickTransfer(core, leadership)
}

/** Counts and clears who has been heard since the last check. */
function hearsQuorum(core: Core, leadership: Leadership): boolean {
  let heard = 0
  for (const { id, role } of core.configuration.servers)
    if (role === 'voter' && (id === core.id || leadership.others.get(id)?.isActive === true)) heard++
  for (const progress of leadership.others.values()) progress.isActive = false
  return heard >= majorityOf(voterCount(core.configuration))
}

// ------------------------------------------------------------------------------------------------ proposals

export function propose(core: Core, proposals: readonly Proposal[]): Refusal | undefined {
  const leadership = core.leadership
  if (leadership === undefined || leadership.transfer !== undefined) return 'notLeader'
  const { pipelineEntriesMax, pipelineBytesMax } = core.options
  const isFull =
    core.log.lastIndex - core.commitIndex >= pipelineEntriesMax || leadership.uncommittedBytes >= pipelineBytesMax
  if (isFull && proposals.some(({ type }) => type === 'command')) return 'pipelineFull'
  for (const proposal of proposals) appendEntry(core, proposal)
  return undefined
}

function appendEntry(
  core: Core,
  content: Proposal | { readonly type: 'configuration'; readonly configuration: Configuration },
): void {
  const leadership = leadershipOf(core)
  const index = core.log.lastIndex + 1
  const { term } = core
  let entry: Entry
  switch (content.type) {
    case 'command': {
      const { data } = content
      // raft-wire §2.3: a C member that receives anything else is lost.
      assert(data.byteLength % 8 === 0, 'a command is a whole number of words')
      entry = { type: 'command', index, term, byteLength: data.byteLength, data }
      break
    }
    case 'barrier':
      entry = { type: 'barrier', index, term, byteLength: 8 }
      break
    case 'configuration': {
      const { configuration } = content
      entry = { type: 'configuration', index, term, byteLength: configurationByteLength(configuration), configuration }
      break
    }
  }
  leadership.uncommittedBytes += entry.byteLength
  leadership.isSendDue = true
  core.append(entry)
}

// ------------------------------------------------------------------------------------------------ commit

/** Our own disk counts like any other, and is not waited for (dissertation §10.2.1). */
export function leaderPersisted(core: Core): void {
  const leadership = leadershipOf(core)
  // A lone voter sends only what it has stored.
  leadership.isSendDue = true
  advanceCommit(core, leadership)
}

/** Dissertation §3.6.2: a majority of voters has it, and it is of our term. */
function advanceCommit(core: Core, leadership: Leadership): void {
  const { matches } = leadership
  matches.length = 0
  for (const { id, role } of core.configuration.servers) {
    if (role !== 'voter') continue
    const match = id === core.id ? core.lastPersisted : (leadership.others.get(id)?.matchIndex ?? 0)
    // Sorted from the highest down, by insertion: few.
    let position = matches.length
    matches.push(match)
    for (; position > 0 && matches[position - 1]! < match; position--) matches[position] = matches[position - 1]!
    matches[position] = match
  }
  const index = matches[majorityOf(matches.length) - 1] ?? 0
  if (index > core.commitIndex && core.log.termAt(index) === core.term) commitTo(core, index)
}

function commitTo(core: Core, index: Index): void {
  const leadership = leadershipOf(core)
  const before = core.commitIndex
  for (let committed = before + 1; committed <= index; committed++)
    leadership.uncommittedBytes -= core.log.at(committed).byteLength
  core.commitIndex = index
  // Reads that waited for an entry of our term may begin their round.
  if (leadership.reads.waiting.length > 0) leadership.isSendDue = true

  const newest = core.configurations.at(index)
  if (newest.index <= before) return
  if (leadership.change !== undefined && leadership.change.index <= index) {
    core.outcomes.push({ request: leadership.change.request, result: 'done' })
    leadership.change = undefined
  }
  // raft-wire §6.7, dissertation §4.2.2: who is no voter any more leads until that is committed, and no longer.
  if (!isVoter(newest.configuration, core.id)) abdicate(core, leadership)
}

/** Steps down, and asks the voter that is furthest to take over rather than leave the cluster to a timeout. */
function abdicate(core: Core, leadership: Leadership): void {
  const heir = furthestVoter(core, leadership)
  if (heir !== undefined && heir.matchIndex === core.log.lastIndex) askToTakeOver(core, heir)
  becomeFollower(core, core.term)
}

// ------------------------------------------------------------------------------------------------ replication

/** Makes the messages that are due. Called when a Ready is taken. */
export function replicate(core: Core): void {
  const leadership = leadershipOf(core)
  if (!leadership.isSendDue) return
  leadership.isSendDue = false
  // A lone voter that restarts leads again in the same term (raft-wire §6.3): what leaves must be what it will find.
  // Alone by the newest configuration or by the one on disk. This delays hardly a commit: most need the same disk.
  const isAlone =
    isOnlyVoter(core.configuration, core.id) ||
    isOnlyVoter(core.configurations.at(core.lastPersisted).configuration, core.id)
  const limit = isAlone ? core.lastPersisted : core.log.lastIndex
  for (const { id, role } of core.configuration.servers) {
    if (id === core.id || (role === 'spare' && leadership.promotion?.id !== id)) continue
    replicateTo(core, leadership, leadership.others.get(id)!, limit)
  }
  confirmReads(core, leadership)
  const { transfer } = leadership
  if (transfer === undefined || transfer.isAsked) return
  const target = leadership.others.get(transfer.to)
  if (target === undefined || target.matchIndex !== core.log.lastIndex) return
  transfer.isAsked = true
  askToTakeOver(core, target)
}

function replicateTo(core: Core, leadership: Leadership, progress: Progress, limit: Index): void {
  const { log } = core
  if (
    progress.state !== 'snapshot' &&
    (progress.nextIndex < log.firstIndex || log.termAt(progress.nextIndex - 1) === undefined)
  )
    sendSnapshot(core, progress)
  switch (progress.state) {
    case 'probe':
      if (log.termAt(progress.nextIndex - 1) === undefined || progress.nextIndex < log.firstIndex) {
        // Compacted, and nothing heard from it: a heartbeat that it will refuse tells us that it is there.
        if (progress.isHeartbeatDue || !progress.isProbing) sendAppend(core, leadership, progress, limit, limit)
        progress.isProbing = true
      } else if (!progress.isProbing || progress.isHeartbeatDue) {
        // What it does not answer need not carry entries again and again.
        const withEntries = progress.unansweredProbes === 0
        const { nextIndex } = progress
        progress.probedIndex = sendAppend(
          core,
          leadership,
          progress,
          nextIndex - 1,
          withEntries ? limit : nextIndex - 1,
        )
        progress.unansweredProbes++
        progress.isProbing = true
      }
      break
    case 'replicate':
      while (progress.nextIndex <= limit && progress.hasRoom(core.options.inflightAppendsMax))
        progress.sent(sendAppend(core, leadership, progress, progress.nextIndex - 1, limit))
      if (progress.isHeartbeatDue) {
        if (answersMissing(progress) > 0) askWhere(core, leadership, progress)
        sendAppend(core, leadership, progress, progress.nextIndex - 1, progress.nextIndex - 1)
      }
      break
    case 'snapshot':
      if (progress.isHeartbeatDue) sendAppend(core, leadership, progress, limit, limit)
      break
  }
}

/** Sends what fits of the entries after `prevIndex` up to `limit`, or a heartbeat. Returns the last index it covers. */
function sendAppend(core: Core, leadership: Leadership, progress: Progress, prevIndex: Index, limit: Index): Index {
  const prevTerm = core.log.termAt(prevIndex)
  assert(prevTerm !== undefined)
  const entries =
    prevIndex >= limit
      ? noEntries
      : core.log.take({
          first: prevIndex + 1,
          last: limit,
          entriesMax: core.options.appendEntriesMax,
          bytesMax: core.options.appendBytesMax,
        })
  core.send(progress, {
    type: 'appendEntries',
    term: core.term,
    prev: { index: prevIndex, term: prevTerm },
    commitIndex: core.commitIndex,
    entries,
  })
  progress.ticksSinceSend = 0
  progress.isHeartbeatDue = false
  const covered = prevIndex + entries.length
  if (covered > progress.sentIndex) progress.sentIndex = covered
  if (covered < leadership.termStartIndex) progress.shortAppendsSent++
  return covered
}

const noEntries: readonly Entry[] = []

/** raft-wire §6.4: only to one that has been heard lately. */
function sendSnapshot(core: Core, progress: Progress): void {
  const { snapshot } = core
  assert(snapshot !== undefined, 'entries are missing and no snapshot has them')
  if (!progress.isActive || progress.unansweredProbes > 0) {
    if (progress.state !== 'probe') progress.becomeProbe()
    return
  }
  progress.becomeSnapshot(snapshot.last.index)
  progress.ticksSinceSend = 0
  progress.isHeartbeatDue = false
  progress.sentIndex = Math.max(progress.sentIndex, snapshot.last.index)
  // Its success proves nothing about a tail: the follower may have had it all.
  progress.shortAppendsSent++
  core.send(progress, { type: 'installSnapshot', term: core.term, snapshot })
}

/** The transport could not send: go back to what is known. */
export function leaderUnreachable(core: Core, to: ServerId): void {
  const progress = core.leadership?.others.get(to)
  if (progress === undefined) return
  progress.becomeProbe()
  // The next probe waits for the heartbeat (raft-wire §6.4), and carries no entries.
  progress.isProbing = true
  progress.unansweredProbes = Math.max(1, progress.unansweredProbes)
}

/** raft-wire §6.4, "AppendEntriesResult handling". */
export function handleAppendEntriesResult(core: Core, from: Peer, message: AppendEntriesResult): void {
  if (message.term > core.term) {
    becomeFollower(core, message.term)
    return
  }
  const leadership = core.leadership
  const progress = leadership?.others.get(from.id)
  if (leadership === undefined || progress === undefined || message.term < core.term) return
  progress.isActive = true
  progress.unansweredProbes = 0
  progress.features = message.features
  if (message.rejected > questionBase) onQuestionAnswered(core, leadership, progress, message.rejected - questionBase)
  else if (message.rejected !== 0) onRejection(leadership, progress, message)
  else onSuccess(core, leadership, progress, message)
}

function onRejection(leadership: Leadership, progress: Progress, message: AppendEntriesResult): void {
  const { rejected, lastLogIndex } = message
  leadership.isSendDue = true
  switch (progress.state) {
    case 'snapshot':
      if (rejected !== progress.snapshotIndex) return
      progress.becomeProbe()
      // The next attempt waits for the answer to a heartbeat.
      progress.isProbing = true
      progress.unansweredProbes = 1
      return
    case 'replicate':
      // Late news, unless it has lost what it once had, or we believed too much: then the probe finds out.
      if (isBelieved(progress)) {
        if (rejected < progress.matchIndex) return
        if (rejected === progress.matchIndex && lastLogIndex >= progress.matchIndex) return
      }
      progress.becomeProbe()
      progress.narrow()
      return
    case 'probe':
      if (rejected !== progress.nextIndex - 1) return
      progress.backTo(Math.max(1, Math.min(rejected, lastLogIndex + 1)))
      if (progress.matchIndex < leadership.termStartIndex) progress.holdsBarrier = false
      return
  }
}

/**
 * A C member answers with all that it has stored, a stale tail included (raft-wire §6.4, safety remark). Our barrier cuts
 * such a tail, so once it is known to hold the barrier its word is good. Before, its word moves only what cannot commit
 * anything: its own match, up to what is committed or below the barrier.
 */
function isBelieved(progress: Progress): boolean {
  return (progress.features & featureVoteSilence) !== 0 || progress.holdsBarrier
}

/** How many answers are missing until one must be to a message that had the barrier: more than messages that had not. */
function answersMissing(progress: Progress): number {
  return isBelieved(progress) ? 0 : progress.shortAppendsSent + 1 - progress.successesReceived
}

/** What of a success can be relied on. */
function reliableIndex(core: Core, leadership: Leadership, progress: Progress, index: Index): Index {
  const { termStartIndex } = leadership
  if (index < termStartIndex) return index
  if (answersMissing(progress) > 0) return Math.min(index, Math.max(termStartIndex - 1, core.commitIndex))
  progress.holdsBarrier = true
  return index
}

/**
 * Messages and answers that were lost, while it was away say, would keep its word in doubt for as long. What we sent
 * before a question is answered, or lost, when the answer to the question is here: one connection keeps the order.
 */
function askWhere(core: Core, leadership: Leadership, progress: Progress): void {
  progress.doubt ??= { question: ++leadership.question, shortAppends: progress.shortAppendsSent }
  ask(core, progress, progress.doubt.question)
}

function ask(core: Core, progress: Progress, question: number): void {
  core.send(progress, {
    type: 'appendEntries',
    term: core.term,
    prev: { index: questionBase + question, term: core.term },
    commitIndex: core.commitIndex,
    entries: noEntries,
  })
}

function onQuestionAnswered(core: Core, leadership: Leadership, progress: Progress, question: number): void {
  if (question === progress.doubt?.question) {
    progress.shortAppendsSent -= progress.doubt.shortAppends
    progress.successesReceived = 0
    progress.doubt = undefined
  }
  if (question === leadership.reads.question) {
    progress.confirmedQuestion = question
    finishRound(core, leadership)
  }
}

function onSuccess(
  core: Core,
  leadership: Leadership,
  progress: Progress,
  { lastLogIndex }: AppendEntriesResult,
): void {
  progress.successesReceived++
  const claimed = Math.min(lastLogIndex, progress.sentIndex)
  const index = reliableIndex(core, leadership, progress, claimed)
  const isNews = index > progress.matchIndex
  switch (progress.state) {
    case 'probe':
      progress.matched(index)
      // Less is an answer to something older. Taking it for the probe's would begin a second conversation beside it.
      if (claimed < progress.probedIndex) break
      progress.becomeReplicate()
      leadership.isSendDue = true
      break
    case 'replicate':
      progress.matched(index)
      if (progress.nextIndex <= core.log.lastIndex) leadership.isSendDue = true
      break
    case 'snapshot':
      progress.matched(index)
      if (progress.matchIndex < progress.snapshotIndex) break
      progress.becomeReplicate()
      leadership.isSendDue = true
      break
  }
  if (!isNews) return
  if (leadership.promotion?.id === progress.id) advancePromotion(core, leadership, leadership.promotion, progress)
  if (leadership.transfer?.to === progress.id) leadership.isSendDue = true
  if (index > core.commitIndex) advanceCommit(core, leadership)
}

// ------------------------------------------------------------------------------------------------ reads

/** Dissertation §6.4. One round serves every read that arrived before it began. */
export function readIndex(core: Core, id: number): Refusal | undefined {
  const { leadership } = core
  if (leadership === undefined) return 'notLeader'
  const { reads } = leadership
  if (reads.waiting.length >= readsPendingMax) return 'pipelineFull'
  reads.waiting.push(id)
  leadership.isSendDue = true
  return undefined
}

export function hasCommittedInTerm(core: Core): boolean {
  return core.leadership !== undefined && core.commitIndex >= core.leadership.termStartIndex
}

function confirmReads(core: Core, leadership: Leadership): void {
  const { reads } = leadership
  if (reads.confirming.length === 0 && reads.waiting.length > 0 && hasCommittedInTerm(core)) {
    reads.confirming = reads.waiting
    reads.waiting = []
    reads.index = core.commitIndex
    reads.question = ++leadership.question
    reads.ticksInRound = 0
    reads.isSendDue = true
    finishRound(core, leadership)
  }
  if (!reads.isSendDue || reads.confirming.length === 0) return
  reads.isSendDue = false
  for (const { id, role } of core.configuration.servers) {
    const progress = leadership.others.get(id)
    if (role !== 'voter' || progress === undefined || progress.confirmedQuestion === reads.question) continue
    ask(core, progress, reads.question)
  }
}

/** Answers the reads of the running round if a majority has confirmed it. */
function finishRound(core: Core, leadership: Leadership): void {
  const { reads } = leadership
  if (reads.confirming.length === 0) return
  let confirmed = 0
  for (const { id, role } of core.configuration.servers)
    if (role === 'voter' && (id === core.id || leadership.others.get(id)?.confirmedQuestion === reads.question))
      confirmed++
  if (confirmed < majorityOf(voterCount(core.configuration))) return
  for (const id of reads.confirming) core.reads.push({ id, index: reads.index })
  reads.confirming = []
  if (reads.waiting.length > 0) leadership.isSendDue = true
}

// ------------------------------------------------------------------------------------------------ membership

/** raft-wire §6.7, dissertation §4.1: one server at a time. */
export function change(core: Core, request: number, { ...wish }: ConfigurationChange): Refusal | undefined {
  const { leadership } = core
  if (leadership === undefined || leadership.transfer !== undefined) return 'notLeader'
  // A leader that has committed nothing of its term may hold a change that a previous one has already replaced.
  const isBusy =
    core.configurations.newest.index > core.commitIndex ||
    leadership.promotion !== undefined ||
    !hasCommittedInTerm(core)
  if (isBusy) return 'changeInProgress'
  const { configuration } = core
  const server = findServer(configuration, wish.id)
  switch (wish.type) {
    case 'add':
      if (server !== undefined) return 'duplicateId'
      if (configuration.servers.some(({ address }) => address === wish.address)) return 'duplicateAddress'
      appendConfiguration(core, leadership, request, withServer(configuration, wish.id, wish.address))
      return undefined
    case 'remove':
      if (server === undefined) return 'unknownId'
      // Nobody could commit, nor ever change it back.
      if (isOnlyVoter(configuration, wish.id)) return 'badTarget'
      appendConfiguration(core, leadership, request, withoutServer(configuration, wish.id))
      return undefined
    case 'assign':
      if (server === undefined) return 'unknownId'
      if (server.role === wish.role || isOnlyVoter(configuration, wish.id)) return 'badRole'
      assign(core, leadership, request, wish.id, wish.role)
      return undefined
  }
}

function assign(core: Core, leadership: Leadership, request: number, id: ServerId, role: Role): void {
  const { lastIndex } = core.log
  const progress = leadership.others.get(id)
  if (role !== 'voter' || progress === undefined || progress.matchIndex === lastIndex) {
    appendConfiguration(core, leadership, request, withRole(core.configuration, id, role))
    return
  }
  // Dissertation §4.2.1: a new voter that is far behind would stop commits.
  leadership.promotion = { request, id, round: 1, targetIndex: lastIndex, ticks: 0 }
  leadership.isSendDue = true
}

function appendConfiguration(core: Core, leadership: Leadership, request: number, configuration: Configuration): void {
  leadership.change = { request, index: core.log.lastIndex + 1 }
  appendEntry(core, { type: 'configuration', configuration })
  // A smaller majority may have what it needs already, except for the new entry itself.
  advanceCommit(core, leadership)
  // So may a round of reads have.
  finishRound(core, leadership)
}

/** Its match has moved: has it caught up, or does another round begin? */
function advancePromotion(core: Core, leadership: Leadership, promotion: Promotion, progress: Progress): void {
  if (progress.matchIndex < promotion.targetIndex) return
  const { lastIndex } = core.log
  const isFast = promotion.ticks < core.options.electionTimeoutTicks
  // A transfer hands over the log as it is: the change waits.
  if ((progress.matchIndex === lastIndex || isFast) && leadership.transfer === undefined) {
    leadership.promotion = undefined
    appendConfiguration(core, leadership, promotion.request, withRole(core.configuration, promotion.id, 'voter'))
    return
  }
  promotion.round++
  promotion.targetIndex = lastIndex
  promotion.ticks = 0
}

function tickPromotion(core: Core, leadership: Leadership): void {
  const { promotion } = leadership
  if (promotion === undefined) return
  const { maxCatchUpRounds, catchUpRoundTimeoutTicks, electionTimeoutTicks } = core.options
  promotion.ticks++
  const isLastRoundSlow = promotion.round >= maxCatchUpRounds && promotion.ticks > electionTimeoutTicks
  if (!isLastRoundSlow && promotion.ticks <= catchUpRoundTimeoutTicks) return
  leadership.promotion = undefined
  core.outcomes.push({ request: promotion.request, result: 'noConnection' })
}

// ------------------------------------------------------------------------------------------------ transfer

/** raft-wire §6.8, dissertation §3.10. While it runs nothing is appended, so that the target can have it all. */
export function transfer(core: Core, request: number, to: ServerId | undefined): Refusal | undefined {
  const { leadership } = core
  if (leadership === undefined || leadership.transfer !== undefined) return 'notLeader'
  const target = to ?? furthestVoter(core, leadership)?.id
  if (target === undefined) return 'noTarget'
  if (target === core.id || !isVoter(core.configuration, target)) return 'badTarget'
  leadership.transfer = { request, to: target, isAsked: false, ticks: 0 }
  leadership.isSendDue = true
  return undefined
}

function tickTransfer(core: Core, leadership: Leadership): void {
  const { transfer } = leadership
  if (transfer === undefined || ++transfer.ticks < core.options.electionTimeoutTicks) return
  leadership.transfer = undefined
  core.outcomes.push({ request: transfer.request, result: 'timedOut' })
  // A promotion that caught up meanwhile was not allowed to append.
  const { promotion } = leadership
  const promoted = promotion && leadership.others.get(promotion.id)
  if (promotion !== undefined && promoted !== undefined) advancePromotion(core, leadership, promotion, promoted)
}

/** Prefers one that has been heard, then the one that has most. */
function furthestVoter(core: Core, leadership: Leadership): Progress | undefined {
  let best: Progress | undefined
  for (const { id, role } of core.configuration.servers) {
    const progress = leadership.others.get(id)
    if (role !== 'voter' || progress === undefined) continue
    const isBetter =
      best === undefined ||
      progress.matchIndex > best.matchIndex ||
      (progress.matchIndex === best.matchIndex && progress.isActive && !best.isActive)
    if (isBetter) best = progress
  }
  return best
}

function askToTakeOver(core: Core, target: Progress): void {
  const last: EntryId = { index: core.log.lastIndex, term: core.log.lastTerm }
  core.send(target, { type: 'timeoutNow', term: core.term, last })
}
