/**
 * Keeps term and vote, in two files that alternate, so that a torn write never harms the last good state
 * (disk-format §3). Does not know why they change.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import { type Metadata, encodeMetadata, metadataFileName, metadataSlot } from '../codec/data-directory.js'
import { DqliteError } from '../errors.js'
import type { ServerId, Term } from '../raft/types.js'
import { type Disk, type DiskFile, diskFailed, writeAll } from './disk.js'

export interface MetadataStore {
  /** Resolves when durable, in the order of calls. After a failure everything is refused. */
  save(state: { readonly term: Term; readonly votedFor: ServerId | undefined }): Promise<void>
}

export class DiskMetadataStore implements MetadataStore {
  readonly #disk: Disk
  readonly #dir: string
  /** What the disk holds. Version 0: nothing yet. */
  #current: Metadata
  readonly #exists: { 1: boolean; 2: boolean }
  readonly #files: { 1?: DiskFile; 2?: DiskFile } = {}
  #turn: Promise<void> = Promise.resolve()
  #failed: DqliteError | undefined

  constructor(options: { disk: Disk; dir: string; current: Metadata; slots: ReadonlySet<1 | 2> }) {
    this.#disk = options.disk
    this.#dir = options.dir
    this.#current = options.current
    this.#exists = { 1: options.slots.has(1), 2: options.slots.has(2) }
  }

  save(state: { readonly term: Term; readonly votedFor: ServerId | undefined }): Promise<void> {
    const saved = this.#turn.then(async () => {
      if (this.#failed !== undefined) throw this.#failed
      if (state.term === this.#current.term && state.votedFor === this.#current.votedFor) return
      assert(state.term >= this.#current.term, 'terms only grow')
      const next = { version: this.#current.version + 1, term: state.term, votedFor: state.votedFor }
      try {
        await this.#write(next)
      } catch (cause) {
        this.#failed = diskFailed(`write ${metadataFileName(metadataSlot(next.version))}`, cause)
        throw this.#failed
      }
      this.#current = next
    })
    this.#turn = saved.catch(() => undefined) // told to who asked
    return saved
  }

  async #write(metadata: Metadata): Promise<void> {
    const slot = metadataSlot(metadata.version)
    const isNew = !this.#exists[slot]
    const name = path.join(this.#dir, metadataFileName(slot))
    const file = (this.#files[slot] ??= await this.#disk.open(name, isNew ? 'create' : 'write'))
    await writeAll(file, encodeMetadata(metadata), 0)
    if (isNew) {
      await file.sync()
      await this.#disk.syncDirectory(this.#dir)
      this.#exists[slot] = true
    } else {
      await file.dataSync()
    }
  }

  async close(): Promise<void> {
    await this.#turn
    this.#failed ??= new DqliteError('CLOSED', 'the data directory is closed')
    for (const file of Object.values(this.#files)) await file?.close()
  }
}
