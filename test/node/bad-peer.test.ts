/**
 * Peers that misbehave, against whole nodes on real sockets: what they cost is bounded, a node says once what is wrong,
 * and goes on.
 */
import test, { type ExecutionContext } from 'ava'
import { mkdtemp, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePorts } from '../../lib/cli/node-process.js'
import { connect, type Client } from '../../lib/client/client.js'
import { encodeMessage } from '../../lib/codec/peer-protocol.js'
import type { DqliteError } from '../../lib/errors.js'
import { Node, type NodeOptions } from '../../lib/node/node.js'
import { acknowledge, FakeMember } from '../support/fake-member.js'

const MiB = 1024 * 1024
const networkLatencyNs = 20_000_000

interface Running {
  readonly node: Node
  readonly dir: string
  readonly warnings: string[]
  readonly failures: DqliteError[]
}

/** `like`: where another one was, which has been stopped. */
async function start(
  t: ExecutionContext,
  id: bigint,
  limits: NodeOptions['limits'] = {},
  like?: Running,
): Promise<Running> {
  const dir = like?.dir ?? (await mkdtemp(path.join(os.tmpdir(), 'dqlite-bad-peer-')))
  const [port] = await freePorts(1)
  const warnings: string[] = []
  const failures: DqliteError[] = []
  const node = await Node.start({
    id,
    address: like?.node.address ?? `127.0.0.1:${port!}`,
    dir,
    networkLatencyNs,
    limits,
    onWarning: (text) => warnings.push(text),
    onFailure: (error) => failures.push(error),
  })
  t.teardown(async () => {
    await node.stop()
    await rm(dir, { recursive: true, force: true })
  })
  return { node, dir, warnings, failures }
}

async function fake(t: ExecutionContext, id: bigint, peer: string): Promise<FakeMember> {
  const member = await FakeMember.start(id, peer)
  t.teardown(() => member.stop())
  return member
}

async function client(t: ExecutionContext, node: Node): Promise<Client> {
  const db = await connect({ addresses: [node.address], database: 'app', timeoutMs: 10_000 })
  t.teardown(() => db.close({ timeoutMs: 1 }))
  await db.exec('CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b BLOB)')
  return db
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const endMs = performance.now() + 10_000
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`never happened: ${what}`)
    await sleep(5)
  }
}

/** Two of ours, and a third voter that is none. */
async function cluster(
  t: ExecutionContext,
  limits: NodeOptions['limits'] = {},
): Promise<{ leader: Running; follower: Running; member: FakeMember; db: Client }> {
  const leader = await start(t, 1n, limits)
  const follower = await start(t, 2n, limits)
  const db = await client(t, leader.node)
  await db.add({ id: 2, address: follower.node.address })
  const member = await fake(t, 3n, leader.node.address)
  await db.add({ id: 3, address: member.address })
  return { leader, follower, member, db }
}

test.serial('a voter that stops reading and answering costs a bounded queue, and writes go on', async (t) => {
  const sendQueueBytesMax = 256 * 1024
  const { leader, member, db } = await cluster(t, { sendQueueBytesMax })
  member.fallSilent()
  const before = member.receivedBytes
  for (let i = 0; i < 40; i++) await db.exec('INSERT INTO t (b) VALUES (zeroblob(500000))')
  t.is(leader.node.status.state, 'leader')
  t.true(member.receivedBytes - before < 2 * MiB)
  // Without the blobs that the pages hold, a queue of 20 MB would be seen.
  t.deepEqual(leader.failures, [])
  t.true(leader.warnings.length <= 1, leader.warnings.join('\n'))
})

test.serial('a flood of valid messages does not keep the leader from its work', async (t) => {
  const { leader, member, db } = await cluster(t)
  const { term } = leader.node.status
  const flood = Buffer.concat([
    ...encodeMessage({ type: 'appendEntriesResult', term, rejected: 0, lastLogIndex: 3, features: 0 }, 3n),
    ...encodeMessage({ type: 'appendEntriesResult', term, rejected: 7, lastLogIndex: 0, features: 0 }, 3n),
    ...encodeMessage(
      { type: 'requestVote', term: term + 1, last: { index: 1, term: 1 }, disruptLeader: false, preVote: true },
      3n,
    ),
    ...encodeMessage({ type: 'requestVoteResult', term, granted: true, preVote: false }, 3n),
    ...encodeMessage({ type: 'timeoutNow', term, last: { index: 1, term: 1 } }, 3n),
  ])
  const chunk = Buffer.concat(Array.from({ length: 200 }, () => flood))
  for (let i = 0; i < 50; i++) member.sendBytes(chunk)
  const startedAtMs = performance.now()
  for (let i = 0; i < 20; i++) await db.exec('INSERT INTO t (b) VALUES (1)')
  t.log(`50000 messages, and 20 writes in ${Math.round(performance.now() - startedAtMs)} ms`)
  t.is(leader.node.status.state, 'leader')
  t.deepEqual(leader.failures, [])
  t.deepEqual(leader.warnings, [])
  // It was asked for votes and acknowledgements, and answered in bounds.
  t.true(member.received.length < 20_000)
})

test.serial('types of messages that nobody knows close the stream, and are mentioned once', async (t) => {
  const { leader, member, db } = await cluster(t)
  for (const type of [0, 7, 8, 13, 99, 0xffff]) {
    const socket = member.connect()
    const bytes = Buffer.alloc(24)
    bytes.writeUInt32LE(type, 0)
    bytes.writeUInt32LE(8, 8)
    socket.write(bytes)
    await until('the stream is closed', () => socket.destroyed || socket.readableEnded)
  }
  // A header that is announced too large, and one of no bytes.
  for (const headerBytes of [5 * MiB, 0]) {
    const socket = member.connect()
    const bytes = Buffer.alloc(16)
    bytes.writeUInt32LE(1, 0)
    bytes.writeUInt32LE(headerBytes, 8)
    socket.write(bytes)
    await until('the stream is closed', () => socket.destroyed || socket.readableEnded)
  }
  t.is(leader.warnings.filter((text) => text.includes('server 3')).length, 1)
  await db.exec('INSERT INTO t (b) VALUES (1)')
  t.is(leader.node.status.state, 'leader')
  t.deepEqual(leader.failures, [])
})

test.serial('who announces an id that is in no configuration changes nothing', async (t) => {
  const leader = await start(t, 1n)
  const db = await client(t, leader.node)
  const { term, lastIndex } = leader.node.status
  const stranger = await fake(t, 77n, leader.node.address)
  stranger.send({ type: 'appendEntriesResult', term, rejected: 0, lastLogIndex: lastIndex + 5, features: 0 })
  stranger.send({ type: 'requestVoteResult', term, granted: true, preVote: false })
  stranger.send({ type: 'requestVote', term, last: { index: 1000, term }, disruptLeader: false, preVote: false })
  stranger.send({ type: 'requestVote', term: 50, last: { index: 1000, term: 49 }, disruptLeader: false, preVote: true })
  stranger.send({ type: 'timeoutNow', term, last: { index: lastIndex, term } })
  await until('an answer to a vote', () => stranger.received.some(({ type }) => type === 'requestVoteResult'))
  t.true(stranger.received.every((message) => message.type !== 'requestVoteResult' || !message.granted))
  await db.exec('INSERT INTO t (b) VALUES (1)')
  t.is(leader.node.status.term, term)
  // Nobody may call himself nobody, or the leader.
  for (const id of [0n, 1n]) {
    const socket = stranger.connect({ id })
    await until('the stream is closed', () => socket.destroyed || socket.readableEnded)
  }
  t.is(leader.warnings.length, 2, leader.warnings.join('\n'))
})

test.serial(
  'a member that announces another address is answered there and replicated to where it is listed',
  async (t) => {
    const { leader, member, db } = await cluster(t)
    const { term } = leader.node.status
    const elsewhere = await fake(t, 3n, leader.node.address)
    elsewhere.answer = () => undefined
    elsewhere.send({ type: 'requestVote', term, last: { index: 1, term: 1 }, disruptLeader: false, preVote: true })
    await until('an answer there', () => elsewhere.received.some(({ type }) => type === 'requestVoteResult'))
    const before = member.received.length
    await db.exec('INSERT INTO t (b) VALUES (1)')
    await until('entries where it is listed', () =>
      member.received.slice(before).some((message) => message.type === 'appendEntries' && message.entries.length > 0),
    )
    t.false(elsewhere.received.some((message) => message.type === 'appendEntries' && message.entries.length > 0))
    t.is(leader.node.status.state, 'leader')
  },
)

test.serial('acknowledgements beyond what was sent, of a stale tail, commit nothing', async (t) => {
  const first = await start(t, 1n)
  const db = await client(t, first.node)
  const member = await fake(t, 2n, first.node.address)
  await db.add({ id: 2, address: member.address })
  await db.exec('INSERT INTO t (b) VALUES (1)')
  await first.node.stop()
  // As C 1.11 with a tail of its own in a new term: heartbeats are answered with all that it has; entries never arrive.
  member.answer = (message) => {
    const { term } = message
    if (message.type === 'requestVote')
      return { type: 'requestVoteResult', term, granted: true, preVote: message.preVote }
    if (message.type !== 'appendEntries' || message.entries.length > 0) return undefined
    // What it never got it does not match.
    if (message.prev.term === term)
      return { type: 'appendEntriesResult', term, rejected: message.prev.index, lastLogIndex: 2 ** 40, features: 0 }
    return { type: 'appendEntriesResult', term, rejected: 0, lastLogIndex: 2 ** 40, features: 0 }
  }
  const again = await start(t, 1n, {}, first)
  await until('an election', () => again.node.status.state === 'leader')
  const heartbeats = member.received.length
  await until('many heartbeats', () => member.received.length > heartbeats + 20)
  const { commitIndex, lastIndex, state } = again.node.status
  t.is(state, 'leader')
  t.true(commitIndex < lastIndex, 'the barrier is not committed')
  // Now entries arrive.
  member.answer = acknowledge
  await db.exec('INSERT INTO t (b) VALUES (2)')
  t.true(again.node.status.commitIndex > lastIndex)
  t.deepEqual(again.failures, [])
})

test.serial('a leader of another cluster is not believed, and mentioned once', async (t) => {
  const { node, warnings, failures } = await start(t, 2n)
  const leader = await start(t, 1n)
  const db = await client(t, leader.node)
  await db.add({ id: 2, address: node.address })
  for (let i = 0; i < 5; i++) await db.exec('INSERT INTO t (b) VALUES (1)')
  await until('a follower that has it', () => node.status.commitIndex >= 5)
  const stranger = await fake(t, 9n, node.address)
  for (let time = 0; time < 20; time++)
    stranger.send({
      type: 'appendEntries',
      term: leader.node.status.term,
      prev: { index: 3, term: 7 },
      commitIndex: 3,
      entries: [],
    })
  await until('a warning', () => warnings.length > 0)
  await db.exec('INSERT INTO t (b) VALUES (2)')
  t.is(warnings.filter((text) => text.includes('another cluster')).length, 1, warnings.join('\n'))
  t.deepEqual(failures, [])
})
