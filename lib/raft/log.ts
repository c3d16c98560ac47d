/**
 * The part of the log that lives in memory: entries in order, the oldest trimmed away behind snapshots, the data of old
 * commands evicted. Knows nothing of who may append, truncate or commit, and never touches a disk.
 */
import assert from 'node:assert/strict'
import type { Entry, EntryId, Index, SnapshotDescription, Term } from './types.js'

/** Trimmed slots are given back once they are this many and half of the array. */
const trimmedSlotsMin = 1024

/** Stands in trimmed slots, so that they hold no data. */
const trimmed: Entry = { type: 'barrier', index: 0, term: 0, byteLength: 0 }

const nothing: readonly Entry[] = []

export interface TakeRange {
  readonly first: Index
  readonly last: Index
  readonly entriesMax: number
  /** The first entry is taken whatever its size. */
  readonly bytesMax: number
}

export class Log {
  //  #slots:  trimmed … trimmed | entry #baseIndex+1 | … | entry lastIndex
  //           └──── #head ────┘
  #slots: Entry[]
  #head = 0
  /** The position before the first entry. Its term is unknown after a restart with entries older than the snapshot. */
  #baseIndex: Index = 0
  #baseTerm: Term | undefined = 0
  /** End of the newest snapshot: a position whose term is known even if its entry is gone. */
  #snapshotLast: EntryId = { index: 0, term: 0 }

  readonly #cacheBytesMax: number
  #cachedBytes = 0
  /** No command below it has data in memory. */
  #evictNext: Index

  // Followers at the same position get the same array.
  #taken: readonly Entry[] = nothing
  #takenEntriesMax = 0
  #takenBytesMax = 0
  #takenLimit: Index = 0

  constructor(cacheBytesMax: number, snapshot: SnapshotDescription | undefined, entries: readonly Entry[]) {
    this.#cacheBytesMax = cacheBytesMax
    if (snapshot !== undefined) this.#snapshotLast = snapshot.last
    const first = entries[0]?.index ?? 0
    const last = first + entries.length - 1
    // A log that ends before the snapshot was replaced by it.
    this.#slots = entries.length > 0 && last >= this.#snapshotLast.index ? [...entries] : []
    if (this.#slots.length > 0) {
      assert(first <= this.#snapshotLast.index + 1, 'a gap between snapshot and log')
      this.#baseIndex = first - 1
      this.#baseTerm =
        this.#baseIndex === 0 ? 0 : this.#baseIndex === this.#snapshotLast.index ? this.#snapshotLast.term : undefined
    } else {
      this.#baseIndex = this.#snapshotLast.index
      this.#baseTerm = this.#snapshotLast.term
    }
    for (const [position, entry] of this.#slots.entries()) {
      assert(entry.index === first + position, 'restored entries are not contiguous')
      this.#cachedBytes += dataBytes(entry)
    }
    this.#evictNext = this.firstIndex
    if (this.#snapshotLast.index >= this.firstIndex)
      assert(this.termAt(this.#snapshotLast.index) === this.#snapshotLast.term, 'snapshot and log disagree')
  }

  get firstIndex(): Index {
    return this.#baseIndex + 1
  }
  get lastIndex(): Index {
    return this.#baseIndex + this.#slots.length - this.#head
  }
  get lastTerm(): Term {
    const term = this.termAt(this.lastIndex)
    assert(term !== undefined)
    return term
  }
  get cachedBytes(): number {
    return this.#cachedBytes
  }

  /** `undefined`: beyond the end, or compacted and forgotten. Index 0 has term 0. */
  termAt(index: Index): Term | undefined {
    const position = index - this.#baseIndex
    if (position > 0) return this.#slots[this.#head + position - 1]?.term
    if (position === 0) return this.#baseTerm
    return index === this.#snapshotLast.index ? this.#snapshotLast.term : undefined
  }

  /** The entry at an index that the log holds. */
  at(index: Index): Entry {
    assert(index > this.#baseIndex && index <= this.lastIndex)
    return this.#slots[this.#head + index - this.#baseIndex - 1]!
  }

  append(entry: Entry): void {
    assert(entry.index === this.lastIndex + 1, 'an entry does not continue the log')
    this.#slots.push(entry)
    this.#cachedBytes += dataBytes(entry)
  }

  /** Entries `first` … `last`, all of them. */
  slice(first: Index, last: Index): Entry[] {
    assert(first > this.#baseIndex)
    assert(last <= this.lastIndex)
    const offset = this.#head - this.#baseIndex - 1
    return this.#slots.slice(offset + first, offset + last + 1)
  }

  /** Entries from `first` on, at most up to `last`, bounded by number and bytes; at least one if there is one. */
  take({ first, last, entriesMax, bytesMax }: TakeRange): readonly Entry[] {
    if (
      first === this.#taken[0]?.index &&
      last === this.#takenLimit &&
      entriesMax === this.#takenEntriesMax &&
      bytesMax === this.#takenBytesMax
    )
      return this.#taken
    assert(first > this.#baseIndex)
    assert(last <= this.lastIndex)
    const offset = this.#head - this.#baseIndex - 1
    const end = Math.min(last, first + entriesMax - 1)
    let next = first
    for (let bytes = 0; next <= end; next++) {
      bytes += this.#slots[offset + next]!.byteLength
      if (bytes > bytesMax && next > first) break
    }
    this.#taken = this.#slots.slice(offset + first, offset + next)
    this.#takenLimit = last
    this.#takenEntriesMax = entriesMax
    this.#takenBytesMax = bytesMax
    return this.#taken
  }

  truncateAfter(index: Index): void {
    assert(index >= this.#baseIndex)
    const keep = this.#head + index - this.#baseIndex
    for (let slot = keep; slot < this.#slots.length; slot++) this.#cachedBytes -= dataBytes(this.#slots[slot]!)
    this.#slots.length = Math.min(this.#slots.length, keep)
    this.#evictNext = Math.min(this.#evictNext, index + 1)
    this.#forgetTaken()
  }

  /** A snapshot exists that ends at `last`: everything up to `trimTo` may go. */
  trim(last: EntryId, trimTo: Index): void {
    this.#snapshotLast = last
    const upTo = Math.min(trimTo, this.lastIndex)
    if (upTo <= this.#baseIndex) return
    const term = this.termAt(upTo)
    for (let slot = this.#head; slot < this.#head + upTo - this.#baseIndex; slot++) {
      this.#cachedBytes -= dataBytes(this.#slots[slot]!)
      this.#slots[slot] = trimmed
    }
    this.#head += upTo - this.#baseIndex
    this.#baseIndex = upTo
    this.#baseTerm = term
    this.#evictNext = Math.max(this.#evictNext, upTo + 1)
    if (this.#head >= trimmedSlotsMin && this.#head * 2 >= this.#slots.length) {
      this.#slots = this.#slots.slice(this.#head)
      this.#head = 0
    }
    this.#forgetTaken()
  }

  /** A snapshot has replaced the whole log. */
  reset(last: EntryId): void {
    this.#slots = []
    this.#head = 0
    this.#cachedBytes = 0
    this.#baseIndex = last.index
    this.#baseTerm = last.term
    this.#snapshotLast = last
    this.#evictNext = last.index + 1
    this.#forgetTaken()
  }

  /** Drops the data of the oldest commands while the cache is too large, but of none above `upTo`. */
  evict(upTo: Index): void {
    if (this.#cachedBytes <= this.#cacheBytesMax) return
    const end = Math.min(upTo, this.lastIndex)
    while (this.#cachedBytes > this.#cacheBytesMax && this.#evictNext <= end) {
      const slot = this.#head + this.#evictNext++ - this.#baseIndex - 1
      const entry = this.#slots[slot]!
      if (entry.type !== 'command' || entry.data === undefined) continue
      this.#cachedBytes -= entry.byteLength
      this.#forgetTaken()
      // A new value: entries that others hold keep their data.
      this.#slots[slot] = {
        type: 'command',
        index: entry.index,
        term: entry.term,
        byteLength: entry.byteLength,
        data: undefined,
      }
    }
  }

  /**
   * The highest index in [`low`, `high`] whose term is at most `term`, else `low`. Terms rise along a log (a recovered
   * configuration may dip to term 1, raft-wire §4.2), so the answer is a hint and never a proof.
   */
  lastIndexWithTermUpTo(term: Term, low: Index, high: Index): Index {
    let from = low
    let to = high
    while (from < to) {
      const middle = Math.ceil((from + to) / 2)
      if ((this.termAt(middle) ?? 0) <= term) from = middle
      else to = middle - 1
    }
    return from
  }

  #forgetTaken(): void {
    this.#taken = nothing
  }
}

function dataBytes(entry: Entry): number {
  return entry.type === 'command' && entry.data !== undefined ? entry.byteLength : 0
}
