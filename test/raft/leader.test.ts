import test from 'ava'
import {
  all,
  append,
  appended,
  barrier,
  bytes,
  Cluster,
  command,
  configurationEntry,
  elect,
  electionTimeoutTicks,
  leader,
  logOf,
  members,
  ofType,
  persist,
  propose,
  receive,
  refused,
  server,
  settle,
  snapshotOf,
  take,
  testOptions,
  three,
  tick,
} from './support.js'
import type { Raft } from '../../lib/raft/raft.js'
import type { Envelope } from '../../lib/raft/types.js'

function appendsTo(messages: readonly Envelope[], to: bigint) {
  return ofType(messages, 'appendEntries')
    .filter((message) => message.to === to)
    .map(({ prev, entries }) => [prev.index, ...entries.map(({ index }) => index)])
}
function stateOf(raft: Raft, id: bigint) {
  const { matchIndex, nextIndex, state } = raft.progress().find((progress) => progress.id === id)!
  return [state, matchIndex, nextIndex]
}

// ------------------------------------------------------------------------------------------------ proposals

test('a proposal is appended at once, sent beside the disk write, one message per follower and turn (dissertation §3.5, §10.2.1)', (t) => {
  const raft = leader()
  t.is(propose(raft), undefined)
  t.is(raft.lastIndex, 3)
  propose(raft, bytes(16), bytes(24))
  t.is(raft.lastIndex, 5)
  const taken = take(raft)
  t.deepEqual(
    taken.entries.map(({ index, term, byteLength }) => [index, term, byteLength]),
    [
      [3, 2, 8],
      [4, 2, 16],
      [5, 2, 24],
    ],
  )
  t.deepEqual(appendsTo(taken.messages, 2n), [[2, 3, 4, 5]])
  t.deepEqual(appendsTo(taken.messages, 3n), [[2, 3, 4, 5]])
})

test('only a leader takes proposals (dissertation §3.5)', (t) => {
  t.is(propose(server()), 'notLeader')
})

test('commands are refused while too many entries or bytes wait for commit; barriers never', (t) => {
  const byEntries = leader({ pipelineEntriesMax: 2 })
  t.is(propose(byEntries), undefined)
  t.is(propose(byEntries), undefined)
  t.is(propose(byEntries), 'pipelineFull')
  t.is(byEntries.lastIndex, 4)
  t.is(byEntries.step({ type: 'propose', entries: [{ type: 'barrier' }] }), undefined)
  settle(byEntries)
  receive(byEntries, 2n, appended(2, 5))
  t.is(propose(byEntries), undefined)

  const byBytes = leader({ pipelineBytesMax: 100 })
  t.is(propose(byBytes, bytes(400)), undefined, 'one large transaction goes through an empty pipeline')
  t.is(propose(byBytes), 'pipelineFull')
  settle(byBytes)
  receive(byBytes, 2n, appended(2, 3))
  t.is(propose(byBytes), undefined)
})

// ------------------------------------------------------------------------------------------------ commit

test('an entry is committed when a majority has it on disk (dissertation §3.5)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4', '5') })
  propose(raft)
  settle(raft)
  t.is(raft.commitIndex, 2)
  receive(raft, 2n, appended(2, 3))
  t.is(raft.commitIndex, 2)
  receive(raft, 3n, appended(2, 3))
  t.is(raft.commitIndex, 3)
  t.deepEqual(
    settle(raft).committed.map(({ index }) => index),
    [3],
  )
})

test("the leader's own disk may be the last: others can commit without it (dissertation §10.2.1)", (t) => {
  const raft = leader()
  propose(raft)
  take(raft)
  receive(raft, 2n, appended(2, 3))
  t.is(raft.commitIndex, 2)
  receive(raft, 3n, appended(2, 3))
  t.is(raft.commitIndex, 3)
  t.is(raft.lastPersisted, 2)
  t.is(take(raft).committed.length, 1)
})

test("the leader's own disk counts like a follower's (dissertation §10.2.1)", (t) => {
  const raft = leader()
  propose(raft)
  take(raft)
  receive(raft, 2n, appended(2, 3))
  t.is(raft.commitIndex, 2)
  persist(raft, 3, 2)
  t.is(raft.commitIndex, 3)
})

test('a leader does not commit an older term by counting replicas, only through an entry of its own (dissertation §3.6.2)', (t) => {
  const raft = server({ configuration: members('1', '2', '3', '4', '5'), log: [2, 2] })
  elect(raft)
  t.is(raft.lastIndex, 4)
  for (const id of [2n, 3n, 4n]) receive(raft, id, appended(3, 3))
  t.is(raft.commitIndex, 1)
  t.false(raft.hasCommittedInTerm)
  for (const id of [2n, 3n]) receive(raft, id, appended(3, 4))
  t.is(raft.commitIndex, 4)
  t.true(raft.hasCommittedInTerm)
})

test('standbys replicate and do not count (raft-wire §6.4)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4s') })
  propose(raft)
  const taken = settle(raft)
  t.deepEqual(appendsTo(taken.messages, 4n), [[2, 3]])
  receive(raft, 4n, appended(2, 3))
  t.is(raft.commitIndex, 2)
})

test('spares receive nothing, not even heartbeats (raft-wire §6.4)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4x') })
  propose(raft)
  tick(raft, electionTimeoutTicks - 1)
  t.false(take(raft).messages.some(({ to }) => to === 4n))
})

test('an acknowledgement beyond what was sent counts as far as that (raft-wire §6.4)', (t) => {
  const raft = leader()
  receive(raft, 2n, appended(2, 1000))
  t.deepEqual(stateOf(raft, 2n), ['replicate', 2, 3])
})

test('acknowledgements of another term, of strangers and late ones change nothing (dissertation §3.5)', (t) => {
  const raft = leader()
  propose(raft)
  settle(raft)
  receive(raft, 2n, appended(1, 3))
  receive(raft, 9n, appended(2, 3))
  t.is(raft.commitIndex, 2)
  receive(raft, 2n, appended(2, 3))
  receive(raft, 2n, appended(2, 2))
  t.deepEqual(stateOf(raft, 2n), ['replicate', 3, 4])
})

// ------------------------------------------------------------------------------------------------ progress

test('a new leader probes: one message, with entries, until it is answered (raft-wire §6.4, safety remark)', (t) => {
  const raft = server({ term: 2 })
  const taken = elect(raft)
  t.deepEqual(appendsTo(taken.messages, 2n), [[1, 2]])
  propose(raft)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [])
  receive(raft, 2n, appended(3, 2))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[2, 3]])
  t.is(stateOf(raft, 2n)[0], 'replicate')
})

test('a probe without an answer is repeated each heartbeat, without its entries (raft-wire §6.4)', (t) => {
  const raft = server({ term: 2 })
  elect(raft)
  for (let times = 0; times < 3; times++) {
    tick(raft, testOptions.heartbeatTicks)
    t.deepEqual(appendsTo(settle(raft).messages, 2n), [[1]])
  }
})

test('a refused probe goes back to where the follower says, at once (dissertation §3.5, raft-wire §6.4)', (t) => {
  const raft = server({ log: [2, 2, 2, 2, 2, 2, 2] })
  elect(raft)
  receive(raft, 2n, refused(3, 8, 4))
  t.deepEqual(stateOf(raft, 2n), ['probe', 0, 5])
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[4, 5, 6, 7, 8, 9]])
  receive(raft, 2n, refused(3, 4, 4))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[3, 4, 5, 6, 7, 8, 9]], 'one step down at least')
  receive(raft, 2n, refused(3, 8, 1))
  t.deepEqual(stateOf(raft, 2n), ['probe', 0, 4], 'not an answer to this probe')
})

test('pipelining does not wait for answers, up to inflightAppendsMax messages (dissertation §10.2.1)', (t) => {
  const raft = leader()
  const sent: unknown[] = []
  for (let times = 0; times < 6; times++) {
    propose(raft)
    sent.push(...appendsTo(settle(raft).messages, 2n))
  }
  t.deepEqual(sent, [
    [2, 3],
    [3, 4],
    [4, 5],
    [5, 6],
  ])
  receive(raft, 2n, appended(2, 4))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[6, 7, 8]])
})

test('messages are cut by number and by bytes, and one larger entry goes alone (raft-wire §6.4)', (t) => {
  const raft = leader({ appendEntriesMax: 3, appendBytesMax: 100, inflightAppendsMax: 10 })
  propose(raft, ...[8, 8, 8, 8, 40, 40, 40, 400, 8].map((length) => bytes(length)))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [
    [2, 3, 4, 5],
    [5, 6, 7, 8],
    [8, 9],
    [9, 10],
    [10, 11],
  ])
})

test('a refusal in the pipeline goes back to what is known, unless it is late (raft-wire §6.4)', (t) => {
  const raft = leader()
  for (let times = 0; times < 3; times++) {
    propose(raft)
    settle(raft)
  }
  receive(raft, 2n, appended(2, 3))
  receive(raft, 2n, refused(2, 2, 2))
  t.deepEqual(stateOf(raft, 2n), ['replicate', 3, 6])
  receive(raft, 2n, refused(2, 4, 3))
  t.deepEqual(stateOf(raft, 2n), ['probe', 3, 4])
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[3, 4, 5]])
})

test('a lost message shows at the next heartbeat (raft-wire §6.4)', (t) => {
  const cluster = new Cluster(three)
  cluster.elect()
  let isLost = false
  cluster.filter = (_, { to, message }) => {
    if (isLost || to !== 3n || message.type !== 'appendEntries' || message.entries.length === 0) return true
    isLost = true
    return false
  }
  cluster.propose()
  t.not(cluster.raft(3n).lastIndex, cluster.leader.lastIndex)
  cluster.tick(testOptions.heartbeatTicks)
  t.is(cluster.raft(3n).lastIndex, cluster.leader.lastIndex)
})

test('an unreachable follower is probed once per heartbeat, without entries (raft-wire §6.4)', (t) => {
  const raft = leader()
  propose(raft)
  settle(raft)
  raft.step({ type: 'unreachable', to: 2n })
  t.deepEqual(stateOf(raft, 2n), ['probe', 2, 3])
  propose(raft)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [])
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[2]])
  receive(raft, 2n, appended(2, 2))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[2, 3, 4]])
})

test('a heartbeat goes to everybody who got nothing for heartbeatTicks, with the commit index (dissertation §3.4)', (t) => {
  const raft = leader()
  tick(raft, testOptions.heartbeatTicks)
  const sent = take(raft).messages
  t.deepEqual(
    sent.map(({ to, message }) => [to, message]),
    [2n, 3n].map((to) => [to, append(2, [2, 2], [], 2)]),
  )
})

test('a follower that lost what it had acknowledged is found out and repaired (raft-wire §6.4)', (t) => {
  const raft = leader({ log: [1, 1, 1] })
  t.deepEqual(stateOf(raft, 2n), ['replicate', 5, 6])
  tick(raft, testOptions.heartbeatTicks)
  settle(raft)
  receive(raft, 2n, refused(2, 5, 2))
  settle(raft)
  receive(raft, 2n, refused(2, 5, 2))
  t.deepEqual(stateOf(raft, 2n), ['probe', 2, 3])
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[2, 3, 4, 5]])
})

// Ours: 1…4 of old terms, the barrier is 5. The follower's disk holds 1…9, of which 3…9 are stale. One entry per message.
function probingStaleTail(): Raft {
  const raft = server({ log: [1, 1, 1], appendEntriesMax: 1 })
  elect(raft)
  receive(raft, 2n, refused(2, 4, 1, 0))
  t0 = appendsTo(settle(raft).messages, 2n)
  return raft
}
let t0: number[][] = []

test('a C follower that answers with a stale tail is not believed before it has our barrier (raft-wire §6.4, safety remark)', (t) => {
  const raft = probingStaleTail()
  t.deepEqual(t0, [[1, 2]])
  receive(raft, 2n, appended(2, 9, 0))
  t.deepEqual(stateOf(raft, 2n), ['replicate', 2, 3])
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [
    [2, 3],
    [3, 4],
    [4, 5],
  ])
  // Two more answers can be to messages without the barrier. The fourth cannot.
  for (let times = 0; times < 2; times++) receive(raft, 2n, appended(2, 9, 0))
  t.is(raft.commitIndex, 1)
  receive(raft, 2n, appended(2, 5, 0))
  t.is(raft.commitIndex, 5)
})

test('answers that were lost do not keep a C follower in doubt: a question with a number settles it (raft-wire §6.4)', (t) => {
  const raft = probingStaleTail()
  for (let times = 0; times < 50; times++) {
    tick(raft, testOptions.heartbeatTicks)
    settle(raft)
    receive(raft, 3n, refused(2, 99, 1))
  }
  for (let times = 0; times < 4; times++) {
    receive(raft, 2n, appended(2, 5, 0))
    settle(raft)
  }
  t.is(raft.commitIndex, 1)
  tick(raft, testOptions.heartbeatTicks)
  const sent = ofType(settle(raft).messages, 'appendEntries').filter(({ to }) => to === 2n)
  t.deepEqual(
    sent.map(({ prev }) => prev.index > 1000),
    [true, false],
  )
  receive(raft, 2n, refused(2, sent[0]!.prev.index, 5, 0))
  receive(raft, 2n, appended(2, 5, 0))
  t.is(raft.commitIndex, 5)
})

test('answers that were lost are made up for by heartbeats before a C follower is believed (raft-wire §6.4, safety remark)', (t) => {
  const raft = probingStaleTail()
  // The probe is repeated: its two answers look like two of the three that are needed.
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[1]])
  for (let times = 0; times < 4; times++) {
    receive(raft, 2n, appended(2, 9, 0))
    settle(raft)
  }
  t.is(raft.commitIndex, 1, 'one of the four may be the second answer to the probe')
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(appendsTo(settle(raft).messages, 2n).at(-1), [5])
  receive(raft, 2n, appended(2, 5, 0))
  t.is(raft.commitIndex, 5)
})

test('a C follower of which too much was believed is probed again, further down (raft-wire §6.4)', (t) => {
  const raft = probingStaleTail()
  receive(raft, 2n, appended(2, 9, 0))
  settle(raft)
  receive(raft, 2n, appended(2, 9, 0))
  t.deepEqual(stateOf(raft, 2n), ['replicate', 4, 6])
  settle(raft)
  receive(raft, 2n, refused(2, 4, 9, 0))
  t.deepEqual(stateOf(raft, 2n), ['probe', 4, 5])
  settle(raft)
  receive(raft, 2n, refused(2, 4, 9, 0))
  t.deepEqual(stateOf(raft, 2n), ['probe', 3, 4])
})

// ------------------------------------------------------------------------------------------------ lone voter

test('a lone voter sends only what its disk holds: after a crash it leads again in the same term (raft-wire §6.3)', (t) => {
  const raft = server({ configuration: members('1', '2s') })
  settle(raft)
  receive(raft, 2n, appended(1, 1))
  settle(raft)
  propose(raft)
  t.deepEqual(take(raft).messages, [])
  t.is(raft.commitIndex, 1)
  persist(raft, 2, 1)
  t.is(raft.commitIndex, 2)
  t.deepEqual(appendsTo(take(raft).messages, 2n), [[1, 2]])
})

test('a lone voter on disk is a lone voter, whomever it is about to promote (raft-wire §6.3)', (t) => {
  const raft = server({ configuration: members('1', '2s') })
  settle(raft)
  receive(raft, 2n, appended(1, 1))
  settle(raft)
  raft.step({ type: 'change', request: 1, change: { type: 'assign', id: 2n, role: 'voter' } })
  propose(raft)
  t.is(raft.configuration.servers[1]!.role, 'voter')
  t.deepEqual(take(raft).messages, [])
  persist(raft, 3, 1)
  t.deepEqual(appendsTo(take(raft).messages, 2n), [[1, 2, 3]])
  propose(raft)
  t.deepEqual(appendsTo(take(raft).messages, 2n), [[3, 4]], 'from now on a restart cannot lead in this term')
})

// ------------------------------------------------------------------------------------------------ own disk

test('a leader whose disk fails forgets what is not stored and steps down (raft-wire §6.9)', (t) => {
  const raft = leader()
  propose(raft, bytes(), bytes())
  take(raft)
  raft.step({ type: 'persistFailed', first: 3 })
  t.is(raft.state, 'follower')
  t.is(raft.lastIndex, 2)
  t.is(take(raft).truncateAfter, 2)
})

test('committed entries that our disk lost are handed to it once more', (t) => {
  const raft = leader()
  propose(raft, bytes(), bytes())
  take(raft)
  receive(raft, 2n, appended(2, 3))
  receive(raft, 3n, appended(2, 3))
  t.is(raft.commitIndex, 3)
  take(raft)
  raft.step({ type: 'persistFailed', first: 3 })
  t.is(raft.lastIndex, 3)
  const taken = take(raft)
  t.is(taken.truncateAfter, 2)
  t.deepEqual(
    taken.entries.map(({ index }) => index),
    [3],
  )
  persist(raft, 3, 2)
  t.is(raft.lastPersisted, 3)
})

// ------------------------------------------------------------------------------------------------ snapshots

function compacted(log: readonly number[] = [1, 1, 1, 1, 1]): Raft {
  const raft = leader({ log, configuration: three })
  const last = raft.lastApplied
  raft.step({ type: 'snapshotTaken', snapshot: snapshotOf([last, raft.termAt(last)!]), trailing: 2 })
  return raft
}

test('a snapshot trims the log and keeps trailing entries (dissertation §5.1)', (t) => {
  const raft = compacted()
  t.is(raft.lastIndex, 7)
  t.is(raft.firstIndex, 6)
  t.is(raft.termAt(4), undefined)
  t.is(raft.termAt(5), 1, 'the one before the first is remembered')
  t.is(raft.termAt(7), 2)
})

test('a follower that needs compacted entries gets a heartbeat, and the snapshot once it has been heard (raft-wire §6.4)', (t) => {
  const raft = compacted()
  raft.step({ type: 'unreachable', to: 2n })
  tick(raft, testOptions.heartbeatTicks)
  settle(raft)
  receive(raft, 2n, refused(2, 7, 1))
  const taken = settle(raft)
  t.deepEqual(
    taken.messages.filter(({ to }) => to === 2n).map(({ message }) => message),
    [{ type: 'installSnapshot', term: 2, snapshot: snapshotOf([7, 2]) }],
  )
  t.is(stateOf(raft, 2n)[0], 'snapshot')
})

function installing(): Raft {
  const raft = compacted()
  raft.step({ type: 'unreachable', to: 2n })
  tick(raft, testOptions.heartbeatTicks)
  settle(raft)
  receive(raft, 2n, refused(2, 7, 1))
  settle(raft)
  return raft
}

test('while a snapshot is installed only heartbeats are sent (raft-wire §6.4)', (t) => {
  const raft = installing()
  propose(raft)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [])
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[8]])
  receive(raft, 2n, refused(2, 8, 1))
  t.deepEqual(settle(raft).messages, [])
  t.is(stateOf(raft, 2n)[0], 'snapshot')
})

test('an installed snapshot continues with the entries behind it (raft-wire §6.4)', (t) => {
  const raft = installing()
  propose(raft)
  settle(raft)
  receive(raft, 2n, appended(2, 7))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[7, 8]])
  t.deepEqual(stateOf(raft, 2n), ['replicate', 7, 9])
})

test('the success of a snapshot does not vouch for what a C follower has behind it (raft-wire §6.4, safety remark)', (t) => {
  // Entries 1…5 are in the snapshot, 6 is of term 1, the barrier is 7. The follower holds 6…9 of another term.
  const entries = [command(6, 1)]
  const raft = server({ entries, snapshot: snapshotOf([5, 1]), appendEntriesMax: 1 })
  elect(raft)
  receive(raft, 2n, refused(2, 6, 0, 0))
  t.deepEqual(
    settle(raft).messages.map(({ message }) => message.type),
    ['installSnapshot'],
  )
  receive(raft, 2n, appended(2, 5, 0))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [
    [5, 6],
    [6, 7],
  ])
  receive(raft, 2n, appended(2, 9, 0))
  t.is(raft.commitIndex, 5)
  receive(raft, 2n, appended(2, 7, 0))
  t.is(raft.commitIndex, 7)
})

test('a refused snapshot is tried again after a heartbeat, not at once (raft-wire §6.4)', (t) => {
  const raft = installing()
  receive(raft, 2n, refused(2, 7, 1))
  t.is(stateOf(raft, 2n)[0], 'probe')
  t.deepEqual(settle(raft).messages, [])
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[7]])
  receive(raft, 2n, refused(2, 7, 1))
  t.true(all(settle(raft)).some(({ type }) => type === 'installSnapshot'))
})

test('a snapshot that is not answered in time is given up (raft-wire §6.1)', (t) => {
  const raft = installing()
  for (let ticks = 0; ticks < testOptions.installSnapshotTimeoutTicks; ticks++) {
    t.is(stateOf(raft, 2n)[0], 'snapshot')
    tick(raft)
    receive(raft, 3n, appended(2, raft.lastIndex))
  }
  t.is(stateOf(raft, 2n)[0], 'probe')
})

test('a snapshot that could not be sent is given up until the follower is heard again (raft-wire §1.4)', (t) => {
  const raft = installing()
  raft.step({ type: 'unreachable', to: 2n })
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(
    all(settle(raft)).map(({ type }) => type),
    ['appendEntries', 'appendEntries'],
  )
  receive(raft, 2n, refused(2, 7, 1))
  t.true(all(settle(raft)).some(({ type }) => type === 'installSnapshot'))
})

test('a cluster brings a server back by snapshot', (t) => {
  const cluster = new Cluster(three)
  cluster.elect()
  cluster.cut.add(3n)
  cluster.propose(20)
  const { leader } = cluster
  const last = leader.lastApplied
  cluster.step(leader.id, {
    type: 'snapshotTaken',
    snapshot: snapshotOf([last, leader.termAt(last)!]),
    trailing: 4,
  })
  cluster.cut.delete(3n)
  cluster.tick(3 * electionTimeoutTicks)
  t.is(cluster.raft(3n).lastApplied, cluster.leader.lastIndex)
  t.is(cluster.get(3n).disk.snapshot?.last.index, last)
  cluster.propose()
  cluster.tick(2)
  t.is(cluster.raft(3n).lastApplied, cluster.leader.lastIndex)
})

test('a log restored behind a snapshot serves followers from its entries, and from the snapshot below them', (t) => {
  const entries = [command(6, 1), command(7, 1), command(8, 1)]
  const raft = server({ entries, snapshot: snapshotOf([7, 1]) })
  t.deepEqual([raft.commitIndex, raft.lastApplied, raft.lastPersisted, raft.lastIndex], [7, 7, 8, 8])
  t.is(raft.termAt(5), undefined)
  elect(raft)
  receive(raft, 2n, refused(2, 8, 6))
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[6, 7, 8, 9]])
  receive(raft, 3n, refused(2, 8, 5))
  t.deepEqual(
    settle(raft).messages.map(({ message }) => message.type),
    ['installSnapshot'],
    'entry 6 cannot be sent: the term before it is unknown',
  )
})

test('a snapshot beyond the end of the stored log replaces it', (t) => {
  const raft = server({ entries: logOf(three, 1, 1), snapshot: snapshotOf([9, 2]) })
  t.deepEqual([raft.commitIndex, raft.lastIndex, raft.termAt(9)], [9, 9, 2])
  t.is(raft.termAt(2), undefined)
})

test('a heartbeat carries no entries that wait for room in the pipeline', (t) => {
  const raft = leader()
  for (let times = 0; times < 6; times++) {
    propose(raft)
    settle(raft)
  }
  tick(raft, testOptions.heartbeatTicks)
  t.deepEqual(appendsTo(settle(raft).messages, 2n), [[6]])
})

test('the first message that a follower accepts in a term brings the barrier, whatever is proposed meanwhile (raft-wire §6.4)', (t) => {
  const raft = server({ log: [1] })
  elect(raft)
  propose(raft)
  settle(raft)
  receive(raft, 2n, refused(2, 2, 1))
  const [message] = ofType(settle(raft).messages, 'appendEntries')
  t.deepEqual(message!.entries.slice(0, 2), [command(2, 1), barrier(3, 2)])
})

test('a configuration that a new leader finds in its log is in force at once (dissertation §4.1)', (t) => {
  const grown = members('1', '2', '3', '4')
  const raft = server({ entries: [...logOf(three), configurationEntry(2, 1, grown)] })
  const { messages } = elect(raft)
  t.deepEqual(appendsTo(messages, 4n), [[2, 3]])
  receive(raft, 2n, appended(2, 3))
  t.is(raft.commitIndex, 1, 'two of four are no majority')
  receive(raft, 4n, appended(2, 3))
  t.is(raft.commitIndex, 3)
  t.is(raft.committedConfiguration.index, 2)
})
