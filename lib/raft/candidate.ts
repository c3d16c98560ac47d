/**
 * Elections: asking for votes, counting them, and answering those who ask.
 * Does not know what a leader does with its office.
 */
import assert from 'node:assert/strict'
import { isVoter, majorityOf, voterCount } from './configuration.js'
import { becomeFollower } from './follower.js'
import { becomeLeader } from './leader.js'
import type { Core, Peer } from './core.js'
import type { RequestVote, RequestVoteResult, ServerId } from './types.js'

export interface Campaign {
  /** Dissertation §9.6: first ask who would vote for us, and disturb nobody if too few would. */
  isPreVote: boolean
  readonly disruptLeader: boolean
  /** Somebody answers without saying to which phase (raft-wire §2.2, the 16-byte form). */
  hasUnmarked: boolean
  granted: Set<ServerId>
}

/** Every entry of the log is on our disk. */
export function isOwnLogPersisted(core: Core): boolean {
  return core.lastPersisted === core.log.lastIndex
}

/**
 * Begins an election, or the next round of one. Every round begins with a pre-vote: a candidate that C would let repeat
 * its real vote (raft-wire §6.3) raises the term for ever behind a partition. A transfer skips it (raft-wire §6.8).
 */
export function campaign(core: Core, { isTransfer = false } = {}): void {
  assert(core.state !== 'leader')
  assert(core.canCampaign)
  core.state = 'candidate'
  core.leader = undefined
  core.resetElectionTimer()
  core.campaign = { isPreVote: !isTransfer, disruptLeader: isTransfer, hasUnmarked: false, granted: new Set([core.id]) }
  if (isTransfer) stand(core, core.campaign)
  requestVotes(core, core.campaign)
}

/**
 * The real vote: a new term, our own vote in it (dissertation §3.4). Answers that do not say their phase are told apart
 * by their term, which costs one: a late one to the pre-vote must not pass for a vote.
 */
function stand(core: Core, election: Campaign): void {
  core.adoptTerm(core.term + (election.hasUnmarked ? 2 : 1))
  core.vote(core.id)
  core.resetElectionTimer()
  election.isPreVote = false
  election.granted = new Set([core.id])
}

function requestVotes(core: Core, election: Campaign): void {
  if (isWon(core, election)) {
    onWon(core, election)
    return
  }
  // raft-wire §6.2: what is asked for is what the disk holds.
  const index = core.lastPersisted
  const term = core.log.termAt(index)
  assert(term !== undefined)
  for (const server of core.configuration.servers) {
    if (server.role !== 'voter' || server.id === core.id) continue
    const request: RequestVote = {
      type: 'requestVote',
      term: election.isPreVote ? core.term + 1 : core.term,
      last: { index, term },
      disruptLeader: election.disruptLeader,
      preVote: election.isPreVote,
    }
    // Our own vote must be durable before anybody else's is asked for; a pre-vote promises nothing.
    if (election.isPreVote) core.send(server, request)
    else core.sendAfterPersist(server, request)
  }
}

function isWon(core: Core, { granted }: Campaign): boolean {
  let votes = 0
  for (const server of core.configuration.servers) if (server.role === 'voter' && granted.has(server.id)) votes++
  return votes >= majorityOf(voterCount(core.configuration))
}

function onWon(core: Core, election: Campaign): void {
  if (!election.isPreVote) {
    becomeLeader(core)
    return
  }
  stand(core, election)
  requestVotes(core, election)
}

export function tickCandidate(core: Core): void {
  core.electionElapsedTicks++
  if (core.electionElapsedTicks < core.electionTimeoutTicks) return
  if (core.canCampaign) campaign(core)
  else becomeFollower(core, core.term)
}

/** raft-wire §6.3, "Receiving RequestVoteResult". */
export function handleRequestVoteResult(core: Core, from: Peer, message: RequestVoteResult): void {
  const election = core.campaign
  if (election === undefined || !isVoter(core.configuration, from.id)) return
  if (message.preVote === undefined) {
    if (election.isPreVote) election.hasUnmarked = true
    else if (!election.hasUnmarked) return
  } else if (message.preVote !== election.isPreVote) return
  const expected = election.isPreVote ? core.term + 1 : core.term
  if (message.term > expected) {
    becomeFollower(core, message.term)
    return
  }
  if (message.term < expected || !message.granted) return
  election.granted.add(from.id)
  if (isWon(core, election)) onWon(core, election)
}

/**
 * raft-wire §6.3, "Receiving RequestVote": the order of the checks matters. Where C refuses because it is no voter in its
 * own configuration, we vote: the configuration that makes us one may not have reached us (dissertation §4.1: whatever
 * the receiver's configuration says), and who does not take us for a voter does not count us.
 */
export function handleRequestVote(core: Core, from: Peer, message: RequestVote): void {
  const { preVote } = message
  // 1. Leader stickiness (dissertation §4.2.3): who has a leader does not help to depose it. Nor does one that may have
  //    forgotten that it had one. Only the leader itself can ask for that.
  const hasLeader = core.state === 'leader' || core.leader !== undefined
  if ((hasLeader || core.isQuiet) && !message.disruptLeader) {
    answer(core, from, message, false)
    return
  }
  // 2. A pre-vote asks about a term that does not exist yet. But the term below it does: without adopting that one, the
  //    server with the longest log and an old term could neither give the others its vote nor get theirs.
  const term = preVote ? message.term - 1 : message.term
  if (term > core.term) becomeFollower(core, term)
  answer(core, from, message, isGrantable(core, from, message))
}

function isGrantable(core: Core, from: Peer, { term, last, preVote }: RequestVote): boolean {
  // 3.
  if (core.installing !== undefined || term < core.term) return false
  // 4. Every voter has a log. One without has lost its disk, and does not know whom it has voted for.
  if (core.log.lastIndex === 0) return false
  if (!preVote && core.votedFor !== undefined && core.votedFor !== from.id) return false
  // 5. Dissertation §3.6.1: the candidate's log is at least as up-to-date. Ours counts with what the disk has yet to
  //    write.
  const { lastIndex, lastTerm } = core.log
  return last.term > lastTerm || (last.term === lastTerm && last.index >= lastIndex)
}

function answer(core: Core, to: Peer, { term, preVote }: RequestVote, granted: boolean): void {
  const result: RequestVoteResult = {
    type: 'requestVoteResult',
    // A pre-vote is answered in its own term, unless ours is higher: then the candidate should learn it. C echoes always,
    // but understands both (raft-wire §6.3).
    term: preVote ? Math.max(term, core.term) : core.term,
    granted,
    preVote,
  }
  if (!granted || preVote) {
    core.send(to, result)
    return
  }
  core.vote(to.id)
  core.electionElapsedTicks = 0
  core.sendAfterPersist(to, result)
}
