/**
 * The client's values: parameters to tuples, rows to values (client-protocol §4). The server has this in native code,
 * where no value becomes an object. Does not know SQL, nor which statement the values belong to.
 */
import { DqliteError } from '../errors.js'
import { ByteReader, ByteWriter, malformed, pad8 } from './bytes.js'
import { badResponse, columnType, rowHeaderBytes, valueTypes, type Schema } from './client-protocol.js'

// eslint-disable-next-line no-restricted-globals -- Date as a value; nothing here asks what time it is
const DateValue = Date

export type SqlValue = null | number | bigint | string | Uint8Array | boolean | Date

// ---------------------------------------------------------------------------------------------------- parameters

/** How many values the count field of a tuple can say. */
export const parametersMax: Readonly<Record<Schema, number>> = { 0: 0xff, 1: 0xffff_ffff }

// schema 0: u8 count · count × u8 type · zeros up to a whole word · the values
// schema 1: u32 count · the same
/**
 * The bytes after a request's fixed fields; empty without values. Throws BAD_PARAMETER.
 *
 * A number that is a whole number within 2^53 becomes INTEGER, any other FLOAT; a Date becomes text in UTC with
 * milliseconds, as Go's driver writes it, which sorts and which SQLite's date functions read.
 */
export function encodeParameters(values: readonly SqlValue[], schema: Schema): Buffer {
  if (values.length === 0) return Buffer.alloc(0)
  if (values.length > parametersMax[schema])
    throw new DqliteError('BAD_PARAMETER', `${values.length} parameters; at most ${parametersMax[schema]} can be sent`)
  const types = new Uint8Array(values.length)
  const body = new ByteWriter(16 * values.length)
  values.forEach((value, i) => (types[i] = writeValue(body, value, i)))
  const countBytes = schema === 0 ? 1 : 4
  const headBytes = pad8(countBytes + values.length)
  const writer = new ByteWriter(headBytes + body.length)
  if (schema === 0) writer.u8(values.length)
  else writer.u32(values.length)
  return writer
    .raw(types)
    .zeros(headBytes - countBytes - values.length)
    .raw(body.finish())
    .finish()
}

const int64Min = -(2n ** 63n)
const int64Max = 2n ** 63n - 1n

/** Writes the payload and says its type. */
function writeValue(writer: ByteWriter, value: SqlValue, position: number): number {
  if (value === null) {
    writer.u64(0)
    return valueTypes.null
  }
  if (typeof value === 'number') {
    // Negative zero is only a FLOAT; NaN is bound as NULL by SQLite.
    if (Number.isSafeInteger(value) && !Object.is(value, -0)) {
      writer.i64(BigInt(value))
      return valueTypes.integer
    }
    writer.f64(value)
    return valueTypes.float
  }
  if (typeof value === 'bigint') {
    if (value < int64Min || value > int64Max) throw badParameter(position, 'is beyond 64 bits')
    writer.i64(value)
    return valueTypes.integer
  }
  if (typeof value === 'string') {
    if (value.includes('\0')) throw badParameter(position, 'is a text with NUL, which would be cut there; send a blob')
    writer.text(value)
    return valueTypes.text
  }
  if (typeof value === 'boolean') {
    writer.u64(value ? 1 : 0)
    return valueTypes.boolean
  }
  if (value instanceof Uint8Array) {
    writer.blob(value)
    return valueTypes.blob
  }
  if (value instanceof DateValue) {
    writer.text(formatDate(value, position))
    return valueTypes.iso8601
  }
  throw badParameter(position, `is ${value === undefined ? 'undefined' : `of type ${typeof value}`}, which SQL has not`)
}

const badParameter = (position: number, what: string): DqliteError =>
  new DqliteError('BAD_PARAMETER', `parameter ${position + 1} ${what}`)

/** `2024-01-02 03:04:05.5+00:00`: no zeros at the end of the fraction, no dot without one (client-protocol §11.4). */
function formatDate(date: Date, position: number): string {
  const year = date.getUTCFullYear()
  if (!(year >= 0 && year <= 9999)) throw badParameter(position, 'is a Date without a time, or beyond the year 9999')
  const iso = date.toISOString()
  const fraction = iso.slice(19, 23).replace(/\.?0+$/, '')
  return `${iso.slice(0, 10)} ${iso.slice(11, 19)}${fraction}+00:00`
}

// ---------------------------------------------------------------------------------------------------------- rows

export interface RowOptions {
  /** `number` (default) throws UNSAFE_INTEGER where a number would lie; `bigint` makes every INTEGER a bigint. */
  readonly integers?: 'number' | 'bigint'
  /**
   * Columns declared DATETIME, DATE or TIMESTAMP. `date` (default): whole seconds and texts in a form that Go's driver
   * reads become Date, other texts stay as they are. `raw`: the number or the text that is stored.
   */
  readonly dates?: 'date' | 'raw'
}

export interface Rows {
  readonly columns: readonly string[]
  readonly rows: SqlValue[][]
  /** False: more ROWS messages follow. */
  readonly done: boolean
}

const doneByte = 0xff
const partByte = 0xee

// u64 columns · columns × text name · rows · a marker of 8 equal bytes, ff (done) or ee (more follows)
// row: 4 bits of type per column, column 0 in the low half of byte 0, up to a whole word · the values
/** The body of a ROWS message. Throws BAD_RESPONSE, UNSAFE_INTEGER. */
export function decodeRows(body: Uint8Array, options: RowOptions = {}): Rows {
  return badResponse('response rows', () => {
    const reader = new ByteReader(body)
    const count = reader.index()
    if (count > reader.remaining / 8) throw malformed(`${count} columns in ${body.byteLength} bytes`)
    const columns: string[] = []
    for (let i = 0; i < count; i++) columns.push(reader.text())
    const rows: SqlValue[][] = []
    for (;;) {
      const marker = readMarker(body, reader)
      if (marker !== undefined) {
        if (reader.remaining > 0) throw malformed('bytes after the end of the rows')
        return { columns, rows, done: marker === doneByte }
      }
      if (count === 0) throw malformed('a row without columns')
      rows.push(readRow(reader, columns, options))
    }
  })
}

/** A marker stands where a row header would; no type is 14 or 15, so its first byte tells (client-protocol §4.3). */
function readMarker(body: Uint8Array, reader: ByteReader): number | undefined {
  const first = body[reader.offset]
  if (first === undefined) throw malformed('rows without an end')
  if (first !== doneByte && first !== partByte) return undefined
  if (reader.bytes(8).some((byte) => byte !== first)) throw malformed('a broken end of rows')
  return first
}

function readRow(reader: ByteReader, columns: readonly string[], options: RowOptions): SqlValue[] {
  const types = reader.bytes(rowHeaderBytes(columns.length))
  const row = new Array<SqlValue>(columns.length)
  for (let i = 0; i < row.length; i++) row[i] = readValue(reader, columnType(types, i), columns[i]!, options)
  return row
}

function readValue(reader: ByteReader, type: number, column: string, options: RowOptions): SqlValue {
  switch (type) {
    case valueTypes.integer:
      return integer(reader.i64(), column, options)
    case valueTypes.float:
      return reader.f64()
    case valueTypes.text:
      return reader.text()
    case valueTypes.blob:
      // A copy: a view would keep the whole message alive as long as the caller keeps one cell.
      return Buffer.from(reader.blob())
    case valueTypes.null:
      reader.bytes(8)
      return null
    case valueTypes.unixTime: {
      const seconds = reader.i64()
      const date = options.dates === 'raw' ? undefined : new DateValue(Number(seconds) * 1000)
      return date === undefined || Number.isNaN(date.getTime()) ? integer(seconds, column, options) : date
    }
    case valueTypes.iso8601: {
      const text = reader.text()
      // NULL in such a column arrives as the empty text (client-protocol §4.4).
      if (text === '') return null
      return options.dates === 'raw' ? text : (parseDate(text) ?? text)
    }
    case valueTypes.boolean:
      return reader.u64() !== 0n
    default:
      throw malformed(`value type ${type}`)
  }
}

function integer(value: bigint, column: string, options: RowOptions): number | bigint {
  if (options.integers === 'bigint') return value
  const result = Number(value)
  if (!Number.isSafeInteger(result))
    throw new DqliteError(
      'UNSAFE_INTEGER',
      `column ${column} holds ${value.toString()}, which a number cannot; ask for integers as bigint`,
    )
  return result
}

// date · [ T]HH:MM · :SS · .fraction · zone; without zone it is UTC; a Z at the end is allowed anywhere
// (client-protocol §11.4: the layouts of Go's driver).
const timestamp = /^(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(\.\d+)?([+-]\d\d:\d\d)?)?)?Z?$/

/** `undefined`: not a form that Go's driver reads, or not a day of the calendar. */
function parseDate(text: string): Date | undefined {
  const match = timestamp.exec(text)
  if (match === null) return undefined
  const part = (i: number): number => Number(match[i] ?? 0)
  const [year, month, day, hour, minute, second] = [part(1), part(2), part(3), part(4), part(5), part(6)]
  if (hour > 23 || minute > 59 || second > 59) return undefined
  const date = new DateValue(0)
  date.setUTCFullYear(year, month - 1, day)
  if (date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day) return undefined
  date.setUTCHours(hour, minute, second, Math.floor(part(7) * 1000 + 1e-6))
  const zone = match[8]
  if (zone === undefined) return date
  const zoneMinutes = Number(zone.slice(1, 3)) * 60 + Number(zone.slice(4, 6))
  return new DateValue(date.getTime() + (zone.startsWith('-') ? zoneMinutes : -zoneMinutes) * 60_000)
}
