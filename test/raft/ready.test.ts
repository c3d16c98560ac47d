import test from 'ava'
import {
  append,
  appended,
  bytes,
  Cluster,
  command,
  leader,
  members,
  persist,
  propose,
  receive,
  server,
  settle,
  snapshotOf,
  take,
  three,
} from './support.js'

test('nothing is handed out twice, and nothing when nothing is due', (t) => {
  const raft = leader()
  t.is(raft.ready(), undefined)
  propose(raft)
  t.is(raft.ready()?.entries.length, 1)
  t.is(raft.ready(), undefined)
  propose(raft)
  t.deepEqual(
    raft.ready()?.entries.map(({ index }) => index),
    [4],
  )
})

test('several writes may be under way, and one report may speak for all of them', (t) => {
  const raft = leader()
  for (let times = 0; times < 3; times++) {
    propose(raft)
    take(raft)
  }
  persist(raft, 3, 2)
  t.is(raft.lastPersisted, 3)
  persist(raft, 5, 2)
  t.is(raft.lastPersisted, 5)
})

test('a report may stop inside a write', (t) => {
  const raft = leader()
  propose(raft, bytes(), bytes(), bytes())
  take(raft)
  persist(raft, 4, 2)
  t.is(raft.lastPersisted, 4)
  persist(raft, 5, 2)
  t.is(raft.lastPersisted, 5)
})

test('a report of what was never handed out, or of another log, is ignored', (t) => {
  const raft = leader()
  propose(raft)
  persist(raft, 3, 2)
  t.is(raft.lastPersisted, 2)
  take(raft)
  persist(raft, 3, 1)
  persist(raft, 9, 2)
  t.is(raft.lastPersisted, 2)
})

test('a write that a truncation has cut counts up to the cut', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2), command(3, 2), command(4, 2)]))
  take(raft)
  receive(raft, 3n, append(3, [2, 2], [command(3, 3)]))
  const taken = take(raft)
  t.is(taken.truncateAfter, 2)
  persist(raft, 4, 2)
  t.is(raft.lastPersisted, 2)
  persist(raft, 3, 3)
  t.is(raft.lastPersisted, 3)
})

test('entries that are truncated before they were handed out need no truncation of the disk', (t) => {
  const raft = server({ term: 2 })
  receive(raft, 2n, append(2, [1, 1], [command(2, 2)]))
  receive(raft, 3n, append(3, [1, 1], [command(2, 3)]))
  const taken = take(raft)
  t.is(taken.truncateAfter, undefined)
  t.deepEqual(taken.entries, [command(2, 3)])
})

test('the next batch to apply comes when the last one is applied', (t) => {
  const raft = leader()
  propose(raft)
  take(raft)
  persist(raft, 3, 2)
  receive(raft, 2n, appended(2, 3))
  t.is(take(raft).committed.length, 1)
  propose(raft, bytes(), bytes())
  take(raft)
  persist(raft, 5, 2)
  receive(raft, 2n, appended(2, 5))
  t.is(raft.commitIndex, 5)
  t.deepEqual(take(raft).committed, [])
  raft.step({ type: 'applied', index: 3 })
  t.is(take(raft).committed.length, 2)
})

test('a batch to apply is bounded by bytes, and has one entry at least', (t) => {
  const raft = leader({ committedBytesMax: 100 })
  propose(raft, bytes(48), bytes(48), bytes(48), bytes(400))
  const { readys } = settle(raft)
  t.true(readys.length > 0)
  receive(raft, 2n, appended(2, 6))
  const batches = settle(raft).readys.map(({ committed }) => committed.map(({ index }) => index))
  t.deepEqual(
    batches.filter(({ length }) => length > 0),
    [[3, 4], [5], [6]],
  )
})

test('data of old commands leaves memory once they are applied and persisted, oldest first', (t) => {
  const raft = leader({ logCacheBytesMax: 100 })
  for (let times = 0; times < 4; times++) propose(raft, bytes(40))
  const { entries } = take(raft)
  t.is(raft.cachedBytes, 160)
  persist(raft, 6, 2)
  t.is(raft.cachedBytes, 160)
  receive(raft, 2n, appended(2, 6))
  take(raft)
  raft.step({ type: 'applied', index: 4 })
  t.is(raft.cachedBytes, 80)
  t.true(entries.every((entry) => entry.type === 'command' && entry.data !== undefined))
  // A follower that needs them gets entries whose data the host fetches.
  raft.step({ type: 'unreachable', to: 3n })
  receive(raft, 3n, appended(2, 2))
  const sent = take(raft).messages.map(({ message }) => message)
  t.is(sent.length, 1)
  t.deepEqual(
    sent[0]!.type === 'appendEntries' &&
      sent[0]!.entries.map((entry) => entry.type === 'command' && entry.data?.length),
    [undefined, undefined, 40, 40],
  )
})

test('restored entries may have no data, and are applied nevertheless', (t) => {
  const raft = server({
    configuration: members('1'),
    entries: [
      { type: 'configuration', index: 1, term: 1, byteLength: 40, configuration: members('1') },
      { type: 'command', index: 2, term: 1, byteLength: 80, data: undefined },
      command(3, 1),
    ],
  })
  t.is(raft.cachedBytes, 8)
  t.deepEqual(
    settle(raft).committed.map(({ index }) => index),
    [2, 3],
  )
})

test('a snapshot older than the last one changes nothing', (t) => {
  const raft = leader({ log: [1, 1, 1, 1] })
  raft.step({ type: 'snapshotTaken', snapshot: snapshotOf([5, 1]), trailing: 0 })
  raft.step({ type: 'snapshotTaken', snapshot: snapshotOf([3, 1]), trailing: 0 })
  t.is(raft.firstIndex, 6)
  t.is(raft.termAt(5), 1)
})

test('the log is trimmed again and again without losing an entry', (t) => {
  const raft = leader({ configuration: members('1', '2', '3'), pipelineEntriesMax: 10_000 })
  for (let round = 0; round < 60; round++) {
    propose(raft, ...Array.from({ length: 100 }, () => bytes()))
    settle(raft)
    receive(raft, 2n, appended(2, raft.lastIndex))
    settle(raft)
    const index = raft.lastApplied
    raft.step({ type: 'snapshotTaken', snapshot: snapshotOf([index, 2]), trailing: 10 })
    t.is(raft.firstIndex, index - 9)
    for (let at = raft.firstIndex; at <= raft.lastIndex; at++) t.is(raft.termAt(at), 2)
    t.is(raft.termAt(raft.lastIndex + 1), undefined)
  }
  t.is(raft.cachedBytes, 80)
})

test('the configuration that belongs to a snapshot can be asked for by index', (t) => {
  const raft = leader()
  raft.step({ type: 'change', request: 1, change: { type: 'remove', id: 3n } })
  settle(raft)
  receive(raft, 2n, appended(2, 3))
  t.is(raft.committedConfiguration.index, 3)
  t.deepEqual(raft.configurationAt(2), { configuration: three, index: 1 })
  t.is(raft.configurationAt(3).configuration.servers.length, 2)
})

test('whatever restarts keeps what it promised: a cluster loses nothing that was committed', (t) => {
  const cluster = new Cluster(three)
  cluster.elect()
  cluster.propose(10)
  const { lastIndex } = cluster.leader
  for (const id of [1n, 2n, 3n]) cluster.restart(id)
  cluster.elect()
  t.true(cluster.leader.commitIndex > lastIndex)
  for (const { disk } of cluster.members.values()) t.is(disk.entries[lastIndex - 1]!.index, lastIndex)
})

test('a leader with a stuck disk goes on with the disks of the others (dissertation §10.2.1)', (t) => {
  const cluster = new Cluster(three)
  const { id } = cluster.elect()
  cluster.get(id).isDiskStuck = true
  cluster.propose(5)
  const { leader: raft } = cluster
  t.is(raft.commitIndex, raft.lastIndex)
  t.is(raft.lastPersisted, raft.lastIndex - 5)
  cluster.resumeDisk(id)
  t.is(raft.lastPersisted, raft.lastIndex)
})

test('a stuck follower answers heartbeats and stays a follower', (t) => {
  const cluster = new Cluster(members('1', '2'))
  const { id, term } = cluster.elect()
  const other = id === 1n ? 2n : 1n
  cluster.get(other).isDiskStuck = true
  cluster.propose(3)
  cluster.tick(100)
  t.is(cluster.leader.term, term)
  t.is(cluster.leader.commitIndex, cluster.leader.lastIndex - 3)
  cluster.resumeDisk(other)
  t.is(cluster.leader.commitIndex, cluster.leader.lastIndex)
})
