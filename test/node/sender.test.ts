import test from 'ava'

import type { DqliteError } from '../../lib/errors.js'
import { Sender } from '../../lib/node/sender.js'
import type { Entry, Envelope } from '../../lib/raft/types.js'

const data = (index: number): Uint8Array => Buffer.alloc(16, index)
const stored = (index: number, term = 1): Entry => ({ type: 'command', index, term, byteLength: 16, data: data(index) })
const evicted = (index: number): Entry => ({ type: 'command', index, term: 1, byteLength: 16, data: undefined })
const barrier = (index: number): Entry => ({ type: 'barrier', index, term: 1, byteLength: 8 })

function append(to: bigint, entries: readonly Entry[]): Envelope {
  const prev = { index: (entries[0]?.index ?? 1) - 1, term: 1 }
  return { to, address: `peer ${to}`, message: { type: 'appendEntries', term: 1, prev, commitIndex: 0, entries } }
}

const snapshot = { last: { index: 5, term: 1 }, configuration: { servers: [] }, configurationIndex: 1 }

/** A log that gives so many entries at a time, and what a sender made of it. */
function setup(log: readonly Entry[], entriesPerRead: number, snapshotBytes?: number) {
  const sent: Envelope[] = []
  const unreachable: bigint[] = []
  const failures: DqliteError[] = []
  const warnings: string[] = []
  const snapshots: bigint[] = []
  const sender = new Sender({
    transport: {
      send: (envelopes) => void sent.push(...envelopes),
      sendSnapshot: async ({ to }) => void snapshots.push(to),
    },
    directory: {
      log: {
        read: async (first, last) => {
          await new Promise(setImmediate)
          return log.filter(({ index }) => index >= first && index <= last).slice(0, entriesPerRead)
        },
      },
      snapshots: {
        openNewest: async () => {
          if (snapshotBytes === undefined) return undefined
          const content = (async function* () {})()
          return { description: snapshot, contentBytes: snapshotBytes, content, close: () => Promise.resolve() }
        },
      },
    },
    readBytesMax: 1 << 20,
    takesLargeSnapshots: (to) => to === 3n,
    onUnreachable: (to) => unreachable.push(to),
    onWarning: (text) => warnings.push(text),
    onFailure: (error) => failures.push(error),
  })
  return { sender, sent, unreachable, failures, warnings, snapshots }
}

test('evicted entries are read back in pieces of any size, each once, whatever stands between them', async (t) => {
  const log = [stored(1), barrier(2), stored(3), barrier(4), stored(5), stored(6)]
  const wanted = [evicted(1), barrier(2), evicted(3), barrier(4), evicted(5), stored(6)]
  for (const entriesPerRead of [1, 2, 3, 6]) {
    const { sender, sent } = setup(log, entriesPerRead)
    sender.send([append(2n, wanted)])
    t.deepEqual(sent, [])
    while (sent.length === 0) await new Promise(setImmediate)
    t.deepEqual(sent, [append(2n, log)])
  }
})

test('messages to a peer keep their order behind a read; other peers do not wait', async (t) => {
  const { sender, sent } = setup([stored(1)], 1)
  const heartbeat2 = append(2n, [])
  const heartbeat3 = append(3n, [])
  sender.send([append(2n, [evicted(1)]), heartbeat2, heartbeat3])
  t.deepEqual(sent, [heartbeat3])
  while (sent.length < 3) await new Promise(setImmediate)
  t.deepEqual(sent, [heartbeat3, append(2n, [stored(1)]), heartbeat2])
})

test('entries that were replaced while they were read are not sent under their old position', async (t) => {
  const { sender, sent, unreachable } = setup([stored(1, 7)], 1)
  sender.send([append(2n, [evicted(1)])])
  while (unreachable.length === 0) await new Promise(setImmediate)
  t.deepEqual(unreachable, [2n])
  t.deepEqual(sent, [])
})

test('a snapshot that cannot be sent is reported to Raft, not to the operator', async (t) => {
  const { sender, unreachable, failures } = setup([], 1)
  sender.send([{ to: 2n, address: 'peer', message: { type: 'installSnapshot', term: 1, snapshot } }])
  while (unreachable.length === 0) await new Promise(setImmediate)
  t.deepEqual(unreachable, [2n])
  t.deepEqual(failures, [])
})

test('a snapshot beyond 500 MiB goes to members of ours only; a C member is refused it, with one warning', async (t) => {
  const { sender, unreachable, warnings, snapshots } = setup([], 1, 500 * 1024 * 1024 + 1)
  const install = (to: bigint): Envelope => ({
    to,
    address: `peer ${to}`,
    message: { type: 'installSnapshot', term: 1, snapshot },
  })
  for (let round = 1; round <= 3; round++) {
    sender.send([install(2n), install(3n)])
    while (unreachable.length < round || snapshots.length < round) await new Promise(setImmediate)
  }
  t.deepEqual(unreachable, [2n, 2n, 2n])
  t.deepEqual(snapshots, [3n, 3n, 3n])
  t.is(warnings.length, 1)
  t.regex(warnings[0]!, /peer 2 needs a snapshot of 524288001 bytes, and takes 524288000 at most/)
})
