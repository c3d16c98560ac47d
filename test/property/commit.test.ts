/**
 * For every history of proposals, deliveries, losses and acknowledgements a leader's commit index is what a naive twin
 * computes from the definition: the highest entry of the present term that a majority of voters has acknowledged
 * (dissertation §3.6.2). Followers are honest here; the simulation has the others.
 */
import fc from 'fast-check'
import test from 'ava'
import { featureVoteSilence } from '../../lib/raft/core.js'
import { Raft } from '../../lib/raft/raft.js'
import type { AppendEntries, Entry, EntryId, Envelope, Index, Message, Server, ServerId } from '../../lib/raft/types.js'

type Action =
  | { readonly do: 'propose'; readonly count: number }
  | { readonly do: 'deliver' | 'lose' | 'acknowledge' | 'loseAcknowledgement' | 'unreachable'; readonly peer: number }
  | { readonly do: 'persist' | 'tick' }

const peer = fc.nat(5)
const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ do: fc.constant('propose' as const), count: fc.integer({ min: 1, max: 3 }) }) },
  { weight: 6, arbitrary: fc.record({ do: fc.constant('deliver' as const), peer }) },
  { weight: 6, arbitrary: fc.record({ do: fc.constant('acknowledge' as const), peer }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constantFrom('persist' as const, 'tick' as const) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constantFrom('lose' as const, 'loseAcknowledgement' as const, 'unreachable' as const),
      peer,
    }),
  },
)

const self = 1n

class Cluster {
  readonly raft: Raft
  readonly voters: readonly ServerId[]
  readonly peers: readonly ServerId[]
  readonly log = new Map<Index, Entry>()
  readonly toPersist: EntryId[] = []
  readonly requests = new Map<ServerId, AppendEntries[]>()
  readonly results = new Map<ServerId, Message[]>()
  readonly stored = new Map<ServerId, Index>()
  /** The naive twin's knowledge: the highest acknowledgement received per voter. */
  readonly acknowledged = new Map<ServerId, Index>()
  votes: Envelope[] = []

  constructor(
    voters: number,
    standbys: number,
    oldEntries: number,
    readonly features: number,
  ) {
    const servers = Array.from({ length: voters + standbys }, (_, place): Server => ({
      id: BigInt(place + 1),
      address: `s${place + 1}`,
      role: place < voters ? 'voter' : 'standby',
    }))
    this.voters = servers.slice(0, voters).map(({ id }) => id)
    this.peers = servers.slice(1).map(({ id }) => id)
    const first: Entry = { type: 'configuration', index: 1, term: 1, byteLength: 64, configuration: { servers } }
    const old = Array.from({ length: oldEntries }, (_, at): Entry => {
      return { type: 'command', index: at + 2, term: 1, byteLength: 8, data: new Uint8Array(8) }
    })
    for (const entry of [first, ...old]) this.log.set(entry.index, entry)
    this.raft = new Raft(
      {
        id: self,
        random: () => 0,
        electionTimeoutTicks: 10,
        heartbeatTicks: 1,
        installSnapshotTimeoutTicks: 30,
        maxCatchUpRounds: 10,
        catchUpRoundTimeoutTicks: 50,
        appendEntriesMax: 3,
        appendBytesMax: 64,
        inflightAppendsMax: 3,
        pipelineEntriesMax: 1000,
        pipelineBytesMax: 100_000,
        logCacheBytesMax: 100_000,
        committedBytesMax: 100_000,
        quietTicks: 0,
      },
      { term: 1, votedFor: undefined, snapshot: undefined, entries: [first, ...old] },
    )
    // Followers are born with everything the leader has.
    for (const id of this.peers) this.stored.set(id, 1)
    this.pump()
    for (let ticks = 0; this.raft.state !== 'leader' && ticks < 50; ticks++) {
      this.raft.step({ type: 'tick' })
      this.pump()
      for (let vote = this.votes.shift(); vote !== undefined; vote = this.votes.shift()) {
        if (vote.message.type !== 'requestVote') continue
        const { term, preVote } = vote.message
        this.receive(vote.to, { type: 'requestVoteResult', term, granted: true, preVote })
      }
    }
  }

  receive(from: ServerId, message: Message): void {
    this.raft.step({ type: 'receive', from, address: `s${from}`, message })
    this.pump()
  }

  pump(): void {
    for (let ready = this.raft.ready(); ready !== undefined; ready = this.raft.ready()) {
      for (const entry of ready.entries) {
        this.log.set(entry.index, entry)
        this.toPersist.push(entry)
      }
      for (const envelope of [...ready.messages, ...ready.messagesAfterPersist]) {
        if (envelope.message.type === 'appendEntries') queueOf(this.requests, envelope.to).push(envelope.message)
        else this.votes.push(envelope)
      }
      const last = ready.committed.at(-1)
      if (last !== undefined) this.raft.step({ type: 'applied', index: last.index })
    }
  }

  run(action: Action): void {
    const id = 'peer' in action ? this.peers[action.peer % Math.max(1, this.peers.length)] : undefined
    switch (action.do) {
      case 'propose': {
        const entries = Array.from({ length: action.count }, () => ({
          type: 'command' as const,
          data: new Uint8Array(8),
        }))
        this.raft.step({ type: 'propose', entries })
        break
      }
      case 'persist': {
        const last = this.toPersist.shift()
        if (last !== undefined) {
          this.acknowledged.set(self, last.index)
          this.raft.step({ type: 'persisted', last: { index: last.index, term: last.term } })
        }
        break
      }
      case 'tick':
        this.raft.step({ type: 'tick' })
        break
      case 'deliver': {
        if (id === undefined) break
        const request = queueOf(this.requests, id).shift()
        if (request === undefined) break
        const { term, prev, entries } = request
        const stored = this.stored.get(id)!
        if (prev.index > stored) {
          const result = {
            type: 'appendEntriesResult',
            term,
            rejected: prev.index,
            lastLogIndex: stored,
            features: 0,
          } as const
          queueOf(this.results, id).push(result)
        } else {
          const lastLogIndex = prev.index + entries.length
          this.stored.set(id, Math.max(stored, lastLogIndex))
          queueOf(this.results, id).push({
            type: 'appendEntriesResult',
            term,
            rejected: 0,
            lastLogIndex,
            features: this.features,
          })
        }
        break
      }
      case 'lose':
        if (id !== undefined) queueOf(this.requests, id).shift()
        break
      case 'acknowledge': {
        if (id === undefined) break
        const result = queueOf(this.results, id).shift()
        if (result?.type !== 'appendEntriesResult') break
        if (result.rejected === 0) {
          this.acknowledged.set(id, Math.max(this.acknowledged.get(id) ?? 0, result.lastLogIndex))
        }
        this.receive(id, result)
        break
      }
      case 'loseAcknowledgement':
        if (id !== undefined) queueOf(this.results, id).shift()
        break
      case 'unreachable':
        if (id !== undefined) this.raft.step({ type: 'unreachable', to: id })
        break
    }
    this.pump()
  }

  /** By the definition, slowly. */
  get naiveCommitIndex(): Index {
    for (let index = this.raft.lastIndex; index > 0; index--) {
      const holders = this.voters.filter((id) => (this.acknowledged.get(id) ?? 0) >= index).length
      if (holders * 2 > this.voters.length && this.log.get(index)?.term === this.raft.term) return index
    }
    return 0
  }
}

function queueOf<T>(queues: Map<ServerId, T[]>, id: ServerId): T[] {
  const queue = queues.get(id) ?? []
  queues.set(id, queue)
  return queue
}

const histories = [
  fc.integer({ min: 2, max: 6 }),
  fc.nat(2),
  fc.nat(4),
  fc.array(action, { maxLength: 150, size: 'max' }),
] as const

/** Runs a history; true if after each action the commit index is as it should be. */
function holds(
  cluster: Cluster,
  actions: readonly Action[],
  isRight: (index: Index, naive: Index) => boolean,
): boolean {
  const start = cluster.raft.commitIndex
  for (const action of actions) {
    if (cluster.raft.state !== 'leader') break
    cluster.run(action)
    if (cluster.raft.state !== 'leader') break
    if (!isRight(cluster.raft.commitIndex, Math.max(start, cluster.naiveCommitIndex))) return false
  }
  return true
}

test('a leader commits exactly what a majority of voters holds in its term', (t) => {
  let committed = 0
  fc.assert(
    fc.property(...histories, (voters, standbys, oldEntries, actions) => {
      const cluster = new Cluster(voters, standbys, oldEntries, featureVoteSilence)
      const isRight = holds(cluster, actions, (index, naive) => index === naive)
      committed = Math.max(committed, cluster.raft.commitIndex)
      return isRight
    }),
    { numRuns: 300 },
  )
  t.true(committed > 5, 'the histories commit something')
})

test('a leader commits no more than that with members that answer like C', (t) => {
  let committed = 0
  fc.assert(
    fc.property(...histories, (voters, standbys, oldEntries, actions) => {
      const cluster = new Cluster(voters, standbys, oldEntries, 0)
      const isRight = holds(cluster, actions, (index, naive) => index <= naive)
      committed = Math.max(committed, cluster.raft.commitIndex)
      return isRight
    }),
    { numRuns: 300 },
  )
  t.true(committed > 5, 'the histories commit something')
})
