/**
 * What a leader knows of one other server: how far its log is known to agree, what has been sent and not answered.
 * Arithmetic only; what to send, and what an answer means, is leader.ts.
 */
import assert from 'node:assert/strict'
import type { Index, ServerId } from './types.js'

//                    success                       window full: wait
//   probe ─────────────────────────► replicate ◄──────┐
//   one message     ◄────────────────  next runs ahead│of the answers
//     ▲   │            rejection,     ────────────────┘
//     │   │ entries    unreachable
//     │   ▼ compacted
//   snapshot: only heartbeats until installed, refused, unreachable or timed out
export type ProgressState = 'probe' | 'replicate' | 'snapshot'

export class Progress {
  state: ProgressState = 'probe'
  /** Known to be equal to ours up to here, and on its disk. */
  matchIndex: Index = 0
  nextIndex: Index
  /** Highest index that any message of this leadership covered. No honest answer can exceed it. */
  sentIndex: Index = 0

  /** Something arrived since the last check-quorum (raft-wire §6.3). */
  isActive = false
  /** Probes sent since its last answer: beyond the first they carry no entries. */
  unansweredProbes = 0
  /** A probe is under way: the next one waits for the answer or for the heartbeat. */
  isProbing = false
  /** What it covers: an answer that says less is not the answer to it. */
  probedIndex: Index = 0
  ticksSinceSend = 0
  isHeartbeatDue = false

  /** From its last result; 0 for C members. */
  features = 0
  // Pigeonholes for C members, whose answers may speak of a stale tail (raft-wire §6.4, safety remark): see leader.ts.
  holdsBarrier = false
  shortAppendsSent = 0
  successesReceived = 0
  /** A question that is under way, and how many of those messages left before it. */
  doubt: { readonly question: number; readonly shortAppends: number } | undefined

  snapshotIndex: Index = 0
  ticksInSnapshot = 0

  /** The last round of readIndex it has confirmed. */
  confirmedQuestion = 0

  // Last indexes of the messages with entries under way, oldest first, from #firstInflight on.
  #inflight: Index[] = []
  #firstInflight = 0
  #window = Infinity

  constructor(
    readonly id: ServerId,
    public address: string,
    nextIndex: Index,
  ) {
    this.nextIndex = nextIndex
  }

  /** May another message with entries leave? At most `max` are under way, fewer after a refusal. */
  hasRoom(max: number): boolean {
    return this.#inflight.length - this.#firstInflight < Math.min(max, this.#window)
  }

  /**
   * A message of the pipeline was refused, so those behind it will be. Their refusals are still to come, and must not
   * each start a whole window again: begin with one message, and double with each that brings progress.
   */
  narrow(): void {
    this.#window = 1
  }

  becomeProbe(): void {
    this.state = 'probe'
    this.nextIndex = this.matchIndex + 1
    this.probedIndex = this.matchIndex
    this.isProbing = false
    this.#clearInflight()
  }

  becomeReplicate(): void {
    this.state = 'replicate'
    this.nextIndex = this.matchIndex + 1
    this.isProbing = false
    this.#clearInflight()
  }

  becomeSnapshot(index: Index): void {
    this.state = 'snapshot'
    this.snapshotIndex = index
    this.ticksInSnapshot = 0
    this.isProbing = false
    this.#clearInflight()
  }

  /** Entries up to `last` have left in a pipeline: continue behind them without waiting. */
  sent(last: Index): void {
    this.nextIndex = last + 1
    this.#inflight.push(last)
  }

  /** It holds everything up to `index`. */
  matched(index: Index): void {
    if (index > this.matchIndex) {
      this.matchIndex = index
      this.#window *= 2
    }
    if (index >= this.nextIndex) this.nextIndex = index + 1
    while (this.#firstInflight < this.#inflight.length && this.#inflight[this.#firstInflight]! <= index)
      this.#firstInflight++
    if (this.#firstInflight === this.#inflight.length) this.#clearInflight()
    else if (this.#firstInflight >= 256) {
      this.#inflight = this.#inflight.slice(this.#firstInflight)
      this.#firstInflight = 0
    }
    assert(this.matchIndex < this.nextIndex)
  }

  /** A refused probe: try further down. It may have lost what it once acknowledged (raft-wire §6.4: C repairs so too). */
  backTo(nextIndex: Index): void {
    assert(nextIndex >= 1)
    this.nextIndex = nextIndex
    if (this.matchIndex >= nextIndex) this.matchIndex = nextIndex - 1
    // What covered more was refused.
    this.sentIndex = Math.min(this.sentIndex, nextIndex - 1)
    this.isProbing = false
  }

  #clearInflight(): void {
    if (this.#inflight.length > 0) this.#inflight = []
    this.#firstInflight = 0
  }
}
