import test from 'ava'
import {
  append,
  Cluster,
  command,
  configurationEntry,
  electionTimeoutTicks,
  installSnapshot,
  leader,
  members,
  ofType,
  receive,
  requestVote,
  server,
  settle,
  take,
  tick,
  voteResult,
} from './support.js'
import type { Raft } from '../../lib/raft/raft.js'
import type { RequestVote } from '../../lib/raft/types.js'

function answerTo(raft: Raft, request: RequestVote, from = 2n) {
  settle(raft)
  receive(raft, from, request)
  const taken = take(raft)
  const [result] = ofType([...taken.messages, ...taken.messagesAfterPersist], 'requestVoteResult')
  return { granted: result!.granted, term: result!.term, vote: taken.vote, preVote: result!.preVote, taken }
}

test('a vote is given once per term, and again to the same candidate (dissertation §3.4)', (t) => {
  const raft = server()
  t.true(answerTo(raft, requestVote(2, [1, 1]), 2n).granted)
  t.false(answerTo(raft, requestVote(2, [1, 1]), 3n).granted)
  t.true(answerTo(raft, requestVote(2, [1, 1]), 2n).granted)
  t.true(answerTo(raft, requestVote(3, [1, 1]), 3n).granted)
})

test('a vote survives a restart (dissertation §3.8)', (t) => {
  const raft = server({ term: 4, votedFor: 3n })
  t.false(answerTo(raft, requestVote(4, [1, 1]), 2n).granted)
  t.true(answerTo(raft, requestVote(4, [1, 1]), 3n).granted)
})

test('a granted vote leaves after the disk write, a refusal at once (dissertation §3.8)', (t) => {
  const raft = server()
  receive(raft, 2n, requestVote(2, [1, 1]))
  const granted = take(raft)
  t.deepEqual(granted.vote, { term: 2, votedFor: 2n })
  t.deepEqual(granted.messages, [])
  t.is(granted.messagesAfterPersist.length, 1)
  receive(raft, 3n, requestVote(2, [1, 1]))
  const refused = take(raft)
  t.is(refused.messages.length, 1)
  t.is(refused.vote, undefined)
})

test('a candidate with an older log gets no vote (dissertation §3.6.1)', (t) => {
  const log = [2, 3, 3]
  for (const [last, expected] of [
    [[4, 3], true],
    [[5, 3], true],
    [[2, 4], true],
    [[3, 3], false],
    [[9, 2], false],
    [[0, 0], false],
  ] as const) {
    t.is(answerTo(server({ log }), requestVote(5, [last[0], last[1]])).granted, expected, String(last))
    const preVote = requestVote(4, [last[0], last[1]], { preVote: true })
    t.is(answerTo(server({ log }), preVote).granted, expected, `pre-vote ${String(last)}`)
  }
})

test('the log that decides includes what the disk has yet to write (raft-wire §6.2)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  take(raft)
  tick(raft, 100)
  receive(raft, 3n, requestVote(3, [1, 1], { disruptLeader: true }))
  t.false(ofType(take(raft).messagesAfterPersist, 'requestVoteResult').some(({ granted }) => granted))
})

test('a request of a lower term is refused with our term (dissertation §3.3)', (t) => {
  const { granted, term } = answerTo(server({ term: 5 }), requestVote(4, [9, 4]))
  t.false(granted)
  t.is(term, 5)
})

test('a pre-vote is answered in its own term and changes nothing (dissertation §9.6, raft-wire §6.3)', (t) => {
  const raft = server({ term: 3 })
  tick(raft, 9)
  const { granted, term, vote, preVote, taken } = answerTo(raft, requestVote(4, [1, 1], { preVote: true }))
  t.true(granted)
  t.is(term, 4)
  t.true(preVote)
  t.is(vote, undefined)
  t.is(taken.messages.length, 1)
  t.is(raft.term, 3)
  tick(raft)
  t.is(raft.state, 'candidate', 'the clock ran on')
})

test('a real vote restarts the election clock (raft-wire §6.3)', (t) => {
  const raft = server()
  tick(raft, 9)
  t.true(answerTo(raft, requestVote(2, [1, 1])).granted)
  tick(raft, 9)
  t.is(raft.state, 'follower')
})

test('a follower with a leader refuses votes and keeps its term (dissertation §4.2.3, raft-wire §6.3)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 3n, append(2, [1, 1]))
  for (const preVote of [true, false]) {
    const { granted, term } = answerTo(raft, requestVote(7, [9, 6], { preVote }))
    t.false(granted)
    t.is(term, preVote ? 7 : 2)
    t.is(raft.term, 2)
  }
})

test('the leader is forgotten only after a whole randomised timeout, not after E (raft-wire §6.3)', (t) => {
  const raft = server({ term: 2, random: () => 0.9 })
  receive(raft, 3n, append(2, [1, 1]))
  tick(raft, electionTimeoutTicks + 8)
  t.false(answerTo(raft, requestVote(3, [1, 1], { preVote: true })).granted)
  tick(raft)
  t.true(answerTo(raft, requestVote(3, [1, 1], { preVote: true })).granted)
})

test('a leader refuses votes and stays (dissertation §4.2.3)', (t) => {
  const raft = leader()
  t.false(answerTo(raft, requestVote(9, [9, 8])).granted)
  t.is(raft.state, 'leader')
  t.is(raft.term, 2)
})

test('a transfer overrides the stickiness of followers and of the leader (dissertation §3.10, §4.2.3)', (t) => {
  const follower = server({ term: 2 })
  receive(follower, 3n, append(2, [1, 1]))
  t.true(answerTo(follower, requestVote(3, [1, 1], { disruptLeader: true })).granted)

  const raft = leader()
  t.true(answerTo(raft, requestVote(3, [2, 2], { disruptLeader: true })).granted)
  t.is(raft.state, 'follower')
})

test('a server votes whatever its own configuration says: the candidate counts (dissertation §4.1, §4.2.2)', (t) => {
  for (const configuration of [members('1s', '2', '3'), members('1x', '2', '3'), members('2', '3')]) {
    t.true(answerTo(server({ configuration }), requestVote(2, [1, 1])).granted)
    t.true(answerTo(server({ configuration }), requestVote(2, [1, 1], { preVote: true })).granted)
  }
})

test('a new voter that has not heard of its promotion is enough to elect the only old one again (dissertation §4.1)', (t) => {
  // 1, the only voter, stored the promotion of 2 and restarted before 2 had it.
  const cluster = new Cluster(members('1', '2s'))
  cluster.elect()
  cluster.propose()
  const { disk } = cluster.get(1n)
  disk.entries.push(configurationEntry(disk.entries.length + 1, 1, members('1', '2')))
  cluster.restart(1n)
  t.is(cluster.elect().id, 1n)
  cluster.propose()
  t.is(cluster.leader.commitIndex, cluster.leader.lastIndex)
})

test('a server without a log gives no vote: it has lost its disk, or was never a voter', (t) => {
  t.false(answerTo(server({ term: 0, entries: [] }), requestVote(1, [0, 0])).granted)
})

test('a server that is installing a snapshot does not vote (raft-wire §6.3)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 3n, installSnapshot(2, [9, 2]))
  take(raft)
  receive(raft, 2n, requestVote(3, [9, 2], { disruptLeader: true }))
  t.deepEqual(
    ofType(take(raft).messagesAfterPersist, 'requestVoteResult').map(({ granted }) => granted),
    [false],
  )
})

test('after a start a server is silent on votes for quietTicks: it may have promised a leader its lease', (t) => {
  const raft = server({ quietTicks: electionTimeoutTicks, random: () => 0.9 })
  tick(raft, electionTimeoutTicks - 1)
  t.false(answerTo(raft, requestVote(2, [1, 1])).granted)
  t.is(raft.term, 1)
  t.false(answerTo(raft, requestVote(2, [1, 1], { preVote: true })).granted)
  tick(raft)
  t.true(answerTo(raft, requestVote(2, [1, 1], { preVote: true })).granted)
  t.true(answerTo(raft, requestVote(2, [1, 1])).granted)
})

test('the silence does not stand in the way of a transfer', (t) => {
  const raft = server({ quietTicks: electionTimeoutTicks })
  t.true(answerTo(raft, requestVote(2, [1, 1], { disruptLeader: true })).granted)
})

test('the silence delays a whole cluster that restarts by at most one election timeout', (t) => {
  const cluster = new Cluster(members('1', '2', '3'), { quietTicks: electionTimeoutTicks })
  let ticks = 0
  cluster.tickUntil(() => {
    ticks++
    return cluster.leaders.length === 1
  })
  t.true(ticks <= 3 * electionTimeoutTicks, `${ticks} ticks`)
})

test('the features word says whether the silence lasts an election timeout', (t) => {
  for (const [quietTicks, features] of [
    [electionTimeoutTicks, 1],
    [electionTimeoutTicks - 1, 0],
    [0, 0],
  ] as const) {
    const raft = server({ term: 2, quietTicks })
    receive(raft, 2n, append(2, [1, 1]))
    t.is(ofType(take(raft).messages, 'appendEntriesResult')[0]!.features, features)
  }
})

test('the longest log with the oldest term can be elected: a pre-vote tells the terms apart (dissertation §3.3, §9.6)', (t) => {
  // The others went on to term 7 without an entry; their pre-votes fail on the log, ours would fail on the term.
  const longest = server({ term: 3, log: [3, 3] })
  t.false(answerTo(longest, requestVote(8, [2, 3], { preVote: true })).granted)
  t.is(longest.term, 7)

  // Or they answer ours, and say so.
  const candidate = server({ term: 3, log: [3, 3] })
  tick(candidate, electionTimeoutTicks)
  const other = server({ id: 2n, term: 7, log: [3] })
  const { term, granted } = answerTo(other, requestVote(4, [3, 3], { preVote: true }), 1n)
  t.false(granted)
  t.is(term, 7)
  receive(candidate, 2n, voteResult(term, granted, true))
  t.is(candidate.term, 7)
})

test('messages from ourselves and from id 0 are ignored', (t) => {
  const raft = server()
  for (const id of [0n, 1n]) receive(raft, id, requestVote(9, [9, 9]))
  t.is(raft.term, 1)
  t.is(raft.ready(), undefined)
})
