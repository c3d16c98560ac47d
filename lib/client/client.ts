/**
 * The client of a cluster: SQL on its leader, transactions, membership. Decides what is sent again after a failure:
 * only what certainly did not happen, or what the caller vouches for. Does not know bytes or sockets.
 *
 *   call ─► session from the pool ─► answer
 *              ▲        │
 *              │        ├─ NOT_LEADER, or lost before it was sent ─► forget the leader, again until the deadline
 *              │        ├─ lost on the way ─► reads and idempotent calls: again; others: outcome unknown, thrown
 *              └────────┴─ anything else ─► thrown
 */
import type { SqlValue } from '../codec/tuple.js'
import { DqliteError } from '../errors.js'
import { dial as dialTcp, parseAddress } from '../network/dial.js'
import { clientLimits, type ClientLimits } from '../options.js'
import type { Role, ServerId } from '../raft/types.js'
import { Calls, execOn, run, type Call, type CallOptions, type Executor, type Lease } from './calls.js'
import { Deadline, backoffMs, knownNotSent, nothingHappened } from './deadline.js'
import { Discovery, type Member } from './discovery.js'
import { Pool } from './pool.js'
import type { Dial, ResponseOf, Session } from './session.js'
import { Pinned, Transaction, type TransactionMode } from './transaction.js'
import type { ClientRequest, ResponseType } from '../codec/client-protocol.js'

export interface ClientOptions extends Partial<ClientLimits> {
  /** Some members of the cluster, `host:port`; the others are learned from them. */
  readonly addresses: readonly string[]
  /** Without one only the calls about the cluster work. */
  readonly database?: string
  /** What an INTEGER becomes. `number` (default) throws UNSAFE_INTEGER beyond 2^53. */
  readonly integers?: 'number' | 'bigint'
  /** What columns declared DATETIME, DATE or TIMESTAMP become: Date (default), or what is stored. */
  readonly dates?: 'date' | 'raw'
  /** For every write: wait and try again when another writer holds the database. */
  readonly retryBusy?: boolean
  /** Opens connections, for TLS and proxies. TCP and Unix sockets without it. */
  readonly dial?: Dial
}

export interface TransactionOptions {
  /** `immediate` (default) takes the write lock at once, so that a later write cannot fail for others' writes. */
  readonly mode?: TransactionMode
  /** For the whole transaction, callback included. Without it only its calls have limits. */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
  /** How often the callback runs at most; it runs again only if nothing was committed. */
  readonly runsMax?: number
}

export interface LeaderInfo {
  readonly id: ServerId
  readonly address: string
}

export interface DumpedDatabase {
  /** The main file, ready for SQLite. */
  readonly main: Uint8Array
  /** The write-ahead log beside it, empty where the server has merged it. */
  readonly wal: Uint8Array
}

/** Asks one member instead of the leader. */
export interface MemberCallOptions extends CallOptions {
  readonly address?: string | undefined
}

const retryBackoff = { firstMs: 10, maxMs: 500 }
const rerunBackoff = { firstMs: 5, maxMs: 250 }
const drainMs = 1000
/** A server that becomes a voter catches up first: rounds of up to 50 s (client-protocol §7.10). */
const assignTimeoutMs = 60_000
/** A dump is one message of any size the header can announce. */
const dumpBytesMax = 0x1fff_ffff * 8
const forever = 2 ** 31 - 1

/** A client whose first call connects. `connect` does so at once. */
export class Client extends Calls {
  protected readonly sharesSessions = true
  protected readonly executor: Executor
  readonly #limits: ClientLimits
  readonly #options: ClientOptions
  readonly #discovery: Discovery
  readonly #pool: Pool
  #closing: Promise<void> | undefined

  constructor(options: ClientOptions) {
    super()
    checkOptions(options)
    this.#options = options
    this.#limits = clientLimits(options)
    const { probeTimeoutMs, messageBytesMax, sessionsMax, waitersMax } = this.#limits
    const { addresses, dial = dialTcp, integers = 'number', dates = 'date' } = options
    const discovery = new Discovery({ addresses: [...addresses], dial, probeTimeoutMs, messageBytesMax })
    this.#discovery = discovery
    const prepare = (session: Session, deadline: Deadline): Promise<void> => this.#prepareSession(session, deadline)
    this.#pool = new Pool({ discovery, prepare, sessionsMax, waitersMax })
    this.executor = {
      rowDefaults: { integers, dates },
      lease: (call, act) => {
        this.#checkDatabase()
        return this.#lease(call, act)
      },
      remember: () => undefined,
      forget: (text) => {
        this.#pool.forEach((session) => {
          session.forget(text)
        })
      },
    }
  }

  // ------------------------------------------------------------------------------------------------ transactions

  /**
   * Runs the callback between BEGIN and COMMIT. It is rolled back when the callback throws. The callback may run
   * several times: when the database was busy or leadership was lost before anything could be committed.
   */
  async transaction<T>(callback: (tx: Transaction) => Promise<T>, options: TransactionOptions = {}): Promise<T> {
    this.#checkDatabase()
    const mode = checkMode(options.mode)
    const { timeoutMs } = this.#limits
    const runsMax = options.runsMax ?? this.#limits.transactionRunsMax
    const whole = new Deadline({
      timeoutMs: options.timeoutMs ?? forever,
      signals: [options.signal],
      what: 'the transaction',
    })
    const rerunUntilMs = performance.now() + Math.min(timeoutMs, whole.timeoutMs)
    try {
      for (let runs = 1; ; runs++) {
        const begun = await this.#begin(mode, whole, options.signal)
        begun.deadline.dispose()
        const { rowDefaults } = this.executor
        const pinned = new Pinned({ session: begun.session, rowDefaults, timeoutMs })
        try {
          return await this.#runTransaction(pinned, callback, whole, options.signal)
        } catch (error) {
          const again = runs < runsMax && performance.now() < rerunUntilMs && pinned.mayRunAgain(error)
          if (!again) throw error
        } finally {
          if (!begun.session.isUsable) this.#pool.dropServer(begun.session.address)
          begun.release()
        }
        await whole.sleep(backoffMs(runs, rerunBackoff))
      }
    } finally {
      whole.dispose()
    }
  }

  #begin(mode: TransactionMode, whole: Deadline, signal: AbortSignal | undefined): Promise<Lease<unknown>> {
    const call: Call = {
      what: 'BEGIN',
      // A transaction that was begun on a lost connection is rolled back there.
      isRead: true,
      isRepeatable: true,
      retryBusy: true,
      timeoutMs: Math.max(1, Math.min(this.#limits.timeoutMs, whole.remainingMs)),
      signal,
    }
    return this.#lease(call, (session, deadline) => execOn(session, `BEGIN ${mode.toUpperCase()}`, [], {}, deadline))
  }

  async #runTransaction<T>(
    pinned: Pinned,
    callback: (tx: Transaction) => Promise<T>,
    whole: Deadline,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    const tx = new Transaction(pinned)
    try {
      // An async wrapper: a callback that throws at once is no different.
      const value = await whole.race((async () => callback(tx))())
      const timeoutMs = Math.max(1, Math.min(this.#limits.timeoutMs, whole.remainingMs))
      const deadline = new Deadline({ timeoutMs, signals: [signal], what: 'COMMIT' })
      try {
        await pinned.commit(deadline)
      } finally {
        deadline.dispose()
      }
      return value
    } catch (error) {
      if (whole.error) pinned.session.close(whole.error)
      tx.end()
      await pinned.rollback()
      throw whole.error && error === whole.error && pinned.mayHaveCommitted ? outcomeUnknown(whole.error) : error
    } finally {
      pinned.end()
    }
  }

  // ------------------------------------------------------------------------------------------------ the cluster

  /** Who leads, by its own word. */
  async leader(options: CallOptions = {}): Promise<LeaderInfo> {
    const call = adminCall('leader', options, { isRead: true })
    return run(this.#admin, call, async (session, deadline) => {
      const { id, address } = await session.request({ type: 'leader' }, 'server', deadline)
      if (address !== session.address) throw new DqliteError('NOT_LEADER', `${session.address} does not lead any more`)
      return { id, address }
    })
  }

  /** The members as the leader, or the given member, lists them. */
  async cluster(options: MemberCallOptions = {}): Promise<Member[]> {
    const { servers } = await this.#ask({ type: 'cluster', format: 1n }, 'servers', 'cluster', options)
    const members = membersOf(servers)
    this.#discovery.learn(members)
    return members
  }

  /** Adds a server, then gives it its role (`voter` by default, after it has caught up). It should be running. */
  async add(
    server: { readonly id: ServerId | number; readonly address: string; readonly role?: Role },
    options: CallOptions = {},
  ): Promise<void> {
    const id = serverId(server.id)
    const { address, role = 'voter' } = server
    await this.#tell({ type: 'add', id, address }, 'add', options)
    if (role !== 'spare') await this.assign(id, role, options)
    this.#discovery.learnOne({ id, address, role })
  }

  /** Changes a member's role. To become a voter it must be reachable and catch up: up to 60 s unless told otherwise. */
  async assign(id: ServerId | number, role: Role, options: CallOptions = {}): Promise<void> {
    const timeoutMs = options.timeoutMs ?? Math.max(assignTimeoutMs, this.#limits.timeoutMs)
    await this.#tell({ type: 'assign', id: serverId(id), role }, 'assign', { ...options, timeoutMs })
  }

  async remove(id: ServerId | number, options: CallOptions = {}): Promise<void> {
    await this.#tell({ type: 'remove', id: serverId(id) }, 'remove', options)
  }

  /** Hands leadership to this voter, or to one that the leader picks. */
  async transfer(id?: ServerId | number, options: CallOptions = {}): Promise<void> {
    await this.#tell({ type: 'transfer', id: id === undefined ? 0n : serverId(id) }, 'transfer', options)
    const former = this.#discovery.leader
    if (former !== undefined) this.#pool.dropServer(former)
  }

  /** Failure domain and weight of the leader, or of the given member. */
  async describe(options: MemberCallOptions = {}): Promise<{ failureDomain: bigint; weight: bigint }> {
    const { failureDomain, weight } = await this.#ask({ type: 'describe', format: 0n }, 'metadata', 'describe', options)
    return { failureDomain, weight }
  }

  /** Sets the weight of the leader, or of the given member, until it restarts. */
  async weight(weight: bigint | number, options: MemberCallOptions = {}): Promise<void> {
    await this.#ask({ type: 'weight', weight: BigInt(weight) }, 'empty', 'weight', options)
  }

  /** A copy of a database: the client's by default, from the leader or the given member. */
  async dump(name = this.#options.database, options: MemberCallOptions = {}): Promise<DumpedDatabase> {
    if (name === undefined) throw new DqliteError('BAD_OPTION', 'dump needs the name of a database')
    const address = options.address ?? (await this.leader(options)).address
    const { files } = await this.#askAt(address, { type: 'dump', name }, 'files', 'dump', options, dumpBytesMax)
    const content = (file: string): Uint8Array => files.find((each) => each.name === file)?.content ?? new Uint8Array()
    return { main: content(name), wal: content(`${name}-wal`) }
  }

  // ------------------------------------------------------------------------------------------------ life

  /** Resolves once there is a session with the leader. */
  async connect(options: CallOptions = {}): Promise<this> {
    await run(this.#admin, adminCall('connect', options, { isRead: true }), () => Promise.resolve())
    return this
  }

  /** Waiting calls fail with CLOSED; those that run may end, up to the time limit, and are then cut. */
  close({ timeoutMs = this.#limits.timeoutMs }: { readonly timeoutMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(timeoutMs)
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(timeoutMs: number): Promise<void> {
    this.#discovery.close()
    const grace = new Deadline({ timeoutMs, what: 'closing the client' })
    try {
      await grace.race(this.#pool.close())
    } catch {
      // Only the deadline ends this: those that are left are cut, and say so.
      this.#pool.destroy(new DqliteError('ABORTED', 'the client was closed while the call was running'))
    } finally {
      grace.dispose()
    }
  }

  // ------------------------------------------------------------------------------------------------ sessions

  get #admin(): Pick<Executor, 'lease'> {
    return { lease: (call, act) => this.#lease(call, act) }
  }

  async #prepareSession(session: Session, deadline: Deadline): Promise<void> {
    const { database } = this.#options
    if (database === undefined) return
    this.#discovery.learn(membersOf(await session.open(database, deadline)))
  }

  #checkDatabase(): void {
    if (this.#options.database === undefined)
      throw new DqliteError('BAD_OPTION', 'option database is missing: SQL needs one')
  }

  async #lease<T>(call: Call, act: (session: Session, deadline: Deadline) => Promise<T>): Promise<Lease<T>> {
    const timeoutMs = call.timeoutMs ?? this.#limits.timeoutMs
    const deadline = new Deadline({ timeoutMs, signals: [call.signal], what: call.what })
    const retryBusy = call.retryBusy ?? this.#options.retryBusy ?? false
    /** The error of the last try that was followed by another one. */
    let previous: DqliteError | undefined
    /** A try may have taken effect, so the whole has an unknown outcome unless it succeeds. */
    let mayHaveHappened = false
    try {
      for (let tries = 0; ; tries++) {
        let session: Session
        try {
          if (previous) await deadline.sleep(backoffMs(tries - 1, retryBackoff))
          session = await this.#pool.acquire(deadline)
        } catch (error) {
          // "busy" says more than "took too long".
          const isTimeout = error === deadline.error && deadline.error?.code === 'TIMEOUT'
          throw previous && isTimeout ? previous : knownNotSent(error)
        }
        try {
          const value = await act(session, deadline)
          return {
            value,
            session,
            deadline,
            drainMs,
            judge: (error) => this.#judge(error, session, call).error,
            release: () => {
              deadline.dispose()
              this.#pool.release(session)
            },
          }
        } catch (cause) {
          const { error, verdict } = this.#judge(cause, session, call)
          this.#pool.release(session)
          if (!(error instanceof DqliteError) || verdict === 'no' || (verdict === 'busy' && !retryBusy)) throw error
          previous = error
          mayHaveHappened ||= error.outcome === 'unknown'
        }
      }
    } catch (error) {
      deadline.dispose()
      throw mayHaveHappened && error instanceof DqliteError && !call.isRead ? outcomeUnknown(error) : error
    }
  }

  /** What to make of an error: the one to show, and whether the call may be sent again. */
  #judge(cause: unknown, session: Session, call: Call): { error: unknown; verdict: 'again' | 'busy' | 'no' } {
    if (!(cause instanceof DqliteError)) {
      session.close() // a mistake in this client: the session's state is not known
      return { error: cause, verdict: 'no' }
    }
    const isHandleLost = cause.code === 'NOT_FOUND' // leadership was lost and regained (client-protocol §9.5)
    const isNotLeader = cause.code === 'NOT_LEADER' || isHandleLost
    if (isNotLeader || cause.code === 'LEADERSHIP_LOST') session.close()
    if (!session.isUsable) this.#pool.dropServer(session.address)
    // Of several statements the first ones may have been committed.
    const isPartial = !call.isRead && call.isSeveral === true && (isNotLeader || cause.code === 'BUSY')
    const error = call.isRead ? nothingHappened(cause) : isPartial ? outcomeUnknown(cause) : cause
    const mayRepeat = call.isRepeatable || (!isPartial && (cause.retryable || isHandleLost))
    if (cause.code === 'BUSY') return { error, verdict: mayRepeat ? 'busy' : 'no' }
    const isLost = isNotLeader || cause.code === 'LEADERSHIP_LOST' || cause.code === 'CONNECTION_LOST'
    return { error, verdict: isLost && mayRepeat ? 'again' : 'no' }
  }

  // ------------------------------------------------------------------------------------------------ single requests

  /** A request that the leader alone serves and that changes something. */
  async #tell(request: ClientRequest, what: string, options: CallOptions): Promise<void> {
    await run(this.#admin, adminCall(what, options, { isRead: false }), (session, deadline) =>
      session.request(request, 'empty', deadline),
    )
  }

  /** A request that every server answers for itself. */
  #ask<Type extends ResponseType>(
    request: ClientRequest,
    expected: Type,
    what: string,
    options: MemberCallOptions,
  ): Promise<ResponseOf<Type>> {
    if (options.address !== undefined) return this.#askAt(options.address, request, expected, what, options)
    return run(this.#admin, adminCall(what, options, { isRead: true }), (session, deadline) =>
      session.request(request, expected, deadline),
    )
  }

  async #askAt<Type extends ResponseType>(
    address: string,
    request: ClientRequest,
    expected: Type,
    what: string,
    options: CallOptions,
    messageBytesMax?: number,
  ): Promise<ResponseOf<Type>> {
    const timeoutMs = options.timeoutMs ?? this.#limits.timeoutMs
    const deadline = new Deadline({ timeoutMs, signals: [options.signal], what })
    try {
      const session = await this.#discovery.connectTo(address, deadline, messageBytesMax)
      try {
        return await session.request(request, expected, deadline)
      } finally {
        session.close()
      }
    } finally {
      deadline.dispose()
    }
  }
}

/** A client that has found the leader. */
export async function connect(options: ClientOptions & { readonly signal?: AbortSignal }): Promise<Client> {
  const client = new Client(options)
  try {
    return await client.connect({ signal: options.signal })
  } catch (error) {
    await client.close({ timeoutMs: 1 })
    throw error
  }
}

function adminCall(what: string, options: CallOptions, { isRead }: { isRead: boolean }): Call {
  return { what, isRead, isRepeatable: isRead, timeoutMs: options.timeoutMs, signal: options.signal }
}

function outcomeUnknown(error: DqliteError): DqliteError {
  if (error.outcome === 'unknown') return error
  return new DqliteError(error.code, `${error.message}; a part of it, or an earlier try, may have taken effect`, {
    cause: error,
    retry: 'unknown',
    ...(error.wire === undefined ? {} : { wire: error.wire }),
  })
}

function membersOf(servers: ResponseOf<'servers'>['servers']): Member[] {
  return servers.map(({ id, address, role }) => ({ id, address, role: role ?? 'spare' }))
}

function serverId(id: ServerId | number): ServerId {
  if (typeof id === 'number' && !Number.isSafeInteger(id))
    throw new DqliteError('BAD_PARAMETER', `server id ${id} is no whole number within 2^53; give it as a bigint`)
  const result = BigInt(id)
  if (result < 1n || result >= 2n ** 64n)
    throw new DqliteError('BAD_PARAMETER', `server id ${result.toString()} is not between 1 and 2^64 - 1`)
  return result
}

const modes: readonly TransactionMode[] = ['deferred', 'immediate', 'exclusive']

function checkMode(mode: TransactionMode = 'immediate'): TransactionMode {
  if (!modes.includes(mode))
    throw new DqliteError('BAD_OPTION', `option mode is ${String(mode)}; it must be one of ${modes.join(', ')}`)
  return mode
}

function checkOptions({ addresses, database, integers, dates, dial }: ClientOptions): void {
  if (!Array.isArray(addresses) || addresses.length === 0 || addresses.some((each) => typeof each !== 'string'))
    throw new DqliteError('BAD_OPTION', 'option addresses must list at least one address, host:port')
  if (!dial) for (const address of addresses as readonly string[]) parseAddress(address)
  if (database !== undefined && (typeof database !== 'string' || database === ''))
    throw new DqliteError('BAD_OPTION', 'option database must be the name of a database')
  if (integers !== undefined && integers !== 'number' && integers !== 'bigint')
    throw new DqliteError('BAD_OPTION', `option integers is ${String(integers)}; it must be number or bigint`)
  if (dates !== undefined && dates !== 'date' && dates !== 'raw')
    throw new DqliteError('BAD_OPTION', `option dates is ${String(dates)}; it must be date or raw`)
}

export type { SqlValue }
