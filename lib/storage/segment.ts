/**
 * One segment file as memory knows it: which entries it holds and where. Reads the bytes of a whole segment into such
 * an index. Does not open files.
 */
import assert from 'node:assert/strict'
import {
  type Crc32,
  batchPreambleBytes,
  diskFormat,
  entryHeaderBytes,
  formatOf,
  isNewerFormat,
  readBatchHeader,
  readEntryHeader,
  segmentHeaderBytes,
} from '../codec/data-directory.js'
import { entryFromParts, entryTypeCodes } from '../codec/log-entry.js'
import { DqliteError } from '../errors.js'
import type { Entry, Index, Term } from '../raft/types.js'

export interface EntryPlace {
  readonly term: Term
  readonly typeCode: number
  /** Of the data, in the file. */
  readonly offset: number
  readonly byteLength: number
  /** The batch's data checksum before and after this entry: an entry can be checked without its batch. */
  readonly crcBefore: number
  readonly crcAfter: number
}

const entriesAtFirst = 64

/** About 33 bytes per entry, in arrays that grow by doubling. */
export class Segment {
  readonly first: Index
  /** Changes when an open segment is closed. */
  name: string
  #count = 0
  #terms = new Float64Array(entriesAtFirst)
  #typeCodes = new Uint8Array(entriesAtFirst)
  #offsets = new Float64Array(entriesAtFirst)
  #byteLengths = new Uint32Array(entriesAtFirst)
  #crcsBefore = new Uint32Array(entriesAtFirst)
  #crcsAfter = new Uint32Array(entriesAtFirst)

  constructor(name: string, first: Index) {
    this.name = name
    this.first = first
  }

  get count(): number {
    return this.#count
  }

  /** `first - 1` while it is empty. */
  get last(): Index {
    return this.first + this.#count - 1
  }

  push(place: EntryPlace): void {
    const at = this.#count
    if (at === this.#terms.length) this.#grow()
    this.#terms[at] = place.term
    this.#typeCodes[at] = place.typeCode
    this.#offsets[at] = place.offset
    this.#byteLengths[at] = place.byteLength
    this.#crcsBefore[at] = place.crcBefore
    this.#crcsAfter[at] = place.crcAfter
    this.#count = at + 1
  }

  /** For a batch whose checksum is computed after its place is known. */
  setCrcs(index: Index, crcBefore: number, crcAfter: number): void {
    const at = this.#at(index)
    this.#crcsBefore[at] = crcBefore
    this.#crcsAfter[at] = crcAfter
  }

  place(index: Index): EntryPlace {
    const at = this.#at(index)
    return {
      term: this.#terms[at]!,
      typeCode: this.#typeCodes[at]!,
      offset: this.#offsets[at]!,
      byteLength: this.#byteLengths[at]!,
      crcBefore: this.#crcsBefore[at]!,
      crcAfter: this.#crcsAfter[at]!,
    }
  }

  #at(index: Index): number {
    assert(index >= this.first && index <= this.last, `entry ${index} is not in ${this.name}`)
    return index - this.first
  }

  #grow(): void {
    const wider = <A extends Float64Array | Uint32Array | Uint8Array>(from: A, to: A): A => {
      to.set(from)
      return to
    }
    const length = this.#terms.length * 2
    this.#terms = wider(this.#terms, new Float64Array(length))
    this.#typeCodes = wider(this.#typeCodes, new Uint8Array(length))
    this.#offsets = wider(this.#offsets, new Float64Array(length))
    this.#byteLengths = wider(this.#byteLengths, new Uint32Array(length))
    this.#crcsBefore = wider(this.#crcsBefore, new Uint32Array(length))
    this.#crcsAfter = wider(this.#crcsAfter, new Uint32Array(length))
  }
}

/** The entry at `place`, with its data as a view of `bytes` at `offset`. Checks nothing. */
export function entryAt(index: Index, place: EntryPlace, bytes: Uint8Array, offset: number): Entry {
  return entryFromParts(index, place.term, place.typeCode, bytes.subarray(offset, offset + place.byteLength))
}

/** Why the rest of a segment could not be read. */
export interface Damage {
  /** Where the batch begins that is not good. */
  readonly offset: number
  readonly problem: string
  /** `torn`: what an interrupted write may leave. `foreign`: checksums are right, but the content is not known. */
  readonly kind: 'torn' | 'foreign'
}

export interface ScannedSegment {
  readonly segment: Segment
  /** Good ones. */
  readonly batches: number
  /** Where the last good batch ends; 0: not even the format word is there. */
  readonly goodBytes: number
  readonly damage: Damage | undefined
  /** Good batches are followed by nothing but zeros. */
  readonly isTailZero: boolean
}

const zeros = Buffer.alloc(64 * 1024)

export function isAllZero(bytes: Buffer, from: number): boolean {
  for (let at = from; at < bytes.byteLength; at += zeros.byteLength) {
    const piece = bytes.subarray(at, at + zeros.byteLength)
    if (!piece.equals(zeros.subarray(0, piece.byteLength))) return false
  }
  return true
}

/** Throws DIRECTORY_FOREIGN if a newer dqlite wrote the segment. */
export function scanSegment(bytes: Buffer, name: string, first: Index, crc32: Crc32): ScannedSegment {
  const segment = new Segment(name, first)
  let batches = 0
  const torn = (offset: number, problem: string): ScannedSegment => ({
    segment,
    batches,
    goodBytes: offset,
    damage: { offset, problem, kind: 'torn' },
    isTailZero: isAllZero(bytes, offset),
  })
  if (bytes.byteLength < segmentHeaderBytes) return torn(0, 'the file is too short for its format')
  const format = formatOf(bytes)
  if (isNewerFormat(format))
    throw new DqliteError('DIRECTORY_FOREIGN', `${name} has format ${format.toString()}: a newer dqlite wrote it`)
  if (format !== BigInt(diskFormat)) return torn(0, `the file begins with format ${format.toString()}`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let offset = segmentHeaderBytes
  while (offset < bytes.byteLength) {
    const batch = readBatchHeader(bytes, view, offset, crc32)
    if ('problem' in batch) return torn(offset, batch.problem)
    let crc = 0
    let dataAt = batch.dataOffset
    const places: EntryPlace[] = []
    for (let i = 0; i < batch.entries; i++) {
      const { term, typeCode, byteLength } = readEntryHeader(view, batch.headersOffset + i * entryHeaderBytes)
      const crcAfter = crc32(bytes, dataAt, dataAt + byteLength, crc)
      places.push({ term, typeCode, offset: dataAt, byteLength, crcBefore: crc, crcAfter })
      crc = crcAfter
      dataAt += byteLength
    }
    if (crc !== batch.dataCrc) return torn(offset, 'the data of a batch fails its checksum')
    const strange = places.find(
      (p) => p.byteLength % 8 !== 0 || !Object.values(entryTypeCodes).some((code) => code === p.typeCode),
    )
    if (strange !== undefined) {
      const problem = `an entry of type ${strange.typeCode} with ${strange.byteLength} bytes`
      return { segment, batches, goodBytes: offset, damage: { offset, problem, kind: 'foreign' }, isTailZero: false }
    }
    for (const place of places) segment.push(place)
    offset = batch.end
    batches++
  }
  return { segment, batches, goodBytes: offset, damage: undefined, isTailZero: true }
}

/**
 * The file's content without the entries above `last`, as pieces, and its index. Whole batches stay as they are; of
 * the batch that is cut the checksum is known, because checksums are chained entry by entry.
 */
export function cutSegment(
  bytes: Buffer,
  segment: Segment,
  options: { readonly last: Index; readonly name: string; readonly crc32: Crc32 },
): { readonly pieces: Uint8Array[]; readonly segment: Segment } {
  const { last, name, crc32 } = options
  assert(last >= segment.first && last < segment.last)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const kept = new Segment(name, segment.first)
  let offset = segmentHeaderBytes
  for (let index = segment.first; ;) {
    const batch = readBatchHeader(bytes, view, offset, crc32)
    assert(!('problem' in batch), `${segment.name} was good when it was loaded`)
    const entries = Math.min(batch.entries, last - index + 1)
    if (entries === batch.entries) {
      for (let i = 0; i < entries; i++) kept.push(segment.place(index + i))
      index += entries
      offset = batch.end
      if (index > last) return { pieces: [bytes.subarray(0, offset)], segment: kept }
      continue
    }
    // The headers become shorter, so the data moves up.
    const header = Buffer.from(bytes.subarray(offset, offset + batchPreambleBytes + entries * entryHeaderBytes))
    const moved = (batch.entries - entries) * entryHeaderBytes
    let dataEnd = batch.dataOffset
    let dataCrc = 0
    for (let i = 0; i < entries; i++) {
      const place = segment.place(index + i)
      kept.push({ ...place, offset: place.offset - moved })
      dataEnd = place.offset + place.byteLength
      dataCrc = place.crcAfter
    }
    header.writeBigUInt64LE(BigInt(entries), 8)
    header.writeUInt32LE(crc32(header, 8, header.byteLength, 0), 0)
    header.writeUInt32LE(dataCrc, 4)
    return { pieces: [bytes.subarray(0, offset), header, bytes.subarray(batch.dataOffset, dataEnd)], segment: kept }
  }
}
