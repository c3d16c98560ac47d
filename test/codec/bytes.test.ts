import test from 'ava'
import fc from 'fast-check'
import { ByteQueue, ByteReader, ByteWriter, decodeKey, encodeKey, pad8 } from '../../lib/codec/bytes.js'

test('every primitive reads back what was written', (t) => {
  fc.assert(
    fc.property(
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
      fc.double(),
      fc.string({ unit: 'binary' }).map((s) => s.replaceAll('\0', '')),
      fc.uint8Array({ maxLength: 40 }),
      fc.maxSafeNat(),
      (unsigned, signed, float, text, blob, index) => {
        const bytes = new ByteWriter(1)
          .u8(7)
          .u16(65_535)
          .u32(4_294_967_295)
          .zeros(1)
          .u64(unsigned)
          .i64(signed)
          .f64(float)
          .text(text)
          .blob(blob)
          .u64(index)
          .finish()
        const reader = new ByteReader(bytes)
        const read = [reader.u8(), reader.u16(), reader.u32(), reader.u8()]
        t.deepEqual(read, [7, 65_535, 4_294_967_295, 0])
        t.is(reader.u64(), unsigned)
        t.is(reader.i64(), signed)
        t.is(reader.f64(), float)
        t.is(reader.text(), text)
        t.deepEqual(Buffer.from(reader.blob()), Buffer.from(blob))
        t.is(reader.index(), index)
        t.is(reader.remaining, 0)
      },
    ),
    { numRuns: 200 },
  )
})

test('a text takes whole words with its NUL', (t) => {
  t.is(new ByteWriter().text('').finish().toString('hex'), '0000000000000000')
  t.is(new ByteWriter().text('1234567').finish().length, 8)
  t.is(new ByteWriter().text('12345678').finish().length, 16)
  t.is(new ByteWriter().text('ab\0cd').finish().toString('hex'), '6162000000000000')
  t.deepEqual([0, 1, 8, 9].map(pad8), [0, 8, 8, 16])
})

test('reading beyond the end is malformed, whatever is read', (t) => {
  const reads: ((r: ByteReader) => unknown)[] = [
    (r) => r.u64(),
    (r) => r.i64(),
    (r) => r.f64(),
    (r) => r.index(),
    (r) => r.blob(),
    (r) => r.text(),
    (r) => r.name(),
    (r) => r.nulTerminated(),
    (r) => r.bytes(8),
  ]
  for (const read of reads) {
    const reader = new ByteReader(Buffer.from([1, 1, 1, 1, 1, 1, 1]))
    t.throws(() => read(reader), { code: 'MALFORMED' })
    t.is(reader.offset, 0)
  }
})

test('a text without its padding, a number beyond 2^53 and a blob longer than the rest are malformed', (t) => {
  t.throws(() => new ByteReader(Buffer.from([65, 0, 0])).text(), { code: 'MALFORMED' })
  t.throws(() => new ByteReader(Buffer.from('0000000000002000', 'hex')).index(), { code: 'MALFORMED' })
  t.is(new ByteReader(Buffer.from('ffffffffffff1f00', 'hex')).index(), Number.MAX_SAFE_INTEGER)
  t.throws(() => new ByteReader(Buffer.from('0200000000000000aaaa', 'hex')).blob(), { code: 'MALFORMED' })
  t.throws(() => new ByteReader(Buffer.from('ffffffffffffffffaaaa', 'hex')).blob(), { code: 'MALFORMED' })
})

test('a name must be UTF-8, a text may be anything', (t) => {
  const bytes = Buffer.from('ff41000000000000', 'hex')
  t.is(new ByteReader(bytes).text(), '\ufffdA')
  t.throws(() => new ByteReader(bytes).name(), { code: 'MALFORMED' })
  t.is(new ByteReader(Buffer.from('efbbbf4100000000', 'hex')).name(), '\ufeffA')
})

test('the key of a database has any bytes, one to one', (t) => {
  t.is(new ByteReader(Buffer.from('6162000000000000', 'hex')).key(), 'ab')
  const keys = new Set<string>()
  for (const bytes of ['ff41', 'fe41', 'c3bf41', '41', 'efbfbd41', 'efbbbf41']) {
    const key = decodeKey(Buffer.from(bytes, 'hex'))
    t.is(encodeKey(key).toString('hex'), bytes)
    keys.add(key)
  }
  t.is(keys.size, 6)
})

test('a queue gives back the bytes in any cut, and earlier views keep theirs', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 3000 }), { maxLength: 30 }),
      fc.infiniteStream(fc.integer({ min: 1, max: 2500 })),
      (chunkSizes, takes) => {
        const queue = new ByteQueue()
        const taken: Uint8Array[] = []
        let written = 0
        let due = 0
        for (const size of chunkSizes) {
          queue.push(Buffer.from(Array.from({ length: size }, (_, i) => (written + i) % 251)))
          written += size
          const n = takes.next().value as number
          if (n <= queue.length && n % 3 !== 0) taken.push(queue.take(n))
          due = written - taken.reduce((sum, piece) => sum + piece.byteLength, 0)
          t.is(queue.length, due)
        }
        for (;;) {
          const piece = queue.takeSome(700)
          if (piece === undefined) break
          taken.push(piece)
        }
        const all = Buffer.concat(taken)
        t.is(all.length, written)
        t.true(all.every((byte, i) => byte === i % 251))
      },
    ),
    { numRuns: 100 },
  )
})
