import test from 'ava'

import { DqliteError } from '../../lib/errors.js'
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

/** A log that gives so many entries at a time, and what a sender made of it. */
function setup(log: readonly Entry[], entriesPerRead: number) {
  const sent: Envelope[] = []
  const unreachable: bigint[] = []
  const failures: DqliteError[] = []
  const sender = new Sender({
    transport: {
      send: (envelopes) => void sent.push(...envelopes),
      sendSnapshot: () => Promise.reject(new DqliteError('NO_CONNECTION', 'gone')),
    },
    directory: {
      log: {
        read: async (first, last) => {
          await new Promise(setImmediate)
          return log.filter(({ index }) => index >= first && index <= last).slice(0, entriesPerRead)
        },
      },
      snapshots: { openNewest: () => Promise.resolve(undefined) },
    },
    readBytesMax: 1 << 20,
    onUnreachable: (to) => unreachable.push(to),
    onFailure: (error) => failures.push(error),
  })
  return { sender, sent, unreachable, failures }
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
  const snapshot = { last: { index: 5, term: 1 }, configuration: { servers: [] }, configurationIndex: 1 }
  sender.send([{ to: 2n, address: 'peer', message: { type: 'installSnapshot', term: 1, snapshot } }])
  while (unreachable.length === 0) await new Promise(setImmediate)
  t.deepEqual(unreachable, [2n])
  t.deepEqual(failures, [])
})
