/**
 * Turns the WAL image that snapshots of dqlite before 1.17 carry into FRAMES commands, one per transaction
 * (disk-format §8). Knows the WAL's layout; does not know where the pages go.
 *
 *   WAL header, 32 bytes · then frames of 24 + 4096 bytes:
 *   0 page number, big-endian uint32 · 4 database size in pages after a commit, else 0 · 8 salts and checksums · 24 page
 */
import { encodeFrames } from '../codec/log-entry.js'
import { DqliteError } from '../errors.js'

const walHeaderBytes = 32
const frameHeaderBytes = 24
const pageBytes = 4096
const frameBytes = frameHeaderBytes + pageBytes

export class WalImageReader {
  readonly #database: string
  #skip = walHeaderBytes
  #rest: Buffer = Buffer.alloc(0)
  #pages = new Map<number, Uint8Array>()

  constructor(database: string) {
    this.#database = database
  }

  /** The commands of the transactions that end within what was pushed so far. */
  push(bytes: Uint8Array): Uint8Array[] {
    const commands: Uint8Array[] = []
    let data =
      this.#rest.length > 0
        ? Buffer.concat([this.#rest, bytes])
        : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    if (this.#skip > 0) {
      const skipped = Math.min(this.#skip, data.length)
      this.#skip -= skipped
      data = data.subarray(skipped)
    }
    let offset = 0
    for (; data.length - offset >= frameBytes; offset += frameBytes) {
      const page = data.readUInt32BE(offset)
      const sizePages = data.readUInt32BE(offset + 4)
      this.#pages.set(page, Buffer.from(data.subarray(offset + frameHeaderBytes, offset + frameBytes)))
      if (sizePages === 0) continue
      const pages = [...this.#pages].map(([number, image]) => ({ number, image }))
      commands.push(encodeFrames({ database: this.#database, pageSize: pageBytes, pages }))
      this.#pages = new Map()
    }
    this.#rest = Buffer.from(data.subarray(offset))
    return commands
  }

  /** Throws DATA_CORRUPT if the image ends inside a transaction: a snapshot holds whole ones only. */
  finish(): void {
    if (this.#skip > 0 || this.#rest.length > 0 || this.#pages.size > 0)
      throw new DqliteError(
        'DATA_CORRUPT',
        `the WAL of database ${this.#database} in the snapshot ends inside a transaction`,
      )
  }
}
