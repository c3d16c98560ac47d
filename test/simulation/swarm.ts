/**
 * What a seed decides before anything runs: how large the cluster is, which faults exist at all and how often. Drawn
 * per seed ("swarm testing"): a run where one fault is frequent and the others are off finds what a mixture hides.
 * Times are in microsteps, 16 to a tick, unless the name says ticks. An `Every` of 0 means never.
 */
import type { RaftOptions } from '../../lib/raft/raft.js'
import type { Role } from '../../lib/raft/types.js'
import type { Random } from '../support/random.js'

export const stepsPerTick = 16

export interface Swarm {
  readonly roles: readonly Role[]
  /** Only the first server has the first entry; the others join by configuration changes. */
  readonly isBootstrapped: boolean
  readonly safetyTicks: number
  readonly raft: Omit<RaftOptions, 'id' | 'random'>
  readonly hasQuietVotes: boolean
  /** Chance per server to behave like a C member on the wire. */
  readonly cLike: number

  readonly loss: number
  readonly duplication: number
  readonly delayMax: number
  /** Chance of a much longer delay. */
  readonly slowness: number
  /** Links keep the order of their messages, as one TCP connection does. */
  readonly isOrdered: boolean
  /** Chance that a lost message is reported to its sender. */
  readonly unreachable: number

  readonly partitionEveryTicks: number
  readonly partitionTicks: number
  readonly oneWay: number
  readonly crashEveryTicks: number
  readonly downTicks: number
  readonly pauseEveryTicks: number
  readonly pauseTicks: number

  readonly diskDelayMax: number
  readonly diskFailure: number
  readonly installFailure: number
  readonly applyDelayMax: number
  readonly notifyEach: boolean
  /** Chance that a host takes its Ready only later in its turn. */
  readonly lateReady: number
  readonly clockDrift: number

  readonly proposeEveryTicks: number
  readonly proposalsMax: number
  readonly proposalBytesMax: number
  readonly changeEveryTicks: number
  readonly transferEveryTicks: number
  readonly snapshotEveryTicks: number
  readonly trailingMax: number
  readonly readEveryTicks: number
}

export function drawSwarm(random: Random): Swarm {
  const sometimes = (chance: number, draw: () => number) => (random.chance(chance) ? draw() : 0)
  const heartbeatTicks = random.between(1, 3)
  const electionTimeoutTicks = heartbeatTicks * random.between(3, 6)
  const votersCount = random.pick([1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 7])
  const roles: Role[] = Array.from({ length: votersCount }, () => 'voter')
  for (let extra = random.chance(0.4) ? random.between(1, Math.max(1, 7 - votersCount)) : 0; extra > 0; extra--) {
    if (roles.length < 7) roles.push(random.pick(['standby', 'spare']))
  }
  const isTiny = random.chance(0.5)
  const smallEntries = random.chance(0.5)
  return {
    roles,
    isBootstrapped: random.chance(0.15),
    safetyTicks: random.between(100, 600),
    raft: {
      electionTimeoutTicks,
      heartbeatTicks,
      installSnapshotTimeoutTicks: electionTimeoutTicks * random.between(1, 5),
      maxCatchUpRounds: random.pick([1, 3, 10, 100]),
      catchUpRoundTimeoutTicks: electionTimeoutTicks * random.between(2, 8),
      appendEntriesMax: isTiny ? random.between(1, 3) : random.between(4, 100),
      appendBytesMax: isTiny ? random.pick([8, 64, 128]) : 4096,
      inflightAppendsMax: isTiny ? random.between(1, 3) : random.between(2, 64),
      pipelineEntriesMax: isTiny ? random.between(1, 20) : 200,
      pipelineBytesMax: isTiny ? random.pick([64, 256, 1024]) : 65536,
      logCacheBytesMax: random.pick([0, 8, 64, 256, 65536]),
      committedBytesMax: random.pick([8, 64, 1024]),
    },
    hasQuietVotes: random.chance(0.6),
    cLike: sometimes(0.25, () => random.pick([0.2, 0.5])),

    loss: sometimes(0.6, () => random.pick([0.01, 0.05, 0.2])),
    duplication: sometimes(0.4, () => random.pick([0.01, 0.1, 0.3])),
    delayMax: random.pick([2, 8, 16, 48]),
    slowness: sometimes(0.3, () => random.pick([0.005, 0.03])),
    isOrdered: random.chance(0.4),
    unreachable: random.pick([0, 0.5, 1]),

    partitionEveryTicks: sometimes(0.5, () => random.between(10, 120)),
    partitionTicks: random.between(2, 60),
    oneWay: random.pick([0, 0.3, 1]),
    crashEveryTicks: sometimes(0.6, () => random.between(8, 120)),
    downTicks: random.between(1, 60),
    pauseEveryTicks: sometimes(0.3, () => random.between(10, 100)),
    pauseTicks: random.between(1, 40),

    diskDelayMax: random.pick([0, 2, 8, 32]),
    diskFailure: sometimes(0.25, () => random.pick([0.002, 0.02])),
    installFailure: sometimes(0.3, () => 0.3),
    applyDelayMax: random.pick([0, 2, 16, 64]),
    notifyEach: random.chance(0.5),
    lateReady: sometimes(0.4, () => random.pick([0.1, 0.5])),
    clockDrift: sometimes(0.4, () => random.between(1, 4)),

    proposeEveryTicks: random.pick([1, 1, 2, 4, 16]),
    proposalsMax: random.pick([1, 4, 12]),
    proposalBytesMax: smallEntries ? 8 : 128,
    changeEveryTicks: sometimes(0.5, () => random.between(5, 80)),
    transferEveryTicks: sometimes(0.4, () => random.between(10, 100)),
    snapshotEveryTicks: sometimes(0.6, () => random.between(3, 60)),
    trailingMax: random.pick([0, 2, 8, 64]),
    readEveryTicks: sometimes(0.6, () => random.between(1, 10)),
  }
}

/** Whatever else the seed says: nothing fails any more. */
export const calm = (swarm: Swarm): Swarm => ({
  ...swarm,
  loss: 0,
  duplication: 0,
  delayMax: 2,
  slowness: 0,
  diskDelayMax: Math.min(swarm.diskDelayMax, 2),
  diskFailure: 0,
  installFailure: 0,
  applyDelayMax: Math.min(swarm.applyDelayMax, 2),
  lateReady: 0,
})

/** Where the general mixture comes too rarely: laid over what a seed draws. */
export const profiles = {
  'half-written disks': {
    diskDelayMax: 64,
    crashEveryTicks: 10,
    downTicks: 3,
    proposeEveryTicks: 1,
    proposalsMax: 12,
    delayMax: 8,
  },
  'failing disks': {
    diskFailure: 0.05,
    diskDelayMax: 16,
    crashEveryTicks: 40,
    installFailure: 0.3,
    snapshotEveryTicks: 15,
    trailingMax: 2,
  },
  'changing members': {
    isBootstrapped: false,
    changeEveryTicks: 5,
    crashEveryTicks: 40,
    downTicks: 10,
    partitionEveryTicks: 40,
    partitionTicks: 10,
    transferEveryTicks: 40,
  },
  'members like C': {
    hasQuietVotes: true,
    cLike: 0.5,
    crashEveryTicks: 25,
    downTicks: 10,
    partitionEveryTicks: 20,
    partitionTicks: 15,
    proposeEveryTicks: 1,
    snapshotEveryTicks: 20,
    trailingMax: 2,
  },
} satisfies Readonly<Record<string, Partial<Swarm>>>

export type Profile = keyof typeof profiles
