import test from 'ava'
import {
  addressOf,
  all,
  append,
  appended,
  barrier,
  Cluster,
  configurationEntry,
  elect,
  electionTimeoutTicks,
  leader,
  logOf,
  members,
  propose,
  receive,
  refused,
  requestVote,
  server,
  settle,
  snapshotOf,
  take,
  tick,
  voteResult,
} from './support.js'

test('a server starts as a follower and knows no leader (dissertation §3.4)', (t) => {
  const raft = server()
  t.is(raft.state, 'follower')
  t.is(raft.leader, undefined)
  t.is(raft.ready(), undefined)
})

test('a follower campaigns after a timeout that is uniform in [E, 2E) (dissertation §3.4, raft-wire §6.1)', (t) => {
  for (const [random, expected] of [
    [0, 10],
    [0.5, 15],
    [0.999, 19],
  ] as const) {
    const raft = server({ random: () => random })
    tick(raft, expected - 1)
    t.is(raft.state, 'follower')
    tick(raft)
    t.is(raft.state, 'candidate')
  }
})

test('a message from the leader restarts the election clock (dissertation §3.4)', (t) => {
  const raft = server({ term: 2 })
  tick(raft, 9)
  receive(raft, 2n, append(2, [1, 1]))
  tick(raft, 9)
  t.is(raft.state, 'follower')
  t.deepEqual(raft.leader, { id: 2n, address: addressOf(2n) })
  tick(raft)
  t.is(raft.state, 'candidate')
  t.is(raft.leader, undefined)
})

test('a pre-vote asks with the next term and writes nothing (dissertation §9.6, raft-wire §6.3)', (t) => {
  const raft = server({ term: 4, log: [2, 4] })
  tick(raft, electionTimeoutTicks)
  const taken = take(raft)
  t.is(taken.vote, undefined)
  t.is(raft.term, 4)
  t.deepEqual(
    taken.messages.map(({ to, message }) => [to, message]),
    [2n, 3n].map((to) => [to, requestVote(5, [3, 4], { preVote: true })]),
  )
})

test('a majority of pre-votes begins the real vote, sent only once our own vote is durable (dissertation §9.6)', (t) => {
  const raft = server({ term: 4, log: [4] })
  tick(raft, electionTimeoutTicks)
  take(raft)
  receive(raft, 3n, voteResult(5, true, true))
  const taken = take(raft)
  t.is(raft.state, 'candidate')
  t.deepEqual(taken.vote, { term: 5, votedFor: 1n })
  t.deepEqual(taken.messages, [])
  t.deepEqual(
    taken.messagesAfterPersist.map(({ to, message }) => [to, message]),
    [2n, 3n].map((to) => [to, requestVote(5, [2, 4])]),
  )
})

test('a majority of votes makes a leader, which appends a barrier and sends it at once (dissertation §3.4, §6.4)', (t) => {
  const raft = server({ term: 4, log: [4] })
  const taken = elect(raft)
  t.is(raft.state, 'leader')
  t.is(raft.term, 5)
  t.deepEqual(raft.leader, { id: 1n, address: addressOf(1n) })
  t.deepEqual(taken.entries, [barrier(3, 5)])
  t.deepEqual(
    taken.messages.map(({ to, message }) => [to, message]),
    [2n, 3n].map((to) => [to, append(5, [2, 4], [barrier(3, 5)], 1)]),
  )
})

test('refusals do not elect, and votes of one server count once (dissertation §3.4)', (t) => {
  const raft = server({ configuration: members('1', '2', '3', '4', '5') })
  tick(raft, electionTimeoutTicks)
  receive(raft, 2n, voteResult(2, true, true))
  receive(raft, 2n, voteResult(2, true, true))
  receive(raft, 3n, voteResult(2, false, true))
  t.is(raft.term, 1)
  receive(raft, 4n, voteResult(2, true, true))
  t.is(raft.term, 2)
})

test('votes of standbys, spares and strangers do not count (raft-wire §6.3)', (t) => {
  const raft = server({ configuration: members('1', '2', '3', '4s', '5x') })
  tick(raft, electionTimeoutTicks)
  take(raft)
  for (const id of [4n, 5n, 77n]) receive(raft, id, voteResult(2, true, true))
  t.is(raft.term, 1)
  t.is(raft.ready(), undefined)
})

test('a result of the other phase is not counted (raft-wire §6.3)', (t) => {
  const raft = server()
  tick(raft, electionTimeoutTicks)
  receive(raft, 2n, voteResult(2, true, false))
  t.is(raft.term, 1)
  receive(raft, 2n, voteResult(2, true, true))
  t.is(raft.term, 2)
  receive(raft, 2n, voteResult(2, true, true))
  t.is(raft.state, 'candidate')
})

test('results that do not say their phase count, and their term tells the phases apart (raft-wire §2.2)', (t) => {
  const raft = server()
  tick(raft, electionTimeoutTicks)
  receive(raft, 2n, voteResult(2, true, undefined))
  t.is(raft.term, 3, 'no pre-vote was asked for in this term')
  receive(raft, 2n, voteResult(2, true, undefined))
  t.is(raft.state, 'candidate')
  receive(raft, 2n, voteResult(3, true, undefined))
  t.is(raft.state, 'leader')
})

test('a late pre-vote that does not say so is not a vote (dissertation §3.4, raft-wire §2.2)', (t) => {
  const raft = server()
  tick(raft, electionTimeoutTicks)
  receive(raft, 2n, voteResult(2, true, true))
  t.is(raft.term, 2)
  receive(raft, 3n, voteResult(2, true, undefined))
  t.is(raft.state, 'candidate')
})

test('a candidate that finds a higher term follows it (dissertation §3.3)', (t) => {
  const preVoting = server()
  tick(preVoting, electionTimeoutTicks)
  receive(preVoting, 2n, voteResult(7, false, true))
  t.is(preVoting.state, 'follower')
  t.is(preVoting.term, 7)

  const voting = server()
  tick(voting, electionTimeoutTicks)
  receive(voting, 2n, voteResult(2, true, true))
  receive(voting, 2n, voteResult(9, false, false))
  t.is(voting.state, 'follower')
  t.deepEqual(settle(voting).vote, { term: 9, votedFor: undefined })
})

test('a candidate returns to follower when a leader of its term speaks (dissertation §3.4)', (t) => {
  const raft = server()
  tick(raft, electionTimeoutTicks)
  receive(raft, 2n, voteResult(2, true, true))
  t.is(raft.state, 'candidate')
  receive(raft, 3n, append(2, [1, 1]))
  t.is(raft.state, 'follower')
  t.is(raft.leader?.id, 3n)
})

test('a split vote ends with a new round, which begins with a pre-vote (dissertation §3.4, §9.6)', (t) => {
  const raft = server()
  tick(raft, electionTimeoutTicks)
  receive(raft, 2n, voteResult(2, true, true))
  take(raft)
  tick(raft, electionTimeoutTicks)
  t.is(raft.term, 2)
  t.deepEqual(
    all(take(raft)),
    [2, 3].map(() => requestVote(3, [1, 1], { preVote: true })),
  )
})

test('a server behind a partition does not raise its term (dissertation §9.6)', (t) => {
  const cluster = new Cluster(members('1', '2', '3'))
  const { term } = cluster.elect()
  cluster.cut.add(3n)
  cluster.tick(200)
  t.is(cluster.raft(3n).term, term)
  cluster.cut.delete(3n)
  cluster.tick(20)
  t.is(cluster.leader.term, term)
  t.is(cluster.raft(3n).state, 'follower')
})

test('standbys, spares and servers without configuration never campaign (raft-wire §6.3)', (t) => {
  for (const raft of [
    server({ configuration: members('1s', '2', '3') }),
    server({ configuration: members('1x', '2', '3') }),
    server({ configuration: members('2', '3') }),
    server({ term: 0, entries: [] }),
  ]) {
    tick(raft, 100)
    t.is(raft.state, 'follower')
    t.is(raft.ready(), undefined)
  }
})

test('a server that an uncommitted change demotes may have to lead once more, to bring the change about (dissertation §4.2.2)', (t) => {
  // 1 has demoted itself and failed before 2, now the only voter, got the change: 2 cannot win against the longer log of 1.
  const cluster = new Cluster(members('1', '2'))
  cluster.elect()
  const { disk } = cluster.get(1n)
  disk.entries.push(configurationEntry(disk.entries.length + 1, disk.term, members('1s', '2')))
  cluster.restart(1n)
  cluster.restart(2n)
  cluster.tick(3 * electionTimeoutTicks)
  t.is(cluster.leader.id, 2n)
  t.deepEqual(cluster.leader.committedConfiguration.configuration, members('1s', '2'))
  t.is(cluster.raft(1n).state, 'follower')
})

test('any configuration above the known commit index may be the one in force (dissertation §4.2.2)', (t) => {
  // Promoted at 2, which everybody else knows to be committed, and demoted at 3, which nobody else has.
  const entries = [
    ...logOf(members('1s', '2')),
    configurationEntry(2, 1, members('1', '2')),
    configurationEntry(3, 1, members('1s', '2')),
  ]
  const raft = server({ entries })
  tick(raft, electionTimeoutTicks)
  t.is(raft.state, 'candidate')
})

test('a follower does not campaign while a write is under way, but does as soon as it has ended (raft-wire §6.3)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], logOf(members('1'), 2).slice(1)))
  take(raft)
  tick(raft, 30)
  t.is(raft.state, 'follower')
  raft.step({ type: 'persisted', last: { index: 2, term: 2 } })
  tick(raft)
  t.is(raft.state, 'candidate')
})

test('the only voter leads at start, in its term, and all it has stored is committed (raft-wire §6.3)', (t) => {
  const raft = server({ configuration: members('1', '2s'), log: [1, 1] })
  t.is(raft.state, 'leader')
  t.is(raft.term, 1)
  t.is(raft.commitIndex, 3)
  t.true(raft.hasCommittedInTerm)
  const taken = settle(raft)
  t.is(taken.vote, undefined)
  t.deepEqual(taken.entries, [])
  t.deepEqual(
    taken.committed.map(({ index }) => index),
    [2, 3],
  )
  const later = server({ configuration: members('1'), term: 6, log: [3, 6] })
  t.is(later.state, 'leader')
  t.is(later.term, 6)
})

test('a server left alone by a change of the running term leads in a new one: the term may have another leader (dissertation §3.4)', (t) => {
  const entries = [...logOf(members('1', '2')), configurationEntry(2, 5, members('1', '2s'))]
  const raft = server({ term: 5, entries })
  t.is(raft.state, 'leader')
  t.is(raft.term, 6)
  const taken = settle(raft)
  t.deepEqual(taken.vote, { term: 6, votedFor: 1n })
  t.deepEqual(taken.messages, [])
  t.is(raft.commitIndex, 3)

  // Term 1 is no exception: its leader is who bootstrapped the cluster, and that was another.
  const second = server({
    id: 2n,
    entries: [
      ...logOf(members('1')),
      configurationEntry(2, 1, members('1', '2')),
      configurationEntry(3, 1, members('2')),
    ],
  })
  t.is(second.term, 2)
  const first = server({ entries: [...logOf(members('1')), configurationEntry(2, 1, members('1', '2s'))] })
  t.is(first.term, 1)

  // One that was to be demoted may have led, with our vote, to bring the change about.
  const voted = server({ configuration: members('1', '2s'), term: 6, votedFor: 2n, log: [3] })
  t.is(voted.term, 7)

  const fromSnapshot = server({
    term: 5,
    entries: [],
    snapshot: snapshotOf([9, 5], members('1'), 8),
  })
  t.is(fromSnapshot.term, 6)
})

test('the only voter elects itself when it has been a follower (dissertation §3.4)', (t) => {
  const raft = server({ configuration: members('1', '2s') })
  receive(raft, 2n, refused(5, 1, 1))
  t.is(raft.state, 'follower')
  settle(raft)
  tick(raft, electionTimeoutTicks)
  const taken = settle(raft)
  t.is(raft.state, 'leader')
  t.is(raft.term, 6)
  t.deepEqual(taken.vote, { term: 6, votedFor: 1n })
  t.is(raft.commitIndex, 2)
})

test('a leader that hears no majority for an election timeout steps down (dissertation §6.2, raft-wire §6.3)', (t) => {
  const raft = leader()
  tick(raft, electionTimeoutTicks)
  t.is(raft.state, 'leader')
  tick(raft, electionTimeoutTicks)
  t.is(raft.state, 'follower')
  t.is(raft.term, 2)
  t.is(raft.leader, undefined)

  const heard = leader()
  for (let times = 0; times < 5; times++) {
    tick(heard, electionTimeoutTicks)
    receive(heard, 3n, refused(2, 99, 0))
  }
  t.is(heard.state, 'leader')
})

test('a leader that hears of a higher term steps down (dissertation §3.3)', (t) => {
  const raft = leader()
  receive(raft, 2n, refused(8, 1, 1))
  t.is(raft.state, 'follower')
  t.deepEqual(settle(raft).vote, { term: 8, votedFor: undefined })
  t.is(propose(raft), 'notLeader')
})

test('a leader ignores another that claims its term (dissertation §3.4, election safety)', (t) => {
  const raft = leader()
  receive(raft, 2n, append(2, [1, 1], [barrier(2, 2)]))
  t.is(raft.state, 'leader')
  t.is(raft.ready(), undefined)
})

test('five servers elect one leader, and another when it is gone (dissertation §3.4)', (t) => {
  const cluster = new Cluster(members('1', '2', '3', '4', '5'))
  const first = cluster.elect()
  cluster.cut.add(first.id)
  const second = cluster.elect()
  t.not(second.id, first.id)
  t.true(second.term > first.term)
  cluster.cut.delete(first.id)
  cluster.tick(10)
  t.is(first.state, 'follower')
  t.is(first.leader?.id, second.id)
})

test('a term of the log above that of the metadata counts, and has no vote to lose', (t) => {
  const raft = server({ term: 3, votedFor: 2n, log: [5] })
  t.is(raft.term, 5)
  t.deepEqual(settle(raft).vote, { term: 5, votedFor: undefined })
})

test('only results of the own term make a leader (dissertation §3.4)', (t) => {
  const raft = server()
  tick(raft, electionTimeoutTicks)
  receive(raft, 2n, voteResult(2, true, true))
  receive(raft, 2n, voteResult(1, true, false))
  t.is(raft.state, 'candidate')
  receive(raft, 2n, appended(1, 1))
  t.is(raft.state, 'candidate')
})
