/**
 * The log on disk: appends, cuts its end, forgets its beginning, and reads entries back from their segments. Knows which
 * file holds which entry; does not know why entries are cut (Raft's rules are raft/'s).
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import { closedSegmentName } from '../codec/data-directory.js'
import { DqliteError } from '../errors.js'
import type { Entry, Index } from '../raft/types.js'
import { crc32 } from './addon-storage.js'
import { type AppendWriter, type Disk, diskFailed, isMissing, readFully, readWhole, writeNew } from './disk.js'
import { SegmentWriter } from './segment-writer.js'
import { type Segment, cutSegment, entryAt } from './segment.js'

/** One read of a segment file; a single entry may be larger. */
const readPieceBytesMax = 4 * 1024 * 1024

export interface LogStore {
  /** Resolves when durable, in the order of calls. After a failure everything is refused. */
  append(entries: readonly Entry[]): Promise<void>
  /** Forgets the entries above `index`. Later appends wait for it. */
  truncateAfter(index: Index): Promise<void>
  /** Entries from `first` on, up to `last` or `bytesMax`, at least one, all with data. */
  read(first: Index, last: Index, bytesMax: number): Promise<Entry[]>
  /** A snapshot makes the entries below `upTo` superfluous: segments that hold nothing else are deleted. */
  compact(upTo: Index): Promise<void>
  /** An installed snapshot replaces the log: drops all entries and continues at `next`. */
  reset(next: Index): Promise<void>
  readonly lastIndex: Index
}

export interface LogStoreOptions {
  readonly disk: Disk
  readonly dir: string
  readonly device: AppendWriter
  readonly segmentBytes: number
  /** Closed segments, contiguous, in order. */
  readonly segments: readonly Segment[]
  /** Closed segments before them that belong to no contiguous log; deleted with the next compaction. */
  readonly stale: readonly string[]
  readonly next: Index
  readonly onWarning: (text: string) => void
}

export class DiskLogStore implements LogStore {
  readonly #disk: Disk
  readonly #dir: string
  readonly #writer: SegmentWriter
  readonly #onWarning: (text: string) => void
  /** Contiguous, in order; open ones at the end. */
  #segments: Segment[]
  readonly #open = new Set<Segment>()
  #stale: string[]
  #lastIndex: Index
  /** Ends when the last truncation or reset asked for has: appends go behind it. `undefined`: none runs. */
  #gate: Promise<void> | undefined
  /** Truncations, resets and compactions, one after the other. */
  #maintenance: Promise<void> = Promise.resolve()
  #failed: DqliteError | undefined

  constructor(options: LogStoreOptions) {
    this.#disk = options.disk
    this.#dir = options.dir
    this.#onWarning = options.onWarning
    this.#segments = [...options.segments]
    this.#stale = [...options.stale]
    this.#lastIndex = options.next - 1
    this.#writer = new SegmentWriter({
      ...options,
      onOpened: (segment) => {
        this.#segments.push(segment)
        this.#open.add(segment)
      },
      onClosed: (segment) => this.#open.delete(segment),
      onFailed: (error) => this.#fail(error),
    })
  }

  /** Begins to prepare segments. */
  start(): void {
    this.#writer.start()
  }

  get lastIndex(): Index {
    return this.#lastIndex
  }

  append(entries: readonly Entry[]): Promise<void> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed)
    for (const [i, entry] of entries.entries()) assert.equal(entry.index, this.#lastIndex + 1 + i)
    this.#lastIndex += entries.length
    if (this.#gate === undefined) return this.#writer.append(entries)
    // Behind a truncation the entries are encoded when it is done; what is asked for later goes behind them.
    let written: Promise<void> = Promise.resolve()
    const submitted = this.#gate.then(() => {
      written = this.#writer.append(entries)
      written.catch(() => undefined) // told below
    })
    this.#setGate(submitted)
    return submitted.then(() => written)
  }

  /** Every entry appended so far will be in a closed segment, which a snapshot needs (disk-format §7.1). */
  async barrier(): Promise<void> {
    await this.#gate
    await this.#writer.barrier()
  }

  truncateAfter(index: Index): Promise<void> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed)
    if (index >= this.#lastIndex) return this.#gate ?? Promise.resolve()
    assert(index >= 0)
    this.#lastIndex = index
    return this.#exclusively(`truncate the log after entry ${index}`, () => this.#truncate(index))
  }

  reset(next: Index): Promise<void> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed)
    assert(next >= 1)
    this.#lastIndex = next - 1
    return this.#exclusively(`empty the log for entry ${next}`, async () => {
      while (this.#segments.length > 0) await this.#unlinkLast()
      await this.#unlinkStale()
      this.#writer.continueAt(next)
    })
  }

  async compact(upTo: Index): Promise<void> {
    if (this.#failed !== undefined) throw this.#failed
    await this.#inTurn(async () => {
      try {
        // The newest closed segment stays: the index of an open one's first entry is that of the closed one before it,
        // or the snapshot's, which may be another (disk-format §4.3).
        let deletes = false
        while (this.#segments.length > 1 && this.#segments[0]!.last < upTo && this.#isFollowedByClosed()) {
          const segment = this.#segments.shift()!
          await this.#disk.unlink(path.join(this.#dir, segment.name))
          deletes = true
        }
        if (deletes) await this.#disk.syncDirectory(this.#dir)
        await this.#unlinkStale()
      } catch (cause) {
        throw diskFailed('delete old segments', cause)
      }
    })
  }

  async read(first: Index, last: Index, bytesMax: number): Promise<Entry[]> {
    assert(first >= 1 && first <= last)
    await this.#gate
    assert(last <= this.#lastIndex, `entry ${last} is not in the log`)
    if (last > this.#writer.durable) await this.#writer.drain()
    const entries: Entry[] = []
    let bytes = 0
    for (let index = first; index <= last;) {
      const segment = this.#segmentOf(index)
      const from = segment.place(index)
      if (entries.length > 0 && bytes + from.byteLength > bytesMax) break
      // As much of this segment as is wanted, in one read.
      let end = from.offset + from.byteLength
      let until = index
      bytes += from.byteLength
      for (const lastHere = Math.min(last, segment.last); until < lastHere; until++) {
        const next = segment.place(until + 1)
        const nextEnd = next.offset + next.byteLength
        if (bytes + next.byteLength > bytesMax || nextEnd - from.offset > readPieceBytesMax) break
        bytes += next.byteLength
        end = nextEnd
      }
      const data = await this.#readRange(segment, from.offset, end)
      for (; index <= until; index++) {
        const place = segment.place(index)
        const offset = place.offset - from.offset
        if (crc32(data, offset, offset + place.byteLength, place.crcBefore) !== place.crcAfter)
          throw new DqliteError('DATA_CORRUPT', `entry ${index} in ${segment.name} fails its checksum`)
        entries.push(entryAt(index, place, data, offset))
      }
    }
    return entries
  }

  /** Waits for what runs, closes open segments, removes prepared ones. */
  async close(): Promise<void> {
    await this.#maintenance
    await this.#writer.close()
    this.#failed ??= new DqliteError('CLOSED', 'the log is closed')
  }

  // ---------------------------------------------------------------------------------------------------- internals

  #fail(error: DqliteError): void {
    this.#failed ??= error
  }

  /** Runs `job` after every maintenance asked for before. */
  #inTurn(job: () => Promise<void>): Promise<void> {
    const run = this.#maintenance.then(async () => {
      if (this.#failed !== undefined) throw this.#failed
      await job()
    })
    this.#maintenance = run.catch(() => undefined) // told to who asked
    return run
  }

  /** As inTurn, with everything durable and closed before, and appends waiting until after. */
  #exclusively(what: string, job: () => Promise<void>): Promise<void> {
    // The writes asked for before this call reach the writer before it is drained: they hang on the older gate.
    const before = this.#gate ?? Promise.resolve()
    const run = before.then(() =>
      this.#inTurn(async () => {
        try {
          await this.#writer.drain()
          await this.#writer.barrier()
          await job()
        } catch (cause) {
          const error = diskFailed(what, cause)
          this.#fail(error)
          throw error
        }
      }),
    )
    this.#setGate(run)
    return run
  }

  #setGate(gate: Promise<void>): void {
    this.#gate = gate
    const clear = (): void => {
      if (this.#gate === gate) this.#gate = undefined
    }
    gate.then(clear, clear)
  }

  /** Entries above `index` go. At every moment the files are a contiguous log, cut or not (disk-format §4.6). */
  async #truncate(index: Index): Promise<void> {
    const keeper = this.#segments.find((segment) => segment.first <= index && index < segment.last)
    let cut: Segment | undefined
    if (keeper !== undefined) {
      const bytes = await readWhole(this.#disk, path.join(this.#dir, keeper.name), Number.MAX_SAFE_INTEGER - 1)
      if (bytes === undefined) throw new Error(`${keeper.name} is missing`)
      const name = closedSegmentName(keeper.first, index)
      const short = cutSegment(bytes, keeper, { last: index, name, crc32 })
      await writeNew(this.#disk, this.#dir, name, short.pieces)
      cut = short.segment
    }
    // From the end, each made durable before the next: what remains is contiguous whichever unlinks survive a crash.
    while (this.#segments.length > 0 && this.#segments.at(-1)!.last > index) await this.#unlinkLast()
    if (cut !== undefined) this.#segments.push(cut)
    this.#writer.continueAt(index + 1)
  }

  async #unlinkLast(): Promise<void> {
    const segment = this.#segments.at(-1)!
    await this.#disk.unlink(path.join(this.#dir, segment.name))
    await this.#disk.syncDirectory(this.#dir)
    this.#segments.pop()
  }

  async #unlinkStale(): Promise<void> {
    for (const name of this.#stale) {
      await this.#disk.unlink(path.join(this.#dir, name)).catch((error: unknown) => {
        if (!isMissing(error)) throw error
      })
    }
    if (this.#stale.length > 0) {
      await this.#disk.syncDirectory(this.#dir)
      this.#onWarning(`${this.#stale.length} old segments that belonged to no log were deleted`)
    }
    this.#stale = []
  }

  /** The second segment is closed. */
  #isFollowedByClosed(): boolean {
    return !this.#open.has(this.#segments[0]!) && !this.#open.has(this.#segments[1]!)
  }

  #segmentOf(index: Index): Segment {
    let low = 0
    let high = this.#segments.length
    while (high - low > 1) {
      const middle = (low + high) >>> 1
      if (this.#segments[middle]!.first <= index) low = middle
      else high = middle
    }
    const segment = this.#segments[low]
    if (segment === undefined || index < segment.first || index > segment.last)
      throw new DqliteError('NOT_FOUND', `entry ${index} is not in the log any more`)
    return segment
  }

  async #readRange(segment: Segment, start: number, end: number): Promise<Buffer> {
    try {
      const file = await this.#openForReading(segment)
      try {
        const bytes = Buffer.allocUnsafe(end - start)
        const n = await readFully(file, bytes, start)
        if (n < bytes.byteLength)
          throw new DqliteError('DATA_CORRUPT', `${segment.name} ends at ${start + n}, before its last entry`)
        return bytes
      } finally {
        await file.close()
      }
    } catch (cause) {
      if (isMissing(cause) && !this.#segments.includes(segment))
        throw new DqliteError('NOT_FOUND', `entry ${segment.first} is not in the log any more`, { cause })
      throw diskFailed(`read ${segment.name}`, cause)
    }
  }

  async #openForReading(segment: Segment): ReturnType<Disk['open']> {
    for (;;) {
      const name = segment.name
      try {
        return await this.#disk.open(path.join(this.#dir, name), 'read')
      } catch (error) {
        if (!isMissing(error)) throw error
        // Perhaps it is being closed: the file has its new name a moment before the segment has.
        await this.#writer.closing
        if (segment.name === name) throw error
      }
    }
  }
}
