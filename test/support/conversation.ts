/**
 * Plays a cluster by hand: each command is one line, what follows from it is text. Messages wait until they are delivered or
 * dropped; disks and state machines are immediate unless held. The simulation's checkers watch these clusters too.
 * The commands are listed at `commands` below.
 */
import assert from 'node:assert/strict'
import { Raft, type RaftOptions } from '../../lib/raft/raft.js'
import type {
  ConfigurationEntry,
  Entry,
  Message,
  RaftEvent,
  Ready,
  Refusal,
  Role,
  Server,
  ServerId,
} from '../../lib/raft/types.js'
import { Checker } from '../simulation/checkers.js'
import { describeStatus, ModelServer, type Before, type Parcel, type World } from './model-server.js'
import { describeEntry, describeId, describeMessage } from './words.js'

const stabilizeRoundsMax = 1000
const electTicksMax = 400

const defaults = {
  electionTimeoutTicks: 10,
  heartbeatTicks: 1,
  installSnapshotTimeoutTicks: 30,
  maxCatchUpRounds: 10,
  catchUpRoundTimeoutTicks: 50,
  appendEntriesMax: 100,
  appendBytesMax: 4096,
  inflightAppendsMax: 16,
  pipelineEntriesMax: 100,
  pipelineBytesMax: 65536,
  logCacheBytesMax: 65536,
  committedBytesMax: 65536,
  quietTicks: 0,
}

const messageWords: Record<string, Message['type']> = {
  vote: 'requestVote',
  voteResult: 'requestVoteResult',
  append: 'appendEntries',
  appendResult: 'appendEntriesResult',
  snapshot: 'installSnapshot',
  timeoutNow: 'timeoutNow',
}

const voteMessages: Line = { words: ['vote', 'voteResult'], options: new Map() }

interface Line {
  readonly words: readonly string[]
  readonly options: ReadonlyMap<string, string>
}

export class Conversation implements World {
  readonly #servers = new Map<ServerId, ModelServer>()
  readonly #checker = new Checker(this.#servers)
  readonly #randoms = new Map<ServerId, number>()
  readonly #heldDisks = new Set<ServerId>()
  readonly #cut = new Set<string>()
  #options = defaults
  #messages: Parcel[] = []
  #work: (() => void)[] = []
  #output: string[] = []
  #requests = 0

  /** Runs one line and returns what it said. */
  run(text: string): string {
    this.#output = []
    const words: string[] = []
    const options = new Map<string, string>()
    for (const part of text.trim().split(/\s+/)) {
      const [name, value] = part.split('=', 2) as [string, string | undefined]
      if (value === undefined) words.push(name)
      else options.set(name, value)
    }
    const name = words.shift() ?? ''
    const command = commands[name]
    assert(command !== undefined, `no such command: ${name}`)
    command.call(this, { words, options })
    this.#settle()
    return this.#output.join('\n')
  }

  say(line: string): void {
    this.#output.push(line)
  }

  #settle(): void {
    for (let next = this.#work.shift(); next !== undefined; next = this.#work.shift()) next()
  }

  server(word: string | undefined): ModelServer {
    const server = this.#servers.get(BigInt(word ?? 0))
    assert(server !== undefined, `no such server: ${word}`)
    return server
  }

  all(words: readonly string[]): ModelServer[] {
    return words.length === 0 ? [...this.#servers.values()] : words.map((word) => this.server(word))
  }

  create(id: ServerId): ModelServer {
    const options: RaftOptions = {
      ...this.#options,
      id,
      random: () => this.#randoms.get(id) ?? Math.min(0.9, Number(id - 1n) / 10),
    }
    const server = new ModelServer(id, `s${id}`, options, this, (...args) => new Raft(...args))
    this.#servers.set(id, server)
    return server
  }

  /** `cluster 1 2 3+ 4- electionTimeoutTicks=10` */
  cluster({ words, options }: Line): void {
    for (const [name, value] of options) {
      assert(name in defaults, `no such option: ${name}`)
      this.#options = { ...this.#options, [name]: Number(value) }
    }
    const servers = words.map((word): Server => {
      const role: Role = word.endsWith('+') ? 'standby' : word.endsWith('-') ? 'spare' : 'voter'
      const id = BigInt(word.replace(/[+-]$/, ''))
      return { id, address: `s${id}`, role }
    })
    const entry: ConfigurationEntry = {
      type: 'configuration',
      index: 1,
      term: 1,
      byteLength: 8,
      configuration: { servers },
    }
    this.#checker.bootstrap(entry)
    for (const { id } of servers) {
      const server = this.create(id)
      server.disk.apply({ type: 'vote', term: 1, votedFor: undefined })
      server.disk.apply({ type: 'append', entry })
    }
    for (const server of this.#servers.values()) server.start()
  }

  step(server: ModelServer, event: RaftEvent): void {
    const refusal = server.step(event)
    if (refusal !== undefined) this.say(`${server.id} refuses: ${refusal}`)
    this.#settle()
  }

  setRandom(id: ServerId, value: number): void {
    this.#randoms.set(id, value)
  }

  holdDisk(server: ModelServer, isHeld: boolean): void {
    if (isHeld) this.#heldDisks.add(server.id)
    else this.#heldDisks.delete(server.id)
    if (!isHeld && server.disk.queue.length > 0) this.onDiskWork(server)
    this.#settle()
  }

  cut(from: ServerId, to: ServerId): void {
    this.#cut.add(`${from}>${to}`)
  }

  heal(): void {
    this.#cut.clear()
  }

  // ------------------------------------------------------------------------------------------------ messages

  #matches(parcel: Parcel, { words, options }: Line): boolean {
    const from = options.get('from')
    const to = options.get('to')
    const types = words.map((word) => {
      const type = messageWords[word]
      assert(type !== undefined, `no such message: ${word}`)
      return type
    })
    return (
      (from === undefined || BigInt(from) === parcel.from) &&
      (to === undefined || BigInt(to) === parcel.to) &&
      (types.length === 0 || types.includes(parcel.message.type))
    )
  }

  /** Takes those that wait and match, `count` at most. */
  takeMessages(line: Line): Parcel[] {
    const countMax = Number(line.options.get('count') ?? Infinity)
    const taken = this.#messages.filter((parcel) => this.#matches(parcel, line)).slice(0, countMax)
    this.#messages = this.#messages.filter((parcel) => !taken.includes(parcel))
    return taken
  }

  deliver(parcel: Parcel): void {
    const server = this.#servers.get(parcel.to)
    if (server?.isUp !== true) {
      this.say(`${describeParcel(parcel)} (nobody there)`)
      return
    }
    this.say(describeParcel(parcel))
    server.receive(parcel)
    this.#settle()
  }

  stabilize(ids: readonly string[], isQuiet: boolean): void {
    const output = this.#output
    if (isQuiet) this.#output = []
    const among = ids.map((id) => BigInt(id))
    for (let round = 0; ; round++) {
      assert(round < stabilizeRoundsMax, 'the cluster does not become stable')
      const taken = this.#messages.filter(
        ({ from, to }) => among.length === 0 || (among.includes(from) && among.includes(to)),
      )
      if (taken.length === 0) break
      this.#messages = this.#messages.filter((parcel) => !taken.includes(parcel))
      for (const parcel of taken) this.deliver(parcel)
    }
    if (isQuiet) this.#output = output
  }

  /** Ticks everybody who does not lead, this one with the shortest timeout, until it leads. Only votes are delivered. */
  elect(server: ModelServer): void {
    const output = this.#output
    this.#output = []
    for (const { id } of this.#servers.values()) this.#randoms.set(id, id === server.id ? 0 : 0.95)
    for (let ticks = 0; server.raft?.state !== 'leader'; ticks++) {
      assert(ticks < electTicksMax, `server ${server.id} cannot be elected`)
      for (const other of this.#servers.values()) {
        if (other.isUp && other.raft!.state !== 'leader') this.step(other, { type: 'tick' })
      }
      for (let votes = this.takeMessages(voteMessages); votes.length > 0; votes = this.takeMessages(voteMessages)) {
        for (const parcel of votes) this.deliver(parcel)
      }
    }
    this.#randoms.clear()
    this.#output = output
    this.say(`${server.id} leads term ${server.raft.term}`)
  }

  get waiting(): readonly Parcel[] {
    return this.#messages
  }

  send(server: ModelServer, parcel: Parcel): void {
    this.#checker.onSend(server, parcel)
    this.put(parcel)
  }

  /** Into the network, whoever wrote it. */
  put(parcel: Parcel): void {
    if (!this.#cut.has(`${parcel.from}>${parcel.to}`)) this.#messages.push(parcel)
  }

  request(server: ModelServer, event: (request: number) => RaftEvent): void {
    const request = ++this.#requests
    this.#checker.onRequest(server, request)
    this.step(server, event(request))
  }

  read(server: ModelServer): void {
    const id = ++this.#requests
    this.#checker.onRead(server, id)
    this.step(server, { type: 'readIndex', id })
  }

  crash(server: ModelServer, kept: number): void {
    server.crash(kept)
    this.#checker.onCrash(server)
  }

  // ------------------------------------------------------------------------------------------------ World

  onUnreachable(server: ModelServer, to: ServerId): void {
    this.#work.push(() => {
      server.step({ type: 'unreachable', to })
    })
  }

  onDiskWork(server: ModelServer): void {
    if (this.#heldDisks.has(server.id)) return
    this.#work.push(() => {
      if (server.isUp && server.disk.queue.length > 0) server.completeDisk(server.disk.queue.length)
    })
  }

  onApplyWork(server: ModelServer): void {
    this.#work.push(() => {
      if (server.isUp) server.applyAll()
    })
  }

  onStart(server: ModelServer): void {
    this.#checker.onStart(server)
    if (server.raft?.state === 'leader') this.say(`${server.id} is leader in term ${server.raft.term}`)
  }

  onStepped(server: ModelServer, event: RaftEvent, before: Before, refusal: Refusal | undefined): void {
    const { raft } = server
    if (raft !== undefined && (raft.state !== before.state || raft.term !== before.term)) {
      this.say(`  ${server.id} is ${raft.state} in term ${raft.term}`)
    }
    this.#checker.onStepped(server, event, before, refusal)
  }

  onReady(server: ModelServer, ready: Ready): void {
    this.#checker.onReady(server, ready)
    const parts: string[] = []
    if (ready.vote !== undefined) parts.push(`term ${ready.vote.term} vote ${ready.vote.votedFor ?? '-'}`)
    if (ready.snapshot !== undefined) parts.push(`snapshot ${ready.snapshot.last.index}`)
    if (ready.truncateAfter !== undefined) parts.push(`truncate after ${ready.truncateAfter}`)
    if (ready.entries.length > 0) parts.push(ready.entries.map(describeEntry).join(', '))
    if (parts.length > 0) this.say(`  ${server.id} stores ${parts.join('; ')}`)
    for (const { id, index } of ready.reads) this.say(`  ${server.id} answers read ${id}: ${index}`)
    for (const { request, result } of ready.outcomes) this.say(`  ${server.id} ends request ${request}: ${result}`)
  }

  onPumped(server: ModelServer): void {
    this.#checker.onPumped(server)
  }

  onDurable(server: ModelServer): void {
    this.#checker.onDurable(server)
  }

  onApplied(server: ModelServer, entry: Entry): void {
    this.#checker.onApplied(server, entry, server.machine)
    this.say(`  ${server.id} applies ${describeEntry(entry)}`)
  }
}

const describeParcel = ({ from, to, message }: Parcel) => `${from} > ${to} ${describeMessage(message)}`

const isRole = (word: string | undefined): word is Role => word === 'voter' || word === 'standby' || word === 'spare'

/**
 * cluster 1 2 3+ 4- option=n   start these servers: voters, standbys (+), spares (-), all born with the first entry
 * join 5                       start a server with an empty disk
 * tick 1 2 count=n             let time pass for these servers (all of them by default), in turn
 * random 1 0.5                 what the server's chance says from now on
 * elect 1                      let time pass and votes flow until this server leads
 * propose 1 a b                two commands to server 1
 * change 1 add 4 | assign 4 voter | remove 4
 * transfer 1 2 | transfer 1    leadership from 1 to 2, or to anybody
 * read 1                       ask for a read index
 * snapshot 1 trailing=n
 * messages                     what is on its way
 * deliver append from=1 to=2 count=n    (all filters optional; types: vote voteResult append appendResult snapshot timeoutNow)
 * drop …, duplicate …          the same filters
 * inject 2 1 appendResult term=2 last=5 rejected=0     a message nobody has written
 * stabilize 1 2 quiet          deliver until nothing waits (among these), perhaps without telling
 * unreachable 1 2              tell 1 that 2 cannot be reached
 * partition 1 2 | 3            no messages between the sides; `heal`
 * crash 1 kept=n | restart 1   `kept`: how many unfinished disk operations survive
 * hold-disk 1 | release-disk 1 | persist 1 count=n | fail-disk 1 stored=n
 * status 1 | log 1 | disk 1 | progress 1
 */
const commands: Record<string, ((this: Conversation, line: Line) => void) | undefined> = {
  cluster(line) {
    this.cluster(line)
  },
  join({ words }) {
    for (const word of words) this.create(BigInt(word)).start()
  },
  tick({ words, options }) {
    for (let count = Number(options.get('count') ?? 1); count > 0; count--) {
      for (const server of this.all(words)) if (server.isUp) this.step(server, { type: 'tick' })
    }
  },
  random({ words: [id, value] }) {
    this.setRandom(this.server(id).id, Number(value))
  },
  elect({ words: [id] }) {
    this.elect(this.server(id))
  },
  propose({ words: [id, ...texts] }) {
    const entries = texts.map((text) => ({
      type: 'command' as const,
      data: new TextEncoder().encode(text.padEnd(Math.ceil(text.length / 8) * 8)),
    }))
    this.step(this.server(id), { type: 'propose', entries })
  },
  change({ words: [at, what, word, role] }) {
    const id = BigInt(word ?? 0)
    this.request(this.server(at), (request) => {
      if (what === 'add') return { type: 'change', request, change: { type: 'add', id, address: `s${id}` } }
      if (what === 'remove') return { type: 'change', request, change: { type: 'remove', id } }
      assert(what === 'assign' && isRole(role), 'change add, assign or remove')
      return { type: 'change', request, change: { type: 'assign', id, role } }
    })
  },
  transfer({ words: [at, to] }) {
    this.request(this.server(at), (request) => ({
      type: 'transfer',
      request,
      to: to === undefined ? undefined : BigInt(to),
    }))
  },
  read({ words }) {
    for (const server of this.all(words)) this.read(server)
  },
  snapshot({ words: [id], options }) {
    const server = this.server(id)
    const snapshot = server.beginSnapshot()
    assert(snapshot !== undefined, 'nothing to take a snapshot of')
    server.finishSnapshot(snapshot, Number(options.get('trailing') ?? 0))
    this.say(`${server.id} has a snapshot at ${describeId(snapshot.description.last)}`)
  },
  messages() {
    for (const parcel of this.waiting) this.say(describeParcel(parcel))
  },
  deliver(line) {
    for (const parcel of this.takeMessages(line)) this.deliver(parcel)
  },
  drop(line) {
    for (const parcel of this.takeMessages(line)) this.say(`${describeParcel(parcel)} (lost)`)
  },
  duplicate(line) {
    for (const parcel of this.takeMessages(line)) {
      this.put(parcel)
      this.deliver(parcel)
    }
  },
  inject({ words: [from, to, type], options }) {
    const field = (name: string) => Number(options.get(name) ?? 0)
    const term = field('term')
    const last = { index: field('last'), term: field('lastTerm') }
    const isPreVote = options.get('preVote') === '1'
    const marked = options.get('preVote') === 'unsaid' ? undefined : isPreVote
    const messages: Record<string, Message | undefined> = {
      vote: { type: 'requestVote', term, last, disruptLeader: options.get('disrupt') === '1', preVote: isPreVote },
      voteResult: { type: 'requestVoteResult', term, granted: options.get('granted') === '1', preVote: marked },
      appendResult: {
        type: 'appendEntriesResult',
        term,
        rejected: field('rejected'),
        lastLogIndex: last.index,
        features: 0,
      },
      append: {
        type: 'appendEntries',
        term,
        prev: { index: field('prev'), term: field('prevTerm') },
        commitIndex: field('commit'),
        entries: [],
      },
      timeoutNow: { type: 'timeoutNow', term, last },
    }
    const message = messages[type ?? '']
    assert(message !== undefined, `cannot inject: ${type}`)
    const parcel = { from: BigInt(from ?? 0), fromAddress: `s${from}`, to: BigInt(to ?? 0), address: `s${to}` }
    this.deliver({ ...parcel, message, content: undefined })
  },
  stabilize({ words }) {
    this.stabilize(
      words.filter((word) => word !== 'quiet'),
      words.includes('quiet'),
    )
  },
  unreachable({ words: [at, to] }) {
    this.step(this.server(at), { type: 'unreachable', to: BigInt(to ?? 0) })
  },
  partition({ words }) {
    const middle = words.indexOf('|')
    for (const one of words.slice(0, middle)) {
      for (const other of words.slice(middle + 1)) {
        this.cut(BigInt(one), BigInt(other))
        this.cut(BigInt(other), BigInt(one))
      }
    }
  },
  heal() {
    this.heal()
  },
  crash({ words: [id], options }) {
    this.crash(this.server(id), Number(options.get('kept') ?? 0))
  },
  restart({ words: [id] }) {
    this.server(id).start()
  },
  'hold-disk'({ words }) {
    for (const server of this.all(words)) this.holdDisk(server, true)
  },
  'release-disk'({ words }) {
    for (const server of this.all(words)) this.holdDisk(server, false)
  },
  persist({ words: [id], options }) {
    const server = this.server(id)
    server.completeDisk(Number(options.get('count') ?? server.disk.queue.length))
  },
  'fail-disk'({ words: [id], options }) {
    assert(this.server(id).failDisk(Number(options.get('stored') ?? 0)), 'no entries are being written')
  },
  status({ words }) {
    for (const server of this.all(words)) this.say(describeStatus(server))
  },
  log({ words }) {
    for (const { id, mirror, mirrorBase } of this.all(words)) {
      const base = mirrorBase.index === 0 ? '' : `(..${describeId(mirrorBase)}) `
      this.say(`${id}: ${base}${mirror.map(describeEntry).join(', ')}`)
    }
  },
  disk({ words }) {
    for (const { id, disk } of this.all(words)) {
      const snapshot = disk.newestSnapshot
      const parts = [`term ${disk.term} vote ${disk.votedFor ?? '-'}`]
      if (snapshot !== undefined) parts.push(`snapshot ${describeId(snapshot.description.last)}`)
      parts.push(disk.entries.map(describeEntry).join(', '))
      this.say(`${id} disk: ${parts.join('; ')}`)
    }
  },
  progress({ words: [id] }) {
    for (const { id: peer, matchIndex, nextIndex, state } of this.server(id).raft?.progress() ?? []) {
      this.say(`${peer} ${state} match=${matchIndex} next=${nextIndex}`)
    }
  },
}
