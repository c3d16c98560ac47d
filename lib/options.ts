/**
 * Every option and every limit: default, unit, check, one sentence. README's table is generated from here.
 * Does not know what an option does; the room that reads it does.
 */
import { DqliteError } from './errors.js'

interface NumberOption {
  readonly kind: 'number'
  readonly default: number
  readonly min: number
  readonly max: number
  readonly unit: string
  /** What it sets and, for a limit, what happens at it. */
  readonly text: string
}

const number = (value: number, unit: string, min: number, max: number, text: string): NumberOption => ({
  kind: 'number',
  default: value,
  min,
  max,
  unit,
  text,
})

const KiB = 1024
const MiB = 1024 * KiB
const GiB = 1024 * MiB

/** Options of a node. Names end in their unit. */
export const nodeOptions = {
  // Timing. dqlite's own defaults; `networkLatencyNs` L sets heartbeat 1.5 L and election 15 L (raft-wire §6.1).
  heartbeatMs: number(500, 'ms', 1, 3_600_000, 'How often a leader speaks to idle followers.'),
  electionTimeoutMs: number(
    3000,
    'ms',
    2,
    54_000_000,
    'Silence after which a follower campaigns, randomised up to twice this.',
  ),
  installSnapshotTimeoutMs: number(
    30_000,
    'ms',
    100,
    3_600_000,
    'Without progress for this long a snapshot transfer starts again.',
  ),
  connectTimeoutMs: number(5000, 'ms', 10, 600_000, 'A connection attempt to a peer is given up after this.'),
  reconnectMs: number(1000, 'ms', 1, 600_000, 'Upper bound of the pause between connection attempts to a peer.'),
  // Requests.
  busyTimeoutMs: number(
    5000,
    'ms',
    0,
    3_600_000,
    'How long a writer waits for its turn; then BUSY "database is locked". 0: refuse at once.',
  ),
  statementBudgetMs: number(4, 'ms', 1, 10_000, 'A statement that holds the loop longer moves to a worker thread.'),
  workerThreadsMax: number(64, 'threads', 1, 1024, 'Heavy statements at once; more wait for a thread.'),
  requestBytesMax: number(256 * MiB, 'bytes', 64 * KiB, 1 * GiB, 'A client message above it closes the connection.'),
  transactionBytesMax: number(
    256 * MiB,
    'bytes',
    64 * KiB,
    500 * MiB,
    'A transaction whose pages need more is rolled back with SQLITE_TOOBIG. C peers refuse payloads over 500 MiB.',
  ),
  writersQueuedMax: number(
    10_000,
    'writers',
    1,
    1_000_000,
    'Writers waiting per database; one more gets BUSY at once.',
  ),
  connectionsMax: number(10_000, 'connections', 1, 1_000_000, 'Client connections; one more is closed at once.'),
  statementsMax: number(10_000, 'statements', 1, 1_000_000, 'Prepared statements per connection; one more is refused.'),
  rowsBatchBytes: number(
    64 * KiB,
    'bytes',
    4 * KiB,
    16 * MiB,
    "Size of a ROWS message after the first (the first closes at 4 KiB, as C dqlite's do).",
  ),
  // Replication.
  appendEntriesMax: number(1000, 'entries', 1, 200_000, 'Entries in one AppendEntries message.'),
  appendBytesMax: number(
    8 * MiB,
    'bytes',
    4 * KiB,
    400 * MiB,
    'Bytes in one AppendEntries message; one larger entry goes alone.',
  ),
  inflightAppendsMax: number(
    64,
    'messages',
    1,
    10_000,
    'Unanswered AppendEntries per follower; at it, sending waits for an answer.',
  ),
  pipelineEntriesMax: number(1024, 'entries', 1, 100_000, 'Uncommitted entries of a leader; at it, new writers wait.'),
  pipelineBytesMax: number(
    32 * MiB,
    'bytes',
    64 * KiB,
    1 * GiB,
    'Uncommitted bytes of a leader; at it, new writers wait.',
  ),
  committedBytesMax: number(
    16 * MiB,
    'bytes',
    4 * KiB,
    1 * GiB,
    'Bytes applied to the databases in one step of the loop.',
  ),
  sendQueueBytesMax: number(
    64 * MiB,
    'bytes',
    64 * KiB,
    1 * GiB,
    'Bytes waiting for a peer; beyond, messages are dropped and Raft sends them again.',
  ),
  logCacheBytesMax: number(
    8 * MiB,
    'bytes',
    0,
    64 * GiB,
    'Log entries kept in memory; older ones are read from the segments.',
  ),
  catchUpRoundsMax: number(
    100,
    'rounds',
    1,
    10_000,
    'Rounds in which a server may catch up before a promotion to voter fails.',
  ),
  catchUpRoundTimeoutMs: number(50_000, 'ms', 100, 3_600_000, 'Longest round of a promotion.'),
  // Storage.
  snapshotThreshold: number(
    1024,
    'entries',
    1,
    1_000_000_000,
    'Applied entries after which a snapshot is taken, once they are also several times as large as the last one.',
  ),
  snapshotTrailing: number(
    8192,
    'entries',
    4,
    1_000_000_000,
    'Entries kept before a snapshot, so that slow followers need none.',
  ),
  checkpointFrames: number(1000, 'frames', 1, 1_000_000, 'WAL frames after which they are moved into the database.'),
} as const satisfies Record<string, NumberOption>

export type NodeLimits = { readonly [K in keyof typeof nodeOptions]: number }

export const snapshotStrategies = ['static', 'dynamic'] as const
export type SnapshotStrategy = (typeof snapshotStrategies)[number]

/** Options of a client. */
export const clientOptions = {
  timeoutMs: number(
    15_000,
    'ms',
    1,
    86_400_000,
    'Time for one call, with finding the leader, waiting for a session and safe repetitions; then TIMEOUT or NO_LEADER.',
  ),
  probeTimeoutMs: number(2000, 'ms', 1, 3_600_000, 'Time for one server to answer who leads.'),
  sessionsMax: number(8, 'sessions', 1, 10_000, 'Connections to the leader; beyond, calls wait in order.'),
  waitersMax: number(10_000, 'calls', 0, 10_000_000, 'Calls waiting for a session; beyond, they fail with BUSY.'),
  transactionRunsMax: number(
    10,
    'runs',
    1,
    1000,
    'How often the callback of a transaction runs at most when nothing was committed.',
  ),
  messageBytesMax: number(
    256 * MiB,
    'bytes',
    4 * KiB,
    4 * GiB - 8,
    'Largest response; beyond, the connection is closed and the call fails with BAD_RESPONSE.',
  ),
} as const satisfies Record<string, NumberOption>

export type ClientLimits = { readonly [K in keyof typeof clientOptions]: number }

function checked(
  options: Record<string, NumberOption>,
  values: Readonly<Record<string, unknown>>,
): Record<string, number> {
  const result: Record<string, number> = {}
  for (const [name, option] of Object.entries(options)) {
    const value = (values[name] as number | undefined) ?? option.default
    if (typeof value !== 'number' || !Number.isInteger(value) || value < option.min || value > option.max)
      throw new DqliteError(
        'BAD_OPTION',
        `option ${name} is ${String(value)}; it must be a whole number of ${option.unit} from ${option.min} to ${option.max}`,
      )
    result[name] = value
  }
  return result
}

/** Defaults with the given values over them. Throws BAD_OPTION that names the option and its range. */
export function clientLimits(values: { readonly [K in keyof ClientLimits]?: number | undefined } = {}): ClientLimits {
  return checked(clientOptions, values) as ClientLimits
}

/** Defaults with the given values over them. Throws BAD_OPTION that names the option and its range. */
export function nodeLimits(values: Partial<Record<keyof NodeLimits, number>> = {}): NodeLimits {
  const limits = checked(nodeOptions, values) as NodeLimits
  if (limits.heartbeatMs >= limits.electionTimeoutMs)
    throw new DqliteError(
      'BAD_OPTION',
      `option heartbeatMs is ${limits.heartbeatMs}; it must be below electionTimeoutMs, which is ${limits.electionTimeoutMs}`,
    )
  if (limits.snapshotTrailing < limits.snapshotThreshold)
    throw new DqliteError(
      'BAD_OPTION',
      `option snapshotTrailing is ${limits.snapshotTrailing}; it must be at least snapshotThreshold, which is ${limits.snapshotThreshold}`,
    )
  return limits
}
