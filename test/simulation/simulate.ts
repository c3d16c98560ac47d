/**
 * A whole cluster of Raft cores in one thread, on a virtual clock, driven by one number. First the safety phase: messages are
 * lost, doubled, delayed and cut off, servers crash with half-written disks, stall, join, leave and change roles, while
 * the checkers look at everything after every event. Then the liveness phase: all faults stop, a minority may stay down,
 * and the rest must elect a leader, commit, converge and keep that leader.
 *
 * Not simulated: wrong bytes (codec and storage tests do that), Byzantine members, two servers with one disk.
 */
import type { RaftOptions } from '../../lib/raft/raft.js'
import { Raft } from '../../lib/raft/raft.js'
import type {
  Configuration,
  ConfigurationEntry,
  Entry,
  Message,
  Proposal,
  RaftEvent,
  Ready,
  Refusal,
  Role,
  ServerId,
} from '../../lib/raft/types.js'
import {
  describeStatus,
  ModelServer,
  type Before,
  type Parcel,
  type RaftFactory,
  type World,
} from '../support/model-server.js'
import { Random } from '../support/random.js'
import { describeConfiguration, describeEntry, describeMessage } from '../support/words.js'
import { Agenda } from './agenda.js'
import { Checker, Violation, type Counts } from './checkers.js'
import { calm, drawSwarm, stepsPerTick, type Swarm } from './swarm.js'

export interface SimulateOptions {
  readonly seed: number
  /** Overrides what the seed draws. */
  readonly swarm?: (drawn: Swarm) => Swarm
  readonly createRaft?: RaftFactory
  readonly trace?: (line: string) => void
}

export interface SimulationResult {
  readonly seed: number
  readonly counts: Counts
}

/** Carries the seed, so that whoever sees it can replay it. */
export class SimulationFailure extends Error {
  override readonly name = 'SimulationFailure'
  readonly seed: number

  constructor(seed: number, timeTicks: number, cause: unknown) {
    const text = cause instanceof Error ? cause.message : String(cause)
    super(`seed ${seed}, tick ${timeTicks.toFixed(1)}: ${text}`, { cause })
    this.seed = seed
  }
}

export function simulate(options: SimulateOptions): SimulationResult {
  const cluster = new Cluster(options)
  try {
    cluster.run()
  } catch (cause) {
    throw new SimulationFailure(options.seed, cluster.nowTicks, cause)
  }
  return { seed: options.seed, counts: cluster.checker.counts }
}

/** What the world knows about a server beside the server itself. */
interface Host {
  readonly server: ModelServer
  readonly isCLike: boolean
  readonly tickSteps: number
  readonly random: Random
  /** Grows with every start and crash: tasks of an earlier life do nothing. */
  life: number
  /** While paused: what it has missed, in order. */
  missed: (() => void)[] | undefined
  isDiskScheduled: boolean
  isApplyScheduled: boolean
  isAnsweringSnapshot: boolean
}

const serversMax = 9
const tasksPerTickMax = 20_000

class Cluster implements World {
  readonly checker: Checker
  readonly #swarmDrawn: Swarm
  #swarm: Swarm
  readonly #agenda = new Agenda()
  readonly #random: Random
  readonly #network: Random
  readonly #hosts = new Map<ServerId, Host>()
  readonly #servers = new Map<ServerId, ModelServer>()
  readonly #byAddress = new Map<string, ModelServer>()
  readonly #cut = new Set<string>()
  readonly #lastDelivery = new Map<string, number>()
  readonly #trace: ((line: string) => void) | undefined
  readonly #createRaft: RaftFactory
  readonly #firstEntry: ConfigurationEntry
  readonly #idStep: bigint
  #now = 0
  #isCalm = false
  #requests = 0
  #proposals = 0

  constructor({ seed, swarm, trace, createRaft }: SimulateOptions) {
    const random = new Random(seed)
    const drawn = drawSwarm(random.fork())
    this.#swarmDrawn = likeTcp(swarm === undefined ? drawn : swarm(drawn))
    this.#swarm = this.#swarmDrawn
    this.#network = random.fork()
    this.#random = random
    this.#trace = trace
    this.#createRaft = createRaft ?? ((options, restored) => new Raft(options, restored))
    this.#idStep = random.chance(0.2) ? 0x1234_5678_9abc_def1n : 1n
    this.checker = new Checker(this.#servers)
    const { roles, isBootstrapped } = this.#swarm
    const all = roles.map((role, place) => ({ id: this.#idOf(place), address: `s${place + 1}`, role }))
    const configuration: Configuration = { servers: isBootstrapped ? [{ ...all[0]!, role: 'voter' }] : all }
    this.#firstEntry = { type: 'configuration', index: 1, term: 1, byteLength: 64, configuration }
    this.checker.bootstrap(this.#firstEntry)
    if (trace !== undefined) trace(JSON.stringify(this.#swarm))
    for (const { id } of configuration.servers) this.#create(id, true)
    // At least a majority of voters is born with the first entry; other members may start empty and be brought up.
  }

  get nowTicks(): number {
    return this.#now / stepsPerTick
  }

  #idOf(place: number): ServerId {
    return BigInt.asUintN(64, BigInt(place + 1) * this.#idStep)
  }

  #placeOf(id: ServerId): string {
    return this.#servers.get(id)?.address ?? `#${id}`
  }

  #say(server: ModelServer | undefined, text: () => string): void {
    if (this.#trace === undefined) return
    this.#trace(`${this.nowTicks.toFixed(2).padStart(8)} ${server === undefined ? '--' : server.address} ${text()}`)
  }

  // ------------------------------------------------------------------------------------------------ running

  run(): void {
    try {
      this.#runPhases()
    } finally {
      for (const server of this.#servers.values()) this.#say(server, () => describeStatus(server))
    }
  }

  #runPhases(): void {
    for (const host of this.#hosts.values()) this.#start(host)
    this.#planFaults()
    this.#runUntil(this.#swarm.safetyTicks * stepsPerTick)
    this.#calmDown()
    this.#converge()
  }

  #runUntil(end: number): void {
    while (this.#now < end) this.#runTick(Math.min(end, this.#now + stepsPerTick))
  }

  #runTick(end: number): void {
    for (let tasks = 0; ; tasks++) {
      const next = this.#agenda.nextTime
      if (next === undefined || next > end) break
      // A message that causes more than one message, for ever.
      if (tasks > tasksPerTickMax) throw new Violation('a storm: messages beget messages')
      const task = this.#agenda.take()!
      this.#now = task.time
      task.run()
    }
    this.#now = end
  }

  #later(steps: number, run: () => void): void {
    this.#agenda.add(this.#now + steps, run)
  }

  /** For a server in its present life; delivered late while it is paused, never after a crash. */
  #laterFor(host: Host, steps: number, run: () => void): void {
    const { life } = host
    const now = () => {
      if (host.life !== life) return
      if (host.missed === undefined) run()
      else host.missed.push(now)
    }
    this.#later(steps, now)
  }

  #every(meanTicks: number, run: () => void): void {
    if (meanTicks === 0) return
    const again = () => {
      if (this.#isCalm) return
      run()
      this.#later(this.#random.interval(meanTicks * stepsPerTick), again)
    }
    this.#later(this.#random.interval(meanTicks * stepsPerTick), again)
  }

  #planFaults(): void {
    const swarm = this.#swarm
    this.#every(swarm.partitionEveryTicks, () => {
      this.#partition()
    })
    this.#every(swarm.crashEveryTicks, () => {
      const host = this.#pickHost(({ server }) => server.isUp)
      if (host !== undefined) this.#crash(host)
    })
    this.#every(swarm.pauseEveryTicks, () => {
      const host = this.#pickHost(({ server, missed }) => server.isUp && missed === undefined)
      if (host !== undefined) this.#pause(host)
    })
    this.#every(swarm.proposeEveryTicks, () => {
      const host = this.#pickLeader()
      if (host !== undefined) this.#propose(host.server, this.#random.between(1, swarm.proposalsMax))
    })
    this.#every(swarm.changeEveryTicks, () => {
      this.#change()
    })
    this.#every(swarm.transferEveryTicks, () => {
      const host = this.#pickLeader()
      if (host === undefined) return
      const to = this.#random.chance(0.3) ? undefined : this.#random.pick([...this.#servers.keys()])
      this.#request(host.server, (request) => ({ type: 'transfer', request, to }))
      this.checker.counts.transfers++
    })
    this.#every(swarm.snapshotEveryTicks, () => {
      const host = this.#pickHost(({ server }) => server.isUp)
      if (host !== undefined) this.#snapshot(host)
    })
    this.#every(swarm.readEveryTicks, () => {
      const host = this.#pickLeader()
      if (host !== undefined) this.#read(host.server)
    })
  }

  #pickHost(fits: (host: Host) => boolean): Host | undefined {
    const hosts = [...this.#hosts.values()].filter((host) => fits(host))
    return hosts.length === 0 ? undefined : this.#random.pick(hosts)
  }

  /** Mostly somebody who thinks it leads. */
  #pickLeader(): Host | undefined {
    const runs = ({ server, missed }: Host) => server.isUp && missed === undefined
    const leader = this.#pickHost((host) => runs(host) && host.server.raft!.state === 'leader')
    return leader !== undefined && this.#random.chance(0.95) ? leader : this.#pickHost(runs)
  }

  // ------------------------------------------------------------------------------------------------ servers

  #create(id: ServerId, isBorn: boolean): Host {
    const address = `s${this.#servers.size + 1}`
    const random = this.#random.fork()
    const isCLike = random.chance(this.#swarm.cLike)
    const options: RaftOptions = {
      ...this.#swarm.raft,
      id,
      random: () => random.next(),
      ...(this.#swarm.hasQuietVotes && !isCLike ? {} : { quietTicks: 0 }),
    }
    const server = new ModelServer(id, address, options, this, this.#createRaft)
    if (isBorn) {
      server.disk.apply({ type: 'vote', term: 1, votedFor: undefined })
      server.disk.apply({ type: 'append', entry: this.#firstEntry })
    }
    const drift = this.#swarm.clockDrift
    const tickSteps = stepsPerTick + (drift === 0 ? 0 : random.between(-drift, drift))
    const host: Host = {
      server,
      isCLike,
      tickSteps,
      random,
      life: 0,
      missed: undefined,
      isDiskScheduled: false,
      isApplyScheduled: false,
      isAnsweringSnapshot: false,
    }
    this.#hosts.set(id, host)
    this.#servers.set(id, server)
    this.#byAddress.set(address, server)
    return host
  }

  #start(host: Host): void {
    host.life++
    host.missed = undefined
    host.isDiskScheduled = false
    host.isApplyScheduled = false
    this.#say(host.server, () => {
      const { term, votedFor, firstIndex, lastIndex, newestSnapshot } = host.server.disk
      const snapshot = newestSnapshot === undefined ? '' : ` snapshot=${newestSnapshot.description.last.index}`
      return `starts: t${term} votedFor=${votedFor === undefined ? '-' : this.#placeOf(votedFor)} log=${firstIndex}..${lastIndex}${snapshot}${host.isCLike ? ' (like C)' : ''}`
    })
    host.server.start()
    const tick = () => {
      host.server.step({ type: 'tick' })
      this.#laterFor(host, host.tickSteps, tick)
    }
    this.#laterFor(host, host.random.below(host.tickSteps), tick)
  }

  #crash(host: Host, restarts = true): void {
    const { server } = host
    const unfinished = server.disk.unfinishedOperations
    const kept = host.random.between(0, unfinished)
    this.#say(server, () => `crashes; ${kept} of ${unfinished} unfinished writes survive`)
    host.life++
    host.missed = undefined
    server.crash(kept)
    this.checker.onCrash(server)
    this.checker.counts.crashes++
    if (kept > 0 && kept < unfinished) this.checker.counts.tornCrashes++
    if (!restarts) return
    this.#later(this.#random.interval(this.#swarm.downTicks * stepsPerTick), () => {
      if (!server.isUp && !this.#isCalm) this.#start(host)
    })
  }

  #pause(host: Host): void {
    host.missed = []
    this.#say(host.server, () => 'is stopped')
    const { life } = host
    this.#later(this.#random.interval(this.#swarm.pauseTicks * stepsPerTick), () => {
      if (host.life === life) this.#resume(host)
    })
  }

  #resume(host: Host): void {
    const { missed } = host
    if (missed === undefined) return
    this.#say(host.server, () => 'goes on')
    host.missed = undefined
    for (const run of missed) run()
  }

  #partition(): void {
    const addresses = [...this.#byAddress.keys()]
    const side = new Set(addresses.filter(() => this.#random.chance(0.5)))
    if (this.#random.chance(0.5)) {
      side.clear()
      side.add(this.#random.pick(addresses))
    }
    const isOneWay = this.#random.chance(this.#swarm.oneWay)
    this.#say(
      undefined,
      () => `partition: [${[...side].join(' ')}] ${isOneWay ? 'cannot reach' : 'cut off from'} the others`,
    )
    const cut: string[] = []
    for (const from of addresses) {
      for (const to of addresses) {
        if (side.has(from) === side.has(to)) continue
        if (!isOneWay || side.has(from)) cut.push(`${from}>${to}`)
      }
    }
    for (const link of cut) this.#cut.add(link)
    this.#later(this.#random.interval(this.#swarm.partitionTicks * stepsPerTick), () => {
      this.#say(undefined, () => 'partition heals')
      for (const link of cut) this.#cut.delete(link)
    })
  }

  // ------------------------------------------------------------------------------------------------ clients

  #propose(server: ModelServer, count: number): void {
    const entries = Array.from({ length: count }, (): Proposal => {
      if (this.#random.chance(0.05)) return { type: 'barrier' }
      const bytes = 8 * this.#random.between(1, this.#swarm.proposalBytesMax / 8)
      const data = new Uint8Array(bytes)
      new DataView(data.buffer).setUint32(0, ++this.#proposals)
      return { type: 'command', data }
    })
    const refusal = server.step({ type: 'propose', entries })
    this.#say(server, () => `propose ${count}: ${refusal ?? `up to ${server.raft?.lastIndex}`}`)
  }

  #request(server: ModelServer, event: (request: number) => RaftEvent): void {
    const request = ++this.#requests
    this.checker.onRequest(server, request)
    const asked = event(request)
    this.#say(server, () => {
      if (asked.type === 'transfer')
        return `request ${request}: transfer to ${asked.to === undefined ? 'any' : this.#placeOf(asked.to)}`
      if (asked.type !== 'change') return asked.type
      const { change } = asked
      return `request ${request}: ${change.type} ${this.#placeOf(change.id)}${change.type === 'assign' ? ` ${change.role}` : ''}`
    })
    const refusal = server.step(asked)
    if (refusal === undefined) return
    this.checker.onRequestRefused(request)
    this.#say(server, () => `request ${request}: ${refusal}`)
  }

  #change(): void {
    const host = this.#pickLeader()
    if (host === undefined) return
    const { configuration } = host.server.raft!
    const random = this.#random
    const draw = random.next()
    // Nobody saves an operator from a cluster without voters.
    const isLastVoter = (id: ServerId) =>
      configuration.servers.every((server) => (server.role === 'voter') === (server.id === id))
    const isMember = (id: ServerId) => configuration.servers.some((server) => server.id === id)
    if (draw < 0.35) {
      // Somebody who is out (back with its old disk), or a newcomer with an empty one.
      const outside = this.#pickHost(({ server }) => !isMember(server.id))
      const joining =
        outside !== undefined && (random.chance(0.7) || this.#servers.size >= serversMax)
          ? outside
          : this.#servers.size < serversMax
            ? this.#create(this.#idOf(this.#servers.size), false)
            : undefined
      if (joining === undefined) return
      if (joining.life === 0) this.#start(joining)
      const { id, address } = joining.server
      this.#request(host.server, (request) => ({ type: 'change', request, change: { type: 'add', id, address } }))
    } else if (draw < 0.8) {
      const { id } = random.pick([...this.#servers.values()])
      const role = random.pick<Role>(['voter', 'voter', 'standby', 'spare'])
      if (role !== 'voter' && isLastVoter(id)) return
      this.#request(host.server, (request) => ({ type: 'change', request, change: { type: 'assign', id, role } }))
    } else {
      const { id } = random.pick([...this.#servers.values()])
      if (isLastVoter(id)) return
      this.#request(host.server, (request) => ({ type: 'change', request, change: { type: 'remove', id } }))
    }
  }

  #snapshot(host: Host): void {
    const snapshot = host.server.beginSnapshot()
    if (snapshot === undefined) return
    this.#laterFor(host, host.random.between(0, 4 * this.#swarm.diskDelayMax), () => {
      const trailing = host.random.between(0, this.#swarm.trailingMax)
      this.#say(host.server, () => `snapshot at ${snapshot.description.last.index}, trailing ${trailing}`)
      this.checker.counts.snapshotsTaken++
      host.server.finishSnapshot(snapshot, trailing)
    })
  }

  #read(server: ModelServer): number {
    const id = ++this.#requests
    this.checker.onRead(server, id)
    const refusal = server.step({ type: 'readIndex', id })
    this.#say(server, () => `read ${id}: ${refusal ?? 'asked'}`)
    if (refusal !== undefined) this.checker.onReadRefused(id)
    return id
  }

  // ------------------------------------------------------------------------------------------------ network

  send(server: ModelServer, parcel: Parcel): void {
    this.checker.onSend(server, parcel)
    const host = this.#hosts.get(server.id)!
    const message = host.isCLike ? likeC(host, parcel.message) : parcel.message
    const sent = message === parcel.message ? parcel : { ...parcel, message }
    this.#say(server, () => `-> ${parcel.address}: ${describeMessage(message)}`)
    const { loss, duplication } = this.#swarm
    const link = `${server.address}>${parcel.address}`
    const isLost = this.#cut.has(link) || this.#network.chance(loss)
    if (isLost) {
      if (this.#network.chance(this.#swarm.unreachable)) this.onUnreachable(server, parcel.to)
      return
    }
    this.#deliverLater(link, sent)
    if (this.#network.chance(duplication)) this.#deliverLater(link, sent)
  }

  #deliverLater(link: string, parcel: Parcel): void {
    const { delayMax, slowness, isOrdered } = this.#swarm
    let time = this.#now + this.#network.between(1, Math.max(1, delayMax))
    if (this.#network.chance(slowness)) time += this.#network.below(40 * stepsPerTick)
    if (isOrdered) {
      time = Math.max(time, this.#lastDelivery.get(link) ?? 0)
      this.#lastDelivery.set(link, time)
    }
    this.#agenda.add(time, () => {
      const target = this.#byAddress.get(parcel.address)
      const host = target === undefined ? undefined : this.#hosts.get(target.id)
      const sender = this.#servers.get(parcel.from)
      if (host === undefined || !host.server.isUp || host.server.id !== parcel.to) {
        if (sender?.isUp === true && this.#network.chance(this.#swarm.unreachable))
          this.onUnreachable(sender, parcel.to)
        return
      }
      this.#laterFor(host, 0, () => {
        this.#receive(host, parcel)
      })
    })
  }

  #receive(host: Host, parcel: Parcel): void {
    const { server } = host
    // An answer to a snapshot names the snapshot, and no more.
    host.isAnsweringSnapshot = parcel.message.type === 'installSnapshot'
    // C members drop these without a word while they install (raft-wire §6.5).
    if (host.isCLike && server.isInstalling) {
      const { message } = parcel
      if (message.type === 'appendEntries' && message.entries.length > 0) return
    }
    this.#say(server, () => `<- ${this.#placeOf(parcel.from)}: ${describeMessage(parcel.message)}`)
    this.#holdReady(host)
    server.receive(parcel)
    host.isAnsweringSnapshot = false
  }

  /** Sometimes a host takes its Ready only at the end of a turn with several events. */
  #holdReady(host: Host): void {
    const { server } = host
    if (server.isHoldingReady || !host.random.chance(this.#swarm.lateReady)) return
    server.isHoldingReady = true
    this.#laterFor(host, host.random.between(0, 6), () => {
      server.isHoldingReady = false
      server.pump()
    })
  }

  // ------------------------------------------------------------------------------------------------ World

  onUnreachable(server: ModelServer, to: ServerId): void {
    const host = this.#hosts.get(server.id)!
    this.checker.counts.unreachable++
    this.#laterFor(host, this.#network.between(1, stepsPerTick), () => {
      server.step({ type: 'unreachable', to })
    })
  }

  onDiskWork(server: ModelServer): void {
    const host = this.#hosts.get(server.id)!
    if (host.isDiskScheduled) return
    host.isDiskScheduled = true
    this.#laterFor(host, host.random.between(0, this.#swarm.diskDelayMax), () => {
      host.isDiskScheduled = false
      if (server.disk.queue.length === 0) return
      const { diskFailure, installFailure, notifyEach } = this.#swarm
      if (server.disk.queue[0]!.installs !== undefined && host.random.chance(installFailure)) {
        this.#say(server, () => 'the snapshot cannot be installed')
        server.failInstall()
      } else if (host.random.chance(diskFailure) && server.failDisk(host.random.between(0, 2))) {
        this.#say(server, () => `disk write failed; the log on disk ends at ${server.disk.lastIndex}`)
        this.checker.counts.persistFailures++
      } else {
        const count = host.random.chance(0.5) ? server.disk.queue.length : 1
        server.completeDisk(count, { stepEach: notifyEach })
      }
      if (server.disk.queue.length > 0) this.onDiskWork(server)
    })
  }

  onApplyWork(server: ModelServer): void {
    const host = this.#hosts.get(server.id)!
    if (host.isApplyScheduled) return
    host.isApplyScheduled = true
    this.#laterFor(host, host.random.between(0, this.#swarm.applyDelayMax), () => {
      host.isApplyScheduled = false
      server.applySome(host.random.chance(0.5) ? server.applyQueue.length : 1)
    })
  }

  onStart(server: ModelServer): void {
    this.checker.onStart(server)
  }

  onStepped(server: ModelServer, event: RaftEvent, before: Before, refusal: Refusal | undefined): void {
    const { raft } = server
    if (raft !== undefined && (raft.state !== before.state || raft.term !== before.term)) {
      this.#say(server, () => `is ${raft.state} in term ${raft.term} [${describeConfiguration(raft.configuration)}]`)
    }
    this.checker.onStepped(server, event, before, refusal)
  }

  onReady(server: ModelServer, ready: Ready): void {
    this.#say(server, () => describeReady(ready))
    this.checker.onReady(server, ready)
  }

  onPumped(server: ModelServer): void {
    this.checker.onPumped(server)
  }

  onDurable(server: ModelServer): void {
    this.#say(server, () => `durable: t${server.disk.term} log ends at ${server.disk.lastIndex}`)
    this.checker.onDurable(server)
  }

  onApplied(server: ModelServer, entry: Entry): void {
    this.checker.onApplied(server, entry, server.machine)
  }

  // ------------------------------------------------------------------------------------------------ liveness

  /** No more faults. Everybody is up, except perhaps a minority of every configuration that could still matter. */
  #calmDown(): void {
    this.#say(undefined, () => '---------------------------------------- liveness phase')
    this.#isCalm = true
    this.#swarm = calm(this.#swarmDrawn)
    this.#cut.clear()
    const down = this.#chooseDown()
    for (const host of this.#hosts.values()) {
      if (host.missed !== undefined) this.#resume(host)
      if (down.has(host.server.id)) {
        if (host.server.isUp) this.#crash(host, false)
      } else if (!host.server.isUp) {
        this.#start(host)
      }
    }
  }

  #configurations(): Configuration[] {
    const found: Configuration[] = []
    for (let index = this.checker.commitIndex; index > 0; index--) {
      const { entry } = this.checker.committed[index - 1]!
      if (entry.type !== 'configuration') continue
      found.push(entry.configuration)
      break
    }
    for (const { disk, mirror } of this.#servers.values()) {
      const queued = disk.queue.flatMap(({ entries }) => entries)
      for (const entry of [...disk.entries, ...queued, ...mirror]) {
        if (entry.type === 'configuration' && entry.index > this.checker.commitIndex) found.push(entry.configuration)
      }
    }
    return found
  }

  #chooseDown(): Set<ServerId> {
    const down = new Set<ServerId>()
    if (!this.#random.chance(0.4)) return down
    const configurations = this.#configurations()
    for (const id of this.#servers.keys()) {
      if (!this.#random.chance(0.4)) continue
      down.add(id)
      const hasMajority = ({ servers }: Configuration) => {
        const voters = servers.filter(({ role }) => role === 'voter')
        return voters.filter((voter) => !down.has(voter.id)).length > voters.length / 2
      }
      if (!configurations.every((configuration) => hasMajority(configuration))) down.delete(id)
    }
    return down
  }

  get #leader(): ModelServer | undefined {
    let leader: ModelServer | undefined
    for (const server of this.#servers.values()) {
      if (server.raft?.state === 'leader' && server.raft.term > (leader?.raft?.term ?? 0)) leader = server
    }
    return leader
  }

  #converge(): void {
    const { electionTimeoutTicks, installSnapshotTimeoutTicks, catchUpRoundTimeoutTicks } = this.#swarm.raft
    // Tiny messages bring an empty log up to date one entry at a time.
    const backlogTicks = this.checker.commitIndex
    const boundTicks =
      60 * electionTimeoutTicks + 4 * installSnapshotTimeoutTicks + 2 * catchUpRoundTimeoutTicks + 50 + backlogTicks
    const end = this.#now + boundTicks * stepsPerTick
    let proposed: { index: number; term: number } | undefined
    let why = 'nobody leads'
    const isConverged = (): boolean => {
      const leader = this.#leader
      const raft = leader?.raft
      if (leader === undefined || raft === undefined) {
        why = 'nobody leads'
        return false
      }
      if (proposed?.term !== raft.term) {
        const before = raft.lastIndex
        this.#propose(leader, 1)
        why = `server ${leader.address} takes no proposal`
        if (raft.lastIndex !== before) proposed = { index: raft.lastIndex, term: raft.term }
        return false
      }
      const { index, term } = proposed
      why = `server ${leader.address} does not commit ${index}/t${term}`
      if (this.checker.committedTermAt(index) !== term) return false
      const behind = raft.configuration.servers
        .filter(({ role }) => role !== 'spare')
        .map(({ id }) => this.#servers.get(id))
        .filter((server) => server?.isUp === true && server.machine.lastApplied < index)
      why = `${behind.map((server) => server!.address).join(' ')} do not reach ${index}`
      if (behind.length > 0) return false
      const open = this.checker.openRequests
      why = `requests ${open.join(' ')} have no outcome`
      return open.length === 0
    }
    while (!isConverged()) {
      if (this.#now >= end) throw new Violation(`liveness: after ${boundTicks} calm ticks ${why}`)
      this.#runUntil(this.#now + stepsPerTick)
    }
    this.#staysStable()
  }

  /** Without faults nobody campaigns, and a read is answered. */
  #staysStable(): void {
    const { electionTimeoutTicks } = this.#swarm.raft
    // What was late in the safety phase may still arrive.
    this.#runUntil(this.#now + (45 + 2 * electionTimeoutTicks) * stepsPerTick)
    const leader = this.#leader
    if (leader?.raft === undefined) throw new Violation('liveness: the leader is gone without a fault')
    const { term } = leader.raft
    const read = this.#read(leader)
    this.#runUntil(this.#now + 5 * electionTimeoutTicks * stepsPerTick)
    if (this.#leader !== leader || leader.raft.term !== term) {
      throw new Violation(`liveness: server ${leader.address} lost its leadership of term ${term} without a fault`)
    }
    if (this.checker.isReadOpen(read)) throw new Violation(`liveness: read ${read} is not answered`)
    for (const { id, role } of leader.raft.configuration.servers) {
      const server = this.#servers.get(id)
      if (role === 'spare' || server?.raft === undefined) continue
      if (server.machine.lastApplied !== this.checker.commitIndex) {
        throw new Violation(`liveness: server ${server.address} has not applied everything`)
      }
    }
  }
}

/**
 * C members are told apart by how they answer, and that needs what a connection gives: order, and nothing twice. Our own members
 * are fine without.
 */
const likeTcp = (swarm: Swarm): Swarm => (swarm.cLike === 0 ? swarm : { ...swarm, isOrdered: true, duplication: 0 })

/** Habits of C members on the wire (raft-wire §2.2, §2.4, §6.4). */
function likeC({ server, isAnsweringSnapshot }: Host, message: Message): Message {
  if (message.type === 'requestVoteResult') {
    return { ...message, preVote: message.preVote }
  }
  if (message.type === 'appendEntriesResult') {
    // Success names everything on the disk, a stale tail included.
    const lastLogIndex =
      message.rejected === 0 && !server.isInstalling && !isAnsweringSnapshot
        ? Math.max(message.lastLogIndex, server.raft?.lastPersisted ?? 0)
        : message.lastLogIndex
    return { ...message, lastLogIndex, features: 0 }
  }
  return message
}

function describeReady(ready: Ready): string {
  const parts: string[] = []
  if (ready.vote !== undefined) parts.push(`vote t${ready.vote.term} for ${ready.vote.votedFor ?? '-'}`)
  if (ready.snapshot !== undefined) parts.push(`install ${ready.snapshot.last.index}`)
  if (ready.truncateAfter !== undefined) parts.push(`truncate after ${ready.truncateAfter}`)
  if (ready.entries.length > 0) parts.push(`store [${ready.entries.map(describeEntry).join(', ')}]`)
  if (ready.committed.length > 0) parts.push(`committed ..${ready.committed.at(-1)!.index}`)
  for (const { id, index } of ready.reads) parts.push(`read ${id} at ${index}`)
  for (const { request, result } of ready.outcomes) parts.push(`request ${request} ${result}`)
  const later = ready.messagesAfterPersist.length
  if (later > 0) parts.push(`${later} messages after that`)
  return `ready: ${parts.join('; ')}`
}
