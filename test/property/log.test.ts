/**
 * The log against a naive twin: an array that keeps everything it was ever given and answers by walking.
 */
import assert from 'node:assert/strict'
import fc from 'fast-check'
import test from 'ava'
import { Log } from '../../lib/raft/log.js'
import type { Entry, EntryId, Index, Term } from '../../lib/raft/types.js'

const bytesOf = (entry: Entry) => (entry.type === 'command' && entry.data !== undefined ? entry.byteLength : 0)

class NaiveLog {
  entries: Entry[] = []
  base: EntryId = { index: 0, term: 0 }
  snapshotLast: EntryId = { index: 0, term: 0 }

  get lastIndex(): Index {
    return this.base.index + this.entries.length
  }

  get cachedBytes(): number {
    return this.entries.reduce((sum, entry) => sum + bytesOf(entry), 0)
  }

  termAt(index: Index): Term | undefined {
    if (index === this.base.index) return this.base.term
    return (
      this.entries.find((entry) => entry.index === index)?.term ??
      (index === this.snapshotLast.index ? this.snapshotLast.term : undefined)
    )
  }

  truncateAfter(index: Index): void {
    this.entries = this.entries.filter((entry) => entry.index <= index)
  }

  trim(last: EntryId, upTo: Index): void {
    this.snapshotLast = last
    const kept = this.entries.filter((entry) => entry.index > upTo)
    const lastTrimmed = this.entries.findLast((entry) => entry.index <= upTo)
    if (lastTrimmed !== undefined) this.base = { index: lastTrimmed.index, term: lastTrimmed.term }
    this.entries = kept
  }

  reset(last: EntryId): void {
    this.entries = []
    this.base = last
    this.snapshotLast = last
  }

  evict(upTo: Index, bytesMax: number): void {
    this.entries = this.entries.map((entry) => {
      if (entry.type !== 'command' || entry.index > upTo || this.cachedBytes <= bytesMax) return entry
      const older = this.entries.filter((one) => one.index < entry.index)
      let cached = this.cachedBytes
      for (const one of older) if (one.index <= upTo) cached -= bytesOf(one)
      return cached > bytesMax ? { ...entry, data: undefined } : entry
    })
  }

  take(first: Index, last: Index, entriesMax: number, bytesMax: number): Entry[] {
    const taken: Entry[] = []
    for (const entry of this.entries) {
      if (entry.index < first || entry.index > last || taken.length === entriesMax) continue
      const bytes = [...taken, entry].reduce((sum, one) => sum + one.byteLength, 0)
      if (taken.length > 0 && bytes > bytesMax) break
      taken.push(entry)
    }
    return taken
  }
}

type Action =
  | { readonly do: 'append'; readonly words: readonly number[] }
  | { readonly do: 'truncate' | 'trim' | 'evict' | 'reset'; readonly at: number; readonly behind: number }

// Chances between 0 and 1 are turned into indexes when the state is known.
const fraction = fc.double({ min: 0, max: 1, noNaN: true })
const action: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constant('append' as const), words: fc.array(fc.nat(6), { maxLength: 6 }) }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constantFrom('truncate' as const, 'trim' as const, 'evict' as const, 'evict' as const),
      at: fraction,
      behind: fraction,
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('reset' as const), at: fraction, behind: fraction }) },
)

function compare(log: Log, naive: NaiveLog, first: Index, limits: { entriesMax: number; bytesMax: number }): void {
  assert.equal(log.lastIndex, naive.lastIndex)
  assert.equal(log.firstIndex, naive.base.index + 1)
  assert.equal(log.cachedBytes, naive.cachedBytes)
  for (let index = 0; index <= naive.lastIndex + 2; index++) assert.equal(log.termAt(index), naive.termAt(index))
  assert.deepEqual(log.slice(log.firstIndex, log.lastIndex), naive.entries)
  if (first > naive.base.index && first <= naive.lastIndex) {
    for (const last of [naive.lastIndex, Math.floor((first + naive.lastIndex) / 2)]) {
      const expected = naive.take(first, last, limits.entriesMax, limits.bytesMax)
      // Twice: the second answer may come from memory.
      assert.deepEqual(log.take({ first, last, ...limits }), expected)
      assert.deepEqual(log.take({ first, last, ...limits }), expected)
    }
  }
}

test('a log answers like an array that is walked', (t) => {
  fc.assert(
    fc.property(
      fc.array(action, { maxLength: 40 }),
      fc.constantFrom(0, 8, 40, 200, 10_000),
      fc.integer({ min: 1, max: 5 }),
      fc.constantFrom(8, 40, 1000),
      (actions, cacheBytesMax, entriesMax, bytesMax) => {
        const log = new Log(cacheBytesMax, undefined, [])
        const naive = new NaiveLog()
        let term = 1
        for (const action of actions) {
          const { base, lastIndex } = naive
          const between = (from: Index, to: Index, part: number) => from + Math.floor(part * (to - from))
          switch (action.do) {
            case 'append':
              for (const words of action.words) {
                const index = naive.lastIndex + 1
                const entry: Entry =
                  words === 0
                    ? { type: 'barrier', index, term, byteLength: 8 }
                    : {
                        type: 'command',
                        index,
                        term,
                        byteLength: 8 * words,
                        data: new Uint8Array(8 * words).fill(index),
                      }
                log.append(entry)
                naive.entries.push(entry)
              }
              break
            case 'truncate': {
              // Never below a snapshot: what it stands for is committed.
              const index = between(Math.max(base.index, naive.snapshotLast.index), lastIndex, action.at)
              log.truncateAfter(index)
              naive.truncateAfter(index)
              term++
              break
            }
            case 'trim': {
              const index = between(base.index, lastIndex, action.at)
              const indexTerm = naive.termAt(index)!
              if (index < naive.snapshotLast.index) break
              const upTo = between(0, index, action.behind)
              log.trim({ index, term: indexTerm }, upTo)
              naive.trim({ index, term: indexTerm }, upTo)
              break
            }
            case 'evict': {
              const upTo = between(base.index, lastIndex + 2, action.at)
              log.evict(upTo)
              naive.evict(upTo, cacheBytesMax)
              break
            }
            case 'reset': {
              const last = { index: lastIndex + 1 + Math.floor(3 * action.at), term: ++term }
              log.reset(last)
              naive.reset(last)
              break
            }
          }
          compare(log, naive, between(base.index + 1, lastIndex + 1, 'behind' in action ? action.behind : 0.3), {
            entriesMax,
            bytesMax,
          })
        }
      },
    ),
    { numRuns: 400 },
  )
  t.pass()
})
