/**
 * The files of a data directory, byte by byte: names, metadata, segments, snapshot metadata and snapshot content
 * (disk-format §1, §3, §4, §6, §8). The configuration inside is log-entry.ts's. Does not read or write files, and takes
 * the checksum as an argument: its implementation is native.
 */
import assert from 'node:assert/strict'
import type { Configuration, Index, ServerId, Term } from '../raft/types.js'
import { ByteReader, ByteWriter, encodeKey, malformed, pad8 } from './bytes.js'
import { decodeConfiguration, encodeConfiguration } from './log-entry.js'

/** CRC-32 of disk-format §2 over `bytes[start, end)`, continuing from `seed`. */
export type Crc32 = (bytes: Uint8Array, start: number, end: number, seed: number) => number

/** Everything on disk is of format 1. A higher number is a newer dqlite's. */
export const diskFormat = 1
/** A format word up to this is believed to be a format; above, it is damage. */
const formatsPlausible = 0xffff

export const isNewerFormat = (format: bigint): boolean => format > BigInt(diskFormat) && format <= formatsPlausible

// ---------------------------------------------------------------------------------------------------- file names

export const lockFileName = 'dqlite-lock'
export const temporaryPrefix = 'tmp-'
export const corruptPrefix = 'corrupt-'
/** Longer names are not read (disk-format §1). */
const fileNameBytesMax = 127

export interface SnapshotName {
  readonly term: Term
  readonly index: Index
  /** Monotonic milliseconds since boot: the last tie-breaker, not a date. */
  readonly timestampMs: number
}

export type FileName =
  | { readonly kind: 'metadata'; readonly slot: 1 | 2 }
  | { readonly kind: 'closedSegment'; readonly first: Index; readonly last: Index }
  | { readonly kind: 'openSegment'; readonly counter: number }
  | { readonly kind: 'snapshot' | 'snapshotMeta'; readonly snapshot: SnapshotName }
  | { readonly kind: 'temporary' }

/** `undefined`: not ours, to be left alone. */
export function parseFileName(name: string): FileName | undefined {
  if (Buffer.byteLength(name) > fileNameBytesMax) return undefined
  if (name === 'metadata1') return { kind: 'metadata', slot: 1 }
  if (name === 'metadata2') return { kind: 'metadata', slot: 2 }
  if (name.startsWith(temporaryPrefix)) return { kind: 'temporary' }
  let match = /^(\d{16})-(\d{16})$/.exec(name)
  if (match) {
    const first = safeNumber(match[1]!)
    const last = safeNumber(match[2]!)
    if (first === undefined || last === undefined || first === 0 || last < first) return undefined
    return { kind: 'closedSegment', first, last }
  }
  match = /^open-(\d{1,16})$/.exec(name)
  if (match) {
    const counter = safeNumber(match[1]!)
    return counter === undefined ? undefined : { kind: 'openSegment', counter }
  }
  match = /^snapshot-(\d+)-(\d+)-(\d+)(\.meta)?$/.exec(name)
  if (match) {
    const term = safeNumber(match[1]!)
    const index = safeNumber(match[2]!)
    const timestampMs = safeNumber(match[3]!)
    if (term === undefined || index === undefined || timestampMs === undefined) return undefined
    return { kind: match[4] === undefined ? 'snapshot' : 'snapshotMeta', snapshot: { term, index, timestampMs } }
  }
  return undefined
}

function safeNumber(digits: string): number | undefined {
  const value = Number(digits)
  return Number.isSafeInteger(value) ? value : undefined
}

const padded = (n: number): string => String(n).padStart(16, '0')

export const metadataFileName = (slot: 1 | 2): string => `metadata${slot}`
export const closedSegmentName = (first: Index, last: Index): string => `${padded(first)}-${padded(last)}`
export const openSegmentName = (counter: number): string => `open-${counter}`
export const snapshotFileName = (s: SnapshotName): string => `snapshot-${s.term}-${s.index}-${s.timestampMs}`
export const snapshotMetaFileName = (s: SnapshotName): string => `${snapshotFileName(s)}.meta`

/** Order of age: the last one is the newest (disk-format §5, step 3). */
export function compareSnapshotNames(a: SnapshotName, b: SnapshotName): number {
  return a.term - b.term || a.index - b.index || a.timestampMs - b.timestampMs
}

// ------------------------------------------------------------------------------------------------------ metadata

export const metadataBytes = 32

export interface Metadata {
  /** Counts the changes. Odd versions live in metadata1, even ones in metadata2. */
  readonly version: number
  readonly term: Term
  readonly votedFor: ServerId | undefined
}

export const metadataSlot = (version: number): 1 | 2 => (version % 2 === 1 ? 1 : 2)

//  0: u64 format = 1 · 8: u64 version, from 1 · 16: u64 term · 24: u64 voted for, 0 = nobody
export function encodeMetadata(metadata: Metadata): Buffer {
  assert(metadata.version > 0)
  const writer = new ByteWriter(metadataBytes)
  writer.u64(diskFormat).u64(metadata.version).u64(metadata.term)
  return writer.u64(metadata.votedFor ?? 0n).finish()
}

/** The format of a metadata file, a segment, a snapshot's metadata or its content: always the first word. */
export const formatOf = (bytes: Uint8Array): bigint => new ByteReader(bytes).u64()

/** Throws MALFORMED. The caller has looked at the format. */
export function decodeMetadata(bytes: Uint8Array): Metadata {
  if (bytes.byteLength !== metadataBytes) throw malformed(`${bytes.byteLength} bytes instead of ${metadataBytes}`)
  const reader = new ByteReader(bytes)
  const format = reader.u64()
  if (format !== BigInt(diskFormat)) throw malformed(`format ${format.toString()}`)
  const version = reader.index()
  const term = reader.index()
  const votedFor = reader.u64()
  if (version === 0) throw malformed('version 0')
  return { version, term, votedFor: votedFor === 0n ? undefined : votedFor }
}

// ------------------------------------------------------------------------------------------------------ segments

// A segment is a format word and batches, back to back:
//
//    0: u64 format = 1
//    8: batch, batch, …
//
// and a batch, written by one append:
//
//    0: u32 CRC of [8, 16 + 16 n)         the number and the headers
//    4: u32 CRC of the data
//    8: u64 n, 1 … 262144
//   16: n × { u64 term · u8 type · 3 bytes any · u32 length of the data }
//       n × data, lengths are multiples of 8
//
// In a closed segment the file ends with the last batch; in an open one zeros follow.
export const segmentHeaderBytes = 8
export const batchPreambleBytes = 16
export const entryHeaderBytes = 16
export const batchEntriesMax = 262_144

export const batchHeaderBytes = (entries: number): number => batchPreambleBytes + entryHeaderBytes * entries

export function writeSegmentHeader(target: DataView, offset: number): void {
  target.setUint32(offset, diskFormat, true)
  target.setUint32(offset + 4, 0, true)
}

function setUint64(target: DataView, offset: number, value: number): void {
  target.setUint32(offset, value >>> 0, true)
  target.setUint32(offset + 4, Math.floor(value / 2 ** 32), true)
}

export function writeEntryHeader(
  target: DataView,
  offset: number,
  entry: { readonly term: Term; readonly typeCode: number; readonly byteLength: number },
): void {
  setUint64(target, offset, entry.term)
  target.setUint32(offset + 8, entry.typeCode, true)
  target.setUint32(offset + 12, entry.byteLength, true)
}

/** Fills in the preamble of a batch whose entry headers are in place at `offset + 16`. `view` is over `bytes`. */
export function writeBatchPreamble(
  bytes: Uint8Array,
  view: DataView,
  batch: { readonly offset: number; readonly entries: number; readonly dataCrc: number },
  crc32: Crc32,
): void {
  assert(batch.entries > 0 && batch.entries <= batchEntriesMax)
  setUint64(view, batch.offset + 8, batch.entries)
  view.setUint32(batch.offset, crc32(bytes, batch.offset + 8, batch.offset + batchHeaderBytes(batch.entries), 0), true)
  view.setUint32(batch.offset + 4, batch.dataCrc, true)
}

/** What stands in a batch, as far as the headers say. Offsets are of the segment's bytes. */
export interface BatchHeader {
  readonly entries: number
  readonly dataCrc: number
  /** Where entry headers, data and the next batch begin. */
  readonly headersOffset: number
  readonly dataOffset: number
  readonly end: number
}

/**
 * Reads and checks the header of the batch at `offset`. A string says what is wrong: `short` if the bytes end first,
 * which may only mean that the file does.
 */
export function readBatchHeader(
  bytes: Uint8Array,
  view: DataView,
  offset: number,
  crc32: Crc32,
): BatchHeader | { readonly problem: string; readonly short: boolean } {
  const rest = bytes.byteLength - offset
  if (rest < batchPreambleBytes) return { problem: 'the file ends inside the preamble of a batch', short: true }
  const entries = view.getUint32(offset + 8, true)
  if (entries === 0 || entries > batchEntriesMax || view.getUint32(offset + 12, true) !== 0)
    return { problem: 'a batch with an impossible number of entries', short: false }
  const dataOffset = offset + batchHeaderBytes(entries)
  if (dataOffset > bytes.byteLength) return { problem: 'the file ends inside the headers of a batch', short: true }
  if (crc32(bytes, offset + 8, dataOffset, 0) !== view.getUint32(offset, true))
    return { problem: 'the headers of a batch fail their checksum', short: false }
  let end = dataOffset
  for (let at = offset + batchPreambleBytes; at < dataOffset; at += entryHeaderBytes)
    end += view.getUint32(at + 12, true)
  if (end > bytes.byteLength) return { problem: 'the file ends inside the data of a batch', short: true }
  return {
    entries,
    dataCrc: view.getUint32(offset + 4, true),
    headersOffset: offset + batchPreambleBytes,
    dataOffset,
    end,
  }
}

/** Throws MALFORMED for a term beyond 2^53. */
export function readEntryHeader(view: DataView, offset: number): { term: Term; typeCode: number; byteLength: number } {
  const high = view.getUint32(offset + 4, true)
  if (high >= 2 ** 21) throw malformed('a term beyond 2^53')
  return {
    term: high * 2 ** 32 + view.getUint32(offset, true),
    typeCode: view.getUint8(offset + 8),
    byteLength: view.getUint32(offset + 12, true),
  }
}

// ---------------------------------------------------------------------------------------------- snapshot metadata

const snapshotMetaHeaderBytes = 32
const configurationBytesMax = 1024 * 1024

export interface SnapshotMeta {
  readonly configuration: Configuration
  readonly configurationIndex: Index
}

//  0: u64 format = 1 · 8: u64 CRC of [16, end) · 16: u64 index of the configuration · 24: u64 its length
// 32: configuration, a multiple of 8
export function encodeSnapshotMeta(meta: SnapshotMeta, crc32: Crc32): Buffer {
  const configuration = encodeConfiguration(meta.configuration)
  assert(configuration.byteLength <= configurationBytesMax)
  const bytes = new ByteWriter(snapshotMetaHeaderBytes + configuration.byteLength)
    .u64(diskFormat)
    .u64(0)
    .u64(meta.configurationIndex)
    .u64(configuration.byteLength)
    .raw(configuration)
    .finish()
  bytes.writeUInt32LE(crc32(bytes, 16, bytes.byteLength, 0), 8)
  return bytes
}

/** Throws MALFORMED. The caller has looked at the format. */
export function decodeSnapshotMeta(bytes: Uint8Array, crc32: Crc32): SnapshotMeta {
  const reader = new ByteReader(bytes)
  const format = reader.u64()
  if (format !== BigInt(diskFormat)) throw malformed(`format ${format.toString()}`)
  const crc = reader.u32()
  reader.u32() // the upper half of the checksum's word means nothing
  if (crc32(bytes, 16, bytes.byteLength, 0) !== crc) throw malformed('the checksum does not match')
  const configurationIndex = reader.index()
  const length = reader.index()
  if (length === 0 || length > configurationBytesMax || length % 8 !== 0 || length !== reader.remaining)
    throw malformed(`a configuration of ${length} bytes in ${reader.remaining}`)
  return { configurationIndex, configuration: decodeConfiguration(reader.bytes(length)) }
}

// ----------------------------------------------------------------------------------------------- snapshot content

// Also what InstallSnapshot carries:
//   0: u64 format = 1 · 8: u64 n
//  16: n × { text name, NUL and zeros to 8 · u64 bytes of main · u64 bytes of wal · main · wal }
// `wal` is a WAL file's image in snapshots of dqlite up to 1.16; later ones, and ours, have none.
export const contentHeaderBytes = 16

export function encodeContentHeader(databases: number): Buffer {
  return new ByteWriter(contentHeaderBytes).u64(diskFormat).u64(databases).finish()
}

export function databaseHeaderBytes(name: string): number {
  return pad8(encodeKey(name).byteLength + 1) + 16
}

export function encodeDatabaseHeader(name: string, mainBytes: number, walBytes: number): Buffer {
  const key = encodeKey(name)
  assert(!key.includes(0))
  return new ByteWriter(databaseHeaderBytes(name)).text(key).u64(mainBytes).u64(walBytes).finish()
}

/** What a piece of content means. Bytes are views of the chunk that was pushed. */
export type ContentPart =
  | { readonly type: 'database'; readonly name: string; readonly mainBytes: number; readonly walBytes: number }
  | { readonly type: 'main' | 'wal'; readonly bytes: Uint8Array }

/** A database header is at most this long: the name is bounded, and so is what is buffered of it. */
const databaseHeaderBytesMax = 4096 + 16

/** Cuts content that arrives in chunks of any size. Holds at most one incomplete header. */
export class ContentDecoder {
  #held = Buffer.alloc(0)
  #databasesLeft: number | undefined
  #mainLeft = 0
  #walLeft = 0

  /** Throws MALFORMED if the content is not complete. */
  finish(): void {
    if (this.#databasesLeft !== 0 || this.#mainLeft > 0 || this.#walLeft > 0 || this.#held.byteLength > 0)
      throw malformed('snapshot content ends early')
  }

  /** The parts of this chunk, in order. Throws MALFORMED. */
  *push(chunk: Uint8Array): Generator<ContentPart> {
    let bytes = chunk
    while (bytes.byteLength > 0) {
      if (this.#mainLeft > 0 || this.#walLeft > 0) {
        const type = this.#mainLeft > 0 ? 'main' : 'wal'
        const part = bytes.subarray(0, type === 'main' ? this.#mainLeft : this.#walLeft)
        if (type === 'main') this.#mainLeft -= part.byteLength
        else this.#walLeft -= part.byteLength
        bytes = bytes.subarray(part.byteLength)
        yield { type, bytes: part }
        continue
      }
      if (this.#databasesLeft === 0) throw malformed('bytes after the last database of a snapshot')
      // A header: complete what is held by as much as a header can need.
      const heldBytes = this.#held.byteLength
      const header = Buffer.concat([this.#held, bytes.subarray(0, databaseHeaderBytesMax - heldBytes)])
      const step = this.#databasesLeft === undefined ? this.#contentHeader(header) : this.#databaseHeader(header)
      if (step === undefined) {
        if (header.byteLength >= databaseHeaderBytesMax) throw malformed('a database name without an end')
        this.#held = header
        return
      }
      this.#held = Buffer.alloc(0)
      bytes = bytes.subarray(step.end - heldBytes)
      if (step.part !== undefined) yield step.part
    }
  }

  #contentHeader(header: Buffer): { end: number; part?: ContentPart } | undefined {
    if (header.byteLength < contentHeaderBytes) return undefined
    const reader = new ByteReader(header)
    const format = reader.u64()
    if (format !== BigInt(diskFormat)) throw malformed(`snapshot content of format ${format.toString()}`)
    this.#databasesLeft = reader.index()
    return { end: contentHeaderBytes }
  }

  #databaseHeader(header: Buffer): { end: number; part?: ContentPart } | undefined {
    const nameEnd = header.indexOf(0)
    if (nameEnd < 0) return undefined
    const end = pad8(nameEnd + 1) + 16
    if (header.byteLength < end) return undefined
    const reader = new ByteReader(header.subarray(0, end))
    const name = reader.key()
    const mainBytes = reader.index()
    const walBytes = reader.index()
    this.#mainLeft = mainBytes
    this.#walLeft = walBytes
    this.#databasesLeft!--
    return { end, part: { type: 'database', name, mainBytes, walBytes } }
  }
}
