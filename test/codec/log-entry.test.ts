import test from 'ava'
import fc from 'fast-check'
import {
  commandDatabase,
  configurationBytes,
  decodeCommand,
  decodeConfiguration,
  encodeConfiguration,
  encodeFrames,
  entryData,
  entryFromParts,
  entryTypeCode,
} from '../../lib/codec/log-entry.js'
import { DqliteError } from '../../lib/errors.js'
import type { Configuration, Role } from '../../lib/raft/types.js'
import { framesHead, hex } from './golden.js'

const roles: Role[] = ['voter', 'standby', 'spare']

const configurations: fc.Arbitrary<Configuration> = fc
  .uniqueArray(
    fc.record({
      id: fc.bigInt({ min: 1n, max: 2n ** 64n - 1n }),
      address: fc.string({ unit: 'grapheme', maxLength: 30 }).filter((s) => !s.includes('\0')),
      role: fc.constantFrom(...roles),
    }),
    { maxLength: 7, selector: (s) => s.id },
  )
  .map((servers) => ({ servers: servers.filter((s, i) => servers.findIndex((o) => o.address === s.address) === i) }))

test('the bytes of a configuration, with the roles of Raft', (t) => {
  const configuration: Configuration = {
    servers: [
      { id: 1n, address: '127.0.0.1:9001', role: 'voter' },
      { id: 0x2dc171858c3155ben, address: 'b', role: 'standby' },
      { id: 3n, address: '', role: 'spare' },
    ],
  }
  const expected = hex(`01 0300000000000000
    0100000000000000 3132372e302e302e313a39303031 00 01
    be55318c8571c12d 62 00 00
    0300000000000000 00 02 0000000000`)
  t.is(encodeConfiguration(configuration).toString('hex'), expected.subarray(0, 56).toString('hex'))
  t.deepEqual(decodeConfiguration(encodeConfiguration(configuration)), configuration)
})

test('configurations come back as they were, whatever the padding', (t) => {
  fc.assert(
    fc.property(configurations, fc.integer({ min: 0, max: 255 }), (configuration, junk) => {
      const bytes = encodeConfiguration(configuration)
      t.is(bytes.length % 8, 0)
      t.is(bytes.length, configurationBytes(configuration))
      t.deepEqual(decodeConfiguration(bytes), configuration)
      t.deepEqual(decodeConfiguration(Buffer.concat([bytes, Buffer.alloc(8, junk)])), configuration)
    }),
  )
})

test('a configuration that no cluster may have is malformed', (t) => {
  const server = (id: string, address: string, role: string): string => `${id}${address}00${role}`
  const a = server('0100000000000000', '61', '01')
  const cases = {
    'format 2': `02 0100000000000000 ${a}`,
    'id 0': `01 0100000000000000 ${server('0000000000000000', '61', '01')}`,
    'role 3': `01 0100000000000000 ${server('0100000000000000', '61', '03')}`,
    'id twice': `01 0200000000000000 ${a} ${server('0100000000000000', '62', '01')}`,
    'address twice': `01 0200000000000000 ${a} ${server('0200000000000000', '61', '01')}`,
    'more servers than bytes': `01 ffffffffffff0f00 ${a}`,
    'a count beyond 2^53': `01 ffffffffffffffff ${a}`,
    'an address that is not UTF-8': `01 0100000000000000 ${server('0100000000000000', 'ff', '01')}`,
  }
  for (const [name, bytes] of Object.entries(cases))
    t.throws(() => decodeConfiguration(hex(bytes)), { code: 'MALFORMED' }, name)
  const whole = encodeConfiguration({ servers: [{ id: 1n, address: 'abc', role: 'voter' }] })
  for (let length = 0; length < 9 + 8 + 4 + 1; length++)
    t.throws(() => decodeConfiguration(whole.subarray(0, length)), { code: 'MALFORMED' })
})

test('the first entry of a database as C dqlite writes it', (t) => {
  const pages = [Buffer.alloc(4096, 1), Buffer.alloc(4096, 2)]
  const data = Buffer.concat([hex(framesHead), ...pages])
  t.is(data.length, 8248)
  t.deepEqual(decodeCommand(data), {
    type: 'frames',
    database: 'test.db',
    isCommit: true,
    pageSize: 4096,
    pageNumbers: [1, 2],
    pagesOffset: 56,
  })
  t.is(commandDatabase(data), 'test.db')
  const written = encodeFrames({
    database: 'test.db',
    pageSize: 4096,
    pages: pages.map((image, i) => ({ number: i + 1, image })),
  })
  t.true(written.equals(data))
})

test('reserved bytes of a command may be garbage', (t) => {
  const data = Buffer.concat([hex(framesHead), Buffer.alloc(8192)])
  for (const at of [2, 3, 4, 7, 16, 20, 24, 27, 29, 30, 31, 38, 39]) data[at] = 0xcc
  t.like(decodeCommand(data), { type: 'frames', database: 'test.db', isCommit: true, pageNumbers: [1, 2] })
})

test('commands of old logs are read', (t) => {
  t.deepEqual(decodeCommand(hex('0101000000000000 7465737400000000')), { type: 'open', database: 'test' })
  t.deepEqual(decodeCommand(hex('0103000000000000 0700000000000000')), { type: 'undo', transactionId: 7n })
  t.deepEqual(decodeCommand(hex('0104000000000000 7465737400000000')), { type: 'checkpoint', database: 'test' })
  t.is(commandDatabase(hex('0104000000000000 7465737400000000')), undefined)
})

test('a command that is not one is malformed', (t) => {
  const good = Buffer.concat([hex(framesHead), Buffer.alloc(8192)])
  const changed = (at: number, ...bytes: number[]): Buffer => {
    const copy = Buffer.from(good)
    copy.set(bytes, at)
    return copy
  }
  const cases: [string, Buffer][] = [
    ['format 2', changed(0, 2)],
    ['type 0', changed(1, 0)],
    ['type 5', changed(1, 5)],
    ['no pages', changed(32, 0)],
    ['too many pages', changed(32, 3)],
    ['far too many pages', changed(32, 0xff, 0xff, 0xff, 0xff)],
    ['page size 4097', changed(36, 1)],
    ['page size 0', changed(36, 0, 0)],
    ['page number 0', changed(40, 0)],
    ['page number 2^31', changed(40, 0, 0, 0, 0x80)],
  ]
  for (const [name, data] of cases) t.throws(() => decodeCommand(data), { code: 'MALFORMED' }, name)
  for (let length = 0; length < good.length; length += length < 64 ? 1 : 509)
    t.throws(() => decodeCommand(good.subarray(0, length)), { code: 'MALFORMED' })
})

test('an entry gives back the bytes that its length says', (t) => {
  const command = entryFromParts(7, 3, entryTypeCode('command'), Buffer.alloc(16, 5))
  t.is(entryData(command).byteLength, command.byteLength)
  // Garbage up to 1.18.4.
  const barrier = entryFromParts(8, 3, 2, Buffer.alloc(8, 0xcc))
  t.deepEqual(barrier, { type: 'barrier', index: 8, term: 3, byteLength: 8 })
  t.deepEqual(Buffer.from(entryData(barrier)), Buffer.alloc(8))
  const configuration: Configuration = { servers: [{ id: 1n, address: 'a', role: 'voter' }] }
  const padded = Buffer.concat([encodeConfiguration(configuration), Buffer.alloc(8, 0xcc)])
  const change = entryFromParts(9, 3, 3, padded)
  t.deepEqual(change, { type: 'configuration', index: 9, term: 3, byteLength: 24, configuration })
  t.is(entryData(change).byteLength, 24)
})

test('entries of unknown type or uneven length are malformed', (t) => {
  for (const code of [0, 4, 255]) t.throws(() => entryFromParts(1, 1, code, Buffer.alloc(8)), { code: 'MALFORMED' })
  t.throws(() => entryFromParts(1, 1, 1, Buffer.alloc(9)), { code: 'MALFORMED' })
})

test('bytes that mean nothing never throw anything but our errors', (t) => {
  const frames = Buffer.concat([hex(framesHead), Buffer.alloc(8192)])
  const configuration = encodeConfiguration({ servers: [{ id: 1n, address: 'abc', role: 'voter' }] })
  fc.assert(
    fc.property(
      fc.constantFrom(frames.subarray(0, 300), frames, configuration),
      fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 6 }),
      (sample, changes) => {
        const bytes = Buffer.from(sample)
        for (const [at, value] of changes) bytes[at % Math.min(64, bytes.length)] = value
        for (const decode of [decodeCommand, decodeConfiguration])
          try {
            decode(bytes)
          } catch (error) {
            t.true(error instanceof DqliteError, String(error))
          }
      },
    ),
    { numRuns: 3000 },
  )
})
