import test from 'ava'
import {
  append,
  appended,
  Cluster,
  command,
  electionTimeoutTicks,
  installSnapshot,
  leader,
  members,
  ofType,
  propose,
  receive,
  requestVote,
  server,
  settle,
  take,
  testOptions,
  three,
  tick,
  timeoutNow,
} from './support.js'
import type { Raft } from '../../lib/raft/raft.js'
import type { ServerId } from '../../lib/raft/types.js'

function transfer(raft: Raft, to?: ServerId) {
  return raft.step({ type: 'transfer', request: 7, to })
}
function askedOf(raft: Raft) {
  return ofType(settle(raft).messages, 'timeoutNow').map(({ to, term, last }) => [to, term, last.index, last.term])
}

test('a target that has everything is asked at once, and only once (dissertation §3.10, raft-wire §6.8)', (t) => {
  const raft = leader()
  t.is(transfer(raft, 3n), undefined)
  t.deepEqual(askedOf(raft), [[3n, 2, 2, 2]])
  receive(raft, 3n, appended(2, 2))
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(askedOf(raft), [])
})

test('a target that is behind is asked when it has everything (dissertation §3.10)', (t) => {
  const raft = leader()
  propose(raft)
  settle(raft)
  transfer(raft, 3n)
  t.deepEqual(askedOf(raft), [])
  receive(raft, 3n, appended(2, 3))
  t.deepEqual(askedOf(raft), [[3n, 2, 3, 2]])
})

test('while it runs nothing is appended and no leader is named (dissertation §3.10, raft-wire §6.8)', (t) => {
  const raft = leader()
  transfer(raft, 3n)
  t.true(raft.isTransferring)
  t.is(raft.leader, undefined)
  t.is(propose(raft), 'notLeader')
  t.is(raft.step({ type: 'propose', entries: [{ type: 'barrier' }] }), 'notLeader')
  t.is(raft.step({ type: 'change', request: 1, change: { type: 'remove', id: 2n } }), 'notLeader')
  t.is(transfer(raft, 2n), 'notLeader')
})

test('it ends with the office (raft-wire §6.8)', (t) => {
  const raft = leader()
  transfer(raft, 3n)
  settle(raft)
  receive(raft, 3n, requestVote(3, [2, 2], { disruptLeader: true }))
  t.is(raft.state, 'follower')
  const taken = settle(raft)
  t.deepEqual(taken.outcomes, [{ request: 7, result: 'done' }])
  t.true(ofType(taken.messagesAfterPersist, 'requestVoteResult')[0]!.granted)
})

test('it fails after an election timeout, and the leader goes on (dissertation §3.10)', (t) => {
  const raft = leader()
  transfer(raft, 3n)
  tick(raft, electionTimeoutTicks)
  t.deepEqual(settle(raft).outcomes, [{ request: 7, result: 'timedOut' }])
  t.false(raft.isTransferring)
  t.is(raft.leader?.id, 1n)
  t.is(propose(raft), undefined)
})

test('without a target the voter that is furthest is chosen (raft-wire §6.8)', (t) => {
  const raft = leader()
  propose(raft)
  settle(raft)
  receive(raft, 3n, appended(2, 3))
  settle(raft)
  t.is(transfer(raft), undefined)
  t.deepEqual(askedOf(raft), [[3n, 2, 3, 2]])
})

test('the target must be another voter (raft-wire §6.8)', (t) => {
  const raft = leader({ configuration: members('1', '2', '4s') })
  for (const id of [1n, 4n, 9n]) t.is(transfer(raft, id), 'badTarget')
  t.is(transfer(server({ configuration: members('1', '4s') })), 'noTarget')
  t.is(transfer(server()), 'notLeader')
})

test('who is asked campaigns at once, without pre-vote, and says that it may disrupt (dissertation §3.10, §4.2.3)', (t) => {
  const raft = server({ term: 2, log: [2] })
  receive(raft, 2n, append(2, [2, 2]))
  settle(raft)
  receive(raft, 2n, timeoutNow(2, [2, 2]))
  t.is(raft.state, 'candidate')
  const taken = take(raft)
  t.deepEqual(taken.vote, { term: 3, votedFor: 1n })
  t.deepEqual(
    taken.messagesAfterPersist.map(({ message }) => message),
    [2, 3].map(() => requestVote(3, [2, 2], { disruptLeader: true })),
  )
  t.is(taken.messages.length, 0)
})

test('only a voter that follows the sender and has exactly its log obeys (raft-wire §6.8)', (t) => {
  const following = (configuration = three): Raft => {
    const raft = server({ configuration, term: 2, log: [2] })
    receive(raft, 2n, append(2, [2, 2]))
    settle(raft)
    return raft
  }
  const refuses = (raft: Raft, from: ServerId, message = timeoutNow(2, [2, 2])): void => {
    const before = raft.state
    receive(raft, from, message)
    t.is(raft.state, before)
  }
  refuses(following(), 3n)
  refuses(following(), 2n, timeoutNow(1, [2, 2]))
  refuses(following(), 2n, timeoutNow(2, [3, 2]))
  refuses(following(), 2n, timeoutNow(2, [2, 1]))
  refuses(following(members('1s', '2', '3')), 2n)
  refuses(leader(), 2n, timeoutNow(2, [2, 2]))
  const writing = following()
  receive(writing, 2n, append(2, [2, 2], [command(3, 2)]))
  take(writing)
  refuses(writing, 2n, timeoutNow(2, [3, 2]))
  const installing = following()
  receive(installing, 2n, installSnapshot(2, [9, 2]))
  refuses(installing, 2n)
})

test('a cluster hands over within a round trip, and nothing is lost', (t) => {
  const cluster = new Cluster(members('1', '2', '3', '4', '5'))
  const old = cluster.elect()
  cluster.propose(5)
  const { lastIndex } = old
  cluster.step(old.id, { type: 'transfer', request: 7, to: 4n })
  t.is(cluster.leader.id, 4n)
  t.deepEqual(cluster.get(old.id).outcomes, [{ request: 7, result: 'done' }])
  t.is(cluster.leader.lastIndex, lastIndex + 1)
  cluster.tick(testOptions.heartbeatTicks)
  for (const { raft } of cluster.members.values()) t.is(raft.commitIndex, lastIndex + 1)
})
