/**
 * Sessions with the leader: a bounded number, handed out one call at a time, first come first served. A session that
 * failed is not taken back, and all idle ones with a server go when that server turns out not to lead. Does not know
 * what is done with a session, nor whether to do it again.
 */
import assert from 'node:assert/strict'
import { DqliteError } from '../errors.js'
import type { Deadline } from './deadline.js'
import type { Discovery } from './discovery.js'
import type { Session } from './session.js'

export interface PoolOptions {
  readonly discovery: Discovery
  /** Makes a fresh session ready: opens the database on it. */
  readonly prepare: (session: Session, deadline: Deadline) => Promise<void>
  readonly sessionsMax: number
  readonly waitersMax: number
}

/** Gets a session, or `undefined` for a place to open one. */
type Waiter = (session: Session | undefined) => void

export class Pool {
  readonly #options: PoolOptions
  readonly #idle: Session[] = []
  readonly #busy = new Set<Session>()
  readonly #waiters = new Set<Waiter>()
  /** Sessions that are being opened, or whose place has been given to somebody who will. */
  #opening = 0
  #isClosed = false
  #onDrained: (() => void) | undefined

  constructor(options: PoolOptions) {
    this.#options = options
  }

  /** Every acquired session is released, whatever happened to it. */
  async acquire(deadline: Deadline): Promise<Session> {
    deadline.check()
    if (this.#isClosed) throw new DqliteError('CLOSED', 'the client is closed')
    const idle = this.#waiters.size === 0 ? this.#takeIdle() : undefined
    if (idle) return idle
    const { sessionsMax, waitersMax } = this.#options
    if (this.#busy.size + this.#idle.length + this.#opening < sessionsMax) {
      this.#opening++
    } else {
      if (this.#waiters.size >= waitersMax)
        throw new DqliteError('BUSY', `${waitersMax} calls wait for one of ${sessionsMax} sessions already`)
      const session = await this.#wait(deadline)
      if (session) return session
    }
    return this.#open(deadline)
  }

  release(session: Session): void {
    assert(this.#busy.delete(session))
    if (session.isUsable && !this.#isClosed) this.#offer(session)
    else {
      session.close()
      this.#giveAwayPlace()
    }
    this.#settleClose()
  }

  /** This server does not lead (any more): sessions with it are of no use. */
  dropServer(address: string): void {
    this.#options.discovery.forget(address)
    for (const session of this.#idle.filter((idle) => idle.address === address)) session.close()
  }

  /** For every session there is: a statement is forgotten. */
  forEach(act: (session: Session) => void): void {
    for (const session of this.#idle) act(session)
    for (const session of this.#busy) act(session)
  }

  /** Waiting calls fail, idle sessions go; resolves when those in use have come back. */
  close(): Promise<void> {
    this.#isClosed = true
    // They find the pool closed.
    for (const waiter of this.#waiters) {
      this.#opening++
      waiter(undefined)
    }
    this.#waiters.clear()
    for (const session of [...this.#idle]) session.close()
    return new Promise((resolve) => {
      this.#onDrained = resolve
      this.#settleClose()
    })
  }

  /** Those in use, too. */
  destroy(reason: DqliteError): void {
    for (const session of [...this.#busy]) session.close(reason)
  }

  #settleClose(): void {
    if (this.#busy.size === 0 && this.#opening === 0) this.#onDrained?.()
  }

  #takeIdle(): Session | undefined {
    const session = this.#idle.pop() // the last one used: it has the statements, and the others may time out
    if (!session) return undefined
    session.onClosed = () => undefined
    this.#busy.add(session)
    return session
  }

  #wait(deadline: Deadline): Promise<Session | undefined> {
    return new Promise((resolve, reject) => {
      const waiter: Waiter = (session) => {
        deadline.unlisten()
        resolve(session)
      }
      this.#waiters.add(waiter)
      deadline.listen((error) => {
        this.#waiters.delete(waiter)
        reject(error)
      })
    })
  }

  #nextWaiter(): Waiter | undefined {
    for (const waiter of this.#waiters) {
      this.#waiters.delete(waiter)
      return waiter
    }
    return undefined
  }

  async #open(deadline: Deadline): Promise<Session> {
    let session: Session | undefined
    try {
      if (this.#isClosed) throw new DqliteError('CLOSED', 'the client is closed')
      session = await this.#options.discovery.connect(deadline)
      await this.#options.prepare(session, deadline)
      // Somebody may have learned meanwhile that this is not the leader; the first request will say so.
      this.#busy.add(session)
      this.#opening--
      return session
    } catch (error) {
      session?.close()
      this.#opening--
      this.#giveAwayPlace()
      this.#settleClose()
      throw error
    }
  }

  #offer(session: Session): void {
    const waiter = this.#nextWaiter()
    if (waiter) {
      this.#busy.add(session)
      waiter(session)
      return
    }
    this.#idle.push(session)
    session.onClosed = () => {
      const at = this.#idle.indexOf(session)
      if (at >= 0) this.#idle.splice(at, 1)
    }
  }

  #giveAwayPlace(): void {
    const waiter = this.#nextWaiter()
    if (!waiter) return
    this.#opening++
    waiter(undefined)
  }
}
