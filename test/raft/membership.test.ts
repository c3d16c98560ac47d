import test from 'ava'
import {
  append,
  appended,
  bytes,
  Cluster,
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
  take,
  testOptions,
  three,
  tick,
} from './support.js'
import { configurationByteLength } from '../../lib/raft/configuration.js'
import type { Raft } from '../../lib/raft/raft.js'
import type { ConfigurationChange, Role, ServerId } from '../../lib/raft/types.js'

let nextRequest = 100
function ask(raft: Raft, change: ConfigurationChange) {
  return raft.step({ type: 'change', request: nextRequest++, change })
}
function assign(raft: Raft, id: ServerId, role: Role) {
  return ask(raft, { type: 'assign', id, role })
}
function rolesOf(raft: Raft) {
  return raft.configuration.servers.map(({ id, role }) => `${id} ${role}`)
}
function commit(raft: Raft): void {
  settle(raft)
  for (const { id } of raft.progress()) receive(raft, id, appended(raft.term, raft.lastIndex))
}

test('a new server begins as a spare, at the end (raft-wire §6.7)', (t) => {
  const raft = leader()
  t.is(ask(raft, { type: 'add', id: 9n, address: 'new' }), undefined)
  const request = nextRequest - 1
  t.deepEqual(rolesOf(raft), ['1 voter', '2 voter', '3 voter', '9 spare'])
  const taken = settle(raft)
  t.is(taken.entries[0]!.type, 'configuration')
  t.is(taken.entries[0]!.byteLength, configurationByteLength(raft.configuration))
  t.false(taken.messages.some(({ to }) => to === 9n))
  t.deepEqual(taken.outcomes, [])
  receive(raft, 2n, appended(2, 3))
  t.deepEqual(settle(raft).outcomes, [{ request, result: 'done' }])
  t.deepEqual(raft.committedConfiguration, { configuration: raft.configuration, index: 3 })
})

test('a configuration has the length of its encoding (raft-wire §4.3)', (t) => {
  t.is(configurationByteLength({ servers: [] }), 16)
  const address = '127.0.0.1:9001'
  t.is(configurationByteLength({ servers: [{ id: 1n, address, role: 'voter' }] }), 40)
  t.is(configurationByteLength({ servers: [{ id: 1n, address: 'é€😀', role: 'voter' }] }), 32)
})

test('changes that make no sense are refused and change nothing (raft-wire §6.7)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4x') })
  for (const [change, refusal] of [
    [{ type: 'add', id: 2n, address: 'new' }, 'duplicateId'],
    [{ type: 'add', id: 9n, address: 'node-2' }, 'duplicateAddress'],
    [{ type: 'assign', id: 9n, role: 'voter' }, 'unknownId'],
    [{ type: 'assign', id: 2n, role: 'voter' }, 'badRole'],
    [{ type: 'remove', id: 9n }, 'unknownId'],
  ] as const)
    t.is(ask(raft, change), refusal)
  t.is(raft.lastIndex, 2)
  t.is(ask(server(), { type: 'remove', id: 2n }), 'notLeader')
})

test('the last voter can neither be removed nor demoted: nobody could commit any more', (t) => {
  const raft = server({ configuration: members('1', '2s') })
  t.is(ask(raft, { type: 'remove', id: 1n }), 'badTarget')
  t.is(assign(raft, 1n, 'standby'), 'badRole')
  t.is(ask(raft, { type: 'remove', id: 2n }), undefined)
})

test('one change at a time (dissertation §4.1)', (t) => {
  const raft = leader()
  t.is(ask(raft, { type: 'add', id: 9n, address: 'new' }), undefined)
  t.is(ask(raft, { type: 'remove', id: 3n }), 'changeInProgress')
  commit(raft)
  t.is(ask(raft, { type: 'remove', id: 3n }), undefined)
})

test('a new leader changes nothing before an entry of its term is committed (dissertation §4.1, as corrected in 2015)', (t) => {
  const raft = server()
  elect(raft)
  t.is(ask(raft, { type: 'remove', id: 3n }), 'changeInProgress')
  receive(raft, 2n, appended(2, 2))
  t.is(ask(raft, { type: 'remove', id: 3n }), undefined)
})

test('a change waits for the majority of the new configuration (dissertation §4.1)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4s') })
  assign(raft, 4n, 'voter')
  settle(raft)
  receive(raft, 2n, appended(2, 3))
  t.is(raft.commitIndex, 2)
  receive(raft, 4n, appended(2, 3))
  t.is(raft.commitIndex, 3)
})

test('entries that the smaller majority already has are committed with the change (dissertation §4.1)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4') })
  propose(raft)
  settle(raft)
  receive(raft, 2n, appended(2, 3))
  t.is(raft.commitIndex, 2)
  ask(raft, { type: 'remove', id: 4n })
  t.is(raft.commitIndex, 3)
})

test('a server that is removed or demoted to spare gets nothing more (raft-wire §6.4)', (t) => {
  for (const change of [
    { type: 'remove', id: 3n },
    { type: 'assign', id: 3n, role: 'spare' },
  ] as const) {
    const raft = leader()
    ask(raft, change)
    propose(raft)
    const { messages } = settle(raft)
    t.true(messages.some(({ to }) => to === 2n))
    t.false(messages.some(({ to }) => to === 3n))
  }
})

// ------------------------------------------------------------------------------------------------ promotion

test('a standby that has everything becomes voter at once (raft-wire §6.7)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4s') })
  t.is(assign(raft, 4n, 'voter'), undefined)
  t.is(rolesOf(raft)[3], '4 voter')
})

function promoting(options = {}): Raft {
  const raft = leader({ configuration: members('1', '2', '3', '4x'), log: [1, 1], ...options })
  t0 = nextRequest
  assign(raft, 4n, 'voter')
  settle(raft)
  return raft
}
let t0 = 0

test('a server that is behind catches up first, and the log goes on meanwhile (dissertation §4.2.1)', (t) => {
  const raft = promoting()
  t.is(rolesOf(raft)[3], '4 spare')
  t.is(ask(raft, { type: 'remove', id: 3n }), 'changeInProgress')
  t.is(propose(raft), undefined)
  settle(raft)
  receive(raft, 4n, refused(2, 3, 0))
  const sent = ofType(settle(raft).messages, 'appendEntries').filter(({ to }) => to === 4n)
  t.deepEqual(
    sent.map(({ prev, entries }) => [prev.index, ...entries.map(({ index }) => index)]),
    [[0, 1, 2, 3, 4, 5]],
  )
  receive(raft, 4n, appended(2, 5))
  t.is(rolesOf(raft)[3], '4 voter')
  commit(raft)
  t.deepEqual(settle(raft).outcomes, [{ request: t0, result: 'done' }])
})

test('a round that took less than an election timeout is good enough (dissertation §4.2.1)', (t) => {
  const raft = promoting()
  receive(raft, 4n, refused(2, 3, 0))
  settle(raft)
  propose(raft)
  tick(raft, electionTimeoutTicks - 1)
  receive(raft, 4n, appended(2, 4))
  t.is(rolesOf(raft)[3], '4 voter')
})

function keepAlive(raft: Raft, ticks: number): void {
  for (let time = 0; time < ticks; time++) {
    tick(raft)
    receive(raft, 2n, appended(2, raft.lastIndex))
    settle(raft)
  }
}

test('a slow round is followed by another, up to maxCatchUpRounds (dissertation §4.2.1, raft-wire §6.7)', (t) => {
  const raft = promoting()
  receive(raft, 4n, refused(2, 3, 0))
  for (let round = 1; round < testOptions.maxCatchUpRounds; round++) {
    const { lastIndex } = raft
    propose(raft)
    keepAlive(raft, electionTimeoutTicks)
    receive(raft, 4n, appended(2, lastIndex))
    t.is(rolesOf(raft)[3], '4 spare')
  }
  propose(raft)
  keepAlive(raft, electionTimeoutTicks)
  t.deepEqual(settle(raft).outcomes, [])
  tick(raft)
  t.deepEqual(settle(raft).outcomes, [{ request: t0, result: 'noConnection' }])
  t.is(ask(raft, { type: 'remove', id: 4n }), undefined)
})

test('a server that cannot be reached is not promoted (raft-wire §6.7)', (t) => {
  const raft = promoting()
  keepAlive(raft, testOptions.catchUpRoundTimeoutTicks)
  t.is(rolesOf(raft)[3], '4 spare')
  tick(raft)
  t.deepEqual(settle(raft).outcomes, [{ request: t0, result: 'noConnection' }])
  t.is(rolesOf(raft)[3], '4 spare')
})

test('a change or promotion of a deposed leader has an unknown end (raft-wire §6.7)', (t) => {
  const raft = promoting()
  receive(raft, 2n, append(9, [1, 1]))
  t.deepEqual(settle(raft).outcomes, [{ request: t0, result: 'leadershipLost' }])

  const changing = leader()
  ask(changing, { type: 'remove', id: 3n })
  receive(changing, 2n, append(9, [1, 1]))
  t.deepEqual(settle(changing).outcomes, [{ request: nextRequest - 1, result: 'leadershipLost' }])
})

// ------------------------------------------------------------------------------------------------ the leader itself

test('a leader that removes itself leads, without counting itself, until that is committed (dissertation §4.2.2)', (t) => {
  const raft = leader()
  ask(raft, { type: 'remove', id: 1n })
  propose(raft)
  settle(raft)
  t.is(raft.state, 'leader')
  receive(raft, 2n, appended(2, 3))
  t.is(raft.commitIndex, 2, 'one of the two that are left')
  receive(raft, 3n, appended(2, 3))
  t.is(raft.commitIndex, 3)
  t.is(raft.state, 'follower')
  t.deepEqual(settle(raft).outcomes, [{ request: nextRequest - 1, result: 'done' }])
  tick(raft, 100)
  t.is(raft.state, 'follower')
})

test('a leader that demotes itself steps down at the commit, and asks another to take over (dissertation §3.10, raft-wire §6.7)', (t) => {
  const raft = leader()
  assign(raft, 1n, 'standby')
  settle(raft)
  receive(raft, 2n, appended(2, 3))
  receive(raft, 3n, appended(2, 3))
  t.is(raft.state, 'follower')
  t.deepEqual(
    ofType(settle(raft).messages, 'timeoutNow').map(({ to, last }) => [to, last.index]),
    [[2n, 3]],
  )
})

test('removing the leader of a cluster elects another at once', (t) => {
  const cluster = new Cluster(three)
  const old = cluster.elect()
  cluster.step(old.id, { type: 'change', request: 1, change: { type: 'remove', id: old.id } })
  t.is(cluster.leaders.length, 1)
  t.not(cluster.leader.id, old.id)
  t.deepEqual(cluster.get(old.id).outcomes, [{ request: 1, result: 'done' }])
  cluster.propose()
  t.is(cluster.leader.commitIndex, cluster.leader.lastIndex)
})

// ------------------------------------------------------------------------------------------------ a life

test('a cluster grows from one to three voters and shrinks again', (t) => {
  const cluster = new Cluster(members('1'))
  t.is(cluster.elect().id, 1n)
  for (const id of [2n, 3n]) {
    cluster.start(id)
    t.is(
      cluster.step(1n, { type: 'change', request: 1, change: { type: 'add', id, address: `node-${id}` } }),
      undefined,
    )
    cluster.propose(3)
    t.is(cluster.step(1n, { type: 'change', request: 2, change: { type: 'assign', id, role: 'voter' } }), undefined)
    cluster.tick(2 * electionTimeoutTicks)
    cluster.propose(2)
    cluster.tick(testOptions.heartbeatTicks)
    t.is(cluster.raft(id).lastApplied, cluster.leader.lastIndex)
  }
  t.is(cluster.get(1n).outcomes.length, 4)
  cluster.cut.add(1n)
  const second = cluster.elect()
  cluster.cut.delete(1n)
  cluster.tick(10)
  for (const id of [1n, 2n, 3n].filter((id) => id !== second.id)) {
    const refusal = cluster.step(second.id, { type: 'change', request: 3, change: { type: 'remove', id } })
    t.is(refusal, undefined)
    cluster.cut.add(id)
  }
  cluster.propose(2)
  t.is(second.commitIndex, second.lastIndex)
})

test('a spare that falls behind a snapshot is promoted through it', (t) => {
  const cluster = new Cluster(members('1'))
  cluster.elect()
  cluster.propose(20)
  const { leader } = cluster
  leader.step({
    type: 'snapshotTaken',
    snapshot: { last: { index: 20, term: 1 }, ...leader.committedConfiguration, configurationIndex: 1 },
    trailing: 0,
  })
  cluster.start(2n)
  cluster.step(1n, { type: 'change', request: 1, change: { type: 'add', id: 2n, address: 'node-2' } })
  cluster.step(1n, { type: 'change', request: 2, change: { type: 'assign', id: 2n, role: 'voter' } })
  cluster.tick(10)
  t.deepEqual(
    cluster.get(1n).outcomes.map(({ result }) => result),
    ['done', 'done'],
  )
  t.is(cluster.get(2n).disk.snapshot?.last.index, 20)
})

test('a promotion that caught up during a transfer goes on when the transfer has failed (raft-wire §6.7, §6.8)', (t) => {
  const raft = promoting()
  t.is(raft.step({ type: 'transfer', request: 5, to: 3n }), undefined)
  receive(raft, 4n, refused(2, 3, 0))
  settle(raft)
  receive(raft, 4n, appended(2, 4))
  t.is(rolesOf(raft)[3], '4 spare')
  keepAlive(raft, electionTimeoutTicks)
  t.is(rolesOf(raft)[3], '4 voter')
})

test('a promoted voter counts from the moment that the leader has appended it (dissertation §4.1)', (t) => {
  const raft = server({ configuration: members('1', '2s'), entries: logOf(members('1', '2s')) })
  settle(raft)
  receive(raft, 2n, appended(1, 1))
  assign(raft, 2n, 'voter')
  take(raft)
  persist(raft, 2, 1)
  t.is(raft.commitIndex, 1)
  take(raft)
  receive(raft, 2n, appended(1, 2))
  t.is(raft.commitIndex, 2)
  propose(raft, bytes())
  settle(raft)
  t.is(raft.commitIndex, 2)
})
