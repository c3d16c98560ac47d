/**
 * Cores that break one rule each, to prove that the checkers see it. Each is the real core behind a wrapper that bends its
 * input or its output; none is ever used outside these tests.
 */
import { Raft, type RaftOptions, type RestoredState } from '../../lib/raft/raft.js'
import type { Envelope, Index, RaftEvent, Ready, Refusal, Term } from '../../lib/raft/types.js'
import type { RaftCore, RaftFactory } from '../support/model-server.js'
import type { Swarm } from './swarm.js'

class Wrapper implements RaftCore {
  readonly inner: Raft

  constructor(options: RaftOptions, restored: RestoredState) {
    this.inner = new Raft(options, restored)
  }

  step(event: RaftEvent): Refusal | undefined {
    return this.inner.step(event)
  }
  ready(): Ready | undefined {
    return this.inner.ready()
  }
  termAt(index: Index): Term | undefined {
    return this.inner.termAt(index)
  }
  progress() {
    return this.inner.progress()
  }
  get id() {
    return this.inner.id
  }
  get state() {
    return this.inner.state
  }
  get term() {
    return this.inner.term
  }
  get leader() {
    return this.inner.leader
  }
  get commitIndex() {
    return this.inner.commitIndex
  }
  get lastIndex() {
    return this.inner.lastIndex
  }
  get lastApplied() {
    return this.inner.lastApplied
  }
  get lastPersisted() {
    return this.inner.lastPersisted
  }
  get configuration() {
    return this.inner.configuration
  }
  get committedConfiguration() {
    return this.inner.committedConfiguration
  }
  get isTransferring() {
    return this.inner.isTransferring
  }
  get installingSnapshot() {
    return this.inner.installingSnapshot
  }
  get cachedBytes() {
    return this.inner.cachedBytes
  }
  get hasCommittedInTerm() {
    return this.inner.hasCommittedInTerm
  }
}

/** Bends every Ready on its way out. */
const bendReady =
  (bend: (ready: Ready) => Ready): RaftFactory =>
  (options, restored) =>
    new (class extends Wrapper {
      override ready() {
        const ready = this.inner.ready()
        return ready === undefined ? undefined : bend(ready)
      }
    })(options, restored)

/** Bends every event on its way in; `undefined` swallows it. */
const bendEvent =
  (bend: (event: RaftEvent, inner: Raft) => RaftEvent | undefined): RaftFactory =>
  (options, restored) =>
    new (class extends Wrapper {
      override step(event: RaftEvent) {
        const bent = bend(event, this.inner)
        return bent === undefined ? undefined : this.inner.step(bent)
      }
    })(options, restored)

const sendEarly = (type: Envelope['message']['type']) =>
  bendReady((ready) => ({
    ...ready,
    messages: [...ready.messages, ...ready.messagesAfterPersist.filter(({ message }) => message.type === type)],
    messagesAfterPersist: ready.messagesAfterPersist.filter(({ message }) => message.type !== type),
  }))

function without(field: 'vote' | 'truncateAfter') {
  return bendReady((ready) => {
    const rest: { -readonly [name in keyof Ready]: Ready[name] } = { ...ready }
    delete rest[field]
    return rest
  })
}

const receiving = (event: RaftEvent) => (event.type === 'receive' ? event.message : undefined)

export interface BrokenCore {
  readonly createRaft: RaftFactory
  /** What the checkers must say about it. */
  readonly notices: RegExp
  /** Circumstances in which the fault matters soon. */
  readonly swarm?: Partial<Swarm>
}

const votingStorm: Partial<Swarm> = {
  roles: ['voter', 'voter', 'voter'],
  isBootstrapped: false,
  hasQuietVotes: false,
  cLike: 0,
  loss: 0,
  diskDelayMax: 0,
  crashEveryTicks: 2,
  downTicks: 1,
  delayMax: 32,
  changeEveryTicks: 0,
}

/** What is broken → the core that is. */
export const brokenCores: Readonly<Record<string, BrokenCore>> = {
  'sends votes before they are durable': {
    createRaft: sendEarly('requestVoteResult'),
    notices: /votes for .* its disk says/,
  },
  'acknowledges entries before they are durable': {
    createRaft: sendEarly('appendEntriesResult'),
    notices: /acknowledges .* its disk ends at/,
  },
  'never stores its vote': {
    createRaft: without('vote'),
    notices: /votes for .* its disk says/,
  },
  'forgets its vote at restart': {
    createRaft: (options, restored) => new Raft(options, { ...restored, votedFor: undefined }),
    notices: /voted for .* and for .* in term/,
    swarm: votingStorm,
  },
  'never truncates its disk': {
    createRaft: without('truncateAfter'),
    notices: /stores .* after/,
  },
  'applies the newest entry first': {
    createRaft: bendReady((ready) => ({ ...ready, committed: ready.committed.toReversed() })),
    notices: /handed out in order/,
  },
  'takes its disk for faster than it is': {
    createRaft: (options, restored) =>
      new (class extends Wrapper {
        override ready() {
          const ready = this.inner.ready()
          const last = ready?.entries.at(-1)
          if (last !== undefined) this.inner.step({ type: 'persisted', last: { index: last.index, term: last.term } })
          return ready
        }
      })(options, restored),
    notices: /nobody has committed|durable only on|the disk does not hold it/,
  },
  'votes for candidates with a shorter log': {
    createRaft: bendEvent((event, { lastIndex, term }) => {
      const message = receiving(event)
      if (event.type !== 'receive' || message?.type !== 'requestVote') return event
      return { ...event, message: { ...message, last: { index: lastIndex + 1, term } } }
    }),
    notices: /leader completeness/,
  },
  'counts acknowledgements that nobody gave': {
    createRaft: bendEvent((event, { lastIndex }) => {
      const message = receiving(event)
      if (event.type !== 'receive' || message?.type !== 'appendEntriesResult') return event
      return { ...event, message: { ...message, rejected: 0, lastLogIndex: lastIndex } }
    }),
    notices: /durable only on/,
  },
  'believes in a commit index one too high': {
    createRaft: bendEvent((event) => {
      const message = receiving(event)
      if (event.type !== 'receive' || message?.type !== 'appendEntries') return event
      return { ...event, message: { ...message, commitIndex: message.commitIndex + 1 } }
    }),
    notices: /nobody has committed|no leader has committed/,
  },
  'answers reads without asking anybody': {
    createRaft: (options, restored) =>
      new (class extends Wrapper {
        #reads: { id: number; index: Index }[] = []
        override step(event: RaftEvent) {
          if (event.type !== 'readIndex' || this.inner.state !== 'leader') return this.inner.step(event)
          this.#reads.push({ id: event.id, index: this.inner.commitIndex })
          return undefined
        }
        override ready() {
          const ready = this.inner.ready()
          if (this.#reads.length === 0) return ready
          const reads = this.#reads
          this.#reads = []
          const idle = { entries: [], messages: [], messagesAfterPersist: [], committed: [], outcomes: [] }
          return { ...idle, ...ready, reads }
        }
      })(options, restored),
    notices: /answers read .* was committed before it/,
  },
  'counts old entries by their replicas': {
    createRaft: (options, restored) =>
      new (class extends Wrapper {
        // Entries of earlier terms look as if they were of the present one (dissertation §3.6.2, figure 3.7).
        override get commitIndex() {
          const { state, commitIndex, lastIndex, lastPersisted, configuration } = this.inner
          if (state !== 'leader') return commitIndex
          const matches = this.inner.progress()
          const held = configuration.servers
            .filter(({ role }) => role === 'voter')
            .map(({ id }) =>
              id === this.inner.id ? lastPersisted : (matches.find((one) => one.id === id)?.matchIndex ?? 0),
            )
            .sort((a, b) => b - a)
          return Math.min(lastIndex, Math.max(commitIndex, held[Math.floor(held.length / 2)] ?? 0))
        }
      })(options, restored),
    notices: /by counting/,
  },
  'never hears the clock': {
    createRaft: bendEvent((event) => (event.type === 'tick' ? undefined : event)),
    notices: /liveness: .* nobody leads/,
  },
  'never acknowledges anything': {
    createRaft: bendReady((ready) => {
      const others = (envelopes: readonly Envelope[]) =>
        envelopes.filter(({ message }) => message.type !== 'appendEntriesResult')
      return { ...ready, messages: others(ready.messages), messagesAfterPersist: others(ready.messagesAfterPersist) }
    }),
    notices: /liveness: /,
  },
  'campaigns although it has a leader': {
    createRaft: (options, restored) => {
      const raft = new Raft({ ...options, random: () => 0, electionTimeoutTicks: 1, heartbeatTicks: 1 }, restored)
      return raft
    },
    notices: /liveness: .*(lost its leadership|nobody leads|does not)/,
  },
}
