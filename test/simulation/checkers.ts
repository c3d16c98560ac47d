/**
 * What must hold at every moment in a cluster, looked at from outside after every event: the safety properties of
 * figure 3.2 of the dissertation, durability of what is promised, and the core's own limits. Sees all disks and all logs at
 * once, which no member can. Knows nothing of how the core works; a violation throws.
 */
import type {
  Configuration,
  Entry,
  EntryId,
  Index,
  RaftEvent,
  Ready,
  Refusal,
  ServerId,
  Term,
} from '../../lib/raft/types.js'
import {
  chainOf,
  fingerprintOf,
  type Before,
  type Machine,
  type ModelServer,
  type Parcel,
} from '../support/model-server.js'

export class Violation extends Error {
  override readonly name = 'Violation'
}

function check(holds: boolean, text: () => string): asserts holds {
  if (!holds) throw new Violation(text())
}

interface KnownEntry {
  readonly fingerprint: number
  readonly prevTerm: Term
}

interface CommittedEntry {
  readonly term: Term
  readonly fingerprint: number
  /** The term of the leader that committed it (dissertation §3.6.3 speaks of leaders of later terms). */
  readonly committedIn: Term
  readonly chain: number
  readonly entry: Entry
}

/** What happened, so that a test can see that the simulation is not idle. */
export interface Counts {
  elections: number
  commits: number
  applied: number
  truncations: number
  snapshotsInstalled: number
  snapshotsTaken: number
  reads: number
  changes: number
  promotions: number
  transfers: number
  persistFailures: number
  crashes: number
  tornCrashes: number
  evictedEntries: number
  unreachable: number
  events: number
}

export const noCounts = (): Counts => ({
  elections: 0,
  commits: 0,
  applied: 0,
  truncations: 0,
  snapshotsInstalled: 0,
  snapshotsTaken: 0,
  reads: 0,
  changes: 0,
  promotions: 0,
  transfers: 0,
  persistFailures: 0,
  crashes: 0,
  tornCrashes: 0,
  evictedEntries: 0,
  unreachable: 0,
  events: 0,
})

export function addCounts(totals: Counts, counts: Counts): void {
  for (const name of Object.keys(totals) as (keyof Counts)[]) totals[name] += counts[name]
}

const entryKey = (index: Index, term: Term) => index * 2 ** 20 + term
const voters = ({ servers }: Configuration) => servers.filter(({ role }) => role === 'voter')
const describe = ({ index, term }: EntryId) => `${index}/t${term}`

export class Checker {
  readonly counts = noCounts()
  /** By index − 1: what some leader has committed. */
  readonly committed: CommittedEntry[] = []
  readonly #servers: ReadonlyMap<ServerId, ModelServer>
  readonly #leaders = new Map<Term, ServerId>()
  readonly #known = new Map<number, KnownEntry>()
  /** By server: seen on its disk, and with it everything before. */
  readonly #learned = new Map<ServerId, WeakSet<Entry>>()
  /** Candidate a server has given its vote to, by term: as a message, and on disk. */
  readonly #votesSent = new Map<string, ServerId>()
  readonly #votesDurable = new Map<string, ServerId>()
  readonly #reads = new Map<number, { readonly server: ServerId; readonly least: Index }>()
  readonly #requests = new Map<number, ServerId>()

  constructor(servers: ReadonlyMap<ServerId, ModelServer>) {
    this.#servers = servers
  }

  get commitIndex(): Index {
    return this.committed.length
  }

  committedTermAt(index: Index): Term | undefined {
    return index === 0 ? 0 : this.committed[index - 1]?.term
  }

  /** The first entry, which all initial members are born with. */
  bootstrap(entry: Entry): void {
    this.#learn(entry, 0)
    this.#commit(entry, 1)
  }

  // ------------------------------------------------------------------------------------------------ the log

  /** Log matching (§3.5): index and term name one entry and everything before it. */
  #learn(entry: Entry, prevTerm: Term): void {
    const key = entryKey(entry.index, entry.term)
    const known = this.#known.get(key)
    if (known === undefined) {
      this.#known.set(key, { fingerprint: fingerprintOf(entry), prevTerm })
      return
    }
    check(
      known.fingerprint === fingerprintOf(entry) && known.prevTerm === prevTerm,
      () => `log matching: two different entries ${describe(entry)}, or two histories before it`,
    )
  }

  #commit(entry: Entry, committedIn: Term): void {
    const { index, term } = entry
    const chain = chainOf(this.committed[index - 2]?.chain ?? 0, entry)
    this.committed.push({ term, fingerprint: fingerprintOf(entry), committedIn, chain, entry })
    this.counts.commits++
  }

  onReady(server: ModelServer, ready: Ready): void {
    const { raft } = server
    const name = `server ${server.id}`
    if (ready.snapshot !== undefined) {
      const { last, configuration, configurationIndex } = ready.snapshot
      check(this.committedTermAt(last.index) === last.term, () => `${name} installs a snapshot of uncommitted entries`)
      check(
        sameConfiguration(this.#configurationAt(last.index), { configuration, configurationIndex }),
        () => `${name} installs a snapshot with a wrong configuration`,
      )
      this.#forgets(server, last.index)
      this.counts.snapshotsInstalled++
    }
    if (ready.truncateAfter !== undefined) {
      check(ready.truncateAfter >= 0, () => `${name} truncates after ${ready.truncateAfter}`)
      this.#forgets(server, ready.truncateAfter)
      this.counts.truncations++
    }
    let prevTerm = server.mirrorTermAt(Math.min(ready.truncateAfter ?? Infinity, server.mirrorLast))
    let last = Math.min(ready.truncateAfter ?? Infinity, server.mirrorLast)
    for (const entry of ready.entries) {
      check(prevTerm !== undefined && entry.index === last + 1, () => `${name} stores ${describe(entry)} after ${last}`)
      check(entry.term >= prevTerm, () => `${name} stores ${describe(entry)} after an entry of term ${prevTerm}`)
      if (entry.type === 'configuration') this.#checkConfigurationStep(server, entry.index, entry.configuration, ready)
      prevTerm = entry.term
      last = entry.index
    }
    let committedBytes = 0
    for (const entry of ready.committed) {
      const known = this.committed[entry.index - 1]
      check(known !== undefined, () => `${name} applies ${describe(entry)}, which nobody has committed`)
      check(known.term === entry.term, () => `${name} applies ${describe(entry)}, committed is term ${known.term}`)
      committedBytes += entry.byteLength
      if (entry.type === 'command' && entry.data === undefined) this.counts.evictedEntries++
    }
    check(
      ready.committed.length <= 1 || committedBytes <= server.options.committedBytesMax,
      () => `${name} hands out ${committedBytes} committed bytes at once`,
    )
    for (const { id, index } of ready.reads) {
      const read = this.#reads.get(id)
      check(read?.server === server.id, () => `${name} answers read ${id}, which it was not asked or has answered`)
      check(
        index >= read.least,
        () => `${name} answers read ${id} with ${index}; ${read.least} was committed before it`,
      )
      check(index <= this.commitIndex, () => `${name} answers read ${id} with ${index}, which is not committed`)
      this.#reads.delete(id)
      this.counts.reads++
    }
    for (const { request, result } of ready.outcomes) {
      check(this.#requests.get(request) === server.id, () => `${name} ends request ${request} twice, or never got it`)
      this.#requests.delete(request)
      if (result === 'done') this.counts.changes++
    }
    check(raft !== undefined, () => `${name} is down and speaks`)
  }

  /** Entries above `index` leave the log of this server: none of them may be committed (§3.6.3). */
  #forgets(server: ModelServer, index: Index): void {
    for (let at = Math.max(index, server.mirrorBase.index) + 1; at <= server.mirrorLast; at++) {
      check(
        this.committed[at - 1]?.term !== server.mirrorTermAt(at) || this.committed[at - 1] === undefined,
        () => `server ${server.id} forgets the committed entry ${at}/t${server.mirrorTermAt(at)}`,
      )
    }
  }

  #configurationAt(index: Index): { configuration: Configuration; configurationIndex: Index } {
    for (let at = index; at > 0; at--) {
      const entry = this.committed[at - 1]?.entry
      if (entry?.type === 'configuration') return { configuration: entry.configuration, configurationIndex: at }
    }
    return { configuration: { servers: [] }, configurationIndex: 0 }
  }

  /** §4.1: one voter at a time, on top of a committed configuration, and only after the leader's own barrier. */
  #checkConfigurationStep(server: ModelServer, index: Index, next: Configuration, ready: Ready): void {
    const { raft } = server
    if (raft?.state !== 'leader' || ready.entries.find((entry) => entry.index === index)?.term !== raft.term) return
    const cut = ready.truncateAfter ?? server.mirrorLast
    let previous = ready.entries.findLast((entry) => entry.index < index && entry.type === 'configuration')
    for (let at = cut; previous === undefined && at > server.mirrorBase.index; at--) {
      const entry = server.mirrorAt(at)
      if (entry?.type === 'configuration') previous = entry
    }
    if (previous?.type === 'configuration') {
      const { index: previousIndex, configuration } = previous
      check(
        this.committedTermAt(previousIndex) === previous.term,
        () =>
          `server ${server.id} changes the configuration at ${index} before the one at ${previousIndex} is committed`,
      )
      const before = new Set(voters(configuration).map(({ id }) => id))
      const after = new Set(voters(next).map(({ id }) => id))
      const changed =
        [...before].filter((id) => !after.has(id)).length + [...after].filter((id) => !before.has(id)).length
      if (after.size > before.size) this.counts.promotions++
      check(changed <= 1, () => `server ${server.id} changes ${changed} voters at once`)
    }
    check(
      this.committed.at(-1)?.committedIn === raft.term && raft.hasCommittedInTerm,
      () => `server ${server.id} changes the configuration in term ${raft.term} before its barrier is committed`,
    )
  }

  // ------------------------------------------------------------------------------------------------ steps

  onStart(server: ModelServer): void {
    const { raft } = server
    if (raft === undefined) return
    check(raft.term >= server.disk.term, () => `server ${server.id} starts in a term before the stored one`)
    this.#afterStep(server, { state: 'follower', term: 0, commitIndex: 0, lastIndex: 0 })
  }

  onStepped(server: ModelServer, event: RaftEvent, before: Before, refusal: Refusal | undefined): void {
    const { raft } = server
    this.counts.events++
    if (raft === undefined) return
    if (refusal !== undefined) {
      check(
        raft.lastIndex === before.lastIndex && raft.state === before.state && raft.commitIndex === before.commitIndex,
        () => `server ${server.id} refused ${event.type} (${refusal}) but has changed`,
      )
    }
    this.#afterStep(server, before)
    if (event.type === 'propose' && refusal === undefined) {
      check(
        raft.lastIndex === before.lastIndex + event.entries.length,
        () =>
          `server ${server.id} took ${event.entries.length} proposals and its log went from ${before.lastIndex} to ${raft.lastIndex}`,
      )
      const uncommitted = before.lastIndex - before.commitIndex
      const { pipelineEntriesMax } = server.options
      check(
        uncommitted < pipelineEntriesMax || event.entries.every(({ type }) => type === 'barrier'),
        () =>
          `server ${server.id} takes commands with ${uncommitted} uncommitted entries, the limit is ${pipelineEntriesMax}`,
      )
    }
  }

  #afterStep(server: ModelServer, before: Before): void {
    const raft = server.raft!
    const name = `server ${server.id}`
    check(raft.term >= before.term, () => `${name}: the term went back from ${before.term} to ${raft.term}`)
    check(
      raft.commitIndex >= before.commitIndex,
      () => `${name}: the commit index went back from ${before.commitIndex} to ${raft.commitIndex}`,
    )
    check(raft.lastApplied <= raft.commitIndex, () => `${name}: lastApplied ${raft.lastApplied} > ${raft.commitIndex}`)
    check(
      raft.lastPersisted <= raft.lastIndex,
      () => `${name}: lastPersisted ${raft.lastPersisted} > lastIndex ${raft.lastIndex}`,
    )
    if (raft.state === 'leader') {
      if (before.state !== 'leader' || raft.term !== before.term) this.#checkElected(server)
    }
    // A leader may commit its own removal and step down in one step (§4.2.2).
    const isLeaders = raft.state === 'leader' || (before.state === 'leader' && raft.term === before.term)
    if (isLeaders && raft.commitIndex > before.commitIndex) this.#checkLeaderCommit(server)
  }

  #checkElected(server: ModelServer): void {
    const raft = server.raft!
    const { term } = raft
    const other = this.#leaders.get(term)
    check(other === undefined || other === server.id, () => `two leaders in term ${term}: ${other} and ${server.id}`)
    this.#leaders.set(term, server.id)
    this.counts.elections++
    // §3.4: a majority has voted, and will not forget it.
    const electors = voters(raft.configuration)
    const votes = electors.filter(({ id }) => this.#votesDurable.get(`${id}/${term}`) === server.id).length
    const alone = electors.length === 1 && electors[0]!.id === server.id
    check(
      alone || votes > electors.length / 2,
      () => `server ${server.id} leads term ${term} with ${votes} durable votes of ${electors.length}`,
    )
    // §3.6.3: leader completeness.
    for (let index = this.commitIndex; index > 0; index--) {
      const entry = this.committed[index - 1]!
      if (entry.committedIn >= term) continue
      const has = index <= server.mirrorBase.index || raft.termAt(index) === entry.term
      check(has, () => `leader completeness: server ${server.id} leads term ${term} without ${index}/t${entry.term}`)
      break
    }
  }

  /** §3.6.2, §10.2.1: an entry of the own term on the disks of a majority of voters, and with it all before it. */
  #checkLeaderCommit(server: ModelServer): void {
    const raft = server.raft!
    const index = raft.commitIndex
    if (index <= this.commitIndex) {
      this.#checkKnowsCommitted(server, index)
      return
    }
    const term = raft.termAt(index)
    const electors = voters(raft.configuration)
    // raft-wire §6.3: the only voter may commit all that it has stored when it starts; no other majority can differ.
    const isAlone = electors.length === 1 && electors[0]!.id === server.id
    check(
      term !== undefined && (term === raft.term || isAlone),
      () => `server ${server.id} commits ${index}/t${term} in term ${raft.term} by counting (dissertation §3.6.2)`,
    )
    const holders = electors.filter(({ id }) => this.#servers.get(id)?.disk.holds({ index, term }) === true)
    check(
      holders.length > electors.length / 2,
      () =>
        `server ${server.id} commits ${index}/t${term}, durable only on [${holders.map(({ id }) => id).join(' ')}] of [${electors.map(({ id }) => id).join(' ')}]`,
    )
    this.#checkKnowsCommitted(server, this.commitIndex)
    for (let at = this.commitIndex + 1; at <= index; at++) {
      const entry = server.mirrorAt(at)
      check(entry !== undefined, () => `server ${server.id} commits ${at} before it has given it to the disk`)
      this.#commit(entry, raft.term)
    }
  }

  #checkKnowsCommitted(server: ModelServer, index: Index): void {
    if (index <= server.mirrorBase.index) return
    const committed = this.committed[index - 1]
    check(committed !== undefined, () => `server ${server.id} says ${index} is committed; no leader has committed it`)
    const term = server.mirrorTermAt(index)
    check(
      term === committed.term,
      () => `server ${server.id} says ${index}/t${term} is committed; committed is ${index}/t${committed.term}`,
    )
  }

  onPumped(server: ModelServer): void {
    const raft = server.raft!
    const name = `server ${server.id}`
    if (raft.installingSnapshot === undefined) {
      this.#checkMemory(server)
      check(
        raft.lastIndex === server.mirrorLast,
        () => `${name}: lastIndex is ${raft.lastIndex}, what the disk was given ends at ${server.mirrorLast}`,
      )
      const term = server.mirrorTermAt(raft.lastIndex)
      check(
        raft.lastIndex === 0 || raft.termAt(raft.lastIndex) === term,
        () => `${name}: another term at the log's end`,
      )
      check(raft.commitIndex <= raft.lastIndex, () => `${name}: commitIndex ${raft.commitIndex} > ${raft.lastIndex}`)
      this.#checkKnowsCommitted(server, raft.commitIndex)
      const persisted = raft.lastPersisted
      if (persisted > 0) {
        const persistedTerm = raft.termAt(persisted)
        check(
          persistedTerm === undefined || server.disk.holds({ index: persisted, term: persistedTerm }),
          () => `${name}: lastPersisted is ${persisted}/t${persistedTerm}, the disk does not hold it`,
        )
      }
    }
    const { leader } = raft
    if (leader !== undefined) {
      check(
        this.#leaders.get(raft.term) === leader.id,
        () => `${name} follows ${leader.id} in term ${raft.term}, whose leader is ${this.#leaders.get(raft.term)}`,
      )
    }
  }

  /** Beyond the cache only what is not yet applied and stored keeps its data. */
  #checkMemory(server: ModelServer): void {
    const { cachedBytes, lastApplied, lastPersisted } = server.raft!
    let bytesMax = server.options.logCacheBytesMax
    if (cachedBytes <= bytesMax) return
    for (
      let at = server.mirrorLast;
      at > Math.max(server.mirrorBase.index, Math.min(lastApplied, lastPersisted));
      at--
    ) {
      bytesMax += server.mirrorAt(at)!.byteLength
    }
    check(cachedBytes <= bytesMax, () => `server ${server.id} holds ${cachedBytes} bytes of commands, not ${bytesMax}`)
  }

  onApplied(server: ModelServer, entry: Entry, machine: Machine): void {
    this.counts.applied++
    const committed = this.committed[entry.index - 1]
    check(
      committed?.chain === machine.chain,
      () => `server ${server.id}: the state after applying ${describe(entry)} is not everybody's`,
    )
  }

  // ------------------------------------------------------------------------------------------------ promises

  onDurable(server: ModelServer): void {
    const { term, votedFor, firstIndex, entries } = server.disk
    if (votedFor !== undefined) {
      const key = `${server.id}/${term}`
      const before = this.#votesDurable.get(key)
      check(
        before === undefined || before === votedFor,
        () => `server ${server.id} has voted for ${before} and for ${votedFor} in term ${term}`,
      )
      this.#votesDurable.set(key, votedFor)
    }
    const learned = this.#learned.get(server.id) ?? new WeakSet()
    this.#learned.set(server.id, learned)
    if (server.isDiskSuspect) return
    // Entries that neither a disk nor a message has may be forgotten and their place used again.
    for (let at = entries.length - 1; at >= 0; at--) {
      const entry = entries[at]!
      const prevTerm = server.disk.termAt(entry.index - 1) ?? (entry.index === 1 ? 0 : undefined)
      if (prevTerm === undefined || learned.has(entry)) break
      learned.add(entry)
      this.#learn(entry, prevTerm)
    }
    check(entries.length === 0 || entries[0]!.index === firstIndex, () => `server ${server.id}: a shifted log on disk`)
  }

  /** What leaves a server as a promise must be true on its disk at this moment (§3.8). */
  onSend(server: ModelServer, { to, message }: Parcel): void {
    const { disk, options } = server
    const name = `server ${server.id}`
    switch (message.type) {
      case 'requestVoteResult': {
        if (!message.granted || message.preVote === true) return
        check(
          disk.term > message.term || (disk.term === message.term && disk.votedFor === to),
          () => `${name} votes for ${to} in term ${message.term}; its disk says ${disk.votedFor} in term ${disk.term}`,
        )
        const key = `${server.id}/${message.term}`
        const before = this.#votesSent.get(key)
        check(
          before === undefined || before === to,
          () => `${name} votes for ${before} and ${to} in term ${message.term}`,
        )
        this.#votesSent.set(key, to)
        return
      }
      case 'appendEntriesResult': {
        if (message.rejected !== 0) return
        const last = message.lastLogIndex
        // The stored term may be older: what can be committed in this term is an entry of this term, and those are stored
        // behind the term itself.
        check(
          (disk.termAt(last) ?? 0) <= disk.term,
          () => `${name} acknowledges ${last}/t${disk.termAt(last)}, its stored term is ${disk.term}`,
        )
        check(
          last <= disk.lastIndex || last <= (disk.newestSnapshot?.description.last.index ?? 0),
          () => `${name} acknowledges ${last}, its disk ends at ${disk.lastIndex}`,
        )
        // raft-wire §6.4: never more than what was compared with the leader's log.
        const leader = this.#servers.get(this.#leaders.get(message.term) ?? 0n)
        if (leader?.raft?.state === 'leader' && leader.raft.term === message.term && leader.id === to) {
          const theirs = leader.mirrorTermAt(last)
          const ours = disk.termAt(last)
          check(
            theirs === undefined || ours === undefined || theirs === ours,
            () => `${name} acknowledges ${last}/t${ours}; its leader has ${last}/t${theirs}`,
          )
        }
        return
      }
      case 'appendEntries': {
        const { entries, prev } = message
        let prevTerm = prev.term
        let index = prev.index
        for (const entry of entries) {
          check(entry.index === ++index, () => `${name} sends ${describe(entry)} in the place of ${index}`)
          this.#learn(entry, prevTerm)
          prevTerm = entry.term
        }
        check(
          entries.length <= options.appendEntriesMax,
          () => `${name} sends ${entries.length} entries at once, the limit is ${options.appendEntriesMax}`,
        )
        const bytes = entries.reduce((sum, entry) => sum + entry.byteLength, 0)
        check(
          entries.length <= 1 || bytes <= options.appendBytesMax,
          () => `${name} sends ${bytes} bytes at once, the limit is ${options.appendBytesMax}`,
        )
        check(
          this.#leaders.get(message.term) === server.id,
          () => `${name} sends entries in term ${message.term}, which it does not lead`,
        )
        check(
          message.commitIndex <= this.commitIndex,
          () => `${name} tells commit index ${message.commitIndex}, only ${this.commitIndex} is committed`,
        )
        return
      }
      case 'installSnapshot': {
        const { last } = message.snapshot
        check(this.committedTermAt(last.index) === last.term, () => `${name} sends a snapshot of uncommitted entries`)
        return
      }
      case 'requestVote':
      case 'timeoutNow':
        return
    }
  }

  // ------------------------------------------------------------------------------------------------ requests

  onRead(server: ModelServer, id: number): void {
    this.#reads.set(id, { server: server.id, least: this.commitIndex })
  }

  onReadRefused(id: number): void {
    this.#reads.delete(id)
  }

  onRequest(server: ModelServer, request: number): void {
    this.#requests.set(request, server.id)
  }

  onRequestRefused(request: number): void {
    this.#requests.delete(request)
  }

  /** A server that is gone answers no reads and ends no requests. */
  onCrash(server: ModelServer): void {
    for (const [id, read] of this.#reads) if (read.server === server.id) this.#reads.delete(id)
    for (const [request, owner] of this.#requests) if (owner === server.id) this.#requests.delete(request)
  }

  isReadOpen(id: number): boolean {
    return this.#reads.has(id)
  }

  get openRequests(): readonly number[] {
    return [...this.#requests.keys()]
  }
}

function sameConfiguration(
  a: { configuration: Configuration; configurationIndex: Index },
  b: { configuration: Configuration; configurationIndex: Index },
): boolean {
  const text = ({ servers }: Configuration) => servers.map(({ id, address, role }) => `${id}@${address}:${role}`).join()
  return a.configurationIndex === b.configurationIndex && text(a.configuration) === text(b.configuration)
}
