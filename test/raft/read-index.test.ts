import test from 'ava'
import {
  append,
  appended,
  Cluster,
  elect,
  leader,
  members,
  ofType,
  propose,
  receive,
  refused,
  server,
  settle,
  testOptions,
  three,
  tick,
} from './support.js'
import type { Raft } from '../../lib/raft/raft.js'
import type { Envelope } from '../../lib/raft/types.js'

function read(raft: Raft, id: number) {
  return raft.step({ type: 'readIndex', id })
}
/** The confirmations among the messages: they speak of an entry far above the log. */
function rounds(messages: readonly Envelope[]): { to: bigint; index: number }[] {
  return ofType(messages, 'appendEntries')
    .filter(({ prev }) => prev.index > 2 ** 50)
    .map(({ to, prev }) => ({ to, index: prev.index }))
}

test('a read waits for a majority that answers a message sent after it came (dissertation §6.4)', (t) => {
  const raft = leader()
  t.is(read(raft, 1), undefined)
  const taken = settle(raft)
  t.deepEqual(taken.reads, [])
  const [first] = rounds(taken.messages)
  t.deepEqual(
    rounds(taken.messages).map(({ to }) => to),
    [2n, 3n],
  )
  receive(raft, 2n, appended(2, 2))
  receive(raft, 3n, refused(2, 1, 2))
  t.deepEqual(settle(raft).reads, [], 'answers to older messages prove nothing')
  receive(raft, 2n, refused(2, first!.index, 2))
  t.deepEqual(settle(raft).reads, [{ id: 1, index: 2 }])
})

test('a follower refuses a confirmation like any missing entry, and that is its answer (raft-wire §6.5)', (t) => {
  const raft = leader()
  read(raft, 1)
  const [{ message }] = settle(raft).messages as [Envelope]
  const follower = server({ id: 2n, term: 2 })
  receive(follower, 1n, message)
  const [answer] = ofType(settle(follower).messages, 'appendEntriesResult')
  receive(raft, 2n, answer!)
  t.is(settle(raft).reads.length, 1)
  t.is(follower.leader?.id, 1n)
})

test('one round serves all reads that came before it; those that come during it share the next (dissertation §6.4)', (t) => {
  const raft = leader()
  read(raft, 1)
  read(raft, 2)
  const [first] = rounds(settle(raft).messages)
  read(raft, 3)
  read(raft, 4)
  t.deepEqual(rounds(settle(raft).messages), [])
  receive(raft, 2n, refused(2, first!.index, 2))
  const taken = settle(raft)
  t.deepEqual(
    taken.reads.map(({ id }) => id),
    [1, 2],
  )
  const [second] = rounds(taken.messages)
  t.true(second!.index > first!.index)
  receive(raft, 3n, refused(2, first!.index, 2))
  t.deepEqual(settle(raft).reads, [], 'a late answer to the first round')
  receive(raft, 3n, refused(2, second!.index, 2))
  t.deepEqual(
    settle(raft).reads.map(({ id }) => id),
    [3, 4],
  )
})

test('a read sees everything committed when it came (dissertation §6.4)', (t) => {
  const raft = leader()
  propose(raft)
  settle(raft)
  receive(raft, 3n, appended(2, 3))
  read(raft, 1)
  const [round] = rounds(settle(raft).messages)
  receive(raft, 3n, refused(2, round!.index, 3))
  t.deepEqual(settle(raft).reads, [{ id: 1, index: 3 }])
})

test('a new leader reads only when an entry of its term is committed (dissertation §6.4)', (t) => {
  const raft = server({ log: [1] })
  elect(raft)
  t.false(raft.hasCommittedInTerm)
  read(raft, 1)
  t.deepEqual(rounds(settle(raft).messages), [])
  receive(raft, 2n, appended(2, 3))
  t.is(rounds(settle(raft).messages).length, 2)
})

test('a lone voter reads at once (dissertation §6.4)', (t) => {
  const raft = server({ configuration: members('1', '2s'), log: [1] })
  read(raft, 1)
  t.deepEqual(settle(raft).reads, [{ id: 1, index: 2 }])
})

test('standbys are not asked and do not confirm (dissertation §6.4)', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4s') })
  read(raft, 1)
  const sent = rounds(settle(raft).messages)
  t.false(sent.some(({ to }) => to === 4n))
  receive(raft, 4n, refused(2, sent[0]!.index, 2))
  t.deepEqual(settle(raft).reads, [])
})

test('an unanswered round is asked again with the heartbeats, of those that have not answered', (t) => {
  const raft = leader({ configuration: members('1', '2', '3', '4', '5') })
  read(raft, 1)
  const [first] = rounds(settle(raft).messages)
  receive(raft, 2n, refused(2, first!.index, 2))
  tick(raft, testOptions.heartbeatTicks)
  const again = rounds(settle(raft).messages)
  t.deepEqual(
    again,
    [3n, 4n, 5n].map((to) => ({ to, index: first!.index })),
  )
  receive(raft, 5n, refused(2, first!.index, 2))
  t.is(settle(raft).reads.length, 1)
})

test('only a leader reads, and pending reads vanish with the office (dissertation §6.4)', (t) => {
  t.is(read(server(), 1), 'notLeader')
  const raft = leader()
  read(raft, 1)
  const [round] = rounds(settle(raft).messages)
  receive(raft, 2n, append(3, [2, 2]))
  receive(raft, 3n, refused(2, round!.index, 2))
  t.deepEqual(settle(raft).reads, [])
})

test('a leader cut off from its cluster answers no read (dissertation §6.4)', (t) => {
  const cluster = new Cluster(three)
  const old = cluster.elect()
  cluster.cut.add(old.id)
  cluster.step(old.id, { type: 'readIndex', id: 1 })
  const fresh = cluster.elect()
  t.not(fresh.id, old.id)
  cluster.propose(3)
  cluster.cut.delete(old.id)
  cluster.tick(20)
  t.deepEqual(cluster.get(old.id).reads, [])
  cluster.step(fresh.id, { type: 'readIndex', id: 2 })
  t.deepEqual(cluster.get(fresh.id).reads, [{ id: 2, index: fresh.commitIndex }])
})

test('a round that waited for a server that is removed ends with what is left (dissertation §6.4)', (t) => {
  const raft = leader({ configuration: members('1', '2') })
  read(raft, 1)
  settle(raft)
  raft.step({ type: 'change', request: 1, change: { type: 'remove', id: 2n } })
  t.deepEqual(settle(raft).reads, [{ id: 1, index: 2 }])
  read(raft, 2)
  t.is(settle(raft).reads.length, 1)
})

test('confirmations move nothing of the replication (raft-wire §6.4)', (t) => {
  const raft = leader()
  const before = raft.progress()
  read(raft, 1)
  const [round] = rounds(settle(raft).messages)
  receive(raft, 2n, refused(2, round!.index, 1))
  t.deepEqual(raft.progress(), before)
  receive(raft, 2n, refused(2, round!.index + 1000, 1))
  t.deepEqual(raft.progress(), before)
})

test('reads that wait are bounded', (t) => {
  const raft = leader()
  let refusal
  for (let id = 0; id < 70_000 && refusal === undefined; id++) refusal = read(raft, id)
  t.is(refusal, 'pipelineFull')
})
