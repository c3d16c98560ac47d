/**
 * The databases as Raft sees them: committed entries in, snapshots out and in. On a leader an entry that this node
 * captured is published, everywhere else its pages are applied. Does not know why an entry is committed.
 */
import { strict as assert } from 'node:assert'

import { ContentDecoder, encodeContentHeader, encodeDatabaseHeader } from '../codec/data-directory.js'
import { commandDatabase } from '../codec/log-entry.js'
import type { Database, DatabaseImage, Engine } from '../engine/database.js'
import { DqliteError } from '../errors.js'
import type { Entry, Index } from '../raft/types.js'
import { WalImageReader } from './wal-image.js'

/**
 * A pinned state: `content()` may be read once, in pieces that are valid until the next one is asked for; `close()`
 * releases the pins, also half-way.
 */
export interface StateImage {
  readonly contentBytes: number
  content(): AsyncGenerator<Uint8Array>
  close(): void
}

/** Bytes of a piece of snapshot content: small enough not to hold the loop, large enough for LZ4. */
const pieceBytes = 256 * 1024

export class StateMachine {
  readonly #engine: Engine
  readonly #checkpointFrames: number
  /** Transactions captured on this leader and not yet committed, in log order. */
  #captured: { readonly index: Index; readonly database: Database }[] = []
  #capturedHead = 0

  constructor(engine: Engine, options: { readonly checkpointFrames: number }) {
    this.#engine = engine
    this.#checkpointFrames = options.checkpointFrames
  }

  /** The entry at `index` is the oldest captured transaction of `database` that was not yet announced here. */
  captured(index: Index, database: Database): void {
    this.#captured.push({ index, database })
  }

  /** Throws DATA_CORRUPT if a committed entry cannot be applied: the node must stop. */
  apply(entry: Entry): void {
    if (entry.type !== 'command') return
    const head = this.#captured[this.#capturedHead]
    if (head?.index === entry.index) {
      head.database.publish()
      this.#capturedHead += 1
      // Amortised: the queue moves only when half of it is history.
      if (this.#capturedHead >= 1024 && this.#capturedHead * 2 >= this.#captured.length) {
        this.#captured = this.#captured.slice(this.#capturedHead)
        this.#capturedHead = 0
      }
      return
    }
    assert(head === undefined || head.index > entry.index, 'captured transactions commit in order')
    assert(entry.data !== undefined, 'evicted entries are read back before they are applied')
    const name = commandDatabase(entry.data)
    // OPEN, UNDO and CHECKPOINT come from old logs and mean nothing to this engine (raft-wire §5).
    if (name === undefined) return
    const database = this.#engine.replicated(name)
    database.apply(entry.data)
    // A deleted database is forgotten with its last connection (raft-wire §5.2); here there is none.
    if (database.isDeleted && database.connections === 0) {
      this.#engine.drop(name)
      return
    }
    if (database.walFrames >= this.#checkpointFrames) database.checkpoint()
  }

  /** Forgets what was captured and not committed. Every connection that saw it must be closed. */
  dropSpeculative(): void {
    this.#captured = []
    this.#capturedHead = 0
    for (const database of this.#engine.databases()) if (database.speculative > 0) database.dropSpeculative()
  }

  /** Pins the committed state of every database at this instant (disk-format §8, the merged form). */
  openImage(): StateImage {
    const images = this.#engine.databases().map((database) => ({ name: database.name, image: database.openImage() }))
    let contentBytes = encodeContentHeader(images.length).byteLength
    for (const { name, image } of images)
      contentBytes += encodeDatabaseHeader(name, image.byteLength, 0).byteLength + image.byteLength
    async function* content(): AsyncGenerator<Uint8Array> {
      yield encodeContentHeader(images.length)
      for (const { name, image } of images) {
        yield encodeDatabaseHeader(name, image.byteLength, 0)
        yield* pieces(image)
      }
    }
    return { contentBytes, content, close: () => images.forEach(({ image }) => image.close()) }
  }

  /** Replaces everything by the content of a snapshot. Databases that it does not name are dropped. */
  async restore(content: AsyncIterable<Uint8Array>): Promise<void> {
    const decoder = new ContentDecoder()
    const restored = new Set<string>()
    let target: RestoreTarget | undefined
    try {
      for await (const piece of content) {
        for (const part of decoder.push(piece)) {
          if (part.type === 'database') {
            target?.finish()
            restored.add(part.name)
            target = new RestoreTarget(this.#engine.replicated(part.name), part.mainBytes, part.walBytes)
          } else if (part.type === 'main') target!.main(part.bytes)
          else target!.wal(part.bytes)
        }
        // One piece is a few milliseconds of work: heartbeats are answered between two of them.
        await new Promise(setImmediate)
      }
      decoder.finish()
      target?.finish()
    } catch (cause) {
      target?.abort()
      if (cause instanceof DqliteError && cause.code === 'MALFORMED')
        throw new DqliteError('DATA_CORRUPT', `the content of a snapshot cannot be restored: ${cause.message}`, {
          cause,
        })
      throw cause
    }
    for (const database of this.#engine.databases()) if (!restored.has(database.name)) this.#engine.drop(database.name)
  }
}

/** One database being restored: main pages first, then the transactions of an embedded WAL (the form before 1.17). */
class RestoreTarget {
  readonly #database: Database
  readonly #restore: ReturnType<Database['restore']>
  readonly #wal: WalImageReader | undefined
  #mainBytesLeft: number
  #isOpen = true

  constructor(database: Database, mainBytes: number, walBytes: number) {
    this.#database = database
    this.#restore = database.restore(mainBytes)
    this.#mainBytesLeft = mainBytes
    this.#wal = walBytes > 0 ? new WalImageReader(database.name) : undefined
  }

  main(bytes: Uint8Array): void {
    this.#restore.write(bytes)
    this.#mainBytesLeft -= bytes.byteLength
    if (this.#mainBytesLeft > 0) return
    this.#restore.finish()
    this.#isOpen = false
  }

  wal(bytes: Uint8Array): void {
    assert(this.#wal !== undefined)
    for (const command of this.#wal.push(bytes)) this.#database.apply(command)
  }

  finish(): void {
    if (this.#mainBytesLeft !== 0)
      throw new DqliteError('DATA_CORRUPT', `database ${this.#database.name} is cut short in the snapshot`)
    this.#wal?.finish()
  }

  abort(): void {
    if (this.#isOpen) this.#restore.abort()
    this.#isOpen = false
  }
}

async function* pieces(image: DatabaseImage): AsyncGenerator<Uint8Array> {
  const buffer = Buffer.allocUnsafeSlow(pieceBytes)
  for (;;) {
    const bytes = image.read(buffer)
    if (bytes === 0) return
    yield buffer.subarray(0, bytes)
    await new Promise(setImmediate)
  }
}
