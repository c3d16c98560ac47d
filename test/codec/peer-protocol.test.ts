import test from 'ava'
import fc from 'fast-check'
import { encodeConfiguration } from '../../lib/codec/log-entry.js'
import {
  PeerMessageStream,
  encodeConnect,
  encodeInstallSnapshotHeader,
  encodeMessage,
} from '../../lib/codec/peer-protocol.js'
import type { DqliteError } from '../../lib/errors.js'
import type { AppendEntries, Entry, InstallSnapshot, Message } from '../../lib/raft/types.js'
import * as golden from './golden.js'

const { hex } = golden
const limits = { headerBytesMax: 4 * 1024 * 1024, payloadBytesMax: 1024 * 1024 }
const configuration = { servers: [{ id: 1n, address: 'a:1', role: 'voter' }] } as const
const confHex = encodeConfiguration(configuration).toString('hex')

type Plain = Exclude<Message, InstallSnapshot>
const encode = (message: Plain): Buffer => Buffer.concat(encodeMessage(message, 2n))

function decodeAll(bytes: Uint8Array, chunkBytes = bytes.byteLength): { messages: Message[]; content: Buffer } {
  const stream = new PeerMessageStream(limits)
  const messages: Message[] = []
  const content: Uint8Array[] = []
  for (let at = 0; at < bytes.byteLength; at += chunkBytes) {
    stream.push(Buffer.from(bytes.subarray(at, at + chunkBytes)))
    for (;;) {
      const piece = stream.takeContent()
      if (piece !== undefined) {
        content.push(piece)
        continue
      }
      const received = stream.next()
      if (received === undefined) break
      messages.push(received.message)
    }
  }
  return { messages, content: Buffer.concat(content) }
}
const decodeOne = (text: string): Message => {
  const { messages } = decodeAll(hex(text))
  if (messages.length !== 1) throw new Error(`${messages.length} messages`)
  return messages[0]!
}

test('a stream begins with the protocol word and CONNECT', (t) => {
  t.is(encodeConnect(3n, '127.0.0.1:19103').toString('hex'), hex(golden.connect).toString('hex'))
})

const entry = (index: number, size: number, fill = index): Entry => ({
  type: 'command',
  index,
  term: 4,
  byteLength: size,
  data: Buffer.alloc(size, fill),
})

const samples: [string, Plain, string][] = [
  [
    'RequestVote',
    { type: 'requestVote', term: 5, last: { index: 9, term: 4 }, disruptLeader: true, preVote: false },
    `0300000000000000 2800000000000000 0500000000000000 0200000000000000 0900000000000000 0400000000000000
     0100000000000000`,
  ],
  [
    'a pre-vote',
    { type: 'requestVote', term: 5, last: { index: 9, term: 4 }, disruptLeader: false, preVote: true },
    `0300000000000000 2800000000000000 0500000000000000 0200000000000000 0900000000000000 0400000000000000
     0200000000000000`,
  ],
  [
    'RequestVoteResult',
    { type: 'requestVoteResult', term: 5, granted: true, preVote: true },
    '0400000000000000 1800000000000000 0500000000000000 0100000000000000 0100000000000000',
  ],
  [
    'AppendEntriesResult',
    { type: 'appendEntriesResult', term: 5, rejected: 0, lastLogIndex: 9, features: 1 },
    '0200000000000000 2000000000000000 0500000000000000 0000000000000000 0900000000000000 0100000000000000',
  ],
  [
    'TimeoutNow',
    { type: 'timeoutNow', term: 5, last: { index: 9, term: 4 } },
    '0600000000000000 1800000000000000 0500000000000000 0900000000000000 0400000000000000',
  ],
  [
    'a heartbeat',
    { type: 'appendEntries', term: 5, prev: { index: 9, term: 4 }, commitIndex: 8, entries: [] },
    `0100000000000000 3000000000000000 0500000000000000 0900000000000000 0400000000000000 0800000000000000
     0000000000000000 0000000000000000`,
  ],
  [
    'AppendEntries',
    {
      type: 'appendEntries',
      term: 5,
      prev: { index: 9, term: 4 },
      commitIndex: 8,
      entries: [
        { type: 'barrier', index: 10, term: 5, byteLength: 8 },
        { type: 'configuration', index: 11, term: 5, byteLength: 24, configuration },
        { type: 'command', index: 12, term: 5, byteLength: 8, data: hex('1122334455667788') },
      ],
    },
    `0100000000000000 6000000000000000 0500000000000000 0900000000000000 0400000000000000 0800000000000000
     0300000000000000 0500000000000000 02000000 08000000 0500000000000000 03000000 18000000
     0500000000000000 01000000 08000000 0000000000000000
     0000000000000000 ${confHex} 1122334455667788`,
  ],
]
for (const [name, message, bytes] of samples)
  test(`the bytes of ${name}`, (t) => {
    t.is(encode(message).toString('hex'), hex(bytes).toString('hex'))
    t.deepEqual(decodeOne(bytes), message)
  })

test('the shorter and longer forms of other versions are read', (t) => {
  t.like(
    decodeOne(`0300000000000000 2000000000000000 0500000000000000 0200000000000000 0900000000000000
    0400000000000000`),
    { type: 'requestVote', disruptLeader: false, preVote: false },
  )
  t.deepEqual(decodeOne('0400000000000000 1000000000000000 0500000000000000 0000000000000000'), {
    type: 'requestVoteResult',
    term: 5,
    granted: false,
    preVote: undefined,
  })
  t.like(decodeOne('0200000000000000 1800000000000000 0500000000000000 0700000000000000 0900000000000000'), {
    type: 'appendEntriesResult',
    rejected: 7,
    lastLogIndex: 9,
    features: 0,
  })
  // Without the 8 bytes at the end, and with more of them; the upper bytes of the type are not looked at.
  const append = '0500000000000000 0900000000000000 0400000000000000 0800000000000000 0000000000000000'
  t.like(decodeOne(`0100cccccccccccc 2800000000000000 ${append}`), { type: 'appendEntries', commitIndex: 8 })
  t.like(decodeOne(`0100000000000000 3800000000000000 ${append} cccccccccccccccc cccccccccccccccc`), { commitIndex: 8 })
  // raft 0.15 writes 8 bytes more behind InstallSnapshot's header.
  const snapshot = `0500000000000000 0900000000000000 0400000000000000 0800000000000000 1800000000000000 ${confHex}
    0800000000000000`
  for (const [length, junk] of [
    ['48', ''],
    ['50', 'cccccccccccccccc'],
  ]) {
    const { messages, content } = decodeAll(
      hex(`0500000000000000 ${length!}00000000000000 ${snapshot} ${junk!} 6162636465666768`),
    )
    t.deepEqual(messages, [
      {
        type: 'installSnapshot',
        term: 5,
        snapshot: { last: { index: 9, term: 4 }, configuration, configurationIndex: 8 },
      },
    ])
    t.is(content.toString(), 'abcdefgh')
  }
})

test('what no member sends is malformed', (t) => {
  const cases = {
    'type 0': '0000000000000000 0800000000000000 0000000000000000',
    'type 7': '0700000000000000 0800000000000000 0000000000000000',
    'no header': '0100000000000000 0000000000000000',
    'a header of 4 MiB + 1': '0100000000000000 0100400000000000',
    'a header beyond 2^53': '0100000000000000 00000000000000ff',
    'RequestVote of 24 bytes': `0300000000000000 1800000000000000 ${'00'.repeat(24)}`,
    'RequestVote of 48 bytes': `0300000000000000 3000000000000000 ${'00'.repeat(48)}`,
    'TimeoutNow of 32 bytes': `0600000000000000 2000000000000000 ${'00'.repeat(32)}`,
    'RequestVoteResult of 32 bytes': `0400000000000000 2000000000000000 ${'00'.repeat(32)}`,
    'AppendEntriesResult of 40 bytes': `0200000000000000 2800000000000000 ${'00'.repeat(40)}`,
    'AppendEntries of 32 bytes': `0100000000000000 2000000000000000 ${'00'.repeat(32)}`,
    'more entries than fit': `0100000000000000 2800000000000000 ${'00'.repeat(32)} 0100000000000000`,
    'an entry of 9 bytes': `0100000000000000 3800000000000000 ${'00'.repeat(32)} 0100000000000000
       0500000000000000 01000000 09000000`,
    'entries above the limit': `0100000000000000 3800000000000000 ${'00'.repeat(32)} 0100000000000000
       0500000000000000 01000000 08001000`,
    'an entry of type 4': `0100000000000000 3800000000000000 ${'00'.repeat(32)} 0100000000000000
       0500000000000000 04000000 08000000 0000000000000000`,
    'a term beyond 2^53': `0600000000000000 1800000000000000 ffffffffffffffff ${'00'.repeat(16)}`,
    'a configuration longer than its message': `0500000000000000 3000000000000000 ${'00'.repeat(32)} 1000000000000000
       0000000000000000`,
    'a snapshot without end': `0500000000000000 4800000000000000 ${'00'.repeat(32)} 1800000000000000 ${confHex}
       ffffffffffff1f00`,
  }
  for (const [name, bytes] of Object.entries(cases)) {
    const stream = new PeerMessageStream(limits)
    stream.push(hex(bytes))
    t.throws(() => stream.next(), { code: 'MALFORMED' }, name)
    stream.push(encode(samples[0]![1]))
    t.throws(() => stream.next(), { code: 'MALFORMED' }, `${name}, for ever`)
  }
})

const small = fc.maxSafeNat()
const id = fc.record({ index: fc.nat(), term: fc.nat() })
const appendEntries: fc.Arbitrary<AppendEntries> = fc
  .record({
    term: small,
    prev: id,
    commitIndex: small,
    sizes: fc.array(fc.integer({ min: 0, max: 150 }), { maxLength: 8 }),
  })
  .map(({ term, prev, commitIndex, sizes }) => ({
    type: 'appendEntries',
    term,
    prev,
    commitIndex,
    entries: sizes.map((words, i): Entry =>
      words === 0
        ? { type: 'barrier', index: prev.index + 1 + i, term, byteLength: 8 }
        : entry(prev.index + 1 + i, words * 8, words),
    ),
  }))
const message: fc.Arbitrary<Plain> = fc.oneof(
  fc.record({
    type: fc.constant('requestVote' as const),
    term: small,
    last: id,
    disruptLeader: fc.boolean(),
    preVote: fc.boolean(),
  }),
  fc.record({
    type: fc.constant('requestVoteResult' as const),
    term: small,
    granted: fc.boolean(),
    preVote: fc.boolean(),
  }),
  fc.record({
    type: fc.constant('appendEntriesResult' as const),
    term: small,
    rejected: small,
    lastLogIndex: small,
    features: fc.nat(),
  }),
  fc.record({ type: fc.constant('timeoutNow' as const), term: small, last: id }),
  appendEntries,
)

test('messages come back as they were, however the bytes are cut', (t) => {
  fc.assert(
    fc.property(
      fc.array(message, { minLength: 1, maxLength: 6 }),
      fc.integer({ min: 1, max: 700 }),
      (sent, chunkBytes) => {
        const bytes = Buffer.concat(sent.map(encode))
        t.deepEqual(decodeAll(bytes, chunkBytes).messages, sent)
        t.deepEqual(decodeAll(bytes).messages, sent)
      },
    ),
    { numRuns: 150 },
  )
})

test('single bytes are enough, and a message is not there before its last byte', (t) => {
  const append = samples.at(-1)![1]
  const bytes = encode(append)
  const stream = new PeerMessageStream(limits)
  for (const [i, byte] of bytes.entries()) {
    stream.push(Buffer.from([byte]))
    const received = stream.next()
    if (i < bytes.length - 1) t.is(received, undefined)
    else t.deepEqual(received, { message: append })
  }
})

test('entries are views of one payload, and large ones are not copied on the way out', (t) => {
  const large = entry(10, 8192)
  const sent: Plain = {
    type: 'appendEntries',
    term: 4,
    prev: { index: 9, term: 4 },
    commitIndex: 0,
    entries: [large, entry(11, 16), entry(12, 24), entry(13, 8192)],
  }
  const pieces = encodeMessage(sent, 2n)
  t.is(pieces.length, 4)
  t.is(pieces[1], large.type === 'command' ? large.data : undefined)
  const stream = new PeerMessageStream(limits)
  stream.push(Buffer.concat(pieces))
  const received = stream.next()!.message
  if (received.type !== 'appendEntries') return t.fail()
  t.deepEqual(received, sent)
  const buffers = new Set(received.entries.map((e) => (e.type === 'command' ? e.data!.buffer : undefined)))
  t.is(buffers.size, 1)
})

test('a snapshot is a message, then its content in pieces, then the next message', (t) => {
  const snapshot: InstallSnapshot = {
    type: 'installSnapshot',
    term: 5,
    snapshot: { last: { index: 9, term: 4 }, configuration, configurationIndex: 8 },
  }
  const body = Buffer.from(Array.from({ length: 5000 }, (_, i) => i % 251))
  const after = samples[0]![1]
  const bytes = Buffer.concat([encodeInstallSnapshotHeader(snapshot, body.length), body, encode(after)])
  for (const chunkBytes of [1, 7, 100, 4096, bytes.length]) {
    const { messages, content } = decodeAll(bytes, chunkBytes)
    t.deepEqual(messages, [snapshot, after])
    t.true(content.equals(body))
  }
  const stream = new PeerMessageStream(limits)
  stream.push(bytes)
  t.deepEqual(stream.next(), { message: snapshot, content: { byteLength: 5000 } })
  // Its content comes first.
  t.is(stream.next(), undefined)
  t.is(stream.contentRemaining, 5000)
  t.is(stream.takeContent()?.byteLength, 5000)
  t.is(stream.takeContent(), undefined)
  t.deepEqual(stream.next(), { message: after })
})

test('bytes that mean nothing never throw anything but MALFORMED, and never ask for memory', (t) => {
  const good = Buffer.concat([...samples.map(([, m]) => encode(m))])
  const offsets = [0]
  for (const [, m] of samples) offsets.push(offsets.at(-1)! + encode(m).length)
  fc.assert(
    fc.property(
      fc.constantFrom(...offsets.slice(0, -1)),
      fc.array(fc.tuple(fc.nat(160), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
      fc.integer({ min: 1, max: 300 }),
      (start, changes, chunkBytes) => {
        const bytes = Buffer.from(good.subarray(start))
        for (const [at, value] of changes) bytes[at % bytes.length] = value
        try {
          decodeAll(bytes, chunkBytes)
        } catch (error) {
          t.is((error as DqliteError).code, 'MALFORMED', String(error))
        }
      },
    ),
    { numRuns: 3000 },
  )
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      try {
        decodeAll(bytes, 11)
      } catch (error) {
        t.is((error as DqliteError).code, 'MALFORMED')
      }
    }),
    { numRuns: 1000 },
  )
})
