import test from 'ava'
import fc from 'fast-check'
import {
  ContentDecoder,
  type ContentPart,
  type Crc32,
  batchHeaderBytes,
  closedSegmentName,
  decodeMetadata,
  decodeSnapshotMeta,
  encodeContentHeader,
  encodeDatabaseHeader,
  encodeMetadata,
  encodeSnapshotMeta,
  openSegmentName,
  parseFileName,
  readBatchHeader,
  readEntryHeader,
  snapshotFileName,
  snapshotMetaFileName,
  writeBatchPreamble,
  writeEntryHeader,
} from '../../lib/codec/data-directory.js'
import { decodeConfiguration } from '../../lib/codec/log-entry.js'
import { configuration } from '../support/entries.js'

/** The definition of disk-format §2, one bit at a time. */
const crc32: Crc32 = (bytes, start, end, seed) => {
  let crc = seed
  for (let i = start; i < end; i++) {
    crc ^= bytes[i]! << 24
    for (let bit = 0; bit < 8; bit++) crc = crc & 0x80000000 ? (crc << 1) ^ 0x04c11db7 : crc << 1
  }
  return crc >>> 0
}
const viewOf = (bytes: Buffer) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

/** disk-format §4.1: what C dqlite writes when it bootstraps. */
const bootstrap = Buffer.from(
  '0100000000000000' +
    '2d99f986184cdfa60100000000000000010000000000000003000000280000000101000000000000000100000000000000' +
    Buffer.from('127.0.0.1:19002\0').toString('hex') +
    '01000000000000',
  'hex',
)

test('the bootstrap segment of C dqlite is read', (t) => {
  t.is(bootstrap.byteLength, 80)
  const batch = readBatchHeader(bootstrap, viewOf(bootstrap), 8, crc32)
  if ('problem' in batch) return t.fail(batch.problem)
  t.is(batch.entries, 1)
  t.is(batch.end, 80)
  t.deepEqual(readEntryHeader(viewOf(bootstrap), batch.headersOffset), { term: 1, typeCode: 3, byteLength: 40 })
  t.is(crc32(bootstrap, batch.dataOffset, batch.end, 0), batch.dataCrc)
  t.deepEqual(decodeConfiguration(bootstrap.subarray(batch.dataOffset)), {
    servers: [{ id: 1n, address: '127.0.0.1:19002', role: 'voter' }],
  })
})

test('the bootstrap segment of C dqlite is written byte for byte', (t) => {
  const bytes = Buffer.from(bootstrap)
  bytes.fill(0xaa, 8, 8 + batchHeaderBytes(1))
  const view = viewOf(bytes)
  writeEntryHeader(view, 24, { term: 1, typeCode: 3, byteLength: 40 })
  writeBatchPreamble(bytes, view, { offset: 8, entries: 1, dataCrc: crc32(bytes, 40, 80, 0) }, crc32)
  t.true(bytes.equals(bootstrap))
})

test('a batch header that is cut or changed is never taken for good', (t) => {
  for (let length = 8; length < 80; length++) {
    const cut = Buffer.from(bootstrap.subarray(0, length))
    const batch = readBatchHeader(cut, viewOf(cut), 8, crc32)
    t.true('problem' in batch && batch.short, `cut at ${length}`)
  }
  for (let bit = 8 * 8; bit < 40 * 8; bit++) {
    const changed = Buffer.from(bootstrap)
    changed[bit >> 3]! ^= 1 << (bit & 7)
    const batch = readBatchHeader(changed, viewOf(changed), 8, crc32)
    const isDataCrc = bit >= 12 * 8 && bit < 16 * 8
    t.is('problem' in batch, !isDataCrc, `bit ${bit}`)
  }
})

test('terms beyond 32 bits survive, terms beyond 2^53 are malformed', (t) => {
  const bytes = Buffer.alloc(16)
  writeEntryHeader(viewOf(bytes), 0, { term: 2 ** 40 + 5, typeCode: 1, byteLength: 8 })
  t.is(readEntryHeader(viewOf(bytes), 0).term, 2 ** 40 + 5)
  bytes.writeUInt32LE(2 ** 21, 4)
  t.throws(() => readEntryHeader(viewOf(bytes), 0), { code: 'MALFORMED' })
})

test('metadata is 32 bytes of four words', (t) => {
  const bytes = encodeMetadata({ version: 3, term: 7, votedFor: 0x2dc171858c3155ben })
  t.is(bytes.toString('hex'), '010000000000000003000000000000000700000000000000be55318c8571c12d')
  t.deepEqual(decodeMetadata(bytes), { version: 3, term: 7, votedFor: 0x2dc171858c3155ben })
  t.is(decodeMetadata(encodeMetadata({ version: 1, term: 1, votedFor: undefined })).votedFor, undefined)
  t.throws(() => decodeMetadata(bytes.subarray(0, 31)), { code: 'MALFORMED' })
  t.throws(() => decodeMetadata(Buffer.concat([bytes, Buffer.alloc(1)])), { code: 'MALFORMED' })
  t.throws(() => decodeMetadata(Buffer.alloc(32)), { code: 'MALFORMED' })
  const versionZero = Buffer.from(bytes)
  versionZero.writeUInt32LE(0, 8)
  t.throws(() => decodeMetadata(versionZero), { code: 'MALFORMED' })
})

test('snapshot metadata round trips and is checked', (t) => {
  const bytes = encodeSnapshotMeta({ configuration, configurationIndex: 12 }, crc32)
  t.deepEqual(decodeSnapshotMeta(bytes, crc32), { configuration, configurationIndex: 12 })
  for (let length = 0; length < bytes.byteLength; length++)
    t.throws(() => decodeSnapshotMeta(bytes.subarray(0, length), crc32), { code: 'MALFORMED' })
  for (let at = 16; at < bytes.byteLength; at++) {
    const changed = Buffer.from(bytes)
    changed[at]! ^= 4
    t.throws(() => decodeSnapshotMeta(changed, crc32), { code: 'MALFORMED' })
  }
})

test('file names say what they are', (t) => {
  t.deepEqual(parseFileName('metadata2'), { kind: 'metadata', slot: 2 })
  t.deepEqual(parseFileName(closedSegmentName(1, 685)), { kind: 'closedSegment', first: 1, last: 685 })
  t.is(closedSegmentName(1, 685), '0000000000000001-0000000000000685')
  t.deepEqual(parseFileName(openSegmentName(12)), { kind: 'openSegment', counter: 12 })
  const snapshot = { term: 2, index: 1577, timestampMs: 3256532 }
  t.is(snapshotMetaFileName(snapshot), 'snapshot-2-1577-3256532.meta')
  t.deepEqual(parseFileName(snapshotFileName(snapshot)), { kind: 'snapshot', snapshot })
  t.deepEqual(parseFileName(snapshotMetaFileName(snapshot)), { kind: 'snapshotMeta', snapshot })
  t.deepEqual(parseFileName('tmp-anything'), { kind: 'temporary' })
  const strangers = ['', 'metadata3', 'open-', 'open-x', 'open-12345678901234567', '1-2', 'snapshot-1-2', 'info.yaml']
  strangers.push(
    '0000000000000002-0000000000000001',
    '0000000000000000-0000000000000001',
    '9999999999999999-9999999999999999',
  )
  strangers.push('corrupt-1700000000000000000-open-1', 'dqlite-lock', 'tmp-' + 'x'.repeat(124), 'snapshot-1-2-3.metal')
  for (const name of strangers) t.is(parseFileName(name), undefined, name)
})

test('snapshot content is cut the same way whatever the chunks', (t) => {
  const databases = [
    { name: 'test.db', main: Buffer.alloc(8192, 1), wal: Buffer.alloc(32 + 4120, 2) },
    { name: 'a name of twenty bytes', main: Buffer.alloc(4096, 3), wal: Buffer.alloc(0) },
    { name: 'empty', main: Buffer.alloc(0), wal: Buffer.alloc(0) },
  ]
  const content = Buffer.concat([
    encodeContentHeader(databases.length),
    ...databases.flatMap(({ name, main, wal }) => [
      encodeDatabaseHeader(name, main.byteLength, wal.byteLength),
      main,
      wal,
    ]),
  ])
  const decoded = (cuts: readonly number[]) => {
    const decoder = new ContentDecoder()
    const found: { name: string; main: Buffer; wal: Buffer }[] = []
    const take = (part: ContentPart) => {
      if (part.type === 'database') found.push({ name: part.name, main: Buffer.alloc(0), wal: Buffer.alloc(0) })
      else found.at(-1)![part.type] = Buffer.concat([found.at(-1)![part.type], part.bytes])
    }
    const edges = [0, ...[...cuts].sort((a, b) => a - b), content.byteLength]
    for (let i = 1; i < edges.length; i++)
      for (const part of decoder.push(content.subarray(edges[i - 1], edges[i]))) take(part)
    decoder.finish()
    return found
  }
  t.deepEqual(decoded([]), databases)
  t.deepEqual(decoded(Array.from({ length: content.byteLength - 1 }, (_, i) => i + 1)), databases)
  const anyCuts = fc.array(fc.nat({ max: content.byteLength }), { maxLength: 20 })
  fc.assert(fc.property(anyCuts, (cuts) => decoded(cuts).every((d, i) => d.main.equals(databases[i]!.main))))
  t.pass()
})

test('snapshot content that ends early, goes on or has a strange header is malformed', (t) => {
  const whole = Buffer.concat([encodeContentHeader(1), encodeDatabaseHeader('x', 8, 0), Buffer.alloc(8)])
  const run = (bytes: Buffer) => {
    const decoder = new ContentDecoder()
    for (const part of decoder.push(bytes)) void part
    decoder.finish()
  }
  t.notThrows(() => run(whole))
  for (let length = 0; length < whole.byteLength; length++)
    t.throws(() => run(whole.subarray(0, length)), { code: 'MALFORMED' }, String(length))
  t.throws(() => run(Buffer.concat([whole, Buffer.alloc(1)])), { code: 'MALFORMED' })
  t.throws(() => run(Buffer.alloc(100)), { code: 'MALFORMED' })
  t.throws(() => run(Buffer.concat([encodeContentHeader(1), Buffer.alloc(5000, 65)])), { code: 'MALFORMED' })
})
