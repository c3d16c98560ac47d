/**
 * Snapshots: metadata and an LZ4 frame of the state machine's content, the two newest kept (disk-format §6, §7). Content
 * is streamed in bounded pieces, never held whole. Knows the outer structure of content, to refuse what cannot be one;
 * does not know databases.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import {
  ContentDecoder,
  type SnapshotName,
  compareSnapshotNames,
  decodeSnapshotMeta,
  encodeSnapshotMeta,
  formatOf,
  isNewerFormat,
  snapshotFileName,
  snapshotMetaFileName,
} from '../codec/data-directory.js'
import { DqliteError } from '../errors.js'
import type { SnapshotDescription } from '../raft/types.js'
import { crc32, storageAddon } from './addon-storage.js'
import { type Disk, type DiskFile, abandon, diskFailed, readFully, readWhole, writeAll, writeNew } from './disk.js'

/** Content is compressed and decompressed in pieces of this: well under a millisecond of the loop each. */
const pieceBytes = 256 * 1024
const snapshotsKept = 2
const metaBytesMax = 1024 * 1024 + 32
const headBytes = 19

export interface ReceivedSnapshot {
  readonly description: SnapshotDescription
  /** Makes it the newest one. The caller then resets the log to the entry after it. */
  install(): Promise<void>
  discard(): Promise<void>
}

export interface OpenedSnapshot {
  readonly description: SnapshotDescription
  readonly contentBytes: number
  /** Read once. Throws DATA_CORRUPT where the file is damaged. */
  readonly content: AsyncIterable<Uint8Array>
  close(): Promise<void>
}

export interface SnapshotStore {
  readonly newest: SnapshotDescription | undefined
  /** A snapshot of our own. `content` yields exactly `contentBytes`. */
  take(description: SnapshotDescription, contentBytes: number, content: AsyncIterable<Uint8Array>): Promise<void>
  openNewest(): Promise<OpenedSnapshot | undefined>
  /** A leader's snapshot, to a temporary file. Throws MALFORMED for content that cannot be one. */
  receive(
    description: SnapshotDescription,
    contentBytes: number,
    content: AsyncIterable<Uint8Array>,
  ): Promise<ReceivedSnapshot>
}

/** Written to the disk, not only to the system, at a time. */
const portionBytes = 1024 * 1024

export interface StoredSnapshot {
  readonly name: SnapshotName
  readonly description: SnapshotDescription
  readonly contentBytes: number
}

export interface VerifiedSnapshot extends StoredSnapshot {
  readonly databases: readonly { readonly name: string; readonly mainBytes: number; readonly walBytes: number }[]
}

export interface SnapshotStoreOptions {
  readonly disk: Disk
  readonly dir: string
  /** Good ones, the newest last. */
  readonly snapshots: readonly StoredSnapshot[]
  /** Names of older ones, which were not looked into. */
  readonly older: readonly SnapshotName[]
  /** Every entry so far gets into a closed segment (disk-format §7.1). */
  readonly barrier: () => Promise<void>
  readonly onWarning: (text: string) => void
}

export class DiskSnapshotStore implements SnapshotStore {
  readonly #disk: Disk
  readonly #dir: string
  readonly #barrier: () => Promise<void>
  readonly #onWarning: (text: string) => void
  /** All on disk, oldest first. */
  #names: SnapshotName[]
  #newest: StoredSnapshot | undefined
  /** Writers of snapshots, one after the other. */
  #turn: Promise<unknown> = Promise.resolve()
  #received = 0

  constructor(options: SnapshotStoreOptions) {
    this.#disk = options.disk
    this.#dir = options.dir
    this.#barrier = options.barrier
    this.#onWarning = options.onWarning
    this.#newest = options.snapshots.at(-1)
    this.#names = [...options.older, ...options.snapshots.map((s) => s.name)]
  }

  get newest(): SnapshotDescription | undefined {
    return this.#newest?.description
  }

  async take(
    description: SnapshotDescription,
    contentBytes: number,
    content: AsyncIterable<Uint8Array>,
  ): Promise<void> {
    const temporary = await this.#writeContent(contentBytes, content)
    await this.#publish(description, contentBytes, temporary)
  }

  async receive(
    description: SnapshotDescription,
    contentBytes: number,
    content: AsyncIterable<Uint8Array>,
  ): Promise<ReceivedSnapshot> {
    const temporary = await this.#writeContent(contentBytes, content)
    return {
      description,
      install: () => this.#publish(description, contentBytes, temporary),
      discard: () =>
        this.#disk.unlink(temporary).catch((cause: unknown) => {
          throw diskFailed(`delete ${path.basename(temporary)}`, cause)
        }),
    }
  }

  async openNewest(): Promise<OpenedSnapshot | undefined> {
    const newest = this.#newest
    if (newest === undefined) return undefined
    const { description, contentBytes } = newest
    const name = snapshotFileName(newest.name)
    try {
      const file = await this.#disk.open(path.join(this.#dir, name), 'read')
      return { description, contentBytes, content: decodeContent(file, name), close: () => file.close() }
    } catch (cause) {
      throw diskFailed(`open ${name}`, cause)
    }
  }

  async close(): Promise<void> {
    await this.#turn
  }

  /** The content as a frame in a durable temporary file, whose path it gives. */
  async #writeContent(contentBytes: number, content: AsyncIterable<Uint8Array>): Promise<string> {
    assert(contentBytes > 0)
    const temporary = path.join(this.#dir, `tmp-snapshot-content-${++this.#received}`)
    const file = await this.#disk.open(temporary, 'create').catch((cause: unknown) => {
      throw diskFailed('create a snapshot', cause)
    })
    try {
      const frame = new storageAddon.SnapshotFrameWriter(contentBytes)
      const target = Buffer.allocUnsafe(storageAddon.SnapshotFrameWriter.bound(pieceBytes))
      const structure = new ContentDecoder()
      let seen = 0
      let position = 0
      let synced = 0
      const write = async (bytes: number): Promise<void> => {
        try {
          await writeAll(file, target.subarray(0, bytes), position)
        } catch (cause) {
          throw diskFailed('write a snapshot', cause)
        }
        position += bytes
        // In small portions: a disk that is handed a whole snapshot at its end has no time for the log meanwhile.
        if (position - synced < portionBytes) return
        synced = position
        await file.dataSync().catch((cause: unknown) => {
          throw diskFailed('write a snapshot', cause)
        })
      }
      await write(frame.begin(target))
      for await (const chunk of content) {
        seen += chunk.byteLength
        if (seen > contentBytes) throw new DqliteError('MALFORMED', `snapshot content beyond ${contentBytes} bytes`)
        for (const part of structure.push(chunk)) void part // pulled for its checks
        for (let at = 0; at < chunk.byteLength; at += pieceBytes)
          await write(frame.update(chunk.subarray(at, at + pieceBytes), target))
      }
      if (seen < contentBytes)
        throw new DqliteError('MALFORMED', `snapshot content ends after ${seen} of ${contentBytes} bytes`)
      structure.finish()
      await write(frame.end(target))
      try {
        await file.sync()
        await file.close()
      } catch (cause) {
        throw diskFailed('write a snapshot', cause)
      }
    } catch (error) {
      await abandon(this.#disk, file, temporary)
      throw error
    }
    return temporary
  }

  /** Metadata first, then the content under its name: from then on the snapshot exists (disk-format §7.1). */
  #publish(description: SnapshotDescription, contentBytes: number, temporary: string): Promise<void> {
    const published = this.#turn.then(async () => {
      const { index, term } = description.last
      const before = this.#names.at(-1)
      let timestampMs = this.#disk.monotonicMs()
      // The clock starts again with the machine; what must be the newest is named so.
      if (before !== undefined && before.term === term && before.index === index)
        timestampMs = Math.max(timestampMs, before.timestampMs + 1)
      const name = { term, index, timestampMs }
      assert(before === undefined || compareSnapshotNames(before, name) < 0, 'a snapshot is newer than all before it')
      try {
        await this.#barrier()
        await writeNew(this.#disk, this.#dir, snapshotMetaFileName(name), [encodeSnapshotMeta(description, crc32)])
        await this.#disk.rename(temporary, path.join(this.#dir, snapshotFileName(name)))
        await this.#disk.syncDirectory(this.#dir)
      } catch (cause) {
        // Whichever of the two it is by now. Metadata last: content alone would look like the rest of something lost.
        await Promise.allSettled([this.#disk.unlink(temporary)])
        await Promise.allSettled([this.#disk.unlink(path.join(this.#dir, snapshotFileName(name)))])
        await Promise.allSettled([this.#disk.unlink(path.join(this.#dir, snapshotMetaFileName(name)))])
        throw diskFailed(`write ${snapshotFileName(name)}`, cause)
      }
      this.#names.push(name)
      this.#newest = { name, description, contentBytes }
      await this.#removeOld()
    })
    this.#turn = published.catch(() => undefined) // told to who asked
    return published
  }

  async #removeOld(): Promise<void> {
    if (this.#names.length <= snapshotsKept) return
    try {
      while (this.#names.length > snapshotsKept) {
        const oldest = this.#names[0]!
        await this.#disk.unlink(path.join(this.#dir, snapshotMetaFileName(oldest)))
        await this.#disk.unlink(path.join(this.#dir, snapshotFileName(oldest)))
        this.#names.shift()
      }
      await this.#disk.syncDirectory(this.#dir)
    } catch (cause) {
      // The snapshot is taken; what is left over costs room, and the next start cleans halves.
      this.#names.shift()
      this.#onWarning(diskFailed('delete an old snapshot', cause).message)
    }
  }
}

// ------------------------------------------------------------------------------------------------------- reading

/** The uncompressed bytes of a snapshot file, raw or a frame, in pieces. Throws DATA_CORRUPT. Closes nothing. */
export async function* decodeContent(file: DiskFile, name: string): AsyncGenerator<Uint8Array, void, void> {
  const source = Buffer.allocUnsafe(pieceBytes)
  const step = new Uint32Array(2)
  let reader: InstanceType<typeof storageAddon.SnapshotFrameReader> | undefined
  for (let position = 0; ;) {
    let n: number
    try {
      n = await readFully(file, source, position)
    } catch (cause) {
      throw diskFailed(`read ${name}`, cause)
    }
    position += n
    for (let at = 0; at < n;) {
      const target = Buffer.allocUnsafe(pieceBytes)
      try {
        reader ??= new storageAddon.SnapshotFrameReader(source.subarray(0, Math.min(n, headBytes)))
        reader.update(source.subarray(at, n), target, step)
      } catch (cause) {
        throw damaged(name, cause instanceof Error ? cause.message : 'not readable', cause)
      }
      at += step[0]!
      if (step[1]! > 0) yield target.subarray(0, step[1])
      else if (step[0] === 0) throw damaged(name, 'the frame does not go on')
    }
    if (n < source.byteLength) break
  }
  // What was taken in may not have been given out yet.
  for (;;) {
    const target = Buffer.allocUnsafe(pieceBytes)
    if (reader === undefined || reader.isComplete) break
    try {
      reader.update(source.subarray(0, 0), target, step)
    } catch (cause) {
      throw damaged(name, cause instanceof Error ? cause.message : 'not readable', cause)
    }
    if (step[1] === 0) throw damaged(name, 'the frame ends early')
    yield target.subarray(0, step[1])
  }
}

const damaged = (name: string, why: string, cause?: unknown): DqliteError =>
  new DqliteError('DATA_CORRUPT', `${name} is damaged: ${why}`, cause === undefined ? {} : { cause })

/**
 * Reads a snapshot completely and checks it: metadata, frame, checksums, structure. Throws DATA_CORRUPT that names the
 * file, DIRECTORY_FOREIGN for a newer format.
 */
export async function verifySnapshot(disk: Disk, dir: string, name: SnapshotName): Promise<VerifiedSnapshot> {
  const metaName = snapshotMetaFileName(name)
  const contentName = snapshotFileName(name)
  const metaBytes = await readWhole(disk, path.join(dir, metaName), metaBytesMax).catch((cause: unknown) => {
    throw diskFailed(`read ${metaName}`, cause)
  })
  if (metaBytes === undefined) throw damaged(metaName, 'it is missing')
  if (metaBytes.byteLength >= 8 && isNewerFormat(formatOf(metaBytes))) throw newer(metaName)
  const description = ((): SnapshotDescription => {
    try {
      const meta = decodeSnapshotMeta(metaBytes, crc32)
      return { last: { index: name.index, term: name.term }, ...meta }
    } catch (cause) {
      throw damaged(metaName, cause instanceof Error ? cause.message : 'not readable', cause)
    }
  })()
  const file = await disk.open(path.join(dir, contentName), 'read').catch((cause: unknown) => {
    throw diskFailed(`open ${contentName}`, cause)
  })
  try {
    const structure = new ContentDecoder()
    const databases: { name: string; mainBytes: number; walBytes: number }[] = []
    let contentBytes = 0
    for await (const piece of decodeContent(file, contentName)) {
      if (contentBytes === 0 && piece.byteLength >= 8 && isNewerFormat(formatOf(piece))) throw newer(contentName)
      contentBytes += piece.byteLength
      try {
        for (const part of structure.push(piece)) {
          if (part.type !== 'database') continue // pulled for its checks
          databases.push({ name: part.name, mainBytes: part.mainBytes, walBytes: part.walBytes })
        }
      } catch (cause) {
        throw damaged(contentName, cause instanceof Error ? cause.message : 'not readable', cause)
      }
    }
    try {
      structure.finish()
    } catch (cause) {
      throw damaged(contentName, cause instanceof Error ? cause.message : 'not readable', cause)
    }
    return { name, description, contentBytes, databases }
  } finally {
    await file.close()
  }
}

const newer = (name: string): DqliteError =>
  new DqliteError('DIRECTORY_FOREIGN', `${name} has a newer format: a newer dqlite wrote it`)
