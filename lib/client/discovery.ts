/**
 * Finds the leader and opens sessions with it: asks several servers at once, follows their hints, remembers the last
 * leader, learns the member list. Does not know what the sessions are for.
 *
 *   remembered leader ── names itself ─────────────────────────────► session
 *          │ no                                                         ▲
 *          ▼                                                            │ the first that names itself; others are cut
 *   search: ask every known address (at most 10 at once) ── names B ─► ask B once
 *          ▲                                  │ nobody
 *          └────────── back off ◄─────────────┘      until the caller's deadline: NO_LEADER, with what each one said
 */
import { DqliteError } from '../errors.js'
import type { Role, ServerId } from '../raft/types.js'
import { Deadline, backoffMs } from './deadline.js'
import { Session, type Dial } from './session.js'

export interface Member {
  readonly id: ServerId
  readonly address: string
  readonly role: Role
}

export interface DiscoveryOptions {
  readonly addresses: readonly string[]
  readonly dial: Dial
  readonly probeTimeoutMs: number
  readonly messageBytesMax: number
}

const probesMax = 10
/** Members that are remembered beside the addresses the caller gave. */
const membersMax = 1000
const backoff = { firstMs: 50, maxMs: 500 }
/** A round does not wait longer than this for servers that do not answer: they may still win in the next one. */
const roundMs = 500

interface Asked {
  readonly session: Session
  /** The leader it names, undefined for none. */
  readonly leader: string | undefined
}

type Ask = (address: string, deadline: Deadline) => Promise<Asked>

export class Discovery {
  readonly #options: DiscoveryOptions
  #members: readonly Member[] = []
  #leader: string | undefined
  #search: Search | undefined
  #isClosed = false

  constructor(options: DiscoveryOptions) {
    this.#options = options
  }

  /** Ends a search; those who wait for it fail. */
  close(): void {
    this.#isClosed = true
    this.#search?.fail(closed())
  }

  /** The server that led last time. */
  get leader(): string | undefined {
    return this.#leader
  }

  /** Forgets the leader, if it is still the one that disappointed. */
  forget(address: string): void {
    if (this.#leader === address) this.#leader = undefined
  }

  /** Replaces what CLUSTER said before; the addresses that the caller gave stay known. */
  learn(members: readonly Member[]): void {
    if (members.length > 0) this.#members = members.slice(0, membersMax)
  }

  /** A member that was just added: it may be the next leader before anybody has been asked for the list again. */
  learnOne(member: Member): void {
    this.learn([...this.#members.filter(({ id }) => id !== member.id), member])
  }

  /** Addresses to ask: members, voters first, then the caller's. */
  get addresses(): string[] {
    const rank = { voter: 0, standby: 1, spare: 2 } as const
    const members = [...this.#members].sort((a, b) => rank[a.role] - rank[b.role])
    return [...new Set([...members.map((member) => member.address), ...this.#options.addresses])]
  }

  /** A new session with the leader, verified by its own word. */
  async connect(deadline: Deadline): Promise<Session> {
    for (;;) {
      deadline.check()
      if (this.#isClosed) throw closed()
      const leader = this.#leader
      const session = leader === undefined ? await this.#join(deadline) : await this.#tryAgain(leader, deadline)
      if (session) return session
    }
  }

  /** A session with this server, whoever leads. */
  async connectTo(
    address: string,
    deadline: Deadline,
    messageBytesMax = this.#options.messageBytesMax,
  ): Promise<Session> {
    const { dial } = this.#options
    const controller = new AbortController()
    const dialled = dial(address, { timeoutMs: Math.max(1, deadline.remainingMs), signal: controller.signal })
    try {
      return new Session(address, await deadline.race(dialled), { messageBytesMax })
    } catch (error) {
      controller.abort()
      // A socket that opens after all has no owner.
      dialled.then(
        (socket) => {
          socket.on('error', () => undefined)
          socket.destroy()
        },
        () => undefined,
      )
      if (error instanceof DqliteError) throw error
      throw new DqliteError('NO_CONNECTION', `cannot connect to ${address}: ${textOf(error)}`, { cause: error })
    }
  }

  async #tryAgain(leader: string, deadline: Deadline): Promise<Session | undefined> {
    const probe = new Deadline({
      timeoutMs: Math.min(this.#options.probeTimeoutMs, Math.max(1, deadline.remainingMs)),
      what: `asking ${leader} who leads`,
    })
    const asking = this.#ask(leader, probe)
    try {
      const { session, leader: named } = await deadline.race(asking)
      if (named === leader) return session
      session.close()
    } catch (error) {
      if (error === deadline.error) {
        asking.then(
          ({ session }) => {
            session.close()
          },
          () => undefined,
        )
        throw error
      }
      // What it said does not matter: the search asks it again, beside the others.
    } finally {
      probe.dispose()
    }
    this.forget(leader)
    return undefined
  }

  /** LEADER as the connection's first request. The caller closes a session it does not keep. */
  async #ask(address: string, deadline: Deadline): Promise<Asked> {
    const session = await this.connectTo(address, deadline)
    try {
      const server = await session.request({ type: 'leader' }, 'server', deadline)
      return { session, leader: server.address === '' ? undefined : server.address }
    } catch (error) {
      session.close()
      throw error
    }
  }

  /** Waits for the search. One of those who wait gets the session; the others find the leader remembered. */
  async #join(deadline: Deadline): Promise<Session | undefined> {
    this.#search ??= new Search({
      addresses: () => this.addresses,
      ask: (address, probe) => this.#ask(address, probe),
      probeTimeoutMs: this.#options.probeTimeoutMs,
      onFound: (leader) => {
        this.#leader = leader
        this.#search = undefined
      },
    })
    const search = this.#search
    search.enter()
    try {
      await deadline.race(search.found)
      return search.claim()
    } catch (error) {
      if (deadline.error?.code === 'TIMEOUT') throw noLeader(search.findings, deadline)
      throw error
    } finally {
      if (search.leave() === 0 && this.#search === search) this.#search = undefined
    }
  }
}

interface SearchOptions {
  readonly addresses: () => readonly string[]
  readonly ask: Ask
  readonly probeTimeoutMs: number
  readonly onFound: (leader: string) => void
}

/** One search serves everybody who needs a leader. It ends when one is found, or when nobody waits any more. */
class Search {
  readonly findings = new Map<string, string>()
  readonly found: Promise<void>
  readonly #options: SearchOptions
  readonly #controller = new AbortController()
  readonly #probes = new Map<string, Promise<void>>()
  /** Addresses that wait for one of `probesMax` places. */
  readonly #queue: (() => void)[] = []
  #places = probesMax
  #waiters = 0
  #session: Session | undefined
  #win: () => void = () => undefined
  #lose: (error: DqliteError) => void = () => undefined

  constructor(options: SearchOptions) {
    this.#options = options
    this.found = new Promise((resolve, reject) => {
      this.#win = resolve
      this.#lose = reject
      this.#run().catch(reject)
    })
    this.found.catch(() => undefined) // those who wait hear of it
  }

  enter(): void {
    this.#waiters++
  }

  /** Number of those who still wait. */
  leave(): number {
    if (--this.#waiters === 0) {
      this.#controller.abort()
      this.claim()?.close()
    }
    return this.#waiters
  }

  fail(error: DqliteError): void {
    this.#controller.abort()
    this.#lose(error)
  }

  /** The session that was found, once. */
  claim(): Session | undefined {
    const session = this.#session
    this.#session = undefined
    return session
  }

  async #run(): Promise<void> {
    const { signal } = this.#controller
    for (let round = 0; !signal.aborted; round++) {
      const probes = this.#options.addresses().map((address) => this.#probe(address))
      await Promise.race([Promise.all(probes), pause(roundMs, signal)])
      await pause(backoffMs(round, backoff), signal)
    }
  }

  #probe(address: string): Promise<void> {
    let probe = this.#probes.get(address)
    if (!probe) {
      probe = this.#inPlace(() => this.#follow(address)).finally(() => this.#probes.delete(address))
      this.#probes.set(address, probe)
    }
    return probe
  }

  async #inPlace(act: () => Promise<void>): Promise<void> {
    if (this.#places === 0) await new Promise<void>((resolve) => this.#queue.push(resolve))
    else this.#places--
    try {
      await act()
    } finally {
      const next = this.#queue.shift()
      if (next) next()
      else this.#places++
    }
  }

  /** Asks, and asks the server that it names, which must then name itself: hints that go in circles end here. */
  async #follow(address: string): Promise<void> {
    const hint = await this.#ask(address)
    if (hint === undefined || this.#probes.has(hint)) return
    const hinted = this.#ask(hint).then(() => undefined)
    this.#probes.set(hint, hinted)
    try {
      await hinted
    } finally {
      this.#probes.delete(hint)
    }
  }

  /** Gives the other server that this one names. Never throws: what went wrong is a finding. */
  async #ask(address: string): Promise<string | undefined> {
    const { signal } = this.#controller
    if (signal.aborted) return undefined
    const deadline = new Deadline({ timeoutMs: this.#options.probeTimeoutMs, signals: [signal], what: 'asking' })
    try {
      const { session, leader } = await this.#options.ask(address, deadline)
      if (leader === address && !signal.aborted) {
        this.#session = session
        this.#options.onFound(address)
        this.#win()
        this.#controller.abort()
        return undefined
      }
      session.close()
      this.findings.set(address, leader === undefined ? 'knows no leader' : `says ${leader} leads`)
      return leader === address ? undefined : leader
    } catch (error) {
      if (!signal.aborted) this.findings.set(address, findingOf(error, this.#options.probeTimeoutMs))
      return undefined
    } finally {
      deadline.dispose()
    }
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  await new Promise<void>((resolve) => {
    const end = (): void => {
      clearTimeout(timer)
      signal.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, ms)
    signal.addEventListener('abort', end)
  })
}

function findingOf(error: unknown, probeTimeoutMs: number): string {
  if (error instanceof DqliteError && error.code === 'TIMEOUT') return `did not answer within ${probeTimeoutMs} ms`
  return textOf(error)
}

const closed = (): DqliteError => new DqliteError('CLOSED', 'the client is closed')

function noLeader(findings: ReadonlyMap<string, string>, deadline: Deadline): DqliteError {
  const said = [...findings].map(([address, finding]) => `${address}: ${finding}`).join('; ')
  return new DqliteError(
    'NO_LEADER',
    `no leader found within ${deadline.timeoutMs} ms (${said || 'nobody answered'})`,
    {
      cause: deadline.error,
    },
  )
}

const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))
