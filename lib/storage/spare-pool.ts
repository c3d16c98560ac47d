/**
 * Open segments ready for use: created, preallocated and overwritten with zeros before entries come (disk-format §4.3),
 * because a small first write to unwritten extents costs the disk almost as much again. A log in a hurry writes large
 * pieces and shares the disk with these zeros: then they wait. Does not know entries.
 *
 * Counters are used in order without gaps: the loader takes open segments in the order of their counters.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import { openSegmentName } from '../codec/data-directory.js'
import { type Disk, type DiskFile, type AppendWriter, writeAll } from './disk.js'

/** Kept ready besides the one in use, as C dqlite does. */
const sparesMax = 2
/** One write of zeros; short, so that it does not stand in the way of the log. A spare is taken after at most one. */
const zeroPieceBytes = 256 * 1024

/** A log that has used up a segment within this time is in a hurry. */
const quietMs = 5000

interface Spare {
  readonly counter: number
  readonly file: DiskFile
  isTaken: boolean
  /** Zeroed, or given up: it works all the same, only slower. */
  isDone: boolean
  /** The write of zeros that must end before the spare may be used. */
  writing: Promise<void>
}

export class SparePool {
  readonly #disk: Disk
  readonly #dir: string
  readonly #device: AppendWriter
  readonly #segmentBytes: number
  readonly #spares: Spare[] = []
  /** Those who need a segment now, in the order of their counters. */
  readonly #waiting: { resolve: (spare: Spare) => void; reject: (cause: unknown) => void }[] = []
  #created = 0
  #handedOut = 0
  #working: Promise<void> | undefined
  #isClosed = false
  #zeros: Buffer | undefined
  #isQuiet = true
  #quietTimer: NodeJS.Timeout | undefined

  constructor(options: { disk: Disk; dir: string; device: AppendWriter; segmentBytes: number }) {
    this.#disk = options.disk
    this.#dir = options.dir
    this.#device = options.device
    this.#segmentBytes = options.segmentBytes
  }

  nextCounter(): number {
    return this.#handedOut + 1
  }

  /** The file of the segment `counter`, which must be the next. Its directory entry is durable. */
  async take(counter: number): Promise<DiskFile> {
    this.#handedOut = counter
    this.#awaitQuiet()
    const ready = this.#spares.shift()
    const next =
      ready ??
      (await new Promise<Spare>((resolve, reject) => {
        this.#waiting.push({ resolve, reject })
        this.fill()
      }))
    assert.equal(next.counter, counter)
    next.isTaken = true
    this.fill()
    await next.writing
    return next.file
  }

  #awaitQuiet(): void {
    this.#isQuiet = false
    clearTimeout(this.#quietTimer)
    this.#quietTimer = setTimeout(() => {
      this.#isQuiet = true
      this.fill()
    }, quietMs)
    this.#quietTimer.unref()
  }

  /** Prepares in the background what is missing. */
  fill(): void {
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined
      if (this.#waiting.length > 0) this.fill()
    })
  }

  async #work(): Promise<void> {
    for (;;) {
      if (this.#isClosed) {
        for (const { reject } of this.#waiting.splice(0)) reject(new Error('the log is closed'))
        return
      }
      if (this.#waiting.length > 0 || this.#spares.length < sparesMax) {
        try {
          const spare = await this.#create()
          const first = this.#waiting.shift()
          if (first === undefined) this.#spares.push(spare)
          else {
            spare.isTaken = true
            first.resolve(spare)
          }
        } catch (cause) {
          // Whoever needs one is told; a spare for later is tried again when it is needed.
          for (const { reject } of this.#waiting.splice(0)) reject(cause)
          return
        }
        continue
      }
      const raw = this.#isQuiet ? this.#spares.find((spare) => !spare.isDone) : undefined
      if (raw === undefined) return
      await this.#zero(raw)
    }
  }

  async #create(): Promise<Spare> {
    const counter = this.#created + 1
    const name = path.join(this.#dir, openSegmentName(counter))
    const file = await this.#device.create(name)
    const spare: Spare = { counter, file, isTaken: false, isDone: false, writing: Promise.resolve() }
    try {
      // Without fallocate the zeros must come first, for the room.
      if (!(await file.allocate(this.#segmentBytes))) {
        await this.#zero(spare)
        await file.sync()
      }
      await this.#disk.syncDirectory(this.#dir)
    } catch (error) {
      await Promise.allSettled([file.close()])
      await Promise.allSettled([this.#disk.unlink(name)])
      throw error
    }
    this.#created = counter
    return spare
  }

  async #zero(spare: Spare): Promise<void> {
    this.#zeros ??= this.#disk.alignedBuffer(zeroPieceBytes)
    for (let at = 0; at < this.#segmentBytes && !spare.isTaken && !this.#isClosed; at += zeroPieceBytes) {
      const piece = this.#zeros.subarray(0, Math.min(zeroPieceBytes, this.#segmentBytes - at))
      const writing = writeAll(spare.file, piece, at)
      spare.writing = writing.catch(() => undefined)
      try {
        await writing
      } catch {
        break // the room is allocated: writing entries will tell whether the disk works
      }
    }
    if (!spare.isTaken && !this.#isClosed) {
      const syncing = spare.file.dataSync()
      spare.writing = syncing.catch(() => undefined)
      await spare.writing
    }
    spare.isDone = true
  }

  /** Removes the spares: a clean stop leaves closed segments only. */
  async close(): Promise<void> {
    this.#isClosed = true
    clearTimeout(this.#quietTimer)
    await this.#working
    for (const { counter, file } of this.#spares.splice(0)) {
      await Promise.allSettled([file.close()])
      await Promise.allSettled([this.#disk.unlink(path.join(this.#dir, openSegmentName(counter)))])
    }
    await Promise.allSettled([this.#disk.syncDirectory(this.#dir)])
  }
}
