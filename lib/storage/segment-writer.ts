/**
 * Writes the end of the log: encodes entries as batches into aligned memory, one durable write in flight, and turns
 * full open segments into closed ones (disk-format §4.3–§4.5). Knows how bytes get to the disk; does not know which
 * closed segments exist, nor why entries come or go.
 *
 *   append → batch in the last waiting write → (one at a time) disk → promise resolves
 *
 * What is appended while a write runs is merged into the next one. The last, partial block of a segment is written
 * again by the next write. A batch too large for one piece of memory is written by several writes; it becomes valid
 * with the last of them, because its checksum covers all.
 */
import assert from 'node:assert/strict'
import { constants as osConstants } from 'node:os'
import path from 'node:path'
import {
  batchEntriesMax,
  batchHeaderBytes,
  batchPreambleBytes,
  closedSegmentName,
  entryHeaderBytes,
  openSegmentName,
  segmentHeaderBytes,
  writeBatchPreamble,
  writeEntryHeader,
  writeSegmentHeader,
} from '../codec/data-directory.js'
import { entryData, entryTypeCode } from '../codec/log-entry.js'
import type { DqliteError } from '../errors.js'
import type { Entry, Index } from '../raft/types.js'
import { crc32 } from './addon-storage.js'
import { type AppendWriter, type Disk, type DiskFile, blockBytes, diskFailed, systemError } from './disk.js'
import { Segment } from './segment.js'
import { SparePool } from './spare-pool.js'

/** Memory of one write. At it, what is appended goes to a further write. */
const slabBytes = 1024 * 1024
/** Slabs kept for reuse: the first touch of fresh memory costs more than the copy. */
const slabsKeptMax = 4
/** A large batch is summed in pieces of this, with the loop free in between. */
const checksumPieceBytes = 1024 * 1024

interface Waiter {
  readonly resolve: () => void
  readonly reject: (error: DqliteError) => void
}

interface OpenSegment {
  readonly counter: number
  readonly segment: Segment
  file: DiskFile | undefined
  /** Bytes encoded so far, written or not. */
  used: number
  /** What stands in the last partial block, unless `lastWrite` still holds it. */
  readonly tail: Buffer
  lastWrite: PendingWrite | undefined
  writesPending: number
  isSealed: boolean
  readonly closed: Promise<void>
  readonly onClosed: Waiter
}

interface PendingWrite {
  readonly open: OpenSegment
  /** Of the slab's first byte in the file; a multiple of a block. */
  readonly position: number
  readonly slab: Buffer
  readonly view: DataView
  /** Bytes of the slab in use. */
  length: number
  readonly waiters: Waiter[]
  /** Set: the slab is not used, these pieces are written one slab after the other. */
  readonly large: LargeBatch | undefined
  /** Durable up to here once this write is. */
  last: Index
}

interface LargeBatch {
  readonly first: Index
  /** What precedes the batch in its first block. */
  readonly head: Buffer
  readonly header: Buffer
  readonly data: readonly Uint8Array[]
}

export interface SegmentWriterOptions {
  readonly disk: Disk
  readonly dir: string
  readonly device: AppendWriter
  readonly segmentBytes: number
  /** Index of the first entry to come. */
  readonly next: Index
  /** A new open segment takes entries. */
  readonly onOpened: (segment: Segment) => void
  /** It has become a closed one: its name has changed. */
  readonly onClosed: (segment: Segment) => void
  /** The last operation that failed; the writer refuses everything from now on. */
  readonly onFailed: (error: DqliteError) => void
}

export class SegmentWriter {
  readonly #options: SegmentWriterOptions
  readonly #spares: SparePool
  readonly #slabs: Buffer[] = []
  /** In order; the first one may be in flight. */
  readonly #queue: PendingWrite[] = []
  /** Takes the next batch. */
  #open: OpenSegment | undefined
  /** Not closed yet, in order, the one above included. */
  readonly #openSegments = new Set<OpenSegment>()
  #closing: Promise<void> = Promise.resolve()
  #isBusy = false
  #onIdle: (() => void) | undefined
  #failed: DqliteError | undefined
  #next: Index
  #durable: Index

  constructor(options: SegmentWriterOptions) {
    assert(options.segmentBytes % blockBytes === 0 && options.segmentBytes >= 2 * blockBytes)
    this.#options = options
    this.#next = options.next
    this.#durable = options.next - 1
    this.#spares = new SparePool(options)
  }

  get failed(): DqliteError | undefined {
    return this.#failed
  }

  /** The last entry that the disk holds. */
  get durable(): Index {
    return this.#durable
  }

  /** Ends when no segment is being closed. */
  get closing(): Promise<void> {
    return this.#closing
  }

  /** Prepares segments ahead of need, in the background. */
  start(): void {
    this.#spares.fill()
  }

  /** Durable when resolved, in the order of calls. The data of commands must not change until then. */
  append(entries: readonly Entry[]): Promise<void> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed)
    if (entries.length === 0) return this.drain()
    for (let from = 0; from < entries.length;) {
      const { to, bytes } = this.#cut(entries, from)
      this.#encode(entries, from, to, bytes)
      from = to
    }
    return this.drain()
  }

  /** Resolves when everything appended so far is durable. */
  drain(): Promise<void> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed)
    const last = this.#queue.at(-1)
    if (last === undefined) return Promise.resolve()
    const promise = new Promise<void>((resolve, reject) => {
      last.waiters.push({ resolve, reject })
    })
    this.#pump()
    return promise
  }

  /** Resolves when every entry appended so far is in a closed segment. What comes later goes to a new one. */
  async barrier(): Promise<void> {
    if (this.#failed !== undefined) throw this.#failed
    this.#seal()
    await Promise.all([...this.#openSegments].map((open) => open.closed))
  }

  /** The log now ends before `next`. Nothing may be waiting, nothing open. */
  continueAt(next: Index): void {
    assert(this.#queue.length === 0)
    assert(this.#openSegments.size === 0)
    this.#next = next
    this.#durable = next - 1
  }

  /** Everything durable, open segments closed, spares removed. After a failure the files stay as they are. */
  async close(): Promise<void> {
    if (this.#failed === undefined) await this.barrier().catch(() => undefined) // reported through onFailed
    if (this.#isBusy) await new Promise<void>((resolve) => (this.#onIdle = resolve))
    await this.#closing
    await Promise.allSettled([...this.#openSegments].map(async (open) => open.file?.close()))
    await this.#spares.close()
    await this.#options.device.close()
  }

  // ------------------------------------------------------------------------------------------------- encoding

  /** How many entries from `from` on make the next batch, and its bytes. */
  #cut(entries: readonly Entry[], from: number): { to: number; bytes: number } {
    const room = this.#options.segmentBytes - segmentHeaderBytes
    let bytes = batchPreambleBytes
    let to = from
    while (to < entries.length && to - from < batchEntriesMax) {
      const more = entryHeaderBytes + entries[to]!.byteLength
      // One entry may be larger than a segment, several are not put together to become so.
      if (to > from && bytes + more > room) break
      bytes += more
      to++
    }
    return { to, bytes }
  }

  #encode(entries: readonly Entry[], from: number, to: number, bytes: number): void {
    const open = this.#openFor(bytes)
    const isFresh = open.used === 0
    const needed = bytes + (isFresh ? segmentHeaderBytes : 0)
    if (blockBytes + needed > slabBytes) {
      this.#encodeLarge(open, entries, from, to, bytes)
      return
    }
    let write = this.#queue.at(-1)
    const canTakeMore =
      write !== undefined &&
      write.open === open &&
      write.large === undefined &&
      !(this.#isBusy && this.#queue.length === 1) &&
      write.length + needed <= slabBytes
    if (!canTakeMore) write = this.#startWrite(open, this.#takeSlab(), undefined)
    const { slab, view } = write!
    if (isFresh) {
      writeSegmentHeader(view, 0)
      write!.length = open.used = segmentHeaderBytes
    }
    const offset = write!.length
    const count = to - from
    let headerAt = offset + batchPreambleBytes
    let dataAt = offset + batchHeaderBytes(count)
    let crc = 0
    for (let i = from; i < to; i++) {
      const entry = entries[i]!
      const data = entryData(entry)
      const { byteLength } = data
      slab.set(data, dataAt)
      const crcAfter = crc32(slab, dataAt, dataAt + byteLength, crc)
      // One literal, no spread: this is the hottest object of a follower, and V8 rebuilds the map of a spread one.
      const place = {
        term: entry.term,
        typeCode: entryTypeCode(entry.type),
        byteLength,
        offset: write!.position + dataAt,
        crcBefore: crc,
        crcAfter,
      }
      writeEntryHeader(view, headerAt, place)
      this.#push(open, entry, place)
      crc = crcAfter
      headerAt += entryHeaderBytes
      dataAt += byteLength
    }
    writeBatchPreamble(slab, view, { offset, entries: count, dataCrc: crc }, crc32)
    write!.length += bytes
    open.used += bytes
    write!.last = this.#next - 1
  }

  #push(open: OpenSegment, entry: Entry, place: Parameters<Segment['push']>[0]): void {
    assert.equal(entry.index, this.#next, 'entries are appended in order')
    assert.equal(place.byteLength % 8, 0)
    open.segment.push(place)
    this.#next++
  }

  #encodeLarge(open: OpenSegment, entries: readonly Entry[], from: number, to: number, bytes: number): void {
    const position = floorToBlock(open.used)
    const head = Buffer.alloc(Math.max(open.used - position, open.used === 0 ? segmentHeaderBytes : 0))
    this.#copyTail(open, position, head)
    if (open.used === 0) {
      writeSegmentHeader(viewOf(head), 0)
      open.used = segmentHeaderBytes
    }
    const count = to - from
    const header = Buffer.alloc(batchHeaderBytes(count))
    const view = viewOf(header)
    const data: Uint8Array[] = []
    let dataAt = open.used + header.byteLength
    for (let i = 0; i < count; i++) {
      const entry = entries[from + i]!
      const piece = entryData(entry)
      const fields = { term: entry.term, typeCode: entryTypeCode(entry.type), byteLength: piece.byteLength }
      writeEntryHeader(view, batchPreambleBytes + i * entryHeaderBytes, fields)
      // The checksums follow when the batch is written; nothing reads an entry before it is durable.
      this.#push(open, entry, { ...fields, offset: dataAt, crcBefore: 0, crcAfter: 0 })
      data.push(piece)
      dataAt += piece.byteLength
    }
    const large = { first: entries[from]!.index, head, header, data }
    const write = this.#startWrite(open, Buffer.alloc(0), large)
    write.last = this.#next - 1
    open.used += bytes
    assert.equal(open.used, dataAt)
    // The partial block that the next write begins with.
    open.lastWrite = undefined
    const pieces = [header, ...data]
    let missing = open.used % blockBytes
    for (let i = pieces.length - 1; missing > 0; i--) {
      const piece = pieces[i]!
      const part = piece.subarray(Math.max(0, piece.byteLength - missing))
      missing -= part.byteLength
      open.tail.set(part, missing)
    }
  }

  /** A write that begins with the last partial block of the segment, which is copied. */
  #startWrite(open: OpenSegment, slab: Buffer, large: LargeBatch | undefined): PendingWrite {
    const position = floorToBlock(open.used)
    const length = large === undefined ? open.used - position : 0
    if (large === undefined) this.#copyTail(open, position, slab.subarray(0, length))
    const write = { open, position, slab, view: viewOf(slab), length, waiters: [], large, last: this.#next - 1 }
    open.lastWrite = write
    open.writesPending++
    this.#queue.push(write)
    return write
  }

  #copyTail(open: OpenSegment, position: number, target: Buffer): void {
    const before = open.lastWrite
    if (before === undefined) target.set(open.tail.subarray(0, target.byteLength))
    else before.slab.copy(target, 0, position - before.position, before.length)
  }

  #takeSlab(): Buffer {
    return this.#slabs.pop() ?? this.#options.disk.alignedBuffer(slabBytes)
  }

  #recycle(slab: Buffer): void {
    if (slab.byteLength === slabBytes && this.#slabs.length < slabsKeptMax) this.#slabs.push(slab)
  }

  // ------------------------------------------------------------------------------------------------- segments

  #openFor(bytes: number): OpenSegment {
    const open = this.#open
    if (open !== undefined && open.used + bytes <= this.#options.segmentBytes) return open
    this.#seal()
    return this.#openNext()
  }

  #openNext(): OpenSegment {
    const counter = this.#spares.nextCounter()
    const segment = new Segment(openSegmentName(counter), this.#next)
    const { promise: closed, waiter: onClosed } = deferred()
    const tail = Buffer.alloc(blockBytes)
    const open: OpenSegment = {
      counter,
      segment,
      file: undefined,
      used: 0,
      tail,
      lastWrite: undefined,
      writesPending: 0,
      isSealed: false,
      closed,
      onClosed,
    }
    closed.catch(() => undefined) // told to barrier, and to onFailed in any case
    this.#open = open
    this.#openSegments.add(open)
    this.#spares.take(counter).then(
      (file) => {
        open.file = file
        this.#pump()
      },
      (cause: unknown) => {
        this.#fail(diskFailed(`prepare ${segment.name}`, cause))
      },
    )
    this.#options.onOpened(segment)
    return open
  }

  #seal(): void {
    const open = this.#open
    if (open === undefined) return
    this.#open = undefined
    open.isSealed = true
    if (open.writesPending === 0) this.#closeSegment(open)
  }

  /** In order, off the path of acknowledgements: what is in an open segment is durable already. */
  #closeSegment(open: OpenSegment): void {
    this.#closing = this.#closing.then(async () => {
      if (this.#failed !== undefined) return
      const { disk, dir, onClosed } = this.#options
      const { segment, file } = open
      const name = closedSegmentName(segment.first, segment.last)
      try {
        assert(file !== undefined)
        await file.truncate(open.used)
        await file.sync()
        await file.close()
        await disk.rename(path.join(dir, segment.name), path.join(dir, name))
        segment.name = name
        await disk.syncDirectory(dir)
      } catch (cause) {
        // An fsync that failed once says nothing when it succeeds later.
        this.#fail(diskFailed(`close ${segment.name}`, cause))
        return
      }
      this.#openSegments.delete(open)
      onClosed(segment)
      open.onClosed.resolve()
    })
  }

  // --------------------------------------------------------------------------------------------------- writes

  #pump(): void {
    const write = this.#queue[0]
    if (this.#isBusy || this.#failed !== undefined || write === undefined || write.open.file === undefined) return
    this.#isBusy = true
    if (write.large !== undefined) {
      this.#writeLarge(write, write.large).then(
        () => this.#onWritten(write),
        (cause: unknown) => this.#onWriteFailed(write, cause),
      )
      return
    }
    const length = ceilToBlock(write.length)
    write.slab.fill(0, write.length, length)
    this.#submit(write, write.slab, length, write.position, (cause) => {
      if (cause === undefined) this.#onWritten(write)
      else this.#onWriteFailed(write, cause)
    })
  }

  /** One write, continued where the disk took less than asked. */
  #submit(write: PendingWrite, slab: Buffer, length: number, position: number, done: (cause?: Error) => void): void {
    this.#options.device.write(write.open.file!, slab, length, position, (result) => {
      if (result >= length) done()
      else if (result < 0) done(systemError(result, 'write'))
      else {
        const written = floorToBlock(result)
        if (written === 0) done(systemError(osConstants.errno.ENOSPC, 'write'))
        else this.#submit(write, slab.subarray(written), length - written, position + written, done)
      }
    })
  }

  async #writeLarge(write: PendingWrite, large: LargeBatch): Promise<void> {
    const { open } = write
    let crc = 0
    let sinceYield = 0
    for (const [i, data] of large.data.entries()) {
      const crcBefore = crc
      for (let at = 0; at < data.byteLength; at += checksumPieceBytes) {
        const end = Math.min(at + checksumPieceBytes, data.byteLength)
        crc = crc32(data, at, end, crc)
        sinceYield += end - at
        if (sinceYield < checksumPieceBytes) continue
        sinceYield = 0
        await new Promise((resolve) => setImmediate(resolve))
      }
      open.segment.setCrcs(large.first + i, crcBefore, crc)
    }
    const batch = { offset: 0, entries: large.data.length, dataCrc: crc }
    writeBatchPreamble(large.header, viewOf(large.header), batch, crc32)
    const bytes = [large.head, large.header, ...large.data].reduce((sum, piece) => sum + piece.byteLength, 0)
    // Readers other than ours take a batch that ends after its file for worse than a torn one: make the file long first.
    const end = ceilToBlock(write.position + bytes)
    if (end > this.#options.segmentBytes) await open.file!.truncate(end)
    const slab = this.#takeSlab()
    let position = write.position
    let used = 0
    const flush = (): Promise<void> =>
      new Promise((resolve, reject) => {
        const length = ceilToBlock(used)
        slab.fill(0, used, length)
        const from = position
        position += length
        used = 0
        this.#submit(write, slab, length, from, (cause) => {
          if (cause === undefined) resolve()
          else reject(cause)
        })
      })
    for (const piece of [large.head, large.header, ...large.data]) {
      for (let at = 0; at < piece.byteLength;) {
        const part = piece.subarray(at, at + slab.byteLength - used)
        slab.set(part, used)
        used += part.byteLength
        at += part.byteLength
        if (used === slab.byteLength) await flush()
      }
    }
    if (used > 0) await flush()
    this.#recycle(slab)
  }

  #onWritten(write: PendingWrite): void {
    this.#isBusy = false
    const { open } = write
    assert(this.#queue.length === 0 || this.#queue[0] === write)
    this.#queue.shift()
    open.writesPending--
    if (this.#failed !== undefined) {
      this.#onIdle?.()
      return
    }
    this.#durable = write.last
    if (open.lastWrite === write) {
      write.slab.copy(open.tail, 0, floorToBlock(write.length), write.length)
      open.lastWrite = undefined
    }
    this.#recycle(write.slab)
    this.#pump() // the disk first, then those who waited
    for (const waiter of write.waiters) waiter.resolve()
    if (open.isSealed && open.writesPending === 0) this.#closeSegment(open)
    if (!this.#isBusy) this.#onIdle?.()
  }

  #onWriteFailed(write: PendingWrite, cause: unknown): void {
    this.#isBusy = false
    this.#fail(diskFailed(`write to ${write.open.segment.name}`, cause))
    this.#onIdle?.()
  }

  /** Nothing is acknowledged any more: after a failed write nobody knows what the disk holds. */
  #fail(error: DqliteError): void {
    if (this.#failed !== undefined) return
    this.#failed = error
    const writes = this.#queue.splice(0)
    this.#options.onFailed(error)
    for (const write of writes) for (const waiter of write.waiters) waiter.reject(error)
    for (const open of this.#openSegments) open.onClosed.reject(error)
  }
}

const floorToBlock = (bytes: number): number => bytes - (bytes % blockBytes)
const ceilToBlock = (bytes: number): number => Math.ceil(bytes / blockBytes) * blockBytes
const viewOf = (bytes: Buffer): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

function deferred(): { promise: Promise<void>; waiter: Waiter } {
  let resolve!: () => void
  let reject!: (error: DqliteError) => void
  const promise = new Promise<void>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, waiter: { resolve, reject } }
}
