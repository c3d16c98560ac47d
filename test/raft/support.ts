/**
 * What the paper tests share: one server with a log given by its terms, and a cluster over an instant network with
 * disks that remember. Decides nothing about Raft.
 */
import { Raft, type RaftOptions, type RestoredState } from '../../lib/raft/raft.js'
import type {
  AppendEntries,
  AppendEntriesResult,
  Configuration,
  ConfigurationEntry,
  Entry,
  Envelope,
  Index,
  InstallSnapshot,
  Message,
  Outcome,
  RaftEvent,
  Ready,
  Refusal,
  RequestVote,
  RequestVoteResult,
  Role,
  ServerId,
  SnapshotDescription,
  Term,
  TimeoutNow,
} from '../../lib/raft/types.js'

export const electionTimeoutTicks = 10

export const testOptions: Omit<RaftOptions, 'id'> = {
  random: () => 0,
  electionTimeoutTicks,
  heartbeatTicks: 2,
  installSnapshotTimeoutTicks: 40,
  maxCatchUpRounds: 3,
  catchUpRoundTimeoutTicks: 50,
  appendEntriesMax: 100,
  appendBytesMax: 1 << 20,
  inflightAppendsMax: 4,
  pipelineEntriesMax: 100,
  pipelineBytesMax: 1 << 20,
  logCacheBytesMax: 1 << 20,
  committedBytesMax: 1 << 20,
  quietTicks: 0,
}

/** Ids in order; a letter after the number gives the role: '3s' standby, '4x' spare. */
export function members(...names: readonly string[]): Configuration {
  return {
    servers: names.map((name) => {
      const role: Role = name.endsWith('s') ? 'standby' : name.endsWith('x') ? 'spare' : 'voter'
      const id = BigInt(name.replace(/\D/g, ''))
      return { id, address: addressOf(id), role }
    }),
  }
}

export const three = members('1', '2', '3')

export function addressOf(id: ServerId): string {
  return `node-${id}`
}

export function bytes(length = 8, fill = 1): Uint8Array {
  return new Uint8Array(length).fill(fill)
}

export function command(index: Index, term: Term, data = bytes()): Entry {
  return { type: 'command', index, term, byteLength: data.byteLength, data }
}

export function barrier(index: Index, term: Term): Entry {
  return { type: 'barrier', index, term, byteLength: 8 }
}

export function configurationEntry(index: Index, term: Term, configuration: Configuration): ConfigurationEntry {
  return { type: 'configuration', index, term, byteLength: 64, configuration }
}

/** Entry 1 is the configuration in term 1; the rest are commands of the given terms. */
export function logOf(configuration: Configuration, ...terms: readonly Term[]): Entry[] {
  return [configurationEntry(1, 1, configuration), ...terms.map((term, position) => command(position + 2, term))]
}

export interface ServerOptions extends Partial<RaftOptions> {
  readonly term?: Term
  readonly votedFor?: ServerId
  readonly configuration?: Configuration
  /** Terms of the entries from 2 on. */
  readonly log?: readonly Term[]
  readonly entries?: readonly Entry[]
  readonly snapshot?: SnapshotDescription
}

/** Server 1 of three, unless said otherwise. */
export function server(options: ServerOptions = {}): Raft {
  const { term, votedFor, configuration = three, log = [], entries, snapshot, ...rest } = options
  const restored: RestoredState = {
    term: term ?? Math.max(1, ...log),
    votedFor,
    snapshot,
    entries: entries ?? logOf(configuration, ...log),
  }
  return new Raft({ ...testOptions, id: 1n, ...rest }, restored)
}

/** Everything due, of as many Readys as there are. */
export interface Taken {
  readonly readys: Ready[]
  vote: Ready['vote']
  truncateAfter: Index | undefined
  snapshot: SnapshotDescription | undefined
  readonly entries: Entry[]
  readonly messages: Envelope[]
  readonly messagesAfterPersist: Envelope[]
  readonly committed: Entry[]
  readonly reads: { readonly id: number; readonly index: Index }[]
  readonly outcomes: Outcome[]
}

function takeInto(raft: Raft, taken: Taken): boolean {
  const ready = raft.ready()
  if (ready === undefined) return false
  taken.readys.push(ready)
  taken.vote = ready.vote ?? taken.vote
  taken.truncateAfter = ready.truncateAfter ?? taken.truncateAfter
  taken.snapshot = ready.snapshot ?? taken.snapshot
  taken.entries.push(...ready.entries)
  taken.messages.push(...ready.messages)
  taken.messagesAfterPersist.push(...ready.messagesAfterPersist)
  taken.committed.push(...ready.committed)
  taken.reads.push(...ready.reads)
  taken.outcomes.push(...ready.outcomes)
  return true
}

function newTaken(): Taken {
  return {
    readys: [],
    vote: undefined,
    truncateAfter: undefined,
    snapshot: undefined,
    entries: [],
    messages: [],
    messagesAfterPersist: [],
    committed: [],
    reads: [],
    outcomes: [],
  }
}

/** Takes what is due; the disk and the state machine have not moved. */
export function take(raft: Raft): Taken {
  const taken = newTaken()
  while (takeInto(raft, taken));
  return taken
}

/** Takes what is due, with an instant disk and state machine. */
export function settle(raft: Raft): Taken {
  const taken = newTaken()
  while (takeInto(raft, taken)) {
    const { entries, committed, snapshot } = taken.readys.at(-1)!
    if (snapshot !== undefined) raft.step({ type: 'snapshotInstalled', last: snapshot.last })
    const last = entries.at(-1)
    if (last !== undefined) persist(raft, last.index, last.term)
    if (committed.length > 0) raft.step({ type: 'applied', index: committed.at(-1)!.index })
  }
  return taken
}

export function persist(raft: Raft, index: Index, term: Term): void {
  raft.step({ type: 'persisted', last: { index, term } })
}

export function tick(raft: Raft, times = 1): void {
  for (let time = 0; time < times; time++) raft.step({ type: 'tick' })
}

export function receive(raft: Raft, from: ServerId, message: Message): void {
  raft.step({ type: 'receive', from, address: addressOf(from), message })
}

export function propose(raft: Raft, ...commands: readonly Uint8Array[]): Refusal | undefined {
  const datas = commands.length > 0 ? commands : [bytes()]
  return raft.step({ type: 'propose', entries: datas.map((data) => ({ type: 'command', data })) })
}

export function all(taken: Taken): Message[] {
  return [...taken.messages, ...taken.messagesAfterPersist].map(({ message }) => message)
}

export function ofType<Type extends Message['type']>(
  envelopes: readonly Envelope[],
  type: Type,
): (Extract<Message, { type: Type }> & { to: ServerId })[] {
  return envelopes
    .filter(({ message }) => message.type === type)
    .map(({ to, message }) => ({ ...(message as Extract<Message, { type: Type }>), to }))
}

// ------------------------------------------------------------------------------------------------ messages

export function requestVote(term: Term, last: [Index, Term], more: Partial<RequestVote> = {}): RequestVote {
  return {
    type: 'requestVote',
    term,
    last: { index: last[0], term: last[1] },
    preVote: false,
    disruptLeader: false,
    ...more,
  }
}

export function voteResult(term: Term, granted: boolean, preVote: boolean | undefined): RequestVoteResult {
  return { type: 'requestVoteResult', term, granted, preVote }
}

export function append(
  term: Term,
  prev: [Index, Term],
  entries: readonly Entry[] = [],
  commitIndex: Index = 0,
): AppendEntries {
  return { type: 'appendEntries', term, prev: { index: prev[0], term: prev[1] }, entries, commitIndex }
}

export function appended(term: Term, lastLogIndex: Index, features = 1): AppendEntriesResult {
  return { type: 'appendEntriesResult', term, rejected: 0, lastLogIndex, features }
}

export function refused(term: Term, rejected: Index, lastLogIndex: Index, features = 1): AppendEntriesResult {
  return { type: 'appendEntriesResult', term, rejected, lastLogIndex, features }
}

export function installSnapshot(
  term: Term,
  last: [Index, Term],
  configuration = three,
  configurationIndex: Index = 1,
): InstallSnapshot {
  return { type: 'installSnapshot', term, snapshot: snapshotOf(last, configuration, configurationIndex) }
}

export function snapshotOf(
  last: [Index, Term],
  configuration = three,
  configurationIndex: Index = 1,
): SnapshotDescription {
  return { last: { index: last[0], term: last[1] }, configuration, configurationIndex }
}

export function timeoutNow(term: Term, last: [Index, Term]): TimeoutNow {
  return { type: 'timeoutNow', term, last: { index: last[0], term: last[1] } }
}

/** Makes it leader of the next term by the votes of the other voters, and returns what it then sent. */
export function elect(raft: Raft): Taken {
  tick(raft, electionTimeoutTicks)
  settle(raft)
  const voters = raft.configuration.servers.filter(({ id, role }) => id !== raft.id && role === 'voter')
  for (const { id } of voters) receive(raft, id, voteResult(raft.term + 1, true, true))
  settle(raft)
  for (const { id } of voters) if (raft.state === 'candidate') receive(raft, id, voteResult(raft.term, true, false))
  return settle(raft)
}

/** A leader that all others follow up to its last index. */
export function leader(options: ServerOptions = {}): Raft {
  const raft = server(options)
  elect(raft)
  for (const { id, role } of raft.configuration.servers)
    if (id !== raft.id && role !== 'spare') receive(raft, id, appended(raft.term, raft.lastIndex))
  settle(raft)
  return raft
}

// ------------------------------------------------------------------------------------------------ cluster

interface Disk {
  term: Term
  votedFor: ServerId | undefined
  snapshot: SnapshotDescription | undefined
  entries: Entry[]
}

export interface Member {
  readonly id: ServerId
  raft: Raft
  readonly disk: Disk
  readonly applied: Entry[]
  readonly reads: { readonly id: number; readonly index: Index }[]
  readonly outcomes: Outcome[]
  /** The disk takes no writes while true; they wait. */
  isDiskStuck: boolean
  waiting: Ready[]
}

/** Servers over a network that delivers at once and in order, unless it is cut. */
export class Cluster {
  readonly members = new Map<ServerId, Member>()
  readonly cut = new Set<ServerId>()
  readonly #options: Partial<RaftOptions>
  readonly #queue: { readonly from: ServerId; readonly envelope: Envelope }[] = []
  /** Seen before delivery; false loses the message. */
  filter: (from: ServerId, envelope: Envelope) => boolean = () => true

  constructor(configuration: Configuration, options: Partial<RaftOptions> = {}) {
    this.#options = options
    for (const { id } of configuration.servers)
      this.start(id, { term: 1, votedFor: undefined, snapshot: undefined, entries: logOf(configuration) })
  }

  start(id: ServerId, disk: Disk = { term: 0, votedFor: undefined, snapshot: undefined, entries: [] }): Member {
    // Distinct timeouts: the lower id fires first.
    const random = () => Math.min(0.99, (Number(id) - 1) / 6)
    const raft = new Raft({ ...testOptions, random, ...this.#options, id }, { ...disk, entries: [...disk.entries] })
    const member: Member = {
      id,
      raft,
      disk,
      applied: [],
      reads: [],
      outcomes: [],
      isDiskStuck: false,
      waiting: [],
    }
    this.members.set(id, member)
    return member
  }

  restart(id: ServerId): Member {
    return this.start(id, this.get(id).disk)
  }

  get(id: ServerId): Member {
    return this.members.get(id)!
  }
  raft(id: ServerId): Raft {
    return this.get(id).raft
  }
  get leaders(): Raft[] {
    return [...this.members.values()].map(({ raft }) => raft).filter(({ state }) => state === 'leader')
  }
  /** The only leader there is among those that are not cut off. */
  get leader(): Raft {
    const leaders = this.leaders.filter(({ id }) => !this.cut.has(id))
    if (leaders.length !== 1) throw new Error(`${leaders.length} leaders`)
    return leaders[0]!
  }

  step(id: ServerId, event: RaftEvent): Refusal | undefined {
    const refusal = this.raft(id).step(event)
    this.deliver()
    return refusal
  }

  tick(times = 1): void {
    for (let time = 0; time < times; time++) {
      for (const { raft } of this.members.values()) raft.step({ type: 'tick' })
      this.deliver()
    }
  }

  tickUntil(condition: () => boolean, ticksMax = 200): void {
    for (let ticks = 0; !condition(); ticks++) {
      if (ticks >= ticksMax) throw new Error(`nothing happened within ${ticksMax} ticks`)
      this.tick()
    }
  }

  elect(): Raft {
    this.tickUntil(() => this.leaders.filter(({ id }) => !this.cut.has(id)).length === 1)
    this.tick(testOptions.heartbeatTicks)
    return this.leader
  }

  propose(count = 1): void {
    for (let time = 0; time < count; time++) {
      const refusal = propose(this.leader)
      if (refusal !== undefined) throw new Error(refusal)
    }
    this.deliver()
  }

  deliver(): void {
    for (const member of this.members.values()) this.#drain(member)
    for (let next; (next = this.#queue.shift()) !== undefined;) {
      const { from, envelope } = next
      const target = this.members.get(envelope.to)
      if (target === undefined || this.cut.has(from) || this.cut.has(envelope.to)) continue
      if (!this.filter(from, envelope)) continue
      receive(target.raft, from, envelope.message)
      this.#drain(target)
    }
  }

  resumeDisk(id: ServerId): void {
    const member = this.get(id)
    member.isDiskStuck = false
    for (const ready of member.waiting.splice(0)) this.#write(member, ready)
    this.deliver()
  }

  #drain(member: Member): void {
    for (let ready; (ready = member.raft.ready()) !== undefined;) {
      this.#send(member, ready.messages)
      if (member.isDiskStuck) member.waiting.push(ready)
      else this.#write(member, ready)
      member.reads.push(...ready.reads)
      member.outcomes.push(...ready.outcomes)
      member.applied.push(...ready.committed)
      const last = ready.committed.at(-1)
      if (last !== undefined) member.raft.step({ type: 'applied', index: last.index })
    }
  }

  #write(member: Member, ready: Ready): void {
    const { disk, raft } = member
    if (ready.vote !== undefined) Object.assign(disk, ready.vote)
    if (ready.snapshot !== undefined) {
      disk.snapshot = ready.snapshot
      disk.entries = []
      raft.step({ type: 'snapshotInstalled', last: ready.snapshot.last })
    }
    const { truncateAfter } = ready
    if (truncateAfter !== undefined) disk.entries = disk.entries.filter(({ index }) => index <= truncateAfter)
    disk.entries.push(...ready.entries)
    this.#send(member, ready.messagesAfterPersist)
    const last = ready.entries.at(-1)
    if (last !== undefined) raft.step({ type: 'persisted', last: { index: last.index, term: last.term } })
  }

  #send(member: Member, envelopes: readonly Envelope[]): void {
    for (const envelope of envelopes) this.#queue.push({ from: member.id, envelope })
  }
}
