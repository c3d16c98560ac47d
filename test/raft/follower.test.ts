import test from 'ava'
import {
  addressOf,
  append,
  appended,
  barrier,
  bytes,
  command,
  configurationEntry,
  installSnapshot,
  logOf,
  members,
  persist,
  receive,
  refused,
  server,
  settle,
  take,
  three,
  tick,
} from './support.js'
import type { Raft } from '../../lib/raft/raft.js'
import type { Envelope } from '../../lib/raft/types.js'

function results(raft: Raft) {
  const { messages, messagesAfterPersist } = take(raft)
  const resultsIn = (envelopes: readonly Envelope[]) =>
    envelopes.map(({ message }) => message).filter(({ type }) => type === 'appendEntriesResult')
  return { now: resultsIn(messages), afterPersist: resultsIn(messagesAfterPersist) }
}
const features = 0

test('entries that follow the log are stored, and acknowledged once durable (dissertation §3.5, raft-wire §6.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [barrier(2, 2), command(3, 2)]))
  const taken = take(raft)
  t.deepEqual(taken.entries, [barrier(2, 2), command(3, 2)])
  t.is(taken.truncateAfter, undefined)
  t.deepEqual(taken.messages, [])
  t.deepEqual(taken.messagesAfterPersist, [{ to: 2n, address: addressOf(2n), message: appended(2, 3, features) }])
})

test('a reply goes to the address that the leader announced (raft-wire §1.2)', (t) => {
  const raft = server({ term: 2 })
  raft.step({ type: 'receive', from: 2n, address: 'moved', message: append(2, [1, 1]) })
  t.is(take(raft).messages[0]!.address, 'moved')
  t.deepEqual(raft.leader, { id: 2n, address: 'moved' })
})

test('a lower term is refused with our term (dissertation §3.3)', (t) => {
  const raft = server({ term: 5, log: [2, 2] })
  receive(raft, 2n, append(4, [3, 2]))
  t.deepEqual(results(raft).now, [refused(5, 3, 3, features)])
  t.is(raft.leader, undefined)
})

test('a missing previous entry is refused (dissertation §3.5)', (t) => {
  const raft = server({ log: [2] })
  receive(raft, 2n, append(2, [5, 2], [command(6, 2)]))
  t.deepEqual(results(raft).now, [refused(2, 5, 2, features)])
  t.is(raft.lastIndex, 2)
})

test('a previous entry of another term is refused, with a hint where ours could match (dissertation §3.5)', (t) => {
  const raft = server({ log: [2, 2, 5, 5, 5] })
  receive(raft, 2n, append(6, [6, 4]))
  settle(raft)
  receive(raft, 2n, append(6, [6, 4]))
  t.deepEqual(results(raft).now, [refused(6, 6, 3, features)])
})

test('only a conflict truncates, from the first conflicting entry (dissertation §3.5)', (t) => {
  const raft = server({ log: [2, 3, 3, 3] })
  receive(raft, 2n, append(5, [2, 2], [command(3, 3), command(4, 5)]))
  const taken = take(raft)
  t.is(taken.truncateAfter, 3)
  t.deepEqual(taken.entries, [command(4, 5)])
  t.is(raft.lastIndex, 4)
})

test('a late message that covers less than the log truncates nothing (dissertation §3.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(3, 2), command(4, 2)]))
  settle(raft)
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  t.is(raft.lastIndex, 4)
  t.deepEqual(results(raft).now, [appended(2, 2, features)])
})

test('an acknowledgement covers what was compared, not a stale tail (raft-wire §6.4, safety remark)', (t) => {
  const raft = server({ log: [2, 2, 2, 2] })
  settle(raft)
  receive(raft, 2n, append(2, [3, 2]))
  t.deepEqual(results(raft).now, [appended(2, 3, features)])
})

test('a heartbeat is answered at once while the disk is busy, with what it holds (raft-wire §6.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  take(raft)
  receive(raft, 2n, append(2, [2, 2]))
  t.deepEqual(results(raft), { now: [appended(2, 1, features)], afterPersist: [] })
})

test('entries that come twice while they are being written are acknowledged when they are (raft-wire §6.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  take(raft)
  // A new leader sends what the old one had sent: the old acknowledgement goes to the old one.
  receive(raft, 3n, append(3, [1, 1], [command(2, 2)]))
  t.deepEqual(results(raft), { now: [], afterPersist: [] })
  persist(raft, 2, 2)
  const taken = take(raft)
  t.deepEqual(taken.messages, [{ to: 3n, address: addressOf(3n), message: appended(3, 2, features) }])
})

test('one acknowledgement serves all that became durable together', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  receive(raft, 2n, append(2, [2, 2], [command(3, 2), command(4, 2)]))
  t.deepEqual(results(raft), { now: [], afterPersist: [appended(2, 4, features)] })
})

test('an acknowledgement that has not left is dropped with the term: what it speaks of may go (raft-wire §6.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(3, 2)]))
  receive(raft, 3n, append(3, [1, 1], [command(2, 3)]))
  const { messagesAfterPersist, entries } = take(raft)
  t.deepEqual(entries, [command(2, 3)])
  t.deepEqual(messagesAfterPersist, [{ to: 3n, address: addressOf(3n), message: appended(3, 2, features) }])
})

test('the commit index follows the leader as far as the log is known to agree (dissertation §3.5)', (t) => {
  const raft = server({ log: [2, 2, 2, 2] })
  settle(raft)
  receive(raft, 2n, append(2, [3, 2], [], 5))
  t.is(raft.commitIndex, 3)
  receive(raft, 2n, append(2, [4, 2], [], 2))
  t.is(raft.commitIndex, 3, 'never back')
  t.deepEqual(
    settle(raft).committed.map(({ index }) => index),
    [2, 3],
  )
})

test('a follower commits what its own disk holds, and the rest when it does (raft-wire §6.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(3, 2)], 3))
  t.is(raft.commitIndex, 1)
  take(raft)
  persist(raft, 3, 2)
  t.is(raft.commitIndex, 3)
})

test('a conflict with what is committed is neither taken nor answered, and is reported (dissertation §3.6.3)', (t) => {
  const raft = server({ log: [2, 2] })
  receive(raft, 2n, append(2, [3, 2], [], 3))
  settle(raft)
  receive(raft, 3n, append(7, [1, 1], [command(2, 7)]))
  t.is(raft.conflictIndex, 2)
  t.is(raft.termAt(2), 2)
  receive(raft, 3n, append(7, [2, 6]))
  const taken = take(raft)
  t.deepEqual([...taken.messages, ...taken.messagesAfterPersist], [])
  t.is(raft.lastIndex, 3)
})

test('a configuration is in force on a follower once persisted, and gone when truncated (raft-wire §6.2, §6.7)', (t) => {
  const raft = server({ configuration: members('1s', '2', '3') })
  const promoted = members('1', '2', '3')
  receive(raft, 2n, append(1, [1, 1], [configurationEntry(2, 1, promoted)]))
  take(raft)
  t.is(raft.configuration, promoted, 'the newest of the log')
  tick(raft, 30)
  t.is(raft.state, 'follower', 'but not in force')
  persist(raft, 2, 1)
  tick(raft, 30)
  t.is(raft.state, 'candidate')
  receive(raft, 3n, append(5, [1, 1], [command(2, 5)]))
  t.is(raft.state, 'follower')
  tick(raft, 30)
  settle(raft)
  t.is(raft.state, 'follower')
  t.deepEqual(raft.configuration, members('1s', '2', '3'))
})

test('after a restart the newest configuration is in force and uncommitted (raft-wire §6.7)', (t) => {
  const entries = [...logOf(three), configurationEntry(2, 1, members('1', '2', '3', '4s'))]
  const raft = server({ entries })
  t.is(raft.configuration.servers.length, 4)
  t.deepEqual(raft.committedConfiguration, { configuration: three, index: 1 })
})

test('a new server without anything takes the log from the first entry (raft-wire §6.5)', (t) => {
  const raft = server({ id: 4n, term: 0, entries: [] })
  receive(raft, 1n, append(3, [0, 0], [configurationEntry(1, 1, three), command(2, 3)], 2))
  const taken = settle(raft)
  t.deepEqual(taken.vote, { term: 3, votedFor: undefined })
  t.deepEqual(
    taken.committed.map(({ index }) => index),
    [1, 2],
  )
  t.deepEqual(raft.configuration, three)
})

test('messages of a new term leave after the term is durable (dissertation §3.8)', (t) => {
  const raft = server({ term: 1 })
  receive(raft, 2n, append(2, [1, 1]))
  const taken = take(raft)
  t.deepEqual(taken.vote, { term: 2, votedFor: undefined })
  t.deepEqual(taken.messages, [])
  t.is(taken.messagesAfterPersist.length, 1)
})

test('a message whose entries do not continue its previous one is ignored', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(3, 2)]))
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(4, 2)]))
  t.is(raft.ready(), undefined)
  t.is(raft.lastIndex, 1)
})

test('what the disk lost is forgotten and asked for again (raft-wire §6.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(3, 2)]))
  take(raft)
  raft.step({ type: 'persistFailed', first: 2 })
  t.is(raft.lastIndex, 1)
  const taken = take(raft)
  t.deepEqual(taken.messages, [{ to: 2n, address: addressOf(2n), message: refused(2, 2, 1, features) }])
  t.is(taken.truncateAfter, 1)
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  t.deepEqual(take(raft).entries, [command(2, 2)])
})

test('a write that failed is not waited for: the same entries written again count', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  take(raft)
  receive(raft, 2n, append(2, [2, 2], [command(3, 2)]))
  take(raft)
  persist(raft, 2, 2)
  raft.step({ type: 'persistFailed', first: 3 })
  take(raft)
  receive(raft, 2n, append(2, [2, 2], [command(3, 2)]))
  take(raft)
  persist(raft, 3, 2)
  t.is(raft.lastPersisted, 3)
})

test('what is owed for entries that the disk lost is not acknowledged, not even in part', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(3, 2)]))
  take(raft)
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(3, 2)]))
  raft.step({ type: 'persistFailed', first: 2 })
  t.deepEqual(results(raft), { now: [refused(2, 2, 1, features)], afterPersist: [] })
})

test('an entry that was truncated and came back counts when its second write ends, not its first', (t) => {
  const raft = server({ term: 1 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  take(raft)
  receive(raft, 3n, append(3, [1, 1], [command(2, 3)]))
  take(raft)
  receive(raft, 2n, append(4, [1, 1], [command(2, 2)]))
  const taken = take(raft)
  t.deepEqual(taken.entries, [command(2, 2)])
  persist(raft, 2, 2)
  t.is(raft.lastPersisted, 1)
  persist(raft, 2, 3)
  t.is(raft.lastPersisted, 1)
  persist(raft, 2, 2)
  t.is(raft.lastPersisted, 2)
})

test('entries that outrun the disk are dropped at a bound, and taken again when it has caught up', (t) => {
  const pipelineBytesMax = 100
  const raft = server({ term: 2, pipelineBytesMax })
  let index = 1
  for (let times = 0; times < 100; times++) {
    receive(raft, 2n, append(2, [index, index === 1 ? 1 : 2], [command(index + 1, 2, bytes(80))]))
    index = raft.lastIndex
  }
  t.is(raft.lastIndex, 7)
  settle(raft)
  receive(raft, 2n, append(2, [7, 2], [command(8, 2, bytes(80))]))
  t.is(raft.lastIndex, 8)
})

test('the refusal of a lower term is never the 0 that means success (raft-wire §2.4)', (t) => {
  const raft = server({ term: 5, log: [2, 2] })
  receive(raft, 2n, append(4, [0, 0]))
  t.deepEqual(results(raft).now, [refused(5, 1, 3, features)])
})

// ------------------------------------------------------------------------------------------------ snapshots

test('a snapshot replaces log and state machine, and is acknowledged then (dissertation §5.1, raft-wire §6.6)', (t) => {
  const raft = server({ log: [2, 2] })
  const grown = members('1', '2', '3', '4')
  receive(raft, 2n, installSnapshot(3, [20, 3], grown, 17))
  t.deepEqual(raft.installingSnapshot?.last, { index: 20, term: 3 })
  const taken = take(raft)
  t.deepEqual(taken.snapshot, { last: { index: 20, term: 3 }, configuration: grown, configurationIndex: 17 })
  t.deepEqual(taken.messagesAfterPersist, [])
  t.is(raft.commitIndex, 1, 'nothing moves before it is installed')
  t.is(raft.lastIndex, 3)
  raft.step({ type: 'snapshotInstalled', last: { index: 20, term: 3 } })
  t.deepEqual(
    [raft.commitIndex, raft.lastApplied, raft.lastPersisted, raft.lastIndex, raft.termAt(20)],
    [20, 20, 20, 20, 3],
  )
  t.deepEqual(raft.committedConfiguration, { configuration: grown, index: 17 })
  t.deepEqual(results(raft).now, [appended(3, 20, features)])
  receive(raft, 2n, append(3, [20, 3], [command(21, 3)]))
  t.deepEqual(take(raft).entries, [command(21, 3)])
})

test('a snapshot that could not be installed is refused with its index (raft-wire §2.4, §6.6)', (t) => {
  const raft = server({ log: [2, 2] })
  receive(raft, 2n, installSnapshot(2, [20, 2]))
  take(raft)
  raft.step({ type: 'snapshotFailed', last: { index: 20, term: 2 } })
  t.deepEqual(results(raft).now, [refused(2, 20, 3, features)])
  t.is(raft.lastIndex, 3)
  t.is(raft.installingSnapshot, undefined)
})

test('a snapshot of what the log holds is acknowledged and not installed (raft-wire §6.6)', (t) => {
  const raft = server({ log: [2, 2, 2] })
  receive(raft, 2n, installSnapshot(2, [3, 2]))
  t.is(raft.installingSnapshot, undefined)
  t.deepEqual(results(raft).now, [appended(2, 3, features)])
  t.is(raft.commitIndex, 3, 'a snapshot is of committed entries')
})

test('a snapshot of a lower term is refused (dissertation §5.1)', (t) => {
  const raft = server({ term: 5 })
  receive(raft, 2n, installSnapshot(4, [20, 4]))
  t.deepEqual(results(raft).now, [refused(5, 20, 1, features)])
  t.is(raft.installingSnapshot, undefined)
})

test('while a snapshot is installed entries are dropped silently and heartbeats are answered (raft-wire §6.5)', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, installSnapshot(2, [20, 2]))
  take(raft)
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)], 2))
  receive(raft, 2n, installSnapshot(2, [25, 2]))
  t.is(raft.ready(), undefined)
  t.is(raft.lastIndex, 1)
  receive(raft, 2n, append(2, [20, 2], [], 20))
  t.deepEqual(results(raft).now, [refused(2, 20, 1, features)])
  tick(raft, 100)
  t.is(raft.state, 'follower', 'nor does it campaign')
})

test('a snapshot waits until what was handed out before is applied, and nothing else is handed out beside it', (t) => {
  const raft = server({ log: [2, 2] })
  receive(raft, 2n, append(2, [3, 2], [], 3))
  const first = take(raft)
  t.is(first.committed.length, 2)
  receive(raft, 2n, append(2, [3, 2], [command(4, 2)], 4))
  receive(raft, 2n, installSnapshot(2, [20, 2]))
  t.is(raft.ready()?.snapshot, undefined)
  raft.step({ type: 'applied', index: 3 })
  const { readys, snapshot } = take(raft)
  t.is(readys.length, 1)
  t.is(snapshot?.last.index, 20)
  t.deepEqual(readys[0]!.entries, [])
  t.deepEqual(readys[0]!.committed, [])
})

test('entries that were not yet handed to the disk go with the log that a snapshot replaces', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  receive(raft, 2n, installSnapshot(2, [20, 2]))
  const taken = take(raft)
  t.deepEqual(taken.entries, [])
  t.deepEqual(taken.messagesAfterPersist, [], 'and are not acknowledged')
  raft.step({ type: 'snapshotInstalled', last: { index: 20, term: 2 } })
  const later = settle(raft)
  t.deepEqual(later.entries, [])
  t.is(raft.lastIndex, 20)
})

test('a write that ends after a snapshot has replaced its entries changes nothing', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  take(raft)
  receive(raft, 2n, installSnapshot(2, [20, 2]))
  take(raft)
  raft.step({ type: 'snapshotInstalled', last: { index: 20, term: 2 } })
  persist(raft, 2, 2)
  t.is(raft.lastPersisted, 20)
})
