import test from 'ava'
import fc from 'fast-check'
import { ByteReader, ByteWriter } from '../../lib/codec/bytes.js'
import { rowHeaderBytes, valueTypes } from '../../lib/codec/client-protocol.js'
import { decodeRows, encodeParameters, type SqlValue } from '../../lib/codec/tuple.js'
import { DqliteError } from '../../lib/errors.js'
import * as golden from './golden.js'

const rowsBody = (bytes: string): Uint8Array => golden.hex(bytes).subarray(8)

/** The naive twin: writes a ROWS body from types and payloads. */
function encodeRows(
  names: string[],
  rows: { type: number; write: (w: ByteWriter) => void }[][],
  marker = 0xff,
): Buffer {
  const w = new ByteWriter().u64(names.length)
  for (const name of names) w.text(name)
  for (const row of rows) {
    const header = Buffer.alloc(rowHeaderBytes(names.length))
    row.forEach((cell, i) => (header[i >> 1]! |= cell.type << (4 * (i % 2))))
    w.raw(header)
    for (const cell of row) cell.write(w)
  }
  return w.raw(Buffer.alloc(8, marker)).finish()
}
const text = (type: number, s: string) => ({ type, write: (w: ByteWriter): void => void w.text(s) })
const int = (type: number, v: bigint) => ({ type, write: (w: ByteWriter): void => void w.i64(v) })
const one = (cell: { type: number; write: (w: ByteWriter) => void }): Uint8Array => encodeRows(['c'], [[cell]])

test('the header of a tuple takes whole words in both schemas', (t) => {
  const head = (n: number, schema: 0 | 1): string => {
    const bytes = encodeParameters(new Array<number>(n).fill(1), schema)
    return bytes.subarray(0, bytes.length - 8 * n).toString('hex')
  }
  t.is(head(7, 0), '0701010101010101')
  t.is(head(8, 0), '08010101010101010100000000000000')
  t.is(head(4, 1), '0400000001010101')
  t.is(head(5, 1), '05000000010101010100000000000000')
  t.is(head(255, 0).length, 2 * 256)
  t.is(head(1000, 1).length, 2 * 1008)
  t.is(encodeParameters([], 0).length, 0)
  t.throws(() => encodeParameters(new Array<null>(256).fill(null), 0), { code: 'BAD_PARAMETER' })
})

test('each value gets the type that a Node developer means', (t) => {
  const type = (value: SqlValue): number => encodeParameters([value], 0)[1]!
  t.is(type(1), valueTypes.integer)
  t.is(type(Number.MAX_SAFE_INTEGER), valueTypes.integer)
  t.is(type(2 ** 53), valueTypes.float)
  t.is(type(-0), valueTypes.float)
  t.is(type(1.5), valueTypes.float)
  t.is(type(Infinity), valueTypes.float)
  t.is(type(2n ** 63n - 1n), valueTypes.integer)
  t.is(type(''), valueTypes.text)
  t.is(type(new Uint8Array(0)), valueTypes.blob)
  t.is(type(null), valueTypes.null)
  t.is(type(false), valueTypes.boolean)
  t.is(type(new Date(0)), valueTypes.iso8601)
})

test('values that SQL does not have are refused with their position', (t) => {
  const bad: unknown[] = [undefined, {}, Symbol('s'), () => 1, 2n ** 63n, -(2n ** 63n) - 1n, 'a\0b', new Date(NaN), [1]]
  for (const value of bad)
    t.throws(() => encodeParameters([1, value as SqlValue], 0), { code: 'BAD_PARAMETER', message: /^parameter 2 / })
  t.throws(() => encodeParameters([new Date(Date.UTC(10_000, 0))], 0), { code: 'BAD_PARAMETER' })
})

test('a Date is written as Go writes it', (t) => {
  const written = (date: Date): string => new ByteReader(encodeParameters([date], 0), 8).text()
  t.is(written(new Date('2024-01-02T03:04:05Z')), '2024-01-02 03:04:05+00:00')
  t.is(written(new Date('2024-01-02T03:04:05.120Z')), '2024-01-02 03:04:05.12+00:00')
  t.is(written(new Date('0001-01-02T03:04:00.001Z')), '0001-01-02 03:04:00.001+00:00')
})

test('the golden rows', (t) => {
  t.deepEqual(decodeRows(rowsBody(golden.responses.rows)), {
    columns: ['i', 'r', 's', 'b', 'd', 'o', 'x'],
    rows: [[-2, 1.5, 'héllo', Buffer.from([1, 2, 3]), new Date('2024-01-02T03:04:05Z'), true, null]],
    done: true,
  })
  t.deepEqual(decodeRows(rowsBody(golden.responses.typedNull)).rows, [[null]])
  t.deepEqual(decodeRows(rowsBody(golden.responses.noRows)), { columns: ['i'], rows: [], done: true })
  t.deepEqual(decodeRows(rowsBody(golden.responses.noColumns)), { columns: [], rows: [], done: true })
})

test('a batch of 255 rows says that more follow', (t) => {
  const rows = Array.from({ length: 255 }, (_, i) => [int(valueTypes.integer, BigInt(i + 1))])
  const body = encodeRows(['n'], rows, 0xee)
  t.is(body.length, 4104)
  const decoded = decodeRows(body)
  t.false(decoded.done)
  t.deepEqual(
    decoded.rows.map(([n]) => n),
    Array.from({ length: 255 }, (_, i) => i + 1),
  )
})

test('any number of columns has its types in nibbles, low first', (t) => {
  for (const n of [1, 2, 15, 16, 17, 32, 33, 300]) {
    const row = Array.from({ length: n }, (_, i) => (i % 3 === 0 ? text(3, `v${i}`) : int(1, BigInt(i))))
    const names = row.map((_, i) => `c${i}`)
    const { rows } = decodeRows(encodeRows(names, [row, row]))
    const expected = row.map((_, i) => (i % 3 === 0 ? `v${i}` : i))
    t.deepEqual(rows, [expected, expected])
  }
})

test('integers beyond 2^53 are an error as numbers and themselves as bigints', (t) => {
  for (const value of [2n ** 53n, -(2n ** 53n), 2n ** 63n - 1n, -(2n ** 63n)]) {
    t.throws(() => decodeRows(one(int(1, value))), { code: 'UNSAFE_INTEGER', message: /column c holds/ })
    t.deepEqual(decodeRows(one(int(1, value)), { integers: 'bigint' }).rows, [[value]])
  }
  t.deepEqual(decodeRows(one(int(1, 7n)), { integers: 'bigint' }).rows, [[7n]])
})

test('columns of dates become Date, what is no date stays, and raw leaves all as stored', (t) => {
  const value = (cell: { type: number; write: (w: ByteWriter) => void }, dates: 'date' | 'raw' = 'date'): SqlValue =>
    decodeRows(one(cell), { dates }).rows[0]![0]!
  const iso = (s: string, dates?: 'raw'): SqlValue => value(text(valueTypes.iso8601, s), dates)
  t.deepEqual(value(int(valueTypes.unixTime, 1_700_000_000n)), new Date(1_700_000_000_000))
  t.is(value(int(valueTypes.unixTime, 1_700_000_000n), 'raw'), 1_700_000_000)
  t.is(value(int(valueTypes.unixTime, 9_000_000_000_000n)), 9_000_000_000_000)
  const readable: [string, string][] = [
    ['2024-01-02 03:04:05.5+02:00', '2024-01-02T01:04:05.500Z'],
    ['2024-01-02T03:04:05-01:30', '2024-01-02T04:34:05.000Z'],
    ['2024-01-02 03:04:05.123456789', '2024-01-02T03:04:05.123Z'],
    ['2024-01-02 03:04:05Z', '2024-01-02T03:04:05.000Z'],
    ['2024-01-02 03:04', '2024-01-02T03:04:00.000Z'],
    ['2024-02-29', '2024-02-29T00:00:00.000Z'],
    ['0050-01-01', '0050-01-01T00:00:00.000Z'],
  ]
  for (const [written, meant] of readable) t.deepEqual(iso(written), new Date(meant), written)
  for (const s of ['yesterday', '2023-02-29', '2024-13-01', '2024-01-02 25:00', '03:04:05', '2024-01-02 03:04:05 CET'])
    t.is(iso(s), s)
  t.is(iso('2024-01-02', 'raw'), '2024-01-02')
  t.is(iso('', 'raw'), null)
})

test('every date that is sent comes back', (t) => {
  const date = fc.date({
    min: new Date('0000-01-01T00:00:00Z'),
    max: new Date('9999-12-31T23:59:59.999Z'),
    noInvalidDate: true,
  })
  fc.assert(
    fc.property(date, (value) => {
      const sent = new ByteReader(encodeParameters([value], 0), 8).text()
      t.deepEqual(decodeRows(one(text(valueTypes.iso8601, sent))).rows, [[value]])
    }),
    { numRuns: 500 },
  )
})

test('parameters have the encoding of rows', (t) => {
  const value = fc.oneof(
    fc.constant(null),
    fc.maxSafeInteger().map((n) => (Object.is(n, -0) ? 0 : n)),
    fc.double({ noNaN: true }).filter((n) => !Number.isSafeInteger(n)),
    fc.string({ unit: 'grapheme' }).filter((s) => !s.includes('\0')),
    fc.uint8Array().map((b) => Buffer.from(b)),
    fc.boolean(),
  )
  fc.assert(
    fc.property(fc.array(value, { minLength: 1, maxLength: 20 }), fc.constantFrom<0 | 1>(0, 1), (values, schema) => {
      const tuple = encodeParameters(values, schema)
      const start = schema === 0 ? 1 : 4
      const types = tuple.subarray(start, start + values.length)
      const payload = tuple.subarray(Math.ceil((start + values.length) / 8) * 8)
      const names = values.map((_, i) => `${i}`)
      // The first cell carries the whole payload: the encodings are the same.
      const row = [...types].map((type, i) => ({
        type,
        write: (w: ByteWriter): void => void (i === 0 && w.raw(payload)),
      }))
      t.deepEqual(decodeRows(encodeRows(names, [row])).rows, [values])
    }),
    { numRuns: 300 },
  )
})

test('rows that end early, have no end, or have something behind it are a bad response', (t) => {
  const body = rowsBody(golden.responses.rows)
  for (let length = 0; length < body.byteLength; length++)
    t.throws(() => decodeRows(body.subarray(0, length)), { code: 'BAD_RESPONSE' })
  t.throws(() => decodeRows(Buffer.concat([body, Buffer.alloc(8)])), { code: 'BAD_RESPONSE' })
  t.throws(() => decodeRows(Buffer.concat([body.subarray(0, -1), Buffer.from([0xee])])), { code: 'BAD_RESPONSE' })
  // No columns, and yet a row: it would never end.
  t.throws(() => decodeRows(Buffer.alloc(64)), { code: 'BAD_RESPONSE' })
  t.throws(() => decodeRows(Buffer.alloc(16, 0xff)), { code: 'BAD_RESPONSE' })
})

test('changed rows never throw anything but our errors', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 5 }),
      (changes) => {
        const body = Buffer.from(rowsBody(golden.responses.rows))
        for (const [at, value] of changes) body[at % body.length] = value
        try {
          decodeRows(body)
        } catch (error) {
          t.true(error instanceof DqliteError, String(error))
        }
      },
    ),
    { numRuns: 3000 },
  )
})
