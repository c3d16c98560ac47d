/**
 * What one server's disk holds, and what it is still writing. Writes become durable in the order in which they were
 * queued; a crash keeps a prefix of the unfinished ones, cut between a vote, a truncation and each single entry
 * (disk-format: metadata and segments are separate files, an open segment ends at its last whole batch).
 * Knows nothing of Raft: it never asks whether a write is wise.
 */
import assert from 'node:assert/strict'
import type { Entry, EntryId, Envelope, Index, ServerId, SnapshotDescription, Term } from '../../lib/raft/types.js'
import type { RestoredState } from '../../lib/raft/raft.js'

/** The content stands for the whole state machine: a hash chain over everything applied. */
export interface StoredSnapshot {
  readonly description: SnapshotDescription
  readonly chain: number
}

export type DiskOperation =
  | { readonly type: 'vote'; readonly term: Term; readonly votedFor: ServerId | undefined }
  | { readonly type: 'saveSnapshot'; readonly snapshot: StoredSnapshot }
  | { readonly type: 'resetLog'; readonly next: Index }
  | { readonly type: 'truncateAfter'; readonly index: Index }
  | { readonly type: 'append'; readonly entry: Entry }

/** Everything one Ready asks of the disk, and what is due once it is durable. */
export interface DiskBatch {
  operations: DiskOperation[]
  entries: readonly Entry[]
  messages: readonly Envelope[]
  readonly installs: SnapshotDescription | undefined
}

export class ModelDisk {
  term: Term = 0
  votedFor: ServerId | undefined = undefined
  snapshots: StoredSnapshot[] = []
  firstIndex: Index = 1
  entries: Entry[] = []
  /** Not yet durable, oldest first. */
  queue: DiskBatch[] = []

  get lastIndex(): Index {
    return this.firstIndex + this.entries.length - 1
  }

  get newestSnapshot(): StoredSnapshot | undefined {
    return this.snapshots.at(-1)
  }

  at(index: Index): Entry | undefined {
    return this.entries[index - this.firstIndex]
  }

  termAt(index: Index): Term | undefined {
    const entry = this.at(index)
    if (entry !== undefined) return entry.term
    for (const { description } of this.snapshots) if (description.last.index === index) return description.last.term
    return undefined
  }

  /** Durable, as an entry or inside a snapshot. */
  holds({ index, term }: EntryId): boolean {
    const snapshot = this.newestSnapshot
    if (snapshot !== undefined && snapshot.description.last.index >= index) return true
    return this.at(index)?.term === term
  }

  apply(operation: DiskOperation): void {
    switch (operation.type) {
      case 'vote':
        assert(operation.term >= this.term, 'the stored term went back')
        this.term = operation.term
        this.votedFor = operation.votedFor
        return
      case 'saveSnapshot':
        this.snapshots.push(operation.snapshot)
        if (this.snapshots.length > 2) this.snapshots.shift()
        return
      case 'resetLog':
        this.firstIndex = operation.next
        this.entries = []
        return
      case 'truncateAfter':
        this.entries.length = Math.max(0, Math.min(this.entries.length, operation.index - this.firstIndex + 1))
        return
      case 'append':
        assert.equal(operation.entry.index, this.lastIndex + 1, 'a hole in the stored log')
        this.entries.push(operation.entry)
        return
    }
  }

  /** Segments entirely below `first` may go. */
  compact(first: Index): void {
    const count = Math.min(first - this.firstIndex, this.entries.length)
    if (count <= 0) return
    this.entries.splice(0, count)
    this.firstIndex += count
  }

  get unfinishedOperations(): number {
    return this.queue.reduce((sum, { operations }) => sum + operations.length, 0)
  }

  /** The oldest `kept` unfinished operations reached the platters, the others did not. */
  crash(kept: number): void {
    for (const operation of this.queue.flatMap(({ operations }) => operations).slice(0, kept)) this.apply(operation)
    this.queue = []
  }

  /** What a loader makes of it: a log that contradicts the snapshot, or ends before it, is what an install left behind. */
  load(cacheBytesMax: number): RestoredState {
    const snapshot = this.newestSnapshot?.description
    if (snapshot !== undefined && this.at(snapshot.last.index)?.term !== snapshot.last.term) {
      if (this.firstIndex !== snapshot.last.index + 1) {
        this.firstIndex = snapshot.last.index + 1
        this.entries = []
      }
    }
    let bytes = 0
    const entries = this.entries.toReversed().map((entry): Entry => {
      if (entry.type !== 'command') return entry
      bytes += entry.byteLength
      return bytes <= cacheBytesMax ? entry : { ...entry, data: undefined }
    })
    return { term: this.term, votedFor: this.votedFor, snapshot, entries: entries.reverse() }
  }
}
